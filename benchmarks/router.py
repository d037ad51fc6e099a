"""Measures how the router decides on labelled messages that it was not fitted on: rules alone, nearest example, learnt.

python benchmarks/router.py [--data FILE] [--more FILE] [--json]

The messages of FILE are split as `orchestrator router fit` splits them, and only the held-out side is judged. ``--more`` is
judged as a whole: questions that others wrote (default: those of the example handbook).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.evaluation.routing import (
    Judged,
    Labelled,
    Vectors,
    judge_router,
    plan_as_served,
    read_labelled,
    split_rows,
)
from orchestrator.knowledge.embed import open_embedder
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.router import Router, find_learnt, open_router
from orchestrator.settings import Settings

HERE = Path(__file__).parent
TIMED = 200  # messages whose decision is timed


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description="How the router decides.")
    parser.add_argument(
        "--data", type=Path, default=HERE / "routes.jsonl", help="labelled messages; their held-out side counts"
    )
    parser.add_argument(
        "--more", type=Path, default=HERE.parent / "examples" / "questions.jsonl", help="all of these count"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    report = asyncio.run(measure(options.data, options.more))
    json.dump(report, sys.stdout, indent=1) if options.json else show(report)


async def measure(data: Path, more: Path) -> dict[str, Any]:
    """Everything that is printed."""
    settings = Settings.from_env()
    prompts = settings.prompts_dir or folder("prompts")
    catalogue = load_catalogue(prompts)
    embedder = await asyncio.to_thread(open_embedder, settings)
    rows, others = read_labelled(data), read_questions(more)
    texts = list(dict.fromkeys(row.text for row in (*rows, *others)))
    vectors = dict(zip(texts, await embedder.embed(texts), strict=True))
    fitted, held = split_rows(rows, vectors)
    learnt = find_learnt(catalogue, prompts, settings.router_file, embedder.space)
    nearest = await open_router(catalogue, embedder)
    routers = {"rules": Router(catalogue, {}), "nearest example": nearest}
    if learnt is not None:
        routers["learnt"] = Router(catalogue, {}, learnt=learnt)
    seen = {row.text for row in fitted}
    strangers = [row for row in others if row.text not in seen]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "space": embedder.space,
        "digest": learnt and learnt.digest,
        "messages": {"fitted": len(fitted), "held out": len(held), "handbook": len(strangers)},
        "held out": {name: fields(judge_router(router, held, vectors)) for name, router in routers.items()},
        "handbook": {name: fields(judge_router(router, strangers, vectors)) for name, router in routers.items()},
        "decision_ms": {name: decision_ms(router, held, vectors) for name, router in routers.items()},
    }


def read_questions(path: Path) -> list[Labelled]:
    """The questions of an evaluation set with their routes."""
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [Labelled(row["question"], row["route"]) for row in found if row.get("route")]


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
    """The table."""
    print(
        f"{report['date']}, {report['machine']}; vectors of {report['space']}; router {(report['digest'] or 'none')[:12]}"
    )
    print(", ".join(f"{count} {name}" for name, count in report["messages"].items()))
    columns = ("accuracy", "95 % interval", "skipped", "abstained", "cost", "ECE", "ms", "ms p95")
    for part in ("held out", "handbook"):
        print(f"\n{part:16}" + "".join(f"{name:>15}" for name in columns))
        for name, found in report[part].items():
            accuracy, took = found["accuracy"], report["decision_ms"][name]
            cells = (
                f"{accuracy['value']:.3f}", f"{accuracy['low']:.3f}-{accuracy['high']:.3f}", f"{found['skipped']['value']:.3f}",
                f"{found['abstained']['value']:.3f}", f"{found['cost']['value']:.3f}",
                "" if found["ece"] is None else f"{found['ece']:.3f}", f"{took['median']:.3f}", f"{took['p95']:.3f}",
            )  # fmt: skip
            print(f"{name:16}" + "".join(f"{cell:>15}" for cell in cells))
    for name, found in report["held out"].items():
        print(f"\n{name}: should be -> was")
        for label, counts in found["confusion"].items():
            print(f"  {label:10}" + ", ".join(f"{other} {count}" for other, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
