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
from orchestrator.evaluation.metrics import Difference, compare
from orchestrator.evaluation.routing import (
    Judged,
    Labelled,
    Vectors,
    calibration,
    judge_router,
    paraphrases,
    split_rows,
)
from orchestrator.learnt import FEATURES, FORMAT, parse_learnt, read_features
from orchestrator.router import Router
from orchestrator.types import Query

FOLDS = 5
LEAST = 8  # rows of a route, on the side that is fitted: fewer cannot fill the folds
SCALES = (8.0, 12.0)  # of the vector beside the features: a unit vector's numbers are about 0.05
PENALTIES = (0.3, 1.0)  # C of the regression: the smaller, the smoother
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
        """True when the paired test shows a gain and no search more is skipped wrongly."""
        return self.gain.is_gain and self.ours.skipped.value <= self.before.skipped.value + 0.01


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a router is fitted for. ``precision``: share of right ones among what it decides.

    ``abstain``: the route of the rest, the fallback of routes.toml when empty.
    """

    space: str
    precision: float = 0.95
    abstain: str = ""
    held_out: float = 0.33


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
    """The file. Grouped folds choose among SCALES x PENALTIES, and what they foretold gives temperature and threshold."""
    inputs = np.asarray([read_features(row.text, vectors[row.text]) for row in rows])
    names = sorted({row.route for row in rows})
    labels = np.asarray([names.index(row.route) for row in rows])
    groups = np.zeros(len(rows), np.int64)
    for number, members in enumerate(paraphrases(rows, vectors)):
        groups[members] = number
    scored = [
        (_log_loss(logits := _foretold(inputs, labels, groups, scale, penalty), labels), scale, penalty, logits)
        for scale in SCALES
        for penalty in PENALTIES
    ]
    _, scale, penalty, logits = min(scored, key=lambda each: each[0])
    temperature = _temperature(logits, labels)
    free = np.asarray([not base.plan(Query(row.text)).reason.startswith("rule") for row in rows])
    shares = _softmax(logits[free] / temperature)
    hits = shares.argmax(axis=1) == labels[free]
    threshold = choose_threshold(shares.max(axis=1).tolist(), hits.tolist(), wanted.precision)
    weights, bias = _regress(inputs, labels, scale, penalty)
    return json.dumps(
        {
            "format": FORMAT, "space": wanted.space, "dimensions": inputs.shape[1] - len(FEATURES), "routes": names,
            "features": FEATURES, "weights": np.round(weights, DIGITS).tolist(), "bias": np.round(bias, DIGITS).tolist(),
            "temperature": round(temperature, DIGITS), "threshold": round(threshold, DIGITS), "precision": wanted.precision,
            "abstain": wanted.abstain, "measured": measure_routes(rows),
            "evidence": {
                "scale": scale, "penalty": penalty, "folds": FOLDS,
                "folds_ece": calibration(shares.max(axis=1).tolist(), hits.tolist())[0],
                "folds_accuracy": float(hits.mean()),
            },
        }
    ).encode()  # fmt: skip


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


def _foretold(inputs: Numbers, labels: Numbers, groups: Numbers, scale: float, penalty: float) -> Numbers:
    """Logits of every row by a regression that saw neither it nor its paraphrases."""
    logits = np.zeros((len(labels), len(set(labels.tolist()))))
    for kept, left in _folds(groups, labels):
        weights, bias = _regress(inputs[kept], labels[kept], scale, penalty)
        logits[left] = inputs[left] @ weights.T + bias
    return logits


def _folds(groups: Numbers, labels: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    from sklearn.model_selection import StratifiedGroupKFold

    yield from StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(groups, labels, groups)


def _regress(inputs: Numbers, labels: Numbers, scale: float, penalty: float) -> tuple[Numbers, Numbers]:
    """Weights and bias of a multinomial logistic regression, for inputs as they are; inside they are scaled."""
    from sklearn.linear_model import LogisticRegression

    vector = inputs.shape[1] - len(FEATURES)
    spread = np.concatenate([np.full(vector, 1 / scale), np.maximum(inputs[:, vector:].std(axis=0), 0.05)])
    found = LogisticRegression(C=penalty, max_iter=2000).fit(inputs / spread, labels)
    rows, bias = found.coef_, found.intercept_
    if len(rows) == 1:  # of two classes scikit-learn keeps one row
        rows, bias = np.vstack([-rows[0] / 2, rows[0] / 2]), np.asarray([-bias[0] / 2, bias[0] / 2])
    return rows / spread, bias


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
