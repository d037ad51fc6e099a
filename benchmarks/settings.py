"""Trains the behaviour layer under one setting after the other and compares them on the same validation questions.

python benchmarks/settings.py --data FOLDER [--questions 800] [--cases 120] [--threads 1] [--only NAME,...] [--out FILE]
    [--write docs/adapter.md]

FOLDER holds corpus.jsonl and questions.jsonl; the corpus is indexed into the collection `bench-contract` of the configured
database. Every setting sees the same documents, in the splits of seed 2, and is judged by what it writes, greedily and
unconstrained, for questions of validation documents over five passages as found. The test split is never asked. A setting
that is done stays done: the same command goes on with the next one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from contract import COLLECTION, make_cases, say

from orchestrator.app import Orchestrator
from orchestrator.behaviour.defaults import questions_fit
from orchestrator.behaviour.examples import Recipe
from orchestrator.behaviour.fit import Fit, Progress, attach_lora, forbid_vision, open_base
from orchestrator.behaviour.hard import Hard
from orchestrator.behaviour.held_out import generate
from orchestrator.behaviour.measure import Case, Outcome, bootstrap, judge
from orchestrator.behaviour.tokens import Renderer
from orchestrator.behaviour.train import NOT_HARD, TrainRequest, train_adapter
from orchestrator.compose import compose_messages
from orchestrator.contract import Contract
from orchestrator.evaluation.metrics import compare
from orchestrator.launch.weights import ensure_smollm2
from orchestrator.prompts import Prompt
from orchestrator.resources import processor
from orchestrator.settings import Settings
from orchestrator.tokens import LocalTokens
from orchestrator.types import Passage

SEED = 2  # the shipped adapter's, so that no setting sees its test documents
ANSWER_TOKENS, BUDGET_TOKENS = 120, 1600
BEGIN, END = "<!-- table: python benchmarks/settings.py -->", "<!-- end of settings -->"
COLUMNS = ("contract", "cites", "verbatim", "f1", "refused", "false_refusal")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is different from how the command trains. ``share``: of the questions that the others are trained on."""

    name: str
    fit: Mapping[str, Any]
    recipe: Mapping[str, Any]
    hard: bool = True
    share: float = 1.0


SETTINGS = (
    Setting("as the command trains", {}, {}),
    Setting("rank 4", {"rank": 4, "alpha": 8}, {}),
    Setting("learning rate doubled", {"learning_rate": 2.4e-3}, {}),
    Setting("learning rate halved", {"learning_rate": 6e-4}, {}),
    Setting("every token counts alike", {"emphasis": (), "refusals": 1.0}, {}),
    Setting("verdict of a refusal counts 2.5 times", {"refusals": 2.5}, {}),
    Setting("20 % unanswerable instead of 40 %", {}, {"unanswerable": 0.2}),
    Setting("always five passages", {}, {"sizes": ((5, 1.0),)}),
    Setting("no stale, conflicting, hostile, foreign passages", {}, {}, hard=False),
    Setting("one sequence a step in place of two", {"batch": 1}, {}),
    Setting("a quarter of the questions", {}, {}, share=0.25),
    Setting("three times the questions", {}, {}, share=3.0),
)


async def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each setting: figures with intervals, and what it cost."""
    settings = Settings.from_env()
    folder = settings.home_dir / "settings-bench"
    folder.mkdir(parents=True, exist_ok=True)
    base = await asyncio.to_thread(ensure_smollm2, settings.models, say)
    async with Orchestrator.open(settings, progress=say) as system:
        await system.ingest(arguments.data / "corpus.jsonl", collection=COLLECTION)

        async def search(text: str, k: int) -> list[Passage]:
            return list(await system.search(text, k=k, collection=COLLECTION))

        cases, _ = await make_cases(arguments.data, search, SEED, arguments.cases, split="validation")
        chosen = set(filter(None, arguments.only.split(",")))
        rows = []
        for at, setting in enumerate(SETTINGS):
            if chosen and setting.name not in chosen:
                continue
            file = folder / f"{at}-{arguments.questions}-{arguments.cases}.json"
            if not file.exists():
                row = await _try(setting, arguments, base, folder / str(at), search, system.catalogue, cases)
                file.write_text(json.dumps(row))
            rows.append(json.loads(file.read_text()))
            say(json.dumps({key: value for key, value in rows[-1].items() if key != "outcomes"}))
    return rows


async def _try(
    setting: Setting,
    arguments: argparse.Namespace,
    base: Path,
    out: Path,
    search: Any,
    catalogue: Any,
    cases: list[Case],
) -> dict[str, Any]:
    request = TrainRequest(
        name="setting",
        data=arguments.data,
        collection=COLLECTION,
        base=base,
        out=out,
        max_examples=round(arguments.questions * setting.share),
        threads=arguments.threads,
        recipe=replace(Recipe(seed=SEED), **setting.recipe),
        fit=replace(questions_fit(round(arguments.questions * setting.share), seed=SEED), **setting.fit),
        hard=Hard() if setting.hard else NOT_HARD,
    )
    if not (out / "manifest.json").exists():
        await train_adapter(
            request, search=search, catalogue=catalogue, progress=lambda step: say(_told(setting, step))
        )
    manifest = json.loads((out / "manifest.json").read_text())
    prompt, contract = catalogue.prompt(request.prompt), catalogue.contract(request.contract)
    began = time.monotonic()
    written = await asyncio.to_thread(_answers, base, manifest["fit"], out, arguments.threads, prompt, contract, cases)
    outcomes = [judge(text, case.branch, contract, case.passages) for text, case in zip(written, cases, strict=True)]
    spent = manifest["training"]
    return {
        "setting": setting.name,
        "questions": manifest["data"]["questions"],
        "tokens": spent["tokens"],
        "cpu_s": spent["cpu_s"],
        "answering_s": time.monotonic() - began,
        "outcomes": [
            asdict(outcome) | {"answerable": c.branch.answerable} for outcome, c in zip(outcomes, cases, strict=True)
        ],
        **figures(outcomes, cases),
    }


def _told(setting: Setting, step: Progress) -> str:
    return f"{setting.name}: {step.stage} {step.done} of {step.total} {step.note}"


def _answers(
    base: Path,
    fit: dict[str, Any],
    adapter: Path,
    threads: int,
    prompt: Prompt,
    contract: Contract,
    cases: Sequence[Case],
) -> list[str]:
    forbid_vision()
    model, tokenizer = open_base(base, threads)
    fit = {**fit, "emphasis": tuple(map(tuple, fit["emphasis"])), "start": str(adapter)}
    model = attach_lora(model, Fit(**fit)).merge_and_unload()
    renderer = Renderer(tokenizer, prompt, contract, LocalTokens(base).count, BUDGET_TOKENS)
    asked = [
        compose_messages(
            prompt, case.branch.question, case.passages, count=renderer.count, budget_tokens=BUDGET_TOKENS
        ).messages
        for case in cases
    ]
    return generate(model, tokenizer, [renderer.prompt_ids(messages) for messages in asked], ANSWER_TOKENS)


def figures(outcomes: Sequence[Outcome], cases: Sequence[Case]) -> dict[str, Any]:
    """Means with their 95 % bootstrap intervals."""
    judged = list(zip(outcomes, cases, strict=True))
    values = {
        "contract": [float(o.valid) for o, _ in judged],
        "cites": [float(o.cites_gold) for o, c in judged if c.branch.answerable],
        "verbatim": [float(o.verbatim) for o, _ in judged if o.verbatim is not None],
        "f1": [o.f1 for o, c in judged if c.branch.answerable],
        "refused": [float(o.refused) for o, c in judged if not c.branch.answerable],
        "false_refusal": [float(o.refused) for o, c in judged if c.branch.answerable],
    }
    return {name: asdict(bootstrap(found)) for name, found in values.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown; F1 also as a paired difference from the first."""
    heads = (
        "setting",
        "questions",
        "contract",
        "cites",
        "verbatim",
        "F1",
        "F1 against the first row",
        "refused",
        "falsely refused",
        "CPU s",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    first = [each["f1"] for each in rows[0]["outcomes"] if each["answerable"]]
    for row in rows:
        own = [each["f1"] for each in row["outcomes"] if each["answerable"]]
        against = compare(own, first)
        gap = (
            ""
            if row is rows[0]
            else f"{100 * against.value:+.1f} ({100 * against.low:+.0f} to {100 * against.high:+.0f})"
        )
        shown = [_rate(row[name]) for name in COLUMNS]
        cells = [row["setting"], str(row["questions"]), *shown[:4], gap, *shown[4:], f"{row['cpu_s']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rate(rate: Mapping[str, float]) -> str:
    return f"{100 * rate['value']:.0f} ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def main() -> None:
    """Prints the table and, with --write, puts it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    rows = asyncio.run(run(given))
    said = (
        f"{table(rows)}\n\nMedian of {statistics.median(row['tokens'] for row in rows):,} tokens a run, {processor()}."
    )
    print(said)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))
    if given.write:
        page = given.write.read_text("utf-8")
        head, _, rest = page.partition(BEGIN)
        given.write.write_text(f"{head}{BEGIN}\n{said}\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
