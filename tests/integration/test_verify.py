"""Verification names every kind of damage to the index, and mends it; the registry's own damage it only names."""

import pytest

from orchestrator.database import Database
from orchestrator.errors import InputError
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.verify import verify
from orchestrator.testing import HashEmbedder
from orchestrator.types import ChunkVectors, Document, QuestionVectors


class TokenHashEmbedder(HashEmbedder):
    """Also gives token vectors."""

    letters_per_piece = (2.8, 3.4)

    async def embed_tokens(self, texts: list[str]) -> list[ChunkVectors]:
        return [ChunkVectors(vector, b"tokens") for vector in await self.embed(texts)]

    async def embed_question(self, text: str) -> QuestionVectors:
        return QuestionVectors((await self.embed([text]))[0], b"", ())


DAMAGE = {
    "vectors": "delete from vectors where chunk_id = (select min(chunk_id) from vectors)",
    "postings": "delete from postings where chunk_id = (select min(chunk_id) from postings)",
    "frequencies": "update terms set document_count = document_count + 1 where term = 'leav'",
    "counts": "update collections set chunk_count = chunk_count + 1",
    "live": "update chunks set live = '{}' where id = (select min(id) from chunks)",
    "validity": "update versions set valid_to = now() where id = (select min(id) from versions)",
    "orphaned-chunks": "delete from version_chunks where chunk_id = (select min(chunk_id) from version_chunks)",
    "orphaned-postings": "update postings set term_id = term_id + 100000 where ctid = (select min(ctid) from postings)",
}
LOST = {
    "texts": "update versions set text = text || ' changed' where id = (select min(id) from versions)",
    "spans": "update version_chunks set span_start = span_start + 1 where chunk_id = (select min(chunk_id) from version_chunks)",
    "chunk-hashes": "update chunks set context = 'Other' where id = (select min(id) from chunks)",
}


@pytest.fixture
async def filled(store: PgStore) -> PgStore:
    documents = [
        Document("leave", "Leave", "Thirty days of leave for everybody, see ERR-4012.", "a"),
        Document("pets", "Pets", "Dogs are welcome on Fridays; cats never.", "b"),
        Document("zh", "假期", "每个员工每年有三十天的带薪假期。", "c"),
    ]
    await ingest_documents(documents, store=store, embedder=HashEmbedder(), collection="c")
    return store


async def break_it(database: Database, damage: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(damage)


async def test_a_sound_collection_has_no_faults(database: Database, filled: PgStore) -> None:
    found = await verify(database, await filled.collection("c"))
    assert (found.faults, found.mended, found.chunks) == ((), (), 3)


@pytest.mark.parametrize("check", DAMAGE)
async def test_damage_to_the_index_is_named_and_mended(database: Database, filled: PgStore, check: str) -> None:
    await break_it(database, DAMAGE[check])
    collection = await filled.collection("c")

    assert check in {fault.check for fault in (await verify(database, collection)).faults}
    mended = await verify(database, collection, mend=True, embedder=HashEmbedder())

    assert mended.faults == ()
    assert check in {fault.check for fault in mended.mended}
    assert (await verify(database, await filled.collection("c"))).faults == ()


@pytest.mark.parametrize("check", LOST)
async def test_damage_to_the_registry_is_named_and_left(database: Database, filled: PgStore, check: str) -> None:
    await break_it(database, LOST[check])
    found = await verify(database, await filled.collection("c"), mend=True, embedder=HashEmbedder())
    assert check in {fault.check for fault in found.faults}


async def test_vectors_are_not_made_by_another_embedder(database: Database, filled: PgStore) -> None:
    await break_it(database, DAMAGE["vectors"])
    with pytest.raises(InputError, match="ORCHESTRATOR_EMBEDDER"):
        await verify(database, await filled.collection("c"), mend=True, embedder=HashEmbedder(32))


async def test_a_vector_is_mended_with_its_token_vectors(database: Database, store: PgStore) -> None:
    embedder = TokenHashEmbedder()
    documents = [Document("leave", "Leave", "Thirty days of leave for everybody.", "a")]
    await ingest_documents(documents, store=store, embedder=embedder, collection="c")
    await break_it(database, DAMAGE["vectors"])

    await verify(database, await store.collection("c"), mend=True, embedder=embedder)

    row = await database.fetch_one("select tokens from vectors")
    assert row is not None
    assert row.tokens == b"tokens"
