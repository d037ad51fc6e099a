"""Erased documents: out of search at once, out of the relation files after the purge, and not back by themselves."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from orchestrator.database import Database
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.erase import erase, permit, purge, receipts
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.verify import verify
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

CANARY = "zyxcanary"
NAME = "subject-4711"


async def fill(store: PgStore, embedder: HashEmbedder) -> None:
    documents = [
        Document(
            NAME, "Letter", f"The first letter names {CANARY} once.", "a", valid_from=datetime(2024, 1, 1, tzinfo=UTC)
        ),
        Document(
            NAME, "Letter", f"The second letter: {CANARY} moved.", "a", valid_from=datetime(2025, 1, 1, tzinfo=UTC)
        ),
        Document("other", "Other", "Another letter about the weather.", "b"),
    ]
    report = await ingest_documents(documents, store=store, embedder=embedder, collection="c")
    assert report.failed == 0


async def found(store: PgStore, **options: object) -> list[str]:
    request = SearchRequest(CANARY, (), "c", mode="lexical", **options)  # type: ignore[arg-type]
    return [passage.external_id for passage in await store.search(request)]


async def test_an_erased_document_is_found_at_no_time_and_leaves_a_receipt(database: Database, store: PgStore) -> None:
    await fill(store, HashEmbedder())
    assert await found(store) == [NAME]
    before = datetime.now(UTC)

    receipt = await erase(database, await store.collection("c"), NAME)

    assert await found(store) == []
    assert await found(store, as_of=datetime(2024, 6, 1, tzinfo=UTC)) == []
    assert await found(store, known_at=before) == []
    assert len(receipt.text_sha256s) == 2
    assert receipt.chunks == 2
    assert [r.document_id for r in await receipts(database, await store.collection("c"))] == [receipt.document_id]
    assert NAME not in str(receipt)
    assert (await verify(database, await store.collection("c"))).faults == ()


async def test_nothing_brings_it_back_until_somebody_permits_it(database: Database, store: PgStore) -> None:
    embedder = HashEmbedder()
    await fill(store, embedder)
    collection = await store.collection("c")
    await erase(database, collection, NAME)

    again = Document(NAME, "Letter", f"{CANARY} from a backup", "a")
    report = await ingest_documents([again], store=store, embedder=embedder, collection="c")
    assert report.failed == 1
    assert "permit" in report.failures[0].reason
    with pytest.raises(InputError, match="erased"):
        async with database.transaction() as connection:
            await connection.execute(
                "insert into documents (collection_id, external_id) values (%s, %s)", (collection.id, NAME)
            )
    assert await found(store) == []

    await permit(database, collection, NAME)
    await ingest_documents([again], store=store, embedder=embedder, collection="c")
    assert await found(store) == [NAME]


async def test_a_name_that_it_had_before_is_refused_too(database: Database, store: PgStore) -> None:
    embedder = HashEmbedder()
    await fill(store, embedder)
    async with database.transaction() as connection:
        await connection.execute(
            "update documents set external_id = 'new-name', renamed_from = array[external_id] where external_id = %s",
            (NAME,),
        )
    receipt = await erase(database, await store.collection("c"), "new-name")
    report = await ingest_documents([Document(NAME, "", CANARY, "a")], store=store, embedder=embedder, collection="c")
    assert len(receipt.name_sha256s) == 2
    assert report.failed == 1


async def test_no_relation_file_holds_it_after_the_purge(database: Database, store: PgStore, database_url: str) -> None:
    await fill(store, HashEmbedder())
    with psycopg.connect(database_url, autocommit=True) as connection:
        folder = Path(
            connection.execute(
                "select current_setting('data_directory') || '/base/' || oid from pg_database where datname = current_database()"
            ).fetchone()[0]  # type: ignore[index]
        )
        connection.execute("checkpoint")
    assert _files_with(folder, CANARY)

    await erase(database, await store.collection("c"), NAME)
    await purge(database)

    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("checkpoint")
    assert _files_with(folder, CANARY) == []
    assert _files_with(folder, NAME) == []
    assert _files_with(folder, "weather")  # the neighbour is still there
    (receipt,) = await receipts(database, await store.collection("c"))
    assert receipt.purged_at is not None


async def test_an_unknown_document_is_refused(database: Database, store: PgStore) -> None:
    await fill(store, HashEmbedder())
    collection = await store.collection("c")
    with pytest.raises(UnknownNameError, match="no document 'nope'"):
        await erase(database, collection, "nope")
    with pytest.raises(UnknownNameError, match="was erased"):
        await permit(database, collection, "nope")


def _files_with(folder: Path, text: str) -> list[str]:
    done = subprocess.run(["grep", "-rlaF", text, str(folder)], capture_output=True, text=True, check=False)
    return done.stdout.split()
