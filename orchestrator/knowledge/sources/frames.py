"""What a reader makes of a file, and how it crosses a pipe: a line of JSON, then the text; sizes are checked on arrival.

The sending side may have been taken over by a poisoned file: nothing it says is believed beyond its shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, BinaryIO

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.decode import clean_text

MAX_HEADER = 4_000_000  # bytes; the page offsets of 300,000 pages
MAX_TEXT = 64_000_000  # bytes of text that one file may become
MAX_DOCUMENTS = 1_000  # of one file: an e-mail and its attachments
PAGE_BREAK = "\n\n"


@dataclass(frozen=True, slots=True)
class Parsed:
    """The text of a file. ``name`` is set for a document inside the file (an attachment), which has its own type."""

    text: str
    title: str = ""
    pages: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a file, or the attachment ``name``, has no text; ``poisoned`` when it broke its reader or its limits."""

    reason: str
    name: str = ""
    poisoned: bool = False


def paged(pages: Sequence[str], *, title: str = "", metadata: Mapping[str, Any] | None = None) -> Parsed:
    """A text that knows where its pages start, cleaned page by page so that the places stay right."""
    cleaned = [clean_text(page) for page in pages]
    starts = accumulate((len(text) + len(PAGE_BREAK) for text, _ in cleaned), initial=0)
    return Parsed(
        text=PAGE_BREAK.join(text for text, _ in cleaned),
        title=title,
        pages=tuple(starts)[:-1],
        notes=tuple(dict.fromkeys(note for _, notes in cleaned for note in notes)),
        metadata=metadata or {},
    )


def send(stream: BinaryIO, found: Parsed | Trouble | None) -> None:
    """Writes one frame; None ends the reply."""
    text = b""
    if isinstance(found, Parsed):
        text = found.text.encode("utf-8", "replace")
        header: dict[str, Any] = {
            "bytes": len(text),
            "title": found.title,
            "pages": found.pages,
            "notes": found.notes,
            "metadata": dict(found.metadata),
            "name": found.name,
            "media_type": found.media_type,
        }
    elif found is not None:
        header = {"reason": found.reason, "name": found.name, "poisoned": found.poisoned}
    else:
        header = {"end": True}
    stream.write(json.dumps(header, default=str).encode("ascii") + b"\n")
    stream.write(text)
    stream.flush()


def receive(stream: BinaryIO) -> list[Parsed | Trouble]:
    """All frames of one reply. Raises EOFError when it breaks off and LoadError when it is not what a reader sends."""
    found: list[Parsed | Trouble] = []
    left = MAX_TEXT
    while len(found) <= MAX_DOCUMENTS:
        line = stream.readline(MAX_HEADER)
        if len(line) >= MAX_HEADER:
            raise LoadError("the file's reader sent something that is no reply")
        if not line.endswith(b"\n"):
            raise EOFError
        header = _header(line)
        if header.get("end") is True:
            return found
        if "reason" in header:
            found.append(Trouble(str(header["reason"])[:2_000], str(header["name"]), header["poisoned"] is True))
            continue
        size = header.get("bytes")
        if not isinstance(size, int) or not 0 <= size <= left:
            raise LoadError(f"the file holds more than {MAX_TEXT:,} bytes of text; split it")
        left -= size
        found.append(_parsed(header, _exactly(stream, size)))
    raise LoadError(f"the file holds more than {MAX_DOCUMENTS:,} documents; split it")


def _header(line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LoadError("the file's reader sent something that is no reply") from error
    if not isinstance(header, dict):
        raise LoadError("the file's reader sent something that is no reply")
    return header


def _exactly(stream: BinaryIO, size: int) -> str:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data.decode("utf-8", "replace")


def _parsed(header: Mapping[str, Any], text: str) -> Parsed:
    try:
        pages = tuple(place for place in header["pages"] if isinstance(place, int) and 0 <= place <= len(text))
        return Parsed(
            text=text,
            title=str(header["title"]),
            pages=pages,
            notes=tuple(str(note)[:500] for note in header["notes"][:100]),
            metadata=dict(header["metadata"]),
            name=str(header["name"]),
            media_type=str(header["media_type"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError("the file's reader sent something that is no reply") from error
