"""Commands for examples: feedback on answers, and data export, distill, lint."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_database
from orchestrator.behaviour.distill import HttpTeacher, Task
from orchestrator.behaviour.distill import distill as distill_rows
from orchestrator.behaviour.examples import Recipe
from orchestrator.behaviour.lint import LintReport, Rule, lint_file
from orchestrator.behaviour.rows import Row, dump_row, from_answer, from_question, read_rows
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.evaluation.sets import EvalSet, Neighbours, Question, load_set
from orchestrator.feedback import give_feedback, latest_feedback, passages_of
from orchestrator.launch.weights import SMOLLM2
from orchestrator.ledger import show_answer
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.tokens import LocalTokens
from orchestrator.types import Passage

contract_option = click.option("--contract", default="cited_answer", show_default=True, help="Contract of the outputs.")
prompt_option = click.option("--prompt", default="grounded", show_default=True, help="Prompt that they answer.")
budget_option = click.option(
    "--budget", default=1600, show_default=True, type=click.IntRange(64), help="Longest prompt in tokens."
)


@click.command()
@click.argument("answer_id")
@click.option("--good", "verdict", flag_value="good", help="The answer is right.")
@click.option("--bad", "verdict", flag_value="bad", help="The answer is wrong.")
@click.option(
    "--fix", metavar="F", type=click.File("r", "utf-8"), help="File with the output as it should be; - reads it here."
)
@click.option("--note", default="", help="Why; for people.")
@command
async def feedback(
    output: Output, settings: Settings, answer_id: str, verdict: str | None, fix: Any | None, note: str
) -> None:
    """Say of an answer that it was right, wrong, or how it should have been. The last word counts."""
    if (verdict is None) == (fix is None):
        raise InputError("say one of --good, --bad and --fix F")
    text = fix.read() if fix else None
    async with open_database(settings) as database:
        given = await give_feedback(database, answer_id, verdict or "fix", fix=text, note=note, tenant=settings.tenant)
    output.emit(
        given, f"{answer_id}: {given.verdict} is recorded; `orchestrator data export --from ledger` makes rows of it"
    )


@click.group()
def data() -> None:
    """Examples to train on: where they come from, and whether they are fit."""


@data.command("export")
@click.option("--from", "source", required=True, type=click.Choice(["ledger", "eval"]), help="Where rows come from.")
@click.option("--set", "eval_set", metavar="SET", type=click.Path(exists=True, path_type=Path), help="Evaluation set.")
@click.option(
    "--collection", metavar="C", help="Collection that the set is about, when it has no documents of its own."
)
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 10), help="Passages of a row of the set.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1), help="Rows of the set, drawn evenly.")
@command
async def data_export(
    output: Output, settings: Settings, source: str, eval_set: Path | None, collection: str | None, k: int, limit: int
) -> None:
    """Print rows, one JSON line each: answers that people accepted or corrected, or questions of an evaluation set."""
    if (source == "eval") != (eval_set is not None):
        raise InputError("--from eval, and nothing else, takes --set SET")
    if eval_set is None:
        rows, left_out = await _from_ledger(settings)
    else:
        rows, left_out = await _from_eval(output, settings, load_set(eval_set).sample(limit), collection, k)
    if output.as_json:
        output.emit({"rows": [row.to_json() for row in rows], "left_out": left_out})
        return
    for row in rows:
        sys.stdout.write(dump_row(row))
    unwritten = sum(row.output is None for row in rows)
    output.say(f"{len(rows)} rows, {unwritten} of them without an output" if unwritten else f"{len(rows)} rows")
    for reason, count in left_out.items():
        output.say(f"{count} left out: {reason}")


async def _from_ledger(settings: Settings) -> tuple[list[Row], dict[str, int]]:
    """Every answer whose last feedback is good or a fix, with its passages as they were shown."""
    rows: list[Row] = []
    left_out: dict[str, int] = {}
    async with open_database(settings) as database:
        for said in await latest_feedback(database, settings.tenant):
            record = await show_answer(database, said.answer_id, settings.tenant)
            passages = await passages_of(database, record, settings.tenant)
            try:
                rows.append(from_answer(record, asdict(said), passages, len(rows) + 1))
            except ValueError as error:
                left_out[str(error)] = left_out.get(str(error), 0) + 1
    return rows, left_out


async def _from_eval(
    output: Output, settings: Settings, found: EvalSet, collection: str | None, k: int
) -> tuple[list[Row], dict[str, int]]:
    """Each question with passages: of the set's own documents, else as search finds them."""
    contract = _catalogue(settings).contract("cited_answer")
    origin = {"source": "eval", "set": found.name, "set_sha256": found.sha256}
    rows: list[Row] = []
    left_out: dict[str, int] = {}

    def take(question: Question, found_passages: Sequence[Passage]) -> None:
        shown = _shortened(found_passages, question)
        relevant = next((p.external_id for p in shown if p.external_id in question.relevant), None)
        row = relevant and from_question(
            question.id, question.text, relevant, question.answers, shown, origin, contract
        )
        if row:
            rows.append(row)
        else:
            reason = "no relevant document was found for it" if not relevant else "its answer does not stand there"
            left_out[reason] = left_out.get(reason, 0) + 1

    if found.documents:
        near = Neighbours(found)
        for question in found.questions:
            take(question, near.passages(question, k))
        return rows, left_out
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        for question in found.questions:
            passages = await orchestrator.search(question.text, k=k, collection=collection, as_of=question.as_of)
            take(question, list(passages))
    return rows, left_out


def _shortened(passages: Sequence[Passage], question: Question) -> list[Passage]:
    """The passages without the last ones that are not relevant, until they are no longer than the builder's groups."""
    kept = list(passages)
    while sum(len(each.text) for each in kept) > Recipe().max_chars:
        spare = [place for place, each in enumerate(kept) if each.external_id not in question.relevant]
        if not spare:
            break
        del kept[spare[-1]]
    return kept


@data.command("distill")
@click.option(
    "--from", "url", required=True, metavar="URL", help="An OpenAI-compatible endpoint, such as http://host:8000/v1."
)
@click.option("--model", required=True, help="The stronger model's name there.")
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Rows; their outputs are ignored.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File that the finished rows are added to.")
@contract_option
@prompt_option
@budget_option
@click.option(
    "--key-env", default="OPENAI_API_KEY", show_default=True, help="Variable of the environment with the key."
)
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests at once.")
@command
async def data_distill(
    output: Output, settings: Settings, url: str, model: str, source: Path, out: Path, **options: Any
) -> None:
    """Let a stronger model write outputs; what breaks the contract is kept apart. The same command goes on where it stood."""
    catalogue = _catalogue(settings)
    task = Task(
        catalogue.contract(options["contract"]),
        catalogue.prompt(options["prompt"]),
        _counter(settings, output),
        options["budget"],
        model,
        url,
    )
    rows = read_rows(source)
    async with HttpTeacher.open(url, model, os.environ.get(options["key_env"])) as teacher:
        with output.bar("distilling") as update:
            done = await distill_rows(
                rows, out, teacher, task,
                concurrency=options["concurrency"],
                progress=lambda count, total, failed: update(count, total, f"{failed} failed" if failed else ""),
            )  # fmt: skip
    failed = f"; {done.failed} failed, see {done.failures}" if done.failed else ""
    output.emit(done, f"{done.written} rows written to {out}, {done.kept} were there already{failed}")


@data.command("lint")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@contract_option
@prompt_option
@budget_option
@click.option(
    "--against", type=click.Path(exists=True, path_type=Path), help="Rows of another split, which must share nothing."
)
@command
async def data_lint(output: Output, settings: Settings, file: Path, **options: Any) -> None:
    """Look over rows: duplicates, contradictions, wrong labels, length, personal data. Ends with 1 when a row is unfit."""
    catalogue = _catalogue(settings)
    rule = Rule(
        catalogue.contract(options["contract"]),
        catalogue.prompt(options["prompt"]),
        _counter(settings, output),
        options["budget"],
    )
    report = lint_file(file, rule, options["against"])
    output.emit({**asdict(report), "clean": report.is_clean}, lambda console: _print_report(console, report))
    if not report.is_clean:
        sys.exit(1)


def _print_report(console: Console, report: LintReport) -> None:
    sources = ", ".join(f"{count} {source}" for source, count in report.origins.items())
    console.print(f"{report.rows} rows ({sources})", markup=False)
    if any(report.kinds):
        kinds = ", ".join(f"{kind or 'none'} {count}" for kind, count in report.kinds.items())
        console.print(f"kinds: {kinds}", markup=False)
    if report.findings:
        grid = Table("", "check", "rows", "what")
        for found in report.findings:
            shown = ", ".join(map(str, found.rows[:12])) + (
                f" and {len(found.rows) - 12} more" if len(found.rows) > 12 else ""
            )
            grid.add_row(*literal(found.severity, found.check, shown, found.message))
        console.print(grid)
    console.print(
        "fit to train on" if report.is_clean else "not fit: mend or remove the rows of the errors", style="bold"
    )


def _catalogue(settings: Settings) -> Catalogue:
    return load_catalogue(settings.prompts_dir or folder("prompts"))


def _counter(settings: Settings, output: Output) -> Callable[[str], int]:
    """Tokens as the embedded model counts them; where it is not there, estimated, and told so."""
    model = settings.models / SMOLLM2.folder
    if (model / "tokenizer.json").is_file():
        return LocalTokens(model).count
    output.say("the model's tokenizer is not there: lengths are estimated with three letters to a token")
    return lambda text: -(-len(text) // 3)
