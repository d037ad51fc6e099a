"""Keeps documents in PostgreSQL: versions in time, their shared chunks, vectors, postings; one transaction each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pgvector import HalfVector

from orchestrator.database import Connection, Database, Json, Row, statement
from orchestrator.errors import InputError, OtherSpaceError, UnknownNameError
from orchestrator.knowledge import timeline
from orchestrator.knowledge.changes import compare_versions, mark_changes
from orchestrator.knowledge.erase import Receipt, erase
from orchestrator.knowledge.partitions import settle, unindex
from orchestrator.knowledge.records import (
    Collection,
    CollectionStats,
    DocumentInfo,
    Known,
    Moved,
    VersionDiff,
    VersionInfo,
    VersionText,
    Written,
)
from orchestrator.knowledge.search import IndexRecall, RecallSample, search_passages
from orchestrator.knowledge.write import Draft, Packed, versions_of, write_versions
from orchestrator.types import Citation, Passage, SearchRequest


class PgStore:
    """Documents of one tenant. ``space``: the embedder's; a collection of another space is then refused in search.

    ``sample``: measures the recall of HNSW by some of the searches.
    """

    def __init__(
        self,
        database: Database,
        tenant: str = "default",
        space: str | None = None,
        sample: RecallSample | None = None,
    ) -> None:
        self._database = database.of(tenant)
        self._tenant = tenant
        self._space = space
        self._sample = sample

    def of(self, tenant: str) -> PgStore:
        """The same store for another tenant."""
        return PgStore(self._database, tenant, self._space, self._sample)

    # collections

    async def open_collection(
        self, name: str, *, space: str, dimensions: int, language: str | None = None
    ) -> Collection:
        """The collection, made when it does not exist; without ``language`` each document's own is detected.

        Raises InputError when its vectors are of another space.
        """
        values = {"name": name, "space": space, "dimensions": dimensions, "language": language}
        async with self._database.transaction() as connection:
            await connection.execute(statement("make-collection"), values)
        found = await self.collection(name)
        _refuse_other_space(found, space, dimensions)
        return found

    async def collection(self, name: str) -> Collection:
        """The collection of that name. Raises UnknownNameError."""
        row = await self._database.fetch_one(statement("find-collection"), name=name)
        if row is None:
            known = [found.name for found in await self._database.fetch(statement("list-collections"))]
            raise UnknownNameError(
                f"there is no collection {name!r}. "
                + (
                    f"Collections: {', '.join(known[:20])}"
                    if known
                    else "Make one: orchestrator ingest PATH --collection " + name
                ),
                param="collection",
            )
        return Collection(*row)

    async def collections(self) -> list[str]:
        """Names of the tenant's collections."""
        return [row.name for row in await self._database.fetch(statement("list-collections"))]

    async def stats(self, collection: str) -> CollectionStats:
        """Sizes of a collection. Raises UnknownNameError."""
        await self.collection(collection)
        row: Row = await self._database.fetch_one(statement("collection-stats"), name=collection)
        return CollectionStats(*row)

    # search

    async def search(self, request: SearchRequest) -> list[Passage]:
        """The k best passages that were valid at ``as_of`` (now when None), best first.

        Raises UnknownNameError for an unknown collection and InputError for a vector of another space.
        """
        try:
            found = await search_passages(self._database, request, request.space or self._space, self._sample)
        except InputError:
            await self._refuse(request)
            raise
        if not found:
            await self._refuse(request)
        return found

    async def _refuse(self, request: SearchRequest) -> None:
        found = await self.of(request.tenant).collection(request.collection)
        dimensions = found.dimensions if request.mode == "lexical" else len(request.vector)
        _refuse_other_space(found, request.space or self._space or found.space, dimensions)

    def recall(self) -> IndexRecall | None:
        """The recall of HNSW as measured so far; None without a sample."""
        return self._sample.snapshot() if self._sample else None

    async def learned(self, tenant: str, collection: str) -> tuple[float | None, float | None]:
        """Weights of the dense side and of the re-ranker that the collection has learnt; None where it has not."""
        row = await self._database.of(tenant).fetch_one(statement("learned-weights"), name=collection)
        return (row.dense_weight, row.rerank_weight) if row else (None, None)

    async def learn(
        self, collection: str, dense_weight: float | None, rerank_weight: float | None, record: Mapping[str, Any]
    ) -> None:
        """Keeps the weights that the collection's searches are to take (None: the default); ``record``: what taught them.

        Raises UnknownNameError.
        """
        found = await self.collection(collection)
        values = {"dense_weight": dense_weight, "rerank_weight": rerank_weight, "learned": Json(dict(record))}
        async with self._database.transaction() as connection:
            await connection.execute(statement("set-learned-weights"), {"collection_id": found.id, **values})

    async def read_spans(self, spans: Sequence[Passage], tenant: str) -> list[str]:
        """The stored text at the span of each passage, in one round trip; in order."""
        values = {
            "document_ids": [passage.document_id for passage in spans],
            "numbers": [passage.version for passage in spans],
            "starts": [passage.span[0] for passage in spans],
            "ends": [passage.span[1] for passage in spans],
        }
        return [row.text for row in await self._database.of(tenant).fetch(statement("read-spans"), **values)]

    # writing

    async def known(self, collection: Collection, external_ids: Sequence[str]) -> dict[str, Known]:
        """What is there of each of these documents, in three round trips for all of them together."""
        async with self._database.transaction() as connection:
            found = await _all(
                connection,
                "known-documents",
                collection_id=collection.id,
                space=collection.space,
                external_ids=list(external_ids),
            )
            versions = await versions_of(connection, [row.document_id for row in found])
            now = (await _one(connection, "database-now")).now
        known = {
            row.external_id: Known(
                tuple(versions.get(row.document_id, ())),
                frozenset(row.held),
                row.title,
                row.source,
                row.metadata,
                now,
            )
            for row in found
        }
        return {name: known.get(name, Known((), frozenset(), "", "", {}, now)) for name in external_ids}

    async def write_versions(
        self,
        collection: Collection,
        drafts: Sequence[Draft],
        vectors: Mapping[str, Packed],
        began: datetime | None = None,
    ) -> list[Written]:
        """Stores versions in one transaction, as ``write.write_versions``."""
        return await write_versions(self._database, collection, drafts, vectors, began)

    async def clock(self) -> datetime:
        """The database's time of day."""
        row: Row = await self._database.fetch_one(statement("database-now"))
        now: datetime = row.now
        return now

    async def refresh_statistics(self) -> None:
        """Tells PostgreSQL's planner about many new rows, so that searches are fast at once."""
        async with self._database.ownership() as connection:
            await connection.execute(statement("refresh-statistics"))

    async def settle(self, collection: str) -> None:
        """Gives the collection the place that its size asks for: with others, or a partition with HNSW of its own."""
        await settle(self._database, collection)

    async def expect_load(self, collection: str) -> bool:
        """Takes the index of a partition away when much is to come; ``settle`` builds it. False when there is none."""
        return await unindex(self._database, collection)

    async def delete(self, collection: str, external_id: str) -> None:
        """Takes a document away for every time; only a search as known before finds it. Raises UnknownNameError."""
        await timeline.delete(await self._place(collection), external_id)

    async def erase(self, collection: str, external_id: str) -> Receipt:
        """Removes a document with its whole history from the tables, as ``erase.erase``. Raises UnknownNameError."""
        return await erase(self._database, await self.collection(collection), external_id)

    # time

    async def retire(
        self, collection: str, external_id: str, valid_from: datetime | None = None, *, and_later: bool = False
    ) -> Moved:
        """From ``valid_from`` (now when None) on there is no such document, as ``timeline.retire``."""
        place = await self._place(collection)
        return await timeline.retire(place, external_id, valid_from=valid_from, and_later=and_later)

    async def restore(self, collection: str, external_id: str, number: int) -> Moved:
        """The text of this version holds from now on, as ``timeline.restore``."""
        return await timeline.restore(await self._place(collection), external_id, number)

    async def withdraw(self, collection: str, external_id: str, number: int) -> Moved:
        """This version was a mistake and never held, as ``timeline.withdraw``."""
        return await timeline.withdraw(await self._place(collection), external_id, number)

    async def diff(
        self, collection: str, external_id: str, before: int | None = None, after: int | None = None
    ) -> VersionDiff:
        """What differs between two versions, by paragraphs; the one that holds now and the one before it when None.

        Raises UnknownNameError, and InputError when there is no version before.
        """
        return await compare_versions(self._database, await self.collection(collection), external_id, before, after)

    async def mark_changes(self, citations: Sequence[Citation], tenant: str) -> tuple[Citation, ...]:
        """The citations, each with what its paragraph says now if that is something else; one round trip for all."""
        return await mark_changes(self._database.of(tenant), citations)

    # folders as the source of truth

    async def synced(self, collection: Collection, root: str, folder: str, at: datetime | None) -> list[Row]:
        """Every document of the collection: who states it, and the text that holds at ``at``."""
        values = {"root": root, "folder": f"{folder.rstrip('/')}/", "at": at}
        return await self._database.fetch(statement("synced-documents"), collection_id=collection.id, **values)

    async def rename(self, collection: Collection, names: Mapping[str, str]) -> None:
        """Gives documents other ids, all or none; versions, citations and history stay theirs."""
        async with self._database.transaction() as connection:
            await connection.execute(statement("lock-collection"), {"collection_id": collection.id})
            for before, after in names.items():
                values = {"collection_id": collection.id, "before": before, "after": after}
                await connection.execute(statement("rename-document"), values)

    async def claim(self, collection: Collection, external_ids: Sequence[str], root: str) -> None:
        """From now on these documents end when they are not in the folder of that name any more."""
        values = {"collection_id": collection.id, "external_ids": list(external_ids), "root": root}
        async with self._database.transaction() as connection:
            await connection.execute(statement("claim-documents"), values)

    async def ended(self, collection: Collection, external_ids: Sequence[str], at: datetime | None) -> list[Row]:
        """Those of these documents that are retired at ``at``, with the number of their end."""
        values = {"collection_id": collection.id, "external_ids": list(external_ids), "at": at}
        return await self._database.fetch(statement("ended-documents"), **values)

    async def _place(self, collection: str) -> timeline.Place:
        return self._database, await self.collection(collection)

    # reading

    async def list_documents(
        self,
        collection: str,
        *,
        limit: int = 100,
        after: str | None = None,
        deleted: bool = False,
        as_of: datetime | None = None,
        known_at: datetime | None = None,
    ) -> list[DocumentInfo]:
        """Documents in order of their id, from the one behind ``after``; deleted and retired ones only when asked for.

        With ``as_of`` or ``known_at``: those that there were then, as it was known then.
        """
        found = await self.collection(collection)
        values = {"limit": limit, "after": after, "deleted": deleted, "as_of": as_of, "known_at": known_at}
        rows = await self._database.fetch(statement("list-documents"), collection_id=found.id, **values)
        return [DocumentInfo(*row) for row in rows]

    async def history(
        self, collection: str, external_id: str, *, known_at: datetime | None = None
    ) -> list[VersionInfo]:
        """Every version of a document that was ever stored, or that counted at ``known_at``, by number.

        Raises UnknownNameError.
        """
        found = await self.collection(collection)
        values = {"collection_id": found.id, "external_id": external_id, "known_at": known_at}
        rows = await self._database.fetch(statement("document-history"), **values)
        if not rows:
            raise await self._unknown(found, external_id)
        return [VersionInfo(*row._replace(notes=tuple(row.notes))[:-1]) for row in rows]

    async def get_version_text(
        self,
        collection: str,
        external_id: str,
        *,
        number: int | None = None,
        as_of: datetime | None = None,
        known_at: datetime | None = None,
    ) -> VersionText:
        """The stored text of one version: by number, or valid at ``as_of`` (now when None), as known at ``known_at``.

        Raises UnknownNameError.
        """
        found = await self.collection(collection)
        values = {"external_id": external_id, "number": number, "as_of": as_of, "known_at": known_at}
        row = await self._database.fetch_one(statement("version-text"), collection_id=found.id, **values)
        if row is None:
            raise await self._unknown(found, external_id)
        if row.is_end and number is None:
            raise UnknownNameError(
                f"{external_id!r} was retired: from {row.valid_from:%Y-%m-%d} on there is no such document. "
                "Ask for an earlier time, or `orchestrator documents restore` a version",
                param="document",
            )
        return VersionText(*row[:-1])

    async def _unknown(self, collection: Collection, external_id: str) -> UnknownNameError:
        """Why there is no such document (or version of it): its name may be one that it had before."""
        values = {"collection_id": collection.id, "external_id": external_id}
        renamed = await self._database.fetch_one(statement("renamed-document"), **values)
        if renamed is None:
            return timeline.unknown_document(collection.name, external_id)
        return UnknownNameError(f"{external_id!r} is called {renamed.external_id!r} now", param="document")

    async def current_texts(self, collection: str, external_ids: Sequence[str]) -> list[Row]:
        """``external_id``, ``text`` and ``metadata`` of those of the documents that are valid now, in the order asked."""
        found = await self.collection(collection)
        values = {"collection_id": found.id, "external_ids": list(external_ids)}
        return await self._database.fetch(statement("current-texts"), **values)

    async def version(self, document_id: str, number: int) -> VersionText:
        """The stored text that a citation names by document id and version number. Raises UnknownNameError."""
        row = await self._database.fetch_one(statement("version-by-id"), document_id=document_id, number=number)
        if row is None:
            raise UnknownNameError(f"there is no document {document_id!r} with a version {number}", param="document_id")
        return VersionText(*row)


def pack_vector(vector: Sequence[float]) -> bytes:
    """A vector in pgvector's binary form of a halfvec. Raises InputError when it is not a finite, non-zero vector."""
    length = math.sqrt(sum(value * value for value in vector))
    if not math.isfinite(length) or not 1e-6 < length < 1e4:
        raise InputError("the embedder gave a vector that is zero or not finite")
    return bytes(HalfVector(list(vector)).to_binary())


async def _all(connection: Connection, name: str, **values: Any) -> list[Row]:
    return await (await connection.execute(statement(name), values)).fetchall()


async def _one(connection: Connection, name: str, **values: Any) -> Row:
    return await (await connection.execute(statement(name), values)).fetchone()


def _refuse_other_space(collection: Collection, space: str, dimensions: int) -> None:
    if (collection.space, collection.dimensions) != (space, dimensions):
        raise OtherSpaceError(
            f"the collection {collection.name!r} holds vectors of {collection.space} ({collection.dimensions} numbers), "
            f"the embedder gives {space} ({dimensions} numbers): they cannot be compared. Use the embedder that made the "
            "collection, or ingest into another collection.",
            space=collection.space,
            param="collection",
        )
