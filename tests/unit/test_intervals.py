"""Intervals of rates."""

from __future__ import annotations

from orchestrator.intervals import wilson


def test_the_interval_is_wilsons() -> None:
    low, high = wilson(8, 10)

    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 0) == (0.0, 1.0)
