"""Commands for adapters: what there is, what it is worth, what is in service and how it came there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.admit import Bench, admit, measure_adapter
from orchestrator.app import Orchestrator, open_database
from orchestrator.behaviour.audit import read_audit
from orchestrator.behaviour.canary import CanaryState, list_canaries
from orchestrator.behaviour.registry import Registry, check_kept
from orchestrator.cli.output import Output, command, literal
from orchestrator.launch import vllm
from orchestrator.settings import Settings
from orchestrator.types import Adapter

EVAL_HELP = "Held-out questions: rows, or groups as `train` writes them."
MEASURES = (
    ("valid", "keeps the contract"),
    ("exact", "exact"),
    ("f1", "F1"),
    ("cites_gold", "cites the gold passage"),
    ("verbatim", "quotes verbatim"),
    ("refused", "refuses the unanswerable"),
    ("false_refusal", "refuses the answerable"),
)


@click.group()
def adapters() -> None:
    """Adapters: what is trained, what is in service."""


@adapters.command("list")
@command
async def adapters_list(output: Output, settings: Settings) -> None:
    """List every registered adapter."""
    async with _registry(settings) as registry:
        rows = await registry.list()

    def table(console: Console) -> None:
        grid = Table("served name", "state", "base", "rank", "prompt", "contract")
        for row in rows:
            grid.add_row(*literal(row.served_name, row.state, row.base, str(row.rank), row.prompt, row.contract))
        console.print(grid)

    output.emit({"adapters": [_fields(row) for row in rows]}, table)


@adapters.command("show")
@click.argument("name")
@command
async def adapters_show(output: Output, settings: Settings, name: str) -> None:
    """Print an adapter's manifest: what it was trained on, and how well it did."""
    async with _registry(settings) as registry:
        adapter = await registry.find(name)
    fields = _fields(adapter)
    output.emit(fields, lambda console: console.print_json(data=fields))


@adapters.command("register")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@command
async def adapters_register(output: Output, settings: Settings, folder: Path) -> None:
    """Check the adapter in FOLDER and take it into the registry as a candidate."""
    async with _registry(settings) as registry:
        adapter = await registry.register(folder)
    output.emit(_fields(adapter), f"{adapter.served_name} is registered as {adapter.state}")


@adapters.command("measure")
@click.argument("name")
@click.option("--eval", "questions", required=True, type=click.Path(exists=True, path_type=Path), help=EVAL_HELP)
@click.option("--limit", type=click.IntRange(1), help="Questions to ask, at most.")
@command
async def adapters_measure(output: Output, settings: Settings, name: str, questions: Path, limit: int | None) -> None:
    """Measure an adapter beside the base and the one in service, with 95 % intervals and what an answer takes."""
    async with _bench(settings, output) as bench:
        with output.bar("measuring") as update:
            measured = await measure_adapter(bench, name, questions, limit, lambda done, total: update(done, total, ""))

    def table(console: Console) -> None:
        grid = Table("", *(title for _, title in MEASURES), "ms an answer", "answers/s")
        for one in measured:
            rates = [_rate(getattr(one.report, field, None)) for field, _ in MEASURES]
            name = one.report.configuration.name
            grid.add_row(*literal(name, *rates, f"{one.ms_per_answer:.0f}", f"{one.answers_per_s:.1f}"))
        console.print(grid)

    output.emit({"measured": measured}, table)


@adapters.command("gate")
@click.argument("name")
@click.option("--eval", "questions", required=True, type=click.Path(exists=True, path_type=Path), help=EVAL_HELP)
@click.option(
    "--limit", type=click.IntRange(1), help="Questions to ask, at most; the safety set is always asked whole."
)
@command
async def adapters_gate(output: Output, settings: Settings, name: str, questions: Path, limit: int | None) -> None:
    """Judge an adapter by the written rules: better than the base, not worse than the one in service, safe.

    The verdict is written to the audit, and a promotion asks for it. Ends with 1 when the adapter is refused.
    """
    async with _bench(settings, output) as bench:
        with output.bar("asking") as update:
            found = await admit(bench, name, questions, limit, lambda done, total: update(done, total, ""))

    def table(console: Console) -> None:
        for finding in found.verdict.findings:
            console.print(f"{'met    ' if finding.passed else 'NOT MET'} {finding.rule}: {finding.said}", markup=False)
        served = found.adapter.served_name
        if found.verdict.passed:
            console.print(f"{served} passed; next: orchestrator adapters promote {served} --canary 10%", markup=False)
        else:
            console.print(f"{served} is refused", markup=False)

    output.emit(found.to_json(), table)
    if not found.verdict.passed:
        sys.exit(1)


@adapters.command("promote")
@click.argument("name")
@click.option("--canary", metavar="SHARE", help="Give it only this share of the conversations, such as 10%.")
@click.option("--override", metavar="REASON", help="Do it without a passed gate or a ripe canary; kept in the audit.")
@command
async def adapters_promote(
    output: Output, settings: Settings, name: str, canary: str | None, override: str | None
) -> None:
    """Put an adapter that passed the gate into service; the one it replaces is kept for a rollback."""
    share = _share(canary)
    async with _registry(settings) as registry:
        if share is None:
            adapter = await registry.promote(name, override=override)
        else:
            adapter = await registry.start_canary(name, share, override=override)
    done = adapter.state == ("active" if share is None else "canary")
    said = f"{adapter.served_name} is {adapter.state}"
    proposed = f"{said}; your wish is written down, and somebody else has to run the same command within 7 days"
    output.emit(_fields(adapter) | {"proposed": not done}, said if done else proposed)


@adapters.command("canary")
@click.argument("name", required=False)
@command
async def adapters_canary(output: Output, settings: Settings, name: str | None) -> None:
    """Show the canaries of late: what both arms did, and how strong the evidence against the canary is."""
    async with open_database(settings) as database:
        found = await list_canaries(database, settings.tenant, name)

    def show(console: Console) -> None:
        if not found:
            console.print("no canary has run yet")
        for state in found:
            console.print(_canary_line(state), markup=False)
            grid = Table("", "canary", "active", "evidence against it", "rolled back at", "p")
            for arm in ("units", "answers"):
                grid.add_row(
                    *literal(arm, *(str(getattr(state.arms[side], arm)) for side in ("canary", "active")), "", "", "")
                )
            for one in state.watched:
                cells = (
                    one.name,
                    str(one.canary),
                    str(one.active),
                    f"{one.evidence:.3g}",
                    f"{one.limit:g}",
                    f"{one.p:.2g}",
                )
                grid.add_row(*literal(*cells))
            console.print(grid)

    output.emit({"canaries": found}, show)


@adapters.command("rollback")
@click.argument("name")
@command
async def adapters_rollback(output: Output, settings: Settings, name: str) -> None:
    """End the canary of NAME; without one, put the adapter back into service that was active before."""
    async with _registry(settings) as registry:
        adapter = await registry.rollback(name)
    output.emit(_fields(adapter), f"{adapter.served_name} is {adapter.state}")


@adapters.command("retire")
@click.argument("name")
@command
async def adapters_retire(output: Output, settings: Settings, name: str) -> None:
    """Take an adapter out of service; its files and its manifest stay."""
    async with _registry(settings) as registry:
        adapter = await registry.retire(name)
    output.emit(_fields(adapter), f"{adapter.served_name} is {adapter.state}")


@adapters.command("merge")
@click.argument("name")
@command
async def adapters_merge(output: Output, settings: Settings, name: str) -> None:
    """Add an adapter to a copy of the base, ready for ORCHESTRATOR_ADAPTER_SERVING=merged.

    It is served under the adapter's own name and only after the same probe.
    """
    async with _registry(settings) as registry:
        adapter = await registry.newest(name)
    await asyncio.to_thread(check_kept, adapter)
    wanted = replace(settings, adapter_serving="merged")
    await asyncio.to_thread(vllm.prepare, wanted, adapter, output.say)
    folder = vllm.merged_folder(wanted, adapter)
    output.emit({"served_name": adapter.served_name, "folder": folder}, f"{adapter.served_name} is merged in {folder}")


@adapters.command("audit")
@click.argument("name", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="Rows to show.")
@command
async def adapters_audit(output: Output, settings: Settings, name: str | None, limit: int) -> None:
    """Show who changed which adapter, when, and under which configuration."""
    async with open_database(settings) as database:
        entries = await read_audit(database, settings.tenant, name, limit)

    def table(console: Console) -> None:
        grid = Table("at", "who", "did", "adapter", "configuration", "because")
        for entry in entries:
            because = entry.details.get("override") or entry.details.get("reason") or ""
            served = f"{entry.name}--{entry.digest[:12]}"
            at = f"{entry.at:%Y-%m-%d %H:%M:%S}"
            grid.add_row(*literal(at, entry.actor, entry.action, served, entry.config[:12], str(because)))
        console.print(grid)

    output.emit({"entries": entries}, table)


@asynccontextmanager
async def _bench(settings: Settings, output: Output) -> AsyncIterator[Bench]:
    async with Orchestrator.open(settings, progress=output.say) as system:
        yield Bench(system.serving, system.registry, system.catalogue, system.pipeline.tokens)


def _share(text: str | None) -> float | None:
    """``10%`` or ``0.1`` as a share. Raises UsageError."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise click.UsageError(f"--canary takes a share such as 10%, not {text!r}") from error


def _canary_line(state: CanaryState) -> str:
    if state.ended is None:
        ripe = "ripe: it may be promoted" if state.ripe else f"ripe after {state.ripe_at} conversations"
        now = f"running since {state.started_at:%Y-%m-%d %H:%M}, {ripe}"
    else:
        now = f"{state.ended.replace('_', ' ')}" + (f": {state.reason}" if state.reason else "")
    return f"{state.name}--{state.digest[:12]} with {state.share:.0%}: {now}"


def _rate(rate: Any) -> str:
    return f"{rate.value:.1%} ({rate.low * 100:.0f}-{rate.high * 100:.0f})" if rate is not None and rate.n else "-"


@asynccontextmanager
async def _registry(settings: Settings) -> AsyncIterator[Registry]:
    async with open_database(settings) as database:
        yield Registry(database, settings)


def _fields(adapter: Adapter) -> dict[str, Any]:
    names = ("name", "digest", "served_name", "state", "base", "rank", "prompt", "prompt_digest", "contract")
    return {name: getattr(adapter, name) for name in (*names, "contract_digest", "path", "manifest")}
