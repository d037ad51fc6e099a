"""Turns Markdown, text, HTML, PDF, DOCX and JSONL files into documents, one by one: a bad file stops no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, LoadError, TooLargeError
from orchestrator.knowledge import parse
from orchestrator.knowledge.decode import clean_text, decode_text
from orchestrator.types import Document, start_of

MAX_BYTES = 32_000_000
MAX_ID = 500  # characters; the index on it takes about 2,700 bytes
MAX_TITLE = 500
MAX_FRONT_MATTER = 16_384  # characters
MAX_METADATA_VALUES = 10_000
PARSE_TIMEOUT_S = 120

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
RST = "text/x-rst"
JSONL = (".jsonl", ".ndjson")
PAGE_BREAK = "\n\n"
MEDIA_TYPES = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".rst": RST,
    ".html": "text/html",
    ".htm": "text/html",
    ".pdf": PDF,
    ".docx": DOCX,
    ".jsonl": "application/jsonl",
    ".ndjson": "application/jsonl",
}

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_MARKDOWN_TITLE = re.compile(r"^[ ]{0,3}#[ \t]+(\S.*)$", re.MULTILINE)
_RST_TITLE = re.compile(r"^(\S.*)\n([=\-~^\"'`#*+.:_])\2{2,}[ \t]*$", re.MULTILINE)
_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?([\w-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A file, or one line of it, that did not become a document; ``skipped`` when its kind is not ours to read."""

    source: str
    reason: str
    line: int | None = None
    skipped: bool = False


class Loader:
    """Iterates over the documents and failures of files and folders; ``read_bytes`` of ``total_bytes`` are done."""

    def __init__(self, paths: Iterable[str | Path], id_from: str | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.total_bytes = 0
        self.read_bytes = 0
        self._paths = [Path(path) for path in paths]
        self._id_field = id_from or "id"
        self._max_bytes = max_bytes
        self._seen: set[int] = set()  # hashes of the ids without valid_from: two texts of one id need two times

    def __iter__(self) -> Iterator[Document | LoadFailure]:
        files = [(file, root) for path in self._paths for file, root in _files(path)]
        self.total_bytes = sum(_size(file) for file, _ in files)
        self.read_bytes = 0
        self._seen.clear()
        for file, root in files:
            done = self.read_bytes + _size(file)
            yield from self._load_file(file, root)
            self.read_bytes = done

    def _load_file(self, file: Path, root: Path) -> Iterator[Document | LoadFailure]:
        source = clean_text(file.as_posix())[0]
        suffix = file.suffix.lower()
        if suffix not in MEDIA_TYPES:
            kinds = " ".join(sorted(MEDIA_TYPES))
            yield LoadFailure(source, f"files of this type are not read; known: {kinds}", skipped=True)
            return
        try:
            if suffix in JSONL:
                yield from self._load_lines(file, source)
                return
            if _size(file) > self._max_bytes:
                raise TooLargeError(f"the file has {_size(file):,} bytes, over {self._limit()}")
            yield self._unique(_load_one(file, source, file.relative_to(root).as_posix(), self._id_field))
        except InputError as error:
            yield LoadFailure(source, error.message)
        except OSError as error:
            yield LoadFailure(source, f"the file cannot be read: {error.strerror or error}")

    def _load_lines(self, file: Path, source: str) -> Iterator[Document | LoadFailure]:
        """One document per line; a bad line is reported with its number and the others go on."""
        before = self.read_bytes
        is_empty = True
        for number, line, done in _lines(file, self._max_bytes):
            if line is not None and not line.strip():
                continue
            is_empty = False
            try:
                if line is None:
                    raise TooLargeError(f"the line is longer than {self._limit()}")
                yield self._unique(_line_document(line, source, self._id_field))
            except InputError as error:
                yield LoadFailure(source, error.message, line=number)
            self.read_bytes = before + done
        if is_empty:
            raise LoadError("the file is empty")

    def _unique(self, document: Document) -> Document:
        key = hash(document.external_id)
        if document.valid_from is None and key in self._seen:
            raise LoadError(
                f"the id {document.external_id!r} occurs a second time; give it another id, or both a valid_from "
                "if they are versions of one document"
            )
        if document.valid_from is None:
            self._seen.add(key)
        return document

    def _limit(self) -> str:
        return f"the limit of {self._max_bytes:,} bytes (ORCHESTRATOR_MAX_DOCUMENT_BYTES)"


def load_path(
    path: str | Path, *, id_from: str | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Document | LoadFailure]:
    """The documents of a file or folder, one by one, and what could not be read. Raises InputError for no such path."""
    return iter(Loader([path], id_from, max_bytes))


def _files(path: Path) -> Iterator[tuple[Path, Path]]:
    """The files under a path with the folder that their names are relative to; hidden ones are left out.

    Those that say since when they are valid come after the others, oldest first: versions are numbered in that order.
    """
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        found.sort(key=lambda file: (_dated(file), file.relative_to(path).parts))
        yield from ((file, path) for file in found)
    elif path.is_file():
        yield path, path.parent
    else:
        raise InputError(f"there is no file or folder {clean_text(str(path))[0]!r}", param="paths")


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


def _load_one(file: Path, source: str, name: str, id_field: str) -> Document:
    """The document of a file that is not JSONL."""
    media_type = MEDIA_TYPES[file.suffix.lower()]
    values: dict[str, Any] = {}
    pages: tuple[int, ...] = ()
    if media_type == "text/html":
        title, text, notes = _read_html(file)
    elif media_type in (PDF, DOCX):
        title, text, pages, notes = _parse_in_child(file, media_type)
    else:
        text, notes = decode_text(file.read_bytes())
        if media_type == "text/markdown":
            values, text = _front_matter(text)
        title = _first_heading(text, media_type)
    if not text.strip():
        raise LoadError("there is no text in the file")
    external_id = values.pop(id_field, None) or name
    return _document(values, external_id, title or file.stem, text, source, media_type, pages, notes)


def _read_html(file: Path) -> tuple[str, str, tuple[str, ...]]:
    data = file.read_bytes()
    declared = _HTML_CHARSET.search(data[:2048])
    text, notes = decode_text(data, declared[1].decode("ascii", "replace") if declared else None)
    try:
        from orchestrator.knowledge.html import html_to_text

        return *html_to_text(text), notes
    except ImportError as error:
        raise LoadError("reading HTML needs the extra 'docs': pip install 'hybrid-orchestrator[docs]'") from error


def _first_heading(text: str, media_type: str) -> str:
    pattern = {"text/markdown": _MARKDOWN_TITLE, RST: _RST_TITLE}.get(media_type)
    found = pattern.search(text) if pattern else None
    return found[1].strip().rstrip("#").strip() if found else ""


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
    name, changed = clean_text(str(external_id))
    if not name.strip() or len(name) > MAX_ID:
        raise LoadError(f"the document's id must have 1 to {MAX_ID} characters, not {len(name.strip())}")
    valid_from = _valid_from(values.pop("valid_from", None))
    stated = values.pop("title", None)
    stated, more = clean_text(" ".join(str(stated if stated not in (None, "") else title).split()))
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


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
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
    """The values as jsonb can hold them, and whether any had to change. Raises LoadError when they are too many."""
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


def _lines(file: Path, max_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Number (from 1), bytes, and bytes read so far of each line; None for a line over the limit. In bounded memory."""
    with file.open("rb") as stream:
        head = stream.read(4)
        stream.seek(0)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:  # UTF-16, whose lines do not end at a byte 10
            if _size(file) > max_bytes:
                raise TooLargeError(f"a file in UTF-16 is read up to {max_bytes:,} bytes; convert it to UTF-8")
            text, _ = decode_text(stream.read())
            yield from ((number, line.encode(), stream.tell()) for number, line in enumerate(text.split("\n"), 1))
            return
        number = 0
        while line := stream.readline(max_bytes + 1):
            number += 1
            is_too_long = len(line) > max_bytes and not line.endswith(b"\n")
            rest = line
            while is_too_long and rest and not rest.endswith(b"\n"):
                rest = stream.readline(1 << 20)
            yield number, None if is_too_long else line, stream.tell()


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


def _parse_in_child(file: Path, media_type: str) -> tuple[str, str, tuple[int, ...], tuple[str, ...]]:
    """Title, text, page offsets and notes of a PDF or DOCX, read in a child process that has limits and no secrets."""
    kind = "pdf" if media_type == PDF else "docx"
    command = [sys.executable, "-P", parse.__file__, kind, str(file.absolute())]
    try:
        child = subprocess.run(
            command, capture_output=True, timeout=PARSE_TIMEOUT_S, env=_bare_environment(), check=False
        )
        result = json.loads(child.stdout)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"reading the file took more than {PARSE_TIMEOUT_S} s; it was given up") from error
    except ValueError as error:
        raise LoadError(
            f"the file broke its reader (exit {child.returncode}), which has limits on memory and time"
        ) from error
    if "error" in result:
        raise LoadError(clean_text(str(result["error"]))[0])
    pages = [clean_text(page) for page in result["pages"]]
    starts = list(accumulate((len(text) + len(PAGE_BREAK) for text, _ in pages), initial=0))[:-1]
    notes = dict.fromkeys(note for _, found in pages for note in found)
    text = PAGE_BREAK.join(text for text, _ in pages)
    return clean_text(result["title"])[0], text, tuple(starts) if kind == "pdf" else (), tuple(notes)


def _bare_environment() -> dict[str, str]:
    """Enough for Python to start; no database URL, no keys."""
    kept = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ}
