"""The retriever on a real collection: learnt weights, excerpts, a change of the embedding model under it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.database import Database
from orchestrator.errors import OtherSpaceError
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.spaces import fill, switch
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

OLD, NEW = HashEmbedder(64), HashEmbedder(128)
LEAVE = "Everybody has thirty days of leave. The kitchen is cleaned on Fridays. Nobody may bring a cat."
ASKED = SearchRequest("How many days of leave?", (), "c", 3)


@pytest.fixture
async def filled(database: Database) -> PgStore:
    store = PgStore(database, space=OLD.space)
    documents = [Document("leave", "Leave", LEAVE, "a"), Document("pets", "Pets", "Dogs are welcome.", "b")]
    await ingest_documents(documents, store=store, embedder=OLD, collection="c")
    return store


async def test_a_switched_collection_is_searched_with_its_new_model(database: Database, filled: PgStore) -> None:
    collection = await filled.collection("c")
    await fill(database, collection, NEW)
    both, one = Retriever(filled, OLD, next_embedder=NEW), Retriever(filled, OLD)
    before = await both.search(ASKED)

    await switch(database, collection, NEW.space)

    assert [p.external_id for p in await both.search(ASKED)] == [p.external_id for p in before] == ["leave", "pets"]
    with pytest.raises(OtherSpaceError):
        await one.search(ASKED)


async def test_excerpts_are_the_stored_text_at_their_spans(filled: PgStore) -> None:
    (found, *_) = await Retriever(filled, OLD).search(ASKED, excerpts=True)
    assert found.external_id == "leave"
    assert found.text == LEAVE[slice(*found.span)]
    assert "thirty days" in found.text


async def test_the_weights_that_a_collection_has_learnt_are_used(database: Database, filled: PgStore) -> None:
    asked = replace(ASKED, text="thirty dogs")
    default = {p.external_id: p.scores["fused"] for p in await Retriever(filled, OLD).search(asked)}
    async with database.transaction() as connection:
        await connection.execute("update collections set dense_weight = 0")
    lexical = {p.external_id: p.scores for p in await Retriever(filled, OLD).search(asked)}
    assert {name: scores["fused"] for name, scores in lexical.items()} != default
    assert all(scores["fused"] == pytest.approx(scores["bm25_norm"]) for scores in lexical.values())


@pytest.mark.parametrize("mode", ["hybrid", "lexical", "dense"])
async def test_no_token_vectors_leave_the_retriever(filled: PgStore, mode: str) -> None:
    found = await Retriever(filled, OLD).search(replace(ASKED, mode=mode))
    assert len(found) > 0
    assert all(passage.tokens is None for passage in found)


async def test_how_likely_they_suffice_is_told_from_more_than_are_wanted(
    filled: PgStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.knowledge.retrieve.sufficiency", lambda question, passages: len(passages))
    found = await Retriever(filled, OLD).search(replace(ASKED, k=1))
    assert (len(found), found.sufficiency) == (1, 2)
