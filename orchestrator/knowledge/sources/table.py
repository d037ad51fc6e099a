"""Tables as text: every row carries the names of its columns, so that a row found alone still says what it means."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.decode import decode_text
from orchestrator.knowledge.sources.frames import MAX_TEXT, Parsed

SAMPLE = 16_384  # characters that the separator is guessed from
_NUMBER = re.compile(r"[-+]?[\d.,]+(?:[eE][-+]?\d+)?%?")


def read_csv(data: bytes, is_tabbed: bool = False) -> Parsed:
    """The rows of a file of separated values. Raises LoadError when it is no text."""
    text, notes = decode_text(data)
    csv.field_size_limit(MAX_TEXT)
    separator = "\t" if is_tabbed else _separator(text[:SAMPLE])
    try:
        lines = list(table_lines(csv.reader(io.StringIO(text, newline=""), delimiter=separator)))
    except csv.Error as error:
        raise LoadError(f"the file is no table of separated values ({error})") from error
    if not lines:
        raise LoadError("there is no text in the file")
    return Parsed("\n".join(lines), notes=notes)


def table_lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """One line per row that is not blank; ``| name: value |`` when the first row holds names, else ``| value |``."""
    names: Sequence[str] | None = None
    first: Sequence[str] | None = None
    for row in rows:
        cells = [" ".join(cell.split()) for cell in row]
        if not any(cells):
            continue
        if first is None:
            first = cells
            names = cells if _are_names(cells) else None
            if names is None:
                yield _line(cells)
            continue
        if names is not None and first is not None:
            labels = [*names, *[""] * (len(cells) - len(names))]
            pairs = zip(labels, cells, strict=False)
            yield _line([f"{name}: {cell}" if name else cell for name, cell in pairs if cell])
            first = ()
        else:
            yield _line(cells)
    if names is not None and first:
        yield _line(names)  # a table of one row


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _are_names(cells: Sequence[str]) -> bool:
    """Names of columns differ from each other and are short words, not numbers."""
    held = [cell for cell in cells if cell]
    return len(set(held)) == len(held) and all(len(cell) <= 80 and not _NUMBER.fullmatch(cell) for cell in held)


def _separator(sample: str) -> str:
    """The one of ``, ; tab |`` that cuts the first lines into most columns of one number; a comma when none does."""
    lines = [line for line in sample.split("\n")[:50] if line.strip()]
    best, score = ",", 0
    for candidate in (",", ";", "\t", "|"):
        counts = [len(row) for row in csv.reader(lines, delimiter=candidate)]
        even = min(counts, default=0)
        if even > 1 and even > score:
            best, score = candidate, even
    return best
