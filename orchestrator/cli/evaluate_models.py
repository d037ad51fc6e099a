"""Commands that let another model help to evaluate: eval init drafts a set, eval judge judges a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from orchestrator.app import open_database
from orchestrator.behaviour.distill import HttpTeacher
from orchestrator.cli.output import Output, command
from orchestrator.errors import ConflictError, InputError
from orchestrator.evaluation.draft import ATTEMPTS, Nearest, Quota, draft, pick_sources
from orchestrator.evaluation.judge import MIN_KAPPA, Judge, calibrate, judge_run, judged_scores, refuse_unlike_people
from orchestrator.evaluation.read import write_items
from orchestrator.evaluation.runs import Runs, read_corpus
from orchestrator.evaluation.summary import summarise
from orchestrator.knowledge.store import PgStore
from orchestrator.settings import Settings
from orchestrator.types import SearchRequest

LOOKED_AT = 5  # passages that are asked before a question counts as unanswerable


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name a model behind an OpenAI-compatible endpoint."""
    for option in (
        click.option("--key-env", default="OPENAI_API_KEY", show_default=True, help="Variable of the environment with the key."),
        click.option("--model", required=True, metavar="M", help="The model's name there."),
        click.option("--from", "url", required=True, metavar="URL", help="An OpenAI-compatible endpoint, such as http://host:8000/v1."),
        click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests at once."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command("init")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option(
    "--questions",
    default=50,
    show_default=True,
    metavar="N",
    type=click.IntRange(1, 5000),
    help="Draft this many that a document answers.",
)
@click.option(
    "--unanswerable",
    metavar="N",
    type=click.IntRange(0, 5000),
    help="Draft this many near them that no document answers; a fifth as many when not given.",
)
@model_options
@command
async def eval_init(
    output: Output,
    settings: Settings,
    file: Path,
    collection: str | None,
    questions: int,
    unanswerable: int | None,
    url: str,
    model: str,
    **options: Any,
) -> None:
    """Draft a set from the documents of a collection. Its questions are marked as synthetic; read them before you believe them."""
    if file.exists():
        raise ConflictError(
            f"{file} is there already; name another file, or add to it with `orchestrator eval add`", param="file"
        )
    collection = collection or settings.collection
    quota = Quota(questions, questions // 5 if unanswerable is None else unanswerable)
    async with open_database(settings) as database:
        corpus = await read_corpus(database, collection, settings.tenant)
        store = PgStore(database, tenant=settings.tenant)
        rows = await store.current_texts(collection, sorted(corpus.holds))
        wanted = max(quota.answerable, quota.unanswerable) * ATTEMPTS
        sources = pick_sources({row.external_id: (row.external_id, row.text) for row in rows}, wanted)
        if not sources:
            raise InputError(
                f"no document of {collection!r} has a paragraph that is long enough to ask about", param="collection"
            )
        async with HttpTeacher.open(url, model, os.environ.get(options["key_env"])) as teacher:
            with output.bar("drafting") as update:
                found = await draft(
                    sources, teacher, quota, nearest=_nearest(store, collection, settings.tenant),
                    concurrency=options["concurrency"],
                    progress=lambda done, total: update(done, total, f"{done} of {total}"),
                )  # fmt: skip
    if not found.items:
        raise InputError(
            f"no draft held: {json.dumps(found.dropped)}. Take a stronger model, or write questions yourself"
        )
    write_items(found.items, file)
    near = sum(not item.answerable for item in found.items)
    said = ", ".join(f"{reason} ({count})" for reason, count in found.dropped.items())
    text = (
        f"{len(found.items)} questions are in {file}, {near} of them unanswerable{f'; dropped: {said}' if said else ''}"
    )
    fields = {"drafted": len(found.items), "unanswerable": near, "dropped": found.dropped}
    output.emit({"set": file, **fields}, text)


def _nearest(store: PgStore, collection: str, tenant: str) -> Nearest:
    """Texts in which a question's words stand: a drafted question that one of them answers is not unanswerable."""

    async def find(question: str) -> list[str]:
        request = SearchRequest(question, (), collection, LOOKED_AT, tenant, mode="lexical")
        return [passage.text for passage in await store.search(request)]

    return find


@click.command("judge")
@click.argument("name", metavar="RUN")
@click.option(
    "--labels",
    required=True,
    metavar="FILE",
    type=click.Path(exists=True, path_type=Path),
    help='What people say of answers of this run: lines {"id": ..., "right": true}, 20 at least.',
)
@click.option(
    "--min-kappa",
    default=MIN_KAPPA,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Agreement with people beyond chance (Cohen's kappa) below which the judge's scores are refused.",
)
@model_options
@command
async def eval_judge(
    output: Output, settings: Settings, name: str, labels: Path, min_kappa: float, url: str, model: str, **options: Any
) -> None:
    """Let a model judge a run's answers, each in both orders, and say how far it agrees with people.

    Where it fails or contradicts itself, the answer counts as wrong. A judge unlike people is refused.
    """
    async with open_database(settings) as database:
        run = await Runs(database, settings.tenant).show(name)
    said = _labels(labels, run.outcomes)
    async with HttpTeacher.open(url, model, os.environ.get(options["key_env"])) as teacher:
        with output.bar("judging") as update:
            verdicts = await judge_run(
                run.set.items, run.outcomes, Judge(teacher, options["concurrency"]),
                lambda done, total: update(done, total, f"{done} of {total}"),
            )  # fmt: skip
    agreement = calibrate(said, verdicts)
    refuse_unlike_people(agreement, min_kappa)
    summary = summarise(run.set.items, run.outcomes, judged_scores(run.scores, verdicts), run.set.faults)
    correct = summary.measures["correct"]
    share = f"{correct.value:.1%} of {summary.n} questions are right ({correct.low:.3f} to {correct.high:.3f}), says {model}"
    fields = {"calibration": agreement, "summary": summary, "verdicts": verdicts}
    output.emit({"run": run.info.id, "judge": model, **fields}, f"{share}\n{agreement}")


def _labels(file: Path, outcomes: Mapping[str, Any]) -> dict[str, bool]:
    """Labels of answers that this run gave. Raises InputError that names the line."""
    found = {}
    for number, line in enumerate(file.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            item, right = str(row["id"]), row["right"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}:{number} is no label; write {{'id': ..., 'right': true}}", param="labels"
            ) from error
        if not isinstance(right, bool) or item not in outcomes:
            raise InputError(
                f"{file}:{number}: `right` is true or false, and `id` one of the run's questions", param="labels"
            )
        found[item] = right
    return found
