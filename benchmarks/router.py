"""Measures how the router decides on labelled messages that it was not fitted on: rules alone, nearest example, learnt.

python benchmarks/router.py [--data FILE] [--fresh FILE] [--more FILE] [--questions FILE]... [--look C]... [--no-fit] [--json]

The messages of --data are split as `orchestrator router fit` splits them, and only the held-out side is judged. Those of
--fresh were written before the router was tuned and are judged as a whole, as are --more: questions that others wrote
(default: those of the example handbook). --questions: rows with "question" or "text" that all need a search; the share that is
skipped is counted. Each collection is left out once: fitted without its questions, judged on them (--no-fit: not).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.app import Orchestrator
from orchestrator.evaluation.fit_router import Wanted, fit_model
from orchestrator.evaluation.labelled import rows_of_documents
from orchestrator.evaluation.routing import (
    Judged,
    Labelled,
    Vectors,
    judge_router,
    nearest,
    plan_as_served,
    read_labelled,
    split_rows,
)
from orchestrator.knowledge.embed import open_embedder
from orchestrator.learnt import parse_learnt
from orchestrator.prompts import load_catalogue
from orchestrator.protocols import Embedder
from orchestrator.resources import folder, processor
from orchestrator.router import Router, find_learnt, open_router
from orchestrator.settings import Settings
from orchestrator.types import Query

HERE = Path(__file__).parent
HANDBOOK = HERE.parent / "examples" / "handbook"
TIMED = 300  # messages whose decision is timed
MOST = 3000  # questions of one file
COLLECTIONS = ("handbook", "wiki")
ALIKE = (0.7, 0.8)  # cosines: the share of a test's messages that have something so similar on the fitted side


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description="How the router decides.")
    parser.add_argument("--data", type=Path, default=HERE / "routes.jsonl", help="its held-out side counts")
    parser.add_argument("--fresh", type=Path, default=HERE / "routes.fresh.jsonl", help="all of these count")
    parser.add_argument("--more", type=Path, default=HANDBOOK.parent / "questions.jsonl", help="all of these count")
    parser.add_argument("--questions", type=Path, action="append", default=[], help="all of these need a search")
    parser.add_argument(
        "--look", action="append", default=[], metavar="C",
        help="collection of this installation that a refusal is checked in; a message tagged with a name is checked there",
    )  # fmt: skip
    parser.add_argument("--no-fit", action="store_true", help="leave no collection out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    report = asyncio.run(measure(options))
    json.dump(report, sys.stdout, indent=1) if options.json else show(report)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    settings = Settings.from_env()
    prompts = settings.prompts_dir or folder("prompts")
    catalogue = load_catalogue(prompts)
    embedder = await asyncio.to_thread(open_embedder, settings)
    rows, fresh, others = read_labelled(options.data), read_labelled(options.fresh), read_questions(options.more)
    asked = {path.parent.name + "/" + path.name: read_searches(path) for path in options.questions}
    headings = rows_of_documents(read_handbook(), catalogue.fallback)
    vectors = await embed(
        embedder, [*rows, *fresh, *others, *headings, *(row for each in asked.values() for row in each)]
    )
    fitted, held = split_rows(rows, vectors)
    learnt = find_learnt(catalogue, prompts, settings.router_file, embedder.space)
    rules = Router(catalogue, {})
    routers = {"rules": rules, "nearest example": await open_router(catalogue, embedder)}
    if learnt is not None:
        routers["learnt"] = replace(rules, learnt=learnt)
    tests = {"held out": held, "fresh": fresh, "handbook's questions": without(others, fitted)}
    left_out: dict[str, Any] = {}
    if not options.no_fit:
        left_out = await leave_out(fitted, held, vectors, rules, settings, embedder.space, options.look)
    every = [*held, *fresh, *others, *(row for each in asked.values() for row in each)]
    found = await look(settings, options.look, routers["learnt"], every, vectors) if options.look and learnt else {}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, Python {sys.version.split()[0]}",
        "space": embedder.space,
        "digest": learnt and learnt.digest,
        "evidence": learnt and dict(learnt.evidence),
        "fitted": len(fitted),
        "alike": {name: alike(test, fitted, vectors) for name, test in tests.items()},
        "tests": {name: judge_all(routers, test, vectors, found) for name, test in tests.items()},
        "left out": left_out,
        "searches": {name: judge_all(routers, each, vectors, found) for name, each in asked.items()},
        "decision_ms": {who: decision_ms(router, held, vectors) for who, router in routers.items()},
    }


def judge_all(
    routers: Mapping[str, Router], rows: Sequence[Labelled], vectors: Vectors, found: Mapping[str, float]
) -> dict[str, Any]:
    """What every router decides, and the learnt one with its second look."""
    judged = {who: fields(judge_router(router, rows, vectors)) for who, router in routers.items()}
    if found:
        judged["learnt, 2nd look"] = fields(judge_router(routers["learnt"], rows, vectors, found))
    return judged


async def look(
    settings: Settings, names: Sequence[str], router: Router, rows: Sequence[Labelled], vectors: Vectors
) -> dict[str, float]:
    """How far the passages suffice for each message that the router would look at again."""
    found: dict[str, float] = {}
    async with Orchestrator.open(settings) as orchestrator:
        for row in rows:
            plan = plan_as_served(router, row.text, vectors[row.text])
            if router.second_look(Query(row.text), plan) is not None:
                name = next((each for each in names if each in row.tags), names[0])
                result = await orchestrator.pipeline.search(Query(row.text, collection=name, k=plan.k or 5))
                found[row.text] = result.sufficiency or 0.0
    return found


async def leave_out(
    fitted: Sequence[Labelled],
    held: Sequence[Labelled],
    vectors: Vectors,
    rules: Router,
    settings: Settings,
    space: str,
    looks: Sequence[str],
) -> dict[str, Any]:
    """For each collection: fitted without any question over it, judged on all of them and on what is no question."""
    from threadpoolctl import threadpool_limits

    report: dict[str, Any] = {}
    headings = rows_of_documents(read_handbook(), rules.catalogue.fallback)
    for name, other in (COLLECTIONS, COLLECTIONS[::-1]):
        test = [row for row in held if other not in row.tags]
        test += [row for row in fitted if name in row.tags]
        kept = [row for row in fitted if name not in row.tags]
        variants = {"learnt": kept}
        if name == "handbook":
            variants["learnt, with its titles"] = [*kept, *headings]
        report[name] = {"rules": fields(judge_router(rules, test, vectors))}
        for variant, rows in variants.items():
            with threadpool_limits(1):
                raw = fit_model(rows, vectors, rules, Wanted(space, abstain=rules.catalogue.fallback))
            router = replace(rules, learnt=parse_learnt(raw))
            report[name][variant] = fields(judge_router(router, test, vectors))
            if name in looks:
                found = await look(settings, [name], router, test, vectors)
                report[name][f"{variant}, 2nd look"] = fields(judge_router(router, test, vectors, found))
    return report


async def embed(embedder: Embedder, rows: Sequence[Labelled]) -> Vectors:
    """A vector for every text."""
    texts = list(dict.fromkeys(row.text for row in rows))
    found = []
    for first in range(0, len(texts), 64):
        found += await embedder.embed(texts[first : first + 64])
    return dict(zip(texts, found, strict=True))


def read_questions(path: Path) -> list[Labelled]:
    """The questions of an evaluation set with their routes."""
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [Labelled(row["question"], row["route"]) for row in found if row.get("route")]


def read_searches(path: Path) -> list[Labelled]:
    """Questions of a retrieval set: JSON lines with "question" or "text", or SQuAD's JSON; all of them need a search."""
    raw = path.read_text("utf-8")
    if path.suffix == ".json":
        texts = [
            each["question"]
            for page in json.loads(raw)["data"]
            for paragraph in page["paragraphs"]
            for each in paragraph["qas"]
        ]
    else:
        texts = [row.get("question") or row["text"] for row in map(json.loads, raw.splitlines())]
    return [Labelled(text, "grounded", tags=(path.parent.name,)) for text in dict.fromkeys(texts)][:MOST]


def read_handbook() -> list[tuple[str, str]]:
    """Title and text of the example documents."""
    found = []
    for path in sorted(HANDBOOK.glob("*.md")):
        text = path.read_text("utf-8")
        title = re.search(r"^title: (.+)$", text, re.MULTILINE)
        found.append((title.group(1) if title else path.stem, text))
    return found


def without(rows: Sequence[Labelled], others: Sequence[Labelled]) -> list[Labelled]:
    """The rows whose texts are not among the others'."""
    seen = {row.text for row in others}
    return [row for row in rows if row.text not in seen]


def alike(test: Sequence[Labelled], fitted: Sequence[Labelled], vectors: Vectors) -> dict[str, float]:
    """Share of the test whose nearest fitted message is at least so similar."""
    found = nearest(test, fitted, vectors)
    return {str(cosine): sum(each >= cosine for each in found) / len(found) for cosine in ALIKE}


def decision_ms(router: Router, rows: Sequence[Labelled], vectors: Vectors) -> dict[str, float]:
    """CPU milliseconds of one decision, both passes of the pipeline, without the embedding: it holds on a busy machine."""
    spent = []
    for row in [*rows[:TIMED], *rows[:TIMED]]:
        vector = vectors[row.text]
        began = time.thread_time()
        plan_as_served(router, row.text, vector)
        spent.append((time.thread_time() - began) * 1000)
    timed = sorted(spent[len(spent) // 2 :])  # the first pass warms up
    return {"median": statistics.median(timed), "p95": timed[int(len(timed) * 0.95)]}


def fields(judged: Judged) -> dict[str, Any]:
    """A judgement as plain values, without the messages that were right."""
    values = asdict(judged)
    del values["right"]
    return values


def show(report: dict[str, Any]) -> None:
    """The tables."""
    digest = (report["digest"] or "none")[:12]
    print(
        f"{report['date']}, {report['machine']}; vectors of {report['space']}; router {digest}, {report['fitted']} fitted on"
    )
    for name, found in report["tests"].items():
        shares = ", ".join(f"{share:.3f} at cosine {cosine}" for cosine, share in report["alike"][name].items())
        table(f"{name} (have a like on the fitted side: {shares})", found)
    for name, found in report["left out"].items():
        table(f"{name} left out of what was fitted", found)
    for name, found in report["searches"].items():
        print(f"\n{name}: searches that are skipped")
        for who, each in found.items():
            taken = ", ".join(f"{route} {count}" for route, count in sorted(each["confusion"]["grounded"].items()))
            print(f"  {who:26}{interval(each['skipped'])} of {each['n']} ({taken})")
    print("\nms of CPU for one decision, without the embedding")
    for who, took in report["decision_ms"].items():
        print(f"  {who:26}{took['median']:.3f} median, {took['p95']:.3f} p95")


def table(title: str, found: Mapping[str, Any]) -> None:
    """One test: a line for each router, and the confusions of the last with what they cost."""
    columns = ("right", "skipped wrongly", "abstained", "cost", "regret", "ECE")
    print(f"\n{title}\n{'':26}" + "".join(f"{name:>22}" for name in columns))
    for who, each in found.items():
        cells = (
            interval(each["accuracy"]), interval(each["skipped"]), f"{each['abstained']['value']:.3f}",
            f"{each['cost']['value']:.3f}", f"{each['regret']['value']:.3f}", "" if each["ece"] is None else f"{each['ece']:.3f}",
        )  # fmt: skip
        print(f"{who:26}" + "".join(f"{cell:>22}" for cell in cells) + f"   of {each['n']}")
    who, last = list(found.items())[-1]
    for label, counts in last["confusion"].items():
        costs = last["cost_of"][label]
        print(
            f"  {who}, should be {label:10}"
            + ", ".join(
                f"{other} {count}" + (f" (cost {costs[other]:g})" if other in costs else "")
                for other, count in sorted(counts.items())
            )
        )


def interval(found: Mapping[str, Any]) -> str:
    """A share and its 95 % interval."""
    return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


if __name__ == "__main__":
    main()
