"""Commands for ingest jobs: jobs add, list, show, retry, cancel, run."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.knowledge.ingest import IngestEvent
from orchestrator.knowledge.jobs import STATES, Job, Jobs, work
from orchestrator.knowledge.sources.fetch import Fetcher
from orchestrator.knowledge.spread import open_indexer
from orchestrator.settings import Settings
from orchestrator.types import start_of


@click.group()
def jobs() -> None:
    """Ingests that run in the background."""


@jobs.command("add")
@click.argument("paths", nargs=-1, required=True)
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option("--key", metavar="KEY", help="Makes it safe to ask again: the same key is the same job.")
@click.option("--valid-from", metavar="DATE", help="Since when these versions are true (ISO 8601); front matter wins.")
@click.option("--id-from", metavar="FIELD", help="Field of JSONL or front matter that holds the document's id.")
@command
async def jobs_add(
    output: Output,
    settings: Settings,
    paths: tuple[str, ...],
    collection: str | None,
    key: str | None,
    valid_from: str | None,
    id_from: str | None,
) -> None:
    """Put an ingest of files and folders into the queue, and return at once."""
    try:
        since = start_of(valid_from)
    except ValueError as error:
        raise InputError(f"{valid_from!r} is no date: write 2025-03-01 or 2025-03-01T12:00:00+00:00") from error
    async with open_database(settings) as database:
        job = await Jobs(database, settings.tenant).enqueue_ingest(
            paths,
            collection=collection or settings.collection,
            key=key,
            valid_from=since,
            id_from=id_from,
            max_bytes=settings.max_document_bytes,
        )
    output.emit({"job": job}, f"{job.id} is {job.state}; `orchestrator jobs run` works the queue off")


@jobs.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Jobs to list.")
@command
async def jobs_list(output: Output, settings: Settings, state: str | None, limit: int) -> None:
    """List jobs, newest first, with how far each one is."""
    async with open_database(settings) as database:
        rows = await Jobs(database, settings.tenant).find(state, limit)

    def table(console: Console) -> None:
        grid = Table("id", "state", "read", "documents", "set apart", "attempts", "asked for", "collection", "error")
        for job in rows:
            grid.add_row(*literal(
                job.id, job.state, read_share(job), documents_done(job), str(job.letters or ""), str(job.attempts),
                job.asked_at.isoformat(" ", "seconds"), str(job.payload["collection"]), job.error or "",
            ))  # fmt: skip
        console.print(grid)

    output.emit({"jobs": rows}, table)


@jobs.command("show")
@click.argument("job_id")
@command
async def jobs_show(output: Output, settings: Settings, job_id: str) -> None:
    """Show one job, and each file that it had to leave out."""
    async with open_database(settings) as database:
        found = Jobs(database, settings.tenant)
        job, letters = await found.show(job_id), await found.letters(job_id)

    def text(console: Console) -> None:
        console.print(f"{job.id}  {job.state}, attempt {job.attempts}, {read_share(job)} read", markup=False)
        console.print(f"  {', '.join(map(str, job.payload['paths']))} -> {job.payload['collection']}", markup=False)
        console.print(f"  {documents_done(job)}", markup=False)
        if job.error:
            console.print(f"  {job.error}", style="red", markup=False)
        for letter in letters:
            line = f":{letter.line}" if letter.line is not None else ""
            tries = "once" if letter.attempts == 1 else f"{letter.attempts} times"
            console.print(f"  tried {tries}: {letter.source}{line}: {letter.reason}", style="yellow", markup=False)

    output.emit({"job": job, "letters": letters}, text)


def _add_change(name: str, done: str, meaning: str, change: Callable[[Jobs, str], Awaitable[Job]]) -> None:
    """A command that changes one job."""

    @jobs.command(name, help=meaning)
    @click.argument("job_id")
    @command
    async def run(output: Output, settings: Settings, job_id: str) -> None:
        async with open_database(settings) as database:
            job = await change(Jobs(database, settings.tenant), job_id)
        output.emit({"job": job}, f"{job.id} is {done}")


_add_change(
    "retry",
    "queued; `orchestrator jobs run` works it off",
    "Put a job that has ended into the queue again, with the files it had left out.",
    Jobs.retry,
)
_add_change("cancel", "cancelled", "End a job; what it has stored stays.", Jobs.cancel)


@jobs.command("run")
@click.option("--forever", is_flag=True, help="Wait for more jobs when the queue is empty.")
@click.option(
    "--workers", metavar="N", default=1, type=click.IntRange(1, 64), help="Processes that embed; each takes 200 MB."
)
@command
async def jobs_run(output: Output, settings: Settings, forever: bool, workers: int) -> None:
    """Work jobs off. Run it as often as you like, on as many machines as can read the files."""
    counts: Counter[str] = Counter()
    async with (
        Orchestrator.open(settings, progress=output.say) as orchestrator,
        open_indexer(settings, orchestrator.embedder, workers) as embedder,
    ):
        queue = Jobs(orchestrator.database, settings.tenant)
        with output.bar("working") as update:

            def see(job_id: str, event: IngestEvent) -> None:
                counts[event.status] += event.status != "embedding"
                update(event.read_bytes, event.total_bytes, event.name)

            fetch = Fetcher(settings.max_document_bytes) if settings.allow_urls else None
            working = asyncio.create_task(
                work(queue, orchestrator.store, embedder, is_forever=forever, progress=see, fetch=fetch)
            )
            # A polite stop gives the job back at once; without it the next worker waits for the lease to end.
            with contextlib.suppress(NotImplementedError):  # Windows
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
            await asyncio.wait([working])
        if working.cancelled():
            output.say("stopped; the job was given back to the queue")
            raise SystemExit(143)
        worked = working.result()
        is_open, running = await queue.count_open()
    left = f"; {is_open} not ended, {running} of them with another worker" if is_open else ""
    output.emit(
        {"jobs": worked, "documents": dict(counts), "open": is_open, "running": running},
        f"{worked} jobs worked off: {_line(counts)}{left}",
    )


def read_share(job: Job) -> str:
    """How much of its files a job has read."""
    total = job.progress.get("total_bytes", 0)
    return f"{job.progress.get('read_bytes', 0) / total:.0%}" if total else "-"


def documents_done(job: Job) -> str:
    """What became of the documents so far."""
    return _line(Counter(job.progress))


def _line(counts: Counter[str]) -> str:
    names = ("added", "updated", "unchanged", "skipped", "failed")
    return ", ".join(f"{counts[name]} {name}" for name in names if counts[name]) or "no documents yet"
