"""Reads the structure of a text: headings, paragraphs, and the lines of lists, tables and code; and its sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PLAIN_TYPES = frozenset(
    {"text/plain", "application/pdf", "message/rfc822"}
)  # no markup in these: a `#` is a character like any other
RST = "text/x-rst"

Kind = Literal["heading", "paragraph", "lines"]

_HEAD = 1_000  # characters at a line's beginning that show its structure
_SHORT = 30  # characters: "Mr." and "1." are no sentences of their own; 8 before a full stop that ends nothing else
_LONG = 400  # characters of a sentence that has to do without a full stop
_HEADING = re.compile(r"[ ]{0,3}(#{1,6})[ \t]+(\S.*)")
_WIKI_HEADING = re.compile(r"[ ]?(=(?: ?=){0,5})[ ]*([^=\s](?:[^=]*[^=\s])?)[ ]*\1[ ]*")  # `== Plot ==`, `= = Plot = =`
_UNDERLINE = {"markdown": re.compile(r"(=)=*[ \t]*|(-)--+[ \t]*"), RST: re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}[ \t]*")}
_FENCE = re.compile(r"[ ]{0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t]*(?:[-*+][ \t]|\d{1,9}[.)][ \t]|\||\+[-=])")  # of a list or a table
_INDENTED = re.compile(r"(?: {4}|\t)")  # code, in Markdown and reStructuredText
_NOT_FIRST = re.compile(
    r"\s|[)\]}]|(?:else|elif|except|finally|end|case|default|then|fi|done|esac)\b"
)  # goes on with a block of code
_ABOVE = re.compile(r"#|//|/\*|--|;|@")  # a comment or decorator at the margin belongs to what stands under it
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*(?=\s)|[。！？]["'”’」』）]*""")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch that is not cut when it fits. ``path``: the headings over it, itself included when it is one."""

    start: int
    end: int
    kind: Kind
    path: tuple[str, ...]
    introduces: bool = False  # ends in a colon: a list or code that follows belongs to it
    header: str = ""  # of the table that this is a later part of


def read_blocks(text: str, media_type: str) -> Iterator[Block]:
    """All blocks of a text in order; what lies between two of them is blank."""
    is_code = media_type.startswith("text/x-") and media_type != RST
    return _code_blocks(text) if is_code else _Reader(text, media_type).read()


def _code_blocks(text: str) -> Iterator[Block]:
    """Source code, cut before each line at the margin that begins something: a function stays whole, with its comments."""
    start, above = 0, -1  # above: where comments and decorators began that stand right over the line
    for first, last in line_spans(text):
        head = text[first : min(last, first + _HEAD)]
        if head and _ABOVE.match(head):
            above = first if above < 0 else above
            continue
        if head.strip() and not _NOT_FIRST.match(head):
            begin = above if above >= 0 else first
            yield from _lines_block(text, start, begin)
            start = begin
        above = -1
    yield from _lines_block(text, start, len(text))


def _lines_block(text: str, start: int, end: int) -> Iterator[Block]:
    start, end = trim(text, start, end)
    if start < end:
        yield Block(start, end, "lines", ())


def line_spans(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where each line begins and ends, without its line feed."""
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = end + 1


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the blanks at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def sentence_ends(text: str) -> list[int]:
    """The offset after each sentence's last character; the text's own end is not among them."""
    return [match.end() for match in _SENTENCE_END.finditer(text)]


def item_starts(text: str) -> list[int]:
    """The offset of each line after the first that begins an item of a list or a row of a table."""
    return [start for start, _ in line_spans(text) if start and _ITEM.match(text, start)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The sentences of a text; a heading and an item of a list are sentences, a table or a fenced code is one whole."""
    spans: list[tuple[int, int]] = []
    fence = ""
    is_table = False
    for start, end in line_spans(text):
        line = text[start : min(end, start + _HEAD)]
        mark = _FENCE.match(line)
        is_row = line.lstrip().startswith("|")
        if spans and (fence or (is_row and is_table)):
            spans[-1] = (spans[-1][0], trim(text, spans[-1][0], end)[1])
        elif mark or is_row:
            spans.append(trim(text, start, end))
        else:
            spans += _in_line(text, start, end)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        is_table = is_row
    return spans


def _in_line(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sentences of one line; what is short goes with what follows it."""
    first = start
    for stop in [*(start + place for place in sentence_ends(text[start:end])), end]:
        if stop < end and stop - first < (8 if text[stop - 1] in "。！？" else _SHORT):
            continue
        a, b = trim(text, first, stop)
        while b - a > _LONG:
            places = [match.start() for match in _SPACE.finditer(text, a + _LONG // 2, a + _LONG)]
            cut = places[-1] if places else a + _LONG
            yield trim(text, a, cut)
            a, _ = trim(text, cut, b)
        if a < b:
            yield a, b
        first = stop


class _Reader:
    """Reads the blocks of one text, line by line."""

    def __init__(self, text: str, media_type: str) -> None:
        self._text = text
        self._rst = media_type == RST
        self._markdown = media_type not in PLAIN_TYPES and not self._rst
        self._underline = _UNDERLINE.get(RST if self._rst else "markdown" if self._markdown else "")
        self._marks: list[str] = []  # underline characters of reStructuredText, in order of their levels
        self._path: dict[int, str] = {}
        self._kind: Kind = "paragraph"
        self._start = self._end = -1  # of the open block; none is open when the start is negative
        self._fence = ""

    def read(self) -> Iterator[Block]:
        """All blocks in order."""
        for start, end in line_spans(self._text):
            head = self._text[start : min(end, start + _HEAD)]
            fence = _FENCE.match(head) if self._markdown else None
            if self._fence:
                self._end = end
                if fence and fence[1].startswith(self._fence) and not head.strip(" `~"):
                    self._fence = ""
                    yield from self._close()
            elif fence:
                yield from self._close()
                self._start, self._end, self._fence, self._kind = start, end, fence[1], "lines"
            elif not head.strip() and not self._text[start:end].strip():
                yield from self._close()
            else:
                yield from self._read_line(start, end, head)
        yield from self._close()

    def _read_line(self, start: int, end: int, head: str) -> Iterator[Block]:
        heading = _HEADING.fullmatch(head) if self._markdown else None
        wiki = _WIKI_HEADING.fullmatch(head) if self._markdown else None
        if heading or wiki:
            yield from self._close()
            if heading:
                yield self._heading(start, end, len(heading[1]), heading[2].strip().rstrip("#").strip())
            elif wiki:
                yield self._heading(start, end, wiki[1].count("="), wiki[2])
            return
        underline = self._underline.fullmatch(head) if self._underline and self._start >= 0 else None
        title = self._text[self._start : self._end].strip() if underline and self._end - self._start < 200 else ""
        if underline and title and "\n" not in title:
            yield self._heading(self._start, end, self._level(underline), title)
            self._start = -1
            return
        is_item = _ITEM.match(head) is not None
        if is_item and self._kind == "paragraph":
            yield from self._close()  # a list right under the sentence that introduces it
        if self._start < 0:
            is_code = (self._markdown or self._rst) and _INDENTED.match(head)
            self._start, self._kind = start, "lines" if is_item or is_code else "paragraph"
        self._end = end

    def _level(self, underline: re.Match[str]) -> int:
        mark = underline[0][0]
        if not self._rst:
            return 1 if mark == "=" else 2
        if mark not in self._marks:
            self._marks.append(mark)
        return self._marks.index(mark) + 1

    def _heading(self, start: int, end: int, level: int, name: str) -> Block:
        self._path = {depth: other for depth, other in self._path.items() if depth < level}
        self._path[level] = name
        return self._block(start, end, "heading")

    def _close(self) -> Iterator[Block]:
        if self._start >= 0:
            yield self._block(self._start, self._end, self._kind)
            self._start = -1

    def _block(self, start: int, end: int, kind: Kind) -> Block:
        start, end = trim(self._text, start, end)
        return Block(start, end, kind, tuple(self._path.values()), self._text[end - 1 : end] in (":", "："))
