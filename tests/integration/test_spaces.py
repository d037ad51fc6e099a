"""Changing the embedding model: filled beside the serving space, resumable, switched as a whole and back (row E9)."""

from collections.abc import Sequence

import pytest

from orchestrator.database import Database
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.erase import erase
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.spaces import drop, fill, judge, list_spaces, switch
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import ChunkVectors, Document, QuestionVectors, SearchRequest

OLD, NEW = HashEmbedder(64), HashEmbedder(128)


class Tokens(HashEmbedder):
    """Of the same space, with a vector for the one token of each text."""

    letters_per_piece = (1.0, 2.0)

    async def embed_tokens(self, texts: Sequence[str]) -> list[ChunkVectors]:
        return [ChunkVectors(vector, b"12345678") for vector in await self.embed(texts)]

    async def embed_question(self, text: str) -> QuestionVectors:
        return QuestionVectors(self._vector(text), b"", ())


def documents(count: int = 300) -> list[Document]:
    return [Document(f"d{n}", f"Title {n}", f"text number {n} about subject {n % 7}", "s") for n in range(count)]


@pytest.fixture
async def filled(store: PgStore) -> PgStore:
    await ingest_documents(documents(), store=store, embedder=OLD, collection="c")
    return store


async def found(database: Database, embedder: HashEmbedder, text: str) -> list[str]:
    (vector,) = await embedder.embed([text])
    passages = await PgStore(database, space=embedder.space).search(SearchRequest(text, vector, "c", 3, mode="dense"))
    return [passage.external_id for passage in passages]


async def test_a_second_space_is_filled_switched_and_switched_back(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")
    before = await found(database, OLD, "text number 42")

    assert await fill(database, collection, NEW) == 300
    assert await found(database, OLD, "text number 42") == before  # the old one serves on
    with pytest.raises(InputError, match="cannot be compared"):
        await found(database, NEW, "text number 42")

    await switch(database, collection, NEW.space)
    assert (await found(database, NEW, "text number 42"))[0] == "d42"
    with pytest.raises(InputError, match="cannot be compared"):
        await found(database, OLD, "text number 42")

    await switch(database, await filled.collection("c"), OLD.space)
    assert await found(database, OLD, "text number 42") == before


async def test_a_fill_that_was_stopped_goes_on(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")

    class Dies(HashEmbedder):
        async def embed(self, texts):  # type: ignore[no-untyped-def]
            if self.texts:
                raise InputError("stopped")
            return await super().embed(texts)

    with pytest.raises(InputError, match="stopped"):
        await fill(database, collection, Dies(128))
    with pytest.raises(InputError, match="44 chunks"):
        await switch(database, collection, NEW.space)

    assert await fill(database, collection, NEW) == 44
    await switch(database, collection, NEW.space)


async def test_token_vectors_are_filled_in_where_the_re_ranker_was_none(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")
    before = await database.fetch("select chunk_id, embedding::text from vectors order by chunk_id")

    assert await fill(database, collection, OLD) == 0  # it has none to give
    assert await fill(database, collection, Tokens(64)) == 300
    assert await fill(database, collection, Tokens(64)) == 0

    assert await database.fetch("select chunk_id, embedding::text from vectors order by chunk_id") == before
    row = await database.fetch_one("select count(*) as n, min(tokens) as low, max(tokens) as high from vectors")
    assert (row.n, row.low, row.high) == (300, b"12345678", b"12345678")


async def test_what_came_or_went_meanwhile_is_noticed(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")
    await fill(database, collection, NEW)
    await ingest_documents([Document("late", "Late", "late text", "s")], store=filled, embedder=OLD, collection="c")
    with pytest.raises(InputError, match="1 chunks"):
        await switch(database, collection, NEW.space)
    await erase(database, collection, "late")
    await switch(database, collection, NEW.space)


async def test_an_erased_chunk_is_not_brought_back_by_a_fill(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")

    class ErasesMeanwhile(HashEmbedder):
        async def embed(self, texts):  # type: ignore[no-untyped-def]
            if not self.texts:
                await erase(database, collection, "d7")
            return await super().embed(texts)

    await fill(database, collection, ErasesMeanwhile(128))
    row = await database.fetch_one(
        "select count(*) as n from vectors e where not exists (select from chunks c where c.id = e.chunk_id)"
    )
    assert row is not None
    assert row.n == 0
    spaces = {space.space: space.vectors for space in await list_spaces(database, collection)}
    assert spaces == {OLD.space: 299, NEW.space: 299}


async def test_the_spaces_are_judged_on_questions(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")
    worse = HashEmbedder(2)
    await fill(database, collection, worse)
    questions = [(f"text number {n}", frozenset({f"d{n}"})) for n in range(40)]

    judged = await judge(database, collection, worse, OLD, questions)

    assert judged.before > judged.after
    assert judged.is_worse
    space = next(s for s in await list_spaces(database, collection) if s.space == worse.space)
    assert space.judged["after"] == judged.after


async def test_the_serving_space_is_not_dropped(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")
    await fill(database, collection, NEW)
    with pytest.raises(InputError, match="serves"):
        await drop(database, collection, OLD.space)
    with pytest.raises(UnknownNameError, match="no space 'nope'"):
        await switch(database, collection, "nope")
    await drop(database, collection, NEW.space)
    assert [space.space for space in await list_spaces(database, collection)] == [OLD.space]
