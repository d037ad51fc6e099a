"""Commands that prove, mend and erase: ``documents verify``, ``erase``, ``permit``, ``receipts``."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.knowledge import erase as erasing
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.verify import Fault, Verification
from orchestrator.knowledge.verify import verify as verify_collection
from orchestrator.settings import Settings

collection_option = click.option("--collection", metavar="C", help="Collection; the configured one when not given.")


@click.command()
@collection_option
@click.option("--mend", is_flag=True, help="Make the index anew where it is wrong.")
@command
async def verify(output: Output, settings: Settings, collection: str | None, mend: bool) -> None:
    """Prove that the index of a collection is what its documents say."""
    name = collection or settings.collection
    with output.bar("verifying") as update:

        def progress(done: int, total: int) -> None:
            update(done, total, name)

        if mend:
            async with Orchestrator.open(settings, progress=output.say) as opened:
                target = await opened.store.collection(name)
                found = await verify_collection(
                    opened.database.of(settings.tenant), target, mend=True, embedder=opened.embedder, progress=progress
                )
                await opened.store.settle(name)
        else:
            async with open_database(settings) as database:
                store = PgStore(database, settings.tenant)
                found = await verify_collection(
                    database.of(settings.tenant), await store.collection(name), progress=progress
                )
    output.emit(found, lambda console: _print(console, found))
    if found.faults:
        raise SystemExit(1)


def _print(console: Console, found: Verification) -> None:
    if found.mended:
        console.print(_table("mended", found.mended))
    if found.faults:
        console.print(_table("fault", found.faults))
        if any(fault.is_mendable for fault in found.faults):
            console.print("`orchestrator documents verify --mend` makes the index anew")
    else:
        console.print(f"{found.collection}: {found.chunks} chunks, no faults", markup=False)


def _table(title: str, faults: tuple[Fault, ...]) -> Table:
    grid = Table(title, "meaning", "count", "for instance")
    for fault in faults:
        grid.add_row(*literal(fault.check, fault.meaning, str(fault.count), ", ".join(fault.examples)))
    return grid


@click.command()
@click.argument("document_id")
@collection_option
@click.option("--later", is_flag=True, help="Leave the relation files for `documents purge`, which locks the tables.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
async def erase(
    output: Output, settings: Settings, document_id: str, collection: str | None, later: bool, yes: bool
) -> None:
    """Remove a document and its whole history for good, and print a receipt."""
    if not yes and not output.as_json:
        click.confirm(f"erase {document_id} with all its versions for good?", abort=True)
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        target = await store.collection(collection or settings.collection)
        receipt = await erasing.erase(database.of(settings.tenant), target, document_id)
        if not later:
            await erasing.purge(database.of(settings.tenant))
            receipt = next(
                r for r in await erasing.receipts(database.of(settings.tenant), target) if r.id == receipt.id
            )
    state = "no relation file holds it" if receipt.purged_at else "run `orchestrator documents purge` for the files"
    output.emit(receipt, f"{document_id} is erased ({receipt.chunks} chunks), receipt {receipt.id}; {state}")


@click.command()
@command
async def purge(output: Output, settings: Settings) -> None:
    """Rewrite the tables, so that no relation file holds what was erased. Searches wait meanwhile."""
    async with open_database(settings) as database:
        await erasing.purge(database.of(settings.tenant))
    output.emit({"purged": True}, "the relation files hold nothing of what was erased")


@click.command()
@click.argument("document_id")
@collection_option
@command
async def permit(output: Output, settings: Settings, document_id: str, collection: str | None) -> None:
    """Let a document of an erased name be ingested again."""
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        await erasing.permit(
            database.of(settings.tenant), await store.collection(collection or settings.collection), document_id
        )
    output.emit({"permitted": document_id}, f"{document_id} may be ingested again")


@click.command()
@collection_option
@command
async def receipts(output: Output, settings: Settings, collection: str | None) -> None:
    """List the receipts of what was erased."""
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        rows = await erasing.receipts(
            database.of(settings.tenant), await store.collection(collection or settings.collection)
        )

    def table(console: Console) -> None:
        grid = Table("receipt", "document", "erased", "purged", "chunks")
        for row in rows:
            purged = row.purged_at.isoformat()[:19] if row.purged_at else ""
            grid.add_row(str(row.id), row.document_id, row.erased_at.isoformat()[:19], purged, str(row.chunks))
        console.print(grid)

    output.emit({"receipts": rows}, table)
