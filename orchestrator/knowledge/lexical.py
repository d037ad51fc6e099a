"""Keeps the postings that BM25 is computed from: lexemes and frequencies per chunk, and counts over a collection.

Lexemes are made by the text search configuration of the collection, for chunks and questions alike. Invariant: a chunk
has postings, and is counted, exactly while a version that counts holds it (``chunks.live`` is not empty).
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.database import Connection, statement

BATCH = 1_000  # chunks of one statement: bounds its memory for documents of tens of megabytes


async def add_postings(
    connection: Connection, collection_id: int, chunk_ids: Sequence[int], texts: Sequence[str]
) -> None:
    """Adds the postings of chunks that have none; the caller holds the collection's lock."""
    for first in range(0, len(chunk_ids), BATCH):
        values = {
            "collection_id": collection_id,
            "chunk_ids": list(chunk_ids[first : first + BATCH]),
            "texts": list(texts[first : first + BATCH]),
        }
        await connection.execute(statement("add-postings"), values)


async def remove_postings(connection: Connection, collection_id: int, chunk_ids: Sequence[int]) -> None:
    """Removes postings and vectors of chunks that are never found again; the caller holds the collection's lock."""
    if chunk_ids:
        await connection.execute(
            statement("remove-postings"), {"collection_id": collection_id, "chunk_ids": list(chunk_ids)}
        )
        await connection.execute(statement("remove-unused-terms"), {"collection_id": collection_id})
