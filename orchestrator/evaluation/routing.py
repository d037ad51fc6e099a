"""How well a router decides: labelled messages in; accuracy, cost of confusions, regret, calibration, skipped searches out."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.behaviour.similar import clusters, near_pairs
from orchestrator.errors import TrainingError
from orchestrator.evaluation.metrics import Interval, interval, wilson
from orchestrator.prompts import Catalogue, Route
from orchestrator.router import Router
from orchestrator.types import Plan, Query

BINS = 10
SAME_WORDS, SAME_MEANING = 0.5, 0.8  # shared shingles, cosine: above either two messages count as paraphrases
# What it costs to take the column's kind for the row's, in searches done in vain. An answer without its source is the worst: it
# looks like a good one. Kinds: a route that searches, one that answers from the message, one that asks back, one that refuses.
COSTS: Mapping[str, Mapping[str, float]] = {
    "search": {"search": 1, "task": 5, "clarify": 2, "refuse": 3},
    "task": {"search": 2, "task": 2, "clarify": 2, "refuse": 3},
    "clarify": {"search": 1, "task": 2, "clarify": 1, "refuse": 2},
    # A harmful wish that searches finds no passages that suffice, and is refused there: of the handbook's 19 unanswerable
    # questions 17 are.
    "refuse": {"search": 2, "task": 4, "clarify": 1, "refuse": 1},
}
Vectors = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Tried:
    """What one route gave for one message. ``quality`` 0..1, ``cost`` in any one currency."""

    quality: float
    cost: float
    ms: float


@dataclass(frozen=True, slots=True)
class Labelled:
    """A message and the route that should take it; ``tried``: what every route gave, where they were tried.

    ``practice``: harder than what is really asked; it is learnt from, but thresholds are not chosen on it.
    """

    text: str
    route: str
    group: str = ""  # messages of one group are paraphrases and stay on one side of a split
    tried: Mapping[str, Tried] = field(default_factory=dict)
    side: str = ""  # "fit" or "held"; a hash decides when empty
    practice: bool = False
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bin:
    """Decisions whose probability lay in one tenth: how sure they were, and how often they were right."""

    low: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Judged:
    """What a router decided over labelled messages.

    ``confusion``: label to decision to count; ``cost_of``: the same to what those cost together. ``skipped``: share of messages
    whose route searches that got one which does not. ``regret``: quality lost to the best route of each message, where every
    route was tried, else ``cost`` in the units of COSTS. ``ece``: mean gap between probability and accuracy, weighted by counts.
    """

    n: int
    accuracy: Interval
    confusion: Mapping[str, Mapping[str, int]]
    cost_of: Mapping[str, Mapping[str, float]]
    cost: Interval
    regret: Interval
    skipped: Interval
    abstained: Interval
    decided: Interval  # accuracy where a rule, a pin or a sure model decided
    ece: float | None
    bins: tuple[Bin, ...]
    right: tuple[bool, ...]
    wrong: tuple[tuple[str, str, str, str], ...]  # text, label, decision, reason


def read_labelled(path: Path) -> list[Labelled]:
    """Rows ``{"text", "route"}``, or ``{"text", "outcomes": {route: {"quality", "cost", "ms"}}}`` of runs that tried every route.

    The label of outcomes is the best route, the cheapest of equally good ones. Raises TrainingError that names the line.
    """
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(_read_row(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TrainingError(
                    f"{path.name} line {number}: {type(error).__name__} {error}; a row is "
                    '{"text": "...", "route": "..."} or {"text": "...", "outcomes": {"ROUTE": {"quality": 1, "cost": 0, "ms": 0}}}'
                ) from error
    if not rows:
        raise TrainingError(f"{path.name} holds no rows")
    return rows


def _read_row(row: Mapping[str, Any]) -> Labelled:
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("text must be a text")
    tried = {
        str(name): Tried(float(found["quality"]), float(found.get("cost", 0)), float(found.get("ms", 0)))
        for name, found in row.get("outcomes", {}).items()
    }
    if not all(math.isfinite(each.cost + each.ms) and 0 <= each.quality <= 1 for each in tried.values()):
        raise ValueError("quality lies from 0 to 1, cost and ms are numbers")
    route = row["route"] if not tried else min(tried, key=lambda name: (-tried[name].quality, tried[name].cost))
    side, tags = row.get("side", ""), tuple(map(str, row.get("tags", ())))
    if side not in ("", "fit", "held"):
        raise ValueError('side is "fit" or "held"')
    group, practice = str(row.get("group", "")), bool(row.get("practice", False))
    return Labelled(text, str(row.get("route", route)), group, tried, side, practice, tags)


def split_rows(
    rows: Sequence[Labelled], vectors: Vectors, share: float = 0.33
) -> tuple[list[Labelled], list[Labelled]]:
    """Rows to fit on and rows held out (about ``share``), the same each time.

    Paraphrases stay together: rows of one group, and rows alike in words or in meaning. Which side a cluster is on hangs on a
    hash of its first text, so nobody chooses; a side that is written in a row goes before. Practice is never held out, and
    left aside where it is like what is. Raises TrainingError where what is written puts paraphrases on two sides.
    """
    fit: list[Labelled] = []
    held: list[Labelled] = []
    asked = [row for row in rows if not row.practice]
    for members in paraphrases(asked, vectors):
        first = min(asked[at].text for at in members)
        written = {asked[at].side for at in members} - {""}
        if len(written) > 1:
            raise TrainingError(
                f"paraphrases stand on both sides of the split, {first[:80]!r} among them; write one side"
            )
        by_hash = int(hashlib.sha256(first.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF < share
        side = held if "held" in written or (by_hash and not written) else fit
        side.extend(asked[at] for at in members)
    return fit + _unlike([row for row in rows if row.practice], held, vectors), held


def _unlike(practice: Sequence[Labelled], held: Sequence[Labelled], vectors: Vectors) -> list[Labelled]:
    """Practice that is no paraphrase of what is held out."""
    if not practice or not held:
        return list(practice)
    pairs = near_pairs([row.text for row in (*practice, *held)], SAME_WORDS)
    alike = {pair.first for pair in pairs if pair.first < len(practice) <= pair.second}
    alike |= {pair.second for pair in pairs if pair.second < len(practice) <= pair.first}
    near = nearest(practice, held, vectors)
    return [row for at, row in enumerate(practice) if at not in alike and near[at] < SAME_MEANING]


def nearest(rows: Sequence[Labelled], others: Sequence[Labelled], vectors: Vectors) -> list[float]:
    """For each row the cosine of the most similar of the others: what a test shares with what was fitted on."""
    points, among = (np.asarray([vectors[row.text] for row in each], np.float32) for each in (rows, others))
    return [float(value) for value in (points @ among.T).max(axis=1)]


def paraphrases(rows: Sequence[Labelled], vectors: Vectors) -> list[list[int]]:
    """Places of the rows that say nearly the same, in clusters."""
    pairs = [(pair.first, pair.second) for pair in near_pairs([row.text for row in rows], SAME_WORDS)]
    points = np.asarray([vectors[row.text] for row in rows], np.float32)
    near = np.argwhere(np.triu(points @ points.T, 1) >= SAME_MEANING)
    pairs += [(int(one), int(other)) for one, other in near]
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        if row.group:
            pairs.append((first.setdefault(row.group, place), place))
    return clusters(len(rows), pairs)


def kind(route: Route) -> str:
    """Which of the kinds of COSTS a route is of."""
    return ("refuse" if route.action == "refuse" else "clarify") if route.reply else "search" if route.k else "task"


def confusion_cost(catalogue: Catalogue, label: str, decided: str) -> float:
    """What it costs to take one route for the other; 0 when they are the same."""
    if label == decided:
        return 0.0
    return COSTS[kind(catalogue.route(label))][kind(catalogue.route(decided))]


def judge_router(
    router: Router, rows: Sequence[Labelled], vectors: Vectors, sufficiency: Mapping[str, float] | None = None
) -> Judged:
    """Plans every row as serving does and compares with its label. Raises TrainingError for a label that is no route.

    ``sufficiency``: of what a search finds for a text, for the second look of the router; without it nothing is looked for.
    """
    sufficiency = sufficiency or {}
    catalogue = router.catalogue
    unknown = sorted({row.route for row in rows} - catalogue.routes.keys())
    if unknown:
        raise TrainingError(
            f"these labels are not routes of routes.toml: {unknown}; its routes are {sorted(catalogue.routes)}"
        )
    plans = [plan_as_served(router, row.text, vectors[row.text], sufficiency.get(row.text)) for row in rows]
    right = tuple(row.route == plan.route for row, plan in zip(rows, plans, strict=True))
    costs = [confusion_cost(catalogue, row.route, plan.route) for row, plan in zip(rows, plans, strict=True)]
    confusion: dict[str, Counter[str]] = {name: Counter() for name in sorted({row.route for row in rows})}
    cost_of: dict[str, Counter[str]] = {name: Counter() for name in confusion}
    for row, plan, cost in zip(rows, plans, costs, strict=True):
        confusion[row.route][plan.route] += 1
        cost_of[row.route][plan.route] += cost  # type: ignore[assignment]
    searching = [plan for row, plan in zip(rows, plans, strict=True) if catalogue.route(row.route).k]
    sure = [not _abstained(router, plan) for plan in plans]
    decided = [is_right for is_right, is_sure in zip(right, sure, strict=True) if is_sure]
    ece, bins = _calibration(router, plans, rows)
    return Judged(
        n=len(rows),
        accuracy=wilson(sum(right), len(rows)),
        confusion={name: dict(counts) for name, counts in confusion.items()},
        cost_of={name: {other: cost for other, cost in found.items() if cost} for name, found in cost_of.items()},
        cost=interval(costs),
        regret=interval([_regret(row, plan.route, cost) for row, plan, cost in zip(rows, plans, costs, strict=True)]),
        skipped=wilson(sum(not plan.retrieves for plan in searching), len(searching)),
        abstained=wilson(len(rows) - sum(sure), len(rows)),
        decided=wilson(sum(decided), len(decided)),
        ece=ece,
        bins=bins,
        right=right,
        wrong=tuple(
            (row.text, row.route, plan.route, plan.reason)
            for row, plan in zip(rows, plans, strict=True)
            if row.route != plan.route
        ),
    )


def plan_as_served(router: Router, text: str, vector: Sequence[float], sufficiency: float | None = None) -> Plan:
    """The plan that ``Pipeline`` makes of a text: it asks first without the vector, then with it, then looks again."""
    query = Query(text)
    plan = router.plan(query)
    plan = router.plan(query, vector) if plan.retrieves or not plan.reason.startswith("rule") else plan
    return router.settle(plan, router.second_look(query, plan), sufficiency)


def _abstained(router: Router, plan: Plan) -> bool:
    return bool(plan.scores) and router.learnt is not None and max(plan.scores.values()) < router.learnt.threshold


def _regret(row: Labelled, decided: str, cost: float) -> float:
    if not row.tried:
        return cost
    best = max(each.quality for each in row.tried.values())
    return best - (row.tried[decided].quality if decided in row.tried else 0.0)


def _calibration(
    router: Router, plans: Sequence[Plan], rows: Sequence[Labelled]
) -> tuple[float | None, tuple[Bin, ...]]:
    """Expected calibration error in ten bins (Naeini 2015) of the likeliest route, whether it was then taken or not."""
    if router.learnt is None:
        return None, ()
    seen = [
        (max(plan.scores.values()), max(plan.scores, key=lambda name: plan.scores[name]) == row.route)
        for row, plan in zip(rows, plans, strict=True)
        if plan.scores
    ]
    return calibration([share for share, _ in seen], [hit for _, hit in seen])


def calibration(shares: Sequence[float], hits: Sequence[bool]) -> tuple[float | None, tuple[Bin, ...]]:
    """The error, and the bins that hold anything; None of nothing."""
    bins = []
    for tenth in range(BINS):
        inside = [at for at, share in enumerate(shares) if min(BINS - 1, int(share * BINS)) == tenth]
        if inside:
            sure, right = sum(shares[at] for at in inside) / len(inside), sum(hits[at] for at in inside) / len(inside)
            bins.append(Bin(tenth / BINS, len(inside), sure, right))
    if not bins:
        return None, ()
    return sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / len(shares), tuple(bins)
