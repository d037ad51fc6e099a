"""A folder as the source of truth: what is new is ingested, what moved is renamed, what is gone is retired, never deleted."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import InputError
from orchestrator.knowledge.compare import normalised, paragraphs
from orchestrator.knowledge.ingest import IngestEvent, IngestReport, ingest_documents
from orchestrator.knowledge.records import Collection
from orchestrator.knowledge.sources.load import MAX_BYTES, Loader, LoadFailure
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.write import text_sha256
from orchestrator.protocols import Embedder
from orchestrator.types import Document

SHARE = 0.2  # of a folder's documents: a run that would retire more asks first
LEAST = 3  # documents; fewer are retired without a question
ALIKE = 0.5  # share of common text from which a new file is an old one under another name
SHORTEST = 200  # characters of common text: below it only the same text tells
MANY = 20  # documents that are compared by one paragraph: a licence in every file makes no pairs


@dataclass(frozen=True, slots=True)
class Stored:
    """A document that the collection has from this folder; ``source`` is its path there.

    ``shares``: characters by hash of a paragraph, when they are needed.
    """

    external_id: str
    sha256: str
    source: str
    shares: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A document that the folder has; ``shares`` for those that the collection has not."""

    external_id: str
    sha256: str
    valid_from: datetime | None = None
    shares: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rename:
    """A document whose file has another name now."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What a run would do beside ingesting. ``kept``: not found, but a file that could not be read may hold them."""

    stored: int
    renamed: tuple[Rename, ...] = ()
    retired: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def is_drastic(self, share: float = SHARE) -> bool:
        """Whether it would retire so much of the folder's documents that somebody should look first."""
        return len(self.retired) >= LEAST and len(self.retired) > share * self.stored


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a run did."""

    ingest: IngestReport
    renamed: tuple[Rename, ...]
    retired: tuple[str, ...]
    kept: tuple[str, ...]
    restored: tuple[str, ...]


def plan_sync(
    stored: Sequence[Stored], found: Sequence[Found], taken: frozenset[str], unread: Sequence[str] = ()
) -> SyncPlan:
    """What to do so that the collection has of this folder what the folder has.

    ``taken``: ids of all documents of the collection, whoever stated them. ``unread``: paths in the folder of what could
    not be read: documents from there are kept.
    """
    present = {one.external_id for one in found}
    missing = [one for one in stored if one.external_id not in present]
    kept = {one.external_id for one in missing if _is_from(one.source, unread)}
    gone = [one for one in missing if one.external_id not in kept]
    renamed = _renames(gone, [one for one in found if one.external_id not in taken])
    old = {one.before for one in renamed}
    retired = tuple(one.external_id for one in gone if one.external_id not in old)
    return SyncPlan(len(stored), renamed, retired, tuple(sorted(kept)))


def shares_of(text: str) -> dict[int, int]:
    """Characters of each paragraph by its hash: what two texts are compared by."""
    shares: Counter[int] = Counter()
    for key in map(normalised, paragraphs(text)):
        shares[hash(key)] += len(key)
    return shares


def _renames(gone: Sequence[Stored], new: Sequence[Found]) -> tuple[Rename, ...]:
    """Pairs of what is gone and what is new: the same text first, then those that share most."""
    chosen = _same(gone, new)
    used = set(chosen.values())
    left = [one for one in gone if one.external_id not in chosen]
    fresh = [one for one in new if one.external_id not in used]
    for _, before, after in sorted(_alike(left, fresh), key=lambda pair: (-pair[0], pair[1:])):
        if before not in chosen and after not in used:
            chosen[before] = after
            used.add(after)
    return tuple(Rename(before, after) for before, after in sorted(chosen.items()))


def _same(gone: Sequence[Stored], new: Sequence[Found]) -> dict[str, str]:
    """New id by old id, of documents with the same text; among several the one with the same file name."""
    by_text: dict[str, list[str]] = {}
    for old in gone:
        by_text.setdefault(old.sha256, []).append(old.external_id)
    chosen: dict[str, str] = {}
    used: set[str] = set()
    for by_name in (True, False):
        for one in new:
            olds = by_text.get(one.sha256, [])
            match = next((name for name in olds if not by_name or _name(name) == _name(one.external_id)), None)
            if match is not None and one.external_id not in used:
                olds.remove(match)
                chosen[match] = one.external_id
                used.add(one.external_id)
    return chosen


def _alike(gone: Sequence[Stored], new: Sequence[Found]) -> Iterator[tuple[float, str, str]]:
    """Share of common text of the pairs that have enough of it; a paragraph that many have tells nothing."""
    sizes = {one.external_id: sum(one.shares.values()) for one in gone}
    holders: dict[int, list[Stored]] = {}
    for old in gone:
        for key in old.shares:
            holders.setdefault(key, []).append(old)
    for one in new:
        common: Counter[str] = Counter()
        for key, size in one.shares.items():
            for old in holders.get(key, ())[:MANY]:
                common[old.external_id] += min(size, old.shares[key])
        for external_id, size in common.items():
            share = 2 * size / (sizes[external_id] + sum(one.shares.values()))
            if size >= SHORTEST and share >= ALIKE:
                yield share, external_id, one.external_id


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _is_from(source: str, paths: Sequence[str]) -> bool:
    """Whether a document's source is one of these files, a part of one (``archive.zip#name``), or in one of these folders."""
    return any(f"{source.partition('#')[0]}/".startswith(f"{path}/") for path in paths)


async def sync(
    folder: str | Path,
    *,
    store: PgStore,
    embedder: Embedder,
    collection: str,
    name: str | None = None,
    valid_from: datetime | None = None,
    id_from: str | None = None,
    max_bytes: int = MAX_BYTES,
    confirm: Callable[[SyncPlan], bool] | None = None,
    progress: Callable[[IngestEvent], None] | None = None,
) -> SyncReport:
    """Makes the collection have of this folder what the folder has, from ``valid_from`` (now when None) on.

    ``name``: of the folder, when its path may change; documents of other folders are never touched. ``confirm`` is asked
    before more than a fifth of its documents is retired. Raises InputError when it is no folder or the answer is no.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}: --sync takes folders only", param="paths")
    root = name or path.as_posix()
    target = await store.open_collection(collection, space=embedder.space, dimensions=embedder.dimensions)
    stored, taken = await _there(store, target, root, path, valid_from)
    with tempfile.TemporaryFile() as file:
        spool = _Spool(file, taken, root)
        await asyncio.to_thread(spool.fill, Loader([path], id_from, max_bytes))
        stored = await _with_shares(store, target, stored, spool.found, valid_from)
        unread = [_within(path, one) for one in [*spool.unread, *await asyncio.to_thread(closed_folders, path)]]
        plan = plan_sync(stored, spool.found, frozenset(taken), unread)
        if plan.is_drastic() and not (confirm and confirm(plan)):
            raise InputError(_drastic(plan, str(folder)))
        await store.rename(target, {one.before: one.after for one in plan.renamed})
        report = await ingest_documents(
            spool, store=store, embedder=embedder, collection=collection, progress=progress, valid_from=valid_from
        )
    await store.claim(target, [one.external_id for one in spool.found], root)
    restored = await _restore_ended(store, target, spool.found, valid_from)
    for external_id in plan.retired:
        await store.retire(collection, external_id, valid_from, and_later=valid_from is None)
    return SyncReport(report, plan.renamed, plan.retired, plan.kept, restored)


async def _there(
    store: PgStore, target: Collection, root: str, path: Path, at: datetime | None
) -> tuple[list[Stored], dict[str, str | None]]:
    """The folder's documents that hold, and the root of every document of the collection."""
    rows = await store.synced(target, root, path.as_posix(), at)
    taken = {row.external_id: row.root for row in rows}
    ours = [row for row in rows if row.is_ours and row.sha256]
    return [Stored(row.external_id, row.sha256, _within(path, row.source)) for row in ours], taken


def _within(folder: Path, file: str) -> str:
    return file.removeprefix(f"{folder.as_posix().rstrip('/')}/")


def closed_folders(path: Path) -> list[str]:
    """Folders below this one that cannot be listed: what is in them is unknown, not gone."""
    closed: list[OSError] = []
    for _ in os.walk(path, onerror=closed.append):
        pass
    return [Path(error.filename).as_posix() for error in closed]


async def _with_shares(
    store: PgStore, target: Collection, stored: Sequence[Stored], found: Sequence[Found], at: datetime | None
) -> list[Stored]:
    """What is gone, with what its text is compared by, when there is something new that it may have become."""
    present = {one.external_id for one in found}
    if not any(one.shares for one in found):
        return list(stored)
    full = []
    for one in stored:
        if one.external_id not in present:
            version = await store.get_version_text(target.name, one.external_id, as_of=at)
            one = Stored(one.external_id, one.sha256, one.source, shares_of(version.text))
        full.append(one)
    return full


async def _restore_ended(
    store: PgStore, target: Collection, found: Sequence[Found], at: datetime | None
) -> tuple[str, ...]:
    """A file that is back with the date that it states itself has begun before its end, which was a mistake then."""
    now = at or datetime.now(UTC)
    ids = [one.external_id for one in found if one.valid_from is not None and one.valid_from <= now]
    ended = await store.ended(target, ids, at)
    for row in ended:
        await store.withdraw(target.name, row.external_id, row.number)
    return tuple(row.external_id for row in ended)


def _drastic(plan: SyncPlan, folder: str) -> str:
    names = ", ".join(plan.retired[:3])
    return (
        f"{len(plan.retired)} of the {plan.stored} documents from {folder!r} are not there any more ({names}...), so "
        "nothing was changed. Is it the right folder, and complete? To retire them: the same command with --yes"
    )


class _Spool:
    """The folder's documents on disk between looking and ingesting: read once, and not held in memory."""

    def __init__(self, file: BinaryIO, taken: Mapping[str, str | None], root: str) -> None:
        self.found: list[Found] = []
        self.unread: list[str] = []
        self.read_bytes = 0
        self.total_bytes = 0
        self._file = file
        self._taken = taken
        self._root = root

    def fill(self, loader: Iterable[Document | LoadFailure]) -> None:
        """Reads everything; a document that another folder states is a failure."""
        for item in loader:
            if isinstance(item, Document) and self._taken.get(item.external_id, None) not in (None, self._root):
                item = LoadFailure(item.source, _other(item.external_id, self._taken[item.external_id] or ""))
            if isinstance(item, LoadFailure):
                self.unread.append(item.source.partition("#")[0])
            else:
                shares = {} if item.external_id in self._taken else shares_of(item.text)
                self.found.append(Found(item.external_id, text_sha256(item.text), item.valid_from, shares))
            values = {"is_document": isinstance(item, Document), **asdict(item)}
            self.total_bytes += self._file.write(json.dumps(values, default=str).encode() + b"\n")

    def __iter__(self) -> Iterator[Document | LoadFailure]:
        self._file.seek(0)
        for line in self._file:
            values = json.loads(line)
            self.read_bytes += len(line)
            yield _document(values) if values.pop("is_document") else LoadFailure(**values)


def _document(values: dict[str, Any]) -> Document:
    moment = values.pop("valid_from")
    pages, notes = tuple(values.pop("pages")), tuple(values.pop("notes"))
    return Document(valid_from=datetime.fromisoformat(moment) if moment else None, pages=pages, notes=notes, **values)


def _other(external_id: str, root: str) -> str:
    return (
        f"the document {external_id!r} is stated by the folder {root!r}. Has that folder moved here? Then name it: "
        f"--sync-name {root!r}. Else give the document another id"
    )
