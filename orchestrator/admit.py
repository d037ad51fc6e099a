"""Asks a candidate, the base and the adapter in service the same questions, lets the gate judge, and writes its verdict down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.behaviour.gate import Verdict, all_metrics, judge_trial
from orchestrator.behaviour.measure import Case, Configuration, Report, measure
from orchestrator.behaviour.registry import Registry
from orchestrator.behaviour.trial import Contender, Setting, read_cases, read_safety, run_trial
from orchestrator.errors import AdapterUnavailableError
from orchestrator.prompts import Catalogue
from orchestrator.protocols import Tokens
from orchestrator.serving import EngineServing
from orchestrator.types import Adapter

Progress = Callable[[int, int], None]
LETTERS_PER_TOKEN = 3  # where only a remote engine could count: too few rather than too many passages are shown


@dataclass(frozen=True, slots=True)
class Admission:
    """What the gate said of one adapter, and on what."""

    adapter: Adapter
    verdict: Verdict
    metrics: dict[str, dict[str, Any]]
    against: str | None
    questions: int
    safety: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "adapter": self.adapter.served_name,
            "passed": self.verdict.passed,
            "reasons": list(self.verdict.reasons),
            "findings": [asdict(finding) for finding in self.verdict.findings],
            "metrics": self.metrics,
            "against": self.against,
            "questions": self.questions,
            "safety": self.safety,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration's report, with what an answer took and how many came in a second."""

    report: Report
    ms_per_answer: float
    answers_per_s: float


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that a measurement needs of an open system."""

    serving: EngineServing
    registry: Registry
    catalogue: Catalogue
    tokens: Tokens | None = None
    concurrency: int = 8
    max_tokens: int = 160

    def setting(self, adapter: Adapter) -> Setting:
        """The adapter's own prompt and contract."""
        return Setting(
            self.catalogue.prompt(adapter.prompt),
            self.catalogue.contract(adapter.contract),
            self.tokens.count if self.tokens else lambda text: len(text) // LETTERS_PER_TOKEN,
            int(adapter.manifest.get("budget_tokens", 1600)),
            self.max_tokens,
            self.concurrency,
        )

    async def contenders(self, adapter: Adapter) -> list[Contender]:
        """The candidate, the base, and the adapter in service when it is another one of the same prompt and contract."""
        own, base = await self.serving.resolve(adapter.served_name), await self.serving.resolve(None)
        found = [Contender("candidate", own.engine, own.model), Contender("base", base.engine, base.model)]
        try:
            active = await self.serving.resolve(adapter.name)
        except AdapterUnavailableError:
            return found
        same = active.adapter and (active.adapter.prompt, active.adapter.contract) == (adapter.prompt, adapter.contract)
        if same and active.model != own.model:
            found.append(Contender("active", active.engine, active.model))
        return found


async def admit(
    bench: Bench, name: str, questions: Path, limit: int | None = None, progress: Progress | None = None
) -> Admission:
    """The gate's verdict, written to the audit whichever way it fell. Raises UnknownNameError, InputError, EngineError."""
    adapter = await bench.registry.newest(name)
    rules = bench.registry.rules()
    setting = bench.setting(adapter)
    cases, questions_digest = read_cases(questions, setting.contract, limit)
    safety, safety_digest = read_safety()
    contenders = await bench.contenders(adapter)
    scores = await run_trial(contenders, [*cases, *safety], setting, progress)
    verdict = judge_trial(rules, scores, adapter.manifest.get("closed_book"))
    against = next((one.model for one in contenders if one.role == "active"), None)
    admission = Admission(adapter, verdict, all_metrics(scores), against, len(cases), len(safety))
    kept = admission.to_json() | {"questions_sha256": questions_digest, "safety_sha256": safety_digest}
    await bench.registry.note_gate(adapter, verdict.passed, kept)
    return admission


async def measure_adapter(
    bench: Bench, name: str, questions: Path, limit: int | None = None, progress: Progress | None = None
) -> list[Measured]:
    """Reports of the base (plain, with examples in the prompt, constrained), the adapter, and the one in service.

    Raises UnknownNameError, InputError, EngineError, MissingExtraError.
    """
    adapter = await bench.registry.newest(name)
    setting = bench.setting(adapter)
    asked, _ = read_cases(questions, setting.contract, limit)
    cases = [one.case for one in asked]
    measured = []
    for contender in await bench.contenders(adapter):
        for configuration in _configurations(contender, shots=bool(setting.contract.citations)):
            measured.append(await _measure_one(contender, configuration, cases, setting, progress))
    return measured


def _configurations(contender: Contender, shots: bool) -> list[Configuration]:
    plain = Configuration(f"{contender.role}, prompt only", contender.model)
    constrained = replace(plain, name=f"{contender.role}, constrained", constrained=True)
    if contender.role != "base":
        return [plain, constrained]
    two = replace(plain, name="base, two examples in the prompt", shots="two")
    return [plain, two, constrained] if shots else [plain, constrained]


async def _measure_one(
    contender: Contender,
    configuration: Configuration,
    cases: Sequence[Case],
    setting: Setting,
    progress: Progress | None,
) -> Measured:
    began = time.perf_counter()
    (report,) = await measure(
        contender.engine,
        cases,
        [configuration],
        prompt=setting.prompt,
        contract=setting.contract,
        count=setting.count,
        budget_tokens=setting.budget_tokens,
        max_tokens=setting.max_tokens,
        concurrency=setting.concurrency,
        progress=progress,
    )
    spent = time.perf_counter() - began
    return Measured(report, 1000 * spent * min(setting.concurrency, len(cases)) / len(cases), len(cases) / spent)
