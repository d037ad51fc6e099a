"""Splits a document into chunks with exact spans; headings, paragraphs, lists, tables and code stay whole if they fit.

A chunk holds at most ``LIMIT`` characters. The embedder reads 256 word pieces; English text has about 4.5 characters to
a word piece, so 1,000 characters with a line of title and headings (at most 200 characters) just fit, and nothing of a
chunk is left unread. Chunks do not overlap: a character is cited from one place only.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.types import Chunk, Document

LIMIT = 1_000  # characters of a chunk
SMALL = 300  # a chunk under this size is joined with the next section
CONTEXT = 200  # characters of title and headings that are indexed with a chunk

PLAIN_TYPES = frozenset({"text/plain", "application/pdf"})  # no markup in these: a `#` is a character like any other
RST = "text/x-rst"

Kind = Literal["heading", "paragraph", "lines"]

_HEAD = 1_000  # characters at a line's beginning that show its structure
_HEADING = re.compile(r"[ ]{0,3}(#{1,6})[ \t]+(\S.*)")
_WIKI_HEADING = re.compile(r"[ ]?(=(?: ?=){0,5})[ ]*([^=\s](?:.*[^=\s])?)[ ]*\1[ ]*")  # MediaWiki: `== Plot ==`, also `= = Plot = =`
_UNDERLINE = {"markdown": re.compile(r"(=)=*[ \t]*|(-)--+[ \t]*"), RST: re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}[ \t]*")}
_FENCE = re.compile(r"[ ]{0,3}(`{3,}|~{3,})")
_LINES = re.compile(r"[ \t]*(?:[-*+][ \t]|\d{1,9}[.)][ \t]|\|)")  # a list or a table: cut between its lines
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*(?=\s)|[。！？]["'”’」』）]*""")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class _Block:
    """A stretch that is not cut when it fits. ``path``: the headings over it, itself included when it is one."""

    start: int
    end: int
    kind: Kind
    path: tuple[str, ...]


def split(document: Document, limit: int = LIMIT) -> list[Chunk]:
    """The chunks of a document, in order: ``document.text[a:b] == chunk.text``, every non-blank character in one."""
    text = document.text
    blocks = [part for block in _blocks(text, document.media_type) for part in _cut_block(text, block, limit)]
    paragraphs = _paragraph_starts(text)
    chunks = []
    for ordinal, group in enumerate(_group(blocks, limit)):
        start, end = group[0].start, group[-1].end
        path = _path(group)
        above = group[0].path[:-1] if group[0].kind == "heading" else path
        context = _context(document.title, above, text[start:end])
        indexed = f"{context}\n\n{text[start:end]}" if context else text[start:end]
        chunks.append(
            Chunk(
                ordinal=ordinal,
                text=text[start:end],
                span=(start, end),
                paragraph=bisect_right(paragraphs, start) - 1,
                heading_path=path,
                page=max(bisect_right(document.pages, start), 1) if document.pages else None,
                context=context,
                sha256=hashlib.sha256(indexed.encode("utf-8", "surrogatepass")).hexdigest(),
            )
        )
    return chunks


def _path(group: list[_Block]) -> tuple[str, ...]:
    """The headings that hold for the whole chunk."""
    paths = [block.path for block in group if block.kind != "heading"] or [group[-1].path]
    size = 0
    while all(len(path) > size and path[size] == paths[0][size] for path in paths):
        size += 1
    return paths[0][:size]


def _context(title: str, above: tuple[str, ...], text: str) -> str:
    """What is embedded and searched in front of the text: title and the headings that are not in the text itself."""
    names = [title, *above] if title not in above and not text.lstrip("# ").startswith(title + "\n") else above
    return " > ".join(name for name in names if name)[:CONTEXT].strip()


def _group(blocks: list[_Block], limit: int) -> Iterator[list[_Block]]:
    """Joins neighbouring blocks into chunks: a section begins a new chunk unless the one before is small."""
    group: list[_Block] = []
    for block in blocks:
        if group and not _joins(group, block, limit):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _joins(group: list[_Block], block: _Block, limit: int) -> bool:
    if block.end - group[0].start > limit:
        return False
    if group[-1].kind == "heading":
        return True  # a heading is never the end of a chunk when what follows fits
    if block.kind != "heading":
        return True
    # Only a small section that is here as a whole takes the next one along; the tail of a longer one does not.
    is_whole = group[0].kind == "heading" or not group[0].path
    return is_whole and group[-1].end - group[0].start < SMALL


def _paragraph_starts(text: str) -> list[int]:
    """Where each paragraph begins; paragraphs are separated by blank lines."""
    starts = []
    blank = True
    for start, end in _line_spans(text):
        empty = not text[start:end].strip()
        if blank and not empty:
            starts.append(end - len(text[start:end].lstrip()))
        blank = empty
    return starts


def _line_spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = end + 1


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

    def read(self) -> Iterator[_Block]:
        """All blocks in order."""
        for start, end in _line_spans(self._text):
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

    def _read_line(self, start: int, end: int, head: str) -> Iterator[_Block]:
        heading = _HEADING.fullmatch(head) if self._markdown else None
        if heading:
            yield from self._close()
            yield self._heading(start, end, len(heading[1]), heading[2].strip().rstrip("#").strip())
            return
        wiki = _WIKI_HEADING.fullmatch(head) if self._markdown else None
        if wiki:
            yield from self._close()
            yield self._heading(start, end, wiki[1].count("="), wiki[2])
            return
        underline = self._underline.fullmatch(head) if self._underline and self._start >= 0 else None
        title = self._text[self._start : self._end].strip() if underline and self._end - self._start < 200 else ""
        if underline and title and "\n" not in title:
            yield self._heading(self._start, end, self._level(underline), title)
            self._start = -1
            return
        if self._start < 0:
            self._start, self._kind = start, "lines" if _LINES.match(head) else "paragraph"
        self._end = end

    def _level(self, underline: re.Match[str]) -> int:
        mark = underline[0][0]
        if not self._rst:
            return 1 if mark == "=" else 2
        if mark not in self._marks:
            self._marks.append(mark)
        return self._marks.index(mark) + 1

    def _heading(self, start: int, end: int, level: int, name: str) -> _Block:
        self._path = {depth: other for depth, other in self._path.items() if depth < level}
        self._path[level] = name
        return self._block(start, end, "heading")

    def _close(self) -> Iterator[_Block]:
        if self._start >= 0:
            yield self._block(self._start, self._end, self._kind)
            self._start = -1

    def _block(self, start: int, end: int, kind: Kind) -> _Block:
        start, end = _trim(self._text, start, end)
        return _Block(start, end, kind, tuple(self._path.values()))


def _blocks(text: str, media_type: str) -> Iterator[_Block]:
    return _Reader(text, media_type).read()


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _cut_block(text: str, block: _Block, limit: int) -> Iterator[_Block]:
    """The block, or its parts when it is too long; every part is at most ``limit`` long, in linear time."""
    start, end = block.start, block.end
    while end - start > limit:
        cut = _cut_at(text, start, end, block.kind, limit)
        first, last = _trim(text, start, cut)
        yield replace(block, start=first, end=last)
        start, _ = _trim(text, cut, end)
    if start < end:
        yield replace(block, start=start, end=end)


def _cut_at(text: str, start: int, end: int, kind: Kind, limit: int) -> int:
    """Where to cut a text that is too long: at a line (lists, tables, code), a sentence, a word, or hard."""
    aim = (end - start) / -(-(end - start) // limit)  # parts of one size, not full ones and a crumb
    window = text[start : start + limit]
    if kind == "lines":
        places = [index for index, character in enumerate(window) if character == "\n"]
    else:
        places = [match.end() for match in _SENTENCE_END.finditer(window)]
    for candidates in (places, [match.start() for match in _SPACE.finditer(window)]):
        near = [place for place in candidates if place >= aim / 2]
        if near:
            return start + min(near, key=lambda place: abs(place - aim))
    return start + limit
