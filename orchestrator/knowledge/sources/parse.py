"""Run as a child process: turns files that come in on standard input into text, confined, one after the other.

A reader that is led astray by a poisoned file dies here: without database, network or secrets, and without taking the
ingest with it. One child reads many files: to start one costs 0.1 to 0.2 s of CPU, to read a small file 2 to 10 ms.
"""

from __future__ import annotations

import json
import mimetypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if __name__ == "__main__" and str(Path(__file__).resolve().parents[3]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # its parent found a checkout by the current folder

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources import frames, sandbox
from orchestrator.knowledge.sources.frames import Parsed, Trouble
from orchestrator.knowledge.sources.kinds import JSON_LINES, MAILBOX, MEDIA_TYPES, READERS

MAX_DEPTH = 3  # a mail in a mail in a mail
FREE_TEXT = 1_000_000  # characters that any file may become; more than this must not be made out of next to nothing
MAX_GROWTH = 50  # characters of text per byte of file past that
CHARSET = "charset="


def read(kind: str, data: bytes, hint: str = "", depth: int = 0) -> Iterator[Parsed | Trouble]:
    """The documents in the bytes of a file; ``hint`` is its name or charset. Raises LoadError and whatever a library does."""
    if kind == "html":
        from orchestrator.knowledge.sources.html import read_html

        yield read_html(data, hint.removeprefix(CHARSET) if hint.startswith(CHARSET) else None)
    elif kind == "pdf":
        from orchestrator.knowledge.sources.pdf import read_pdf

        yield read_pdf(data)
    elif kind == "docx":
        from orchestrator.knowledge.sources.word import read_docx

        yield read_docx(data)
    elif kind == "pptx":
        from orchestrator.knowledge.sources.slides import read_pptx

        yield read_pptx(data)
    elif kind == "xlsx":
        from orchestrator.knowledge.sources.sheets import read_xlsx

        yield read_xlsx(data)
    elif kind == "csv":
        from orchestrator.knowledge.sources.table import read_csv

        yield read_csv(data, hint.endswith(".tsv"))
    elif kind == "epub":
        from orchestrator.knowledge.sources.epub import read_epub

        yield read_epub(data)
    else:
        from orchestrator.knowledge.sources.mail import read_mail

        yield from read_mail(data, lambda name, inner: read_attachment(name, inner, depth + 1))


def read_attachment(name: str, data: bytes, depth: int) -> Iterator[Parsed | Trouble]:
    """The documents in one attachment, named; a Trouble when it cannot be read. Raises nothing that a file can cause."""
    media_type = MEDIA_TYPES.get(os.path.splitext(name)[1].lower(), "")
    if not media_type or media_type in (JSON_LINES, MAILBOX):
        return  # its name is in the mail's metadata
    try:
        if depth > MAX_DEPTH:
            raise LoadError(f"mails in mails are read {MAX_DEPTH} deep")
        kind = READERS.get(media_type)
        for found in read(kind, data, name, depth) if kind else read_text(data, media_type):
            inner = f"{name}/{found.name}" if found.name else name
            if isinstance(found, Trouble):
                yield Trouble(found.reason, inner)
            else:
                whole = found.media_type or media_type
                yield Parsed(found.text, found.title, found.pages, found.notes, found.metadata, inner, whole)
    except LoadError as error:
        yield Trouble(error.message, name)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # a library's own bug, met by a damaged file
        yield Trouble(f"it is damaged ({type(error).__name__}: {str(error)[:500]})", name)


def read_text(data: bytes, media_type: str) -> Iterator[Parsed]:
    """A text file as it is."""
    from orchestrator.knowledge.sources.decode import decode_text
    from orchestrator.knowledge.sources.document import first_heading

    text, notes = decode_text(data)
    yield Parsed(text, first_heading(text, media_type), notes=notes)


def bounded(found: Iterator[Parsed | Trouble], size: int) -> Iterator[Parsed | Trouble]:
    """The same, until the text is far more than a file of ``size`` bytes can hold. Raises LoadError then."""
    total = 0
    for one in found:
        total += len(one.text) if isinstance(one, Parsed) else 0
        if total > FREE_TEXT and total > size * MAX_GROWTH:
            raise LoadError("the file unpacks to far more text than its size, as a bomb does")
        yield one


def answer(kind: str, data: bytes, hint: str, replies: BinaryIO) -> bool:
    """Sends all that is in one file; False when this process had better not read another."""
    is_sound = True
    try:
        for found in bounded(read(kind, data, hint), len(data)):
            frames.send(replies, found)
    except LoadError as error:
        frames.send(replies, Trouble(error.message))
    except ImportError as error:
        frames.send(
            replies, Trouble(f"its reader is not installed ({error.name}): pip install 'hybrid-orchestrator[docs]'")
        )
    except RecursionError:
        frames.send(replies, Trouble("the file is nested deeper than its reader can follow"))
    except MemoryError:
        limit = f"{sandbox.MEMORY_BYTES >> 20} MB"
        frames.send(replies, Trouble(f"reading it needs more memory than the limit of {limit}", poisoned=True))
        is_sound = False
    except Exception as error:  # a library's own bug, met by a damaged file
        frames.send(replies, Trouble(f"the file is damaged ({type(error).__name__}: {str(error)[:500]})"))
    return is_sound


def main() -> int:
    """Serves requests (a line ``{"kind", "size", "hint"}``, then the bytes) until standard input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # what a library prints is no reply
    requests = sys.stdin.buffer
    take_attempts = sandbox.confine()
    sys.modules["numpy"] = None  # type: ignore[assignment]  # openpyxl takes it when it is there: 0.1 s and its threads
    mimetypes.knownfiles.clear()  # openpyxl would look into /etc
    frames.send(replies, None)  # ready: what breaks from here on is a file's fault
    while line := requests.readline(10_000):
        request = json.loads(line)
        data = requests.read(request["size"])
        sandbox.allow_cpu(request["cpu_s"])
        take_attempts()
        is_sound = answer(request["kind"], data, request["hint"], replies)
        attempts = take_attempts()
        if attempts:
            reason = f"reading it tried what no reader does ({attempts[0]}), which was refused"
            frames.send(replies, Trouble(reason, poisoned=True))
        frames.send(replies, None)
        if attempts or not is_sound:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
