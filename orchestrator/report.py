"""Answers in Markdown: fixed sections of cited lines. A contract's sections in; a grammar, a reader and a writer out. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "list"]
MAX_SECTIONS = 12
MAX_LINES = 20
MAX_WORDS = 100
MAX_MARKS = 5
_KEYS = frozenset({"heading", "kind", "lines", "words", "citations"})
_HEADING = re.compile(r"[^\W_][^\x00-\x1f\x7f\[\]#\"\\\u2028\u2029]{0,60}")
# A line's own words: no brackets, so that a passage number cannot be forged, and no mark of Markdown's at its start.
_LETTER = r"[^\x00-\x20\x7f\x85\[\]\u2028\u2029]"
_FIRST = r"[^\x00-\x20\x7f\x85\[\]#*+>|\-\u2028\u2029]"
_LINE = re.compile(rf"(- )?({_FIRST}{_LETTER}*(?: {_LETTER}+)*)((?: \[[1-9]\d?\])*)")


@dataclass(frozen=True, slots=True)
class Section:
    """One section: its heading, one paragraph or a list, how many lines of how many words, and citations a line.

    Words are counted, not characters: xgrammar 0.2.8 compiles the shipped brief in 0.05 s so, and in 4.7 s otherwise.
    """

    heading: str
    kind: Kind = "text"
    lines: int = 1
    words: int = 40
    citations: int = 3  # most of one line, at least one; 0: its lines cite nothing

    @property
    def bullet(self) -> str:
        """What a line begins with."""
        return "- " if self.kind == "list" else ""


def parse_sections(given: Any) -> tuple[Section, ...]:
    """The sections of a contract file. Raises ValueError that says which is wrong."""
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_SECTIONS:
        raise ValueError(f"sections must be a list of 1 to {MAX_SECTIONS} objects")
    sections = tuple(_parse_section(keys) for keys in given)
    if len({section.heading for section in sections}) < len(sections):
        raise ValueError("two sections have one heading")
    return sections


def _parse_section(keys: Any) -> Section:
    if not isinstance(keys, dict) or keys.keys() - _KEYS or not isinstance(keys.get("heading"), str):
        raise ValueError(f"a section is an object with heading, and may have {sorted(_KEYS - {'heading'})}: {keys!r}")
    section = Section(**keys)
    if not _HEADING.fullmatch(section.heading) or section.heading.endswith(" "):
        raise ValueError(
            f"heading {section.heading!r} must be 1 to 61 characters on one line, without [ ] # and quotes"
        )
    if section.kind not in ("text", "list") or (section.kind == "text" and section.lines != 1):
        raise ValueError(f"section {section.heading!r}: kind is text (of one line) or list")
    limits = {"lines": (1, MAX_LINES), "words": (1, MAX_WORDS), "citations": (0, MAX_MARKS)}
    for name, (low, high) in limits.items():
        value = getattr(section, name)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"section {section.heading!r}: {name} must be a whole number from {low} to {high}")
    return section


def report_schema(sections: Sequence[Section]) -> dict[str, Any]:
    """The schema of the object that a report is read into: what JSON clients get, and what is checked for citations."""
    line = {
        "type": "object",
        "properties": {
            "citations": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": MAX_MARKS},
            "text": {"type": "string"},
        },
        "required": ["citations", "text"],
        "additionalProperties": False,
        "x-orchestrator": {"answer": "text", "citations": "citations"},
    }
    plain = {key: value for key, value in line.items() if key != "x-orchestrator"}
    parts = {
        section.heading: {"type": "array", "items": line if section.citations else plain, "maxItems": section.lines}
        for section in sections
    }
    report = {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"answerable": {"type": "boolean"}, "report": report},
        "required": ["answerable", "report"],
        "additionalProperties": False,
        "x-orchestrator": {"answerable": "answerable"},
    }


def report_grammar(sections: Sequence[Section], refusal: str, passages: int) -> str:
    """The same form as EBNF, as xgrammar reads it: a report that cites only passages that were shown, or the refusal."""
    cites = any(section.citations for section in sections)
    if cites and not passages:  # nothing was shown that a line could cite
        return f"root ::= {_literal(refusal)}"
    parts: list[str] = []
    rules: list[str] = []
    for at, section in enumerate(sections):
        bullet = f"{_literal(section.bullet)} " if section.bullet else ""
        marks = f" number{{1,{section.citations}}}" if section.citations else ""
        rules.append(f'line{at} ::= {bullet}first letter* ( " " letter+ ){{0,{section.words - 1}}}{marks}')
        more = f' ( "\\n" line{at} ){{0,{section.lines - 1}}}' if section.lines > 1 else ""
        parts.append(f'{_literal(f"## {section.heading}")} "\\n" line{at}{more}')
    if cites:
        rules.append("number ::= " + " | ".join(f'" [{number}]"' for number in range(1, passages + 1)))
    root = f"root ::= {_literal(refusal)} | report" if refusal else "root ::= report"
    return "\n".join(
        [root, "report ::= " + ' "\\n\\n" '.join(parts), *rules, f"first ::= {_FIRST}", f"letter ::= {_LETTER}"]
    )


def read_report(text: str, sections: Sequence[Section], refusal: str) -> dict[str, Any]:
    """The object in a report's text. Raises ValueError at the first line that breaks the form."""
    text = text.rstrip("\n")
    if refusal and text == refusal:
        return empty_report(sections)
    blocks = text.split("\n\n")
    if len(blocks) != len(sections):
        raise ValueError(f"{len(sections)} sections are asked for, each after one empty line; there are {len(blocks)}")
    report: dict[str, Any] = {}
    for block, section in zip(blocks, sections, strict=True):
        head, *lines = block.split("\n")
        if head != f"## {section.heading}":
            raise ValueError(f"where '## {section.heading}' belongs stands {head[:80]!r}")
        if not 1 <= len(lines) <= section.lines:
            raise ValueError(f"section {section.heading!r} has {len(lines)} lines; 1 to {section.lines} are allowed")
        report[section.heading] = [read_line(line, section) for line in lines]
    return {"answerable": True, "report": report}


def read_line(line: str, section: Section) -> dict[str, Any]:
    """One line of a section: its text and its passage numbers. Raises ValueError."""
    found = _LINE.fullmatch(line)
    if not found or (found[1] or "") != section.bullet or found[2].count(" ") >= section.words:
        raise ValueError(f"section {section.heading!r}: no line of its kind and length: {line[:80]!r}")
    numbers = [int(number) for number in re.findall(r"\d+", found[3])]
    if len(numbers) > section.citations or (section.citations and not numbers):
        raise ValueError(
            f"section {section.heading!r}: a line ends with 1 to {section.citations} of [n]: {line[-80:]!r}"
        )
    return {"citations": numbers, "text": found[2]}


def write_report(data: Mapping[str, Any], sections: Sequence[Section], refusal: str, unsourced: str = "") -> str:
    """The text of a report's object; ``unsourced`` marks a line that lost the citations it needs."""
    if not data["answerable"]:
        return refusal
    blocks = (
        "\n".join([f"## {section.heading}", *(write_line(line, section, unsourced) for line in lines)])
        for section in sections
        if (lines := data["report"][section.heading])
    )
    return "\n\n".join(blocks)


def write_line(line: Mapping[str, Any], section: Section, unsourced: str = "") -> str:
    """One line of a section."""
    marks = "".join(f" [{number}]" for number in line["citations"])
    return f"{section.bullet}{line['text']}{marks or (unsourced if section.citations else '')}"


def empty_report(sections: Sequence[Section]) -> dict[str, Any]:
    """The object of a refusal."""
    return {"answerable": False, "report": {section.heading: [] for section in sections}}


def _literal(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{quoted}"'
