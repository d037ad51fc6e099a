"""What changed between versions: differences of two of them, and for each citation what its paragraph says today."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.database import Database, Row, statement
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.compare import closest, differences, normalised, paragraphs
from orchestrator.knowledge.records import Collection, VersionDiff
from orchestrator.knowledge.timeline import unknown_document
from orchestrator.types import Citation


async def compare_versions(
    database: Database, collection: Collection, external_id: str, before: int | None, after: int | None
) -> VersionDiff:
    """What differs between two versions, by paragraphs; the one that holds now and the one before it when None.

    Raises UnknownNameError, and InputError when there is no version before.
    """
    document = {"collection_id": collection.id, "external_id": external_id}
    rows = await database.fetch(statement("document-history"), **document, known_at=None)
    if not rows:
        raise unknown_document(collection.name, external_id)
    numbers = _choose(rows, external_id, before, after)
    found = await database.fetch(statement("texts-to-compare"), **document, numbers=list(numbers))
    texts = {row.number: row for row in found}
    old, new = (texts[number] for number in numbers)
    lines = await asyncio.to_thread(differences, old.text, new.text)
    return VersionDiff(external_id, *numbers, old.title, new.title, tuple(lines))


async def mark_changes(database: Database, citations: Sequence[Citation]) -> tuple[Citation, ...]:
    """The citations, each with what its paragraph says today where that is something else; one round trip for all.

    A paragraph stands as long as the version that holds now has the same words, wherever and however wrapped.
    """
    if not citations:
        return ()
    rows = await database.fetch(
        statement("citation-changes"),
        document_ids=[citation.document_id for citation in citations],
        numbers=[citation.version for citation in citations],
        starts=[citation.span[0] for citation in citations],
        ends=[citation.span[1] for citation in citations],
    )
    found = {row.place: row for row in rows}
    return await asyncio.to_thread(_marked, citations, found)


def _marked(citations: Sequence[Citation], rows: dict[int, Row]) -> tuple[Citation, ...]:
    texts = {(row.document_id, row.number): (row.cited_text, row.present_text) for row in rows.values() if row.is_first}
    marked = []
    for place, citation in enumerate(citations, 1):
        row = rows.get(place)
        if row is not None and not row.stands:
            old, new = texts[row.document_id, row.number]
            known = {normalised(one) for one in paragraphs(old)}
            fresh = [one for one in paragraphs(new or "") if normalised(one) not in known]
            citation = replace(citation, changed_in=row.changed_in, now=closest(row.paragraph, fresh))
        marked.append(citation)
    return tuple(marked)


def _choose(rows: Sequence[Row], external_id: str, before: int | None, after: int | None) -> tuple[int, int]:
    """The numbers to compare: what was asked for, else the version that holds now and the one before it in time."""
    by_number = {row.number: row for row in rows if not row.is_end}
    for number in (before, after):
        if number is not None and number not in by_number:
            known = ", ".join(map(str, by_number))
            raise UnknownNameError(
                f"{external_id!r} has no text of a version {number}. Versions: {known}", param="version"
            )
    line = sorted(
        (r for r in by_number.values() if r.superseded_at is None), key=lambda r: (bool(r.valid_from), r.valid_from)
    )
    if after is None:
        begun = [row for row in line if row.number != before and row.has_begun]
        after = (begun or line or list(by_number.values()))[-1].number
    if before is None:
        last = by_number[after].valid_from
        earlier = [
            row.number for row in line if row.number != after and last and (not row.valid_from or row.valid_from < last)
        ]
        before = next(reversed(earlier or [number for number in by_number if number < after]), None)
    if before is None:
        raise InputError(f"{external_id!r} has no version before {after} to compare with", param="version")
    return before, after
