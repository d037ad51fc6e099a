"""One search from left to right: embed the question, find candidates, re-rank them, narrow them, say whether they suffice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.errors import OtherSpaceError
from orchestrator.knowledge.fuse import Weights
from orchestrator.knowledge.join import CANDIDATES, join_passages
from orchestrator.knowledge.rerank import POOL, Ranker
from orchestrator.knowledge.sufficiency import TOP, sufficiency
from orchestrator.protocols import Embedder, Reranker, Store
from orchestrator.types import Citation, Passage, SearchRequest, SearchResult

MAX_LEARNED = 1_000
LEARNED_FOR_S = 30.0  # how long the learnt weights of a collection are believed


class Collections(Store, Protocol):
    """What a retriever asks of the real store beside the search."""

    async def learned(self, tenant: str, collection: str) -> tuple[float | None, float | None]:
        """Weights of the dense side and of the re-ranker that the collection has learnt; None where it has not."""
        ...

    async def read_spans(self, spans: Sequence[Passage], tenant: str) -> list[str]:
        """The stored text at the span of each passage, in order."""
        ...

    async def mark_changes(self, citations: Sequence[Citation], tenant: str) -> tuple[Citation, ...]:
        """The citations, each with what a newer version made of its paragraph."""
        ...


@dataclass(slots=True)
class _Learned:
    """Weights of one collection, and when they were read."""

    dense: float | None
    second: float | None
    read_at: float


@dataclass(frozen=True, slots=True)
class Retriever:
    """Searches. ``next_embedder``: of the space that a collection may be switched to while this process runs."""

    store: Collections
    embedder: Embedder
    reranker: Reranker | None = None
    next_embedder: Embedder | None = None
    budget_s: float = 0.25
    _learned: dict[tuple[str, str], _Learned] = field(default_factory=dict, repr=False)

    async def search(self, request: SearchRequest, *, excerpts: bool = False) -> SearchResult:
        """The k best passages with the scores of every stage. Without ``request.vector`` the question is embedded here.

        ``excerpts``: the sentences that bear on the question, joined where they stand close together, in place of whole
        chunks; then fewer than k may come out. Raises what the store and the embedder raise.
        """
        try:
            return await self._search(request, self.embedder, excerpts)
        except OtherSpaceError as error:
            if self.next_embedder is None or self.next_embedder.space != error.space:
                raise
        return await self._search(replace(request, vector=()), self.next_embedder, excerpts)

    async def mark_changes(self, request: SearchRequest, citations: Sequence[Citation]) -> tuple[Citation, ...]:
        """The citations, each with what a newer version made of its paragraph."""
        return await self.store.mark_changes(citations, request.tenant)

    async def _search(self, request: SearchRequest, embedder: Embedder, excerpts: bool) -> SearchResult:
        vector = request.vector or (await embedder.embed([request.text]))[0]
        ranker = Ranker(embedder, self.reranker, self.budget_s)
        learned = await self._weights_of(request)
        weights = _mixed(await ranker.weights(request.text), learned)
        count = max(request.k, POOL, CANDIDATES)
        found = await self.store.search(
            replace(
                request,
                vector=vector,
                k=count,
                dense_weight=weights.dense,
                with_tokens=ranker.needs_tokens,
                space=embedder.space,
            )
        )
        if request.mode != "hybrid":
            return SearchResult(tuple(replace(passage, tokens=None) for passage in found[: request.k]))
        weights = _mixed(await ranker.weights(request.text, found), learned)
        ranked = await ranker.rank(request.text, found, CANDIDATES if excerpts else max(request.k, TOP), weights)
        signal = sufficiency(request.text, ranked)
        if excerpts:
            return SearchResult(await self._narrowed(request, ranked), signal)
        return SearchResult(tuple(ranked[: request.k]), signal)

    async def _narrowed(self, request: SearchRequest, ranked: Sequence[Passage]) -> tuple[Passage, ...]:
        stretches = join_passages(request.text, ranked[:CANDIDATES], request.k)
        spans = [stretch.passage("") for stretch in stretches]
        texts = await self.store.read_spans(spans, request.tenant) if spans else []
        return tuple(stretch.passage(text) for stretch, text in zip(stretches, texts, strict=True))

    async def _weights_of(self, request: SearchRequest) -> _Learned:
        key = (request.tenant, request.collection)
        known = self._learned.get(key)
        if known is None or time.monotonic() - known.read_at > LEARNED_FOR_S:
            dense, second = await self.store.learned(*key)
            if len(self._learned) >= MAX_LEARNED:  # a caller may name any number of collections that are not there
                self._learned.clear()
            known = self._learned[key] = _Learned(dense, second, time.monotonic())
        return known


def _mixed(weights: Weights, learned: _Learned) -> Weights:
    """The default weights, with those that the collection has learnt in their place."""
    if learned.dense is None and learned.second is None:
        return weights
    return replace(
        weights,
        dense=weights.dense if learned.dense is None else learned.dense,
        second=weights.second if learned.second is None else learned.second,
    )
