"""Keeps documents in PostgreSQL: versions in time, their shared chunks, vectors, postings; one transaction each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pgvector import HalfVector

from orchestrator.database import Connection, Database, Json, Row, copy_rows, statement
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.lexical import add_postings, count_chunks, detect_language
from orchestrator.knowledge.records import (
    Collection,
    CollectionStats,
    DocumentInfo,
    Known,
    VersionInfo,
    VersionText,
    Written,
)
from orchestrator.knowledge.search import search_passages
from orchestrator.knowledge.versions import Placement, Version, place_version
from orchestrator.types import Chunk, Document, Passage, SearchRequest


class PgStore:
    """Documents of one tenant. ``space``: the embedder's; a collection of another space is then refused in search."""

    def __init__(self, database: Database, tenant: str = "default", space: str | None = None) -> None:
        self._database = database.of(tenant)
        self._tenant = tenant
        self._space = space

    def of(self, tenant: str) -> PgStore:
        """The same store for another tenant."""
        return PgStore(self._database, tenant, self._space)

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
            known = [
                found.name for found in await self._database.fetch(statement("list-collections"))
            ]
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
            found = await search_passages(self._database, request, self._space)
        except InputError:
            await self._refuse(request)
            raise
        if not found:
            await self._refuse(request)
        return found

    async def _refuse(self, request: SearchRequest) -> None:
        found = await self.of(request.tenant).collection(request.collection)
        dimensions = found.dimensions if request.mode == "lexical" else len(request.vector)
        _refuse_other_space(found, self._space or found.space, dimensions)

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
            versions = await _all(connection, "versions-that-count", document_ids=[row.document_id for row in found])
            now = (await _one(connection, "database-now")).now
        by_document: dict[Any, list[Version]] = {}
        for row in versions:
            by_document.setdefault(row.document_id, []).append(_version(row))
        known = {
            row.external_id: Known(
                tuple(by_document.get(row.document_id, ())),
                frozenset(row.held),
                row.title,
                row.source,
                row.metadata,
                now,
            )
            for row in found
        }
        return {name: known.get(name, Known((), frozenset(), "", "", {}, now)) for name in external_ids}

    async def write_version(
        self, collection: Collection, document: Document, chunks: Sequence[Chunk], vectors: Mapping[str, bytes]
    ) -> Written:
        """Stores one version of a document in one transaction: all of it, or nothing when it is there already.

        ``vectors``: packed vectors (``pack_vector``) by chunk hash, for the chunks that the store has none of.
        """
        async with self._database.transaction() as connection:
            await connection.execute(statement("lock-collection"), {"collection_id": collection.id})
            names = {"collection_id": collection.id, "external_id": document.external_id}
            row = await _one(connection, "find-document", **names)
            versions = await _versions(connection, row.id) if row else []
            now = (await _one(connection, "database-now")).now
            place = place_version(
                versions,
                sha256=text_sha256(document.text),
                title=document.title,
                source=document.source,
                valid_from=document.valid_from,
                now=now,
            )
            described = {
                **names,
                "title": document.title,
                "source": document.source,
                "metadata": Json(dict(document.metadata)),
            }
            if place is None:
                if row and is_latest(versions, document):
                    await connection.execute(statement("update-document"), {**described, "document_id": row.id})
                return Written("unchanged")
            held = await _held(connection, collection, row.id) if row else set()
            missing = tuple(dict.fromkeys(c.sha256 for c in chunks if c.sha256 not in held and c.sha256 not in vectors))
            if missing:  # a concurrent delete took vectors away after the look-up
                return Written("unchanged", missing=missing)
            if row is None:
                row = await _one(connection, "insert-document", **described)
            elif place.is_latest:
                await connection.execute(statement("update-document"), {**described, "document_id": row.id})
            number = await _insert_version(connection, collection, row.id, document, chunks, vectors, place, held)
            failpoint("before-commit")
        failpoint("after-commit")
        new = len({chunk.sha256 for chunk in chunks} - held)
        return Written("updated" if versions else "added", number, new, len(chunks) - new)

    async def refresh_statistics(self) -> None:
        """Tells PostgreSQL's planner about many new rows, so that searches are fast at once."""
        async with self._database.ownership() as connection:
            await connection.execute(statement("refresh-statistics"))

    async def delete(self, collection: str, external_id: str) -> None:
        """Takes a document out of every search, at every time; its history stays. Raises UnknownNameError."""
        found = await self.collection(collection)
        async with self._database.transaction() as connection:
            await connection.execute(statement("lock-collection"), {"collection_id": found.id})
            row = await _one(connection, "supersede-document", collection_id=found.id, external_id=external_id)
            if row is None:
                raise _unknown_document(collection, external_id)
            await _refresh_live(connection, found.id, row.id)

    async def erase(self, collection: str, external_id: str) -> None:
        """Removes a document with its whole history from the tables. Raises UnknownNameError."""
        found = await self.collection(collection)
        async with self._database.transaction() as connection:
            await connection.execute(statement("lock-collection"), {"collection_id": found.id})
            values = {"collection_id": found.id, "external_id": external_id}
            if await _one(connection, "find-document", **values) is None:
                raise _unknown_document(collection, external_id)
            row = await _one(connection, "supersede-document", **values)
            if row is not None:
                await _refresh_live(connection, found.id, row.id)
            await connection.execute(statement("erase-document"), values)

    # reading

    async def list_documents(
        self, collection: str, *, limit: int = 100, after: str | None = None, deleted: bool = False
    ) -> list[DocumentInfo]:
        """Documents in order of their id, from the one behind ``after``; deleted ones only when asked for."""
        found = await self.collection(collection)
        rows = await self._database.fetch(
            statement("list-documents"), collection_id=found.id, limit=limit, after=after, deleted=deleted
        )
        return [DocumentInfo(*row) for row in rows]

    async def history(self, collection: str, external_id: str) -> list[VersionInfo]:
        """Every version of a document that was ever stored, by number. Raises UnknownNameError."""
        found = await self.collection(collection)
        rows = await self._database.fetch(
            statement("document-history"), collection_id=found.id, external_id=external_id
        )
        if not rows:
            raise _unknown_document(collection, external_id)
        return [VersionInfo(*row._replace(notes=tuple(row.notes))) for row in rows]

    async def get_version_text(
        self, collection: str, external_id: str, *, number: int | None = None, as_of: datetime | None = None
    ) -> VersionText:
        """The stored text of one version: by number, or valid at ``as_of`` (now when None). Raises UnknownNameError."""
        found = await self.collection(collection)
        row = await self._database.fetch_one(
            statement("version-text"), collection_id=found.id, external_id=external_id, number=number, as_of=as_of
        )
        if row is None:
            raise _unknown_document(collection, external_id)
        return VersionText(*row)

    async def version(self, document_id: str, number: int) -> VersionText:
        """The stored text that a citation names by document id and version number. Raises UnknownNameError."""
        row = await self._database.fetch_one(
            statement("version-by-id"), document_id=document_id, number=number
        )
        if row is None:
            raise UnknownNameError(f"there is no document {document_id!r} with a version {number}", param="document_id")
        return VersionText(*row)


def text_sha256(text: str) -> str:
    """Hash of a stored text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def pack_vector(vector: Sequence[float]) -> bytes:
    """A vector in pgvector's binary form of a halfvec. Raises InputError when it is not a finite, non-zero vector."""
    length = math.sqrt(sum(value * value for value in vector))
    if not math.isfinite(length) or not 1e-6 < length < 1e4:
        raise InputError("the embedder gave a vector that is zero or not finite")
    return bytes(HalfVector(list(vector)).to_binary())


def is_latest(versions: Sequence[Version], document: Document) -> bool:
    """Whether this stored document is the version that no other follows: title and metadata are taken from that one."""
    last = versions[-1] if versions else None
    return last is not None and (last.sha256, last.title) == (text_sha256(document.text), document.title)


async def _insert_version(
    connection: Connection,
    collection: Collection,
    document_id: Any,
    document: Document,
    chunks: Sequence[Chunk],
    vectors: Mapping[str, bytes],
    place: Placement,
    held: set[str],
) -> int:
    """Writes the version with chunks, vectors and postings; gives its number. ``held``: hashes that are in use."""
    if place.corrects is not None:
        await connection.execute(statement("supersede-version"), {"version_id": place.corrects})
    language = collection.language or detect_language(document.text) or "english"
    version = await _one(
        connection,
        "insert-version",
        document_id=document_id,
        sha256=text_sha256(document.text),
        title=document.title,
        source=document.source,
        media_type=document.media_type,
        text=document.text,
        notes=list(document.notes),
        valid_from=place.valid_from,
        language=language,
        is_end=False,
    )
    await connection.execute(statement("refresh-validity"), {"document_id": document_id})
    failpoint("version-inserted")
    rows = await _all(
        connection,
        "add-chunks",
        collection_id=collection.id,
        document_id=document_id,
        language=language,
        sha256s=[chunk.sha256 for chunk in chunks],
        contexts=[chunk.context for chunk in chunks],
        texts=[chunk.text for chunk in chunks],
    )
    ids = {row.sha256: row.id for row in rows}
    await connection.execute(statement("make-incoming"))
    spans = ((c.ordinal, ids[c.sha256], *c.span, c.paragraph, list(c.heading_path), c.page) for c in chunks)
    await copy_rows(connection, statement("copy-spans"), spans)
    await connection.execute(statement("insert-spans"), {"version_id": version.id})
    failpoint("chunks-inserted")
    fresh = dict.fromkeys(c.sha256 for c in chunks if c.sha256 not in held)
    packed = ((ids[sha256], vectors[sha256], None) for sha256 in fresh)
    await copy_rows(connection, statement("copy-vectors"), packed, ("int8", "bytea", "bytea"))
    values = {"collection_id": collection.id, "space": collection.space}
    await connection.execute(statement("insert-vectors"), values)
    failpoint("vectors-inserted")
    texts = {c.sha256: c.indexed for c in chunks}
    unposted = [row for row in rows if not row.is_posted]
    await add_postings(
        connection, collection.id, language, [row.id for row in unposted], [texts[row.sha256] for row in unposted]
    )
    failpoint("postings-inserted")
    await _refresh_live(connection, collection.id, document_id)
    return int(version.number)


async def _refresh_live(connection: Connection, collection_id: int, document_id: Any) -> None:
    changed = await _all(connection, "refresh-live", document_id=document_id)
    for sign in (1, -1):
        await count_chunks(connection, collection_id, [row.id for row in changed if row.sign == sign], sign)


async def _versions(connection: Connection, document_id: Any) -> list[Version]:
    return [_version(row) for row in await _all(connection, "versions-that-count", document_ids=[document_id])]


async def _held(connection: Connection, collection: Collection, document_id: Any) -> set[str]:
    values = {"collection_id": collection.id, "space": collection.space, "document_id": document_id}
    return {row.sha256 for row in await _all(connection, "held-chunks", **values)}


async def _all(connection: Connection, name: str, **values: Any) -> list[Row]:
    return await (await connection.execute(statement(name), values)).fetchall()


async def _one(connection: Connection, name: str, **values: Any) -> Row:
    return await (await connection.execute(statement(name), values)).fetchone()


def _version(row: Row) -> Version:
    return Version(row.id, row.number, row.sha256, row.title, row.source, row.valid_from, row.valid_to)


def _refuse_other_space(collection: Collection, space: str, dimensions: int) -> None:
    if (collection.space, collection.dimensions) != (space, dimensions):
        raise InputError(
            f"the collection {collection.name!r} holds vectors of {collection.space} ({collection.dimensions} numbers), "
            f"the embedder gives {space} ({dimensions} numbers): they cannot be compared. Use the embedder that made the "
            "collection, or ingest into another collection.",
            param="collection",
        )


def _unknown_document(collection: str, external_id: str) -> UnknownNameError:
    return UnknownNameError(
        f"there is no such document {external_id!r} in the collection {collection!r}. "
        "`orchestrator documents list` shows what there is.",
        param="document",
    )
