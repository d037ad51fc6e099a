"""Commands for evaluation sets: eval search, eval tune; those over whole answers are in ``evaluate_answers``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator
from orchestrator.cli.evaluate_answers import eval_add, eval_compare, eval_list, eval_run, eval_show
from orchestrator.cli.evaluate_models import eval_init, eval_judge
from orchestrator.cli.evaluate_report import eval_report
from orchestrator.cli.output import Output, command, literal
from orchestrator.evaluation.metrics import Mean
from orchestrator.evaluation.run import keep_known, run_set
from orchestrator.evaluation.sets import EvalSet, load_set
from orchestrator.evaluation.tune import Tuning
from orchestrator.evaluation.tune import tune as tune_collection
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.store import PgStore
from orchestrator.settings import Settings

set_argument = click.argument("set_path", metavar="SET", type=click.Path(exists=True, path_type=Path))
collection_option = click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
questions_option = click.option(
    "--questions",
    metavar="N",
    type=click.IntRange(1),
    help="Ask this many, drawn with a fixed seed; all when not given.",
)


@click.group("eval")
def evaluations() -> None:
    """How good search and answers are, measured on questions whose answers are known."""


@evaluations.command("search")
@set_argument
@collection_option
@questions_option
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 100), help="Documents that are looked at.")
@command
async def eval_search(
    output: Output, settings: Settings, set_path: Path, collection: str | None, questions: int | None, k: int
) -> None:
    """Measure search on a set: nDCG, MRR, recall and precision of documents, with standard errors."""
    collection = collection or settings.collection
    async with _opened(output, settings, set_path, collection, questions) as (wanted, retriever, _):
        with output.bar("searching") as update:
            rows = await run_set(
                wanted, retriever, collection=collection, tenant=settings.tenant, k=k,
                progress=lambda done, total: update(done, total, f"{done} of {total}"),
            )  # fmt: skip

    def table(console: Console) -> None:
        grid = Table("", f"nDCG@{k}", f"MRR@{k}", f"recall@{k}", f"precision@{k}")
        for row in rows:
            means = (row.ndcg, row.mrr, row.recall, row.precision)
            grid.add_row(*literal(row.way, *map(_cell, means)))
        console.print(grid)
        console.print(_about(wanted), markup=False)

    found = [
        {"way": row.way, "ndcg": row.ndcg, "mrr": row.mrr, "recall": row.recall, "precision": row.precision}
        for row in rows
    ]
    output.emit({"set": _described(wanted), "collection": collection, "k": k, "rows": found}, table)


@evaluations.command("tune")
@set_argument
@collection_option
@questions_option
@click.option("--apply", "wants_apply", is_flag=True, help="Keep what was learnt, when it is a significant gain.")
@click.option("--reset", is_flag=True, help="Go back to the default weights first.")
@command
async def eval_tune(
    output: Output,
    settings: Settings,
    set_path: Path,
    collection: str | None,
    questions: int | None,
    wants_apply: bool,
    reset: bool,
) -> None:
    """Learn the weights of a collection's search from a set, and judge them on questions that were held out."""
    collection = collection or settings.collection
    async with _opened(output, settings, set_path, collection, questions) as (wanted, retriever, store):
        if reset:
            await store.learn(collection, None, None, {})
        with output.bar("learning") as update:
            found = await tune_collection(
                wanted, retriever, collection=collection, tenant=settings.tenant,
                progress=lambda done, total: update(done, total, f"{done} of {total}"),
            )  # fmt: skip
        applied = wants_apply and found.is_gain
        if applied:
            await store.learn(collection, found.best.dense, found.best.second, found.record())
    output.emit({**_tuning(found), "applied": applied}, lambda console: _print_tuning(console, found, wanted, applied))


@asynccontextmanager
async def _opened(
    output: Output, settings: Settings, path: Path, collection: str, questions: int | None
) -> AsyncIterator[tuple[EvalSet, Retriever, PgStore]]:
    """The set as far as the collection holds it, what searches, and the store. Raises InputError, UnknownNameError."""
    wanted = load_set(path)
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        wanted = await keep_known(wanted, orchestrator.store, collection)
        searcher = orchestrator.pipeline.searcher
        assert isinstance(searcher, Retriever)
        yield wanted.sample(questions or len(wanted.questions)), searcher, orchestrator.store


def _tuning(found: Tuning) -> dict[str, object]:
    return {
        "set": found.set,
        "sha256": found.sha256,
        "collection": found.collection,
        "before": found.before,
        "best": found.best,
        "train": {"before": found.train[0], "best": found.train[1]},
        "held_out": {"before": found.held_out[0], "best": found.held_out[1]},
        "gain": found.gain,
        "is_gain": found.is_gain,
    }


def _print_tuning(console: Console, found: Tuning, wanted: EvalSet, applied: bool) -> None:
    grid = Table("", "weights", f"nDCG@10, {found.train[0].n} to learn", f"nDCG@10, {found.held_out[0].n} held out")
    for name, setting, place in (("before", found.before, 0), ("best", found.best, 1)):
        grid.add_row(*literal(name, str(setting), _cell(found.train[place]), _cell(found.held_out[place])))
    console.print(grid)
    console.print(_about(wanted), markup=False)
    console.print(found.verdict(applied), markup=False)


def _described(wanted: EvalSet) -> dict[str, object]:
    return {
        "name": wanted.name,
        "sha256": wanted.sha256,
        "questions": len(wanted.questions),
        "skipped": wanted.skipped,
        "missing": wanted.missing,
    }


def _about(wanted: EvalSet) -> str:
    notes = [f"{len(wanted.questions)} questions of {wanted.name}"]
    if wanted.skipped:
        notes.append(f"{wanted.skipped} skipped: no document here answers them")
    if wanted.missing:
        notes.append(f"{wanted.missing} judged documents are not in the collection")
    return "; ".join(notes)


def _cell(value: Mean) -> str:
    return f"{value.value:.4f} ± {value.error:.4f}"


for each in (eval_run, eval_compare, eval_report, eval_list, eval_show, eval_add, eval_init, eval_judge):
    evaluations.add_command(each)
eval = evaluations  # the command line finds a command under its name
