"""Commands for documents: ingest, and documents list, show, history, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_store
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.settings import Settings
from orchestrator.types import end_of

collection_option = click.option("--collection", metavar="C", help="Collection; the configured one when not given.")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@collection_option
@click.option("--valid-from", metavar="DATE", help="Since when these versions are true (ISO 8601); front matter wins.")
@click.option("--id-from", metavar="FIELD", help="Field of JSONL or front matter that holds the document's id.")
@command
async def ingest(
    output: Output,
    settings: Settings,
    paths: tuple[Path, ...],
    collection: str | None,
    valid_from: str | None,
    id_from: str | None,
) -> None:
    """Index files and folders: Markdown, text, HTML, PDF, DOCX, JSONL. Safe to stop and run again."""
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        with output.bar("indexing") as update:
            report = await orchestrator.ingest(
                *paths,
                collection=collection,
                valid_from=valid_from,
                id_from=id_from,
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


@click.group()
def documents() -> None:
    """What is indexed."""


@documents.command("list")
@collection_option
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Documents to list.")
@click.option("--after", metavar="ID", help="Go on behind this document.")
@click.option("--deleted", is_flag=True, help="Show deleted documents too.")
@command
async def documents_list(
    output: Output, settings: Settings, collection: str | None, limit: int, after: str | None, deleted: bool
) -> None:
    """List documents."""
    async with open_store(settings) as store:
        rows = await store.list_documents(collection or settings.collection, limit=limit, after=after, deleted=deleted)

    def table(console: Console) -> None:
        grid = Table("id", "title", "version", "valid from", "versions")
        for row in rows:
            since = row.valid_from.date().isoformat() if row.valid_from else "ever"
            version = "deleted" if row.deleted_at else str(row.version or "")
            grid.add_row(*literal(row.external_id, row.title, version, since, str(row.versions)))
        console.print(grid)

    output.emit({"documents": rows}, table)


@documents.command("show")
@click.argument("document_id")
@collection_option
@click.option("--version", type=click.IntRange(1), help="Version to show; the valid one when not given.")
@click.option("--as-of", metavar="DATE", help="Show the version that was valid then.")
@command
async def documents_show(
    output: Output, settings: Settings, document_id: str, collection: str | None, version: int | None, as_of: str | None
) -> None:
    """Print the stored text of a document's version."""
    async with open_store(settings) as store:
        found = await store.get_version_text(
            collection or settings.collection, document_id, number=version, as_of=_date(as_of)
        )
    output.emit(found, found.text)


@documents.command("history")
@click.argument("document_id")
@collection_option
@command
async def documents_history(output: Output, settings: Settings, document_id: str, collection: str | None) -> None:
    """List every version of a document, with when it was true and when it was known."""
    async with open_store(settings) as store:
        rows = await store.history(collection or settings.collection, document_id)

    def table(console: Console) -> None:
        grid = Table("version", "valid from", "valid to", "recorded", "superseded", "characters", "chunks")
        for row in rows:
            since = row.valid_from.isoformat() if row.valid_from else "ever"
            until = row.valid_to.isoformat() if row.valid_to else "further notice"
            superseded = row.superseded_at.isoformat()[:19] if row.superseded_at else ""
            grid.add_row(
                str(row.number), since, until, row.recorded_at.isoformat()[:19], superseded,
                str(row.characters), str(row.chunks),
            )  # fmt: skip
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


def report_line(report: Any) -> str:
    """What an ingest did, in one line."""
    return (
        f"{report.added} documents added, {report.updated} updated, {report.unchanged} unchanged, "
        f"{report.skipped} skipped, {report.failed} failed; {report.chunks_new} chunks embedded, {report.chunks_shared} shared"
    )


def _date(text: str | None) -> Any:
    try:
        return end_of(text)
    except ValueError as error:
        raise InputError(f"{text!r} is no date: write 2025-03-01 or 2025-03-01T12:00:00+00:00") from error
