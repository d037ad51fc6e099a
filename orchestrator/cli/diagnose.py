"""Command that finds out by experiment which layer fails: diagnose."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator
from orchestrator.cli.output import Output, command, literal
from orchestrator.engine import VllmEngine
from orchestrator.errors import InputError
from orchestrator.evaluation.archive import PgArchive
from orchestrator.evaluation.ask import PipelineAsker
from orchestrator.evaluation.causes import Diagnosis, Interval
from orchestrator.evaluation.diagnose import diagnose as diagnose_run
from orchestrator.evaluation.diagnose import remedies_of
from orchestrator.evaluation.items import Change, ItemSet, Outcome
from orchestrator.evaluation.read import read_items, sample
from orchestrator.evaluation.runs import Run, Runs, describe_system
from orchestrator.evaluation.score import score_outcome
from orchestrator.pipeline import Served
from orchestrator.settings import Settings

WIDTH = 40  # characters of the longest bar
SHOWN = 5  # questions under each bar, as ids


@click.command()
@click.argument("set_or_run", metavar="SET|RUN")
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Ask this many questions, drawn with a fixed seed.")
@click.option(
    "--write", "write_path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Keep it as JSON."
)
@click.option("--strong-url", metavar="URL", help="Stronger model, as a vLLM server's address without /v1.")
@click.option("--strong-model", metavar="NAME", help="Its name there.")
@click.option("--key-env", default="OPENAI_API_KEY", show_default=True, help="Variable with the stronger model's key.")
@command
async def diagnose(
    output: Output,
    settings: Settings,
    set_or_run: str,
    collection: str | None,
    limit: int | None,
    write_path: Path | None,
    strong_url: str | None,
    strong_model: str | None,
    key_env: str,
) -> None:
    """Find out which layer each wrong answer is due to: one thing is made perfect at a time.

    SET is asked first, or taken up where it stopped; a RUN is one of `eval list`. Costs at most four times the run.
    """
    async with (
        Orchestrator.open(settings, progress=output.say) as orchestrator,
        _strong(strong_url, strong_model, key_env) as strong,
    ):
        found = await _diagnose(output, orchestrator, set_or_run, collection, limit, strong)
    if write_path:
        try:
            write_path.write_text(found.to_json() + "\n", "utf-8")
        except OSError as error:
            raise InputError(f"cannot write {write_path}: {error}", param="write") from error
    output.emit(found, lambda console: print_diagnosis(console, found))


async def _diagnose(
    output: Output,
    orchestrator: Orchestrator,
    set_or_run: str,
    collection: str | None,
    limit: int | None,
    strong: Served | None,
) -> Diagnosis:
    tenant = orchestrator.settings.tenant
    runs = Runs(orchestrator.database, tenant)
    known = None if Path(set_or_run).exists() else await runs.show(set_or_run)
    collection = collection or (known.info.collection if known else orchestrator.settings.collection)
    asker = PipelineAsker(orchestrator.pipeline, collection=collection, strong=strong)
    run = known or await _ask(output, orchestrator, runs, asker, read_items(set_or_run), collection, limit)
    asked = sample(run.set, limit) if limit else run.set
    outcomes = {
        item.id: await _with_texts(runs, run.outcomes[item.id]) for item in asked.items if item.id in run.outcomes
    }
    remedies = remedies_of(orchestrator.catalogue, await orchestrator.registry.list(), strong=strong is not None)
    with output.bar("replaying") as update:
        return await diagnose_run(
            asked, outcomes, asker, PgArchive(orchestrator.database, collection, tenant), score_outcome,
            remedies=remedies, collection=collection,
            progress=lambda done, total: update(done, total, f"{done} of {total} failed questions"),
        )  # fmt: skip


async def _ask(
    output: Output,
    orchestrator: Orchestrator,
    runs: Runs,
    asker: PipelineAsker,
    asked: ItemSet,
    collection: str,
    limit: int | None,
) -> Run:
    """The run of the set on the system as it is; what was asked of it before is not asked again."""
    frozen = await runs.freeze(sample(asked, limit) if limit else asked, collection)
    adapters = {each.name: each.digest for each in await orchestrator.registry.list() if each.state == "active"}
    system = describe_system(orchestrator.pipeline, adapters, Change())
    with output.bar("asking") as update:
        return await runs.run(
            frozen, asker, system, progress=lambda done, total: update(done, total, f"{done} of {total}")
        )


async def _with_texts(runs: Runs, outcome: Outcome) -> Outcome:
    """A kept outcome with the texts of its passages, as they are stored."""
    return replace(outcome, passages=tuple(await runs.passages(outcome))) if outcome.passages else outcome


@asynccontextmanager
async def _strong(url: str | None, model: str | None, key_env: str) -> AsyncIterator[Served | None]:
    if url is None:
        yield None
        return
    if model is None:
        raise InputError("a stronger model needs its name: --strong-model NAME", param="strong-model")
    engine = VllmEngine(url, os.environ.get(key_env))
    try:
        yield Served(engine, model)
    finally:
        await engine.aclose()


def print_diagnosis(console: Console, found: Diagnosis) -> None:
    """The waterfall, then a line for each cause with its questions and its command."""
    console.print(f"{found.n} questions of {found.set}: {_span(found.accuracy)} right", markup=False)
    steps = Table("made perfect", "accuracy then", "gain", "questions", "", title="from today to each layer's ceiling")
    steps.add_row(*literal("today", _span(found.accuracy), "", "", _bar(0.0, found.accuracy.value)))
    before = found.accuracy.value
    for step in found.ceilings:
        steps.add_row(
            *literal(step.layer, _span(step.accuracy), _span(step.gain), str(step.n), _bar(before, step.accuracy.value))
        )
        before = step.accuracy.value
    console.print(steps)
    if found.bars:
        causes = Table("layer", "cause", "questions", "share", "alone worth", "which", "what addresses it")
        for bar in found.bars:
            named = ", ".join(bar.items[:SHOWN]) + (f" and {bar.n - SHOWN} more" if bar.n > SHOWN else "")
            cells = (bar.layer, bar.cause, str(bar.n), _span(bar.share), _span(bar.gain), named, bar.command)
            causes.add_row(*literal(*cells))
        console.print(causes)
    twice = sum(len(each) > 1 for each in found.causes.values())
    notes = [f"{found.calls} calls of the model, the run took {found.run_calls}"]
    notes += [f"{twice} questions have two causes or more"] if twice else []
    notes += [f"{len(found.unsteady)} came right when asked again, or could not be asked"] if found.unsteady else []
    console.print("; ".join(notes), markup=False)


def _span(value: Interval) -> str:
    return f"{value.value:.1%} ({value.low:.1%} to {value.high:.1%})"


def _bar(start: float, end: float) -> str:
    return " " * round(start * WIDTH) + "█" * (round(end * WIDTH) - round(start * WIDTH))
