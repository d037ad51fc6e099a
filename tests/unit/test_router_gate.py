"""The gate of a fitted router: a significant gain, and hardly one search more that is skipped wrongly."""

from __future__ import annotations

import pytest

from orchestrator.evaluation.fit_router import Fitted
from orchestrator.evaluation.metrics import Difference, wilson
from orchestrator.evaluation.routing import Judged


def judged(skipped: int) -> Judged:
    """A judgement over a thousand messages, of which so many lost their search."""
    none = wilson(0, 1000)
    return Judged(1000, none, {}, {}, none, none, wilson(skipped, 1000), none, none, None, (), (), ())


@pytest.mark.parametrize(
    ("gain", "skipped", "serves"),
    [
        (Difference(0.1, 0.05, 0.15, 0.001, 1000), 20, True),
        (Difference(0.1, 0.05, 0.15, 0.001, 1000), 29, True),
        (Difference(0.1, 0.05, 0.15, 0.001, 1000), 32, False),
        (Difference(0.1, 0.05, 0.15, 0.001, 1000), 0, True),
        (Difference(0.02, -0.01, 0.05, 0.2, 1000), 0, False),
        (Difference(-0.1, -0.15, -0.05, 0.001, 1000), 0, False),
    ],
)
def test_what_may_serve(gain: Difference, skipped: int, serves: bool) -> None:
    fitted = Fitted(b"", judged(skipped), judged(20), gain, 2000, 1000)

    assert fitted.may_serve is serves
