"""Splits a document into chunks with exact spans: a paragraph, list, table or code is one, whole if it fits.

A chunk holds at most ``LIMIT`` characters, fewer where its characters are many word pieces: the embedder reads 256 of
them, and nothing of a chunk may be left unread. Chunks do not overlap: a character is cited from one place only.
"""

from __future__ import annotations

import hashlib
import math
import re
import string
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.knowledge.sections import Block, item_starts, line_spans, read_blocks, sentence_ends, trim
from orchestrator.types import Chunk, Document

if TYPE_CHECKING:
    import numpy.typing as npt

LIMIT = 1_000  # characters of a chunk of English prose; 667 in other Latin scripts, 200 in Chinese
# A paragraph or a section under this size takes the next one along. Filling chunks up to 600 in place of this, as most
# splitters do, costs .03 to .05 of IoU at one recall: docs/chunking.md.
SMALL = 120
CONTEXT = 200  # characters of title and headings that are indexed with a chunk

_SAMPLE = 20_000  # characters that show a text's language
_ENGLISH = frozenset({"the", "of", "and", "to", "in", "is", "a", "that"})
_WORD = re.compile(r"[^\W\d_]+")
_SPACE = re.compile(r"\s+")


def split(document: Document, limit: int = LIMIT) -> list[Chunk]:
    """The chunks of a document, in order: ``document.text[a:b] == chunk.text``, every non-blank character in one."""
    text = document.text
    ruler = _Ruler(text)
    blocks = list(_cut_blocks(text, read_blocks(text, document.media_type), limit, ruler))
    paragraphs = _paragraph_starts(text)
    chunks = []
    for ordinal, group in enumerate(_group(blocks, limit, ruler)):
        start, end = group[0].start, group[-1].end
        path = _path(group)
        above = group[0].path[:-1] if group[0].kind == "heading" else path
        context = _context(document.title, above, group[0].header, text[start:end], ruler.is_english)
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


class _Ruler:
    """Measures stretches of one text in characters of English prose, of which about 4.7 go to a word piece."""

    def __init__(self, text: str, is_english: bool | None = None) -> None:
        self.is_english = _is_english(text) if is_english is None else is_english
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        self._sums: npt.NDArray[np.int64] = np.zeros(len(codes) + 1, np.int64)
        np.cumsum(_costs(self.is_english)[np.minimum(codes, 0x2070)], out=self._sums[1:])

    def size(self, start: int, end: int) -> float:
        """The size of a stretch; never less than its number of characters."""
        return int(self._sums[end] - self._sums[start]) / 2

    def reach(self, start: int, size: float) -> int:
        """Where the longest stretch from ``start`` ends that is not over ``size``; at least one character."""
        return max(int(np.searchsorted(self._sums, self._sums[start] + 2 * size, "right")) - 1, start + 1)


def _is_english(text: str) -> bool:
    """Whether its small words are English: the embedder knows English words whole and reads others by 3 letters."""
    words = _WORD.findall(text[:_SAMPLE].lower())
    return sum(word in _ENGLISH for word in words) > len(words) / 12


@cache
def _costs(is_english: bool) -> npt.NDArray[np.int64]:
    """By code point, in halves: 2 for English letters and blanks, 3 for other Latin ones; more for what is read one by one."""
    latin = 2 if is_english else 3
    costs = np.full(0x2071, 10, np.int64)
    costs[:0x370] = latin
    costs[0x1E00:0x1F00] = latin  # with further accents
    for character in string.punctuation:
        costs[ord(character)] = 6
    costs[0xA1:0xC0] = 6
    costs[0x2000:0x2070] = 6
    costs[ord("0") : ord("9") + 1] = 4
    return costs


def _path(group: list[Block]) -> tuple[str, ...]:
    """The headings that hold for the whole chunk."""
    paths = [block.path for block in group if block.kind != "heading"] or [group[-1].path]
    size = 0
    while all(len(path) > size and path[size] == paths[0][size] for path in paths):
        size += 1
    return paths[0][:size]


def _context(title: str, above: tuple[str, ...], header: str, text: str, is_english: bool) -> str:
    """What is searched in front of the text: title, the headings that are not in the text itself, a table's header."""
    names = [title, *above] if title not in above and not text.lstrip("#= ").startswith(title + "\n") else above
    line = " > ".join(name for name in names if name)
    line = line[: _Ruler(line, is_english).reach(0, CONTEXT)].strip() if line else ""
    return f"{line}\n{header}".strip()


def _group(blocks: list[Block], limit: int, ruler: _Ruler) -> Iterator[list[Block]]:
    """Joins neighbouring blocks into chunks; the small last paragraph of a section goes with what stands before it."""
    before: list[Block] = []
    group: list[Block] = []
    for block, after in zip_longest(blocks, blocks[1:]):
        group.append(block)
        if after is not None and _joins(group, after, limit, ruler):
            continue
        ends = after is None or after.kind == "heading"
        is_rest = ends and group[0].kind != "heading" and ruler.size(group[0].start, group[-1].end) < SMALL
        if before and is_rest and ruler.size(before[0].start, group[-1].end) <= limit:
            before += group
        else:
            if before:
                yield before
            before = group
        group = []
    if before:
        yield before


def _joins(group: list[Block], block: Block, limit: int, ruler: _Ruler) -> bool:
    last = group[-1]
    if ruler.size(group[0].start, block.end) > limit:
        return False
    if last.kind == "heading":
        return True  # a heading is never the end of a chunk when what follows fits
    is_small = ruler.size(group[0].start, last.end) < SMALL
    if block.kind == "heading":
        # Only a small section that is here as a whole takes the next one along; the tail of a longer one does not.
        return is_small and (group[0].kind == "heading" or not group[0].path)
    return is_small or (block.kind == "lines" and (last.kind == "lines" or last.introduces))


def _paragraph_starts(text: str) -> list[int]:
    """Where each paragraph begins; paragraphs are separated by blank lines."""
    starts = []
    blank = True
    for start, end in line_spans(text):
        empty = not text[start:end].strip()
        if blank and not empty:
            starts.append(end - len(text[start:end].lstrip()))
        blank = empty
    return starts


def _cut_blocks(text: str, blocks: Iterator[Block], limit: int, ruler: _Ruler) -> Iterator[Block]:
    """The blocks, those that are too long in parts; a paragraph leaves room for the headings right above it."""
    above = -1  # where the headings begin that nothing has followed yet
    for block in blocks:
        room = limit
        if block.kind == "paragraph" and above >= 0:
            room -= min(math.ceil(ruler.size(above, block.start)), limit // 3)
        yield from _cut_block(text, block, room, ruler)
        above = -1 if block.kind != "heading" else block.start if above < 0 else above


def _cut_block(text: str, block: Block, limit: int, ruler: _Ruler) -> Iterator[Block]:
    """The block, or its parts when it is too long; every part is at most ``limit`` long, in linear time."""
    start, end = block.start, block.end
    part = block
    while ruler.size(start, end) > limit:
        cut = _cut_at(text, start, end, block.kind, limit, ruler)
        first, last = trim(text, start, cut)
        yield replace(part, start=first, end=last)
        if start == block.start and text[start] == "|":
            head = text[start : min(cut, start + CONTEXT)].partition("\n")[0]
            part = replace(block, header=head[: ruler.reach(start, limit // 4) - start].strip())
        start, _ = trim(text, cut, end)
    if start < end:
        yield replace(part, start=start, end=end)


def _cut_at(text: str, start: int, end: int, kind: str, limit: int, ruler: _Ruler) -> int:
    """Where to cut a text that is too long: between items (lists, tables), lines (code), sentences, words, or hard."""
    total = ruler.size(start, end)
    aim = total / -(-total // limit)  # parts of one size, not full ones and a crumb
    stop = ruler.reach(start, limit)
    window = text[start:stop]
    for places in _places(window, kind):
        near = [start + place for place in places if ruler.size(start, start + place) >= aim / 2]
        if near:
            return min(near, key=lambda place: abs(ruler.size(start, place) - aim))
    return stop


def _places(window: str, kind: str) -> Iterator[list[int]]:
    if kind == "lines":
        yield item_starts(window)
        yield [index for index, character in enumerate(window) if character == "\n"]
    yield sentence_ends(window)
    yield [match.start() for match in _SPACE.finditer(window)]
