"""Reads an Excel workbook (.xlsx): each sheet is a page, each row one line with the names of its columns."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.archive import Archive
from orchestrator.knowledge.sources.frames import Parsed, paged
from orchestrator.knowledge.sources.table import table_lines


def read_xlsx(data: bytes) -> Parsed:
    """Title and sheets, formulas as their last computed values. Raises LoadError for what is no workbook or a bomb."""
    Archive(data, "an Excel workbook").refuse_entities()
    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts that it does not know
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
            pages = ["\n\n".join(_sheet(sheet)) for sheet in book.worksheets]
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # openpyxl raises whatever its XML and zip layers raise
        raise LoadError(f"the file is not an Excel workbook that can be read ({type(error).__name__})") from error
    if not any(pages):
        raise LoadError("the workbook has no values in it")
    return paged(pages, title=str(book.properties.title or ""))


def _sheet(sheet: Any) -> Iterator[str]:
    sheet.reset_dimensions()  # what a file says of its size may be wrong by millions of rows
    lines = "\n".join(table_lines([_shown(value) for value in row] for row in sheet.iter_rows(values_only=True)))
    if lines:
        yield "# " + " ".join(str(sheet.title).split())
        yield lines


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return str(value)
