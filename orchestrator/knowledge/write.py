"""Writes versions of documents into the tables: many in one transaction, each of them whole or not at all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from orchestrator.database import Connection, Database, Json, Row, copy_rows, statement
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.lexical import UNSPACED, add_postings, count_chunks, detect_language
from orchestrator.knowledge.records import Collection, Status, Written
from orchestrator.knowledge.versions import Placement, Version, place_end, place_version
from orchestrator.types import Chunk, Document


@dataclass(frozen=True, slots=True)
class Packed:
    """What is stored of a chunk's embedding: the vector in pgvector's binary form, and one bit per token and dimension."""

    embedding: bytes
    tokens: bytes | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that is ready to be written. ``is_end``: it has no text; from then on there is no such document."""

    document: Document
    chunks: Sequence[Chunk]
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class _There:
    """What the store has of the documents of a turn, read under the collection's lock; ``now``: the clock after it."""

    ids: Mapping[str, Any]
    versions: Mapping[Any, list[Version]]
    held: Mapping[Any, set[str]]
    changes: Mapping[Any, list[Row]]  # versions that came, went or ended the document since the ingest began
    now: datetime


@dataclass(frozen=True, slots=True)
class _Placed:
    """A draft that becomes a version of this document."""

    draft: Draft
    place: Placement
    document_id: Any
    language: str
    version_id: int = 0
    number: int = 0


async def write_versions(
    database: Database,
    collection: Collection,
    drafts: Sequence[Draft],
    vectors: Mapping[str, Packed],
    began: datetime | None = None,
) -> list[Written]:
    """Stores versions in one transaction, in order; gives what became of each. One that is there already is no work.

    ``vectors``: by chunk hash, for the chunks that the store has none of; a draft that lacks one is left out and its
    ``Written`` names what is missing. ``began``: when the drafts were asked for; what was deleted since is not brought
    back. Raises InputError when a value cannot be stored: then nothing is.
    """
    written: dict[int, Written] = {}
    if not drafts:
        return []
    async with database.transaction() as connection:
        await connection.execute(statement("lock-collection"), {"collection_id": collection.id})
        failpoint("locked")
        for turn in _turns([draft.document.external_id for draft in drafts]):
            found = await _write_turn(connection, collection, [drafts[place] for place in turn], vectors, began)
            written.update(zip(turn, found, strict=True))
        is_change = any(one.version for one in written.values())
        if is_change:
            failpoint("before-commit")
    if is_change:
        failpoint("after-commit")
    return [written[place] for place in range(len(drafts))]


def _turns(names: Sequence[str]) -> Iterator[list[int]]:
    """Places in the list, such that each turn has one of a name and the order of those of one name is kept."""
    count: Counter[str] = Counter()
    turns: list[list[int]] = []
    for place, name in enumerate(names):
        if count[name] == len(turns):
            turns.append([])
        turns[count[name]].append(place)
        count[name] += 1
    return iter(turns)


async def _write_turn(
    connection: Connection,
    collection: Collection,
    drafts: Sequence[Draft],
    vectors: Mapping[str, Packed],
    began: datetime | None,
) -> list[Written]:
    there = await _read(connection, collection, drafts, began)
    places = [None if _is_overtaken(draft, there) else _place(draft, there) for draft in drafts]
    written = [_outcome(draft, place, there, vectors) for draft, place in zip(drafts, places, strict=True)]
    going = [
        (draft, place) for draft, place, one in zip(drafts, places, written, strict=True) if place and not one.missing
    ]
    await _describe(connection, there, drafts, places, written)
    ids = {**there.ids, **await _insert_documents(connection, collection, [d.document for d, _ in going], there.ids)}
    placed = [
        _Placed(
            draft,
            place,
            ids[draft.document.external_id],
            language,
        )
        for (draft, place), language in zip(going, await _languages(connection, collection, going), strict=True)
    ]
    if not placed:
        return written
    stored = {
        one.draft.document.external_id: one for one in await _store(connection, collection, placed, vectors, there)
    }
    return [
        replace(one, version=stored[draft.document.external_id].number) if draft.document.external_id in stored else one
        for draft, one in zip(drafts, written, strict=True)
    ]


async def _read(
    connection: Connection, collection: Collection, drafts: Sequence[Draft], began: datetime | None
) -> _There:
    names = [draft.document.external_id for draft in drafts]
    rows = await _all(connection, "documents-to-write", collection_id=collection.id, external_ids=names)
    ids = {row.external_id: row.id for row in rows}
    values = {"collection_id": collection.id, "space": collection.space, "document_ids": list(ids.values())}
    held: dict[Any, set[str]] = {}
    for row in await _all(connection, "chunks-with-vectors", **values) if ids else ():
        held.setdefault(row.document_id, set()).add(row.sha256)
    versions = await versions_of(connection, list(ids.values())) if ids else {}
    (clock,) = await _all(connection, "clock-of-documents", document_ids=list(ids.values()))
    changes: dict[Any, list[Row]] = {}
    for row in (
        await _all(connection, "changes-since", document_ids=list(ids.values()), began=began) if ids and began else ()
    ):
        changes.setdefault(row.document_id, []).append(row)
    return _There(ids, versions, held, changes, clock.now)


async def versions_of(connection: Connection, document_ids: Sequence[Any]) -> dict[Any, list[Version]]:
    """The versions of each document that are not superseded, oldest first."""
    found: dict[Any, list[Version]] = {}
    for row in await _all(connection, "versions-that-count", document_ids=list(document_ids)):
        version = Version(
            row.id, row.number, row.sha256, row.title, row.source, row.valid_from, row.valid_to, row.is_end
        )
        found.setdefault(row.document_id, []).append(version)
    return found


def _place(draft: Draft, there: _There) -> Placement | None:
    document = draft.document
    versions = there.versions.get(there.ids.get(document.external_id), ())
    if draft.is_end:
        return place_end(versions, valid_from=document.valid_from or there.now)
    return place_version(
        versions,
        sha256=text_sha256(document.text),
        title=document.title,
        source=document.source,
        valid_from=document.valid_from,
        now=there.now,
    )


def _is_overtaken(draft: Draft, there: _There) -> bool:
    """Whether others have done the same or ended the document since this ingest began.

    Two writers of text A and one of B make two versions, not A, B, A; and a text that was deleted while a slow ingest
    was on its way to store it stays deleted.
    """
    document = draft.document
    stated = document.valid_from
    return any(
        change.is_gone
        or (
            (change.sha256, change.title) == (text_sha256(document.text), document.title)
            and stated in (None, change.valid_from)
        )
        for change in there.changes.get(there.ids.get(document.external_id), ())
    )


def _outcome(draft: Draft, place: Placement | None, there: _There, vectors: Mapping[str, Packed]) -> Written:
    """What becomes of the draft, but for the number of its version."""
    if place is None:
        return Written("unchanged")
    document_id = there.ids.get(draft.document.external_id)
    held = there.held.get(document_id, set())
    new = dict.fromkeys(chunk.sha256 for chunk in draft.chunks if chunk.sha256 not in held)
    missing = tuple(sha256 for sha256 in new if sha256 not in vectors)
    if missing:  # a concurrent delete took vectors away after the look-up
        return Written("unchanged", missing=missing)
    status: Status = "updated" if there.versions.get(document_id) else "added"
    return Written(status, None, len(new), len(draft.chunks) - len(new))


async def _describe(
    connection: Connection,
    there: _There,
    drafts: Sequence[Draft],
    places: Sequence[Placement | None],
    written: Sequence[Written],
) -> None:
    """Title, source and metadata are those of the version that no other follows."""
    described = []
    for draft, place, one in zip(drafts, places, written, strict=True):
        document_id = there.ids.get(draft.document.external_id)
        if document_id is None or one.missing or draft.is_end:
            continue
        if place.is_latest if place else is_latest(there.versions.get(document_id, ()), draft.document):
            described.append((document_id, draft.document))
    if described:
        values = _described([document for _, document in described])
        await connection.execute(
            statement("update-documents"), {**values, "document_ids": [one[0] for one in described]}
        )


async def _languages(
    connection: Connection, collection: Collection, going: Sequence[tuple[Draft, Placement]]
) -> list[str]:
    """The configuration for each draft; a text too short to tell is taken for one of the collection's main language."""
    if collection.language:
        return [collection.language] * len(going)
    found = [detect_language(draft.document.text) for draft, _ in going]
    if None not in found:
        return [language for language in found if language]
    row = await (await connection.execute(statement("main-language"), {"collection_id": collection.id})).fetchone()
    told = Counter(language for language in found if language and language != UNSPACED)
    main: str = (row and row.language) or (told.most_common(1)[0][0] if told else "english")
    return [language or main for language in found]


async def _insert_documents(
    connection: Connection, collection: Collection, documents: Sequence[Document], known: Mapping[str, Any]
) -> dict[str, Any]:
    new = [document for document in documents if document.external_id not in known]
    if not new:
        return {}
    values = {"collection_id": collection.id, "external_ids": [d.external_id for d in new], **_described(new)}
    return {row.external_id: row.id for row in await _all(connection, "insert-documents", **values)}


def _described(documents: Sequence[Document]) -> dict[str, list[Any]]:
    return {
        "titles": [document.title for document in documents],
        "sources": [document.source for document in documents],
        "metadata": [Json(dict(document.metadata)) for document in documents],
    }


async def _store(
    connection: Connection,
    collection: Collection,
    placed: Sequence[_Placed],
    vectors: Mapping[str, Packed],
    there: _There,
) -> list[_Placed]:
    """Writes the versions with chunks, vectors and postings; gives them with their ids and numbers."""
    placed = await _insert_versions(connection, placed, there.now)
    failpoint("version-inserted")
    chunks = await _add_chunks(connection, collection, placed)
    await connection.execute(statement("make-incoming"))
    await copy_rows(connection, statement("copy-spans"), _spans(placed, chunks))
    await connection.execute(statement("insert-spans"))
    failpoint("chunks-inserted")
    fresh = {
        (one.document_id, chunk.sha256)
        for one in placed
        for chunk in one.draft.chunks
        if chunk.sha256 not in there.held.get(one.document_id, ())
    }
    rows = sorted((chunks[key].id, vectors[key[1]].embedding, vectors[key[1]].tokens) for key in fresh)
    await copy_rows(connection, statement("copy-vectors"), rows, ("int8", "bytea", "bytea"))
    values = {"collection_id": collection.id, "space": collection.space}
    await connection.execute(statement("insert-vectors"), values)
    await connection.execute(statement("forget-incoming"))
    failpoint("vectors-inserted")
    await _post(connection, collection, placed, chunks)
    failpoint("postings-inserted")
    await refresh_live(connection, collection.id, [one.document_id for one in placed])
    failpoint("live")
    return list(placed)


async def _insert_versions(connection: Connection, placed: Sequence[_Placed], now: datetime) -> list[_Placed]:
    corrected = [one.place.corrects for one in placed if one.place.corrects is not None]
    if corrected:
        await connection.execute(statement("supersede-versions"), {"version_ids": corrected, "now": now})
    documents = [one.draft.document for one in placed]
    document_ids = [one.document_id for one in placed]
    rows = await _all(
        connection,
        "insert-versions",
        now=now,
        document_ids=document_ids,
        sha256s=[text_sha256(document.text) for document in documents],
        titles=[document.title for document in documents],
        sources=[document.source for document in documents],
        media_types=[document.media_type for document in documents],
        texts=[document.text for document in documents],
        notes=[Json(list(document.notes)) for document in documents],
        valid_froms=[one.place.valid_from for one in placed],
        languages=[one.language for one in placed],
        ends=[one.draft.is_end for one in placed],
    )
    await connection.execute(statement("refresh-validity"), {"document_ids": document_ids})
    found = {row.document_id: row for row in rows}
    return [replace(one, version_id=found[one.document_id].id, number=found[one.document_id].number) for one in placed]


async def _add_chunks(
    connection: Connection, collection: Collection, placed: Sequence[_Placed]
) -> dict[tuple[Any, str], Row]:
    """Rows of all chunks, by document and hash."""
    pairs = [(one, chunk) for one in placed for chunk in one.draft.chunks]
    rows = await _all(
        connection,
        "add-chunks",
        collection_id=collection.id,
        document_ids=[one.document_id for one, _ in pairs],
        sha256s=[chunk.sha256 for _, chunk in pairs],
        contexts=[chunk.context for _, chunk in pairs],
        texts=[chunk.text for _, chunk in pairs],
        languages=[one.language for one, _ in pairs],
    )
    return {(row.document_id, row.sha256): row for row in rows}


def _spans(placed: Sequence[_Placed], chunks: Mapping[tuple[Any, str], Row]) -> Iterator[tuple[Any, ...]]:
    for one in placed:
        for chunk in one.draft.chunks:
            row = chunks[one.document_id, chunk.sha256]
            heading_path = list(chunk.heading_path)
            yield one.version_id, chunk.ordinal, row.id, *chunk.span, chunk.paragraph, heading_path, chunk.page


async def _post(
    connection: Connection, collection: Collection, placed: Sequence[_Placed], chunks: Mapping[tuple[Any, str], Row]
) -> None:
    """Adds the postings of chunks that have none, those of each language together."""
    unposted: dict[str, dict[int, str]] = {}
    for one in placed:
        for chunk in one.draft.chunks:
            row = chunks[one.document_id, chunk.sha256]
            if not row.is_posted:
                unposted.setdefault(one.language, {})[row.id] = chunk.indexed
    for language, texts in unposted.items():
        await add_postings(connection, collection.id, language, list(texts), list(texts.values()))


async def refresh_live(connection: Connection, collection_id: int, document_ids: Sequence[Any]) -> None:
    """Makes the documents' chunks found at the times of their versions that count, and counts them in and out."""
    changed = await _all(connection, "refresh-live", document_ids=list(document_ids))
    for sign in (1, -1):
        await count_chunks(connection, collection_id, [row.id for row in changed if row.sign == sign], sign)


def text_sha256(text: str) -> str:
    """Hash of a stored text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_latest(versions: Sequence[Version], document: Document) -> bool:
    """Whether this stored document is the version that no other follows: title and metadata are taken from that one."""
    last = versions[-1] if versions else None
    return last is not None and (last.sha256, last.title) == (text_sha256(document.text), document.title)


async def _all(connection: Connection, name: str, **values: Any) -> list[Row]:
    return await (await connection.execute(statement(name), values)).fetchall()
