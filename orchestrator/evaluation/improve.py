"""Walks the loop once: ask, diagnose, turn the cheapest knob that can mend what is wrong, and keep it if unseen questions say so.

| step | on which questions | touches what serves |
|---|---|---|
| ask and diagnose | the choosing half | no |
| choose a remedy and its value | the choosing half | no |
| decide: paired test, as set against as it would be | the deciding half | no |
| keep | | yes: intent recorded, change made, record closed |

A remedy is tried on a copy of the pipeline with one knob turned, so nobody is served by a change that was not tested, and a
process that dies before the decision leaves the system as it was. The deciding half is looked at once for each remedy that was
chosen on the other one; each look makes the next one stricter (Bonferroni over the looks that were ever taken at it).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from orchestrator.errors import InputError
from orchestrator.evaluation.causes import Cause, Diagnosis, Interval
from orchestrator.evaluation.items import Item, ItemSet, Outcome, Score
from orchestrator.evaluation.knobs import REMEDIES, Knobs, Name, Prospect, Remedy, halve, rank_remedies
from orchestrator.evaluation.metrics import Difference, interval
from orchestrator.evaluation.summary import compare_runs
from orchestrator.failpoints import failpoint

MIN_HALF = 20  # questions: with fewer no realistic gain is significant
WORTH = 0.01  # of all questions, that a remedy must be able to mend before it is tried
LEVEL = 0.05
Verdict = Literal["gain", "no gain", "unclear"]
State = Literal["kept", "proposed", "declined", "not chosen", "tried before"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the system did with one half, set one way."""

    outcomes: Mapping[str, Outcome]
    scores: Mapping[str, Score]

    def correct(self, items: Sequence[Item]) -> list[float]:
        """Whether each item is right, in order; one that was not asked is wrong."""
        return [self.scores[item.id].correct if item.id in self.scores else 0.0 for item in items]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the deciding half says. ``looks``: at this half, this one too; ``more``: questions that would settle it, about."""

    verdict: Verdict
    before: Interval
    after: Interval
    difference: Difference
    detectable: float
    looks: int
    more: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One remedy on trial. ``ceiling``: the most it could bring; ``chosen``: right on the choosing half, before and after.

    ``edit``: the change of what is kept, for a person to read; ``id``: names it in the record, for ``--revert``.
    """

    remedy: Name
    ceiling: Interval
    before: Knobs
    after: Knobs | None
    state: State
    said: str
    chosen: tuple[float, float] | None = None
    decision: Decision | None = None
    edit: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class NextStep:
    """What is left to a person: a cause, its questions, and the command; ``trains`` asks before it runs."""

    cause: Cause
    n: int
    gain: Interval
    command: str
    trains: bool


@dataclass(frozen=True, slots=True)
class Walk:
    """What was found and done. ``prospects``: what is worth a trial, in the order of trial."""

    set: str
    collection: str
    chosen: int
    held: int
    today: Interval
    diagnosis: Diagnosis
    prospects: tuple[tuple[Name, Interval], ...]
    attempts: tuple[Attempt, ...] = ()
    next: tuple[NextStep, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Earlier:
    """A decision that was made before on the same deciding half."""

    stamp: str
    after: Knobs
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Try:
    """All that decided one remedy, as it is written down. ``held``: hash of the deciding half; ``stamp``: of the system."""

    remedy: Name
    set: str
    held: str
    stamp: str
    before: Knobs
    after: Knobs
    decision: Decision

    def record(self) -> dict[str, Any]:
        """As JSON types."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


class System(Protocol):
    """What a walk asks of the system that it improves. The real one is ``evaluation.live.LiveSystem``."""

    collection: str
    search_only: bool

    async def knobs(self) -> Knobs:
        """As it is set now."""
        ...

    async def stamp(self) -> str:
        """A hash of all that enters an answer beside the question."""
        ...

    async def measure(self, half: ItemSet, knobs: Knobs, title: str) -> Measured:
        """What it does with each question when it is set so; changes nothing that serves."""
        ...

    async def diagnose(self, half: ItemSet, measured: Measured, knobs: Knobs) -> Diagnosis:
        """Why questions failed when it was set so."""
        ...

    async def propose(self, prospect: Prospect, half: ItemSet, measured: Measured, knobs: Knobs) -> Sequence[Knobs]:
        """Settings to try for a remedy, found with the questions of this half alone; none when nothing else is better."""
        ...

    async def earlier(self, held: str) -> Sequence[Earlier]:
        """The decisions that were made on the deciding half of this hash."""
        ...

    async def keep(self, tried: Try) -> tuple[State, str, str]:
        """Makes the change and records it. Gives "kept", or "proposed" for what is a person's to change, the edit, and its id."""
        ...

    async def decline(self, tried: Try) -> str:
        """Records what was tried and is not kept; gives the record's id."""
        ...


@dataclass(slots=True)
class _State:
    """A walk on its way."""

    system: System
    chosen: ItemSet
    held: ItemSet
    knobs: Knobs
    stamp: str  # when it began
    looks: int
    earlier: Sequence[Earlier]
    current: str
    attempts: list[Attempt] = field(default_factory=list)


async def improve(
    asked: ItemSet, system: System, *, steps: int = 1, worth: float = WORTH, dry_run: bool = False
) -> Walk:
    """One walk: at most ``steps`` remedies are decided on, each alone; with ``dry_run`` none is tried.

    Raises InputError for too few questions, and what asking raises; stopped at any moment, the same call goes on.
    """
    chosen, held = halve(asked)
    if min(len(chosen.items), len(held.items)) < MIN_HALF:
        raise InputError(
            f"{asked.name} has {len(asked.items)} questions; at least {3 * MIN_HALF} are needed to choose a remedy on one half "
            "and to judge it on the other",
            param="set",
        )
    earlier = await system.earlier(held.sha256)
    stamp = await system.stamp()
    state = _State(system, chosen, held, await system.knobs(), stamp, len(earlier), earlier, stamp)
    today = await system.measure(chosen, state.knobs, "asking")
    first = found = await system.diagnose(chosen, today, state.knobs)
    left: list[Remedy] = list(REMEDIES)
    prospects = rank_remedies(found, worth=worth, search_only=system.search_only)
    named = tuple((each.remedy.name, each.gain) for each in prospects)
    for step in range(0 if dry_run else steps):
        if step and state.attempts[-1].state == "kept":
            today = await system.measure(chosen, state.knobs, "asking again")
            found = await system.diagnose(chosen, today, state.knobs)
        for prospect in rank_remedies(found, worth=worth, search_only=system.search_only, left=left):
            left.remove(prospect.remedy)
            state.attempts.append(await _try(state, prospect, today))
            if state.attempts[-1].decision is not None:
                break
        else:
            break  # nothing is left to decide on
    return Walk(
        asked.name, system.collection, len(chosen.items), len(held.items), first.accuracy, first, named,
        tuple(state.attempts), next_steps(found, state.attempts), _notes(state, dry_run),
    )  # fmt: skip


async def _try(state: _State, prospect: Prospect, today: Measured) -> Attempt:
    """One remedy: chosen on one half, decided on the other."""
    system, before = state.system, state.knobs
    attempt = Attempt(prospect.remedy.name, prospect.gain, before, None, "not chosen", "")
    best, rights = await _choose(state, prospect, today)
    if best is None:
        return replace(attempt, said="no other setting does better on the half that chooses")
    n = len(state.chosen.items)
    attempt = replace(attempt, after=best, chosen=(rights[0] / n, rights[1] / n))
    if any((each.stamp, each.after) == (state.stamp, best) and each.verdict != "gain" for each in state.earlier):
        return replace(attempt, state="tried before", said="these questions have decided against it before")
    state.looks += 1
    was = await system.measure(state.held, before, "deciding: as it is")
    failpoint("improve-deciding")
    would = await system.measure(state.held, best, "deciding: as it would be")
    if await system.stamp() != state.current:
        raise InputError(
            "documents or settings changed while both were measured, so they cannot be compared. Run it again",
            param="set",
        )
    decision = decide(state.held.items, was, would, state.looks)
    attempt = replace(attempt, said=sentence(decision), decision=decision)
    tried = Try(prospect.remedy.name, state.held.name, state.held.sha256, state.stamp, before, best, decision)
    if decision.verdict != "gain":
        return replace(attempt, state="declined", id=await system.decline(tried))
    kept, edit, name = await system.keep(tried)
    if kept == "kept":
        state.knobs, state.current = best, await system.stamp()
    return replace(attempt, state=kept, edit=edit, id=name)


async def _choose(state: _State, prospect: Prospect, today: Measured) -> tuple[Knobs | None, tuple[float, float]]:
    """The setting with most right answers on the choosing half, and how many are right as it is and with it."""
    here = math.fsum(today.correct(state.chosen.items))
    best, most = None, here
    for value in await state.system.propose(prospect, state.chosen, today, state.knobs):
        measured = await state.system.measure(state.chosen, value, f"choosing: {prospect.remedy.name}")
        right = math.fsum(measured.correct(state.chosen.items))
        if right > most:
            best, most = value, right
    return best, (here, most)


def decide(items: Sequence[Item], was: Measured, would: Measured, looks: int) -> Decision:
    """Whether the questions that chose nothing say that it is a gain: the interval of the paired difference lies above zero.

    Beside it the permutation test must hold at 5 % divided by the looks taken: the interval alone calls three questions
    gained out of six a gain, which chance does one time in eight.
    """
    difference, least = compare_runs(items, would.scores, was.scores)
    before, after = (_interval(each.correct(items)) for each in (was, would))
    if difference.is_gain and difference.p <= LEVEL / looks:
        return Decision("gain", before, after, difference, least, looks)
    if difference.value <= 0:
        return Decision("no gain", before, after, difference, least, looks)
    needed = math.ceil(difference.n * (least / difference.value) ** 2)
    more = 2 * (max(needed, math.ceil(1.1 * difference.n)) - difference.n)
    return Decision("unclear", before, after, difference, least, looks, more)


def sentence(decision: Decision) -> str:
    """The decision as a person reads it."""
    found = decision.difference
    span = f"95 % {found.low:+.1%} to {found.high:+.1%}, p = {found.p:.4f}"
    size = f"{found.value:+.1%} ({span}) on {found.n} questions that did not choose it"
    if decision.verdict == "gain":
        return f"a gain of {size}"
    if decision.verdict == "no gain":
        return f"no gain: {size}"
    return f"not enough questions: {size}; about {decision.more} more are needed"


def next_steps(found: Diagnosis, attempts: Sequence[Attempt]) -> tuple[NextStep, ...]:
    """What is left when this is done: the causes that no remedy on trial addressed, with the commands that do."""
    tuned = frozenset[Cause]({"not_retrieved", "ranked_out"}) if attempts else frozenset[Cause]()
    return tuple(
        NextStep(bar.cause, bar.n, bar.gain, bar.command, bar.command.startswith("orchestrator train "))
        for bar in found.bars
        if bar.cause not in tuned
    )


def _notes(state: _State, dry_run: bool) -> tuple[str, ...]:
    notes = []
    if state.looks > 1 and not dry_run:
        notes.append(
            f"the half that decides has been looked at {state.looks} times; the next look needs p <= "
            f"{LEVEL / (state.looks + 1):.4f}. New questions make it fresh"
        )
    return tuple(notes)


def _interval(values: Sequence[float]) -> Interval:
    found = interval(values)
    return Interval(found.value, found.low, found.high)
