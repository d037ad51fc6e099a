"""Proves that a collection's index is what its registry says: texts, spans, hashes, vectors, postings, counts; and mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.database import Connection, Database, Row, copy_rows, statement
from orchestrator.errors import InputError
from orchestrator.knowledge.lexical import add_postings, posting_values
from orchestrator.knowledge.records import Collection
from orchestrator.knowledge.vectors import Vectors
from orchestrator.protocols import Embedder

PAGE = 500  # chunks whose lexemes are made anew in one statement
MAX_EXAMPLES = 5

# Check to what a fault of it means. Those of the registry itself cannot be mended: the original is the only source.
REGISTRY = {
    "texts": "the stored text of a version is not the one that was hashed",
    "spans": "a chunk is not the text at its span",
    "chunk-hashes": "a chunk is not the one that was hashed",
}
INDEX = {
    "orphaned-chunks": "a chunk belongs to no version",
    "validity": "a version does not end where the next one begins",
    "live": "a chunk is not found at the times at which a version with it is valid",
    "vectors": "a chunk has no vector of the collection's space, or one of another length",
    "orphaned-vectors": "a vector belongs to no chunk",
    "postings": "a chunk's postings are not the lexemes of its text",
    "orphaned-postings": "a posting belongs to no term",
    "frequencies": "a term's document frequency is not the number of chunks that hold it",
    "counts": "the collection's number of chunks or terms is wrong",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What one check found: how many, and a few names (documents, terms or ids)."""

    check: str
    meaning: str
    count: int
    examples: tuple[str, ...]

    @property
    def is_mendable(self) -> bool:
        """True when the index can be made anew from what is stored."""
        return self.check in INDEX


@dataclass(frozen=True, slots=True)
class Verification:
    """The faults of a collection; ``mended`` those that were there before."""

    collection: str
    chunks: int
    faults: tuple[Fault, ...] = ()
    mended: tuple[Fault, ...] = ()


@dataclass(slots=True)
class _Run:
    connection: Connection
    collection: Collection
    progress: Callable[[int, int], None] | None
    rows: dict[str, list[Row]] = field(default_factory=dict)
    unposted: dict[str, list[Row]] = field(default_factory=dict)  # language to chunks whose postings are wrong

    async def all(self, name: str, **values: Any) -> list[Row]:
        values = {"collection_id": self.collection.id, **values}
        return await (await self.connection.execute(statement(name), values)).fetchall()


async def verify(
    database: Database,
    collection: Collection,
    *,
    mend: bool = False,
    embedder: Embedder | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Checks the collection in one transaction, in which no writer changes it; with ``mend`` also puts the index right.

    Raises InputError when vectors are missing and no embedder of the collection's space was given to make them.
    """
    async with database.transaction() as connection:
        await connection.execute(statement("lock-collection"), {"collection_id": collection.id})
        found = await _check(connection, collection, progress)
        if mend and any(fault.is_mendable for fault in _faults(found)):
            before = _faults(found)
            await _mend(found, embedder)
            found = await _check(connection, collection, progress)
            left = _faults(found)
            names = {fault.check for fault in left}
            mended = tuple(fault for fault in before if fault.check not in names)
            return Verification(collection.name, collection.chunk_count, left, mended)
        return Verification(collection.name, collection.chunk_count, _faults(found))


def _faults(run: _Run) -> tuple[Fault, ...]:
    meanings = {**REGISTRY, **INDEX}
    return tuple(
        Fault(
            name, meanings[name], len(run.rows[name]), tuple(dict.fromkeys(map(_name, run.rows[name])))[:MAX_EXAMPLES]
        )
        for name in meanings
        if run.rows.get(name)
    )


def _name(row: Row) -> str:
    values = row._asdict()
    return str(values.get("external_id") or values.get("term") or next(iter(values.values())))


async def _check(connection: Connection, collection: Collection, progress: Callable[[int, int], None] | None) -> _Run:
    run = _Run(connection, collection, progress)
    for name in (*REGISTRY, *INDEX):
        if name != "postings":
            run.rows[name] = await run.all(f"verify-{name}")
    run.rows["postings"] = await _wrong_postings(run)
    return run


async def _wrong_postings(run: _Run) -> list[Row]:
    """Chunks whose lexemes, made anew, are not what is in the postings; page by page, so in bounded memory."""
    wrong: list[Row] = []
    after, seen = 0, 0
    while page := await run.all("page-of-chunks", after=after, limit=PAGE):
        for language in {row.language or "english" for row in page}:
            rows = [row for row in page if (row.language or "english") == language]
            values = posting_values(
                run.collection.id, language, [row.id for row in rows], [_indexed(row) for row in rows]
            )
            bad = {row.chunk_id for row in await run.all("verify-postings", **values)}
            of_language = [row for row in rows if row.id in bad]
            run.unposted.setdefault(language, []).extend(of_language)
            wrong += of_language
        after, seen = page[-1].id, seen + len(page)
        if run.progress:
            run.progress(seen, max(seen, run.collection.chunk_count))
    return wrong


async def _mend(run: _Run, embedder: Embedder | None) -> None:
    """Makes the index anew where it was wrong; the caller holds the collection's lock."""
    documents = {"collection_id": run.collection.id}
    if run.rows["validity"]:
        await run.connection.execute(statement("mend-validity"), documents)
    await run.connection.execute(statement("remove-orphaned-chunks"), documents)
    await run.connection.execute(statement("mend-live"), documents)
    await run.connection.execute(statement("remove-orphaned-postings"), documents)
    await run.connection.execute(statement("remove-orphaned-vectors"), documents)
    for language, rows in run.unposted.items():
        await run.connection.execute(statement("remove-postings"), {"chunk_ids": [row.id for row in rows]})
        await add_postings(
            run.connection, run.collection.id, language, [row.id for row in rows], [_indexed(row) for row in rows]
        )
    await run.connection.execute(statement("mend-frequencies"), documents)
    await run.connection.execute(statement("mend-counts"), documents)
    missing = [row.id for row in run.rows["vectors"]]
    if missing:
        await _embed(run, missing, embedder)


async def _embed(run: _Run, chunk_ids: Sequence[int], embedder: Embedder | None) -> None:
    space = run.collection.space
    if embedder is None or embedder.space != space:
        raise InputError(
            f"{len(chunk_ids)} chunks have no vector of {space}; set ORCHESTRATOR_EMBEDDER to the embedder that made the "
            "collection and run `orchestrator documents verify --mend` again"
        )
    values = {"collection_id": run.collection.id, "space": space, "chunk_ids": list(chunk_ids)}
    await run.connection.execute(statement("remove-vectors"), values)
    rows = await run.all("chunks-by-id", chunk_ids=list(chunk_ids))
    vectors = Vectors(embedder, run.collection.dimensions)
    packed = await vectors.embed({str(row.id): _indexed(row) for row in rows})
    made = [(int(name), one.embedding, one.tokens) for name, one in packed.items()]
    await run.connection.execute(statement("make-incoming"))
    await copy_rows(run.connection, statement("copy-vectors"), made, ("int8", "bytea", "bytea"))
    await run.connection.execute(statement("move-vectors-of-space"), values)


def _indexed(row: Row) -> str:
    return f"{row.context}\n\n{row.text}" if row.context else str(row.text)
