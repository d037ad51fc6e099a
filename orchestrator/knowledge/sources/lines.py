"""Cuts files that hold many documents, of any size, into these: lines of JSONL, messages of a mailbox; memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from orchestrator.errors import TooLargeError
from orchestrator.knowledge.sources.decode import decode_text

BLOCK = 1 << 20


def read_lines(stream: BinaryIO, size: int, max_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Number (from 1), bytes, and bytes read so far of each line; None for a line over the limit."""
    head = stream.read(4)
    stream.seek(0)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:  # UTF-16, whose lines do not end at a byte 10
        if size > max_bytes:
            raise TooLargeError(f"a file in UTF-16 is read up to {max_bytes:,} bytes; convert it to UTF-8")
        text, _ = decode_text(stream.read(max_bytes))
        yield from ((number, line.encode(), stream.tell()) for number, line in enumerate(text.split("\n"), 1))
        return
    number = 0
    while block := stream.readline(BLOCK):
        number += 1
        is_whole = len(block) < BLOCK or block.endswith(b"\n")
        line = block if is_whole else _long_line(stream, len(block), max_bytes)
        yield number, line if line is not None and len(line) <= max_bytes else None, stream.tell()


def _long_line(stream: BinaryIO, size: int, max_bytes: int) -> bytes | None:
    """A line of which ``size`` bytes are read, None when it is over the limit: it is measured before it is held."""
    begin = stream.tell() - size
    while block := stream.readline(BLOCK):
        size += len(block)
        if block.endswith(b"\n"):
            break
    if size > max_bytes:
        return None
    stream.seek(begin)
    return stream.read(size)


def read_messages(stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Line number (from 1), bytes, and bytes read so far of each message of an mbox; None for one over the limit.

    A message begins at a line ``From `` after a blank line or at the top; ``>From `` in it is unquoted (mboxrd).
    """
    parts: list[bytes] = []
    began = number = held = 0
    was_blank = at_line_start = True
    while line := stream.readline(BLOCK):
        number += at_line_start
        if at_line_start and was_blank and line.startswith(b"From "):
            if began:
                yield began, b"".join(parts) if held <= max_bytes else None, stream.tell() - len(line)
            parts, held, began = [], 0, number
        elif began:
            held += len(line)
            if held <= max_bytes:
                quoted = at_line_start and line.lstrip(b">").startswith(b"From ") and line.startswith(b">")
                parts.append(line[1:] if quoted else line)
            else:
                parts.clear()
        was_blank = at_line_start and not line.strip()
        at_line_start = line.endswith(b"\n")
    if began:
        yield began, b"".join(parts) if held <= max_bytes else None, stream.tell()
