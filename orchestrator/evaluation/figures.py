"""The numbers behind a report's plots: a run in, counts and shares with their intervals out. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import InputError
from orchestrator.evaluation.diagnose import UNASKED
from orchestrator.evaluation.items import Item, Outcome, Score
from orchestrator.evaluation.metrics import Difference, Interval, wilson
from orchestrator.evaluation.runs import Run, refuse_other_sets
from orchestrator.evaluation.summary import MEASURES, Measure, compare_runs

BINS = 10
NO_ROUTE = "(none)"
Move = Literal["gained", "lost", ""]


@dataclass(frozen=True, slots=True)
class Bin:
    """Questions whose sufficiency lies in one tenth. ``said``: its mean; ``found``: share whose gold was shown."""

    said: float
    found: Interval


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far the estimated sufficiency is a probability. ``error``: mean distance of the bins, weighted; ``brier``: mean square.

    ``unseen``: questions left out because the system refused them before the model was shown anything.
    """

    bins: tuple[Bin, ...]
    error: float
    brier: float
    n: int
    unseen: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """Counts of questions by what was expected (rows) and what came (columns)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against an earlier one over the same questions. ``detectable``: the smallest difference that they would show."""

    measures: Mapping[Measure, Difference]
    detectable: float
    moves: Mapping[str, Move]

    @property
    def correct(self) -> Difference:
        """The paired difference of accuracy."""
        return self.measures["correct"]

    @property
    def verdict(self) -> Literal["gain", "loss", "no significant difference"]:
        """What the interval of the difference allows to say."""
        return "gain" if self.correct.is_gain else "loss" if self.correct.is_loss else "no significant difference"

    def moved(self, way: Move) -> tuple[str, ...]:
        """The questions that were gained, or lost."""
        return tuple(name for name, move in self.moves.items() if move == way)


def compare_with(run: Run, before: Run) -> Comparison:
    """``run`` minus ``before``, measure by measure. Raises InputError when they asked different questions."""
    refuse_other_sets(before, run)
    found: dict[Measure, Difference] = {}
    least = 1.0
    for measure in MEASURES:
        try:
            junk = len(run.set.faults)
            found[measure], smallest = compare_runs(run.set.items, run.scores, before.scores, measure, junk)
        except InputError:
            continue  # no question says anything of it
        least = smallest if measure == "correct" else least
    if "correct" not in found:
        raise InputError(f"{run.info.id} and {before.info.id} have no answered question in common", param="against")
    return Comparison(found, least, {item.id: _move(item, run.scores, before.scores) for item in run.set.items})


def reliability(run: Run) -> Reliability | None:
    """Sufficiency in tenths against the share whose gold was shown; what cannot be answered has none to show.

    None when no outcome carries a sufficiency. Brier (1950); expected calibration error as of Naeini et al. (2015).
    """
    pairs, unseen = [], 0
    for item in run.set.items:
        outcome, score = run.outcomes.get(item.id), run.scores.get(item.id)
        if outcome is None or score is None or outcome.sufficiency is None:
            continue
        if UNASKED & {flag.partition(":")[0] for flag in outcome.flags}:
            unseen += 1
        elif not item.answerable or score.gold_found is not None:
            pairs.append((outcome.sufficiency, score.gold_found or 0.0))
    if not pairs:
        return None
    binned: dict[int, list[tuple[float, float]]] = {}
    for said, found in pairs:
        binned.setdefault(min(int(said * BINS), BINS - 1), []).append((said, found))
    bins = tuple(_bin(binned[at]) for at in sorted(binned))
    error = math.fsum(abs(each.said - each.found.value) * each.found.n for each in bins) / len(pairs)
    brier = math.fsum((said - found) ** 2 for said, found in pairs) / len(pairs)
    return Reliability(bins, error, brier, len(pairs), unseen)


def refusals(run: Run) -> Matrix:
    """Whether a question can be answered, against what the system did."""
    counts = Counter((item.answerable, _done(run.outcomes.get(item.id))) for item in run.set.items)
    columns = ("answered", "refused", "no answer")
    used = [name for name in columns if name != "no answer" or any(done == name for _, done in counts)]
    return Matrix(
        ("can be answered", "cannot be answered"),
        tuple(used),
        tuple(tuple(counts[answerable, name] for name in used) for answerable in (True, False)),
    )


def routes(run: Run) -> Matrix | None:
    """The route that a question names, against the route taken; None when no question names one."""
    taken = [
        (item.route, outcome.route if (outcome := run.outcomes.get(item.id)) and outcome.route else NO_ROUTE)
        for item in run.set.items
        if item.route
    ]
    if not taken:
        return None
    rows = sorted({expected for expected, _ in taken})
    columns = rows + sorted({route for _, route in taken} - set(rows))
    counts = Counter(taken)
    return Matrix(tuple(rows), tuple(columns), tuple(tuple(counts[row, to] for to in columns) for row in rows))


def _bin(pairs: Sequence[tuple[float, float]]) -> Bin:
    return Bin(
        math.fsum(said for said, _ in pairs) / len(pairs), wilson(math.fsum(found for _, found in pairs), len(pairs))
    )


def _done(outcome: Outcome | None) -> str:
    if outcome is None or outcome.error:
        return "no answer"
    return "refused" if outcome.refused else "answered"


def _move(item: Item, scores: Mapping[str, Score], before: Mapping[str, Score]) -> Move:
    """A question that one run has not asked counts as wrong there, as in the test."""
    now, then = (run[item.id].correct if item.id in run else 0.0 for run in (scores, before))
    return "gained" if now > then else "lost" if now < then else ""
