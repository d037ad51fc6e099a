"""LangChain's own suite for vector stores over a real collection, and what it does not ask: filters, versions, diversity."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from orchestrator.errors import InputError
from orchestrator.langchain import OrchestratorVectorStore, open_blocking
from orchestrator.langchain_store import OrchestratorEmbeddings


@pytest.fixture(scope="session")
def opened(new_database: Any, tmp_path_factory: Any) -> Iterator[Any]:
    """An Orchestrator over a real database, on a loop of its own; the engine is never asked."""
    with new_database() as url:
        home = tmp_path_factory.mktemp("home")
        with open_blocking(database_url=url, home=home, engine_url="http://127.0.0.1:9") as opened:
            yield opened


@pytest.fixture
def vectorstore(opened: Any, request: Any) -> VectorStore:
    """A store over a collection of its own."""
    return OrchestratorVectorStore(opened, collection=f"c-{abs(hash(request.node.nodeid))}")


class TestVectorStore(VectorStoreIntegrationTests):
    """LangChain's suite, sync and async."""

    @pytest.fixture
    def vectorstore(self, vectorstore: VectorStore) -> VectorStore:  # type: ignore[override]
        return vectorstore


class TestStoreAsRetriever(RetrieversIntegrationTests):
    """LangChain's suite for the retriever that a store makes of itself."""

    @pytest.fixture(autouse=True)
    def _store(self, vectorstore: VectorStore) -> None:
        vectorstore.add_texts([f"text {number} about leave" for number in range(5)])
        self._kept = vectorstore

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        def make(k: int = 4, **_: Any) -> VectorStoreRetriever:
            return self._kept.as_retriever(search_kwargs={"k": k})

        return make  # type: ignore[return-value]

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {}

    @property
    def retriever_query_example(self) -> str:
        return "leave"


def test_a_filter_is_kept(vectorstore: VectorStore) -> None:
    vectorstore.add_texts(["leave in HR", "leave in IT"], [{"department": "HR"}, {"department": "IT"}], ids=["1", "2"])
    found = vectorstore.similarity_search("leave", k=5, filter={"department": "IT"})
    assert [document.id for document in found] == ["2"]


def test_the_text_of_before_is_found_as_of_then(vectorstore: VectorStore) -> None:
    vectorstore.add_texts(["25 days of leave"], [{"valid_from": "2024-01-01"}], ids=["leave"])
    vectorstore.add_texts(["30 days of leave"], [{"valid_from": "2025-01-01"}], ids=["leave"])
    (now,) = vectorstore.similarity_search("days of leave", k=1)
    (then,) = vectorstore.similarity_search("days of leave", k=1, as_of=datetime(2024, 6, 1, tzinfo=UTC))
    assert (now.page_content, then.page_content) == ("30 days of leave", "25 days of leave")


def test_scores_are_relevance(vectorstore: VectorStore) -> None:
    vectorstore.add_texts(["days of leave", "parking is free"], ids=["1", "2"])
    found = vectorstore.similarity_search_with_relevance_scores("days of leave", k=2)
    assert [document.id for document, _ in found] == ["1", "2"]
    assert 1 >= found[0][1] > found[1][1] >= 0


def test_the_diverse_search_leaves_out_the_double(vectorstore: VectorStore) -> None:
    vectorstore.add_texts(
        ["thirty days of leave", "thirty days of leave!", "leave is asked for by mail"], ids=["1", "2", "3"]
    )
    found = vectorstore.max_marginal_relevance_search("thirty days of leave", k=2, lambda_mult=0.2)
    assert {document.id for document in found} & {"3"}


def test_a_vector_finds_its_text(vectorstore: VectorStore) -> None:
    vectorstore.add_texts(["days of leave", "parking is free"], ids=["1", "2"])
    assert isinstance(vectorstore.embeddings, OrchestratorEmbeddings)
    vector = vectorstore.embeddings.embed_query("parking is free")
    assert [document.id for document in vectorstore.similarity_search_by_vector(vector, k=1)] == ["2"]


def test_ids_are_needed_to_delete(vectorstore: VectorStore) -> None:
    with pytest.raises(InputError, match="needs ids"):
        vectorstore.delete()


def test_one_id_for_each_text(vectorstore: VectorStore) -> None:
    with pytest.raises(InputError, match="2 texts, 1 ids"):
        vectorstore.add_texts(["a", "b"], ids=["1"])


def test_what_looks_like_an_object_comes_back_as_data(vectorstore: VectorStore) -> None:
    secret = {"lc": 1, "type": "secret", "id": ["HOME"]}
    vectorstore.add_texts(["harmless"], [{"payload": secret}], ids=["1"])
    assert vectorstore.get_by_ids(["1"]) == [Document(id="1", page_content="harmless", metadata={"payload": secret})]
