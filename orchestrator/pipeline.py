"""One query from left to right: plan, search, compose, generate, check, record. Query in, events out, the last one the Answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.behaviour.canary import Signs, Trial
from orchestrator.check import Checked, check_output, refusal
from orchestrator.compose import Composition, compose_messages
from orchestrator.contract import Contract
from orchestrator.errors import (
    AdapterUnavailableError,
    ContractError,
    EngineUnavailableError,
    InputError,
    LedgerError,
    OrchestratorError,
    StreamBrokenError,
    TooLargeError,
    UnknownNameError,
)
from orchestrator.ledger import Record, intent_record, outcome_record
from orchestrator.prompts import Catalogue
from orchestrator.protocols import Embedder, Engine, Tokens
from orchestrator.reveal import open_reveal
from orchestrator.router import Router
from orchestrator.settings import Settings
from orchestrator.types import (
    Adapter,
    Answer,
    Citation,
    Completion,
    Delta,
    Event,
    Generation,
    Passage,
    Plan,
    Query,
    SearchMode,
    SearchRequest,
    SearchResult,
    Usage,
)

UNCITED = frozenset({"citation_dropped", "evidence_not_verbatim", "no_source", "unsupported"})
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """Who answers: an engine, the model's name there, and the adapter that is proven active under it (None: the base)."""

    engine: Engine
    model: str
    adapter: Adapter | None = None
    degraded: str | None = None
    trial: Trial | None = None  # its place in a running canary


class Serving(Protocol):
    """Finds who answers for an adapter."""

    async def resolve(self, adapter: str | None, key: str | None = None) -> Served:
        """Raises AdapterUnavailableError when the adapter is not proven active; the base never stands in silently.

        ``key`` names the conversation: where a canary runs, it stays on one arm.
        """
        ...

    def observe(self, trial: Trial | None, signs: Signs) -> None:
        """Takes in what an answer showed of its arm, without waiting."""
        ...

    def forget(self, adapter: str | None) -> None:
        """The engine did not know the adapter: look again next time."""
        ...


class Searcher(Protocol):
    """Finds passages; knowledge.retrieve.Retriever is the real one."""

    async def search(self, request: SearchRequest, *, excerpts: bool = False) -> SearchResult:
        """The k best passages, best first."""
        ...

    async def mark_changes(self, request: SearchRequest, citations: Sequence[Citation]) -> tuple[Citation, ...]:
        """The citations, each with what a newer version made of its paragraph."""
        ...


class Recorder(Protocol):
    """Keeps the records of answers; Ledger is the real one."""

    def put(self, record: Record) -> asyncio.Future[None]:
        """Hands over a record without waiting."""
        ...

    async def write(self, record: Record) -> None:
        """Returns when the record is durable. Raises LedgerError."""
        ...

    async def flush(self) -> None:
        """Waits until everything handed over is durable or has failed."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the question's vector, and what a second look has found already for it."""

    plan: Plan
    vector: Sequence[float] | None = None
    found: SearchResult | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything that a query passes through."""

    settings: Settings
    catalogue: Catalogue
    router: Router
    embedder: Embedder
    searcher: Searcher
    serving: Serving
    ledger: Recorder
    tokens: Tokens | None = None

    async def plan(self, query: Query) -> Plan:
        """What would be done with the query, without doing it."""
        return (await self._plan(query, Clock())).plan

    async def search(self, query: Query, *, mode: SearchMode = "hybrid", excerpts: bool = False) -> SearchResult:
        """The passages for a query, without asking a model."""
        check_query(query, self.settings)
        request = SearchRequest(
            query.text, (), query.collection or self.settings.collection, query.k or 10, query.tenant,
            query.as_of, query.known_at, query.where, mode,
        )  # fmt: skip
        return await self.searcher.search(request, excerpts=excerpts)

    async def ask(self, query: Query) -> Answer:
        """The checked answer."""
        async with aclosing(self.stream(query)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise StreamBrokenError("the pipeline ended without an answer", answer_id=query.id)

    async def stream(self, query: Query) -> AsyncGenerator[Event]:
        """The plan, the answer's text as it is generated, and the checked Answer; each error carries the answer's id."""
        clock = Clock()
        run = Run(query)
        try:
            deadline = asyncio.get_running_loop().time() + self.settings.request_timeout_s
            async with aclosing(self._steps(query, clock, run)) as events:
                while True:
                    async with asyncio.timeout_at(deadline):  # around each step, never across a yield to the caller
                        event = await anext(events, None)
                    if event is None:
                        return
                    yield event
        except OrchestratorError as error:
            error.answer_id = query.id
            await self._fail(run, clock, error)
            raise
        except TimeoutError as error:
            failure = StreamBrokenError(
                f"no answer within {self.settings.request_timeout_s:.0f} s; raise ORCHESTRATOR_REQUEST_TIMEOUT_S",
                answer_id=query.id,
            )
            await self._fail(run, clock, failure)
            raise failure from error
        except (asyncio.CancelledError, GeneratorExit):
            if run.recorded and not run.closed:
                run.closed = True
                self.ledger.put(outcome_record(query, "cancelled", run.delivered, run.usage, clock.marks))
            raise
        except Exception as error:
            logger.exception("answer %s failed", query.id)
            mistake = OrchestratorError(
                f"an unexpected {type(error).__name__} in our own code; the log says where. Please report it",
                answer_id=query.id,
            )
            await self._fail(run, clock, mistake)
            raise mistake from error

    async def _steps(self, query: Query, clock: Clock, run: Run) -> AsyncGenerator[Event]:
        check_query(query, self.settings)
        planned = await self._plan(query, clock)
        plan = planned.plan
        if plan.action != "answer":
            reply = self.catalogue.route(plan.route).reply or ""
            await self._begin(run, intent_record(query, plan))
            yield plan
            yield Delta(reply)
            yield await self._close(run, clock, Answer(query.id, reply, None, (), plan))
            return
        found = planned.found
        if found is None:
            found = await self._find(query, plan, planned.vector, clock)
        passages = found.passages
        contract = self.catalogue.contract(plan.contract or "")
        suffices = found.sufficiency is None or found.sufficiency >= plan.min_sufficiency
        served = await self._serve(plan, conversation(query)) if (passages and suffices) or not plan.retrieves else None
        clock.mark("serve")
        composition = await self._compose(query, plan, passages, served) if served else Composition((), ())
        clock.mark("compose")
        if served is None or (plan.retrieves and not composition.passages):
            reason = "no_passages" if not passages else "passages_too_long" if suffices else "passages_insufficient"
            nothing = refusal(contract, (reason,))
            await self._begin(run, intent_record(query, plan, passages))
            yield plan
            yield Delta(nothing.text)
            yield await self._close(
                run,
                clock,
                Answer(
                    query.id, nothing.text, nothing.data, (), plan, flags=nothing.flags, sufficiency=found.sufficiency
                ),
            )
            return
        generation = Generation(
            model=served.model,
            messages=composition.messages,
            max_tokens=plan.max_tokens,
            temperature=plan.temperature,
            seed=plan.seed,
            schema=contract.engine_schema(len(composition.passages)),
            grammar=contract.engine_grammar(len(composition.passages)),
        )
        prompt = self.catalogue.prompt(plan.prompt or "")
        await self._begin(
            run,
            intent_record(
                query, plan, composition.passages, prompt, contract, generation, served.adapter, served.degraded
            ),
        )
        yield plan
        # Closed with us: an inner generator that is only dropped would let the model run on until it is collected.
        async with aclosing(
            self._generate(run, clock, plan, contract, composition, served, generation, found)
        ) as events:
            async for event in events:
                yield event

    async def _generate(
        self,
        run: Run,
        clock: Clock,
        plan: Plan,
        contract: Contract,
        composition: Composition,
        served: Served,
        generation: Generation,
        found: SearchResult,
    ) -> AsyncGenerator[Event]:
        reveal = open_reveal(contract, composition.passages, run.query.text)
        shown = ""
        completion: Completion | None = None
        async with aclosing(self._ask_engine(served, generation, plan)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Completion):
                    completion = piece
                    continue
                if not run.delivered:
                    clock.mark("first_token")
                run.delivered += piece
                text = reveal.feed(piece)
                if text:
                    shown += text
                    yield Delta(text)
        clock.mark("generate")
        if completion is None:
            raise StreamBrokenError("the engine's stream ended before it was complete; ask again")
        run.usage = completion.usage
        checked = self._judge(contract, completion, composition, run.query, served, clock)
        clock.mark("check")
        if not checked.text.startswith(shown):  # what was shown cannot be taken back: then there is no answer
            raise ContractError("the model's text changed after it had been shown; ask again")
        if len(checked.text) > len(shown):
            yield Delta(checked.text[len(shown) :])
        yield await self._close(
            run,
            clock,
            Answer(
                id=run.query.id,
                text=checked.text,
                data=checked.data,
                citations=await self._noted(run.query, plan, checked.citations),
                sufficiency=found.sufficiency,
                plan=plan,
                passages=composition.passages,
                adapter=served.adapter.served_name if served.adapter else None,
                model=served.model,
                degraded=served.degraded,
                flags=checked.flags,
                finish_reason=completion.finish_reason,
                usage=completion.usage,
            ),
        )

    def _judge(
        self,
        contract: Contract,
        completion: Completion,
        composition: Composition,
        query: Query,
        served: Served,
        clock: Clock,
    ) -> Checked:
        """The checked output; a running canary learns what it was like."""
        try:
            checked = _check(contract, completion, composition, query)
        except ContractError:
            self.serving.observe(served.trial, Signs(violation=True))
            raise
        refused = contract.is_refusal(checked.data)
        uncited = not refused and any(flag.partition(":")[0] in UNCITED for flag in checked.flags)
        model_ms = clock.marks.get("first_token", 0.0) + clock.marks["generate"]
        self.serving.observe(served.trial, Signs(refused=refused, uncited=uncited, model_ms=model_ms))
        return checked

    async def _plan(self, query: Query, clock: Clock) -> Planned:
        vector: Sequence[float] | None = None
        plan = self.router.plan(query)
        needs_vector = plan.retrieves or (query.route is None and not plan.reason.startswith("rule"))
        if needs_vector:
            (vector,) = await self.embedder.embed([query.text])
            clock.mark("embed")
            plan = self.router.plan(query, vector)
        clock.mark("plan")
        if (look := self.router.second_look(query, plan)) is None:
            return Planned(plan, vector)
        try:
            found = await self._find(query, look, vector, clock)
        except UnknownNameError:  # what is refused names no collection that is missing
            return Planned(plan, vector)
        settled = self.router.settle(plan, look, found.sufficiency)
        return Planned(settled, vector, found if settled is look else None)

    async def _find(self, query: Query, plan: Plan, vector: Sequence[float] | None, clock: Clock) -> SearchResult:
        if not plan.retrieves or vector is None:
            return SearchResult(())
        found = await self.searcher.search(_request(query, plan, vector), excerpts=plan.excerpts)
        clock.mark("search")
        return found

    async def _noted(self, query: Query, plan: Plan, citations: tuple[Citation, ...]) -> tuple[Citation, ...]:
        """An answer about the past says of each citation what has become of it."""
        if not citations or (plan.as_of is None and plan.known_at is None):
            return citations
        return await self.searcher.mark_changes(_request(query, plan, ()), citations)

    async def _serve(self, plan: Plan, key: str) -> Served:
        try:
            served = await self.serving.resolve(plan.adapter, key)
        except AdapterUnavailableError as error:
            if not plan.degrade:
                raise
            base = await self.serving.resolve(None)
            return replace(base, degraded=f"answered by the base model with the schema: {error.message}")
        adapter = served.adapter
        if adapter and (adapter.prompt, adapter.contract) != (plan.prompt, plan.contract):
            raise InputError(
                f"adapter {adapter.name!r} was trained for prompt {adapter.prompt!r} and contract {adapter.contract!r}; "
                f"route {plan.route!r} has {plan.prompt!r} and {plan.contract!r}. Ask through another route",
                param="adapter",
            )
        return served

    async def _ask_engine(self, served: Served, generation: Generation, plan: Plan) -> AsyncGenerator[str | Completion]:
        """The engine's stream; an engine that was restarted, or lost the adapter, is found again once, before the first token."""
        started = False
        try:
            async with aclosing(served.engine.stream(generation)) as pieces:
                async for piece in pieces:
                    started = True
                    yield piece
            return
        except (AdapterUnavailableError, EngineUnavailableError):
            if started:
                raise
            self.serving.forget(served.adapter.served_name if served.adapter else None)
        # The very adapter that was asked, whatever was promoted or rolled back meanwhile: a cut-over drops no answer.
        again = await self.serving.resolve(served.adapter.served_name if served.adapter else None)
        if again.model != generation.model:
            raise AdapterUnavailableError(f"adapter {plan.adapter!r} changed while the question was asked; ask again")
        async with aclosing(again.engine.stream(generation)) as pieces:
            async for piece in pieces:
                yield piece

    async def _compose(self, query: Query, plan: Plan, passages: Sequence[Passage], served: Served) -> Composition:
        route = self.catalogue.route(plan.route)
        prompt = self.catalogue.prompt(plan.prompt or "")
        history = query.history[-route.history_turns :] if route.history_turns else ()
        budget = min(plan.budget_tokens, self.settings.engine_max_len - plan.max_tokens)

        def compose(count: Callable[[str], int]) -> Composition:
            return compose_messages(prompt, query.text, passages, count=count, budget_tokens=budget, history=history)

        if self.tokens is not None:
            return await asyncio.to_thread(compose, self.tokens.count)
        texts: list[str] = []  # a remote engine counts: collect what compose asks for, count it there, compose again
        compose(lambda text: texts.append(text) or 0)  # type: ignore[func-returns-value]
        counts = await asyncio.gather(
            *(served.engine.count_tokens([{"role": "user", "content": text}], served.model) for text in texts)
        )
        return compose(dict(zip(texts, counts, strict=True)).__getitem__)

    async def _begin(self, run: Run, record: Record) -> None:
        run.recorded = True  # before the wait: who goes away meanwhile leaves a row that will be committed
        try:
            await self.ledger.write(record)
        except LedgerError:
            run.recorded = False
            raise

    async def _close(self, run: Run, clock: Clock, answer: Answer) -> Answer:
        clock.mark("total", since_start=True)
        answer = replace(answer, timings_ms=dict(clock.marks))
        run.closed = True  # before the wait: a row that is on its way needs no second one
        await self.ledger.write(
            outcome_record(run.query, "complete", run.delivered, answer.usage, clock.marks, answer=answer)
        )
        logger.info("answer %s route=%s total_ms=%.0f", answer.id, answer.route, clock.marks["total"])
        return answer

    async def _fail(self, run: Run, clock: Clock, error: OrchestratorError) -> None:
        if not run.recorded or run.closed:
            return
        run.closed = True
        outcome = "partial" if run.delivered else "failed"
        record = outcome_record(run.query, outcome, run.delivered, run.usage, clock.marks, error=error)  # type: ignore[arg-type]
        with suppress(LedgerError):  # logged by the ledger; the caller is told what failed first
            await self.ledger.write(record)


@dataclass(slots=True)
class Run:
    """What is known of a query while it runs: the one mutable value, private to its task."""

    query: Query
    recorded: bool = False
    closed: bool = False
    delivered: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(slots=True)
class Clock:
    """Milliseconds that each stage took, on the monotonic clock."""

    started: float = field(default_factory=time.perf_counter)
    last: float = field(default_factory=time.perf_counter)
    marks: dict[str, float] = field(default_factory=dict)

    def mark(self, stage: str, since_start: bool = False) -> None:
        """Ends a stage."""
        now = time.perf_counter()
        spent = now - (self.started if since_start else self.last)
        self.marks[stage] = round(self.marks.get(stage, 0.0) * (not since_start) + spent * 1000, 3)
        self.last = now


def _request(query: Query, plan: Plan, vector: Sequence[float]) -> SearchRequest:
    return SearchRequest(
        query.text, vector, plan.collection or "", plan.k, query.tenant, plan.as_of, plan.known_at, plan.where
    )


def conversation(query: Query) -> str:
    """What tells one conversation from another: what the caller names, else its first message."""
    return query.user or (query.history[0].content if query.history else query.text)


def check_query(query: Query, settings: Settings) -> None:
    """Raises InputError when a question is empty, TooLargeError when it is too long."""
    if not query.text.strip():
        raise InputError("the question is empty; send some text", param="messages")
    if len(query.text) > settings.max_question_chars:
        raise TooLargeError(
            f"the question has {len(query.text)} characters, the limit is {settings.max_question_chars}; "
            "shorten it or raise ORCHESTRATOR_MAX_QUESTION_CHARS",
            param="messages",
        )
    try:
        query.text.encode()
    except UnicodeEncodeError as error:
        raise InputError("the question holds half a surrogate pair; send valid Unicode", param="messages") from error
    if query.k is not None and not 1 <= query.k <= 100:
        raise InputError(f"k must lie between 1 and 100, not {query.k}", param="k")
    if query.max_tokens is not None and query.max_tokens < 1:
        raise InputError(f"max_tokens must be 1 or more, not {query.max_tokens}", param="max_tokens")
    if query.temperature is not None and not 0 <= query.temperature <= 2:
        raise InputError(f"temperature must lie between 0 and 2, not {query.temperature}", param="temperature")


def _check(contract: Contract, completion: Completion, composition: Composition, query: Query) -> Checked:
    try:
        return check_output(contract, completion.text, composition.passages, query.text)
    except ContractError as error:
        if completion.finish_reason == "length":
            raise ContractError(
                f"the answer was cut off after {completion.usage.completion_tokens} tokens; raise max_tokens of the route"
            ) from error
        raise
