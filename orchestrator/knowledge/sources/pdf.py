"""Reads a PDF: the text of each page, and what its information dictionary says."""

from __future__ import annotations

import io
import logging
from typing import Any

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.frames import Parsed, paged

MAX_CHARACTERS = 32_000_000
FACTS = ("author", "subject", "keywords", "creator", "producer")


def read_pdf(data: bytes) -> Parsed:
    """Title, pages and metadata. Raises LoadError when it is damaged, protected, or has images in place of text."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise LoadError("the PDF is protected by a password; save it without one")
        pages, size = [], 0
        for page in reader.pages:
            pages.append(page.extract_text())
            size += len(pages[-1])
            if size > MAX_CHARACTERS:
                raise LoadError(f"the PDF holds more than {MAX_CHARACTERS:,} characters; split it")
    except pypdf.errors.PyPdfError as error:
        raise LoadError(f"the PDF is damaged ({error})") from error
    if not any(page.strip() for page in pages):
        raise LoadError(
            "the PDF has no text in it, only images; run OCR on it first, for instance: ocrmypdf in.pdf out.pdf"
        )
    facts = {name: _fact(reader, name) for name in ("title", *FACTS)}
    title = facts.pop("title")
    return paged(pages, title=title, metadata={name: fact for name, fact in facts.items() if fact})


def _fact(reader: Any, name: str) -> str:
    try:
        return str(getattr(reader.metadata, name, "") or "")[:2_000]
    except Exception:  # the dictionary is a free-for-all; a document without a title is fine
        return ""
