"""What the knowledge layer holds of an item, read from PostgreSQL: versions in time, deleted ones, chunks and their spans."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrator.database import Database
from orchestrator.errors import UnknownNameError
from orchestrator.evaluation.archive import PgArchive
from orchestrator.evaluation.gold import weigh
from orchestrator.evaluation.items import Gold, Item
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.tenants import add_tenant
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document

OLD = "Annual leave is 25 days for all staff."
NEW = "Annual leave is 30 days for all staff."
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def leave(text: str, since: datetime | None = None) -> Document:
    return Document("leave", "Leave", f"About leave.\n\n{text}\n\nApproved in May.", "leave.md", valid_from=since)


def asks(answer: str, quote: str = "", as_of: datetime | None = None) -> Item:
    return Item("q", "How many days of leave?", (answer,), gold=(Gold("leave", None, quote),), as_of=as_of)


@pytest.fixture
async def store(database: Database) -> PgStore:
    store = PgStore(database)
    for version in (leave(OLD), leave(NEW, LATER)):
        await ingest_documents([version], store=store, embedder=HashEmbedder(), collection="hr")
    return store


async def test_the_version_that_holds_now_is_told_from_the_one_to_come(database: Database, store: PgStore) -> None:
    archive = PgArchive(database, "hr")
    held = weigh(asks("25 days"), await archive.versions(asks("25 days")))
    assert (held.ever, held.now, held.whole, held.verbatim) == (True, True, True, True)
    assert "25 days" in held.passages[0].text
    coming = weigh(asks("30 days"), await archive.versions(asks("30 days")))
    assert (coming.ever, coming.now, coming.since) == (True, False, LATER)


async def test_at_the_items_time_the_other_version_holds(database: Database, store: PgStore) -> None:
    item = asks("30 days", NEW, as_of=datetime(2101, 1, 1, tzinfo=UTC))
    assert weigh(item, await PgArchive(database, "hr").versions(item)).now


async def test_spans_of_chunks_point_into_the_text_and_ids_are_those_of_a_search(
    database: Database, store: PgStore
) -> None:
    (version, _) = await PgArchive(database, "hr").versions(asks("25 days"))
    holding = [piece for piece in version.pieces if OLD in version.text[slice(*piece.span)]]
    assert len(holding) == 1
    assert holding[0].chunk_id > 0
    assert len(version.document_id) == 36


async def test_a_deleted_document_does_not_count_and_still_shows_its_words(database: Database, store: PgStore) -> None:
    await store.delete("hr", "leave")
    item = asks("25 days", OLD)
    held = weigh(item, await PgArchive(database, "hr").versions(item))
    assert (held.ever, held.now) == (False, False)
    assert OLD in held.passages[0].text


async def test_another_tenant_sees_nothing_and_an_unknown_collection_is_named(
    database: Database, store: PgStore
) -> None:
    await add_tenant(database, "other")
    with pytest.raises(UnknownNameError, match="hr"):
        await PgArchive(database, "hr", "other").versions(asks("25 days"))
    with pytest.raises(UnknownNameError, match="none"):
        await PgArchive(database, "none").versions(asks("25 days"))


async def test_an_item_without_a_document_asks_nothing(database: Database) -> None:
    assert await PgArchive(database, "none").versions(Item("q", "Hello?")) == ()
