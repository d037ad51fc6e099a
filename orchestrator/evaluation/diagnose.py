"""Finds out by experiment why each question of a run failed: one thing is made perfect at a time, and what mends it is to blame.

Every failed question walks the stages below from top to bottom. What can be looked up is looked up first (it is certain and
asks no model); a replay asks the model once. The walk ends at the first replay that comes out right.

| stage | made perfect | by | named when the replay is right |
|---|---|---|---|
| label | the label | look-up: the quoted words stand in the gold document and do not say it | bad_label |
| route | the item's route, else the one that most right questions took | one replay | routed_wrong |
| refusal | (an unanswerable question was answered) | look-up | missed_refusal |
| knowledge | the gold version is there and holds now | look-up, then its words first of those shown | knowledge_missing, stale |
| retrieval | the gold passage is first, or in its own company | search; 1-2 replays | chunked_apart, not_retrieved, ranked_out |
| gate | the threshold of sufficiency is 0 | one replay, if the question was refused unasked | false_refusal |
| context | the gold passage is shown alone | one replay | ignored_in_context, or by its sign |
| behaviour | constrained decoding, each other adapter, as shipped; all | a replay each, gold alone; then as shown | by its sign |
| route | every other route, when the item names none | a replay each | routed_wrong |
| model | a stronger model with gold alone | one replay, when there is one | beyond_the_model |
| chance | nothing, once something mended it | one replay | nobody, when it comes right: it is listed as unsteady |

By its sign: contract_broken when the output broke its contract, false_refusal when it refused, wrong_citation when the text
is right and no right source is named, else ignored_in_context. A sign is read where all above it is perfect.

Two causes. A look-up that found a fault is a cause whatever a later stage adds: without it there is no right answer. So a
question whose gold passage was not found, and which that passage does not mend (first, in its company, or alone), keeps the
cause and walks on with the passage; it has both causes when a later stage mends it. A route that had to be changed first is
asked for once more without that change, and is left out when the rest mends the question by itself. A question with a bad
label is judged from there on by whether its answer stands in the quoted words, so that a fault behind the bad label is seen
as well.

When nothing mends it: contract_broken if the output still breaks its contract; bad_label if the gold passage does not say the
label, if the judge says that the answer is right, or if two models agree on other words of the gold passage; else
beyond_the_model, which is noted as untested when no stronger model was asked.

Cost: each failed question may ask the model ``times`` x calls of the run / failed questions, so the whole never exceeds
``times`` the run; what easy questions leave goes to those that ran out. A remedy (an adapter, a prompt) that mended none of the
first 20 questions is not tried on the others. The weakest point is a model that fails at
random: it may come right in a replay by chance, and then the change that was on trial is blamed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from orchestrator.evaluation.archive import Archive
from orchestrator.evaluation.causes import (
    COMMANDS,
    LAYER_OF,
    Bar,
    Cause,
    Ceiling,
    Diagnosis,
    Interval,
    Step,
    draw_bars,
    draw_ceilings,
    share_of,
)
from orchestrator.evaluation.gold import Evidence, is_gold, says, stands_in, weigh, words
from orchestrator.evaluation.items import Asker, Change, Item, ItemSet, Judgement, Outcome, Score
from orchestrator.evaluation.remedies import Remedies, remedies_of
from orchestrator.types import Passage

__all__ = [
    "COMMANDS", "LAYER_OF", "Bar", "Cause", "Ceiling", "Diagnosis", "Interval", "Remedies", "Step", "diagnose", "is_right",
    "remedies_of",
]  # fmt: skip

HOPELESS = (
    20  # questions in vain after which a remedy is given up: it mends at most 16 % of such questions (95 %, Wilson)
)
UNTESTED = "no stronger model was asked"
PLAIN = Remedies()
SAID = 120  # characters of an answer that a trail keeps
UNASKED = frozenset({"no_passages", "passages_too_long", "passages_insufficient"})

Scorer = Callable[[Item, Outcome], Score]
Judge = Callable[[Item, Outcome], Awaitable[Judgement]]
Progress = Callable[[int, int], None]


def is_right(score: Score) -> bool:
    """The answer is right and, where the item names its source, so is one that it cites or one that carries its words."""
    cited = score.citation_recall is None or score.citation_recall > 0 or (score.supported or 0.0) >= 0.5
    return score.correct >= 0.5 and cited


async def diagnose(
    asked: ItemSet,
    outcomes: Mapping[str, Outcome],
    asker: Asker,
    archive: Archive,
    score: Scorer,
    *,
    remedies: Remedies = PLAIN,
    judge: Judge | None = None,
    collection: str = "COLLECTION",
    progress: Progress | None = None,
) -> Diagnosis:
    """Why each failed question of a run failed. ``outcomes``: of the run, by item; an item without one was not asked.

    ``judge``: whether an answer is right though it is not the label's. Errors of the archive and of the search are raised.
    """
    items = [item for item in asked.items if item.id in outcomes]
    right = {item.id for item in items if is_right(score(item, outcomes[item.id]))}
    failed = [item for item in items if item.id not in right]
    run_calls = sum(_asked_model(outcomes[item.id]) for item in items) or len(items)
    allowance = int(remedies.times * run_calls / len(failed)) if failed else 0
    bench = _Bench(asker, score, remedies, judge, asyncio.Semaphore(remedies.concurrency))
    usual = _usual_route(outcomes[item.id] for item in items if item.id in right and item.gold)
    inquiries = [_Inquiry(item, outcomes[item.id], bench, allowance, usual) for item in failed]
    done, total = 0, len(inquiries)

    async def walk(inquiry: _Inquiry) -> None:
        nonlocal done
        async with bench.room:
            held = await archive.versions(inquiry.item)
        await inquiry.walk(weigh(inquiry.item, held, asked.snapshot))
        done += 1
        if progress:
            progress(done, total)

    waiting = inquiries
    while waiting:
        async with asyncio.TaskGroup() as group:
            for inquiry in waiting:
                group.create_task(walk(inquiry))
        # What easy questions left goes to those that ran out; what they have tried is not asked again.
        waiting = [inquiry for inquiry in inquiries if inquiry.is_starved]
        left = int(remedies.times * run_calls) - sum(each.calls for each in inquiries)
        if not waiting or left < len(waiting):
            break
        total += len(waiting)
        for inquiry in waiting:
            inquiry.allowance = inquiry.calls + left // len(waiting)
    causes: dict[str, tuple[Cause, ...]] = {each.item.id: each.causes for each in inquiries if each.causes}
    notes = {each.item.id: each.note for each in inquiries if each.note}
    for fault in asked.faults:
        causes[f"row {fault.number}"] = ("bad_label",)
        notes[f"row {fault.number}"] = f"it could not be read: {fault.reason}"
    n = len(items) + len(asked.faults)
    return Diagnosis(
        asked.name, asked.sha256, n, share_of(len(right), n),
        draw_bars(causes, n, set=asked.name, collection=collection), draw_ceilings(causes, len(right), n), causes,
        tuple(each.item.id for each in inquiries if not each.causes), notes, sum(each.calls for each in inquiries), run_calls,
        {each.item.id: each.trail() for each in inquiries},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all questions of a diagnosis are tried on."""

    asker: Asker
    score: Scorer
    remedies: Remedies
    judge: Judge | None
    room: asyncio.Semaphore
    tallies: dict[str, tuple[int, int]] = field(default_factory=dict)  # of each remedy: tried, mended

    def count(self, remedy: str, mended: bool) -> None:
        """Keeps how often a remedy was tried, and how often it mended a question."""
        tried, good = self.tallies.get(remedy, (0, 0))
        self.tallies[remedy] = tried + 1, good + mended

    def is_hopeless(self, remedy: str) -> bool:
        """Whether it mended none of the first questions that it was tried on: it is not paid for on the others."""
        tried, good = self.tallies.get(remedy, (0, 0))
        return tried >= HOPELESS and not good


@dataclass(slots=True)
class _Inquiry:
    """The walk of one failed question through the stages. ``causes`` is what it found; empty: nobody is blamed."""

    item: Item
    served: Outcome
    bench: _Bench
    allowance: int
    usual: str | None
    causes: tuple[Cause, ...] = ()
    note: str = ""
    calls: int = 0
    is_starved: bool = False
    is_mended: bool = True  # by some change, or there was nothing to mend
    outcome: Outcome = field(init=False)  # as served, or with the right route
    base: Change = field(default_factory=Change)  # what had to be changed before anything else could be seen
    mislabelled: bool = False
    deep: tuple[Passage, ...] = ()  # what a deep search found
    evidence: Evidence = field(default_factory=Evidence)
    tried: list[tuple[Change, Outcome]] = field(default_factory=list)
    scores: dict[int, tuple[Outcome, Score]] = field(default_factory=dict)

    async def walk(self, evidence: Evidence) -> None:
        """Finds ``causes`` and ``note``; a second walk, with more calls, asks only what the first could not."""
        self.evidence, self.outcome, self.base = evidence, self.served, Change()
        self.is_starved, self.is_mended = False, True
        self._name()
        self.mislabelled = self._nothing_to_judge_by() or evidence.agrees is False
        if self.mislabelled and (not self.item.gold or self._is_mended(self.outcome)):
            self._name("bad_label", note="the gold document does not say the label")
            return
        await self._walk_stages()
        if self.causes and self.is_mended and await self._comes_right_by_chance():
            return
        if self.mislabelled and "bad_label" not in self.causes:
            seen = [cause for cause in self.causes if cause != "beyond_the_model"]
            self._name(*seen, "bad_label", note="the gold document does not say the label")

    async def _walk_stages(self) -> None:
        if await self._another_route([self.item.route or self._suspect_route()], keep=True):
            return
        if not self.item.answerable:
            await self._unanswerable()
            return
        found, around = self._in_knowledge(), self.outcome.passages
        if found is None:
            found, around = await self._in_retrieval()
        elif self.evidence.passages and not around:
            around = await self._search(self.bench.remedies.shown)
        outcome = self.outcome
        if found is not None:
            best = await self._replay(self._with_gold(around)) if self.evidence.passages else None
            if best is None:
                self._name(found, note=self.note or "looked up, not replayed")
                return
            if self._is_mended(best):
                await self._settle(await self._of_cut(found), self._with_gold(around))
                return
            beside = replace(self.base, name="gold passage in its company", passages=self._company())
            if beside.passages and await self._mends(beside, (found,)):
                return
            outcome = best
        await self._in_behaviour([found] if found else [], outcome)

    def trail(self) -> tuple[Step, ...]:
        """What was tried, in order."""
        return tuple(Step(change.name, self._is_mended(outcome), _said(outcome)) for change, outcome in self.tried)

    # stages

    def _nothing_to_judge_by(self) -> bool:
        item = self.item
        return item.answerable and not (item.answers or item.contains or item.pattern or item.gold)

    async def _comes_right_by_chance(self) -> bool:
        """Asked again as it was: what is right then accuses nobody. Where no change mended it, chance would not either."""
        again = Change("again", anew=True)
        if self.calls >= self.allowance and not any(change == again for change, _ in self.tried):
            return False
        outcome = await self._replay(again)
        if outcome is None or not self._is_mended(outcome):
            return False
        self._name(note="right when it was asked again")
        return True

    def _suspect_route(self) -> str | None:
        """The usual route, for a question about documents that was served without any."""
        served = self.outcome
        without = not served.passages and not served.error and not _was_gated(served)
        return self.usual if self.item.gold and without else None

    async def _another_route(self, routes: Sequence[str | None], *, keep: bool) -> bool:
        """Tries other routes; with ``keep`` the rest of the walk goes along it when it does not mend the question."""
        for route in routes:
            if route is None or route == self.outcome.route:
                continue
            change = Change(f"route {route}", route=route)
            outcome = await self._replay(change)
            if outcome is not None and self._is_mended(outcome):
                self._name("routed_wrong", note=f"route {route} mends it")
                return True
            if outcome is not None and keep:
                self.base, self.outcome = change, outcome
        return False

    async def _unanswerable(self) -> None:
        """Answered, or failed, where a refusal was right."""
        if not _is_broken(self.outcome) and not self.outcome.error:
            await self._settle(("missed_refusal",), Change())
            return
        await self._in_behaviour([], self.outcome)

    def _in_knowledge(self) -> Cause | None:
        if not self.item.gold or (self.evidence.told and not self.evidence.ever):
            return None
        if not self.evidence.ever:
            return "knowledge_missing"
        if not self.evidence.now:
            if self.evidence.since:
                self.note = (
                    f"the version that says it holds from {self.evidence.since:%Y-%m-%d}, not at the question's time"
                )
            return "stale"
        return None

    async def _in_retrieval(self) -> tuple[Cause | None, tuple[Passage, ...]]:
        """What kept the gold passage out of the context, and what was shown in its place."""
        outcome = self.outcome
        gated = _was_gated(outcome)
        if not outcome.passages and not gated and not self.item.gold:
            return None, ()  # nothing is retrieved here, and nothing says that it should be
        shown = outcome.passages or await self._search(self.bench.remedies.shown)
        if any(is_gold(passage, self.item, self.evidence) for passage in shown) and self.evidence.whole:
            return None, shown
        if not self.evidence.whole and self.item.gold:
            return "chunked_apart", shown
        self.deep = deep = await self._search(self.bench.remedies.deep)
        gold = next((passage for passage in deep if is_gold(passage, self.item, self.evidence)), None)
        if not self.item.gold:
            return self._unnamed(shown, gold), shown
        return ("not_retrieved" if gold is None else "ranked_out"), shown

    def _unnamed(self, shown: Sequence[Passage], gold: Passage | None) -> Cause | None:
        """No document is named: the first passage that says the answer stands for the gold one."""
        if any(is_gold(passage, self.item, self.evidence) for passage in shown):
            held = next(passage for passage in shown if is_gold(passage, self.item, self.evidence))
            self.evidence = replace(self.evidence, ever=True, now=True, whole=True, verbatim=True, passages=(held,))
            return None
        if gold is not None:
            self.evidence = replace(self.evidence, ever=True, now=True, whole=True, verbatim=True, passages=(gold,))
            return "ranked_out"
        if not (self.item.answers or self.item.contains):
            return None
        self.note = f"no document is named, and none of the first {self.bench.remedies.deep} passages says the answer"
        return "knowledge_missing"

    async def _of_cut(self, found: Cause) -> tuple[Cause, ...]:
        """Words that are cut are to blame, unless their pieces alone would do: then the model overlooked them."""
        seen = [passage for passage in self.outcome.passages if is_gold(passage, self.item, self.evidence)]
        if found != "chunked_apart" or not seen:
            return (found,)
        alone = await self._replay(replace(self.base, name="its chunk alone", passages=tuple(seen)))
        return ("ignored_in_context",) if alone is not None and self._is_mended(alone) else (found,)

    async def _in_behaviour(self, before: list[Cause], outcome: Outcome) -> None:
        """The evidence is perfect, or as good as it gets, and the outcome is still wrong."""
        if not before and self._is_right_text(outcome):
            await self._settle(("wrong_citation",), Change())
            return
        if "passages_insufficient" in _kinds(outcome) and not before:
            opened = replace(self.base, name="no threshold", min_sufficiency=0.0)
            if await self._mends(opened, [*before, "false_refusal"]):
                return
            before = [*before, "false_refusal"]
            self.base = opened
        gold = self._with_gold(())
        alone = await self._replay(gold) if self.evidence.passages else None
        signs = [outcome, *([alone] if alone else [])]
        if alone is not None and self._is_mended(alone):
            # A search that finds nothing but the gold passage is a perfect one: the passages beside it were its fault too.
            by_search = bool(before) and all(LAYER_OF[cause] in ("knowledge", "retrieval") for cause in before)
            await self._settle(before if by_search else (*before, _sign(signs[0], self)), gold)
            return
        start = gold if alone is not None else self.base
        sign = _sign(signs[-1], self) if _is_broken(signs[-1]) or signs[-1].refused else _sign(signs[0], self)
        if _is_broken(outcome) and not before and start is not self.base:
            # What breaks the form may be mended in the context as served, without the gold passage alone.
            change = replace(self.base, name="constrained", constrained=True)
            if await self._mends(change, [sign]):
                return
        singles = self.bench.remedies.behaviour(is_broken=any(_is_broken(each) for each in signs))
        together = [reduce(_both, singles)] if len(singles) > 1 else []
        trials = [_both(start, change) for change in [*singles, *together]]
        if not before and start is not self.base:
            # A model that reads its passage among others need not read it alone.
            trials += [_both(replace(self.base, name="as shown"), change) for change in singles]
        for trial in trials:
            if self.bench.is_hopeless(trial.name):
                continue
            mended = await self._mends(trial, [*before, sign])
            self.bench.count(trial.name, mended)
            if mended:
                return
        if self.item.route is None and not before and await self._another_route(self._routes(), keep=False):
            return
        strong = replace(start, name="a stronger model", engine="strong")
        if self.bench.remedies.strong and await self._mends(strong, [*before, "beyond_the_model"]):
            return
        await self._nothing_mends(before, sign)

    def _routes(self) -> list[str]:
        """Routes that could serve it: what stands in a document is not found by one that looks nothing up."""
        remedies = self.bench.remedies
        return [name for name in remedies.routes if not (self.item.gold and name in remedies.closed)]

    async def _nothing_mends(self, before: list[Cause], sign: Cause) -> None:
        self.is_mended = False
        cited = next((each for _, each in self.tried if self._is_right_text(each)), None)
        # What another adapter or model made of it, or one that may not serve this route, says nothing of the one in service.
        ours = [each for change, each in self.tried if change.adapter is None and change.engine is None]
        last = ours[-1] if ours else self.outcome
        if cited is not None:
            self._name(*before, "wrong_citation", note="right in a replay, but for its source")
        elif _is_broken(last) or (not self.tried and _is_broken(self.outcome)):
            self._name(*before, "contract_broken", note="no change kept the contract")
        elif last.error:
            self.note = f"it could not be asked: {last.error[:200]}; see `orchestrator doctor`"
        elif not self.tried and sign != "ignored_in_context":
            self._name(*before, sign, note="by its sign; there were no calls left to try it")
        elif before and self.evidence.told is False and not self.mislabelled:
            self._name(*before, note="the document was changed since the set was frozen, and does not give the answer")
        elif reason := await self._doubts_label():
            self._name(*(before if self.mislabelled else ()), "bad_label", note=reason)
        else:
            note = self._strength()
            note = "there were no calls left to try everything" if self.is_starved else note
            self._name(*before, "beyond_the_model", note=note)

    def _strength(self) -> str:
        """Why a stronger model proves nothing here; empty when it was asked and failed as well."""
        asked = [outcome for change, outcome in self.tried if change.engine == "strong"]
        if not asked:
            return UNTESTED
        failed = asked[-1].error and not asked[-1].error.startswith("contract")
        return f"the stronger model could not be asked: {asked[-1].error[:200]}" if failed else ""

    async def _doubts_label(self) -> str:
        """Why the label is not to be believed; empty when it is."""
        shown = self.evidence.passages
        if self.mislabelled:
            return "the gold document does not say the label"
        if shown and self.evidence.verbatim is False and self.evidence.told:
            return "the gold document, unchanged since the set was frozen, does not say the answer in so many words"
        if (
            shown
            and (self.item.answers or self.item.contains)
            and not any(says(each.text, self.item) for each in shown)
        ):
            return "the gold passage does not say the label"
        served = [each for change, each in self.tried if change.passages and change.engine is None and _is_answer(each)]
        strong = [each for change, each in self.tried if change.engine == "strong" and _is_answer(each)]
        for one in served:
            if any(_same(one, other) and any(stands_in(one.text, each.text) for each in shown) for other in strong):
                return "two models agree on other words of the gold passage"
        last = self.tried[-1][1] if self.tried else self.outcome
        asked = self.outcome if _is_answer(self.outcome) else last
        judged = await self.bench.judge(self.item, asked) if self.bench.judge and _is_answer(asked) else "unsure"
        return "the judge calls the answer right" if judged == "right" else ""

    # replays

    async def _search(self, k: int) -> tuple[Passage, ...]:
        async with self.bench.room:
            return await self.bench.asker.search(self.item, replace(self.base, k=k))

    async def _replay(self, change: Change) -> Outcome | None:
        """The outcome under the change, asked once; None when the question's calls are spent."""
        for known, outcome in self.tried:
            if replace(known, name=change.name) == change:
                return outcome
        if self.calls >= self.allowance:
            self.is_starved = True
            return None
        self.calls += 1
        async with self.bench.room:
            outcome = await self.bench.asker.ask(self.item, change)
        self.tried.append((change, outcome))
        return outcome

    async def _mends(self, change: Change, causes: Sequence[Cause]) -> bool:
        outcome = await self._replay(change)
        if outcome is None or not self._is_mended(outcome):
            return False
        await self._settle(causes, change)
        return True

    async def _settle(self, causes: Sequence[Cause], change: Change) -> None:
        """Names what mended it; a route that was changed before is a cause too, unless the rest does without it."""
        if self.base.route is None:
            self._name(*causes, note=self.note)
            return
        without = await self._replay(replace(change, route=None)) if change != Change() else None
        needed = without is None or not self._is_mended(without)
        route: tuple[Cause, ...] = ("routed_wrong",) if needed else ()
        self._name(*route, *causes, note=self.note)

    def _with_gold(self, others: Sequence[Passage]) -> Change:
        """The gold passages first, then what was shown, as many as there were; or the gold passages alone."""
        gold = self.evidence.passages
        rest = [each for each in others if not is_gold(each, self.item, self.evidence)]
        width = max(len(others), len(gold))
        name = "gold passage first" if rest else "gold passage alone"
        return replace(self.base, name=name, passages=(*gold, *rest)[:width])

    def _company(self) -> tuple[Passage, ...]:
        """The gold passage among what a good search would show with it: its document's own chunks, else the found passages
        that say most of the question. Where it was not shown, what was shown in its place is no company of its own.
        """
        gold = self.evidence.passages
        if len(self.evidence.document) > len(gold):
            return self.evidence.document
        asked = set(words(self.item.question))
        others = [each for each in self.deep if not is_gold(each, self.item, self.evidence)]
        others.sort(key=lambda each: -len(asked & set(words(each.text))))
        return (*gold, *others)[: max(self.bench.remedies.shown, len(gold))] if others else ()

    def _is_mended(self, outcome: Outcome) -> bool:
        """Right by the label; where the label is bad, an answer that stands in the quoted words."""
        if not self.mislabelled:
            return is_right(self._scored(outcome))
        quotes = [gold.quote for gold in self.item.gold if gold.quote]
        return _is_answer(outcome) and any(stands_in(outcome.text, quote) for quote in quotes)

    def _is_right_text(self, outcome: Outcome) -> bool:
        return not self.mislabelled and self._scored(outcome).correct >= 0.5

    def _scored(self, outcome: Outcome) -> Score:
        """The outcome's score, found once; the outcome is kept with it, so that its id stays its own."""
        known = self.scores.get(id(outcome))
        if known is None:
            known = self.scores[id(outcome)] = (outcome, self.bench.score(self.item, outcome))
        return known[1]

    def _name(self, *causes: Cause, note: str = "") -> None:
        self.causes = tuple(dict.fromkeys(causes))
        self.note = note


def _sign(outcome: Outcome, inquiry: _Inquiry) -> Cause:
    """What a failure of the model looks like."""
    if _is_broken(outcome):
        return "contract_broken"
    if outcome.refused and inquiry.item.answerable:
        return "false_refusal"
    return "wrong_citation" if inquiry._is_right_text(outcome) else "ignored_in_context"


def _is_broken(outcome: Outcome) -> bool:
    """True when the output broke its contract, or the adapter that keeps it was not served or is not this contract's."""
    return outcome.error.startswith(("contract:", "adapter_unavailable:", "invalid_request: adapter"))


def _was_gated(outcome: Outcome) -> bool:
    """True when the question was refused before the model was asked, for what the search had found."""
    return bool(_kinds(outcome) & UNASKED)


def _kinds(outcome: Outcome) -> set[str]:
    return {flag.partition(":")[0] for flag in outcome.flags}


def _is_answer(outcome: Outcome) -> bool:
    return bool(outcome.text) and not outcome.refused and not outcome.error


def _said(outcome: Outcome) -> str:
    said = outcome.error or ("(refused)" if outcome.refused else outcome.text)
    return said if len(said) <= SAID else f"{said[: SAID - 3]}..."


def _same(one: Outcome, other: Outcome) -> bool:
    return stands_in(one.text, other.text) or stands_in(other.text, one.text)


def _asked_model(outcome: Outcome) -> bool:
    return outcome.usage.completion_tokens > 0 or bool(outcome.error)


def _both(one: Change, other: Change) -> Change:
    """One change with what the other changes on top."""
    return replace(
        one,
        name=f"{one.name}, {other.name}",
        constrained=other.constrained if other.constrained is not None else one.constrained,
        adapter=other.adapter if other.adapter is not None else one.adapter,
        prompt=other.prompt or one.prompt,
    )


def _usual_route(outcomes: Iterable[Outcome]) -> str | None:
    counted = Counter(outcome.route for outcome in outcomes if outcome.route)
    return counted.most_common(1)[0][0] if counted else None
