"""Splits a document into chunks with exact spans: headings, paragraphs, lists, tables and code stay whole where they fit.

A chunk holds at most ``LIMIT`` characters. The embedder reads 256 word pieces; English text has about 4.5 characters to
a word piece, so 1,000 characters and a title and heading line (at most 200 characters) just fit, and nothing of a chunk is
cut off unread. Chunks do not overlap: a character is cited from one place only.
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

PLAIN_TYPES = frozenset({"text/plain", "application/pdf"})  # no Markdown in these: a `#` is a character like any other

Kind = Literal["heading", "paragraph", "lines"]

_HEADING = re.compile(r"[ ]{0,3}(#{1,6})[ \t]+(\S.*)")
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
    """The chunks of a document, in order; ``document.text[a:b] == chunk.text`` and every non-blank character is in one."""
    text = document.text
    blocks = [part for block in _blocks(text, document.media_type) for part in _cut_block(text, block, limit)]
    paragraphs = _paragraph_starts(text)
    chunks = []
    for ordinal, group in enumerate(_group(blocks, limit)):
        start, end = group[0].start, group[-1].end
        body = next((block for block in group if block.kind != "heading"), group[-1])
        path = body.path
        for block in group:
            path = _shared(path, block.path) if block.kind != "heading" else path
        above = group[0].path[:-1] if group[0].kind == "heading" else path
        indexed = _indexed(document.title, above, text[start:end])
        chunks.append(
            Chunk(
                ordinal=ordinal,
                text=text[start:end],
                span=(start, end),
                paragraph=bisect_right(paragraphs, start) - 1,
                heading_path=path,
                page=bisect_right(document.pages, start) or 1 if document.pages else None,
                indexed=indexed,
                sha256=hashlib.sha256(indexed.encode("utf-8", "surrogatepass")).hexdigest(),
            )
        )
    return chunks


def _indexed(title: str, above: tuple[str, ...], text: str) -> str:
    """What is embedded and searched: title and the headings that are not in the text itself, then the text."""
    names = [title, *above] if title and title not in above else list(above)
    if text.lstrip("# ").startswith(title + "\n"):
        names = names[1:] if names and names[0] == title else names
    context = " > ".join(name for name in names if name)[:CONTEXT].strip()
    return f"{context}\n\n{text}" if context else text


def _shared(left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...]:
    size = 0
    while size < min(len(left), len(right)) and left[size] == right[size]:
        size += 1
    return left[:size]


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
    size = group[-1].end - group[0].start
    if block.end - group[0].start > limit:
        return False
    if group[-1].kind == "heading":
        return True  # a heading is never the end of a chunk when what follows fits
    return block.kind != "heading" or size < SMALL


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


def _blocks(text: str, media_type: str) -> Iterator[_Block]:
    """The blocks of a text. Only Markdown-like texts have headings and code fences."""
    markdown = media_type not in PLAIN_TYPES
    path: dict[int, str] = {}
    start = end = -1  # of the block that is open; start < 0: none is
    kind: Kind = "paragraph"
    fence = ""
    for line_start, line_end in _line_spans(text):
        head = text[line_start : min(line_end, line_start + 1_000)]  # structure shows at a line's beginning
        heading = _HEADING.fullmatch(head) if markdown and not fence else None
        fenced = _FENCE.match(head) if markdown else None
        if fence:
            end = line_end
            if fenced and fenced[1].startswith(fence) and not head.strip(" `~"):
                yield _block(text, start, end, "lines", path)
                start, fence = -1, ""
        elif heading or fenced or not head.strip() and not text[line_start:line_end].strip():
            if start >= 0:
                yield _block(text, start, end, kind, path)
                start = -1
            if fenced:
                start, end, fence, kind = line_start, line_end, fenced[1], "lines"
            elif heading:
                level = len(heading[1])
                path = {depth: name for depth, name in path.items() if depth < level}
                path[level] = heading[2].strip().rstrip("#").strip()
                yield _block(text, line_start, line_end, "heading", path)
        else:
            if start < 0:
                start, kind = line_start, "lines" if _LINES.match(head) else "paragraph"
            end = line_end
    if start >= 0:
        yield _block(text, start, end, kind, path)


def _block(text: str, start: int, end: int, kind: Kind, path: dict[int, str]) -> _Block:
    start, end = _trim(text, start, end)
    return _Block(start, end, kind, tuple(path.values()))


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
        if first < last:
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
