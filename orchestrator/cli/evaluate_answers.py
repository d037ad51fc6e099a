"""Commands for runs over whole answers: eval run, compare, list, show, add."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.evaluation.ask import CONCURRENCY, PipelineAsker
from orchestrator.evaluation.collect import add_item, item_of_answer
from orchestrator.evaluation.items import Change, Item, Outcome
from orchestrator.evaluation.metrics import Difference, Interval
from orchestrator.evaluation.read import read_items, sample, write_results, write_trec
from orchestrator.evaluation.runs import Run, RunInfo, Runs, describe_system, refuse_other_sets
from orchestrator.evaluation.summary import MEASURES, Summary, compare_runs, summarise
from orchestrator.settings import Settings

LABELS = {
    "correct": "correct",
    "exact": "exact match",
    "f1": "F1 of words",
    "contract_kept": "contract kept",
    "citation_precision": "citation precision",
    "citation_recall": "citation recall",
    "supported": "citation supports",
    "gold_found": "gold was shown",
    "refusal_right": "refusal right",
    "route_right": "route right",
}
FAILED_SHOWN = 20


def out_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that write results for other tools."""
    for option in (
        click.option(
            "--format", "form", type=click.Choice(["rows", "trec"]), default="rows", show_default=True,
            help="JSON lines as ragas and deepeval name them, or a folder with run.txt and qrels.txt as trec_eval reads them.",
        ),
        click.option("--out", metavar="PATH", type=click.Path(path_type=Path), help="Write results for other tools."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command("run")
@click.argument("set_path", metavar="SET", type=click.Path(exists=True, path_type=Path))
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option(
    "--name", default="", metavar="N", help="Name of the run, to find it again; the same name goes on with it."
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), help="Ask this many, always the same; all when not given."
)
@click.option(
    "--concurrency",
    default=CONCURRENCY,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Questions asked at once.",
)
@click.option("--fresh", is_flag=True, help="Ask everything anew, whatever earlier runs have found.")
@out_options
@command
async def eval_run(
    output: Output,
    settings: Settings,
    set_path: Path,
    collection: str | None,
    name: str,
    limit: int | None,
    concurrency: int,
    fresh: bool,
    out: Path | None,
    form: str,
) -> None:
    """Ask the system every question of a set and judge its answers; stopped, the same command goes on.

    SET: our JSON lines, SQuAD's JSON, a BEIR folder, or rows of ragas or deepeval. Rows that cannot be read count as wrong.
    """
    wanted = read_items(set_path)
    wanted = sample(wanted, limit) if limit else wanted
    collection = collection or settings.collection
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        runs = Runs(orchestrator.database, settings.tenant)
        frozen = await runs.freeze(wanted, collection)
        in_service = {a.name: a.digest for a in await orchestrator.registry.list() if a.state in ("active", "canary")}
        asker = PipelineAsker(orchestrator.pipeline, collection=collection, concurrency=concurrency)
        system = describe_system(orchestrator.pipeline, in_service, Change())
        with output.bar("asking") as update:
            run = await runs.run(
                frozen, StartsFirst(asker, orchestrator.serving.start), system,
                name=name, fresh=fresh, progress=lambda done, total: update(done, total, f"{done} of {total}"),
            )  # fmt: skip
        if out:
            await _write(runs, run, out, form)
    _emit(output, run)


@click.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="Show this many.")
@command
async def eval_list(output: Output, settings: Settings, limit: int) -> None:
    """List the latest runs, newest first."""
    async with open_database(settings) as database:
        found = await Runs(database, settings.tenant).latest(limit)

    def table(console: Console) -> None:
        grid = Table("run", "name", "set", "collection", "asked", "started", "finished")
        for each in found:
            finished = each.finished_at.isoformat(" ", "seconds") if each.finished_at else "stopped"
            started = each.started_at.isoformat(" ", "seconds")
            grid.add_row(*literal(each.id, each.name, each.set, each.collection, str(each.asked), started, finished))
        console.print(grid)

    output.emit({"runs": [_described(each) for each in found]}, table)


@click.command("show")
@click.argument("name", metavar="RUN")
@click.option("--failed", is_flag=True, help="Show the questions that were answered wrong, and why.")
@out_options
@command
async def eval_show(output: Output, settings: Settings, name: str, failed: bool, out: Path | None, form: str) -> None:
    """Show what a run found, by its id or its name."""
    async with open_database(settings) as database:
        runs = Runs(database, settings.tenant)
        run = await runs.show(name)
        if out:
            await _write(runs, run, out, form)
    _emit(output, run, failed)


@click.command("compare")
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.option(
    "--fail-on-loss", is_flag=True, help="End with exit code 1 when AFTER is significantly less often correct."
)
@command
async def eval_compare(output: Output, settings: Settings, before: str, after: str, fail_on_loss: bool) -> None:
    """Compare two runs over the same questions, question by question, with intervals and a paired test."""
    async with open_database(settings) as database:
        runs = Runs(database, settings.tenant)
        one, other = await runs.show(before), await runs.show(after)
    refuse_other_sets(one, other)
    found: dict[str, tuple[Difference, float]] = {}
    for measure in MEASURES:
        try:
            found[measure] = compare_runs(one.set.items, other.scores, one.scores, measure, len(one.set.faults))
        except InputError:
            continue  # no question says anything of it
    if "correct" not in found:
        raise InputError("neither run has asked a question of the set: there is nothing to compare", param="run")
    correct = found["correct"][0]
    moved = _moved(one, other)

    def table(console: Console) -> None:
        grid = Table("", "difference", "95 %", "p", "questions", "smallest seen")
        for name, (each, least) in found.items():
            ends = f"{each.low:+.3f} to {each.high:+.3f}"
            grid.add_row(
                *literal(LABELS[name], f"{each.value:+.3f}", ends, f"{each.p:.4f}", str(each.n), f"{least:.3f}")
            )
        console.print(grid)
        console.print(_verdict(correct, found["correct"][1]), markup=False)
        console.print(f"{len(moved['gained'])} questions gained, {len(moved['lost'])} lost", markup=False)

    measures = {name: {"difference": each, "detectable": least} for name, (each, least) in found.items()}
    output.emit({"before": _described(one.info), "after": _described(other.info), "measures": measures, **moved}, table)
    if fail_on_loss and correct.is_loss:
        sys.exit(1)


@click.command("add")
@click.argument("answer_id", metavar="ANSWER_ID")
@click.option(
    "--set",
    "file",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Set to add it to.",
)
@click.option("--answer", "answers", multiple=True, metavar="TEXT", help="A right answer; may be given more than once.")
@click.option("--unanswerable", is_flag=True, help="The documents do not answer it: a refusal is right.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="What it is about; may be given more than once.")
@click.option(
    "--question", default="", metavar="TEXT", help="The question in full, where it followed other turns or a filter."
)
@command
async def eval_add(
    output: Output,
    settings: Settings,
    answer_id: str,
    file: Path,
    answers: tuple[str, ...],
    unanswerable: bool,
    tags: tuple[str, ...],
    question: str,
) -> None:
    """Add the question of a recorded answer to a set: right is what --answer says, or what people said of it."""
    if answers and unanswerable:
        raise InputError("a question has a right answer or none: give --answer or --unanswerable", param="answer")
    async with open_database(settings) as database:
        item = await item_of_answer(
            database, answer_id, tenant=settings.tenant, answers=answers, unanswerable=unanswerable, tags=tags, question=question
        )  # fmt: skip
    add_item(item, file)
    output.emit({"set": file, "item": item}, f"{item.id} is in {file}")


class StartsFirst:
    """Asks when the engine has started: its start must not count against the first questions, nor fail them one by one."""

    def __init__(self, inner: PipelineAsker, start: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._start = start
        self._started: asyncio.Future[None] | None = None

    async def ask(self, item: Item, change: Change = Change()) -> Outcome:  # noqa: B008
        """As the inner one. Raises what the start raises."""
        if self._started is None:
            self._started = asyncio.ensure_future(self._start())
        await asyncio.shield(self._started)
        return await self._inner.ask(item, change)

    async def search(self, item: Item, change: Change = Change()) -> Any:  # noqa: B008
        """As the inner one."""
        return await self._inner.search(item, change)


def _emit(output: Output, run: Run, failed: bool = False) -> None:
    summary = summarise(run.set.items, run.outcomes, run.scores, run.set.faults)
    wrong = [
        {
            "id": item.id,
            "question": item.question,
            "said": run.outcomes[item.id].text,
            "reason": run.scores[item.id].reason,
        }
        for item in run.set.items
        if item.id in run.scores and run.scores[item.id].correct < 1
    ]
    fields: dict[str, Any] = {"run": _described(run.info), "reused": run.reused, "summary": summary}
    if failed:
        fields["failed"] = wrong

    def text(console: Console) -> None:
        print_summary(console, run, summary)
        if failed:
            grid = Table("question", "said", "why it is wrong")
            for each in wrong[:FAILED_SHOWN]:
                grid.add_row(*literal(each["question"], each["said"], each["reason"]))
            console.print(grid)
            if len(wrong) > FAILED_SHOWN:
                console.print(f"{len(wrong) - FAILED_SHOWN} more; --json shows all", markup=False)

    output.emit(fields, text)


def print_summary(console: Console, run: Run, summary: Summary) -> None:
    """A run for a person: the measures first, then what they are of."""
    correct = summary.measures["correct"]
    console.print(
        f"{correct.value:.1%} of {summary.n} questions of {run.info.set} are right ({_ends(correct)})", markup=False
    )
    for note in summary.notes:
        console.print(note, markup=False, style="yellow")
    grid = Table("", "mean", "95 %", "of")
    shares = {LABELS[name]: found for name, found in summary.measures.items()}
    shares |= {
        "refusals that were right": summary.refusal_precision,
        "unanswerable that was refused": summary.refusal_recall,
    }
    shares |= {f"correct, {name}": found for name, found in summary.slices.items()}
    for name, found in shares.items():
        if found.n:
            grid.add_row(*literal(name, f"{found.value:.3f}", _ends(found), str(found.n)))
    console.print(grid)
    if summary.reasons:
        console.print(
            "wrong: " + ", ".join(f"{reason} ({count})" for reason, count in summary.reasons.items()), markup=False
        )
    stages = [f"{name} {each.p50:.0f}/{each.p95:.0f}" for name, each in summary.timings_ms.items()]
    console.print(f"ms by stage, median/95th: {', '.join(stages) or 'none'}", markup=False)
    tokens = f"{summary.prompt_tokens} prompt and {summary.completion_tokens} completion tokens"
    console.print(f"{tokens}; {run.reused} outcomes were known", markup=False)
    console.print(f"a second run shows a gain of {summary.detectable:.1%} or more with 80 % power", markup=False)
    console.print(f"run {run.info.id}", markup=False)


async def _write(runs: Runs, run: Run, out: Path, form: str) -> None:
    """Results with the passages as they are stored now."""
    if form == "trec":
        write_trec(run.set, run.outcomes, run.info.name, out)
        return
    whole = {
        name: replace(outcome, passages=tuple(await runs.passages(outcome))) for name, outcome in run.outcomes.items()
    }
    write_results(run.set, whole, run.scores, out)


def _moved(one: Run, other: Run) -> dict[str, list[str]]:
    """Items that only one of the two runs has right."""
    pairs = [
        (name, one.scores[name].correct, other.scores[name].correct) for name in one.scores if name in other.scores
    ]
    return {
        "gained": [name for name, before, after in pairs if after > before],
        "lost": [name for name, before, after in pairs if after < before],
    }


def _verdict(found: Difference, least: float) -> str:
    size = f"{found.value:+.1%} (95 % {found.low:+.1%} to {found.high:+.1%})"
    if found.is_gain or found.is_loss:
        return f"correct: a {'gain' if found.is_gain else 'loss'} of {size}"
    return f"correct: no significant difference, {size}; these runs would show one of {least:.1%}"


def _ends(found: Interval) -> str:
    return f"{found.low:.3f} to {found.high:.3f}"


def _described(info: RunInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "name": info.name,
        "set": info.set,
        "sha256": info.sha256,
        "collection": info.collection,
        "corpus": info.corpus,
        "asked": info.asked,
        "started_at": info.started_at,
        "finished_at": info.finished_at,
    }
