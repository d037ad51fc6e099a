"""The gate: what keeps an adapter out of service."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.behaviour.gate import judge_adapter
from orchestrator.behaviour.measure import Configuration, Rate, Report


def rate(value: float, n: int = 300) -> Rate:
    return Rate(value, value, value, n)


GOOD = Report(
    configuration=Configuration("adapter", "a"),
    valid=rate(0.995),
    cites_gold=rate(0.7),
    contains_gold=rate(0.7),
    exact=rate(0.4),
    f1=rate(0.5),
    refused=rate(0.5),
    false_refusal=rate(0.05),
    prompt_tokens=400,
    completion_tokens=20,
)
BASE = replace(GOOD, valid=rate(0.8), cites_gold=rate(0.3), exact=rate(0.1), f1=rate(0.2))


def test_a_good_adapter_passes() -> None:
    verdict = judge_adapter(GOOD, BASE)

    assert verdict.passed
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"valid": rate(0.98)}, "keep the contract"),
        ({"exact": rate(0.05)}, "exact"),
        ({"f1": rate(0.1)}, "f1"),
        ({"cites_gold": rate(0.2)}, "cites_gold"),
        ({"false_refusal": rate(0.4)}, "refuses"),
        ({"valid": rate(1.0, n=10)}, "only 10 cases"),
    ],
)
def test_each_fault_is_named(change: dict[str, Rate], reason: str) -> None:
    verdict = judge_adapter(replace(GOOD, **change), BASE)  # type: ignore[arg-type]

    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]


def test_a_difference_within_the_noise_is_no_fault() -> None:
    assert judge_adapter(replace(GOOD, exact=rate(0.39)), replace(BASE, exact=rate(0.40))).passed
