"""Turns files into documents: Markdown, text, HTML, PDF, DOCX and JSONL, one by one, so that one bad file stops nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, LoadError, TooLargeError
from orchestrator.knowledge import parse
from orchestrator.knowledge.decode import clean_text, decode_text
from orchestrator.types import Document, start_of

MAX_BYTES = 64_000_000
MAX_ID = 500  # characters; the index on it takes about 2,700 bytes
MAX_TITLE = 500
MAX_FRONT_MATTER = 16_384  # characters
MAX_METADATA_VALUES = 10_000
PARSE_TIMEOUT_S = 120

MEDIA_TYPES = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".rst": "text/x-rst",
    ".html": "text/html",
    ".htm": "text/html",
    ".pdf": "application/pdf",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".jsonl": "application/jsonl",
    ".ndjson": "application/jsonl",
}

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_FIRST_HEADING = re.compile(r"^[ ]{0,3}#[ \t]+(\S.*)$", re.MULTILINE)
_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?([\w-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A file, or one line of it, that did not become a document; ``skipped`` when its kind is not ours to read."""

    source: str
    reason: str
    line: int | None = None
    skipped: bool = False


@dataclass(slots=True)
class Loader:
    """Iterates over the documents and failures of files and folders; ``read_bytes`` of ``total_bytes`` are done."""

    paths: Iterable[str | Path]
    id_from: str | None = None
    max_bytes: int = MAX_BYTES
    total_bytes: int = field(default=0, init=False)
    read_bytes: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Document | LoadFailure]:
        files = [(file, root) for path in self.paths for file, root in _files(Path(path))]
        self.total_bytes = sum(_size(file) for file, _ in files)
        before = 0
        for file, root in files:
            for item in load_file(file, root=root, id_from=self.id_from, max_bytes=self.max_bytes, progress=self._advance(before)):
                yield item
            before += _size(file)
            self.read_bytes = before

    def _advance(self, before: int) -> Any:
        def advance(done: int) -> None:
            self.read_bytes = before + done

        return advance


def load_path(
    path: str | Path, *, id_from: str | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Document | LoadFailure]:
    """The documents of one file or folder, one by one, and what could not be read. Raises InputError when there is no such path."""
    return iter(Loader([path], id_from, max_bytes))


def load_file(
    file: Path, *, root: Path, id_from: str | None = None, max_bytes: int = MAX_BYTES, progress: Any = None
) -> Iterator[Document | LoadFailure]:
    """The documents of one file; ``root`` is the ingested folder that names are relative to."""
    source = _printable(file.as_posix())
    suffix = file.suffix.lower()
    if suffix not in MEDIA_TYPES:
        kinds = " ".join(sorted(MEDIA_TYPES))
        yield LoadFailure(source, f"files of type {suffix or 'without suffix'} are not read; known: {kinds}", skipped=True)
        return
    try:
        if suffix in (".jsonl", ".ndjson"):
            yield from _load_lines(file, source, id_from or "id", max_bytes, progress)
            return
        if file.stat().st_size > max_bytes:
            raise TooLargeError(f"the file has {file.stat().st_size:,} bytes, over the limit of {max_bytes:,} (ORCHESTRATOR_MAX_DOCUMENT_BYTES)")
        yield _load_one(file, source, file.relative_to(root).as_posix(), MEDIA_TYPES[suffix], id_from or "id")
    except InputError as error:
        yield LoadFailure(source, error.message)
    except OSError as error:
        yield LoadFailure(source, f"the file cannot be read: {error.strerror or error}")


def _files(path: Path) -> Iterator[tuple[Path, Path]]:
    """The files under a path with the folder that their names are relative to; hidden ones are left out.

    Files that say since when they are valid come after the others, oldest first, so that versions get their numbers in order.
    """
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        found.sort(key=lambda file: (_dated(file), file.relative_to(path).parts))
        yield from ((file, path) for file in found)
    elif path.exists():
        yield path, path.parent
    else:
        raise InputError(f"there is no file or folder {_printable(str(path))!r}", param="paths")


def _dated(file: Path) -> datetime:
    if file.suffix.lower() in (".md", ".markdown"):
        try:
            with file.open("rb") as stream:
                head = stream.read(MAX_FRONT_MATTER)
            if head.removeprefix(b"\xef\xbb\xbf").startswith(b"---"):
                values, _ = _front_matter(decode_text(head)[0])
                return _valid_from(values.get("valid_from")) or datetime.min.replace(tzinfo=UTC)
        except (OSError, InputError):
            pass  # reported when the file is read
    return datetime.min.replace(tzinfo=UTC)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _load_one(file: Path, source: str, name: str, media_type: str, id_field: str) -> Document:
    pages: tuple[int, ...] = ()
    values: Mapping[str, Any] = {}
    title, notes = "", ()  # type: tuple[str, tuple[str, ...]]
    if media_type == "text/html":
        data = file.read_bytes()
        declared = _HTML_CHARSET.search(data[:2048])
        text, notes = decode_text(data, declared[1].decode("ascii", "replace") if declared else None)
        from orchestrator.knowledge.html import html_to_text

        title, text = html_to_text(text)
    elif file.suffix.lower() in (".pdf", ".docx"):
        title, text, pages, notes = _parse_in_child(file)
    else:
        text, notes = decode_text(file.read_bytes())
        if media_type == "text/markdown":
            values, text = _front_matter(text)
            heading = _FIRST_HEADING.search(text)
            title = heading[1].strip().rstrip("#").strip() if heading else ""
    if not text.strip():
        raise LoadError("there is no text in the file")
    values = dict(values)
    return _document(values, values.pop(id_field, None) or name, title or file.stem, text, source, media_type, pages, notes)


def _document(
    values: dict[str, Any],
    external_id: Any,
    title: str,
    text: str,
    source: str,
    media_type: str,
    pages: tuple[int, ...],
    notes: tuple[str, ...],
) -> Document:
    """A document from front matter or a JSON line: known names are taken out, the rest is metadata."""
    name, changed = clean_text(_printable(str(external_id)))
    if not name.strip() or len(name) > MAX_ID:
        raise LoadError(f"the document's id must have 1 to {MAX_ID} characters, not {len(name.strip())}")
    valid_from = _valid_from(values.pop("valid_from", None))
    stated = values.pop("title", None)
    stated, more = clean_text(_printable(" ".join(str(stated if stated not in (None, "") else title).split())))
    metadata, altered = _clean_metadata(values)
    if altered:
        more = (*more, "metadata changed to what JSON in PostgreSQL can hold")
    return Document(
        external_id=name,
        title=stated[:MAX_TITLE],
        text=text,
        source=source,
        media_type=media_type,
        metadata=metadata,
        valid_from=valid_from,
        pages=pages,
        notes=tuple(dict.fromkeys((*notes, *changed, *more))),
    )


def _valid_from(value: Any) -> datetime | None:
    if value is None or value == "":
        return None
    try:
        return start_of(value if isinstance(value, date) else str(value))
    except ValueError as error:
        raise LoadError(f"valid_from must be a date such as 2025-03-01, not {str(value)[:50]!r}") from error


def _printable(name: str) -> str:
    """A file name may hold bytes that are not text (as lone surrogates); they are shown as replacement characters."""
    return name.encode("utf-8", "replace" if name.isascii() else "surrogateescape").decode("utf-8", "replace")


def _front_matter(text: str) -> tuple[Mapping[str, Any], str]:
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


def _clean_metadata(values: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The same values as jsonb can hold them, and whether anything had to change. Raises LoadError when there are too many."""
    left = MAX_METADATA_VALUES
    changed = False

    def clean(value: Any, depth: int) -> Any:
        nonlocal left, changed
        left -= 1
        if left < 0 or depth > 50:
            raise LoadError(f"the metadata has more than {MAX_METADATA_VALUES:,} values or is nested deeper than 50")
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


def _load_lines(
    file: Path, source: str, id_field: str, max_bytes: int, progress: Any
) -> Iterator[Document | LoadFailure]:
    """One document per line; a bad line is reported with its number and the others go on."""
    seen: set[int] = set()  # hashes of ids without valid_from: twice the same would be two texts for one time
    found = False
    for number, line, done in _lines(file, max_bytes):
        if line is not None and not line.strip():
            continue
        found = True
        try:
            if line is None:
                raise TooLargeError(f"the line has more than {max_bytes:,} bytes (ORCHESTRATOR_MAX_DOCUMENT_BYTES)")
            document = _line_document(line, source, id_field)
            key = hash(document.external_id)
            if document.valid_from is None and key in seen:
                raise LoadError(f"the id {document.external_id!r} occurs a second time, without valid_from to tell the two apart")
            if document.valid_from is None:
                seen.add(key)
            yield document
        except InputError as error:
            yield LoadFailure(source, error.message, line=number)
        if progress:
            progress(done)
    if not found:
        raise LoadError("the file is empty")


def _lines(file: Path, max_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Number (from 1), bytes, and bytes read so far of each line; None for a line over the limit. In bounded memory."""
    with file.open("rb") as stream:
        head = stream.read(4)
        stream.seek(0)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:1] == b"\0" or head[1:2] == b"\0":
            text, _ = decode_text(stream.read(max_bytes))
            for number, line in enumerate(text.split("\n"), 1):
                yield number, line.encode(), stream.tell()
            return
        number = 0
        while line := stream.readline(max_bytes + 1):
            number += 1
            too_long = len(line) > max_bytes and not line.endswith(b"\n")
            while too_long and line and not line.endswith(b"\n"):
                line = stream.readline(1 << 20)
            yield number, None if too_long else line, stream.tell()


def _line_document(line: bytes, source: str, id_field: str) -> Document:
    text, notes = decode_text(line)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"the line is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise LoadError('the line is not a JSON object with "id" and "text"')
    external_id = values.pop(id_field, None)
    if not isinstance(external_id, str | int) or isinstance(external_id, bool) or external_id == "":
        raise LoadError(f"the line has no {id_field!r}; name the field that holds the id with --id-from")
    body = values.pop("text", None)
    if not isinstance(body, str):
        raise LoadError('the line has no "text"')
    body, more = clean_text(body)
    if not body.strip():
        raise LoadError('its "text" is empty')
    media_type = str(values.pop("media_type", "text/plain"))
    nested = values.pop("metadata", None)
    known = {name: values.pop(name) for name in ("title", "valid_from") if name in values}
    merged = {**values, **(nested if isinstance(nested, dict) else {} if nested is None else {"metadata": nested})}
    merged.update(known)
    return _document(merged, external_id, "", body, source, media_type, (), (*notes, *more))


def _parse_in_child(file: Path) -> tuple[str, str, tuple[int, ...], tuple[str, ...]]:
    """Title, text, page offsets and notes of a PDF or DOCX, read in a child process that has limits and no secrets."""
    kind = file.suffix.lower()[1:]
    command = [sys.executable, "-P", parse.__file__, kind, str(file.absolute())]
    try:
        child = subprocess.run(command, capture_output=True, timeout=PARSE_TIMEOUT_S, env=_bare_environment(), check=False)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"reading the file took more than {PARSE_TIMEOUT_S} s; it was given up") from error
    try:
        result = json.loads(child.stdout)
    except ValueError as error:
        raise LoadError(f"the file broke its reader (exit {child.returncode}), within its limits of memory and time") from error
    if "error" in result:
        raise LoadError(clean_text(str(result["error"]))[0])
    title, _ = clean_text(result["title"])
    parts, starts, notes, size = [], [], [], 0
    for page in result["pages"]:
        text, changed = clean_text(page)
        starts.append(size)
        parts.append(text)
        size += len(text) + 2
        notes.extend(changed)
    return title, "\n\n".join(parts), tuple(starts) if kind == "pdf" else (), tuple(dict.fromkeys(notes))


def _bare_environment() -> dict[str, str]:
    """Enough for Python to start; no database URL, no keys."""
    import os

    kept = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ}
