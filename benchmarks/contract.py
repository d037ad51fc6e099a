"""Measures how well the base model and the shipped adapter keep the contract on test questions of documents unseen in training.

python benchmarks/contract.py --data FOLDER [--limit 300] [--json] [--write docs/adapter.md] [--record adapters/cited-answer]

FOLDER (or BENCH_DATA) holds corpus.jsonl and questions.jsonl. The corpus is indexed into the collection
`bench-contract` of the configured database; the configured engine answers (both embedded when nothing is configured).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.app import Orchestrator
from orchestrator.behaviour.examples import Recipe, build_groups, load_questions
from orchestrator.behaviour.gate import judge_adapter
from orchestrator.behaviour.measure import Case, Configuration, Rate, Report, cases_from, measure
from orchestrator.launch.weights import ensure_smollm2
from orchestrator.settings import Settings
from orchestrator.tokens import LocalTokens
from orchestrator.types import Passage

COLLECTION = "bench-contract"
BEGIN, END = "<!-- table: python benchmarks/contract.py -->", "<!-- end of table -->"
BASE = Configuration("base, prompt only", "base")
BASE_TWO_SHOT = Configuration("base, two examples in the prompt", "base", shots="two")
BASE_CONSTRAINED = Configuration("base, constrained decoding", "base", constrained=True)
ADAPTER = Configuration("adapter", "adapter")
ADAPTER_CONSTRAINED = Configuration("adapter, constrained decoding", "adapter", constrained=True)
ROWS = (
    ("valid", "keeps the contract"),
    ("cites_gold", "cites the gold passage"),
    ("exact", "exact match"),
    ("f1", "F1"),
    ("refused", "refuses the unanswerable"),
    ("false_refusal", "refuses the answerable"),
)


async def run(arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Reports of all configurations, and what they were measured on."""
    settings = Settings.from_env()
    async with Orchestrator.open(settings, progress=say) as system:
        report = await system.ingest(data / "corpus.jsonl", collection=COLLECTION)
        say(f"index: {report.added} documents added, {report.unchanged} unchanged")
        base, tuned = await system.serving.resolve(None), await system.serving.resolve(arguments.adapter)
        cases = await make_cases(system, data, tuned.adapter.manifest, arguments.limit)
        count = LocalTokens(ensure_smollm2(settings.models, say)).count
        found: dict[str, Report] = {}
        for served, configurations in (
            (tuned, [ADAPTER, ADAPTER_CONSTRAINED]),
            (base, [BASE, BASE_CONSTRAINED]),
            (base, [BASE_TWO_SHOT]),
        ):
            began = time.monotonic()
            reports = await measure(
                served.engine,
                cases,
                [replace(configuration, model=served.model) for configuration in configurations],
                prompt=system.catalogue.prompt(tuned.adapter.prompt),
                contract=system.catalogue.contract(tuned.adapter.contract),
                count=count,
                concurrency=arguments.concurrency,
                progress=lambda done, total: say(f"{done} of {total}") if done % 50 == 0 else None,
            )
            for report in reports:
                found[report.configuration.name] = report
                say(f"{report.configuration.name}: {summary(report)} ({time.monotonic() - began:.0f} s)")
        ordered = [found[each.name] for each in (BASE, BASE_TWO_SHOT, BASE_CONSTRAINED, ADAPTER, ADAPTER_CONSTRAINED)]
        return describe(ordered, cases, tuned.adapter.served_name)


async def make_cases(system: Orchestrator, data: Path, manifest: Any, limit: int) -> list[Case]:
    """Test questions with 3 to 5 passages of test documents only, one question each, in a seeded order."""

    async def search(text: str, k: int) -> Sequence[Passage]:
        return await system.search(text, k=k, collection=COLLECTION)

    recipe = Recipe(
        seed=manifest["data"]["recipe"]["seed"],
        sizes=((3, 1), (4, 1), (5, 1)),
        max_branches=1,
        max_chars=5000,
        depth=100,
    )
    groups = await build_groups(load_questions(data), search, split="test", count=limit + limit // 2, recipe=recipe)
    return [case for case in cases_from(groups) if len(case.passages) >= 3][:limit]


def describe(reports: Sequence[Report], cases: Sequence[Case], adapter: str) -> dict[str, Any]:
    """Everything that is worth keeping of a run, as JSON values."""
    verdict = judge_adapter(reports[3], max(reports[:3], key=lambda report: report.f1.value))
    return {
        "adapter": adapter,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "questions": len(cases),
        "kinds": dict(Counter(case.branch.kind for case in cases)),
        "made_of": "test documents only: none of their text was seen in training",
        "gate": {"passed": verdict.passed, "reasons": list(verdict.reasons)},
        "reports": [report.to_json() for report in reports],
    }


def summary(report: Report) -> str:
    """A report in one line."""
    return ", ".join(f"{title} {getattr(report, name).value:.1%}" for name, title in ROWS)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = "| | " + " | ".join(title for _, title in ROWS) + " |\n|---|" + "---|" * len(ROWS)
    lines = [
        f"| {report['configuration']['name']} | " + " | ".join(cell(Rate(**report[name])) for name, _ in ROWS) + " |"
        for report in result["reports"]
    ]
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(result["kinds"].items()))
    return (
        "\n".join([head, *lines])
        + f"\n\n{result['questions']} questions ({kinds}) with 3 to 5 passages; {result['made_of']}. Greedy decoding; in "
        f"brackets the 95 % interval. Adapter `{result['adapter']}`, {result['date']}, {result['machine']}. "
        f"Gate: {'passed' if result['gate']['passed'] else 'failed: ' + '; '.join(result['gate']['reasons'])}."
    )


def cell(rate: Rate) -> str:
    """A rate in percent with its interval."""
    return f"{rate.value:.1%} ({rate.low * 100:.0f}–{rate.high * 100:.0f})" if rate.n else "–"


def write(file: Path, text: str) -> None:
    """Puts the table between its two marks, or at the end of the file."""
    old = file.read_text("utf-8") if file.exists() else "# The shipped adapter, measured\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2].strip()
    tail = f"\n{after}\n" if after else ""
    file.write_text(f"{before.rstrip()}\n\n{BEGIN}\n{text}\n{END}\n{tail}", "utf-8")


def record(folder: Path, result: dict[str, Any]) -> None:
    """Fills the measurements of an adapter's manifest; they are no part of its digest."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    if not result["adapter"].endswith(manifest["digest"][:12]):
        raise SystemExit(f"{folder} is not the adapter that was measured ({result['adapter']})")
    manifest["measurements"] = result
    file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Parses the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("BENCH_DATA"))
    parser.add_argument("--adapter", default="cited-answer")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    parser.add_argument("--record", type=Path, metavar="ADAPTER_FOLDER")
    arguments = parser.parse_args()
    data = Path(arguments.data) if arguments.data else None
    if data is None or not (data / "corpus.jsonl").is_file() or not (data / "questions.jsonl").is_file():
        say(f"skipped: {data or '--data'} is no folder with corpus.jsonl and questions.jsonl")
        return 0
    result = asyncio.run(run(arguments, data))
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    if arguments.write:
        write(arguments.write, table(result))
    if arguments.record:
        record(arguments.record, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
