"""Commands for whom the system works: tenants, keys, migrate."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from orchestrator import tenants as registry
from orchestrator.app import open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.database import statement
from orchestrator.errors import InputError
from orchestrator.knowledge.partitions import demote
from orchestrator.knowledge.store import PgStore
from orchestrator.settings import Settings

tenant_option = click.option("--tenant", metavar="NAME", help="Tenant; ORCHESTRATOR_TENANT when not given.")


@click.group()
def tenants() -> None:
    """Whose documents and answers are kept apart."""


@tenants.command("list")
@click.option("--removed", is_flag=True, help="Those that were removed, too.")
@command
async def tenants_list(output: Output, settings: Settings, removed: bool) -> None:
    """List the tenants with what they have."""
    async with open_database(settings) as database:
        found = await registry.list_tenants(database, removed)

    def table(console: Console) -> None:
        grid = Table("tenant", "since", "removed", "collections", "documents", "keys", box=None)
        for one in found:
            sizes = ("" if size is None else str(size) for size in (one.collections, one.documents, one.keys))
            gone = one.removed_at.strftime("%Y-%m-%d") if one.removed_at else ""
            grid.add_row(*literal(one.name, one.created_at.strftime("%Y-%m-%d"), gone, *sizes))
        console.print(grid)

    output.emit({"tenants": found}, table)


@tenants.command("add")
@click.argument("name")
@command
async def tenants_add(output: Output, settings: Settings, name: str) -> None:
    """Make the tenant NAME; nothing happens when it is there."""
    async with open_database(settings) as database:
        made = await registry.add_tenant(database, name)
    output.emit({"tenant": name, "added": made}, f"{name}: {'added' if made else 'was there already'}")


@tenants.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Really remove its documents and keys.")
@command
async def tenants_remove(output: Output, settings: Settings, name: str, yes: bool) -> None:
    """Remove the documents and keys of the tenant NAME. Its ledger stays, and no other tenant can get its name."""
    async with open_database(settings) as database:
        found = next((one for one in await registry.list_tenants(database) if one.name == name), None)
        if found and not yes:
            raise InputError(
                f"{name} has {found.documents} documents in {found.collections} collections and {found.keys} keys; "
                "to remove them, say it again with --yes"
            )
        for collection in await PgStore(database, name).collections():
            await demote(database.of(name), collection)  # its partition is a table: it would outlive its rows
        collections = await registry.remove_tenant(database, name)
    output.emit({"tenant": name, "removed": True, "collections": collections}, f"{name}: removed")


@click.group()
def keys() -> None:
    """API keys of tenants, for the HTTP server."""


@keys.command("list")
@tenant_option
@command
async def keys_list(output: Output, settings: Settings, tenant: str | None) -> None:
    """List a tenant's keys; a secret is never shown again."""
    async with open_database(settings) as database:
        found = await registry.list_keys(database, tenant or settings.tenant)

    def table(console: Console) -> None:
        grid = Table("key", "since", "revoked", "note", box=None)
        for key in found:
            ended = key.revoked_at.strftime("%Y-%m-%d %H:%M") if key.revoked_at else ""
            grid.add_row(*literal(key.id, key.created_at.strftime("%Y-%m-%d %H:%M"), ended, key.note))
        console.print(grid)

    output.emit({"keys": found}, table)


@keys.command("create")
@tenant_option
@click.option("--note", default="", help="What the key is for.")
@command
async def keys_create(output: Output, settings: Settings, tenant: str | None, note: str) -> None:
    """Make a key and print it, this once; only a salted hash of it is kept."""
    async with open_database(settings) as database:
        secret, key = await registry.create_key(database, tenant or settings.tenant, note)
    output.say("shown only now: keep it where secrets are kept")
    output.emit({"key": secret, "id": key.id, "tenant": key.tenant}, secret)


@keys.command("revoke")
@click.argument("key_id")
@tenant_option
@command
async def keys_revoke(output: Output, settings: Settings, key_id: str, tenant: str | None) -> None:
    """End the key KEY_ID; servers that run refuse it within ten seconds."""
    async with open_database(settings) as database:
        await registry.revoke_key(database, tenant or settings.tenant, key_id)
    output.emit({"id": key_id, "revoked": True}, f"{key_id}: revoked")


@click.command()
@command
async def migrate(output: Output, settings: Settings) -> None:
    """Bring the database to this program's schema and give the application's role its rights.

    For a deployment whose server has a login that owns nothing: run it with ORCHESTRATOR_OWNER_DATABASE_URL before
    each new release, and after a dump was restored into another cluster.
    """
    async with open_database(settings) as database:
        async with database.ownership() as connection:
            row = await (await connection.execute(statement("grant-to-application"))).fetchone()
        await database.renew()
    granted = bool(row and row.granted)
    note = "" if granted else "; the role orchestrator_app could not be made: the policies hold for this login itself"
    output.emit({"current": True, "role": granted}, f"the schema is current{note}")
