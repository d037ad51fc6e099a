"""Compares two adapters on the same cases: is one better, could it be worse, and what difference would have been seen at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FLIPS = 10_000
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Paired:
    """New minus old over ``n`` cases that both have. ``low``, ``high``: two-sided interval at ``1 - 2 alpha``.

    ``p_better``: how likely a difference like this is when the new one is no better. ``detectable``: the smallest true
    difference that so many cases show in four of five trials.
    """

    n: int
    new: float
    old: float
    difference: float
    low: float
    high: float
    p_better: float
    detectable: float


def compare(new: Sequence[float], old: Sequence[float], alpha: float = 0.05) -> Paired:
    """Both in the order of the cases, values 0..1.

    Interval: Bonett and Price (2012), the adjusted Wald interval for paired proportions (one pseudo-pair each way), used for
    means in 0..1 as well; it does not collapse when no pair differs. p: exact sign test of the differing pairs (McNemar) for
    0/1 values, else a sign-flip permutation test with 10,000 seeded flips.
    """
    if len(new) != len(old):
        raise ValueError("a paired comparison needs the same cases on both sides")
    n = len(new)
    if n == 0:
        return Paired(0, 0.0, 0.0, 0.0, -1.0, 1.0, 1.0, 1.0)
    differences = [a - b for a, b in zip(new, old, strict=True)]
    padded = [*differences, 1.0, -1.0]
    mean = sum(padded) / len(padded)
    spread = math.sqrt(sum((each - mean) ** 2 for each in padded) / len(padded) / len(padded))
    z = NormalDist().inv_cdf(1 - alpha)
    return Paired(
        n=n,
        new=sum(new) / n,
        old=sum(old) / n,
        difference=sum(differences) / n,
        low=max(-1.0, mean - z * spread),
        high=min(1.0, mean + z * spread),
        p_better=_p_better(differences),
        detectable=min(1.0, (z + NormalDist().inv_cdf(POWER)) * spread),
    )


def cases_needed(compared: Paired, margin: float) -> int:
    """About how many cases show a difference of ``margin``, going by the spread of these."""
    return math.ceil((compared.n + 2) * (compared.detectable / margin) ** 2) if margin > 0 else 0


def _p_better(differences: Sequence[float]) -> float:
    changed = [each for each in differences if each]
    if not changed:
        return 1.0
    if set(map(abs, changed)) == {1.0}:
        wins = sum(each > 0 for each in changed)
        return float(sum(math.comb(len(changed), k) for k in range(wins, len(changed) + 1)) / 2 ** len(changed))
    values = np.asarray(changed)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(FLIPS, len(values)))
    at_least = int(((signs @ values) >= values.sum() - 1e-12).sum())
    return (at_least + 1) / (FLIPS + 1)
