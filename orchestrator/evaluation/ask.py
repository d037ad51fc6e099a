"""Asks the very pipeline that serves, with at most one thing changed, and writes nothing to the ledger: items in, outcomes out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.behaviour.canary import Signs, Trial
from orchestrator.behaviour.distill import Teacher
from orchestrator.contract import Contract
from orchestrator.engine import request_body
from orchestrator.errors import EngineUnavailableError, InputError, OrchestratorError
from orchestrator.evaluation.items import Change, Item, Outcome
from orchestrator.evaluation.tune import NO_HURRY_S
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.ledger import Record, canonical
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

CONCURRENCY = 16  # as many as the embedded engine works on at once; 1 to 32 measured in docs/howto/diagnose.md
UNCHANGED = Change()
_FENCE = re.compile(r"\s*```\w*\n(.*?)\n?```\s*$", re.DOTALL)
Price = Callable[[Usage, str], float | None]  # tokens and adapter ("" for the base) to money


class PipelineAsker:
    """Asks an open system. ``strong``: the stronger model of ``Change(engine="strong")``; ``price``: what an answer costs.

    ``memory``: what the model wrote before, so that the same prompt is not sent twice; ``Change(anew=True)`` looks past it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        collection: str | None = None,
        tenant: str | None = None,
        strong: Served | None = None,
        price: Price | None = None,
        concurrency: int = CONCURRENCY,
        memory: Memory | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._collection = collection
        self._tenant = tenant or pipeline.settings.tenant
        self._strong = strong
        self._price = price
        self._memory = memory
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
            serving=ChangedServing(self._pipeline.serving, change, self._strong, self._memory),
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
        """As the system does; a passage that was made of a quote is of no stored document."""
        stored = [each for each in citations if each.document_id]
        marked = iter(await self.inner.mark_changes(request, stored) if stored else ())
        return tuple(next(marked) if each.document_id else each for each in citations)


@dataclass(frozen=True, slots=True)
class ChangedServing:
    """Who answers: the same adapter, or the stronger model, or an engine whose decoding is free. A canary learns nothing of it."""

    inner: Serving
    change: Change
    strong: Served | None
    memory: Memory | None = None

    async def resolve(self, adapter: str | None, key: str | None = None) -> Served:
        """Raises what serving raises, and InputError when there is no stronger model."""
        if self.change.engine == "strong":
            if self.strong is None:
                raise InputError("no stronger model is set, so it cannot be asked", param="engine")
            served = self.strong
        else:
            served = await self.inner.resolve(adapter, key)
        served = replace(served, trial=None)
        if self.memory is not None and not self.change.anew:
            where = "strong" if self.change.engine == "strong" else ""
            served = replace(served, engine=Remembering(served.engine, self.memory, where))
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


class Taught:
    """A model behind any OpenAI-compatible endpoint as an engine: it is told the contract's schema, and no grammar."""

    def __init__(self, teacher: Teacher, model: str) -> None:
        self._teacher = teacher
        self._model = model

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """The whole text at once, out of its fence. Raises EngineError. Its tokens are not counted."""
        messages = [{"role": each.role, "content": each.content} for each in generation.messages]
        text = await self._teacher.complete(messages, generation.schema)
        text = fenced.group(1) if (fenced := _FENCE.match(text)) else text.strip()
        yield text
        yield Completion(text, "stop", self._model)

    async def count_tokens(self, messages: Sequence[Mapping[str, str]], model: str) -> int:
        """A third of the characters: its tokenizer is not known, and none needs more on text."""
        return sum(len(each["content"]) for each in messages) // 3 + 1

    async def models(self) -> list[str]:
        """Its name."""
        return [self._model]

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises InputError: it takes no adapter of ours."""
        raise InputError(f"{self._model} takes no adapter; it is asked as it is", param="engine")

    async def unload_adapter(self, name: str) -> None:
        """There is none."""

    async def is_ready(self) -> bool:
        """It is taken to be."""
        return True

    async def aclose(self) -> None:
        """Who opened the teacher closes it."""


Written = tuple[tuple[str, ...], Completion]  # the deltas as they came, and the end


class Memory:
    """What the model wrote, by the hash of all that was sent to it; with ``file`` (JSON lines) also of an earlier process.

    A model that is asked without sampling says the same again but for rounding, so a replay that sends what was sent
    before need not wait for it. Failures are not kept.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, asyncio.Future[Written | None]] = {}
        self._lines: dict[str, list[Any]] = {}
        if file is not None and file.exists():
            whole = (line for line in file.read_text("utf-8").split("\n") if line.endswith("]"))
            self._lines = {row[0]: row for row in map(json.loads, whole)}
        self.asked = 0  # times that the model was asked

    def find(self, key: str) -> asyncio.Future[Written | None] | None:
        """What was written, or is being written now; None when it must be asked for."""
        if key not in self._known and key in self._lines:
            _, text, reason, model, *tokens = self._lines[key]
            self.begin(key).set_result(((text,), Completion(text, reason, model, Usage(*tokens))))
        return self._known.get(key)

    def begin(self, key: str) -> asyncio.Future[Written | None]:
        """A place for what is being written: who asks for the same meanwhile waits for it."""
        self._known[key] = asyncio.get_running_loop().create_future()
        return self._known[key]

    def keep(self, key: str, pieces: Sequence[str], completion: Completion) -> None:
        """Hands it to all who wait, and writes it down."""
        self._known[key].set_result((tuple(pieces), completion))
        if self._file is not None:
            usage = completion.usage
            row = [key, completion.text, completion.finish_reason, completion.model,
                   usage.prompt_tokens, usage.completion_tokens]  # fmt: skip
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")

    def drop(self, key: str) -> None:
        """Nothing came of it: who waits asks for himself."""
        self._known.pop(key).set_result(None)


class Remembering:
    """An engine that is asked only for what the memory does not hold. ``where`` tells engines apart that share names."""

    def __init__(self, inner: Any, memory: Memory, where: str = "") -> None:
        self._inner = inner
        self._memory = memory
        self._where = where

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """As the engine would; raises what the engine raises."""
        sent = canonical([self._where, request_body(generation)])
        key = hashlib.sha256(sent.encode()).hexdigest()
        while (found := self._memory.find(key)) is not None:
            written = await asyncio.shield(found)
            if written is None:
                continue
            for piece in written[0]:
                yield piece
            yield written[1]
            return
        self._memory.begin(key)
        self._memory.asked += 1
        pieces: list[str] = []
        kept = False
        try:
            async with aclosing(self._inner.stream(generation)) as events:
                async for event in events:
                    if isinstance(event, Completion):
                        self._memory.keep(key, pieces, event)
                        kept = True
                    else:
                        pieces.append(event)
                    yield event
        finally:
            if not kept:
                self._memory.drop(key)

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
    """The routes with another threshold or adapter, or as the package has them; a stronger model has no adapter of ours."""
    values: dict[str, Any] = {}
    if change.min_sufficiency is not None:
        values["min_sufficiency"] = change.min_sufficiency
    if change.adapter is not None or change.engine == "strong":
        values["adapter"] = None if change.engine == "strong" else change.adapter or None
    if change.prompt == "shipped":
        catalogue = _as_shipped(catalogue)
    routes = {name: replace(route, **values) for name, route in catalogue.routes.items()}
    return replace(catalogue, routes=routes)


def _as_shipped(catalogue: Catalogue) -> Catalogue:
    """Routes that the package has as well ask as it does: its prompts, contracts and adapters, in place of the user's."""
    shipped = _package()
    routes = {
        name: replace(route, prompt=own.prompt, contract=own.contract, adapter=own.adapter)
        if (own := shipped.routes.get(name)) is not None
        else route
        for name, route in catalogue.routes.items()
    }
    prompts = {**catalogue.prompts, **shipped.prompts}
    return replace(catalogue, routes=routes, prompts=prompts, contracts={**catalogue.contracts, **shipped.contracts})


@cache
def _package() -> Catalogue:
    return load_catalogue(folder("prompts"))


def _reranked(searcher: Searcher, rerank: bool | None) -> Searcher:
    """The search with the re-ranker on or off, and in no hurry: one that is late under our own load would count as absent."""
    if not isinstance(searcher, Retriever):
        if rerank is not None:
            raise InputError("re-ranking can be switched in the real search only", param="rerank")
        return searcher
    if rerank and searcher.reranker is None:
        raise InputError("this system has no re-ranker; set ORCHESTRATOR_RERANKER", param="rerank")
    return replace(searcher, reranker=None if rerank is False else searcher.reranker, budget_s=NO_HURRY_S)
