"""Reads a PowerPoint file (.pptx): each slide is a page with its title as heading, its text, tables and speaker notes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.archive import Archive
from orchestrator.knowledge.sources.frames import Parsed, paged

MAX_NESTING = 20  # groups in groups


def read_pptx(data: bytes) -> Parsed:
    """Title and slides. Raises LoadError for what is no PowerPoint file, a bomb, or has no text."""
    Archive(data, "a PowerPoint file").refuse_entities()
    import pptx

    try:
        presentation = pptx.Presentation(io.BytesIO(data))
        slides = list(presentation.slides)
    except Exception as error:  # python-pptx raises whatever its XML and zip layers raise
        raise LoadError(f"the file is not a PowerPoint file that can be read ({type(error).__name__})") from error
    pages = ["\n\n".join(part for part in _slide(slide) if part.strip()) for slide in slides]
    if not any(page.strip() for page in pages):
        raise LoadError("the PowerPoint file has no text in it")
    return paged(pages, title=presentation.core_properties.title or "")


def _slide(slide: Any) -> Iterator[str]:
    title = slide.shapes.title
    if title is not None and title.has_text_frame and title.text_frame.text.strip():
        yield "# " + " ".join(title.text_frame.text.split())
    for shape in slide.shapes:
        if title is None or shape.shape_id != title.shape_id:
            yield from _shape(shape, 0)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = _paragraphs(slide.notes_slide.notes_text_frame)
        if notes.strip():
            yield f"Notes:\n\n{notes}"


def _shape(shape: Any, depth: int) -> Iterator[str]:
    if hasattr(shape, "shapes") and depth < MAX_NESTING:
        for inner in shape.shapes:
            yield from _shape(inner, depth + 1)
    elif getattr(shape, "has_table", False) and shape.has_table:
        rows = ([" ".join(cell.text.split()) for cell in row.cells] for row in shape.table.rows)
        yield "\n".join("| " + " | ".join(row) + " |" for row in rows)
    elif shape.has_text_frame:
        yield _paragraphs(shape.text_frame)


def _paragraphs(frame: Any) -> str:
    return "\n\n".join(" ".join(paragraph.text.split()) for paragraph in frame.paragraphs if paragraph.text.strip())
