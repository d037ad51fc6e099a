"""Commands for documents: ingest, and documents list, show, history, diff, retire, restore, withdraw, delete."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_store
from orchestrator.cli import maintain
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.knowledge.compare import unified
from orchestrator.knowledge.records import Moved
from orchestrator.knowledge.sources.fetch import is_url
from orchestrator.knowledge.spread import open_indexer
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.sync import SyncPlan, SyncReport, sync
from orchestrator.settings import Settings
from orchestrator.types import end_of, start_of

collection_option = click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
as_of_option = click.option("--as-of", metavar="DATE", help="As it was true then.")
known_at_option = click.option(
    "--known-at", metavar="TIME", help="As it was known then, with later corrections left out."
)


class _Source(click.Path):
    """A file, a folder or a URL; whether URLs are fetched is a setting's business."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A path that exists, or the URL as it is."""
        return value if is_url(value) else super().convert(value, param, ctx)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=_Source(exists=True, path_type=Path))
@collection_option
@click.option("--valid-from", metavar="DATE", help="Since when these versions are true (ISO 8601); front matter wins.")
@click.option("--id-from", metavar="FIELD", help="Field of JSONL or front matter that holds the document's id.")
@click.option("--sync", "synced", is_flag=True, help="The folder is the truth: what is gone from it is retired.")
@click.option("--sync-name", metavar="NAME", help="Name of the folder for --sync when its path may change.")
@click.option("--yes", is_flag=True, help="With --sync: retire more than a fifth of the folder's documents unasked.")
@click.option(
    "--workers", metavar="N", default=1, type=click.IntRange(1, 64), help="Processes that embed; each takes 200 MB."
)
@command
async def ingest(
    output: Output,
    settings: Settings,
    paths: tuple[Path | str, ...],
    collection: str | None,
    valid_from: str | None,
    id_from: str | None,
    synced: bool,
    sync_name: str | None,
    yes: bool,
    workers: int,
) -> None:
    """Index files, folders and (with ORCHESTRATOR_ALLOW_URLS) URLs. Safe to stop and run again."""
    if synced:
        target = collection or settings.collection
        folders = tuple(path for path in paths if isinstance(path, Path))
        if len(folders) < len(paths):
            raise InputError("--sync takes folders, not URLs")
        await _sync(output, settings, folders, _Synced(target, sync_name, _since(valid_from), id_from, yes, workers))
        return
    if sync_name or yes:
        raise InputError("--sync-name and --yes belong to --sync")
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        with output.bar("indexing") as update:
            report = await orchestrator.ingest(
                *paths,
                collection=collection,
                valid_from=valid_from,
                id_from=id_from,
                workers=workers,
                progress=lambda event: update(event.read_bytes, event.total_bytes, event.name),
            )

    def text(console: Console) -> None:
        console.print(report_line(report), markup=False)
        for failure in report.failures:
            line = f":{failure.line}" if failure.line is not None else ""
            console.print(f"  not indexed: {failure.source}{line}: {failure.reason}", style="yellow", markup=False)

    output.emit(report, text)
    if report.failures and not (report.added or report.updated or report.unchanged):
        raise SystemExit(1)


@dataclass(frozen=True, slots=True)
class _Synced:
    """Options of ``ingest --sync``."""

    collection: str
    name: str | None
    valid_from: datetime | None
    id_from: str | None
    yes: bool
    workers: int


async def _sync(output: Output, settings: Settings, paths: tuple[Path, ...], options: _Synced) -> None:
    if len(paths) > 1 and options.name:
        raise InputError("--sync-name names one folder; run the command once for each")

    def confirm(plan: SyncPlan) -> bool:
        question = f"{len(plan.retired)} of {plan.stored} documents are gone from the folder. Retire them?"
        return options.yes or (sys.stdin.isatty() and click.confirm(question, err=True))

    reports: list[SyncReport] = []
    async with (
        Orchestrator.open(settings, progress=output.say) as opened,
        open_indexer(settings, opened.embedder, options.workers) as embedder,
    ):
        for path in paths:
            with output.bar("indexing") as update:
                report = await sync(
                    path,
                    store=opened.store,
                    embedder=embedder,
                    collection=options.collection,
                    name=options.name,
                    valid_from=options.valid_from,
                    id_from=options.id_from,
                    max_bytes=settings.max_document_bytes,
                    confirm=confirm,
                    progress=lambda event: update(event.read_bytes, event.total_bytes, event.name),
                )
            reports.append(report)

    def text(console: Console) -> None:
        for report in reports:
            console.print(report_line(report.ingest), markup=False)
            console.print(f"{len(report.renamed)} renamed, {len(report.retired)} retired", markup=False)
            lines = [f"  {one.before} is {one.after} now" for one in report.renamed]
            lines += [f"  retired: {name}" for name in report.retired]
            lines += [f"  kept, as a file could not be read: {name}" for name in report.kept]
            lines += [f"  not indexed: {one.source}: {one.reason}" for one in report.ingest.failures]
            for line in lines:
                console.print(line, markup=False)

    output.emit({"folders": reports}, text)


@click.group()
def documents() -> None:
    """What is indexed."""


for _maintenance in (maintain.verify, maintain.erase, maintain.purge, maintain.permit, maintain.receipts):
    documents.add_command(_maintenance)


@documents.command("list")
@collection_option
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Documents to list.")
@click.option("--after", metavar="ID", help="Go on behind this document.")
@click.option("--deleted", is_flag=True, help="Show deleted and retired documents too.")
@as_of_option
@known_at_option
@command
async def documents_list(
    output: Output,
    settings: Settings,
    collection: str | None,
    limit: int,
    after: str | None,
    deleted: bool,
    as_of: str | None,
    known_at: str | None,
) -> None:
    """List documents."""
    times = {"as_of": _date(as_of), "known_at": _date(known_at)}
    async with open_store(settings) as store:
        rows = await store.list_documents(
            collection or settings.collection, limit=limit, after=after, deleted=deleted, **times
        )

    def table(console: Console) -> None:
        grid = Table("id", "title", "version", "valid from", "versions")
        for row in rows:
            since = row.valid_from.date().isoformat() if row.valid_from else "ever"
            version = "deleted" if row.deleted_at else "retired" if row.retired_at else str(row.version or "")
            grid.add_row(*literal(row.external_id, row.title, version, since, str(row.versions)))
        console.print(grid)

    output.emit({"documents": rows}, table)


@documents.command("show")
@click.argument("document_id")
@collection_option
@click.option("--version", type=click.IntRange(1), help="Version to show; the valid one when not given.")
@as_of_option
@known_at_option
@command
async def documents_show(
    output: Output,
    settings: Settings,
    document_id: str,
    collection: str | None,
    version: int | None,
    as_of: str | None,
    known_at: str | None,
) -> None:
    """Print the stored text of a document's version."""
    if version is not None and (as_of or known_at):
        raise InputError(
            "--version names one text; --as-of and --known-at choose among them. Give the one or the other"
        )
    times = {"as_of": _date(as_of), "known_at": _date(known_at)}
    async with open_store(settings) as store:
        found = await store.get_version_text(collection or settings.collection, document_id, number=version, **times)
    output.emit(found, found.text)


@documents.command("history")
@click.argument("document_id")
@collection_option
@known_at_option
@command
async def documents_history(
    output: Output, settings: Settings, document_id: str, collection: str | None, known_at: str | None
) -> None:
    """List every version of a document, with when it was true and when it was known."""
    async with open_store(settings) as store:
        rows = await store.history(collection or settings.collection, document_id, known_at=_date(known_at))

    def table(console: Console) -> None:
        grid = Table("version", "valid from", "valid to", "recorded", "superseded", "characters", "chunks")
        for row in rows:
            since = row.valid_from.isoformat() if row.valid_from else "ever"
            until = row.valid_to.isoformat() if row.valid_to else "further notice"
            superseded = row.superseded_at.isoformat()[:19] if row.superseded_at else ""
            number = f"{row.number} (end)" if row.is_end else str(row.number)
            grid.add_row(
                number, since, until, row.recorded_at.isoformat()[:19], superseded, str(row.characters), str(row.chunks)
            )
        console.print(grid)

    output.emit({"versions": rows}, table)


@documents.command("delete")
@click.argument("document_id")
@collection_option
@command
async def documents_delete(output: Output, settings: Settings, document_id: str, collection: str | None) -> None:
    """Take a document out of every search; its history stays."""
    async with open_store(settings) as store:
        await store.delete(collection or settings.collection, document_id)
    output.emit({"deleted": document_id}, f"{document_id} is deleted; ingest it again to bring it back")


@documents.command("diff")
@click.argument("document_id")
@collection_option
@click.option("--from", "before", metavar="N", type=click.IntRange(1), help="Version; the one before when not given.")
@click.option("--to", "after", metavar="N", type=click.IntRange(1), help="Version; the valid one when not given.")
@command
async def documents_diff(
    output: Output, settings: Settings, document_id: str, collection: str | None, before: int | None, after: int | None
) -> None:
    """Show what differs between two versions of a document, by paragraphs."""
    async with open_store(settings) as store:
        found = await store.diff(collection or settings.collection, document_id, before, after)
    head = [
        f"--- {document_id} v{found.before} {found.title_before}",
        f"+++ {document_id} v{found.after} {found.title_after}",
    ]
    output.emit(found, "\n".join([*head, *unified(found.differences)]))


@documents.command("retire")
@click.argument("document_id")
@collection_option
@click.option("--from", "valid_from", metavar="DATE", help="Since when there is no such document; now when not given.")
@command
async def documents_retire(
    output: Output, settings: Settings, document_id: str, collection: str | None, valid_from: str | None
) -> None:
    """End a document: there is none from then on; questions as of before still find it."""
    async with open_store(settings) as store:
        moved = await store.retire(collection or settings.collection, document_id, _since(valid_from))
    until = f" until {_day(moved.valid_to)}, when its next version begins" if moved.valid_to else ""
    done = f"{document_id} has ended: there is none from {_day(moved.valid_from)} on{until} (version {moved.version})"
    output.emit(moved, done if moved.version else f"there was no such document {document_id} at that time anyway")


def _add_move(
    name: str,
    which: str,
    meaning: str,
    move: Callable[[PgStore, str, str, int], Awaitable[Moved]],
    say: Callable[[Moved, str, int], str],
) -> None:
    """A command that makes one version of a document hold, or take it back."""

    @documents.command(name, help=meaning)
    @click.argument("document_id")
    @collection_option
    @click.option("--version", required=True, type=click.IntRange(1), help=which)
    @command
    async def run(output: Output, settings: Settings, document_id: str, collection: str | None, version: int) -> None:
        async with open_store(settings) as store:
            moved = await move(store, collection or settings.collection, document_id, version)
        output.emit(moved, say(moved, document_id, version))


def _restored(moved: Moved, document_id: str, version: int) -> str:
    if not moved.version:
        return f"the text of version {version} of {document_id} holds already"
    return f"the text of version {version} of {document_id} holds from now on, as version {moved.version}"


def _withdrawn(moved: Moved, document_id: str, version: int) -> str:
    return f"version {version} of {document_id} never held; {_heir(moved)}"


_add_move(
    "restore",
    "Version whose text is to hold again.",
    "Make the text of an earlier version hold from now on, as a new version.",
    PgStore.restore,
    _restored,
)
_add_move(
    "withdraw",
    "Version that was a mistake.",
    "Take back a version that was wrong: the one before it holds in its time; searches as known before still find it.",
    PgStore.withdraw,
    _withdrawn,
)


def _heir(moved: Moved) -> str:
    if moved.version is None:
        return "there is no such document in its time"
    return f"from {_day(moved.valid_from)} on it is version {moved.version}"


def _day(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment else "ever"


def report_line(report: Any) -> str:
    """What an ingest did, in one line."""
    return (
        f"{report.added} documents added, {report.updated} updated, {report.unchanged} unchanged, "
        f"{report.skipped} skipped, {report.failed} failed; {report.chunks_new} chunks embedded, {report.chunks_shared} shared"
    )


def _date(text: str | None) -> datetime | None:
    try:
        return end_of(text)
    except ValueError as error:
        raise _no_date(text) from error


def _since(text: str | None) -> datetime | None:
    try:
        return start_of(text)
    except ValueError as error:
        raise _no_date(text) from error


def _no_date(text: str | None) -> InputError:
    return InputError(f"{text!r} is no date: write 2025-03-01 or 2025-03-01T12:00:00+00:00")
