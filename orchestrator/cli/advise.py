"""Command that says what to do next: advise."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.evaluation.advise import Advice, Choice
from orchestrator.evaluation.advise import advise as advise_on
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.costs import Range, load_costs
from orchestrator.evaluation.evidence import Evidence, Given, Traffic, gather, read_asked, read_history, read_traffic
from orchestrator.evaluation.money import BreakEven, Swing
from orchestrator.settings import Settings

file_type = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--diagnosis",
    "diagnosis_path",
    metavar="FILE",
    type=file_type,
    help="What `diagnose` wrote; without it, accuracy is assumed.",
)
@click.option(
    "--costs", metavar="FILE", type=file_type, help="Cost sheet in TOML; the shipped one fills in what it leaves out."
)
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option(
    "--queries-per-day", metavar="N", type=click.FloatRange(0, min_open=True), help="In place of what the ledger says."
)
@click.option(
    "--changes-per-month",
    metavar="N",
    type=click.FloatRange(0),
    help="Days a month on which documents change, in place of what their history says.",
)
@click.option(
    "--needs-source",
    type=click.Choice(["yes", "no"]),
    help="Whether answers must show where they came from, in place of what the ledger says.",
)
@click.option(
    "--months",
    default=12.0,
    show_default=True,
    type=click.FloatRange(0, 120, min_open=True),
    help="Time over which costs are compared.",
)
@command
async def advise(
    output: Output,
    settings: Settings,
    diagnosis_path: Path | None,
    costs: Path | None,
    collection: str | None,
    months: float,
    **given: Any,
) -> None:
    """Say whether to fine-tune, to work on retrieval or to leave it, with expected gain, cost and confidence."""
    sheet = load_costs(costs, settings.prompts_dir)
    diagnosis = _read_diagnosis(diagnosis_path) if diagnosis_path else None
    evidence = await _read_evidence(settings, collection or settings.collection, _given(**given), diagnosis)
    advice = advise_on(evidence, sheet, diagnosis, months)
    output.emit(advice_fields(advice), lambda console: print_advice(console, advice))


def _given(queries_per_day: float | None, changes_per_month: float | None, needs_source: str | None) -> Given:
    return Given(queries_per_day, changes_per_month, None if needs_source is None else needs_source == "yes")


def _read_diagnosis(path: Path) -> Diagnosis:
    try:
        return Diagnosis.from_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", param="diagnosis") from error


async def _read_evidence(settings: Settings, collection: str, given: Given, diagnosis: Diagnosis | None) -> Evidence:
    now = datetime.now(UTC)
    async with open_database(settings) as database:
        traffic = await read_traffic(database, settings.tenant, now)
        history = await read_history(database, settings.tenant, collection, now)
        asked = await read_asked(database, settings.tenant, diagnosis.sha256, collection) if diagnosis else Traffic()
    return gather(traffic, history, given, asked)


def advice_fields(advice: Advice) -> dict[str, Any]:
    """An advice as ``advise --json`` prints it."""
    return asdict(advice)


def print_advice(console: Console, advice: Advice) -> None:
    """The verdict first, then what it rests on, then what to type."""
    console.print(advice.verdict, style="bold", markup=False)
    console.print()
    for each in advice.questions:
        console.print(f"{each.question} {each.answer}: {each.known.note}", markup=False)
    if advice.today:
        console.print(f"Right today: {advice.today.value:.0%} of {advice.today.n:,} questions", markup=False)
    for share in advice.shares:
        console.print(
            f"  {share.remedy}: {share.n} failed questions, {share.share.value:.0%} of the failures", markup=False
        )
    console.print(_table(advice))
    for crossing in advice.break_evens:
        console.print(_crossing(crossing), markup=False)
    console.print(
        f"What matters most (how much cheaper {advice.option} is than {advice.rival}):"
        if advice.rival
        else "What matters most:",
        markup=False,
    )
    for swing in advice.swings:
        console.print(f"  {_swing(swing)}", markup=False)
    for known in advice.known:
        if known.source == "assumed":
            console.print(
                f"not measured: {known.name.replace('_', ' ')} is taken as {known.range.likely:g} ({known.note})",
                style="yellow",
                markup=False,
            )
    for line in advice.commands:
        console.print(f"  {line}", style="cyan", markup=False)


def _table(advice: Advice) -> Table:
    grid = Table("option", "accuracy", "once", "a month", f"{advice.months:g} months", "1,000 answers", "weeks", "")
    for each in sorted(advice.choices, key=lambda each: (bool(each.excluded), each.estimate.total.likely)):
        bill = each.estimate
        name = f"> {each.option}" if each.option == advice.option else f"  {each.option}"
        grid.add_row(
            *literal(
                name, _accuracy(each), _usd(bill.one_off.likely), _usd(bill.monthly.likely), _dollars(bill.total),
                f"${bill.per_thousand.likely:,.2f}", f"{bill.weeks.low:g} to {bill.weeks.high:g}", each.excluded,
            ),
            style="dim" if each.excluded else None,
        )  # fmt: skip
    return grid


def _accuracy(each: Choice) -> str:
    span = f"({each.accuracy.low:.0%} to {each.accuracy.high:.0%})"
    return (
        f"up to {each.accuracy.likely:.0%} {span}"
        if each.source == "measured"
        else f"{each.accuracy.likely:.0%} {span} assumed"
    )


def _crossing(found: BreakEven) -> str:
    by = found.by.replace("_", " ")
    if not found.at:
        dearer = found.second if found.cheaper[0] == found.first else found.first
        return f"{found.cheaper[0]} is cheaper than {dearer} at any number of {by}"
    parts = [f"{option} up to {_count(value)}" for option, value in zip(found.cheaper, found.at, strict=False)]
    return f"cheaper by {by}: {', '.join(parts)}, {found.cheaper[-1]} above"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _swing(swing: Swing) -> str:
    flips = ", and turns the order round" if swing.flips else ""
    name = swing.name.replace("_", " ")
    return f"{name} {swing.low:g} to {swing.high:g}: {_usd(swing.usd_at_low)} to {_usd(swing.usd_at_high)}{flips}"


def _dollars(value: Range) -> str:
    return f"{_usd(value.likely)} ({_usd(value.low)} to {_usd(value.high)})"


def _usd(value: float) -> str:
    return f"-${-value:,.0f}" if value < 0 else f"${value:,.0f}"
