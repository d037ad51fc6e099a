"""Command that writes a run as one HTML page: eval report."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.app import open_database
from orchestrator.cli.output import Output, command
from orchestrator.errors import InputError
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.page import read_report, write_page
from orchestrator.evaluation.runs import Runs
from orchestrator.settings import Settings


@click.command("report")
@click.argument("name", metavar="RUN")
@click.option("--against", metavar="RUN", help="Compare with this earlier run over the same questions.")
@click.option(
    "--diagnosis",
    "diagnosis_path",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `orchestrator diagnose RUN --write FILE` found.",
)
@click.option(
    "--out",
    metavar="FILE",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the page.",
)
@command
async def eval_report(
    output: Output, settings: Settings, name: str, against: str | None, diagnosis_path: Path | None, out: Path
) -> None:
    """Write a run as one HTML page with plots and every question; it holds the documents' words and asks no network."""
    diagnosis = Diagnosis.from_json(_read(diagnosis_path)) if diagnosis_path else None
    async with open_database(settings) as database:
        runs = Runs(database, settings.tenant)
        report = await read_report(runs, name, against=against or "", diagnosis=diagnosis)
    found = write_page(report, out)
    correct = found["accuracy"]
    text = f"{out} ({found['bytes'] / 1e6:.1f} MB): {correct.value:.1%} of {found['questions']} questions are right"
    output.emit(found, f"{text}; a verdict against {found['against']}: {found['verdict']}" if against else text)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", param="diagnosis") from error
