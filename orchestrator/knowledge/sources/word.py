"""Reads a Word document (.docx): headings, lists and tables are written as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.archive import Archive
from orchestrator.knowledge.sources.frames import Parsed, paged


def read_docx(data: bytes) -> Parsed:
    """Title and text. Raises LoadError for what is no Word document, a bomb, or has no text."""
    Archive(data, "a Word document").refuse_entities()
    import docx

    try:
        document = docx.Document(io.BytesIO(data))
    except Exception as error:  # python-docx raises whatever its XML and zip layers raise
        raise LoadError(f"the file is not a Word document that can be read ({type(error).__name__})") from error
    text = "\n\n".join(part for part in _parts(document) if part.strip())
    if not text.strip():
        raise LoadError("the Word document has no text in it")
    return _without_pages(paged([text], title=document.core_properties.title or ""))


def _without_pages(parsed: Parsed) -> Parsed:
    return Parsed(parsed.text, parsed.title, (), parsed.notes)


def _parts(document: Any) -> Iterator[str]:
    from docx.table import Table

    names: dict[str | None, str] = {}  # of styles; python-docx takes 0.5 ms to find one
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            yield "\n".join("| " + " | ".join(_cells(row)) + " |" for row in block.rows)
            continue
        key = block._p.style
        if key not in names:
            names[key] = (block.style.name or "") if block.style is not None else ""
        style = names[key]
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
