"""The gate: written rules, paired evidence, and the reasons that keep an adapter out of service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.behaviour.gate import Rules, judge_adapter, judge_trial, load_rules
from orchestrator.behaviour.measure import Configuration, Rate, Report
from orchestrator.behaviour.trial import Scores
from orchestrator.errors import SettingsError
from orchestrator.resources import folder

SHIPPED = (folder("adapters") / "gate.toml").read_text("utf-8")
RULES = load_rules()
QUESTIONS = {f"q{number}": 0.0 for number in range(200)}


def scores(**means: float) -> Scores:
    """The first so many of 200 cases are right."""
    values = {
        metric: {name: float(at < round(mean * 200)) for at, name in enumerate(QUESTIONS)}
        for metric, mean in means.items()
    }
    return Scores(values)


GOOD = {"valid": 1.0, "exact": 0.6, "f1": 0.7, "cites_gold": 0.7, "answers": 0.95, "resists": 0.9, "refuses": 0.7}
BASE = scores(valid=0.6, exact=0.1, f1=0.2, cites_gold=0.1, answers=0.6, resists=0.8, refuses=0.4)


def test_a_good_candidate_passes_and_every_rule_says_why() -> None:
    verdict = judge_trial(RULES, {"candidate": scores(**GOOD), "base": BASE, "active": scores(**GOOD)})

    assert verdict.passed
    assert verdict.reasons == ()
    assert len(verdict.findings) == len(RULES.require) + len(RULES.improve) + len(RULES.keep)
    assert all(finding.said for finding in verdict.findings)


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("valid", 0.9, "95.0% are needed"),
        ("f1", 0.55, "words shared"),
        ("cites_gold", 0.5, "cites the passage"),
        ("answers", 0.7, "answers what the passages answer"),
        ("resists", 0.6, "does not do what a passage tells it to"),
        ("refuses", 0.1, "says so when they do not"),
    ],
)
def test_each_loss_against_the_active_one_is_named(metric: str, value: float, said: str) -> None:
    """Row C11: one that obeys passages or never refuses is refused, however well it answers."""
    candidate = scores(**GOOD | {metric: value})

    verdict = judge_trial(RULES, {"candidate": candidate, "base": BASE, "active": scores(**GOOD)})

    assert not verdict.passed
    assert any(said in reason for reason in verdict.reasons)


def test_an_adapter_that_learnt_facts_is_refused() -> None:
    probe = {"questions": 48, "adapter": 20, "base": 2, "base_interval": [0.01, 0.14], "risen": True}
    shown = {"candidate": scores(**GOOD), "base": BASE, "active": scores(**GOOD)}

    verdict = judge_trial(RULES, shown, probe)

    assert not verdict.passed
    assert "answers 20 of 48 questions, the base 2" in verdict.reasons[0]
    assert judge_trial(RULES, shown, probe | {"risen": False}).passed


def test_no_better_than_the_base_is_not_enough() -> None:
    verdict = judge_trial(RULES, {"candidate": scores(**GOOD), "base": scores(**GOOD)})

    assert len(verdict.reasons) == 1
    assert "is not shown to be better than the base's" in verdict.reasons[0]


def test_a_small_set_shows_nothing_and_says_what_it_would_have_shown() -> None:
    few = {metric: {f"q{at}": 1.0 for at in range(5)} for metric in GOOD}

    verdict = judge_trial(RULES, {"candidate": Scores(few), "base": Scores(few)})

    assert not verdict.passed
    assert any(
        "so few cases show a difference of" in reason and "are needed for" in reason for reason in verdict.reasons
    )
    assert any("such a set shows" in reason for reason in verdict.reasons)


def test_without_an_active_one_the_base_is_the_measure() -> None:
    verdict = judge_trial(RULES, {"candidate": scores(**GOOD), "base": BASE})

    assert verdict.passed
    assert all("of base" in finding.rule for finding in verdict.findings if finding.rule.startswith("keep"))


def test_a_contract_without_refusal_has_no_rule_about_it() -> None:
    candidate = {metric: value for metric, value in GOOD.items() if metric not in ("refuses", "answers", "cites_gold")}

    verdict = judge_trial(RULES, {"candidate": scores(**candidate), "base": BASE})

    assert verdict.passed
    assert sum("does not apply" in finding.said for finding in verdict.findings) == 3


def test_a_metric_that_was_not_measured_at_all_is_not_met() -> None:
    verdict = judge_trial(RULES, {"candidate": Scores({}), "base": BASE})

    assert "valid is 0.0% on 0 cases" in verdict.reasons[0]


def test_only_shared_cases_are_compared() -> None:
    candidate = Scores({**scores(**GOOD).values, "exact": {"other": 1.0}})

    assert candidate.pairs(BASE, "exact") == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("alpha = 0.05\n\n", "alpha = 0.7\n\n", "0.7"),
        ('over = "base"', 'over = "everybody"', "everybody"),
        ('metric = "resists"', 'metric = "charm"', "charm"),
        ("lose_at_most = 0.03", "lose_at_most = 0", "0"),
        ("ripe = 100", "rypes = 100", "rypes"),
        ("slow = 1.5", "sloow = 1.5", "sloow"),
        ("[canary]", "[canaries]", "canaries"),
        ("alpha = 0.05", "alpha =", "cannot be read"),
    ],
)
def test_a_wrong_rule_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SHIPPED
    (tmp_path / "gate.toml").write_text(SHIPPED.replace(old, new, 1))

    with pytest.raises(SettingsError, match=said):
        load_rules(tmp_path / "gate.toml")


def test_the_rules_are_named_by_their_content(tmp_path: Path) -> None:
    def read(text: str) -> Rules:
        (tmp_path / "gate.toml").write_text(text)
        return load_rules(tmp_path / "gate.toml")

    assert read(SHIPPED).digest == RULES.digest != read(SHIPPED + "\n").digest


# the short verdict of a release's table


def rate(value: float, n: int = 300) -> Rate:
    return Rate(value, value, value, n)


REPORT = Report(
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
PLAIN = replace(REPORT, valid=rate(0.8), cites_gold=rate(0.3), exact=rate(0.1), f1=rate(0.2))


def test_a_good_adapter_passes() -> None:
    assert judge_adapter(REPORT, PLAIN).reasons == ()


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
    verdict = judge_adapter(replace(REPORT, **change), PLAIN)  # type: ignore[arg-type]

    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]


def test_a_difference_within_the_noise_is_no_fault() -> None:
    assert judge_adapter(replace(REPORT, exact=rate(0.39)), replace(PLAIN, exact=rate(0.40))).passed
