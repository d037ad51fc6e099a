"""Erases documents: gone from search at once, from the relation files after ``purge``, with a receipt; never back by itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.database import Connection, Database, Row, statement
from orchestrator.errors import UnknownNameError
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.lexical import count_chunks
from orchestrator.knowledge.records import Collection

# Every table that holds words or vectors of documents. A plain VACUUM leaves deleted rows in the heap (measured).
TABLES = ("documents", "versions", "chunks", "version_chunks", "terms", "postings")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was erased, without a word of it: hashes (hex) of its names, past ones too, and of the texts of its versions."""

    id: int
    document_id: str
    name_sha256s: tuple[str, ...]
    text_sha256s: tuple[str, ...]
    chunks: int
    erased_at: datetime
    purged_at: datetime | None


async def erase(database: Database, collection: Collection, external_id: str) -> Receipt:
    """Removes a document with its whole history; when it returns no search finds any of it. Raises UnknownNameError.

    The name stays refused until ``permit``: neither a folder that is read again nor a job that was under way brings it back.
    """
    async with database.transaction() as connection:
        await connection.execute(statement("lock-collection"), {"collection_id": collection.id})
        names = {"collection_id": collection.id, "external_id": external_id}
        row = await (await connection.execute(statement("receipt-of-document"), names)).fetchone()
        if row is None:
            raise UnknownNameError(
                f"there is no document {external_id!r} in the collection {collection.name!r}. "
                "`orchestrator documents list --deleted` shows what there is.",
                param="document",
            )
        await _count_out(connection, collection, row.document_id)
        await connection.execute(statement("erase-document"), names)
        await connection.execute(statement("remove-unused-terms"), {"collection_id": collection.id})
        failpoint("erased")
    return _receipt(row)


async def _count_out(connection: Connection, collection: Collection, document_id: str) -> None:
    found = await connection.execute(statement("counted-chunks"), {"document_id": document_id})
    await count_chunks(connection, collection.id, [row.id for row in await found.fetchall()], -1)


async def purge(database: Database) -> None:
    """Rewrites the tables, so that no relation file holds what was erased; they cannot be read meanwhile.

    VACUUM FULL asks for the rights of the tables' owner. The write-ahead log and backups keep old pages until they are
    recycled: that is the database administrator's retention.
    """
    now = (await database.fetch(statement("database-now")))[0].now
    partitions = [row.name for row in await database.fetch(statement("vector-partitions"))]
    await database.vacuum_full((*TABLES, *partitions))
    async with database.transaction() as connection:
        await connection.execute(statement("mark-purged"), {"before": now})


async def receipts(database: Database, collection: Collection) -> list[Receipt]:
    """The receipts of a collection, oldest first."""
    rows = await database.fetch(statement("list-erasures"), collection_id=collection.id)
    return [_receipt(row) for row in rows]


async def permit(database: Database, collection: Collection, external_id: str) -> None:
    """Lets a document of that name be ingested again. Raises UnknownNameError when none was erased."""
    values = {"collection_id": collection.id, "external_id": external_id}
    if not await database.fetch(statement("permit-erased"), **values):
        raise UnknownNameError(f"no document {external_id!r} was erased from {collection.name!r}", param="document")


def _receipt(row: Row) -> Receipt:
    names, texts = tuple(row.name_sha256s), tuple(row.text_sha256s)
    return Receipt(row.id, row.document_id, names, texts, row.chunks, row.erased_at, row.purged_at)
