"""Brings files into a collection: load, split, embed, store. A killed run that is run again ends as if never killed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Literal

from orchestrator.errors import EngineUnavailableError, InputError, OrchestratorError
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.decode import clean_text
from orchestrator.knowledge.load import MAX_BYTES, Loader, LoadFailure
from orchestrator.knowledge.records import Collection, Known, Written
from orchestrator.knowledge.split import split
from orchestrator.knowledge.store import PgStore, is_latest, pack_vector, text_sha256
from orchestrator.knowledge.versions import place_version
from orchestrator.protocols import Embedder
from orchestrator.types import Chunk, Document

log = logging.getLogger(__name__)

BATCH_CHARACTERS = 100_000  # text that is embedded together, about 128 chunks
BATCH_DOCUMENTS = 256
ANALYZE_FROM = 1_000  # new chunks after which the planner's statistics are refreshed at once, not when autovacuum comes
EMBED_TEXTS = 256  # chunks of one call: progress shows and memory is bounded for documents of tens of megabytes


@dataclass(frozen=True, slots=True)
class IngestEvent:
    """Progress: what became of one document (``embedding``: chunks of this batch so far), and the bytes read."""

    status: Literal["added", "updated", "unchanged", "failed", "skipped", "embedding"]
    name: str
    chunks: int = 0
    read_bytes: int = 0
    total_bytes: int = 0
    reason: str = ""


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
    embedder: Embedder
    collection: Collection
    loader: Iterable[Document | LoadFailure]
    progress: Callable[[IngestEvent], None] | None
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[LoadFailure] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # chunk hash to the reason why it has no vector

    def tell(self, event: IngestEvent) -> None:
        if self.progress:
            read, total = getattr(self.loader, "read_bytes", 0), getattr(self.loader, "total_bytes", 0)
            self.progress(replace(event, read_bytes=read, total_bytes=total))

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def fail(self, failure: LoadFailure) -> None:
        if failure.skipped:
            self.count("skipped")
        else:
            self.failures.append(failure)
        where = failure.source if failure.line is None else f"{failure.source}:{failure.line}"
        self.tell(IngestEvent("skipped" if failure.skipped else "failed", where, reason=failure.reason))


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
) -> IngestReport:
    """Ingests files and folders into the collection, which is made when it does not exist.

    ``valid_from``: for documents that do not state their own. Raises InputError when a path does not exist or the
    collection holds vectors of another embedder; what is wrong with single documents is in the report.
    """
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        raise InputError(f"there is no file or folder {missing[0]!r}", param="paths")
    loader = Loader(paths, id_from, max_bytes)
    return await ingest_documents(
        loader,
        store=store,
        embedder=embedder,
        collection=collection,
        progress=progress,
        valid_from=valid_from,
        language=language,
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
) -> IngestReport:
    """Ingests documents that the caller made; otherwise as ``ingest``. The iterable is consumed lazily, in a thread."""
    began = time.monotonic()
    target = await store.open_collection(
        collection, space=embedder.space, dimensions=embedder.dimensions, language=language
    )
    run = _Run(store, embedder, target, documents, progress)
    source = iter(documents)
    while batch := await asyncio.to_thread(lambda: list(_batch(source))):
        for item in batch:
            if isinstance(item, LoadFailure):
                run.fail(item)
        failpoint("loaded")
        await _ingest_batch(run, [_prepared(item, valid_from) for item in batch if isinstance(item, Document)])
    if run.counts.get("chunks_new", 0) >= ANALYZE_FROM:
        await store.refresh_statistics()
    seconds = time.monotonic() - began
    report = IngestReport(**run.counts, seconds=seconds, failures=tuple(run.failures))
    log.info("ingest into %s: %s, %d failed, %.1f s", target.name, run.counts, report.failed, seconds)
    return report


def _batch(source: Iterator[Document | LoadFailure]) -> Iterator[Document | LoadFailure]:
    characters = 0
    for item in islice(source, BATCH_DOCUMENTS):
        yield item
        characters += len(item.text) if isinstance(item, Document) else 0
        if characters >= BATCH_CHARACTERS:
            return


def _prepared(document: Document, valid_from: datetime | None) -> Document:
    """The document as it can be stored, whoever made it."""
    text, notes = clean_text(document.text)
    if text != document.text:
        document = replace(document, text=text, notes=(*document.notes, *notes))
    return replace(document, valid_from=valid_from) if document.valid_from is None and valid_from else document


async def _ingest_batch(run: _Run, documents: list[Document]) -> None:
    known = await run.store.known(run.collection, [document.external_id for document in documents])
    changed = []
    for document in documents:
        if _is_known(document, known[document.external_id]):
            _done(run, document, Written("unchanged"))
        else:
            changed.append(document)
    chunks = await asyncio.to_thread(lambda: [split(document) for document in changed])
    failpoint("split")
    texts = {
        chunk.sha256: chunk.indexed
        for document, pieces in zip(changed, chunks, strict=True)
        for chunk in pieces
        if chunk.sha256 not in known[document.external_id].held
    }
    vectors = await _embed(run, texts)
    failpoint("embedded")
    for document, pieces in zip(changed, chunks, strict=True):
        try:
            await _write(run, document, pieces, vectors)
        except InputError as error:
            run.fail(LoadFailure(document.source or document.external_id, f"{document.external_id}: {error.message}"))


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


async def _write(run: _Run, document: Document, chunks: Sequence[Chunk], vectors: Mapping[str, bytes]) -> None:
    if not chunks:
        raise InputError("there is no text in the document")
    written = await run.store.write_version(run.collection, document, chunks, vectors)
    while written.missing:
        reason = next((run.refused[sha256] for sha256 in written.missing if sha256 in run.refused), None)
        if reason:
            raise InputError(f"a part of it cannot be embedded, so it was not stored: {reason}")
        texts = {chunk.sha256: chunk.indexed for chunk in chunks if chunk.sha256 in written.missing}
        vectors = {**vectors, **await _embed(run, texts)}
        written = await run.store.write_version(run.collection, document, chunks, vectors)
    _done(run, document, written)


def _done(run: _Run, document: Document, written: Written) -> None:
    run.count(written.status)
    run.count("chunks_new", written.chunks_new)
    run.count("chunks_shared", written.chunks_shared)
    run.tell(IngestEvent(written.status, document.external_id, written.chunks_new + written.chunks_shared))


async def _embed(run: _Run, texts: Mapping[str, str]) -> dict[str, bytes]:
    """Packed vectors by chunk hash; a chunk that cannot be embedded goes to ``run.refused``, its neighbours do not."""
    names = list(texts)
    packed: dict[str, bytes] = {}
    for first in range(0, len(names), EMBED_TEXTS):
        packed.update(await _embed_part(run, names[first : first + EMBED_TEXTS], texts))
        run.tell(IngestEvent("embedding", "", len(packed)))
    return packed


async def _embed_part(run: _Run, names: Sequence[str], texts: Mapping[str, str]) -> dict[str, bytes]:
    try:
        vectors = await run.embedder.embed([texts[name] for name in names])
        if len(vectors) != len(names) or any(len(vector) != run.collection.dimensions for vector in vectors):
            raise InputError("the embedder gave vectors of another number or length than it says")
        return {name: pack_vector(vector) for name, vector in zip(names, vectors, strict=True)}
    except EngineUnavailableError:
        raise  # the server is down: every other document would fail as well
    except OrchestratorError as error:
        if len(names) == 1:
            run.refused[names[0]] = error.message
            return {}
        half = len(names) // 2
        left = await _embed_part(run, names[:half], texts)
        return {**left, **await _embed_part(run, names[half:], texts)}
