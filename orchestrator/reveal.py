"""Shows an answer while it is written: the model's text in as it comes, what can no longer be taken back out. Pure.

What comes out is the start of ``Checked.text``, and nothing comes before the verdict: an answer that stands before
``answerable`` or ``citations`` is not streamed, and neither is one that the model calls unanswerable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from orchestrator.check import answer_text, check_field, check_part
from orchestrator.contract import NO_SOURCE, Contract
from orchestrator.report import read_line, write_line
from orchestrator.types import Passage

_OPEN_MARK = re.compile(r"\[\d{0,3}\Z")
_FIELD = re.compile(r'\s*[{,]\s*("(?:[^"\\]|\\.)*")\s*:\s*')
# A stretch of a JSON string that can be decoded by itself: plain text, a surrogate pair, or one other escape.
_STRETCH = re.compile(
    r'[^"\\\x00-\x1f\ud800-\udfff]+'
    r'|\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})'
)


class Reveal(Protocol):
    """Gives out what is sure of one answer."""

    def feed(self, delta: str) -> str:
        """The next stretch of the answer's text for people, often empty."""
        ...


def open_reveal(contract: Contract, passages: Sequence[Passage], message: str = "") -> Reveal:
    """How answers of this contract are shown: letter by letter, field by field, or line by line."""
    if contract.form == "markdown":
        return LineStream(contract, passages)
    return FieldStream(contract, passages, message) if contract.show else AnswerStream(contract)


class AnswerStream:
    """The text of one answer field, as far as it is decoded."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._fields = _Fields()
        self._seen: dict[str, Any] = {}  # fields before the answer
        self._at = 0  # everything before it is read
        self._inside = False
        self._ended = False
        self._raw = ""
        self._given = 0

    def feed(self, delta: str) -> str:
        """The next stretch of decoded answer text, often empty."""
        if self._ended:
            return ""
        self._fields.text += delta
        if not self._inside and not self._seek():
            return ""
        self._decode()
        safe = self._raw if self._ended or not self._contract.citations else _OPEN_MARK.sub("", self._raw)
        text = answer_text(self._contract, safe)
        new, self._given = text[self._given :], max(self._given, len(text))
        return new

    def _seek(self) -> bool:
        """Reads whole fields until the answer's string begins."""
        for name, value in self._fields.whole(until=self._contract.answer):
            self._seen[name] = value
        start = self._fields.start
        if start is None:
            return False
        self._inside, self._at = True, start + 1
        self._ended = self._fields.text[start] != '"' or not _has_verdict(self._contract, self._seen)
        return not self._ended

    def _decode(self) -> None:
        text = self._fields.text
        while found := _STRETCH.match(text, self._at):
            self._raw += json.loads(f'"{found.group()}"')
            self._at = found.end()
        self._ended = text[self._at : self._at + 1] == '"'


class FieldStream:
    """A line for each field that is shown, once it is whole and checked, as long as none that stands above it was skipped."""

    def __init__(self, contract: Contract, passages: Sequence[Passage], message: str) -> None:
        self._contract = contract
        self._passages = passages
        self._message = message
        self._fields = _Fields()
        self._seen: dict[str, Any] = {}
        self._left = list(contract.schema["properties"])
        self._started = False
        self._ended = False

    def feed(self, delta: str) -> str:
        """The lines of the fields that are whole now, often empty."""
        if self._ended:
            return ""
        self._fields.text += delta
        return "".join(self._take(name, value) for name, value in self._fields.whole())

    def _take(self, name: str, value: Any) -> str:
        contract = self._contract
        if self._ended or not self._is_next(name) or not contract.keeps(name, value):
            self._ended = True
            return ""
        self._left = self._left[self._left.index(name) + 1 :]
        self._seen[name] = value
        if name not in contract.show:
            return ""
        if not _has_verdict(contract, self._seen):
            self._ended = True
            return ""
        line = contract.line(name, check_field(contract, name, value, self._passages, self._message).value)
        between, self._started = "\n" if line and self._started else "", self._started or bool(line)
        return between + line

    def _is_next(self, name: str) -> bool:
        """False when a line that belongs above it may still come."""
        if name not in self._left:
            return False
        return not any(each in self._contract.show for each in self._left[: self._left.index(name)])


class LineStream:
    """The lines of a report, each once it is whole and its citations are checked."""

    def __init__(self, contract: Contract, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._sections = contract.sections
        self._places = {place.path[1]: place for place in contract.places}
        self._section = 0
        self._lines = -1  # of the section so far; its heading is not there yet
        self._rest = ""
        self._ended = False

    def feed(self, delta: str) -> str:
        """The lines that are whole now, often empty."""
        *lines, self._rest = (self._rest + delta).split("\n")
        return "".join(self._take(line) for line in lines)

    def _take(self, line: str) -> str:
        if self._ended or self._section == len(self._sections):
            return ""
        section = self._sections[self._section]
        if self._lines < 0:
            self._ended = line != f"## {section.heading}"
            self._lines = 0
            return "" if self._ended else f"\n\n{line}" if self._section else line
        if not line and self._lines:
            self._section, self._lines = self._section + 1, -1
            return ""
        self._lines += 1
        try:
            read = read_line(line, section)
        except ValueError:
            self._ended = True
            return ""
        self._ended = self._lines > section.lines
        if section.citations:
            read = check_part(self._places[section.heading], read, self._passages).value
        return "" if self._ended else "\n" + write_line(read, section, NO_SOURCE)


class _Fields:
    """Reads a JSON object field by field while it is written. ``start``: where the value of ``until`` begins."""

    def __init__(self) -> None:
        self.text = ""
        self.start: int | None = None
        self._at = 0

    def whole(self, until: str | None = None) -> Iterator[tuple[str, Any]]:
        """The fields that have become whole since the last call."""
        while found := _FIELD.match(self.text, self._at):
            try:
                name = json.loads(found.group(1))
                if name == until:
                    self.start = found.end() if found.end() < len(self.text) else None
                    return
                value, end = json.JSONDecoder().raw_decode(self.text, found.end())
            except (ValueError, RecursionError):  # not whole yet, or never: then the check says so at the end
                return
            if end == len(self.text):
                return
            self._at = end
            yield name, value


def _has_verdict(contract: Contract, seen: dict[str, Any]) -> bool:
    answerable = contract.answerable is None or seen.get(contract.answerable) is True
    return answerable and (contract.citations is None or contract.citations in seen)
