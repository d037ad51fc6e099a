"""Checks what the model wrote against its contract and its citations: text in, Checked out. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.citations import is_supported, resolve_citations
from orchestrator.contract import Contract
from orchestrator.types import Citation, Passage

NO_SOURCE = " [no source]"

_MARK = re.compile(r" ?\[\d{1,3}\]")
_OPEN_MARK = re.compile(r"\[\d{0,3}\Z")
_FIELD = re.compile(r'\s*[{,]\s*("(?:[^"\\]|\\.)*")\s*:\s*')
# A stretch of a JSON string that can be decoded by itself: plain text, a surrogate pair, or one other escape.
_STRETCH = re.compile(
    r'[^"\\\x00-\x1f\ud800-\udfff]+'
    r'|\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})'
)


@dataclass(frozen=True, slots=True)
class Checked:
    """An object that keeps its contract, its citations looked up, and what had to be corrected."""

    data: Mapping[str, Any]
    text: str
    citations: tuple[Citation, ...]
    flags: tuple[str, ...]


def check_output(contract: Contract, output: str, passages: Sequence[Passage]) -> Checked:
    """The checked answer. Citations that do not resolve or do not carry the answer are dropped and flagged.

    Raises ContractError when the output does not keep the contract's schema.
    """
    data = contract.parse_output(output)
    raw = str(data[contract.answer])
    answer = answer_text(contract, raw)
    empty = () if answer or contract.is_refusal(data) else ("empty_answer",)
    if contract.citations is None:
        return refusal(contract, data=data) if contract.is_refusal(data) else Checked(data, answer, (), empty)
    if contract.is_refusal(data) or not answer:
        return refusal(contract, (*_dropped(data[contract.citations]), *empty), data)
    citations, dropped = resolve_citations(data[contract.citations], passages, answer)
    flags = _dropped(dropped)
    if answer != raw.strip():
        flags = (*flags, "marks_removed")
    if citations and not is_supported(answer, [passages[citation.number - 1] for citation in citations]):
        citations, flags = (), (*flags, "unsupported")
    kept = {**data, contract.answer: answer, contract.citations: [citation.number for citation in citations]}
    if citations:
        return Checked(kept, contract.render(kept), citations, flags)
    return Checked(kept, answer + NO_SOURCE, (), (*flags, "no_source"))


def answer_text(contract: Contract, raw: str) -> str:
    """The answer without space around it and, where the contract has citations, without the model's own ``[n]`` marks."""
    return (_MARK.sub("", raw) if contract.citations else raw).strip()


def refusal(contract: Contract, flags: tuple[str, ...] = (), data: Mapping[str, Any] | None = None) -> Checked:
    """The object that says that the passages do not answer."""
    said: dict[str, Any] = {**(data or {}), contract.answer: ""}
    if contract.citations:
        said[contract.citations] = []
    if contract.answerable:
        said[contract.answerable] = False
    ordered = {name: said[name] for name in contract.schema["properties"] if name in said}
    return Checked(ordered, contract.refusal, (), flags)


class AnswerStream:
    """Feeds on the model's JSON as it is generated and gives out the answer's text that can no longer be taken back.

    Nothing comes out before the verdict: an answer that stands before ``answerable`` or ``citations`` is not streamed,
    and neither is one that the model calls unanswerable. What comes out is the start of ``Checked.text``.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._seen: dict[str, Any] = {}  # fields before the answer
        self._json = ""
        self._at = 0  # everything before it is read
        self._inside = False
        self._ended = False
        self._raw = ""
        self._given = 0

    def feed(self, delta: str) -> str:
        """The next stretch of decoded answer text, often empty."""
        if self._ended:
            return ""
        self._json += delta
        if not self._inside and not self._seek():
            return ""
        self._decode()
        safe = self._raw if self._ended or not self._contract.citations else _OPEN_MARK.sub("", self._raw)
        text = answer_text(self._contract, safe)
        new, self._given = text[self._given :], max(self._given, len(text))
        return new

    def _seek(self) -> bool:
        """Reads whole fields until the answer's string begins."""
        while found := _FIELD.match(self._json, self._at):
            try:
                name = json.loads(found.group(1))
                if name == self._contract.answer:
                    break
                value, end = json.JSONDecoder().raw_decode(self._json, found.end())
            except (ValueError, RecursionError):  # not whole yet, or never: then the check says so at the end
                return False
            if end == len(self._json):
                return False
            self._seen[name] = value
            self._at = end
        if not found or found.end() == len(self._json):
            return False
        self._inside, self._at = True, found.end() + 1
        self._ended = self._json[found.end()] != '"' or not self._has_verdict()
        return not self._ended

    def _has_verdict(self) -> bool:
        contract = self._contract
        answerable = contract.answerable is None or self._seen.get(contract.answerable) is True
        return answerable and (contract.citations is None or contract.citations in self._seen)

    def _decode(self) -> None:
        while found := _STRETCH.match(self._json, self._at):
            self._raw += json.loads(f'"{found.group()}"')
            self._at = found.end()
        self._ended = self._json[self._at : self._at + 1] == '"'


def _dropped(numbers: Sequence[object]) -> tuple[str, ...]:
    return tuple(f"citation_dropped:{number}"[:40] for number in dict.fromkeys(numbers))
