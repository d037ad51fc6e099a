"""Measures of a ranking, their means with standard errors, and paired tests of one system against another.

A ranking is a list of document ids, best first, each at most once. Definitions as in trec_eval: nDCG of Järvelin &
Kekäläinen (2002) with the grade as gain and log2(rank + 1) as discount, over all judged documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.intervals import wilson as wilson_interval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]

ROUNDS = 10_000
Z95, Z80 = 1.959964, 0.841621  # of the normal distribution: 95 % two-sided, 80 % power
BLOCK = 2_000_000  # numbers drawn at a time: bounds the memory of a test over many questions


def ndcg(ranking: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Normalised discounted cumulative gain of the first k (``ndcg_cut.k`` of trec_eval), 0 to 1."""
    found = _gain(grades.get(name, 0.0) for name in ranking[:k])
    best = _gain(sorted(grades.values(), reverse=True)[:k])
    return found / best if best else 0.0


def reciprocal_rank(ranking: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """1 / rank of the first relevant document among the first k, else 0 (``recip_rank``, cut at k)."""
    return next((1 / rank for rank, name in enumerate(ranking[:k], 1) if grades.get(name, 0) > 0), 0.0)


def recall(ranking: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Share of the relevant documents that are among the first k (``recall.k``)."""
    relevant = sum(grade > 0 for grade in grades.values())
    return _hits(ranking, grades, k) / relevant if relevant else 0.0


def precision(ranking: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Relevant documents among the first k, divided by k also when fewer were found (``P.k``)."""
    return _hits(ranking, grades, k) / k


def _gain(grades: Iterable[float]) -> float:
    return sum(max(grade, 0.0) / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def _hits(ranking: Sequence[str], grades: Mapping[str, float], k: int) -> int:
    return sum(grades.get(name, 0) > 0 for name in ranking[:k])


def rank_documents(passages: Iterable[str]) -> list[str]:
    """Document ids of passages in order, each where its best passage stands."""
    return list(dict.fromkeys(passages))


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over questions. ``error``: its standard error, 0 when there is one question."""

    value: float
    error: float
    n: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over ``n`` questions with its 95 % interval; ``n`` is 0 where nobody kept it."""

    value: float
    low: float
    high: float
    n: int = 0

    def __str__(self) -> str:
        """In per cent, as a person reads it."""
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a paired difference with the 95 % interval of the paired bootstrap and the p of the permutation test."""

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def is_gain(self) -> bool:
        """True when the interval lies above zero."""
        return self.low > 0

    @property
    def is_loss(self) -> bool:
        """True when the interval lies below zero."""
        return self.high < 0


def mean(values: Sequence[float]) -> Mean:
    """Mean with its standard error (sample deviation / sqrt n). Raises ValueError without values."""
    n = len(values)
    if n == 0:
        raise ValueError("a mean of nothing")
    middle = math.fsum(values) / n
    spread = math.fsum((value - middle) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return Mean(middle, math.sqrt(spread / n), n)


def compare(ours: Sequence[float], theirs: Sequence[float], *, rounds: int = ROUNDS, seed: int = 0) -> Difference:
    """``ours`` minus ``theirs``, question by question; the same seed gives the same figures.

    Percentile bootstrap over questions (Efron & Tibshirani 1993) and sign-flip permutation test (Smucker, Allan &
    Carterette 2007), both with ``rounds`` drawings. Raises ValueError for lists of different length.
    """
    import numpy as np

    if len(ours) != len(theirs) or not ours:
        raise ValueError("a paired test needs two lists of the same length, which are not empty")
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    n = len(differences)
    chance = np.random.default_rng(seed)
    at_once = max(1, BLOCK // n)
    means: list[Values] = []
    flipped: list[Values] = []
    for first in range(0, rounds, at_once):
        shape = (min(at_once, rounds - first), n)
        means.append(differences[chance.integers(0, n, shape)].mean(axis=1))
        flipped.append((differences * (chance.integers(0, 2, shape, np.int8) * 2 - 1)).mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    observed = float(differences.mean())
    # Sums in another order differ in the last bits: an equal mean counts as equal.
    as_far = int((np.abs(np.concatenate(flipped)) >= abs(observed) - 1e-12).sum())
    return Difference(observed, float(low), float(high), (as_far + 1) / (rounds + 1), n)


def wilson(hits: float, n: int) -> Interval:
    """A share with its 95 % interval; of nothing, 0 with the interval from 0 to 1."""
    return Interval(hits / n if n else 0.0, *wilson_interval(hits, n), n)


def interval(values: Sequence[float], *, rounds: int = 2_000, seed: int = 0) -> Interval:
    """Mean of values from 0 to 1: Wilson's interval when each is 0 or 1, else the percentile bootstrap, seeded."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(math.fsum(values), len(values))
    import numpy as np

    array = np.asarray(values, np.float64)
    chance = np.random.default_rng(seed)
    at_once = max(1, BLOCK // len(array))
    means = [
        array[chance.integers(0, len(array), (min(at_once, rounds - first), len(array)))].mean(axis=1)
        for first in range(0, rounds, at_once)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def detectable(n: int, spread: float) -> float:
    """The smallest mean difference of n pairs that a two-sided 5 % test sees with 80 % power.

    ``spread``: standard deviation of the paired differences.
    """
    return (Z95 + Z80) * spread / math.sqrt(n) if n else 1.0
