"""Checks what the model wrote against its contract and its citations: text in, Checked out. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.citations import is_supported, resolve_citations
from orchestrator.contract import Contract
from orchestrator.types import Citation, Passage

NO_SOURCE = " [no source]"


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
    if contract.citations is None:
        return Checked(data, contract.render(data), (), ())
    answer = str(data[contract.answer]).strip()
    if contract.is_refusal(data) or not answer:
        flags = () if contract.is_refusal(data) else ("empty_answer",)
        return refusal(contract, flags)
    citations, forged = resolve_citations(data[contract.citations], passages, answer)
    flags = tuple(f"citation_dropped:{number}" for number in forged)
    if citations and not is_supported(answer, [passages[citation.number - 1] for citation in citations]):
        citations, flags = (), (*flags, "unsupported")
    kept = {**data, contract.citations: [citation.number for citation in citations]}
    if citations:
        return Checked(kept, contract.render(kept), citations, flags)
    return Checked(kept, answer + NO_SOURCE, (), (*flags, "no_source"))


def refusal(contract: Contract, flags: tuple[str, ...] = ()) -> Checked:
    """The object that says that the passages do not answer."""
    data: dict[str, Any] = {contract.answer: ""}
    if contract.citations:
        data[contract.citations] = []
    if contract.answerable:
        data[contract.answerable] = False
    return Checked(data, contract.refusal, (), flags)


class AnswerStream:
    """Feeds on the model's JSON as it is generated and gives out the answer's text that can no longer be taken back.

    Nothing comes out before the verdict: a contract whose answer field stands before ``answerable`` or ``citations``
    is not streamed at all, and neither is an answer that the model calls unanswerable.
    """

    def __init__(self, contract: Contract) -> None:
        fields = list(contract.schema.get("properties", {}))
        before = [name for name in (contract.answerable, contract.citations) if name]
        self._streams = all(fields.index(name) < fields.index(contract.answer) for name in before)
        self._refused = (
            re.compile(rf'"{re.escape(contract.answerable)}"\s*:\s*false') if contract.answerable else None
        )
        self._start = re.compile(rf'"{re.escape(contract.answer)}"\s*:\s*"')
        self._json = ""
        self._position: int | None = None
        self._ended = not self._streams
        self._leading = True
        self._held = ""

    def feed(self, delta: str) -> str:
        """The next stretch of decoded answer text, often empty."""
        self._json += delta
        if self._ended:
            return ""
        if self._position is None:
            found = self._start.search(self._json)
            if not found:
                return ""
            self._position = found.end()
            if self._refused and self._refused.search(self._json, 0, found.start()):
                self._ended = True
                return ""
        return self._strip(self._decode())

    def _decode(self) -> str:
        assert self._position is not None
        out: list[str] = []
        while self._position < len(self._json):
            char = self._json[self._position]
            if char == '"':
                self._ended = True
                break
            if char != "\\":
                out.append(char)
                self._position += 1
                continue
            step = self._escape_length()
            if step is None:
                break
            out.append(_unescape(self._json[self._position : self._position + step]))
            self._position += step
        return "".join(out)

    def _escape_length(self) -> int | None:
        assert self._position is not None
        rest = self._json[self._position : self._position + 12]
        if len(rest) < 2 or (rest[1] == "u" and len(rest) < 6):
            return None
        if rest[1] != "u":
            return 2
        is_high = 0xD800 <= _code(rest[2:6]) < 0xDC00
        if not is_high:
            return 6
        return 12 if len(rest) == 12 else None

    def _strip(self, text: str) -> str:
        """As ``str.strip`` over the whole answer: leading space is dropped, trailing space is held back until more comes."""
        text = self._held + text
        if self._leading:
            text = text.lstrip()
            self._leading = not text
        body = text.rstrip()
        self._held = text[len(body) :]
        return body


def _code(digits: str) -> int:
    try:
        return int(digits, 16)
    except ValueError:
        return 0


def _unescape(escape: str) -> str:
    import json

    try:
        return str(json.loads(f'"{escape}"'))
    except ValueError:
        return "\ufffd"
