"""The canary's arithmetic: who goes where, and when the evidence suffices."""

from __future__ import annotations

import random

import pytest

from orchestrator.behaviour.sequential import SLOW_NEEDED, SlowAnswers, evidence, in_canary


def test_a_conversation_stays_on_its_arm_and_another_adapter_deals_anew() -> None:
    keys = [f"user {number}" for number in range(2000)]
    first = [in_canary("a" * 64, "t", key, 0.5)[0] for key in keys]

    assert first == [in_canary("a" * 64, "t", key, 0.5)[0] for key in keys]
    other = [in_canary("b" * 64, "t", key, 0.5)[0] for key in keys]
    assert 0.4 < sum(a == b for a, b in zip(first, other, strict=True)) / 2000 < 0.6


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_of_the_traffic_is_what_was_asked_for(share: float) -> None:
    hits = sum(in_canary("a" * 64, "t", f"user {number}", share)[0] for number in range(20_000))

    assert hits / 20_000 == pytest.approx(share, abs=0.012)


def test_a_larger_share_only_adds_conversations() -> None:
    keys = [f"user {number}" for number in range(500)]
    small = {key for key in keys if in_canary("a" * 64, "t", key, 0.1)[0]}

    assert small <= {key for key in keys if in_canary("a" * 64, "t", key, 0.3)[0]}


def test_the_counted_name_says_nothing_of_the_key() -> None:
    _, unit = in_canary("a" * 64, "t", "ann@example.org: my salary?", 0.1)

    assert len(unit) == 24
    assert int(unit, 16)


def test_nothing_seen_is_no_evidence_and_only_the_canarys_faults_are() -> None:
    assert evidence(0, 0, 0.1) == pytest.approx(1.0)
    assert evidence(3, 0, 0.1) > 80 > 1 > evidence(0, 10, 0.1)


def test_what_is_allowed_is_no_evidence() -> None:
    assert evidence(20, 90, 0.1, allowed_ratio=2.0) < 1 < evidence(60, 90, 0.1, allowed_ratio=2.0)


def test_a_flood_does_not_overflow() -> None:
    assert evidence(10**6, 0, 0.1) > 1e100


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_an_equal_canary_is_called_bad_no_oftener_than_stated_however_often_one_looks(share: float) -> None:
    """Ville: the evidence ever exceeds 1/alpha with probability alpha at most. 400 lives of 150 faults; it rises only with the
    canary's own, so looking after each of these is looking always."""
    chance, alpha, alarms = random.Random(5), 0.05, 0
    for _ in range(400):
        canary = active = 0
        for _ in range(150):
            if chance.random() >= share:
                active += 1
                continue
            canary += 1
            if evidence(canary, active, share) >= 1 / alpha:
                alarms += 1
                break

    assert alarms / 400 <= alpha + 0.015


def test_a_bad_canary_is_found_after_a_few_faults() -> None:
    chance, needed = random.Random(6), []
    for _ in range(25):  # 2 % of the active's answers are bad, 40 % of the canary's
        canary = active = asked = 0
        while canary < 3 or evidence(canary, active, 0.1) < 80:
            asked += 1
            in_it = chance.random() < 0.1
            if chance.random() < (0.4 if in_it else 0.02):
                canary, active = canary + in_it, active + (not in_it)
        needed.append(asked)

    assert sorted(needed)[12] < 300
    assert max(needed) < 2000


def test_slow_is_what_nine_of_ten_before_were_not() -> None:
    slow = SlowAnswers()

    assert [slow.judge(100.0 + number) for number in range(SLOW_NEEDED)] == [False] * SLOW_NEEDED
    assert slow.judge(500.0)
    assert not slow.judge(100.0)


def test_a_tenth_is_slow_whatever_the_load_is() -> None:
    chance, slow = random.Random(2), SlowAnswers()
    found = [slow.judge(chance.lognormvariate(5, 1)) for _ in range(1500)]

    assert 0.08 < sum(found) / 1500 < 0.13
