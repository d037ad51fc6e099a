"""Command that walks the loop once: improve."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_database
from orchestrator.behaviour.audit import Entry
from orchestrator.cli.diagnose import print_diagnosis
from orchestrator.cli.evaluate_answers import StartsFirst
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.evaluation.diagnose import remedies_of
from orchestrator.evaluation.improve import WORTH, Attempt, NextStep, Walk
from orchestrator.evaluation.improve import improve as walk_once
from orchestrator.evaluation.journal import Journal
from orchestrator.evaluation.knobs import Knobs
from orchestrator.evaluation.live import LiveSystem
from orchestrator.evaluation.read import read_items, sample
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings

SHOWN = 20  # rows of the record


@click.command()
@click.argument("set_path", metavar="[SET]", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Ask this many questions, drawn with a fixed seed.")
@click.option(
    "--steps", default=1, show_default=True, type=click.IntRange(1, 10), help="Remedies that are decided on, at most."
)
@click.option(
    "--worth", default=WORTH, show_default=True, type=click.FloatRange(0, 1),
    help="Share of questions that a remedy must be able to mend before it is tried.",
)  # fmt: skip
@click.option(
    "--search-only", is_flag=True, help="Judge what is found, not what is answered: fast, and no engine is asked."
)
@click.option("--dry-run", is_flag=True, help="Ask and diagnose, say what would be tried, and try nothing.")
@click.option("--write", is_flag=True, help="Change routes.toml of your prompts folder without asking; a copy is kept.")
@click.option(
    "--train", "train_data", metavar="FILE", type=click.Path(exists=True, path_type=Path),
    help="Examples to train on when an adapter is what is left; asks before it does.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Train without asking.")
@click.option("--resume", is_flag=True, help="Finish the change in whose middle an earlier walk died.")
@click.option(
    "--revert",
    metavar="[ID]",
    is_flag=False,
    flag_value="",
    default=None,
    help="Take a change back, the latest if no ID.",
)
@click.option("--history", is_flag=True, help="Show what was tried and changed, newest first.")
@command
async def improve(
    output: Output,
    settings: Settings,
    set_path: Path | None,
    collection: str | None,
    resume: bool,
    revert: str | None,
    history: bool,
    **options: Any,
) -> None:
    """Walk the loop once: ask SET, diagnose, turn the cheapest knob that can mend what is wrong, keep it if it helps.

    Half of the questions choose what is tried, the other half decides. Stopped, the same command goes on.
    """
    collection = collection or settings.collection
    if sum((resume, revert is not None, history, set_path is not None)) != 1:
        raise click.UsageError("Give a SET, or one of --resume, --revert and --history.")
    if set_path is None:
        await _look_back(output, settings, collection, resume, revert)
        return
    walk = await _walk(output, settings, collection, set_path, **options)
    output.emit(walk, lambda console: print_walk(console, walk))
    await offer_training(output, settings, walk, options["train_data"], options["yes"])


async def _walk(
    output: Output,
    settings: Settings,
    collection: str,
    set_path: Path,
    limit: int | None,
    steps: int,
    worth: float,
    search_only: bool,
    dry_run: bool,
    write: bool,
    **_: Any,
) -> Walk:
    asked = read_items(set_path)
    asked = sample(asked, limit) if limit else asked
    async with Orchestrator.open(settings, progress=output.say) as opened:
        adapters = await opened.registry.list()
        remedies = remedies_of(opened.catalogue, adapters, shipped=load_catalogue(folder("prompts")))
        with _Bars(output) as bars:
            system = LiveSystem(
                opened.pipeline, opened.database, settings, collection, remedies,
                {each.name: each.digest for each in adapters if each.state in ("active", "canary")}, search_only,
                bars.tell, lambda diff: write or bars.may_write(diff), _starting(opened.serving.start), str(set_path),
            )  # fmt: skip
            return await walk_once(asked, system, steps=steps, worth=worth, dry_run=dry_run)


def _starting(start: Callable[[], Awaitable[None]]) -> Any:
    return lambda asker: StartsFirst(asker, start)


class _Bars:
    """A bar for each stage, one after the other; none while a question is put to the person."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._stack = ExitStack()
        self._title = ""
        self._update: Callable[[float, float | None, str], None] = lambda done, total, note: None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def tell(self, title: str, done: int, total: int) -> None:
        """How far a stage is."""
        if title != self._title:
            self._close()
            self._title, self._update = title, self._stack.enter_context(self._output.bar(title))
        self._update(done, total, f"{done} of {total}")

    def may_write(self, diff: str) -> bool:
        """Whether the person lets a file be changed; nobody is asked without a terminal."""
        self._close()
        if self._output.as_json or not sys.stdin.isatty():
            return False
        self._output.notes.print(diff, markup=False)
        return click.confirm("Write this change? A copy of the file is kept", default=False, err=True)

    def _close(self) -> None:
        self._stack.close()
        self._title = ""


async def _look_back(output: Output, settings: Settings, collection: str, resume: bool, revert: str | None) -> None:
    """What the record holds, or the end of a change that it tells of."""
    async with open_database(settings) as database:
        journal = Journal(database, settings, collection)
        if resume or revert is not None:
            entry = await journal.resume() if resume else await journal.revert(revert or None)
            did = "finished" if resume else "taken back"
            text = f"{entry.details['remedy']} ({entry.digest}): {did}"
            output.emit({"id": entry.digest, "remedy": entry.details["remedy"], "did": did}, text)
            return
        rows = await journal.rows()

    output.emit({"entries": rows}, lambda console: _print_history(console, rows[:SHOWN]))


def _print_history(console: Console, rows: list[Entry]) -> None:
    grid = Table("at", "who", "did", "id", "remedy", "what it showed")
    for row in rows:
        found = row.details.get("decision", {}).get("difference")
        size = f"{found['value']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})" if found else ""
        did = row.action.removeprefix("improve ")
        cells = (f"{row.at:%Y-%m-%d %H:%M:%S}", row.actor, did, row.digest, row.details.get("remedy", ""), size)
        grid.add_row(*literal(*cells))
    console.print(grid)


async def offer_training(output: Output, settings: Settings, walk: Walk, data: Path | None, yes: bool) -> None:
    """Trains when an adapter is what is left to do, there is something to train on, and the person says so."""
    wanted = [step for step in walk.next if step.trains]
    if data is None or not wanted:
        return
    arguments = ["train", "--data", str(data), "--name", "improved", "--collection", walk.collection]
    line = shlex.join(["orchestrator", *arguments])
    if not yes and (output.as_json or not sys.stdin.isatty()):
        output.say(f"not trained without being asked to: {line} (--yes does it)")
        return
    worth = max(step.gain.value for step in wanted)
    question = f"Train an adapter? It is worth {worth:.1%} at most, takes minutes to hours, and is not put into service"
    if not yes and not click.confirm(question, default=False, err=True):
        return
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "orchestrator", *arguments, stdout=sys.stderr)
    if await process.wait():
        raise InputError(f"the training failed; run it alone to see why: {line}")


def print_walk(console: Console, walk: Walk) -> None:
    """What was wrong, what was tried with before and after, what is kept, and what is left."""
    print_diagnosis(console, replace(walk.diagnosis, bars=walk.diagnosis.bars))
    console.print(f"{walk.chosen} questions chose, {walk.held} others decided", markup=False)
    if not walk.attempts:
        _print_prospects(console, walk)
    else:
        grid = Table("remedy", "from", "to", "worth at most", "before", "after", "what came of it")
        for each in walk.attempts:
            grid.add_row(*literal(*_row(each)))
        console.print(grid)
        for each in walk.attempts:
            _print_outcome(console, each)
    for note in walk.notes:
        console.print(note, style="yellow", markup=False)
    if walk.next:
        console.print("left to do:", markup=False)
    for step in walk.next:
        console.print(f"  {_left(step)}", markup=False)


def _print_prospects(console: Console, walk: Walk) -> None:
    if not walk.prospects:
        console.print("nothing is wrong that a knob could mend", markup=False)
    for name, gain in walk.prospects:
        console.print(f"would try {name}: worth {gain} at most", markup=False)


def _row(each: Attempt) -> tuple[str, ...]:
    decision = each.decision
    spans = (str(decision.before), str(decision.after)) if decision else ("", "")
    before, after = _turned(each)
    return each.remedy, before, after, f"{each.ceiling.value:.1%}", *spans, f"{each.state}: {each.said}"


def _print_outcome(console: Console, each: Attempt) -> None:
    if each.edit:
        console.print(each.edit, markup=False)
    if each.state == "kept":
        console.print(f"taken back by: orchestrator improve --revert {each.id}", style="cyan", markup=False)


def _turned(each: Attempt) -> tuple[str, str]:
    """The knobs that differ, before and after."""
    if each.after is None:
        return "", ""
    was, then = asdict(each.before), asdict(each.after)
    names = [name for name in was if was[name] != then[name] and name != "route"]
    return _values(each.before, names), _values(each.after, names)


def _values(knobs: Knobs, names: list[str]) -> str:
    unset = {"dense": "by question", "second": "by question"}
    values = asdict(knobs)
    return ", ".join(
        f"{name} {unset.get(name, 'as declared') if values[name] is None else values[name]}" for name in names
    )


def _left(step: NextStep) -> str:
    asked = " (trains)" if step.trains else ""
    return f"{step.cause}, {step.n} questions, worth {step.gain.value:.1%} at most: {step.command}{asked}"
