"""Reads what the knowledge layer holds of an item's gold documents: every version, when it is true, and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.database import Database, statement
from orchestrator.evaluation.gold import Held, Piece
from orchestrator.evaluation.items import Item
from orchestrator.knowledge.store import PgStore


class Archive(Protocol):
    """What is stored of the documents that should answer an item, found or not."""

    async def versions(self, item: Item) -> tuple[Held, ...]:
        """Every version of the item's gold documents, deleted and corrected ones too; ``holds`` is as of the item's time."""
        ...


class PgArchive:
    """The documents of one collection in PostgreSQL."""

    def __init__(self, database: Database, collection: str, tenant: str = "default") -> None:
        self._database = database.of(tenant)
        self._collection = collection
        self._store = PgStore(database, tenant)
        self._id: int | None = None

    async def versions(self, item: Item) -> tuple[Held, ...]:
        """One round trip an item. Raises UnknownNameError when there is no such collection."""
        if not item.gold:
            return ()
        if self._id is None:
            self._id = (await self._store.collection(self._collection)).id
        names = sorted({gold.external_id for gold in item.gold})
        values = {"collection_id": self._id, "external_ids": names, "as_of": item.as_of}
        rows = await self._database.fetch(statement("held-versions"), **values)
        return tuple(
            Held(
                row.external_id, row.number, row.text, row.counts, row.holds, row.document_id, row.title, row.sha256,
                row.valid_from, row.valid_to, _pieces(row.chunk_ids, row.starts, row.ends, row.paragraphs),
            )
            for row in rows
        )  # fmt: skip


class MemoryArchive:
    """Versions in a list, for tests: all are given that are of a document that the item names."""

    def __init__(self, versions: Sequence[Held]) -> None:
        self.held = list(versions)

    async def versions(self, item: Item) -> tuple[Held, ...]:
        """Those of the item's gold documents; the item's time is not looked at."""
        names = {gold.external_id for gold in item.gold}
        return tuple(each for each in self.held if each.external_id in names)


def _pieces(
    ids: Sequence[int], starts: Sequence[int], ends: Sequence[int], paragraphs: Sequence[int]
) -> tuple[Piece, ...]:
    return tuple(
        Piece(id, (start, end), paragraph)
        for id, start, end, paragraph in zip(ids, starts, ends, paragraphs, strict=True)
    )
