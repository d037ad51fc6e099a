"""Command that finds out by experiment which layer fails: diagnose."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator
from orchestrator.behaviour.distill import HttpTeacher
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.evaluation.archive import PgArchive
from orchestrator.evaluation.ask import Memory, PipelineAsker, Taught
from orchestrator.evaluation.causes import MEANINGS, Diagnosis
from orchestrator.evaluation.diagnose import UNTESTED, remedies_of
from orchestrator.evaluation.diagnose import diagnose as diagnose_run
from orchestrator.evaluation.items import Change, Item, ItemSet, Judgement, Outcome
from orchestrator.evaluation.judge import Judge
from orchestrator.evaluation.read import read_items, sample
from orchestrator.evaluation.runs import Run, Runs, describe_system
from orchestrator.evaluation.score import score_outcome
from orchestrator.pipeline import Served
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings

WIDTH = 40  # characters of the longest bar
SHOWN = 5  # questions under each bar, as ids
Named = tuple[HttpTeacher, str]  # a model behind an endpoint, and its name there


@click.command()
@click.argument("set_or_run", metavar="SET|RUN")
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Ask this many questions, drawn with a fixed seed.")
@click.option(
    "--write", "write_path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Keep it as JSON."
)
@click.option("--explain", is_flag=True, help="Show each failed question: what was tried, and what came of it.")
@click.option(
    "--strong-url", metavar="URL", help="OpenAI-compatible endpoint of a stronger model; ORCHESTRATOR_STRONG_URL."
)
@click.option("--strong-model", metavar="M", help="Its name there; ORCHESTRATOR_STRONG_MODEL.")
@click.option(
    "--judge", "judge_url", metavar="URL", help="Endpoint of a model that is asked whether a label is at fault."
)
@click.option("--judge-model", metavar="M", help="Its name there.")
@click.option(
    "--key-env", default="OPENAI_API_KEY", show_default=True, help="Variable of the environment with the key of both."
)
@command
async def diagnose(
    output: Output,
    settings: Settings,
    set_or_run: str,
    collection: str | None,
    limit: int | None,
    write_path: Path | None,
    explain: bool,
    strong_url: str | None,
    strong_model: str | None,
    judge_url: str | None,
    judge_model: str | None,
    key_env: str,
) -> None:
    """Find out which layer each wrong answer is due to: one thing is made perfect at a time.

    SET is asked first, or taken up where it stopped; a RUN is one of `eval list`. Costs at most four times the run.
    """
    key = os.environ.get(key_env)
    strong_key = key if strong_url else settings.strong_api_key
    async with (
        _teacher(
            "strong", strong_url or settings.strong_url, strong_model or settings.strong_model, strong_key
        ) as strong,
        _teacher("judge", judge_url, judge_model, key) as judge,
        Orchestrator.open(settings, progress=output.say) as orchestrator,
    ):
        found, questions = await _diagnose(output, orchestrator, set_or_run, collection, limit, strong, judge)
    if write_path:
        try:
            write_path.write_text(found.to_json() + "\n", "utf-8")
        except OSError as error:
            raise InputError(f"cannot write {write_path}: {error}", param="write") from error

    def table(console: Console) -> None:
        print_diagnosis(console, found)
        if explain:
            print_trails(console, found, questions)

    output.emit(found, table)


async def _diagnose(
    output: Output,
    orchestrator: Orchestrator,
    set_or_run: str,
    collection: str | None,
    limit: int | None,
    strong: Named | None,
    judge: Named | None,
) -> tuple[Diagnosis, dict[str, str]]:
    """The diagnosis, and the questions by their ids."""
    tenant = orchestrator.settings.tenant
    runs = Runs(orchestrator.database, tenant)
    known = None if Path(set_or_run).exists() else await runs.show(set_or_run)
    collection = collection or (known.info.collection if known else orchestrator.settings.collection)
    stronger = Served(Taught(*strong), strong[1]) if strong else None
    asker = PipelineAsker(orchestrator.pipeline, collection=collection, strong=stronger, memory=Memory())
    run = known or await _ask(output, orchestrator, runs, asker, read_items(set_or_run), collection, limit)
    asked = sample(run.set, limit) if limit else run.set
    outcomes = {
        item.id: await _with_texts(runs, run.outcomes[item.id]) for item in asked.items if item.id in run.outcomes
    }
    shipped = load_catalogue(folder("prompts"))
    adapters = await orchestrator.registry.list()
    remedies = remedies_of(orchestrator.catalogue, adapters, shipped=shipped, strong=strong is not None)
    with output.bar("replaying") as update:
        found = await diagnose_run(
            asked, outcomes, asker, PgArchive(orchestrator.database, collection, tenant), score_outcome,
            remedies=remedies, judge=as_judge(judge), collection=collection,
            progress=lambda done, total: update(done, total, f"{done} of {total} walks through the failed questions"),
        )  # fmt: skip
    return found, {item.id: item.question for item in asked.items}


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
async def _teacher(option: str, url: str | None, model: str | None, key: str | None) -> AsyncIterator[Named | None]:
    """A model behind an endpoint with its name; None when no endpoint is given."""
    if url is None:
        yield None
        return
    if model is None:
        raise InputError(f"the model at {url} needs its name: --{option}-model M", param=f"{option}-model")
    async with HttpTeacher.open(url, model, key) as teacher:
        yield teacher, model


def as_judge(named: Named | None) -> Callable[[Item, Outcome], Awaitable[Judgement]] | None:
    """What a diagnosis asks about an answer that nothing mends; None without a model."""
    if named is None:
        return None
    judge = Judge(named[0])

    async def said(item: Item, outcome: Outcome) -> Judgement:
        return (await judge.judge(item, outcome)).judgement

    return said


def print_diagnosis(console: Console, found: Diagnosis) -> None:
    """What to mend first, the waterfall, then a line for each cause with its questions and its command."""
    failed = len(found.causes) + len(found.unsteady)
    say = partial(console.print, markup=False)
    say(f"{found.n} questions of {found.set}: {found.accuracy} right, {failed} failed")
    if worth := max(found.bars, key=lambda bar: bar.gain.value, default=None):
        say(f"worth most: {MEANINGS[worth.cause]} ({worth.layer}), +{worth.gain} if mended; try {worth.command}")
    steps = Table("made perfect", "accuracy then", "gain", "questions", "", title="from today to each layer's ceiling")
    steps.add_row(*literal("nothing: today", str(found.accuracy), "", "", _bar(0.0, found.accuracy.value)))
    before = found.accuracy.value
    for at, step in enumerate(found.ceilings):
        bar = _bar(before, step.accuracy.value)
        named = f"{'and ' if at else ''}the {step.layer}"
        steps.add_row(*literal(named, str(step.accuracy), str(step.gain), str(step.n), bar))
        before = step.accuracy.value
    console.print(steps)
    if found.bars:
        causes = Table("layer", "cause", "that is", "questions", "share", "alone worth", "which", "what addresses it")
        for each in found.bars:
            named = ", ".join(each.items[:SHOWN]) + (f" and {each.n - SHOWN} more" if each.n > SHOWN else "")
            shares = (str(each.n), str(each.share), str(each.gain))
            causes.add_row(*literal(each.layer, each.cause, MEANINGS[each.cause], *shares, named, each.command))
        console.print(causes)
    for note in _notes(found):
        say(note)


def _notes(found: Diagnosis) -> list[str]:
    """What must be known to read the numbers."""
    twice = sum(len(each) > 1 for each in found.causes.values())
    untested = sum(note == UNTESTED for note in found.notes.values())
    notes = [f"{found.calls} calls of the model; the run took {found.run_calls}"]
    notes += [f"{twice} questions have two causes or more: mending one alone does not help them"] if twice else []
    notes += [f"{untested} were not tried on a stronger model: --strong-url URL --strong-model M"] if untested else []
    chance = len(found.unsteady)
    return notes + ([f"{chance} accuse nobody: right when asked again, or not to be asked"] if chance else [])


def print_trails(console: Console, found: Diagnosis, questions: Mapping[str, str]) -> None:
    """Each failed question with its causes and what was tried, in order."""
    grid = Table("question", "causes", "tried", show_lines=True)
    for item in (*found.causes, *found.unsteady):
        steps = [
            f"{step.change}: {'mended' if step.mended else 'wrong'}, {step.said}" for step in found.trails.get(item, ())
        ]
        steps += [f"({found.notes[item]})"] if found.notes.get(item) else []
        named = ", ".join(found.causes.get(item, ())) or "nobody"
        grid.add_row(*literal(f"{item}: {questions.get(item, '')}", named, "\n".join(steps)))
    console.print(grid)


def _bar(start: float, end: float) -> str:
    return " " * round(start * WIDTH) + "█" * (round(end * WIDTH) - round(start * WIDTH))
