"""Decides whether a candidate may answer anybody: written rules and measured scores in, a verdict with its reasons out."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.behaviour.measure import Report
from orchestrator.behaviour.paired import Paired, cases_needed, compare
from orchestrator.behaviour.trial import METRICS, Scores
from orchestrator.errors import SettingsError
from orchestrator.resources import folder

VALID_AT_LEAST = 0.99
FALSE_REFUSALS_AT_MOST = 0.15
MARGIN = 0.02  # how much worse than the base a rate may be before it counts: sampling noise of a few hundred cases
CASES_AT_LEAST = 50
WATCHES = ("violations", "uncited", "refusals", "slow")


@dataclass(frozen=True, slots=True)
class Require:
    """The candidate's own mean must reach ``at_least``."""

    metric: str
    at_least: float


@dataclass(frozen=True, slots=True)
class Improve:
    """It must be significantly better in one of ``metrics``."""

    metrics: tuple[str, ...]
    over: str


@dataclass(frozen=True, slots=True)
class Keep:
    """It must not be worse by more than ``lose_at_most``, as its interval shows."""

    metric: str
    over: str
    lose_at_most: float


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """When a canary is rolled back, and when it has run long enough."""

    alpha: float
    ripe: int
    allowed_ratio: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rules:
    """The file gate.toml; ``digest`` is the sha256 of its bytes."""

    digest: str
    alpha: float
    require: tuple[Require, ...]
    improve: tuple[Improve, ...]
    keep: tuple[Keep, ...]
    canary: CanaryRules


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule came to. ``compared`` is None for a rule that compares with nobody or does not apply."""

    rule: str
    passed: bool
    said: str
    compared: Paired | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision; ``reasons`` is empty when it passed."""

    passed: bool
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for the audit and for ``--json``."""
        return asdict(self)


def load_rules(file: Path | None = None) -> Rules:
    """The rules of a file, the shipped ones when none is given. Raises SettingsError that names the key."""
    file = file or folder("adapters") / "gate.toml"
    try:
        content = file.read_bytes()
        table = tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read as rules of the gate: {error}") from error
    try:
        _refuse_unknown(table, {"alpha", "require", "improve", "keep", "canary"}, "the top")
        canary = table["canary"]
        _refuse_unknown(canary, {"alpha", "ripe", "allowed_ratio"}, "[canary]")
        ratios = {name: float(value) for name, value in canary["allowed_ratio"].items()}
        _refuse_unknown(ratios, set(WATCHES), "[canary.allowed_ratio]")
        rules = Rules(
            digest=hashlib.sha256(content).hexdigest(),
            alpha=_between(table["alpha"], 0, 0.5),
            require=tuple(Require(_metric(one["metric"]), float(one["at_least"])) for one in table["require"]),
            improve=tuple(Improve(tuple(map(_metric, one["any"])), _over(one["over"])) for one in table["improve"]),
            keep=tuple(
                Keep(_metric(one["metric"]), _over(one["over"]), _between(one["lose_at_most"], 0, 1))
                for one in table["keep"]
            ),
            canary=CanaryRules(_between(canary["alpha"], 0, 0.5), int(canary["ripe"]), ratios),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"{file}: {error} is missing or wrong; docs/howto/adapters-in-service.md has the keys"
        ) from error
    return rules


def judge_trial(rules: Rules, scores: Mapping[str, Scores], closed_book: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on ``scores["candidate"]`` against ``base`` and, where there is one, ``active``.

    ``closed_book``: the probe of the manifest. An adapter that answers more without passages than its base has learnt facts.
    """
    candidate = scores["candidate"]
    findings = [
        *(_required(rule, candidate) for rule in rules.require),
        *(_improved(rule, candidate, scores, rules.alpha) for rule in rules.improve),
        *(_kept(rule, candidate, scores, rules.alpha) for rule in rules.keep),
        *_learnt_facts(closed_book or {}),
    ]
    reasons = tuple(finding.said for finding in findings if not finding.passed)
    return Verdict(not reasons, reasons, tuple(findings))


def _learnt_facts(probe: Mapping[str, Any]) -> list[Finding]:
    if "risen" not in probe:  # trained before there was a probe, or on rows without passages
        return []
    said = (
        f"without passages it answers {probe['adapter']} of {probe['questions']} questions, the base {probe['base']}; "
        "more than the base's interval means that it was trained on facts"
    )
    return [Finding("closed book", not probe["risen"], said)]


def _required(rule: Require, candidate: Scores) -> Finding:
    values = list(candidate.values.get(rule.metric, {}).values())
    mean = sum(values) / len(values) if values else 0.0
    said = f"{rule.metric} is {mean:.1%} on {len(values)} cases; {rule.at_least:.1%} are needed"
    return Finding(f"require {rule.metric}", bool(values) and mean >= rule.at_least, said)


def _improved(rule: Improve, candidate: Scores, scores: Mapping[str, Scores], alpha: float) -> Finding:
    name, other = _other(rule.over, scores)
    corrected = alpha / len(rule.metrics)  # each of them is another chance to be lucky
    found = {metric: compare(*candidate.pairs(other, metric), alpha=corrected) for metric in rule.metrics}
    best = min(found, key=lambda metric: found[metric].p_better)
    passed = found[best].p_better < corrected
    compared = found[best]
    said = (
        f"{best} {'is' if passed else 'is not shown to be'} better than the {name}'s: {compared.difference:+.1%} on "
        f"{compared.n} cases, p {compared.p_better:.2g}; such a set shows {compared.detectable:.1%} or more"
    )
    return Finding(f"improve {' or '.join(rule.metrics)} over {name}", passed, said, compared)


def _kept(rule: Keep, candidate: Scores, scores: Mapping[str, Scores], alpha: float) -> Finding:
    name, other = _other(rule.over, scores)
    label = f"keep {rule.metric} of {name}"
    compared = compare(*candidate.pairs(other, rule.metric), alpha=alpha)
    if not compared.n:
        return Finding(label, True, f"{rule.metric} does not apply: no case is about it")
    passed = compared.low >= -rule.lose_at_most
    said = (
        f"{METRICS[rule.metric]}: {compared.new:.1%} against the {name}'s {compared.old:.1%} on {compared.n} cases, "
        f"at worst {compared.low:+.1%}; {-rule.lose_at_most:.1%} is allowed"
    )
    if compared.detectable > rule.lose_at_most:
        said += (
            f" (so few cases show a difference of {compared.detectable:.1%} or more; "
            f"about {cases_needed(compared, rule.lose_at_most)} are needed for {rule.lose_at_most:.1%})"
        )
    return Finding(label, passed, said, compared)


def _other(over: str, scores: Mapping[str, Scores]) -> tuple[str, Scores]:
    return (over, scores[over]) if over in scores else ("base", scores["base"])


def _metric(name: Any) -> str:
    if name not in METRICS:
        raise ValueError(f"the metric {name!r} (there are {', '.join(METRICS)})")
    return str(name)


def _over(name: Any) -> str:
    if name not in ("base", "active"):
        raise ValueError(f"over = {name!r} (base or active)")
    return str(name)


def _between(value: Any, low: float, high: float) -> float:
    if not low < float(value) <= high:
        raise ValueError(f"{value!r} (more than {low}, at most {high})")
    return float(value)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ValueError(f"{unknown} at {where}")


def judge_adapter(adapter: Report, base: Report) -> Verdict:
    """The short verdict of a release's table: the contract is kept, nothing is worse than the base, few false refusals."""
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


def all_metrics(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Means by metric and role with their number of cases, for a table."""
    found: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        for role, each in scores.items():
            values: Sequence[float] = list(each.values.get(metric, {}).values())
            if values:
                found.setdefault(metric, {})[role] = {"mean": sum(values) / len(values), "n": len(values)}
    return found
