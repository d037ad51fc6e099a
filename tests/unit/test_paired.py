"""Paired comparisons: exact where they can be, honest about small sets, right at their stated error."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.behaviour.paired import cases_needed, compare


def test_the_exact_test_of_differing_pairs_is_mcnemars() -> None:
    new, old = [1.0] * 9 + [0.0] + [1.0] * 40, [0.0] * 9 + [1.0] + [1.0] * 40

    compared = compare(new, old)

    assert compared.difference == pytest.approx(8 / 50)
    assert compared.p_better == pytest.approx(sum(math.comb(10, k) for k in (9, 10)) / 2**10)


def test_equal_sides_are_no_improvement_and_no_proof_of_equality() -> None:
    compared = compare([1.0] * 20, [1.0] * 20)

    assert compared.p_better == 1.0
    assert compared.low < -0.05 < 0 < compared.high


def test_the_interval_narrows_with_the_cases() -> None:
    assert compare([1.0] * 200, [1.0] * 200).low > -0.02 > compare([1.0] * 20, [1.0] * 20).low


def test_no_case_shows_nothing() -> None:
    compared = compare([], [])

    assert (compared.n, compared.low, compared.p_better, compared.detectable) == (0, -1.0, 1.0, 1.0)


def test_two_lists_of_different_length_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="same cases"):
        compare([1.0], [])


def test_parts_of_a_point_are_compared_by_flipping_signs() -> None:
    chance = random.Random(1)
    old = [chance.random() * 0.5 for _ in range(60)]

    assert compare([value + 0.1 * chance.random() for value in old], old).p_better < 0.001
    assert compare([value - 0.1 * chance.random() for value in old], old).p_better > 0.99


def test_the_stated_errors_hold() -> None:
    """Equal adapters that differ in a fifth of the cases: called better, or worse beyond the interval, in 5 % at most."""
    chance = random.Random(7)
    better = missed = 0
    for _ in range(150):
        old = [float(chance.random() < 0.7) for _ in range(80)]
        new = [float(chance.random() < 0.7) if chance.random() < 0.4 else value for value in old]
        compared = compare(new, old)
        better += compared.p_better < 0.05
        missed += compared.low > 0

    assert better <= 0.07 * 150
    assert missed <= 0.08 * 150


def test_what_can_be_detected_is_detected_four_times_in_five() -> None:
    chance = random.Random(3)
    smallest = compare(*([float(chance.random() < 0.5) for _ in range(100)] for _ in range(2))).detectable
    found = 0
    for _ in range(80):
        old = [float(chance.random() < 0.5) for _ in range(100)]
        new = [float(chance.random() < 0.5 + smallest) for _ in range(100)]
        found += compare(new, old).low > 0

    assert 0.65 < found / 80 < 0.95


def test_the_number_of_cases_for_a_margin() -> None:
    compared = compare([1.0] * 50 + [0.0] * 5, [1.0] * 45 + [0.0] * 10)
    needed = cases_needed(compared, compared.detectable / 2)

    assert needed == pytest.approx(4 * 57, abs=2)
    assert cases_needed(compared, 0) == 0
