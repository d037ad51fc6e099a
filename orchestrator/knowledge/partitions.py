"""Gives a large collection a partition with an HNSW index of its own, and takes it away again, while searches go on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from orchestrator.database import Database, Row, statement
from orchestrator.errors import DatabaseError, UnknownNameError

log = logging.getLogger(__name__)

# Comparing every vector costs 0.13 us a row, HNSW about 2 ms whatever the size: they meet here.
PROMOTE_FROM = 20_000  # chunks
DEMOTE_BELOW = 10_000  # far enough below that a collection does not go to and fro
MAX_DIMENSIONS = 4_000  # of an HNSW index on halfvec
ATTEMPTS = 8  # at a lock that a long search holds
HELD_BY_OTHERS = ("55P03", "40P01")  # lock timeout, deadlock
GRACE_S = 10.0  # for searches that began before a demotion


async def settle(database: Database, collection: str) -> Literal["promoted", "demoted"] | None:
    """Promotes or demotes the collection where its size asks for it; called after an ingest and by maintenance.

    Where the login may not change the schema, the collection stays exact: slower, never wrong.
    """
    try:
        found = await _find(database, collection)
        if found.partition is None and found.chunk_count >= PROMOTE_FROM:
            return "promoted" if await promote(database, collection) else None
        if found.partition is not None and found.chunk_count < DEMOTE_BELOW:
            return "demoted" if await demote(database, collection) else None
        if found.partition is not None and not found.has_index:  # another space serves now, or much was loaded
            await index_space(database, collection, found.embedding_space, found.dimensions)
        if found.partition is None and found.has_table:
            await drop(database, f"vectors_{found.id}")
    except DatabaseError as error:
        log.warning("the collection %s keeps its place: %s", collection, error.message)
    return None


async def promote(database: Database, collection: str) -> bool:
    """Moves the collection's vectors into a partition with HNSW; False when it has one, or is of too many dimensions.

    Writers of the collection wait for the last step only, a fraction of a second. Raises UnknownNameError.
    """
    found = await _find(database, collection)
    if found.partition is not None or found.dimensions > MAX_DIMENSIONS:
        return False
    await _step(database, "prepare-partition", collection_id=found.id)
    await index_space(database, collection, found.embedding_space, found.dimensions)
    await _step(database, "attach-partition", collection_id=found.id)
    async with database.ownership() as connection:
        await connection.execute(statement("refresh-statistics"))
    log.info("the collection %s has a partition of its own: %d chunks", collection, found.chunk_count)
    return True


async def index_space(database: Database, collection: str, space: str, dimensions: int) -> None:
    """Builds the HNSW index of one embedding space, before a promoted collection is switched to it."""
    found = await _find(database, collection)
    if found.has_table and dimensions <= MAX_DIMENSIONS:
        await _step(database, "index-partition", collection_id=found.id, space=space, dimensions=dimensions)


async def unindex(database: Database, collection: str) -> bool:
    """Takes the HNSW index away before much is loaded, for ``settle`` to build at the end; False when there is none.

    Searches compare every vector in between: slower, never wrong. Raises UnknownNameError.
    """
    found = await _find(database, collection)
    if found.partition is None or not found.has_index:
        return False
    try:
        await _step(database, "unindex-partition", collection_id=found.id, space=found.embedding_space)
    except DatabaseError as error:
        log.warning("the collection %s is loaded with its index in place: %s", collection, error.message)
        return False
    return True


async def demote(database: Database, collection: str) -> bool:
    """Moves the collection's vectors back into the shared partition; False when they are there. Raises UnknownNameError."""
    found = await _find(database, collection)
    row = await _step(database, "detach-partition", collection_id=found.id)
    if row.partition is None:
        return False
    if not await drop(database, row.partition):
        log.info("%s is still read by an older transaction; the next maintenance drops it", row.partition)
    return True


async def drop(database: Database, partition: str) -> bool:
    """Removes the table of a demoted or removed collection; False when a transaction older than this call stays open."""
    older = (await _step(database, "open-transactions")).older
    for _ in range(int(GRACE_S / 0.05)):
        if (await _step(database, "drop-partition", partition=partition, older=older)).is_dropped:
            return True
        await asyncio.sleep(0.05)
    return False


async def _find(database: Database, collection: str) -> Row:
    found = await database.fetch_one(statement("partition-of"), name=collection)
    if found is None:
        raise UnknownNameError(f"there is no collection {collection!r}", param="collection")
    return found


async def _step(database: Database, name: str, **values: Any) -> Row:
    """One step in a transaction with the rights to change the schema; tried again while a lock is held by others."""
    for attempt in range(ATTEMPTS):
        try:
            async with database.ownership() as connection:
                await connection.execute(statement("limit-partition-wait"))
                return await (await connection.execute(statement(name), values)).fetchone()
        except DatabaseError as error:
            if attempt == ATTEMPTS - 1 or getattr(error.__cause__, "sqlstate", None) not in HELD_BY_OTHERS:
                raise
            await asyncio.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")
