"""LangChain's VectorStore over a collection: documents in and out by id, hybrid search with filters."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.sources.document import clean_metadata, parse_valid_from
from orchestrator.types import Document, Passage, SearchMode, SearchRequest

SOURCE = "langchain"


class OrchestratorEmbeddings(Embeddings):
    """The embedder of an open Orchestrator, as LangChain wants it."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One unit vector per text."""
        found: list[list[float]] = self._opened.block(self._opened.orchestrator.embed(texts))
        return found

    def embed_query(self, text: str) -> list[float]:
        """The text's unit vector."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """One unit vector per text."""
        found: list[list[float]] = await self._opened.wait(self._opened.orchestrator.embed(texts))
        return found

    async def aembed_query(self, text: str) -> list[float]:
        """The text's unit vector."""
        return (await self.aembed_documents([text]))[0]


class OrchestratorVectorStore(VectorStore):
    """A collection of an open Orchestrator. Adding an id again makes a new version; the old one stays for ``as_of``.

    ``mode``: hybrid unless set. A long document is found by its passages, whose ``id`` is the document's.
    """

    def __init__(self, opened: Any, collection: str | None = None, mode: SearchMode = "hybrid") -> None:
        self._opened = opened
        self._orchestrator = opened.orchestrator
        self._collection = collection or self._orchestrator.settings.collection
        self._mode: SearchMode = mode

    @property
    def embeddings(self) -> Embeddings:
        """The Orchestrator's embedder."""
        return OrchestratorEmbeddings(self._opened)

    # writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Indexes texts; gives their ids, made up where none were given. Raises InputError for a text that is refused."""
        added: list[str] = self._opened.block(self._add(list(texts), metadatas, ids))
        return added

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As ``add_texts``."""
        added: list[str] = await self._opened.wait(self._add(list(texts), metadatas, ids))
        return added

    async def _add(
        self, texts: Sequence[str], metadatas: Sequence[Mapping[str, Any]] | None, ids: Sequence[str | None] | None
    ) -> list[str]:
        names = [name or str(uuid.uuid4()) for name in (ids or [None] * len(texts))]
        described = metadatas or [{} for _ in texts]
        if not len(names) == len(texts) == len(described):
            raise InputError(f"there are {len(texts)} texts, {len(names)} ids and {len(described)} metadatas")
        documents = [
            _document(name, text, metadata) for name, text, metadata in zip(names, texts, described, strict=True)
        ]
        report = await self._orchestrator.ingest_documents(documents, collection=self._collection)
        if report.failures:
            failure = report.failures[0]
            raise InputError(
                f"{len(report.failures)} of {len(texts)} texts were not indexed; the first: {failure.reason}"
            )
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Takes documents out of every search; an id that is not there is no error. Raises InputError without ids."""
        deleted: bool = self._opened.block(self._delete(ids))
        return deleted

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """As ``delete``."""
        deleted: bool = await self._opened.wait(self._delete(ids))
        return deleted

    async def _delete(self, ids: Sequence[str] | None) -> bool:
        if ids is None:
            raise InputError("delete needs ids: a whole collection is not deleted by leaving them out", param="ids")
        for name in ids:
            try:
                await self._orchestrator.store.delete(self._collection, name)
            except UnknownNameError:
                continue
        return True

    # reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """The documents of these ids that are there, whole."""
        found: list[LangChainDocument] = self._opened.block(self._by_ids(ids))
        return found

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """As ``get_by_ids``."""
        found: list[LangChainDocument] = await self._opened.wait(self._by_ids(ids))
        return found

    async def _by_ids(self, ids: Sequence[str]) -> list[LangChainDocument]:
        try:
            rows = await self._orchestrator.store.current_texts(self._collection, ids)
        except UnknownNameError:
            return []  # nothing was added yet
        return [LangChainDocument(id=row.external_id, page_content=row.text, metadata=row.metadata) for row in rows]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[LangChainDocument]:
        """The k best passages. Options: filter (metadata), as_of, known_at, mode."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[LangChainDocument]:
        """As ``similarity_search``."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[LangChainDocument, float]]:
        """The k best passages with their scores, higher is better."""
        return [_scored(passage) for passage in self._opened.block(self._search(query, k, **kwargs))]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[LangChainDocument, float]]:
        """As ``similarity_search_with_score``."""
        return [_scored(passage) for passage in await self._opened.wait(self._search(query, k, **kwargs))]

    async def _search(
        self,
        query: str,
        k: int,
        *,
        filter: Mapping[str, Any] | None = None,
        mode: SearchMode | None = None,
        **kwargs: Any,
    ) -> Sequence[Passage]:
        options = {name: value for name, value in kwargs.items() if name in ("as_of", "known_at")}
        try:
            found: Sequence[Passage] = await self._orchestrator.search(
                query, k=k, collection=self._collection, where=filter, mode=mode or self._mode, **options
            )
        except UnknownNameError as error:
            if error.param == "collection":
                return ()  # nothing was added yet: LangChain's empty store
            raise
        return found

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[LangChainDocument]:
        """The k passages nearest to a vector of the collection's space."""
        return [_scored(passage)[0] for passage in self._opened.block(self._near(embedding, k, kwargs.get("filter")))]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[LangChainDocument]:
        """As ``similarity_search_by_vector``."""
        return [
            _scored(passage)[0] for passage in await self._opened.wait(self._near(embedding, k, kwargs.get("filter")))
        ]

    async def _near(self, vector: Sequence[float], k: int, where: Mapping[str, Any] | None) -> Sequence[Passage]:
        tenant = self._orchestrator.settings.tenant
        request = SearchRequest("", vector, self._collection, k, tenant, where=where, mode="dense")
        found: Sequence[Passage] = await self._orchestrator.store.search(request)
        return found

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[LangChainDocument]:
        """Of the ``fetch_k`` best passages the k that are near to the query and far from each other."""
        found: list[LangChainDocument] = self._opened.block(self._diverse(query, k, fetch_k, lambda_mult, kwargs))
        return found

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[LangChainDocument]:
        """As ``max_marginal_relevance_search``."""
        found: list[LangChainDocument] = await self._opened.wait(self._diverse(query, k, fetch_k, lambda_mult, kwargs))
        return found

    async def _diverse(
        self, query: str, k: int, fetch_k: int, lambda_mult: float, options: Mapping[str, Any]
    ) -> list[LangChainDocument]:
        import numpy as np

        passages = await self._search(query, fetch_k, **options)
        if not passages:
            return []
        asked, *vectors = await self._orchestrator.embed([query, *(passage.text for passage in passages)])
        chosen = maximal_marginal_relevance(np.array(asked), vectors, lambda_mult, k)
        return [_scored(passages[place])[0] for place in chosen]

    def _select_relevance_score_fn(self) -> Any:
        return lambda score: min(1.0, max(0.0, score))  # the scores are relevance already

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> OrchestratorVectorStore:
        """A store with these texts. ``opened``: the Orchestrator that keeps them, whose own embedder is used."""
        opened = kwargs.pop("opened", None)
        if opened is None:
            raise InputError("pass opened=...: the documents are kept by an open Orchestrator, see open_blocking()")
        store = cls(opened, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store


def _document(name: str, text: str, metadata: Mapping[str, Any]) -> Document:
    """Title and date stay in the metadata too: what was put in comes out again."""
    values, _ = clean_metadata(metadata)
    title = values.get("title")
    return Document(
        external_id=name,
        title=title if isinstance(title, str) else "",
        text=text,
        source=SOURCE,
        metadata=values,
        valid_from=parse_valid_from(values.get("valid_from")),
    )


def _scored(passage: Passage) -> tuple[LangChainDocument, float]:
    document = LangChainDocument(id=passage.external_id, page_content=passage.text, metadata=dict(passage.metadata))
    return document, passage.score
