"""Makes a Document of what was read: title, id, date and metadata as PostgreSQL can hold them, with notes on changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources.decode import clean_text
from orchestrator.knowledge.sources.kinds import MARKDOWN, RST
from orchestrator.types import Document, start_of

MAX_ID = 500  # characters; the index on it takes about 2,700 bytes
MAX_TITLE = 500
MAX_FRONT_MATTER = 16_384  # characters
MAX_METADATA_VALUES = 10_000
MAX_DEPTH = 50

_MARKDOWN_TITLE = re.compile(r"^[ ]{0,3}#[ \t]+(\S.*)$", re.MULTILINE)
_RST_TITLE = re.compile(r"^(\S.*)\n([=\-~^\"'`#*+.:_])\2{2,}[ \t]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


def make_document(
    values: Mapping[str, Any],
    *,
    external_id: Any,
    title: str,
    text: str,
    source: str,
    media_type: str,
    pages: tuple[int, ...] = (),
    notes: tuple[str, ...] = (),
) -> Document:
    """A document; of ``values``, title and valid_from are taken out and the rest is its metadata. Raises LoadError."""
    rest = dict(values)
    name, changed = clean_text(str(external_id))
    if not name.strip() or len(name) > MAX_ID:
        raise LoadError(f"the document's id must have 1 to {MAX_ID} characters, not {len(name.strip())}")
    valid_from = parse_valid_from(rest.pop("valid_from", None))
    stated = rest.pop("title", None)
    stated, more = clean_text(" ".join(str(stated if stated not in (None, "") else title).split()))
    metadata, altered = clean_metadata(rest)
    if altered:
        more = (*more, "metadata changed to what JSON in PostgreSQL can hold")
    return Document(
        external_id=name,
        title=stated[:MAX_TITLE],
        text=text,
        source=clean_text(source)[0],
        media_type=media_type,
        metadata=metadata,
        valid_from=valid_from,
        pages=pages,
        notes=tuple(dict.fromkeys((*notes, *changed, *more))),
    )


def parse_valid_from(value: Any) -> datetime | None:
    """The instant that a date means; None for an empty value. Raises LoadError for what is no date."""
    if value is None or value == "":
        return None
    try:
        return start_of(value if isinstance(value, date) else str(value))
    except ValueError as error:
        raise LoadError(f"valid_from must be a date such as 2025-03-01, not {str(value)[:50]!r}") from error


def read_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The values between the ``---`` lines and the text after them; no values when there is no front matter."""
    found = _FRONT_MATTER.match(text[:MAX_FRONT_MATTER]) if text.startswith("---") else None
    if not found:
        return {}, text
    import yaml

    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 2}" if place else ""
        raise LoadError(f"the front matter is not valid YAML{where}: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        return {}, text  # a thematic break, not front matter
    return {str(key): value for key, value in values.items()}, text[found.end() :].lstrip("\n")


def first_heading(text: str, media_type: str) -> str:
    """The first heading of a Markdown or reStructuredText file; empty for other kinds, and when there is none."""
    pattern = {MARKDOWN: _MARKDOWN_TITLE, RST: _RST_TITLE}.get(media_type)
    found = pattern.search(text) if pattern else None
    return found[1].strip().rstrip("#").strip() if found else ""


def clean_metadata(values: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The values as jsonb can hold them, and whether any had to change. Raises LoadError when they are too many.

    Only plain data comes out: what looks like a serialised object stays a mapping of its parts (row A15).
    """
    left = MAX_METADATA_VALUES
    changed = False

    def clean(value: Any, depth: int) -> Any:
        nonlocal left, changed
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise LoadError(
                f"the metadata has more than {MAX_METADATA_VALUES:,} values or is nested deeper than {MAX_DEPTH}"
            )
        if isinstance(value, Mapping):
            return {clean(str(key), depth + 1): clean(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set):
            return [clean(item, depth + 1) for item in value]
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            changed = True
            return None
        if value is None or isinstance(value, bool | int | float):
            return value
        text, notes = clean_text(value if isinstance(value, str) else str(value))
        changed = changed or bool(notes)
        return text

    return clean(values, 0), changed
