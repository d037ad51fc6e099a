"""Judges an adapter's measured report against the base's: may it be promoted, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.behaviour.measure import Report

VALID_AT_LEAST = 0.99
FALSE_REFUSALS_AT_MOST = 0.15
MARGIN = 0.02  # how much worse than the base a rate may be before it counts: sampling noise of a few hundred cases
CASES_AT_LEAST = 50


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision; ``reasons`` is empty when it passed."""

    passed: bool
    reasons: tuple[str, ...]


def judge_adapter(adapter: Report, base: Report) -> Verdict:
    """Passes an adapter that keeps the contract, is not worse than the base and does not refuse what it could answer."""
    reasons = []
    if adapter.valid.n < CASES_AT_LEAST:
        reasons.append(f"only {adapter.valid.n} cases were measured; {CASES_AT_LEAST} are needed")
    if adapter.valid.value < VALID_AT_LEAST:
        reasons.append(f"{adapter.valid.value:.1%} of its answers keep the contract; {VALID_AT_LEAST:.0%} are needed")
    for name in ("exact", "f1", "cites_gold"):
        ours, theirs = getattr(adapter, name), getattr(base, name)
        if ours.value < theirs.value - MARGIN:
            reasons.append(f"{name} is {ours.value:.1%}, the base reaches {theirs.value:.1%}")
    if adapter.false_refusal.value > FALSE_REFUSALS_AT_MOST:
        reasons.append(
            f"it refuses {adapter.false_refusal.value:.1%} of answerable questions; {FALSE_REFUSALS_AT_MOST:.0%} are allowed"
        )
    return Verdict(not reasons, tuple(reasons))
