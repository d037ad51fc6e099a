"""Sums up a run: outcomes and scores in, means with intervals out; junk rows and questions that were not asked count as wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.errors import InputError
from orchestrator.evaluation.items import Fault, Item, Outcome, Score
from orchestrator.evaluation.metrics import Z95, Difference, Interval, compare, detectable, interval, wilson
from orchestrator.evaluation.score import score_outcome

Measure = Literal[
    "correct", "exact", "f1", "contract_kept", "citation_precision", "citation_recall", "supported", "gold_found",
    "refusal_right", "route_right",
]  # fmt: skip
MEASURES: tuple[Measure, ...] = (
    "correct", "exact", "f1", "contract_kept", "citation_precision", "citation_recall", "supported", "gold_found",
    "refusal_right", "route_right",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one stage over the outcomes that had it."""

    p50: float
    p95: float
    n: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run showed. ``n``: items and faults together; each measure is over the items that say something of it, and all faults.

    ``refusal_precision``: share of refusals that were right; ``refusal_recall``: share of what cannot be answered that was
    refused. ``detectable``: the smallest gain in ``correct`` that a second run over these items shows with 80 % power, when
    its answers are as unlike these as chance makes them; runs that agree more show less. ``cost``: None when not priced.
    """

    n: int
    asked: int
    faults: int
    errors: int
    synthetic: int
    measures: Mapping[str, Interval]
    refusal_precision: Interval
    refusal_recall: Interval
    slices: Mapping[str, Interval]
    reasons: Mapping[str, int]
    fault_reasons: Mapping[str, int]
    detectable: float
    timings_ms: Mapping[str, Timing]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    notes: tuple[str, ...] = field(default=())


def summarise(
    items: Sequence[Item],
    outcomes: Mapping[str, Outcome],
    scores: Mapping[str, Score],
    faults: Sequence[Fault] = (),
) -> Summary:
    """The figures of a run; outcomes and scores by the item's id. Raises InputError when there is nothing to sum up."""
    if not items and not faults:
        raise InputError("the set has no row: there is nothing to sum up", param="set")
    judged = {item.id: _judged(item, scores) for item in items}
    junk = len(faults)
    correct = [judged[item.id].correct for item in items] + [0.0] * junk
    done = [outcomes[item.id] for item in items if item.id in outcomes]
    costs = [outcome.cost for outcome in done if outcome.cost is not None]
    refused = [item for item in items if item.id in outcomes and outcomes[item.id].refused]
    unanswerable = [item for item in items if not item.answerable]
    right = sum(not item.answerable for item in refused)
    reasons = Counter(score.reason for score in judged.values() if score.reason)
    return Summary(
        n=len(items) + junk,
        asked=len(done),
        faults=junk,
        errors=sum(bool(outcome.error) for outcome in done),
        synthetic=sum(item.synthetic for item in items),
        measures=_measures(judged.values(), junk),
        refusal_precision=wilson(right, len(refused)),
        refusal_recall=wilson(right, len(unanswerable)),
        slices=_slices(items, judged, outcomes),
        reasons=dict(reasons.most_common()),
        fault_reasons=dict(Counter(fault.reason for fault in faults).most_common()),
        detectable=_worst_detectable(correct),
        timings_ms=_timings(done),
        prompt_tokens=sum(outcome.usage.prompt_tokens for outcome in done),
        completion_tokens=sum(outcome.usage.completion_tokens for outcome in done),
        cost=math.fsum(costs) if costs else None,
        notes=tuple(_notes(items, faults, len(done), judged)),
    )


def compare_runs(
    items: Sequence[Item],
    ours: Mapping[str, Score],
    theirs: Mapping[str, Score],
    measure: Measure = "correct",
    faults: int = 0,
) -> tuple[Difference, float]:
    """``ours`` minus ``theirs`` over the items that both say something of, and the smallest difference that n pairs show.

    An item that one run has not asked counts as wrong there. ``faults``: rows that could not be read, 0 in both runs, so that
    the difference is the one between the two runs' figures. Raises InputError without a common item.
    """
    pairs = []
    for item in items:
        if item.id not in ours and item.id not in theirs:
            continue
        mine, other = (getattr(_judged(item, run), measure) for run in (ours, theirs))
        if mine is not None and other is not None:
            pairs.append((mine, other))
    if not pairs:
        raise InputError(f"the two runs have no item in common that says something of {measure}", param="run")
    pairs += [(0.0, 0.0)] * faults
    difference = compare([mine for mine, _ in pairs], [other for _, other in pairs])
    spread = math.sqrt(math.fsum((mine - other - difference.value) ** 2 for mine, other in pairs) / len(pairs))
    return difference, detectable(len(pairs), spread)


def _judged(item: Item, scores: Mapping[str, Score]) -> Score:
    """What was not asked is as wrong as what failed."""
    return scores.get(item.id) or score_outcome(item, Outcome(item.id, error="not asked"))


def _measures(scores: Iterable[Score], junk: int) -> dict[str, Interval]:
    """Each measure that some item says something of: a row that cannot be read is 0 in all of them."""
    scores = list(scores)
    found: dict[str, Interval] = {}
    for name in MEASURES:
        values = [value for score in scores if (value := getattr(score, name)) is not None]
        if values or name == "correct":
            found[name] = interval([*values, *[0.0] * junk])
    return found


def slice_names(item: Item, outcome: Outcome | None) -> tuple[str, ...]:
    """The slices that a question belongs to."""
    names = ["answerable" if item.answerable else "unanswerable", *(f"tag:{tag}" for tag in item.tags)]
    names += [f"route:{item.route}"] if item.route else []
    names += [f"served by:{outcome.route}"] if outcome and outcome.route else []
    return (*names, "synthetic" if item.synthetic else "by people")


def _slices(items: Sequence[Item], judged: Mapping[str, Score], outcomes: Mapping[str, Outcome]) -> dict[str, Interval]:
    """Share of correct items by what they are about. Junk belongs to no slice."""
    of: dict[str, list[float]] = {}
    for item in items:
        for name in slice_names(item, outcomes.get(item.id)):
            of.setdefault(name, []).append(judged[item.id].correct)
    return {name: interval(values) for name, values in sorted(of.items())}


def _worst_detectable(correct: Sequence[float]) -> float:
    """Of independent runs: their differences spread by sqrt(2 p (1 - p)); p drawn towards a half, as few items show little."""
    n = len(correct)
    share = (math.fsum(correct) + Z95 * Z95 / 2) / (n + Z95 * Z95)
    return min(1.0, detectable(n, math.sqrt(2 * share * (1 - share))))


def _timings(outcomes: Sequence[Outcome]) -> dict[str, Timing]:
    stages = list(dict.fromkeys(stage for outcome in outcomes for stage in outcome.timings_ms))
    found = {}
    for stage in stages:
        values = sorted(outcome.timings_ms[stage] for outcome in outcomes if stage in outcome.timings_ms)
        found[stage] = Timing(_nearest_rank(values, 0.5), _nearest_rank(values, 0.95), len(values))
    return found


def _nearest_rank(values: Sequence[float], share: float) -> float:
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _notes(items: Sequence[Item], faults: Sequence[Fault], asked: int, judged: Mapping[str, Score]) -> Iterable[str]:
    if faults:
        (reason, count), *_ = Counter(fault.reason for fault in faults).most_common()
        share = len(faults) / (len(items) + len(faults))
        yield (
            f"{len(faults)} of {len(items) + len(faults)} rows ({share:.0%}) could not be read and count as wrong; "
            f"most often ({count}): {reason}"
        )
    if asked < len(items):
        yield f"{len(items) - asked} questions were not asked and count as wrong; the same command asks them"
    made = [judged[item.id].correct for item in items if item.synthetic]
    others = [judged[item.id].correct for item in items if not item.synthetic]
    if made:
        # One figure over both kinds would be read as what people asked.
        apart = f": {_percent(made)} of them are right, and {_percent(others)} of the others" if others else ""
        yield f"{len(made)} of {len(items)} questions were made by a model{apart}"


def _percent(values: Sequence[float]) -> str:
    return f"{math.fsum(values) / len(values):.1%}"
