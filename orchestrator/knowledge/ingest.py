"""Brings files into a collection: load, split, embed, store. A killed run that is run again ends as if never killed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Literal

from orchestrator.errors import InputError
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.records import Collection, Known, Written
from orchestrator.knowledge.sources.decode import clean_text
from orchestrator.knowledge.sources.load import MAX_BYTES, Fetch, Loader, LoadFailure
from orchestrator.knowledge.split import split
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.vectors import Vectors
from orchestrator.knowledge.versions import place_version
from orchestrator.knowledge.write import Draft, Packed, is_latest, text_sha256
from orchestrator.protocols import Embedder
from orchestrator.types import Document

log = logging.getLogger(__name__)

BATCH_CHARACTERS = 100_000  # text that is embedded together, about 128 chunks
BATCH_DOCUMENTS = 256
ANALYZE_FROM = 1_000  # chunks after which the planner's statistics are refreshed at once, not when autovacuum comes
Gate = Callable[[Sequence[Document]], AsyncGenerator[list[Document]]]


@dataclass(frozen=True, slots=True)
class IngestEvent:
    """Progress: what became of one document (``embedding``: chunks of this batch so far), and the bytes read."""

    status: Literal["added", "updated", "unchanged", "failed", "skipped", "embedding"]
    name: str
    chunks: int = 0
    read_bytes: int = 0
    total_bytes: int = 0
    reason: str = ""
    failure: LoadFailure | None = None


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did. ``failures``: what did not become a document, and why; all others are in the store."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    chunks_new: int = 0
    chunks_shared: int = 0
    seconds: float = 0.0
    failures: tuple[LoadFailure, ...] = ()

    @property
    def failed(self) -> int:
        """Number of documents that could not be ingested."""
        return len(self.failures)


@dataclass(slots=True)
class _Run:
    """The state of one ingest."""

    store: PgStore
    vectors: Vectors
    collection: Collection
    loader: Iterable[Document | LoadFailure]
    began: datetime
    gate: Gate
    progress: Callable[[IngestEvent], None] | None
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[LoadFailure] = field(default_factory=list)
    is_expected: bool = False  # the index was taken away, or there was none to take

    @property
    def read(self) -> tuple[int, int]:
        """Bytes that were read, and bytes in all; zeros when the source does not say."""
        return getattr(self.loader, "read_bytes", 0), getattr(self.loader, "total_bytes", 0)

    def tell(self, event: IngestEvent) -> None:
        if self.progress:
            read, total = self.read
            self.progress(replace(event, read_bytes=read, total_bytes=total))

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def done(self, document: Document, written: Written) -> None:
        self.count(written.status)
        self.count("chunks_new", written.chunks_new)
        self.count("chunks_shared", written.chunks_shared)
        self.tell(IngestEvent(written.status, document.external_id, written.chunks_new + written.chunks_shared))

    def fail(self, failure: LoadFailure) -> None:
        if failure.skipped:
            self.count("skipped")
        else:
            self.failures.append(failure)
        where = failure.source if failure.line is None else f"{failure.source}:{failure.line}"
        status: Literal["skipped", "failed"] = "skipped" if failure.skipped else "failed"
        self.tell(IngestEvent(status, where, reason=failure.reason, failure=failure))

    def refuse(self, document: Document, reason: str) -> None:
        self.fail(LoadFailure(document.source or document.external_id, f"{document.external_id}: {reason}"))


@dataclass(frozen=True, slots=True)
class _Ready:
    """Versions with everything that is to be written."""

    drafts: list[Draft]
    vectors: dict[str, Packed]


async def ingest(
    paths: Sequence[str | Path],
    *,
    store: PgStore,
    embedder: Embedder,
    collection: str,
    progress: Callable[[IngestEvent], None] | None = None,
    valid_from: datetime | None = None,
    id_from: str | None = None,
    max_bytes: int = MAX_BYTES,
    language: str | None = None,
    fetch: Fetch | None = None,
    began: datetime | None = None,
    gate: Gate | None = None,
) -> IngestReport:
    """Ingests files and folders into the collection, which is made when it does not exist.

    ``valid_from``: for documents that do not state their own. ``fetch``: reads URLs, which are refused without. Raises
    InputError when a path does not exist or the collection holds vectors of another embedder; what is wrong with single
    documents is in the report.
    """
    loader = Loader(paths, id_from, max_bytes, fetch)
    return await ingest_documents(
        loader,
        store=store,
        embedder=embedder,
        collection=collection,
        progress=progress,
        valid_from=valid_from,
        language=language,
        began=began,
        gate=gate,
    )


async def ingest_documents(
    documents: Iterable[Document | LoadFailure],
    *,
    store: PgStore,
    embedder: Embedder,
    collection: str,
    progress: Callable[[IngestEvent], None] | None = None,
    valid_from: datetime | None = None,
    language: str | None = None,
    began: datetime | None = None,
    gate: Gate | None = None,
) -> IngestReport:
    """Ingests documents that the caller made; otherwise as ``ingest``. The iterable is consumed lazily, in a thread.

    ``began``: when the caller was asked for it, by the database's clock. A document that was deleted after that is not
    brought back. ``gate``: gives the changed documents in groups that are worked on together, and may keep some back.
    """
    start = time.monotonic()
    target = await store.open_collection(
        collection, space=embedder.space, dimensions=embedder.dimensions, language=language
    )
    vectors = Vectors(embedder, target.dimensions)
    run = _Run(store, vectors, target, documents, began or await store.clock(), gate or _together, progress)
    await _run_all(run, iter(documents), valid_from)
    if run.counts.get("chunks_new", 0) >= ANALYZE_FROM:
        await store.refresh_statistics()
    # Also after much that was there already: a load that was killed left its collection without the index.
    if sum(run.counts.get(name, 0) for name in ("chunks_new", "unchanged")) >= ANALYZE_FROM:
        await store.settle(collection)
    seconds = time.monotonic() - start
    report = IngestReport(**run.counts, seconds=seconds, failures=tuple(run.failures))
    log.info("ingest into %s: %s, %d failed, %.1f s", target.name, run.counts, report.failed, seconds)
    return report


def is_large_load(stored: int, new: int, read: int, total: int) -> bool:
    """Whether a load that brought ``new`` chunks out of ``read`` of its ``total`` bytes brings more than is stored.

    Then the index is built after it: to put a row into one costs 2.7 ms of CPU, to build it 1.25 ms a row (384 dimensions).
    """
    expected = new * max(total / read, 1) if read else new
    return new >= ANALYZE_FROM and expected > stored


async def _run_all(run: _Run, source: Iterator[Document | LoadFailure], valid_from: datetime | None) -> None:
    """While one batch is embedded, the next one is read and the last one is written: three are in memory, never more."""

    def read() -> list[Document | LoadFailure]:
        return [_prepared(item, valid_from) for item in _batch(source)]

    reading = asyncio.create_task(asyncio.to_thread(read))
    writing: asyncio.Task[None] | None = None
    recent: dict[str, Packed] = {}  # of the batch that is being written: the next one may hold the same texts
    try:
        while batch := await reading:
            reading = asyncio.create_task(asyncio.to_thread(read))
            for item in batch:
                if isinstance(item, LoadFailure):
                    run.fail(item)
            failpoint("loaded")
            changed, known = await _changed(run, [item for item in batch if isinstance(item, Document)])
            async with aclosing(run.gate(changed)) as groups:
                async for group in groups:
                    ready = await _embed(run, group, known, recent)
                    failpoint("embedded")
                    if writing:
                        await writing
                    writing = asyncio.create_task(_write(run, ready))
                    recent = ready.vectors
    finally:
        # What was embedded is paid for: it is stored even when the next batch fails or the run is cancelled.
        if writing:
            await writing
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # seen: nobody is to be told of it a second time


def _batch(source: Iterator[Document | LoadFailure]) -> Iterator[Document | LoadFailure]:
    characters = 0
    for item in islice(source, BATCH_DOCUMENTS):
        failpoint("parsed")
        yield item
        characters += len(item.text) if isinstance(item, Document) else 0
        if characters >= BATCH_CHARACTERS:
            return


def _prepared(document: Document | LoadFailure, valid_from: datetime | None) -> Document | LoadFailure:
    """The document as it can be stored, whoever made it."""
    if isinstance(document, LoadFailure):
        return document
    text, notes = clean_text(document.text)
    if text != document.text:
        document = replace(document, text=text, notes=(*document.notes, *notes))
    return replace(document, valid_from=valid_from) if document.valid_from is None and valid_from else document


async def _together(documents: Sequence[Document]) -> AsyncGenerator[list[Document]]:
    if documents:
        yield list(documents)


async def _changed(run: _Run, documents: list[Document]) -> tuple[list[Document], Mapping[str, Known]]:
    """What is to be written of these documents, and what is known of them; those that are there already are done."""
    known = await run.store.known(run.collection, [document.external_id for document in documents])
    changed = []
    for document in documents:
        if _is_known(document, known[document.external_id]):
            run.done(document, Written("unchanged"))
        else:
            changed.append(document)
    return changed, known


async def _embed(
    run: _Run, documents: list[Document], known: Mapping[str, Known], recent: Mapping[str, Packed]
) -> _Ready:
    chunks = await asyncio.to_thread(lambda: [split(document) for document in documents])
    failpoint("split")
    drafts = []
    texts: dict[str, str] = {}
    for document, pieces in zip(documents, chunks, strict=True):
        if not pieces:
            run.refuse(document, "there is no text in the document")
            continue
        drafts.append(Draft(document, pieces))
        held = known[document.external_id].held
        texts.update({chunk.sha256: chunk.indexed for chunk in pieces if chunk.sha256 not in held})
    vectors = {name: recent[name] for name in texts if name in recent}
    wanted = {name: text for name, text in texts.items() if name not in recent}
    new = await run.vectors.embed(wanted, lambda done: run.tell(IngestEvent("embedding", "", done)))
    return _Ready(drafts, {**vectors, **new})


def _is_known(document: Document, known: Known) -> bool:
    place = place_version(
        known.versions,
        sha256=text_sha256(document.text),
        title=document.title,
        source=document.source,
        valid_from=document.valid_from,
        now=known.now,
    )
    if place is not None:
        return False
    stored = (known.title, known.source, known.metadata)
    return stored == (document.title, document.source, dict(document.metadata)) or not is_latest(
        known.versions, document
    )


async def _write(run: _Run, ready: _Ready) -> None:
    drafts = ready.drafts
    while drafts:
        drafts = [draft for draft in drafts if not _is_refused(run, draft)]
        written = await _write_or_halve(run, drafts, ready.vectors)
        lacking = {name for one in written.values() for name in one.missing}
        for place, one in written.items():
            if not one.missing:
                run.done(drafts[place].document, one)
        if not run.is_expected and is_large_load(
            run.collection.chunk_count, run.counts.get("chunks_new", 0), *run.read
        ):
            run.is_expected = True
            await run.store.expect_load(run.collection.name)
        drafts = [drafts[place] for place, one in written.items() if one.missing]
        texts = {c.sha256: c.indexed for draft in drafts for c in draft.chunks if c.sha256 in lacking}
        ready.vectors.update(await run.vectors.embed(texts))


def _is_refused(run: _Run, draft: Draft) -> bool:
    reason = next((run.vectors.refused[c.sha256] for c in draft.chunks if c.sha256 in run.vectors.refused), None)
    if reason:
        run.refuse(draft.document, f"a part of it cannot be embedded, so it was not stored: {reason}")
    return reason is not None


async def _write_or_halve(run: _Run, drafts: Sequence[Draft], vectors: Mapping[str, Packed]) -> dict[int, Written]:
    """What became of each draft, by its place. A batch that PostgreSQL refuses is halved until the one at fault is found."""
    try:
        written = await run.store.write_versions(run.collection, drafts, vectors, run.began)
        return dict(enumerate(written))
    except InputError as error:
        if len(drafts) == 1:
            run.refuse(drafts[0].document, error.message)
            return {}
    half = len(drafts) // 2
    left = await _write_or_halve(run, drafts[:half], vectors)
    right = await _write_or_halve(run, drafts[half:], vectors)
    return {**left, **{place + half: one for place, one in right.items()}}
