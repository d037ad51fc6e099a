"""Fits the learnt part of the router: labelled messages and their vectors in, a file of weights and its judgement out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from orchestrator.errors import MissingExtraError, TrainingError
from orchestrator.evaluation.metrics import Difference, Interval, compare, wilson
from orchestrator.evaluation.routing import (
    Judged,
    Labelled,
    Vectors,
    calibration,
    confusion_cost,
    judge_router,
    paraphrases,
    split_rows,
)
from orchestrator.learnt import (
    BUCKETS,
    FEATURES,
    FORMAT,
    carries_text,
    count_inputs,
    pack_weights,
    parse_learnt,
    read_features,
)
from orchestrator.prompts import Catalogue
from orchestrator.router import Router, digest_routes
from orchestrator.types import Query

FOLDS = 5
LEAST = 8  # rows of a route, on the side that is fitted: fewer cannot fill the folds
SCALE = 10.0  # of the vector beside the features: a unit vector's numbers are about 0.05
TURNED = 0.7  # of the vector's repetitions beside the vector
WORDS = 8.0  # of the hashed words
PENALTIES = (0.1, 0.3)  # C of the regression: the smaller, the smoother
CAUTION = tuple(np.geomspace(0.5, 64, 29))  # what a search that is skipped wrongly costs beside COSTS
DIGITS = 4
Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted router and how it did on messages that it never saw, against the router without it.

    ``gain``: right decisions, paired. ``raw``: the file's bytes.
    """

    raw: bytes
    ours: Judged
    before: Judged
    gain: Difference
    fitted: int
    held_out: int

    @property
    def may_serve(self) -> bool:
        """True when the paired test shows a gain and at most one search in a hundred more is skipped wrongly."""
        return self.gain.is_gain and self.ours.skipped.value <= self.before.skipped.value + 0.01


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a router is fitted for. ``precision``: share of right ones among what it decides.

    ``abstain``: the route of the rest, the fallback of routes.toml when empty. ``skipped``: share that caution is chosen for.
    """

    space: str
    precision: float = 0.95
    abstain: str = ""
    held_out: float = 0.33
    skipped: float = 0.01  # of searches, skipped wrongly


def fit_router(rows: Sequence[Labelled], vectors: Vectors, base: Router, wanted: Wanted) -> Fitted:
    """Splits, fits on one side and judges on the other; ``base``: the router that serves now, without a learnt model.

    Raises TrainingError for too few rows or a label that is no route, MissingExtraError without scikit-learn.
    """
    wanted = replace(wanted, abstain=wanted.abstain or base.catalogue.fallback)
    unknown = sorted(({row.route for row in rows} | {wanted.abstain}) - base.catalogue.routes.keys())
    if unknown:
        raise TrainingError(
            f"these are not routes of routes.toml: {unknown}; its routes are {sorted(base.catalogue.routes)}"
        )
    ours, held = split_rows(rows, vectors, wanted.held_out)
    _check_sizes(ours, held, base)
    with _one_thread():
        raw = fit_model(ours, vectors, base, wanted)
    router = replace(base, learnt=parse_learnt(raw))
    judged, before = judge_router(router, held, vectors), judge_router(base, held, vectors)
    return Fitted(
        raw=_with_evidence(raw, judged, len(ours)),
        ours=judged,
        before=before,
        gain=compare([float(each) for each in judged.right], [float(each) for each in before.right]),
        fitted=len(ours),
        held_out=len(held),
    )


def _one_thread() -> AbstractContextManager[Any]:
    """Keeps the algebra on one core: on two busy ones its threads waited for each other, 12 CPU seconds in place of 1."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingExtraError("eval", "Fitting a router") from error
    return cast(AbstractContextManager[Any], threadpool_limits(1))


def _check_sizes(ours: Sequence[Labelled], held: Sequence[Labelled], base: Router) -> None:
    names = {row.route for row in ours}
    few = {name: count for name in sorted(names) if (count := sum(row.route == name for row in ours)) < LEAST}
    absent = [name for name, route in base.catalogue.routes.items() if route.examples and name not in names]
    if few or absent or len(names) < 2 or not held:
        raise TrainingError(
            f"too few messages: {few or absent or len(ours)} (after {len(held)} were held out); "
            f"every route with examples in routes.toml needs {LEAST} or more that are no paraphrases of each other"
        )


def fit_model(rows: Sequence[Labelled], vectors: Vectors, base: Router, wanted: Wanted) -> bytes:
    """The file. Grouped folds choose the penalty; what they foretold gives temperature, threshold and caution."""
    inputs = np.asarray([read_features(row.text, vectors[row.text]) for row in rows])
    names = sorted({row.route for row in rows})
    labels = np.asarray([names.index(row.route) for row in rows])
    groups = np.zeros(len(rows), np.int64)
    for number, members in enumerate(paraphrases(rows, vectors)):
        groups[members] = number
    counted = np.asarray([not row.practice for row in rows])
    spread = _spread(inputs)
    scored = [
        (
            _log_loss((logits := _foretold(inputs / spread, labels, groups, penalty))[counted], labels[counted]),
            penalty,
            logits,
        )
        for penalty in PENALTIES
    ]
    _, penalty, logits = min(scored, key=lambda each: each[0])
    temperature = _temperature(logits[counted], labels[counted])
    free = counted & np.asarray([not base.plan(Query(row.text)).reason.startswith("rule") for row in rows])
    shares = _possible(_softmax(logits / temperature), rows, names, base.catalogue)[free]
    hits = shares.argmax(axis=1) == labels[free]
    threshold = choose_threshold(shares.max(axis=1).tolist(), hits.tolist(), wanted.precision)
    costs, skipped = choose_caution(shares, labels[free], names, base.catalogue, wanted.skipped)
    weights, bias = _regress(inputs / spread, labels, penalty)
    chosen = (shares @ costs).argmin(axis=1)
    return json.dumps(
        {
            "format": FORMAT, "space": wanted.space, "dimensions": len(vectors[rows[0].text]), "routes": names,
            "features": FEATURES, "weights": pack_weights(weights / spread), "bias": np.round(bias, DIGITS).tolist(),
            "temperature": round(temperature, DIGITS), "threshold": round(threshold, DIGITS), "precision": wanted.precision,
            "abstain": wanted.abstain, "costs": np.round(costs, DIGITS).tolist(), "catalogue": digest_routes(base.catalogue),
            "measured": measure_routes(rows),
            "evidence": {
                "penalty": penalty, "folds": FOLDS, "counted": int(free.sum()),
                "folds_ece": calibration(shares.max(axis=1).tolist(), hits.tolist())[0],
                "folds_accuracy": float((chosen == labels[free]).mean()), "folds_skipped": skipped.value,
                "folds_skipped_high": skipped.high, "skipped_wanted": wanted.skipped,
            },
        }
    ).encode()  # fmt: skip


def choose_caution(
    shares: Numbers, labels: Numbers, names: Sequence[str], catalogue: Catalogue, wanted: float
) -> tuple[Numbers, Interval]:
    """COSTS for these routes, those of a skipped search raised as little as keeps such mistakes at ``wanted``, and their share."""
    costs = np.asarray([[confusion_cost(catalogue, label, other) for other in names] for label in names])
    searches = np.asarray([catalogue.route(name).k > 0 for name in names])
    asks = searches[labels]
    for caution in CAUTION:
        raised = np.where(searches[:, None] & ~searches[None, :], costs * caution, costs)
        skipped = ~searches[(shares @ raised).argmin(axis=1)] & asks
        if skipped.sum() <= wanted * asks.sum():
            break
    return raised, wilson(int(skipped.sum()), int(asks.sum()))


def _possible(shares: Numbers, rows: Sequence[Labelled], names: Sequence[str], catalogue: Catalogue) -> Numbers:
    """The shares as the router sees them: a route that needs a text has none without one."""
    without = np.asarray([not carries_text(row.text) for row in rows])
    needing = np.asarray([catalogue.route(name).needs_text for name in names])
    left = np.where(without[:, None] & needing[None, :], 0.0, shares)
    return cast(Numbers, left / left.sum(axis=1, keepdims=True))


def measure_routes(rows: Sequence[Labelled]) -> dict[str, Any]:
    """Cost, 95th percentile of time and quality by kind of message of every route that was tried; empty when none was."""
    table: dict[str, Any] = {}
    for name in sorted({name for row in rows for name in row.tried}):
        tried = [(row.route, row.tried[name]) for row in rows if name in row.tried]
        by_kind = {
            label: [each.quality for kind, each in tried if kind == label] for label in {kind for kind, _ in tried}
        }
        table[name] = {
            "cost": float(np.mean([each.cost for _, each in tried])),
            "ms": float(np.quantile([each.ms for _, each in tried], 0.95)),
            "quality": {label: round(float(np.mean(found)), DIGITS) for label, found in sorted(by_kind.items())},
            "n": len(tried),
        }
    return table


def choose_threshold(shares: Sequence[float], hits: Sequence[bool], precision: float) -> float:
    """The lowest probability from which on decisions are right with this precision; 1 when none is."""
    order = sorted(range(len(shares)), key=lambda at: -shares[at])
    right, lowest = 0, 1.0
    for count, at in enumerate(order, 1):
        right += hits[at]
        is_last = count == len(order) or shares[order[count]] < shares[at]  # equal probabilities stand or fall together
        if is_last and right / count >= precision:
            lowest = shares[at]
    return lowest


def _foretold(scaled: Numbers, labels: Numbers, groups: Numbers, penalty: float) -> Numbers:
    """Logits of every row by a regression that saw neither it nor its paraphrases."""
    logits = np.zeros((len(labels), len(set(labels.tolist()))))
    for kept, left in _folds(groups, labels):
        weights, bias = _regress(scaled[kept], labels[kept], penalty)
        logits[left] = scaled[left] @ weights.T + bias
    return logits


def _folds(groups: Numbers, labels: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    from sklearn.model_selection import StratifiedGroupKFold

    yield from StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(groups, labels, groups)


def _spread(inputs: Numbers) -> Numbers:
    """What the inputs are divided by, so that one penalty fits the vector, its repetitions, the features and the words."""
    vectors = inputs.shape[1] - len(FEATURES) - BUCKETS
    dimensions = next(size for size in range(1, vectors + 1) if count_inputs(size) == inputs.shape[1])
    repeated = vectors - dimensions
    features = np.maximum(inputs[:, vectors : vectors + len(FEATURES)].std(axis=0), 0.05)
    return np.concatenate(
        [np.full(dimensions, 1 / SCALE), np.full(repeated, 1 / (SCALE * TURNED)), features, np.full(BUCKETS, 1 / WORDS)]
    )


def _regress(scaled: Numbers, labels: Numbers, penalty: float) -> tuple[Numbers, Numbers]:
    """Weights and bias of a multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    # Single precision halves the time, and what follows the third digit of a gradient moves no decision.
    found = LogisticRegression(C=penalty, max_iter=200, tol=1e-3).fit(scaled.astype(np.float32), labels)
    rows, bias = found.coef_.astype(np.float64), found.intercept_.astype(np.float64)
    if len(rows) == 1:  # of two classes scikit-learn keeps one row
        rows, bias = np.vstack([-rows[0] / 2, rows[0] / 2]), np.asarray([-bias[0] / 2, bias[0] / 2])
    return rows, bias


def _temperature(logits: Numbers, labels: Numbers) -> float:
    """What divides the logits so that their probabilities are calibrated (Guo 2017)."""
    candidates = np.geomspace(0.25, 4.0, 129)
    return float(min(candidates, key=lambda each: _log_loss(logits / each, labels)))


def _softmax(logits: Numbers) -> Numbers:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Numbers = odds / odds.sum(axis=1, keepdims=True)
    return shares


def _log_loss(logits: Numbers, labels: Numbers) -> float:
    shares = _softmax(logits)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(shares, 1e-12)).mean())


def _with_evidence(raw: bytes, judged: Judged, fitted: int) -> bytes:
    values: dict[str, Any] = json.loads(raw)
    found: Mapping[str, Any] = {
        "fitted": fitted, "held_out": judged.n, "accuracy": judged.accuracy.value, "accuracy_low": judged.accuracy.low,
        "skipped": judged.skipped.value, "ece": judged.ece, "abstained": judged.abstained.value,
        "decided_precision": judged.decided.value,
    }  # fmt: skip
    values["evidence"] = {**values["evidence"], **found}
    return json.dumps(values).encode() + b"\n"
