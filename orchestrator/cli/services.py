"""Commands for what runs: up, status, down, doctor, serve."""

from __future__ import annotations

import asyncio
import sys

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator
from orchestrator.cli.output import Output, command, literal
from orchestrator.doctor import Finding, examine
from orchestrator.launch import postgres, supervisor
from orchestrator.launch.service import Service
from orchestrator.settings import Settings


@click.command()
@click.option("--only", type=click.Choice(["postgres"]), help="Start the database alone.")
@command
async def up(output: Output, settings: Settings, only: str | None) -> None:
    """Start the embedded PostgreSQL and vLLM, with the active adapter proven. A second run finds them running."""
    if only:
        await asyncio.to_thread(postgres.start, settings.home_dir)
    else:
        async with Orchestrator.open(settings, progress=output.say) as orchestrator:
            await orchestrator.start()
    _show(output, _services(settings))


@click.command()
@command
async def status(output: Output, settings: Settings) -> None:
    """Show what runs, since when, on which address."""
    _show(output, _services(settings))


@click.command()
@command
async def down(output: Output, settings: Settings) -> None:
    """Stop the embedded services and leave no process behind. Data stays."""
    await asyncio.to_thread(supervisor.down, settings.home_dir)
    await asyncio.to_thread(postgres.stop, settings.home_dir)
    _show(output, _services(settings))


@click.command()
@command
async def doctor(output: Output, settings: Settings) -> None:
    """Say what is wrong and the command that mends it. Exit code 1 when something is."""
    findings = await examine(settings)

    def table(console: Console) -> None:
        marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
        grid = Table("", "what", "found", "what to do", box=None)
        for finding in findings:
            grid.add_row(marks[finding.level], *literal(finding.what, finding.found, finding.remedy))
        console.print(grid)

    output.emit({"findings": findings}, table)
    _exit_if_wrong(findings)


@click.command()
@click.option("--host", help="Address to listen on; ORCHESTRATOR_HOST when not given.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; ORCHESTRATOR_PORT when not given.")
@command
async def serve(output: Output, settings: Settings, host: str | None, port: int | None) -> None:
    """Answer over HTTP as an OpenAI-compatible server."""
    from orchestrator.api import serve as run_server

    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        address = host or settings.host, port if port is not None else settings.port
        if not settings.api_keys:
            output.say("no API keys are set: every caller is let in (ORCHESTRATOR_API_KEYS)")

        def ready(url: str) -> None:
            output.emit({"url": f"{url}/v1"}, f"serving on {url}/v1 (stop with Ctrl-C)")
            sys.stdout.flush()

        await run_server(orchestrator, *address, base_url=settings.public_url, ready=ready)


def _services(settings: Settings) -> list[Service]:
    services = [] if settings.database_url else [postgres.status(settings.home_dir)]
    return services if settings.engine_url else [*services, *supervisor.status(settings.home_dir)]


def _show(output: Output, services: list[Service]) -> None:
    def table(console: Console) -> None:
        grid = Table("service", "state", "pid", "since", "address", "detail", box=None)
        for service in services:
            since = service.since.strftime("%Y-%m-%d %H:%M:%S") if service.since else ""
            detail = f"{service.detail} {service.remedy and f'-> {service.remedy}'}".strip()
            grid.add_row(
                *literal(service.name, service.state, str(service.pid or ""), since, service.url or "", detail)
            )
        console.print(grid)

    output.emit({"services": services}, table)


def _exit_if_wrong(findings: list[Finding]) -> None:
    if any(finding.level == "wrong" for finding in findings):
        raise SystemExit(1)
