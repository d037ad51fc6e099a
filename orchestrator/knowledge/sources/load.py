"""Turns files, folders, JSONL, mailboxes and web pages into documents, one by one: a bad file stops no other."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import InputError, LoadError, TooLargeError
from orchestrator.knowledge.sources.decode import clean_text, decode_text
from orchestrator.knowledge.sources.document import (
    MAX_FRONT_MATTER,
    first_heading,
    make_document,
    parse_valid_from,
    read_front_matter,
)
from orchestrator.knowledge.sources.fetch import Fetched, is_url
from orchestrator.knowledge.sources.frames import Parsed, Trouble
from orchestrator.knowledge.sources.kinds import CODE, JSON_LINES, MAILBOX, MARKDOWN, MEDIA_TYPES, READERS
from orchestrator.knowledge.sources.lines import read_lines, read_messages
from orchestrator.knowledge.sources.worker import Worker
from orchestrator.types import Document

MAX_BYTES = 32_000_000

Fetch = Callable[[str], Fetched]


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A file, or a line of it, that did not become a document; ``skipped``: not ours to read; ``poisoned``: broke its reader."""

    source: str
    reason: str
    line: int | None = None
    skipped: bool = False
    poisoned: bool = False


@dataclass(frozen=True, slots=True)
class _Source:
    """Something to read: its name is the id that it gets when it states none; ``shown`` is where it came from."""

    name: str
    shown: str
    suffix: str
    size: int
    open: Callable[[], BinaryIO]
    charset: str = ""

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.suffix]

    @property
    def stem(self) -> str:
        """A title for what has none: a source file keeps its suffix, which says what it is."""
        last = self.name.rstrip("/").rpartition("/")[2] or self.name
        return last if self.suffix in CODE else last.removesuffix(self.suffix) or last


class Loader:
    """Iterates over the documents and failures of paths and URLs; ``read_bytes`` of ``total_bytes`` are done.

    ``fetch`` gets the URLs; without it they are refused. Raises InputError at once for a path that does not exist.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        id_from: str | None = None,
        max_bytes: int = MAX_BYTES,
        fetch: Fetch | None = None,
    ) -> None:
        self.total_bytes = 0
        self.read_bytes = 0
        self._paths = [path if is_url(str(path)) else Path(path) for path in paths]
        self._id_field = id_from or "id"
        self._max_bytes = max_bytes
        self._fetch = fetch
        self._seen: set[int] = set()  # hashes of the ids without valid_from: two texts of one id need two times
        for path in self._paths:
            if isinstance(path, Path) and not path.exists():
                raise InputError(f"there is no file or folder {clean_text(str(path))[0]!r}", param="paths")
            if not isinstance(path, Path) and fetch is None:
                raise InputError(
                    f"{path[:200]!r} is a URL, and URLs are not fetched; allow it with ORCHESTRATOR_ALLOW_URLS=true",
                    param="paths",
                )

    def __iter__(self) -> Iterator[Document | LoadFailure]:
        found = [item for path in self._paths if isinstance(path, Path) for item in _files(path)]
        urls = [path for path in self._paths if not isinstance(path, Path)]
        self.total_bytes = sum(item.size for item in found if isinstance(item, _Source))
        self.read_bytes = 0
        self._seen.clear()
        with Worker() as worker:
            for item in found:
                if isinstance(item, LoadFailure):
                    yield item
                    continue
                done = self.read_bytes + item.size
                yield from self._load(item, worker)
                self.read_bytes = done
            for url in urls:
                yield from self._load_url(url, worker)

    def _load_url(self, url: str, worker: Worker) -> Iterator[Document | LoadFailure]:
        try:
            fetched = self._fetch(url)  # type: ignore[misc]  # the constructor refused URLs without it
        except InputError as error:
            yield LoadFailure(url[:500], error.message)
            return
        if fetched.suffix not in MEDIA_TYPES:
            kind = clean_text(fetched.content_type[:100])[0]
            yield LoadFailure(url, f"what the server sends is of a type that is not read: {kind!r}", skipped=True)
            return
        data, name = fetched.data, fetched.url
        self.total_bytes += len(data)
        source = _Source(name, fetched.final_url, fetched.suffix, len(data), lambda: io.BytesIO(data), fetched.charset)
        yield from self._load(source, worker)
        self.read_bytes += len(data)

    def _load(self, source: _Source, worker: Worker) -> Iterator[Document | LoadFailure]:
        try:
            if source.media_type == JSON_LINES:
                yield from self._load_lines(source)
            elif source.media_type == MAILBOX:
                yield from self._load_mailbox(source, worker)
            elif source.size > self._max_bytes:
                raise TooLargeError(f"the file has {source.size:,} bytes, over {self._limit()}")
            elif source.media_type in READERS:
                with source.open() as stream:
                    hint = f"charset={source.charset}" if source.charset else f"x{source.suffix}"
                    found = worker.parse(READERS[source.media_type], stream, source.size, hint)
                yield from self._parsed(source, found, source.name)
            else:
                yield self._unique(_read_text(source, self._id_field, self._max_bytes))
        except InputError as error:
            yield LoadFailure(source.shown, error.message)
        except OSError as error:
            yield LoadFailure(source.shown, f"the file cannot be read: {error.strerror or error}")

    def _parsed(
        self, source: _Source, found: Iterable[Parsed | Trouble], name: str, line: int | None = None
    ) -> Iterator[Document | LoadFailure]:
        """The documents of one file or message. An attachment has the file's id, a ``#`` and its own name."""
        used: dict[str, int] = {}
        for one in found:
            shown = f"{source.shown}#{one.name}" if one.name else source.shown
            if isinstance(one, Trouble):
                yield LoadFailure(shown, clean_text(one.reason)[0], line, poisoned=one.poisoned)
                continue
            used[one.name] = used.get(one.name, 0) + 1
            own = one.name if used[one.name] == 1 else f"{one.name} ({used[one.name]})"  # two `image.pdf` in one mail
            try:
                if not one.text.strip():
                    raise LoadError("there is no text in the file")
                yield self._unique(
                    make_document(
                        _stated(one),
                        external_id=f"{name}#{own}" if own else name,
                        title=one.title or own or source.stem,
                        text=one.text,
                        source=shown,
                        media_type=one.media_type or source.media_type,
                        pages=one.pages,
                        notes=one.notes,
                    )
                )
            except InputError as error:
                yield LoadFailure(shown, error.message, line)

    def _load_lines(self, source: _Source) -> Iterator[Document | LoadFailure]:
        """One document per line; a bad line is reported with its number and the others go on."""
        before = self.read_bytes
        is_empty = True
        with source.open() as stream:
            for number, line, done in read_lines(stream, source.size, self._max_bytes):
                if line is not None and not line.strip():
                    continue
                is_empty = False
                try:
                    if line is None:
                        raise TooLargeError(f"the line is longer than {self._limit()}")
                    yield self._unique(_line_document(line, source.shown, self._id_field))
                except InputError as error:
                    yield LoadFailure(source.shown, error.message, line=number)
                self.read_bytes = before + done
        if is_empty:
            raise LoadError("the file is empty")

    def _load_mailbox(self, source: _Source, worker: Worker) -> Iterator[Document | LoadFailure]:
        """The messages of a mailbox of any size; the id of one is the file's name and its own Message-ID."""
        before = self.read_bytes
        is_empty = True
        with source.open() as stream:
            for number, message, done in read_messages(stream, self._max_bytes):
                is_empty = False
                if message is None:
                    yield LoadFailure(source.shown, f"the message is longer than {self._limit()}", line=number)
                else:
                    found = worker.parse("mail", io.BytesIO(message), len(message))
                    stated = [
                        one.metadata.get("message_id") for one in found if isinstance(one, Parsed) and not one.name
                    ]
                    name = f"{source.name}#{stated[0] if stated and stated[0] else f'message {number}'}"
                    yield from self._parsed(source, found, name, number)
                self.read_bytes = before + done
        if is_empty:
            raise LoadError("the file is empty, or no mailbox: its messages begin with a line 'From '")

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


def _files(path: Path) -> list[_Source | LoadFailure]:
    """The files under a path, named relative to it, and what is there and is not read; hidden ones are left out.

    Those that say since when they are valid come after the others, oldest first: versions are numbered in that order.
    """
    if not path.is_dir():
        return [_source(path, path.name)]
    found: list[tuple[datetime, tuple[str, ...], _Source | LoadFailure]] = []
    root = path.resolve()
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*files, *(name for name in folders if (Path(folder) / name).is_symlink())]):
            file = Path(folder) / name
            if not name.startswith("."):
                relative = file.relative_to(path)
                item = _entry(file, relative.as_posix(), root)
                found.append((_dated(item), relative.parts, item))
    return [item for _, _, item in sorted(found, key=lambda entry: entry[:2])]


def _entry(file: Path, name: str, root: Path) -> _Source | LoadFailure:
    """A file of a folder; a link is followed only to a plain file inside the folder (row A16)."""
    if file.is_symlink():
        target = Path(os.path.realpath(file))  # Path.resolve raises for a link to itself
        if not target.is_relative_to(root):
            return _skipped(file, "it is a link that leads out of the folder; ingest what it leads to by its own path")
        if not target.is_file():
            return _skipped(file, "it is a link to no file; a folder inside the folder is read by its own name")
        return _source(target, name, shown=file)
    if not file.is_file():
        return _skipped(file, "it is no plain file (a socket, a pipe or a device)")
    return _source(file, name)


def _source(file: Path, name: str, shown: Path | None = None) -> _Source | LoadFailure:
    suffix = file.suffix.lower()
    if suffix not in MEDIA_TYPES:
        kinds = " ".join(sorted(MEDIA_TYPES))
        return _skipped(shown or file, f"files of this type are not read; known: {kinds}")
    return _Source(name, clean_text((shown or file).as_posix())[0], suffix, _size(file), lambda: _open(file))


def _skipped(file: Path, reason: str) -> LoadFailure:
    return LoadFailure(clean_text(file.as_posix())[0], reason, skipped=True)


def _open(file: Path) -> BinaryIO:
    """The file, unless it has become a pipe or device meanwhile, on which reading might never end."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LoadError("it is no plain file")
    return os.fdopen(descriptor, "rb")


def _dated(item: _Source | LoadFailure) -> datetime:
    if isinstance(item, _Source) and item.media_type == MARKDOWN:
        try:
            with item.open() as stream:
                head = stream.read(MAX_FRONT_MATTER)
            if head.removeprefix(b"\xef\xbb\xbf").startswith(b"---"):
                values, _ = read_front_matter(decode_text(head)[0])
                return parse_valid_from(values.get("valid_from")) or datetime.min.replace(tzinfo=UTC)
        except (OSError, InputError):
            pass  # reported when the file is read
    return datetime.min.replace(tzinfo=UTC)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _stated(found: Parsed) -> dict[str, Any]:
    """What a file says of itself. None of our own names: a mail's header is not a date of validity."""
    return {name: value for name, value in found.metadata.items() if name not in ("title", "valid_from")}


def _read_text(source: _Source, id_field: str, max_bytes: int) -> Document:
    """The document of a file that is text as it stands."""
    with source.open() as stream:
        data = stream.read(max_bytes + 1)  # it may have grown
    if len(data) > max_bytes:
        raise TooLargeError(f"the file grew over the limit of {max_bytes:,} bytes (ORCHESTRATOR_MAX_DOCUMENT_BYTES)")
    text, notes = decode_text(data, source.charset or None)
    values: dict[str, Any] = {}
    if source.media_type == MARKDOWN:
        values, text = read_front_matter(text)
    if not text.strip():
        raise LoadError("there is no text in the file")
    external_id = values.pop(id_field, None) or source.name
    return make_document(
        values,
        external_id=external_id,
        title=first_heading(text, source.media_type) or source.stem,
        text=text,
        source=source.shown,
        media_type=source.media_type,
        notes=notes,
    )


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
    media_type = clean_text(str(values.pop("media_type", "text/plain")))[0]
    nested = values.pop("metadata", None)
    known = {name: values.pop(name) for name in ("title", "valid_from") if name in values}
    merged = {**values, **(nested if isinstance(nested, dict) else {} if nested is None else {"metadata": nested})}
    merged.update(known)
    return make_document(
        merged,
        external_id=external_id,
        title="",
        text=body,
        source=source,
        media_type=media_type,
        notes=(*notes, *more),
    )
