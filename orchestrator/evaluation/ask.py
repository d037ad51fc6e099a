"""Asks the very pipeline that serves, with at most one thing changed, and writes nothing to the ledger: items in, outcomes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.behaviour.canary import Signs, Trial
from orchestrator.contract import Contract
from orchestrator.errors import EngineUnavailableError, InputError, OrchestratorError
from orchestrator.evaluation.items import Change, Item, Outcome
from orchestrator.evaluation.tune import NO_HURRY_S
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.ledger import Record
from orchestrator.pipeline import Pipeline, Searcher, Served, Serving
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.resources import folder
from orchestrator.types import (
    Answer,
    Citation,
    Completion,
    Generation,
    Passage,
    Plan,
    Query,
    SearchRequest,
    SearchResult,
    Usage,
)

CONCURRENCY = 8
UNCHANGED = Change()
Price = Callable[[Usage, str], float | None]  # tokens and adapter ("" for the base) to money


class PipelineAsker:
    """Asks an open system. ``strong``: the stronger model of ``Change(engine="strong")``; ``price``: what an answer costs."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        collection: str | None = None,
        tenant: str | None = None,
        strong: Served | None = None,
        price: Price | None = None,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self._pipeline = pipeline
        self._collection = collection
        self._tenant = tenant or pipeline.settings.tenant
        self._strong = strong
        self._price = price
        self._gate = asyncio.Semaphore(concurrency)

    async def ask(self, item: Item, change: Change = UNCHANGED) -> Outcome:
        """What the system does with the item. A failed answer is an outcome with ``error``: ``code: message``."""
        async with self._gate:
            seen = Seen()
            try:
                return await self._asked(item, change, seen)
            except OrchestratorError as error:
                return self._failed(item, seen, error)

    async def search(self, item: Item, change: Change = UNCHANGED) -> tuple[Passage, ...]:
        """The passages that the item's route finds, ``change.k`` of them; of the default collection where it retrieves nothing.

        Raises what the search raises: that is no answer of the system.
        """
        async with self._gate:
            pipeline = self._changed(change, Seen())
            query = self._query(item, replace(change, k=None))
            plan = await pipeline.plan(query)
            collection = plan.collection or query.collection or pipeline.settings.collection
            request = SearchRequest(
                query.text, (), collection, change.k or plan.k or 10, query.tenant, query.as_of, None, plan.where
            )
            found = await pipeline.searcher.search(request, excerpts=plan.excerpts)
            return tuple(found)

    def _query(self, item: Item, change: Change) -> Query:
        return Query(
            item.question,
            route=change.route,
            collection=self._collection,
            as_of=change.as_of or item.as_of,
            k=change.k,
            tenant=self._tenant,
            user=item.id,  # where a canary runs, an item stays on one arm
        )

    async def _asked(self, item: Item, change: Change, seen: Seen) -> Outcome:
        pipeline = self._changed(change, seen)
        async with aclosing(pipeline.stream(self._query(item, change))) as events:
            async for event in events:
                if isinstance(event, Plan):
                    seen.plan = event
                if isinstance(event, Answer):
                    return self._outcome(item, event)
        raise EngineUnavailableError("the pipeline ended without an answer; ask again")

    def _outcome(self, item: Item, answer: Answer) -> Outcome:
        return Outcome(
            item.id,
            answer.text,
            answer.data,
            is_refused(answer, self._pipeline.catalogue),
            tuple((each.external_id, each.version, each.quote) for each in answer.citations),
            answer.passages,
            answer.route,
            answer.adapter,
            answer.flags,
            "",
            answer.sufficiency,
            answer.usage,
            answer.timings_ms,
            self._price(answer.usage, answer.adapter or "") if self._price else None,
        )

    def _failed(self, item: Item, seen: Seen, error: OrchestratorError) -> Outcome:
        """What is known of an answer that failed: its route, what the model was shown, what it cost."""
        intent, ended = seen.payloads.get("intent", {}), seen.payloads.get("outcome", {})
        usage = Usage(**ended["usage"]) if ended else Usage()
        adapter = (intent.get("adapter") or {}).get("name")
        shown = {(each["chunk_id"], *each["span"]) for each in intent.get("passages", ())}
        return Outcome(
            item.id,
            passages=tuple(each for each in seen.found if (each.chunk_id, *each.span) in shown),
            route=seen.plan.route if seen.plan else "",
            adapter=adapter,
            error=f"{error.code}: {error.message}",
            sufficiency=seen.sufficiency,
            usage=usage,
            timings_ms=ended.get("timings_ms", {}),
            cost=self._price(usage, adapter or "") if self._price else None,
        )

    def _changed(self, change: Change, seen: Seen) -> Pipeline:
        """The pipeline that serves, with the change. Raises InputError for one that this system cannot make."""
        catalogue = _changed_catalogue(self._pipeline.catalogue, change)
        return replace(
            self._pipeline,
            catalogue=catalogue,
            router=replace(self._pipeline.router, catalogue=catalogue),
            searcher=ChangedSearcher(_reranked(self._pipeline.searcher, change.rerank), change, seen),
            serving=ChangedServing(self._pipeline.serving, change, self._strong),
            ledger=Unrecorded(seen),
        )


def is_refused(answer: Answer, catalogue: Catalogue) -> bool:
    """Whether it says that there is no answer: a reply without a model, or the contract's refusal."""
    if answer.plan.action != "answer" or answer.data is None:
        return answer.plan.action != "answer"
    contract: Contract = catalogue.contract(answer.plan.contract or "")
    return contract.is_refusal(answer.data)


@dataclass(slots=True)
class Seen:
    """What passed by while one item was asked."""

    plan: Plan | None = None
    found: tuple[Passage, ...] = ()
    sufficiency: float | None = None
    payloads: dict[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChangedSearcher:
    """The search with another mode, or given passages in place of it."""

    inner: Searcher
    change: Change
    seen: Seen

    async def search(self, request: SearchRequest, *, excerpts: bool = False) -> SearchResult:
        """The passages; given ones come without a sufficiency, so that nothing keeps them from the model."""
        if self.change.passages is not None:
            found = SearchResult(self.change.passages)
        else:
            mode = self.change.mode or request.mode
            found = await self.inner.search(replace(request, mode=mode), excerpts=excerpts)
        self.seen.found, self.seen.sufficiency = found.passages, found.sufficiency
        return found

    async def mark_changes(self, request: SearchRequest, citations: Sequence[Citation]) -> tuple[Citation, ...]:
        """As the system does."""
        return await self.inner.mark_changes(request, citations)


@dataclass(frozen=True, slots=True)
class ChangedServing:
    """Who answers: the same adapter, or the stronger model, or an engine whose decoding is free. A canary learns nothing of it."""

    inner: Serving
    change: Change
    strong: Served | None

    async def resolve(self, adapter: str | None, key: str | None = None) -> Served:
        """Raises what serving raises, and InputError when there is no stronger model."""
        if self.change.engine == "strong":
            if self.strong is None:
                raise InputError("no stronger model is set, so it cannot be asked", param="engine")
            served = self.strong
        else:
            served = await self.inner.resolve(adapter, key)
        served = replace(served, trial=None)
        return replace(served, engine=Free(served.engine)) if self.change.constrained is False else served

    def observe(self, trial: Trial | None, signs: Signs) -> None:
        """An evaluation is no traffic."""

    def forget(self, adapter: str | None) -> None:
        """As the system does."""
        self.inner.forget(adapter)


class Free:
    """An engine that is not told the contract."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """What the model writes when nothing constrains it."""
        async with aclosing(self._inner.stream(replace(generation, schema=None, grammar=None))) as pieces:
            async for piece in pieces:
                yield piece

    def __getattr__(self, name: str) -> Any:
        """Everything else is the engine's own."""
        return getattr(self._inner, name)


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """A recorder that keeps the last records in memory: questions of an evaluation are nobody's answers."""

    seen: Seen

    def put(self, record: Record) -> asyncio.Future[None]:
        """Keeps the record's payload for the outcome of a failure."""
        self.seen.payloads[record.kind] = json.loads(record.payload)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def write(self, record: Record) -> None:
        """Keeps the record's payload."""
        await self.put(record)

    async def flush(self) -> None:
        """Nothing waits."""


def _changed_catalogue(catalogue: Catalogue, change: Change) -> Catalogue:
    """The routes with another threshold or adapter, or the package's own prompts; a stronger model has no adapter of ours."""
    values: dict[str, Any] = {}
    if change.min_sufficiency is not None:
        values["min_sufficiency"] = change.min_sufficiency
    if change.adapter is not None or change.engine == "strong":
        values["adapter"] = None if change.engine == "strong" else change.adapter or None
    prompts = catalogue.prompts
    if change.prompt == "shipped":
        shipped = load_catalogue(folder("prompts")).prompts
        prompts = {name: shipped.get(name, prompt) for name, prompt in prompts.items()}
    routes = {name: replace(route, **values) for name, route in catalogue.routes.items()}
    return replace(catalogue, routes=routes, prompts=prompts)


def _reranked(searcher: Searcher, rerank: bool | None) -> Searcher:
    """The search with the re-ranker on or off, and in no hurry: one that is late under our own load would count as absent."""
    if not isinstance(searcher, Retriever):
        if rerank is not None:
            raise InputError("re-ranking can be switched in the real search only", param="rerank")
        return searcher
    if rerank and searcher.reranker is None:
        raise InputError("this system has no re-ranker; set ORCHESTRATOR_RERANKER", param="rerank")
    return replace(searcher, reranker=None if rerank is False else searcher.reranker, budget_s=NO_HURRY_S)
