"""Commands for collections and the embedding spaces they hold: ``collections list|show|reembed|switch|drop-space``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError
from orchestrator.knowledge import spaces
from orchestrator.knowledge.embed import open_embedder, open_next_embedder
from orchestrator.knowledge.spread import open_indexer
from orchestrator.knowledge.store import PgStore
from orchestrator.settings import Settings


@click.group()
def collections() -> None:
    """Sets of documents, and the embedding spaces that they are searched in."""


@collections.command("list")
@command
async def collections_list(output: Output, settings: Settings) -> None:
    """List collections with their sizes."""
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        rows = [await store.stats(name) for name in await store.collections()]

    def table(console: Console) -> None:
        grid = Table("collection", "documents", "chunks", "languages", "space")
        for row in rows:
            languages = ", ".join(row.languages)
            grid.add_row(
                *literal(row.name, str(row.document_count), str(row.chunk_count), languages, row.embedding_space)
            )
        console.print(grid)

    output.emit({"collections": rows}, table)


@collections.command("show")
@click.argument("collection")
@command
async def collections_show(output: Output, settings: Settings, collection: str) -> None:
    """Show a collection and its embedding spaces."""
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        stats = await store.stats(collection)
        rows = await spaces.list_spaces(database.of(settings.tenant), await store.collection(collection))

    def table(console: Console) -> None:
        grid = Table("space", "serves", "vectors", "of chunks", "recall@10 before", "and after")
        for row in rows:
            judged = [f"{row.judged[name]:.3f}" if name in row.judged else "" for name in ("before", "after")]
            serves = "yes" if row.is_serving else ""
            grid.add_row(*literal(row.space, serves, str(row.vectors), str(row.chunks), *judged))
        console.print(grid)

    output.emit({"collection": stats, "spaces": rows}, table)


@collections.command("reembed")
@click.argument("collection")
@click.option(
    "--eval", "eval_set", type=click.Path(exists=True, path_type=Path), help="Judge the new space on this set."
)
@click.option(
    "--workers", metavar="N", default=1, type=click.IntRange(1, 64), help="Processes that embed; each takes 200 MB."
)
@command
async def collections_reembed(
    output: Output, settings: Settings, collection: str, eval_set: Path | None, workers: int
) -> None:
    """Fill the space of ORCHESTRATOR_NEXT_EMBEDDER; without one, what the serving space lacks, such as token vectors."""
    following = await asyncio.to_thread(open_next_embedder, settings, output.say)
    current = await asyncio.to_thread(open_embedder, settings, output.say) if eval_set or following is None else None
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        target = await store.collection(collection)
        opened = following or current
        assert opened is not None
        if following is None and (eval_set or opened.space != target.space):
            raise InputError("set ORCHESTRATOR_NEXT_EMBEDDER (and its URL) to the embedder that is to serve next")
        with output.bar("embedding") as update:
            async with open_indexer(settings, opened, workers) as embedder:
                done = await spaces.fill(
                    database.of(settings.tenant),
                    target,
                    embedder,
                    lambda count, total: update(count, total, opened.space),
                )
        judged = None
        if eval_set and current:
            judged = await spaces.judge(database.of(settings.tenant), target, opened, current, _questions(eval_set))
    text = f"{opened.space}: {done} chunks embedded"
    if judged:
        text += f"; recall@10 {judged.before:.3f} before, {judged.after:.3f} after ({judged.questions} questions)"
    output.emit({"space": opened.space, "embedded": done, "judged": judged}, text)


def _questions(path: Path) -> list[spaces.Question]:
    from orchestrator.evaluation.sets import load_set

    found = load_set(path)
    return [(question.text, frozenset(question.relevant)) for question in found.questions]


@collections.command("switch")
@click.argument("collection")
@click.argument("space")
@click.option("--force", is_flag=True, help="Switch although the eval set says that the space is worse.")
@command
async def collections_switch(output: Output, settings: Settings, collection: str, space: str, force: bool) -> None:
    """Let SPACE serve COLLECTION from the next search on; the other space stays for the way back."""
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        target = await store.collection(collection)
        known = {row.space: row.judged for row in await spaces.list_spaces(database.of(settings.tenant), target)}
        high = known.get(space, {}).get("high", 0.0)
        if high < 0 and not force:
            raise InputError(f"{space} is significantly worse on the eval set; --force switches all the same")
        await spaces.switch(database.of(settings.tenant), target, space)
    output.emit({"collection": collection, "space": space}, f"{collection} is served by {space}")


@collections.command("drop-space")
@click.argument("collection")
@click.argument("space")
@command
async def collections_drop_space(output: Output, settings: Settings, collection: str, space: str) -> None:
    """Remove the vectors of a space that does not serve."""
    async with open_database(settings) as database:
        store = PgStore(database, settings.tenant)
        await spaces.drop(database.of(settings.tenant), await store.collection(collection), space)
    output.emit({"collection": collection, "dropped": space}, f"the vectors of {space} are removed")
