"""The running system as a walk sees it: asked under other settings without being changed, and changed when that is decided."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.database import Database
from orchestrator.errors import EngineUnavailableError, InputError
from orchestrator.evaluation.archive import PgArchive
from orchestrator.evaluation.ask import Memory, PipelineAsker
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.diagnose import Remedies, diagnose
from orchestrator.evaluation.improve import Decision, Earlier, Measured, State, Try
from orchestrator.evaluation.items import Asker, Change, Item, ItemSet, Outcome
from orchestrator.evaluation.journal import Edit, Journal, keep_copy, unfinished
from orchestrator.evaluation.knobs import (
    MARGINS,
    NEAREST,
    OF_ROUTE,
    OF_ROUTER,
    Knobs,
    Prospect,
    depths,
    edit_routes,
    thresholds,
    written,
)
from orchestrator.evaluation.runs import LASTING, Frozen, Runs, describe_system, read_corpus
from orchestrator.evaluation.score import holds_gold, score_outcome
from orchestrator.evaluation.sets import Question
from orchestrator.evaluation.tune import Setting, Trial, choices
from orchestrator.knowledge.retrieve import Collections, Retriever
from orchestrator.ledger import canonical
from orchestrator.pipeline import Pipeline
from orchestrator.settings import Settings
from orchestrator.types import Citation, Passage, Query, SearchRequest, new_id

ROUTES = "routes.toml"
OUTAGE = 0.02  # of the questions
AS_SERVED = Change()
Tell = Callable[[str, int, int], None]
MayWrite = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Weighed:
    """The documents, with other learnt weights than the collection's."""

    inner: Collections
    setting: Setting

    async def search(self, request: SearchRequest) -> Sequence[Passage]:
        """As the store."""
        return await self.inner.search(request)

    async def learned(self, tenant: str, collection: str) -> tuple[float | None, float | None]:
        """The weights on trial."""
        return self.setting.dense, self.setting.second

    async def read_spans(self, spans: Sequence[Passage], tenant: str) -> list[str]:
        """As the store."""
        return await self.inner.read_spans(spans, tenant)

    async def mark_changes(self, citations: Sequence[Citation], tenant: str) -> tuple[Citation, ...]:
        """As the store."""
        return await self.inner.mark_changes(citations, tenant)


@dataclass(frozen=True, slots=True)
class PerfectReader:
    """A reader that never errs in place of the model: right when a passage that is shown holds the answer. No engine runs."""

    inner: Asker

    async def search(self, item: Item, change: Change = AS_SERVED) -> tuple[Passage, ...]:
        """As the system."""
        return await self.inner.search(item, change)

    async def ask(self, item: Item, change: Change = AS_SERVED) -> Outcome:
        """The item's own answer, with its source, or a refusal."""
        shown = change.passages if change.passages is not None else await self.inner.search(item, change)
        seen = next((passage for passage in shown if item.answerable and holds_gold(item, [passage])), None)
        served = Outcome(item.id, passages=tuple(shown), route=item.route or "")
        if seen is None:
            return replace(served, refused=True)
        quotes = [gold.quote for gold in item.gold if gold.quote and gold.external_id in ("", seen.external_id)]
        said = item.answers[0] if item.answers else " ".join(item.contains) or seen.text
        return replace(served, text=said, cited=((seen.external_id, seen.version, quotes[0] if quotes else seen.text),))


@dataclass(slots=True)
class LiveSystem:
    """An open pipeline with its collection. ``may_write``: asked with the diff before routes.toml is changed.

    ``adapters``: name in service to digest, as ``describe_system`` wants them; ``remedies``: of the diagnosis.
    """

    pipeline: Pipeline
    database: Database
    settings: Settings
    collection: str
    remedies: Remedies
    adapters: Mapping[str, str] = field(default_factory=dict)
    search_only: bool = False
    tell: Tell = lambda title, done, total: None
    may_write: MayWrite = lambda diff: False
    wrap: Callable[[Asker], Asker] = lambda asker: asker
    source: str = ""  # the set as it was named on the command line
    memory: Memory = field(default_factory=Memory)  # a knob changes few prompts, and only they cost
    _frozen: dict[str, Frozen] = field(default_factory=dict)
    _served: Knobs | None = None
    _wrote: str = ""  # sha256 of routes.toml as this walk left it

    @property
    def journal(self) -> Journal:
        """The record of this collection."""
        return Journal(self.database, self.settings, self.collection)

    async def knobs(self) -> Knobs:
        """As it is set now. Raises InputError while a change waits to be finished, UnknownNameError without the collection."""
        if (left := await self.journal.pending()) is not None:
            raise unfinished(left)
        weights = await self.journal.weights(self.collection)
        found = Knobs(weights["dense"], weights["second"])
        self._served = self._served or found  # what a run is named after, through all steps of a walk
        return found

    async def stamp(self) -> str:
        """Of the pipeline, the collection and how it is searched."""
        corpus = await read_corpus(self.database, self.collection, self.settings.tenant)
        system = self._system(await self.knobs())
        return hashlib.sha256(canonical([corpus.digest, system]).encode()).hexdigest()

    async def measure(self, half: ItemSet, knobs: Knobs, title: str) -> Measured:
        """What it does under these settings; what was asked of it before is taken from there."""
        runs = Runs(self.database, self.settings.tenant)
        if half.sha256 not in self._frozen:
            self._frozen[half.sha256] = await runs.freeze(half, self.collection)
        run = await runs.run(
            self._frozen[half.sha256], self._asker(knobs), self._system(knobs), name="improve",
            progress=lambda done, total: self.tell(title, done, total),
        )  # fmt: skip
        _refuse_outage(run.outcomes)
        return Measured(run.outcomes, run.scores)

    async def diagnose(self, half: ItemSet, measured: Measured, knobs: Knobs) -> Diagnosis:
        """Why questions of the half failed, by experiment on the system set so."""
        runs = Runs(self.database, self.settings.tenant)
        outcomes = {
            name: replace(each, passages=tuple(await runs.passages(each))) if each.passages else each
            for name, each in measured.outcomes.items()
        }
        frozen = self._frozen[half.sha256].set
        remedies = Remedies(shown=self.remedies.shown) if self.search_only else self.remedies
        return await diagnose(
            replace(frozen, name=self.source or half.name), outcomes, self._asker(knobs),
            PgArchive(self.database, self.collection, self.settings.tenant), score_outcome,
            remedies=remedies, collection=self.collection,
            progress=lambda done, total: self.tell("replaying failed questions", done, total),
        )  # fmt: skip

    async def propose(self, prospect: Prospect, half: ItemSet, measured: Measured, knobs: Knobs) -> Sequence[Knobs]:
        """Settings that may do better on this half."""
        if prospect.remedy.name == "search weights":
            return await self._weights(half, knobs)
        if prospect.remedy.name == "routing":
            return await self._routing(half, knobs)
        route = knobs.route or _usual_route(prospect, measured, self.pipeline)
        if not route:
            return ()
        declared = self.pipeline.catalogue.route(route)
        if prospect.remedy.name == "depth":
            return [replace(knobs, route=route, k=k) for k in depths(knobs.k or declared.k)]
        if prospect.remedy.name == "excerpts":
            current_form = declared.excerpts if knobs.excerpts is None else knobs.excerpts
            return [replace(knobs, route=route, excerpts=not current_form)]
        current = declared.min_sufficiency if knobs.min_sufficiency is None else knobs.min_sufficiency
        opened = await self.measure(
            half, replace(knobs, route=route, min_sufficiency=0.0), "asking without a threshold"
        )
        of_route = [
            item for item in half.items if item.id in opened.outcomes and opened.outcomes[item.id].route == route
        ]
        best = thresholds(of_route, opened.outcomes, opened.scores, current)
        return [replace(knobs, route=route, min_sufficiency=each) for each in best]

    async def _weights(self, half: ItemSet, knobs: Knobs) -> Sequence[Knobs]:
        """The weights with the best nDCG@10 of gold documents; the passages of each question are searched once a weight."""
        searcher = self.pipeline.searcher
        questions = [
            Question(item.id, item.question, {gold.external_id: gold.grade for gold in item.gold}, item.as_of)
            for item in half.items
            if item.answerable and item.gold and all(gold.external_id for gold in item.gold)
        ]
        if not isinstance(searcher, Retriever) or not questions:
            return ()
        trial = Trial(searcher, self.collection, self.settings.tenant)
        before = Setting(knobs.dense, knobs.second)
        scores = {setting: 0.0 for setting in choices(before, with_second=searcher.reranker is not None)}
        for done, question in enumerate(questions, 1):
            for setting in scores:
                scores[setting] += await trial.score(question, setting)
            self.tell("weighing the stages of the search", done, len(questions))
        best = max(scores, key=lambda setting: round(scores[setting], 9))
        return () if best == before else (replace(knobs, dense=best.dense, second=best.second),)

    async def _routing(self, half: ItemSet, knobs: Knobs) -> Sequence[Knobs]:
        """Threshold and margin that send most labelled questions where they belong; a learnt router has a threshold of its own."""
        router, labelled = self._set(knobs).router, [item for item in half.items if item.route]
        if router.learnt is not None or not labelled:
            return ()
        vectors = await self.pipeline.embedder.embed([item.question for item in labelled])
        queries = [Query(item.question, as_of=item.as_of) for item in labelled]

        def right(threshold: float, margin: float) -> int:
            tried = replace(router, catalogue=replace(router.catalogue, threshold=threshold, margin=margin))
            plans = (tried.plan(query, vector) for query, vector in zip(queries, vectors, strict=True))
            return sum(plan.route == item.route for plan, item in zip(plans, labelled, strict=True))

        now = (router.catalogue.threshold, router.catalogue.margin)
        grid = [(threshold, margin) for threshold in NEAREST for margin in MARGINS]
        best = max([now, *grid], key=lambda pair: right(*pair))
        if best == now:
            return ()
        return [
            replace(
                knobs,
                threshold=best[0] if best[0] != now[0] else knobs.threshold,
                margin=best[1] if best[1] != now[1] else knobs.margin,
            )
        ]

    async def earlier(self, held: str) -> Sequence[Earlier]:
        """The decisions on this half that the record holds."""
        rows = [row.details for row in await self.journal.rows() if row.details.get("held") == held]
        return [Earlier(each["stamp"], Knobs(**each["after"]), each["decision"]["verdict"]) for each in rows]

    async def keep(self, tried: Try) -> tuple[State, str, str]:
        """Changes the weights of the collection, or routes.toml when its owner lets it."""
        edit = await self._edit(tried)
        if edit is None:
            return "proposed", _by_hand(tried), await self._record("proposed", tried)
        if edit.kind == "file" and not self.may_write(edit.shown):
            return "proposed", edit.shown, await self._record("proposed", tried)
        if edit.kind == "file":
            keep_copy(Path(edit.target), edit.before)
        return "kept", edit.shown, await self.journal.make(tried, edit)

    async def decline(self, tried: Try) -> str:
        """Records what was tried."""
        return await self._record("declined", tried)

    async def _record(self, action: str, tried: Try) -> str:
        id = new_id("imp")
        await self.journal.put(action, id, tried.record())
        return id

    async def _edit(self, tried: Try) -> Edit | None:
        """The change of what is kept; None where it is the package's own file that would have to be changed."""
        before, after = tried.before, tried.after
        if (before.dense, before.second) != (after.dense, after.second):
            was = await self.journal.weights(self.collection)
            if (was["dense"], was["second"]) != (before.dense, before.second):
                raise _moved(f"the weights of {self.collection!r}")
            return Edit("collection", self.collection, was, _learnt(tried))
        if self.settings.prompts_dir is None:
            return None
        file = Path(self.settings.prompts_dir) / ROUTES
        text = edited = file.read_bytes().decode()
        if hashlib.sha256(file.read_text("utf-8").encode()).hexdigest() not in (
            self.pipeline.catalogue.digest,
            self._wrote,
        ):
            raise _moved(str(file))
        for key, value in _turned(before, after).items():
            edited = edit_routes(edited, f"routes.{after.route}" if key in OF_ROUTE else "router", key, value)
        self._wrote = hashlib.sha256(edited.replace("\r\n", "\n").encode()).hexdigest()
        return Edit("file", str(file.absolute()), text, edited)

    def _asker(self, knobs: Knobs) -> Asker:
        asker: Asker = PipelineAsker(self._set(knobs), collection=self.collection, memory=self.memory)
        return PerfectReader(asker) if self.search_only else self.wrap(asker)

    def _set(self, knobs: Knobs) -> Pipeline:
        """A copy of the pipeline under these settings; what serves stays as it is."""
        catalogue, searcher = self.pipeline.catalogue, self.pipeline.searcher
        if knobs.route:
            values = {name: value for name in OF_ROUTE if (value := getattr(knobs, name)) is not None}
            routes = {**catalogue.routes, knobs.route: replace(catalogue.route(knobs.route), **values)}
            catalogue = replace(catalogue, routes=routes)
        of_router = {name: value for name in OF_ROUTER if (value := getattr(knobs, name)) is not None}
        catalogue = replace(catalogue, **of_router)
        if isinstance(searcher, Retriever):
            # Made anew, not replaced: a copy would share the memory of learnt weights with what serves.
            store = Weighed(searcher.store, Setting(knobs.dense, knobs.second))
            searcher = Retriever(store, searcher.embedder, searcher.reranker, searcher.next_embedder, searcher.budget_s)
        router = replace(self.pipeline.router, catalogue=catalogue)
        return replace(self.pipeline, catalogue=catalogue, router=router, searcher=searcher)

    def _system(self, knobs: Knobs) -> dict[str, Any]:
        """What names a run; of the system as it is, as `eval run` names it, so that neither asks what the other has asked."""
        found = describe_system(self.pipeline, self.adapters, AS_SERVED)
        if self.search_only:
            found["reader"] = "perfect"
        return found if knobs == self._served else found | {"knobs": asdict(knobs)}


def _refuse_outage(outcomes: Mapping[str, Outcome]) -> None:
    """A server that was away is no answer: it must not decide against a remedy. A few failures of the day count as wrong."""
    errors = [each.error for each in outcomes.values() if each.error and each.error.partition(":")[0] not in LASTING]
    if len(errors) > OUTAGE * len(outcomes):
        raise EngineUnavailableError(
            f"{len(errors)} of {len(outcomes)} questions could not be asked ({errors[0][:200]}); see `orchestrator doctor`. "
            "The same command goes on where this one stopped"
        )


def _moved(what: str) -> InputError:
    return InputError(
        f"{what} changed while this walk measured it: nothing was changed by it. Run it again", param="set"
    )


def _learnt(tried: Try) -> dict[str, Any]:
    """The weights after a change, with what taught them as `eval tune` keeps it."""
    found: Decision = tried.decision
    gain = {
        "value": found.difference.value,
        "low": found.difference.low,
        "high": found.difference.high,
        "p": found.difference.p,
    }
    learned = {
        "set": tried.set,
        "by": "improve",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "questions": {"held_out": found.difference.n},
        "correct": {"before": found.before.value, "after": found.after.value},
        "gain": gain,
    }
    return {"dense": tried.after.dense, "second": tried.after.second, "learned": learned}


def _by_hand(tried: Try) -> str:
    after = tried.after
    turned = _turned(tried.before, after)
    values = ", ".join(f"{name} = {written(value)}" for name, value in turned.items())
    table = f"routes.{after.route}" if turned.keys() <= set(OF_ROUTE) else "router"
    return (
        f"[{table}] {values}: the prompts in service are the package's own. Copy them into a folder of yours, "
        "set ORCHESTRATOR_PROMPTS_DIR to it, and run this again with --write"
    )


def _turned(before: Knobs, after: Knobs) -> dict[str, float | bool]:
    """What is to be written into routes.toml."""
    names = (*OF_ROUTE, *OF_ROUTER)
    return {name: value for name in names if (value := getattr(after, name)) not in (None, getattr(before, name))}


def _usual_route(prospect: Prospect, measured: Measured, pipeline: Pipeline) -> str:
    """The route that most of the questions took which the remedy may mend; one that retrieves."""
    routes = {name for name, route in pipeline.catalogue.routes.items() if route.k}
    taken = Counter(
        route
        for name in prospect.items
        if name in measured.outcomes and (route := measured.outcomes[name].route) in routes
    )
    fallback = pipeline.catalogue.fallback
    return taken.most_common(1)[0][0] if taken else fallback if fallback in routes else ""
