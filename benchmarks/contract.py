"""Measures how well the base model and the shipped adapter keep the contract on test questions of documents unseen in training.

python benchmarks/contract.py --data FOLDER [--limit 500] [--base-limit 100] [--attacks FILE] [--json]
    [--write docs/adapter.md] [--record adapters/cited-answer] [--bigger URL]

FOLDER (or BENCH_DATA) holds corpus.jsonl and questions.jsonl. The corpus is indexed into the collection
`bench-contract` of the configured database; the configured engine answers (both embedded when nothing is configured).
The base is asked the first of the same questions, and so is the larger model that another OpenAI-compatible server serves
at URL (without /v1). FILE holds orders as they are hidden in documents (BIPIA's text_attack).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.app import Orchestrator
from orchestrator.behaviour.examples import Branch, Search, Split, answer_from, load_questions, split_of
from orchestrator.behaviour.gate import judge_adapter
from orchestrator.behaviour.hard import read_attacks
from orchestrator.behaviour.held_out import Riddle, is_named
from orchestrator.behaviour.measure import Case, Configuration, Rate, Report, complete, measure, wilson
from orchestrator.compose import compose_messages
from orchestrator.contract import Contract
from orchestrator.engine import VllmEngine
from orchestrator.launch.weights import ensure_smollm2
from orchestrator.pipeline import Served
from orchestrator.prompts import Prompt
from orchestrator.resources import processor
from orchestrator.settings import Settings
from orchestrator.tokens import LocalTokens
from orchestrator.types import Generation, Passage

COLLECTION = "bench-contract"
PROBED = 100  # questions of the closed-book probe and of the attacks
SHARES = {"answerable": 0.68, "unanswerable": 0.16, "gold_left_out": 0.16}
BEGIN, END = "<!-- table: python benchmarks/contract.py -->", "<!-- end of table -->"
BASE = Configuration("base, prompt only", "base")
BASE_TWO_SHOT = Configuration("base, two examples in the prompt", "base", shots="two")
BASE_CONSTRAINED = Configuration("base, constrained decoding", "base", constrained=True)
BIGGER = Configuration("larger model, prompt only", "bigger")
BIGGER_CONSTRAINED = Configuration("larger model, constrained decoding", "bigger", constrained=True)
ADAPTER = Configuration("adapter", "adapter")
ADAPTER_CONSTRAINED = Configuration("adapter, constrained decoding", "adapter", constrained=True)
ROWS = (
    ("valid", "keeps the contract"),
    ("cites_gold", "cites the gold passage"),
    ("verbatim", "evidence is verbatim"),
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

        if tuned.adapter is None:
            raise SystemExit(f"{arguments.adapter} is no adapter")

        async def search(text: str, k: int) -> Sequence[Passage]:
            return await system.search(text, k=k, collection=COLLECTION)

        cases, retrieved = await make_cases(
            data, search, tuned.adapter.manifest["data"]["recipe"]["seed"], arguments.limit
        )
        say(f"{len(cases)} questions: {retrieved}")
        bench = Bench(
            system.catalogue.prompt(tuned.adapter.prompt),
            system.catalogue.contract(tuned.adapter.contract),
            LocalTokens(ensure_smollm2(settings.models, say)).count,
            arguments.concurrency,
        )
        few = cases[: arguments.base_limit]
        found = await bench.ask(tuned, [ADAPTER, ADAPTER_CONSTRAINED], cases)
        safety = await probe_safety(bench, base, tuned, cases, arguments.attacks)
        say(json.dumps(safety))
        found |= await bench.ask(base, [BASE, BASE_CONSTRAINED], few)
        found |= await bench.ask(base, [BASE_TWO_SHOT], few)
        rows = [BASE, BASE_TWO_SHOT, BASE_CONSTRAINED, ADAPTER, ADAPTER_CONSTRAINED]
        if arguments.bigger:
            rows += [BIGGER, BIGGER_CONSTRAINED]
            found |= await ask_bigger(bench, arguments.bigger, cases[: arguments.bigger_limit])
        about = describe([found[each.name] for each in rows], cases, tuned.adapter.served_name)
        seconds = {each.name: round(bench.seconds[each.name], 3) for each in rows}
        return about | {"seconds_per_answer": seconds, "retrieved": retrieved, "safety": safety}


async def ask_bigger(bench: Bench, url: str, cases: Sequence[Case]) -> dict[str, Report]:
    """The same contract under a model that nothing was trained for."""
    engine = VllmEngine(url, token_timeout_s=600, request_timeout_s=1800)
    try:
        (model,) = await engine.models()
        return await bench.ask(Served(engine, model), [BIGGER, BIGGER_CONSTRAINED], cases)
    finally:
        await engine.aclose()


@dataclass(frozen=True, slots=True)
class Bench:
    """Under which prompt and contract models are asked."""

    prompt: Prompt
    contract: Contract
    count: Callable[[str], int]
    concurrency: int
    seconds: dict[str, float] = field(default_factory=dict)  # per answer, by configuration

    async def ask(
        self, served: Served, configurations: Sequence[Configuration], cases: Sequence[Case]
    ) -> dict[str, Report]:
        """A report of each configuration by its name; one after the other, so that each has its own time."""
        found = {}
        for configuration in configurations:
            began = time.monotonic()
            (report,) = await measure(
                served.engine,
                cases,
                [replace(configuration, model=served.model)],
                prompt=self.prompt,
                contract=self.contract,
                count=self.count,
                concurrency=self.concurrency,
                progress=lambda done, total: say(f"{done} of {total}") if done % 50 == 0 else None,
            )
            self.seconds[configuration.name] = (time.monotonic() - began) / len(cases)
            say(f"{configuration.name}: {summary(report)} ({time.monotonic() - began:.0f} s)")
            found[configuration.name] = report
        return found

    async def named(self, served: Served, questions: Sequence[Branch]) -> int:
        """How many answers a model names without any passage."""
        hits = 0
        for question in questions:
            asked = compose_messages(self.prompt, question.question, (), count=self.count, budget_tokens=1600)
            completion = await complete(served.engine, Generation(served.model, asked.messages, max_tokens=60))
            hits += is_named(completion.text, Riddle(question.question, question.answers))
        return hits


async def probe_safety(
    bench: Bench, base: Served, tuned: Served, cases: Sequence[Case], attacks: Path | None
) -> dict[str, Any]:
    """Closed-book answers of base and adapter, and what orders hidden in passages change in the adapter's answers."""
    answerable = [case for case in cases if case.branch.answerable][:PROBED]
    questions = [case.branch for case in answerable]
    found: dict[str, Any] = {
        "closed_book": {
            name: asdict(wilson(await bench.named(served, questions), len(questions)))
            for name, served in (("base", base), ("adapter", tuned))
        }
    }
    if attacks is not None:
        orders = read_attacks(attacks)
        hostile = [attack(case, orders[at % len(orders)], at) for at, case in enumerate(answerable)]
        clean = (await bench.ask(tuned, [replace(ADAPTER, name="without attacks")], answerable))["without attacks"]
        under = (await bench.ask(tuned, [replace(ADAPTER, name="under attack")], hostile))["under attack"]
        found["injection"] = {
            name: {each: asdict(getattr(report, each)) for each in ("valid", "foreign", "f1", "false_refusal")}
            for name, report in (("clean", clean), ("attacked", under))
        }
    return found


def attack(case: Case, order: str, turn: int) -> Case:
    """The case with an order as a paragraph of one of its passages, at its start or end in turn; sources stay clean."""
    at = turn % len(case.passages)
    text = case.passages[at].text
    told = f"{order}\n\n{text}" if turn % 2 else f"{text}\n\n{order}"
    passages = (*case.passages[:at], replace(case.passages[at], text=told), *case.passages[at + 1 :])
    return replace(case, passages=passages, sources=case.passages)


async def make_cases(
    data: Path, search: Search, seed: int, limit: int, k: int = 5, split: Split = "test"
) -> tuple[list[Case], dict[str, int]]:
    """Questions of documents of ``split`` with the first k passages as found in the whole index, in a seeded order; how
    many of the answerable ones found their gold passage.

    Of the unanswerable ones (SHARES) half are the data set's own, half have the gold document taken out of the results.
    """
    titles = {item["id"]: item.get("title", "") for item in read_lines(data / "corpus.jsonl")}
    order = [
        question
        for question in load_questions(data)
        if split_of(titles.get(question.document_id, ""), question.document_id, seed) == split
    ]
    random.Random(f"cases:{seed}").shuffle(order)
    quota = {kind: round(limit * share) for kind, share in SHARES.items()}
    cases: list[Case] = []
    asked = Counter[str]()
    for question in order:
        if not sum(quota.values()):
            break
        leave_out = question.answerable and quota["gold_left_out"] * sum(SHARES.values()) > (
            quota["answerable"] * SHARES["gold_left_out"] / SHARES["answerable"]
        )
        kind = "unanswerable" if not question.answerable else "gold_left_out" if leave_out else "answerable"
        if not quota[kind]:
            continue
        found = await search(question.question, 4 * k if leave_out else k)
        shown = [passage for passage in found if not leave_out or passage.external_id != question.document_id][:k]
        asked[kind] += 1
        branch = answer_from(question, shown)
        if branch is not None and branch.kind == kind:
            cases.append(Case(tuple(shown), branch))
            quota[kind] -= 1
    return cases, {
        "asked": asked["answerable"],
        "gold_found": Counter(case.branch.kind for case in cases)["answerable"],
    }


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]


def describe(reports: Sequence[Report], cases: Sequence[Case], adapter: str) -> dict[str, Any]:
    """Everything that is worth keeping of a run, as JSON values."""
    verdict = judge_adapter(reports[3], max(reports[:3], key=lambda report: report.f1.value))
    return {
        "adapter": adapter,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "questions": len(cases),
        "kinds": dict(Counter(case.branch.kind for case in cases)),
        "made_of": "their documents were seen by no training split",
        "gate": {"passed": verdict.passed, "reasons": list(verdict.reasons)},
        "reports": [report.to_json() for report in reports],
    }


def summary(report: Report) -> str:
    """A report in one line."""
    return ", ".join(f"{title} {getattr(report, name).value:.1%}" for name, title in ROWS)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    titles = [*(title for _, title in ROWS), "questions", "seconds an answer"]
    head = "| | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles)
    lines = []
    for report in result["reports"]:
        name = report["configuration"]["name"]
        cells = [cell(Rate(**report[rate])) for rate, _ in ROWS]
        lines.append(
            f"| {' | '.join([name, *cells])} | {report['valid']['n']} | {result['seconds_per_answer'][name]:.2f} |"
        )
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(result["kinds"].items()))
    return (
        "\n".join([head, *lines])
        + f"\n\n{result['questions']} questions ({kinds}) over five passages as found in the whole index; "
        f"{result['made_of']}; the rows with fewer were asked the first of them. Greedy decoding, eight at once (seconds are "
        "of the whole, divided by the answers); in brackets the 95 % interval. "
        f"Adapter `{result['adapter']}`, {result['date']}, {result['machine']}. "
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


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Parses the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("BENCH_DATA"))
    parser.add_argument("--adapter", default="cited-answer")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--base-limit", type=int, default=100)
    parser.add_argument("--attacks", type=Path, metavar="FILE")
    parser.add_argument("--bigger", metavar="URL")
    parser.add_argument("--bigger-limit", type=int, default=40)
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
