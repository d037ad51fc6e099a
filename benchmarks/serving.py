"""Run-time LoRA against the same adapter merged into the base: ``python benchmarks/serving.py [--rounds N] [--json]``.

Both engines run on this machine at once and are asked in turn, so that the ratio holds when the machine's speed drifts.
Each prompt holds passages in an order of its own: nothing but the system message comes out of the prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from orchestrator import Orchestrator, Settings
from orchestrator.compose import compose_messages
from orchestrator.engine import VllmEngine
from orchestrator.launch import supervisor
from orchestrator.resources import folder, processor
from orchestrator.types import Completion, Generation, Message

QUESTION = "How many days of annual leave do full-time employees get per year?"
ADAPTER = "cited-answer"


async def main(rounds: int, as_json: bool) -> None:
    """Prints seconds and ratio for one and for four questions at a time."""
    settings = replace(Settings.from_env(), adapter_serving="merged")
    async with Orchestrator.open(settings, progress=print) as orchestrator:
        await orchestrator.ingest(folder("handbook"), collection="handbook")
        prompts = await _prompts(orchestrator, rounds * 5 * 2)
        adapter = await orchestrator.registry.get(ADAPTER)
        services = await asyncio.to_thread(supervisor.up, settings, adapters=[adapter], merged=adapter, progress=print)
    urls = {service.model: service.url or "" for service in services}
    engines = {"merged": VllmEngine(urls[adapter.served_name]), "run time": VllmEngine(urls[settings.engine_model])}
    rows = []
    try:
        for engine in engines.values():
            await _ask(engine, adapter.served_name, prompts[:1])
        for at_once in (1, 4):
            rows.append(await _compare(engines, adapter.served_name, prompts, at_once, rounds))
    finally:
        for engine in engines.values():
            await engine.aclose()
    _print(rows, as_json)


async def _prompts(orchestrator: Orchestrator, count: int) -> list[tuple[Message, ...]]:
    passages = await orchestrator.search(QUESTION, collection="handbook", k=12)
    prompt = orchestrator.catalogue.prompt("grounded")
    chance = random.Random(0)
    return [
        compose_messages(
            prompt,
            QUESTION,
            chance.sample(passages, 6),
            count=lambda text: len(text) // 4,
            budget_tokens=1600,
        ).messages
        for _ in range(count)
    ]


async def _compare(
    engines: dict[str, VllmEngine], model: str, prompts: list[tuple[Message, ...]], at_once: int, rounds: int
) -> dict[str, Any]:
    spent: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds):
        batch = prompts[(number * 5 + at_once) * at_once % len(prompts) :][:at_once] or prompts[:at_once]
        for name, engine in engines.items():
            began = time.perf_counter()
            await _ask(engine, model, batch)
            spent[name].append(time.perf_counter() - began)
    ratios = [run / merged for run, merged in zip(spent["run time"], spent["merged"], strict=True)]
    return {
        "at_once": at_once,
        "rounds": rounds,
        "merged_s": statistics.median(spent["merged"]),
        "run_time_s": statistics.median(spent["run time"]),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


async def _ask(engine: VllmEngine, model: str, batch: list[tuple[Message, ...]]) -> None:
    async def one(messages: tuple[Message, ...]) -> None:
        async for piece in engine.stream(Generation(model, messages, max_tokens=80)):
            if isinstance(piece, Completion):
                return

    await asyncio.gather(*(one(messages) for messages in batch))


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    machine = {"processor": processor(), "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat()}
    if as_json:
        print(json.dumps({"machine": machine, "rows": rows}))
        return
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['date']}")
    for row in rows:
        print(
            f"{row['at_once']} at once: merged {row['merged_s']:.2f} s, run time {row['run_time_s']:.2f} s, "
            f"ratio {row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f}), {row['rounds']} rounds"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.json))
