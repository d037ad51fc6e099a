"""Run as a child process: turns one PDF or DOCX file into JSON on standard output, under limits on memory and CPU time.

A parser that is led astray by a poisoned file dies here, without database access and without taking the ingest with it.
It imports nothing of the package: ``python -P parse.py pdf|docx FILE``.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

MEMORY_BYTES = 1 << 30
CPU_S = 60
MAX_TEXT = 64_000_000  # characters
MAX_UNPACKED = 256_000_000  # bytes of all members of a .docx
MAX_RATIO = 200  # unpacked size to packed size of one member over 1 MB


class Refused(Exception):
    """The file cannot become text; the message is for the user."""


def limit_resources() -> None:
    """Limits memory and CPU time of this process, where the platform can."""
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue


def read_pdf(path: str) -> dict[str, Any]:
    """Title and text of each page."""
    import logging

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    import pypdf

    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Refused("the PDF is protected by a password; save it without one")
        pages, size = [], 0
        for page in reader.pages:
            pages.append(page.extract_text())
            size += len(pages[-1])
            if size > MAX_TEXT:
                raise Refused(f"the PDF holds more than {MAX_TEXT:,} characters; split it")
    except pypdf.errors.PyPdfError as error:
        raise Refused(f"the PDF is damaged ({error})") from error
    if not any(page.strip() for page in pages):
        raise Refused(
            "the PDF has no text in it, only images; run OCR on it first, for instance: ocrmypdf in.pdf out.pdf"
        )
    try:
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except Exception:  # metadata is a free-for-all; a document without title is fine
        title = ""
    return {"title": title, "pages": pages}


def read_docx(path: str) -> dict[str, Any]:
    """Title and text, with headings, lists and tables written as Markdown."""
    refuse_bomb(path)
    import docx

    try:
        document = docx.Document(path)
    except Exception as error:  # python-docx raises whatever its XML and zip layers raise
        raise Refused(f"the file is not a Word document that can be read ({type(error).__name__})") from error
    text = "\n\n".join(part for part in _docx_parts(document) if part.strip())
    if not text.strip():
        raise Refused("the Word document has no text in it")
    return {"title": document.core_properties.title or "", "pages": [text]}


def refuse_bomb(path: str) -> None:
    """Refuses a zip that unpacks to far more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise Refused("the file is not a Word document (.docx is a zip archive, this is not)") from error
    swollen = any(m.file_size > 1_000_000 and m.file_size > MAX_RATIO * max(m.compress_size, 1) for m in members)
    if swollen or sum(member.file_size for member in members) > MAX_UNPACKED:
        raise Refused("the file unpacks to far more than its size, as a zip bomb does")


def _docx_parts(document: Any) -> Iterator[str]:
    from docx.table import Table

    for block in document.iter_inner_content():
        if isinstance(block, Table):
            yield "\n".join("| " + " | ".join(_cells(row)) + " |" for row in block.rows)
            continue
        style = (block.style.name or "") if block.style is not None else ""
        if style.startswith("Heading ") and style[8:].isdigit():
            yield "#" * min(int(style[8:]), 6) + " " + " ".join(block.text.split())
        elif style == "Title":
            yield "# " + " ".join(block.text.split())
        elif style.startswith("List"):
            yield "- " + block.text
        else:
            yield block.text


def _cells(row: Any) -> Iterator[str]:
    last = None
    for cell in row.cells:
        if cell._tc is not last:  # a merged cell is listed once per column
            yield " ".join(cell.text.split())
        last = cell._tc


def main() -> int:
    """Writes ``{"title", "pages"}`` or ``{"error"}``; a crash or a limit shows as the exit status."""
    kind, path = sys.argv[1:3]
    limit_resources()
    try:
        result = read_pdf(path) if kind == "pdf" else read_docx(path)
    except Refused as error:
        result = {"error": str(error)}
    except ImportError as error:
        result = {"error": f"its reader is not installed ({error.name}): pip install 'hybrid-orchestrator[docs]'"}
    except (MemoryError, RecursionError) as error:
        limit = f"{MEMORY_BYTES >> 20} MB"
        result = {"error": f"reading it needs more memory than the limit of {limit} ({type(error).__name__})"}
    except Exception as error:
        result = {"error": f"the file is damaged ({type(error).__name__}: {error})"}
    sys.stdout.buffer.write(json.dumps(result).encode("ascii"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
