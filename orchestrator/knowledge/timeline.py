"""Changes when documents hold: retire, restore, withdraw, delete, rename; one transaction each, no text is embedded again.

A change (a new version, a retirement, a restoration) keeps what held before it for questions as of then. A correction (a
version in place of one of the same time, a withdrawal, a deletion) takes it away for every time; it is found only as known
before. A removed version leaves its time to the version that begins before it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.database import Connection, Database, Row, statement
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.records import Collection, Moved
from orchestrator.knowledge.versions import Version, place_end, place_start, valid_at
from orchestrator.knowledge.write import refresh_live, versions_of

Place = tuple[Database, Collection]


@dataclass(frozen=True, slots=True)
class _Locked:
    """A document under its collection's lock: its versions that count, and the clock as read after the lock."""

    connection: Connection
    document_id: Any
    versions: Sequence[Version]
    now: datetime


async def retire(
    place: Place, external_id: str, *, valid_from: datetime | None = None, and_later: bool = False
) -> Moved:
    """Ends the document at ``valid_from`` (now when None), until its next version begins; ``and_later``: those go too.

    ``Moved.version`` is None when there was no such document then. Raises UnknownNameError.
    """
    async with _locked(place, external_id) as found:
        start = valid_from or found.now
        later = [v for v in found.versions if and_later and v.valid_from is not None and v.valid_from > start]
        end = place_end([v for v in found.versions if v not in later], valid_from=start)
        if end is None and not later:
            return Moved(external_id, None)
        gone = [v.id for v in later] + ([end.corrects] if end and end.corrects is not None else [])
        await _supersede(found, gone)
        if end is None:
            return Moved(external_id, None, withdrawn=tuple(v.number for v in later))
        row = await _one(
            found.connection, "insert-end", document_id=found.document_id, valid_from=end.valid_from, now=found.now
        )
        numbers = tuple(v.number for v in found.versions if v.id in gone)
    return Moved(external_id, row.number, end.valid_from, end.valid_to, numbers)


async def restore(place: Place, external_id: str, number: int) -> Moved:
    """Makes the text of a version hold from now on, as a new version that shares its chunks.

    ``Moved.version`` is None when it holds anyway. Raises UnknownNameError, and InputError when the version is an end or
    its chunks have no vectors in the collection's space.
    """
    async with _locked(place, external_id) as found:
        old = await _version(found, external_id, number)
        if old.is_end:
            raise InputError(f"version {number} of {external_id!r} is an end, without a text to restore; see `retire`")
        current = valid_at(found.versions, found.now)
        if current and not current.is_end and (current.sha256, current.title) == (old.sha256, old.title):
            return Moved(external_id, None)
        values = {"collection_id": place[1].id, "space": place[1].space, "version_id": old.id}
        if (await _one(found.connection, "count-chunks-without-vector", **values)).missing:
            raise InputError(
                f"version {number} of {external_id!r} was not embedded by the collection's present model. Save its text "
                f"(`orchestrator documents show`) and ingest it as {external_id!r}"
            )
        start = place_start(found.versions, found.now)
        row = await _one(found.connection, "copy-version", version_id=old.id, now=found.now)
        await _execute(found.connection, "copy-version-chunks", version_id=old.id, new_id=row.id)
        failpoint("version-restored")
    return Moved(external_id, row.number, start.valid_from, start.valid_to)


async def withdraw(place: Place, external_id: str, number: int) -> Moved:
    """Takes a version away as a mistake: its time goes to the version before it.

    ``Moved.version`` is the version that holds at its beginning now. Raises UnknownNameError, and InputError when it does
    not count any more.
    """
    async with _locked(place, external_id) as found:
        old = await _version(found, external_id, number)
        if old.superseded_at is not None:
            raise InputError(
                f"version {number} of {external_id!r} was corrected, withdrawn or deleted on {old.superseded_at:%Y-%m-%d} "
                "already; `orchestrator documents history` shows the versions that count"
            )
        before = [v for v in found.versions if v.number != number]
        await _supersede(found, [old.id])
    heir = next((v for v in reversed(before) if v.valid_from is None or _is_not_after(v, old)), None)
    return Moved(
        external_id, heir.number if heir and not heir.is_end else None, old.valid_from, old.valid_to, (number,)
    )


async def delete(place: Place, external_id: str) -> None:
    """Takes the document away for every time; it is found only as known before. Raises UnknownNameError."""
    async with _locked(place, external_id) as found:
        if not found.versions:
            raise unknown_document(place[1].name, external_id)
        await _supersede(found, [version.id for version in found.versions])


def unknown_document(collection: str, external_id: str) -> UnknownNameError:
    """The error for an id that the collection does not have."""
    return UnknownNameError(
        f"there is no such document {external_id!r} in the collection {collection!r}. "
        "`orchestrator documents list` shows what there is.",
        param="document",
    )


@asynccontextmanager
async def _locked(place: Place, external_id: str) -> AsyncIterator[_Locked]:
    """The document for a change of its versions; afterwards validity, chunks and counts are made to agree with them."""
    database, collection = place
    async with database.transaction() as connection:
        await _execute(connection, "lock-collection", collection_id=collection.id)
        row = await _one(connection, "find-document", collection_id=collection.id, external_id=external_id)
        if row is None:
            raise unknown_document(collection.name, external_id)
        versions = (await versions_of(connection, [row.id])).get(row.id, [])
        clock = await _one(connection, "clock-of-documents", document_ids=[row.id])
        yield _Locked(connection, row.id, versions, clock.now)
        failpoint("versions-moved")
        await _execute(connection, "refresh-validity", document_ids=[row.id])
        await refresh_live(connection, collection.id, [row.id])
        await _execute(connection, "describe-document", document_id=row.id, now=clock.now)
        failpoint("before-commit")


async def _version(found: _Locked, external_id: str, number: int) -> Row:
    row = await _one(found.connection, "find-version", document_id=found.document_id, number=number)
    if row is None:
        raise UnknownNameError(
            f"{external_id!r} has no version {number}; `orchestrator documents history` lists them", param="version"
        )
    return row


async def _supersede(found: _Locked, ids: Sequence[int]) -> None:
    if ids:
        await _execute(found.connection, "supersede-versions", version_ids=list(ids), now=found.now)


def _is_not_after(version: Version, other: Row) -> bool:
    return other.valid_from is not None and version.valid_from is not None and version.valid_from <= other.valid_from


async def _execute(connection: Connection, name: str, **values: Any) -> None:
    await connection.execute(statement(name), values)


async def _one(connection: Connection, name: str, **values: Any) -> Row:
    return await (await connection.execute(statement(name), values)).fetchone()
