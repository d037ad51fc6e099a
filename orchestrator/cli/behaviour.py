"""Commands for adapters: train, and adapters list, show, register, promote, rollback, retire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_database
from orchestrator.behaviour.examples import Recipe
from orchestrator.behaviour.fit import Fit
from orchestrator.behaviour.registry import Registry
from orchestrator.behaviour.train import TrainRequest, train_adapter
from orchestrator.cli.output import Output, command, literal
from orchestrator.launch import weights
from orchestrator.settings import Settings
from orchestrator.types import Adapter, Passage


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path), help="Questions as JSONL.")
@click.option("--name", required=True, help="Name of the adapter.")
@click.option("--collection", metavar="C", help="Collection with the documents; the configured one when not given.")
@click.option(
    "--base", type=click.Path(exists=True, path_type=Path), help="Model folder; the embedded model when not given."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the adapter; `trained/NAME` under home when not given."
)
@click.option("--prompt", default="grounded", show_default=True, help="Prompt that it is trained on, and served with.")
@click.option("--contract", default="cited_answer", show_default=True, help="Contract that its answers keep.")
@click.option("--max-examples", default=3000, show_default=True, type=click.IntRange(8), help="Examples to train on.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1, 20), help="Passes over the examples.")
@click.option("--rank", default=16, show_default=True, type=click.IntRange(1, 16), help="Rank of the LoRA matrices.")
@click.option("--seed", default=0, show_default=True, help="Seed of data and training.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads.")
@command
async def train(
    output: Output,
    settings: Settings,
    data: Path,
    name: str,
    collection: str | None,
    base: Path | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Train an adapter on questions over an indexed collection. Stopped or killed, the same command goes on."""
    fit = Fit(rank=options["rank"], alpha=2 * options["rank"], epochs=options["epochs"], seed=options["seed"])
    collection = collection or settings.collection
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        if base is None:
            base = await asyncio.to_thread(weights.ensure_smollm2, settings.models, output.say)
        request = TrainRequest(
            name=name,
            data=data,
            collection=collection,
            base=base,
            out=out or settings.home_dir / "trained" / name,
            prompt=options["prompt"],
            contract=options["contract"],
            max_examples=options["max_examples"],
            threads=options["threads"],
            recipe=Recipe(seed=options["seed"]),
            fit=fit,
        )

        async def search(text: str, k: int) -> list[Passage]:
            return list(await orchestrator.search(text, k=k, collection=collection))

        with output.bar("training") as update:

            def show(progress: Any) -> None:
                update(progress.done, progress.total, _progress_note(progress))

            folder = await train_adapter(request, search=search, catalogue=orchestrator.catalogue, progress=show)
        adapter = await orchestrator.registry.register(folder)
    output.emit(
        adapter,
        f"{adapter.served_name} is trained and registered as {adapter.state}; its files are in {folder}\n"
        f"put it into service: orchestrator adapters promote {adapter.served_name}",
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


@adapters.command("promote")
@click.argument("name")
@command
async def adapters_promote(output: Output, settings: Settings, name: str) -> None:
    """Put an adapter into service; the one it replaces is kept for a rollback."""
    async with _registry(settings) as registry:
        adapter = await registry.promote(name)
    output.emit(_fields(adapter), f"{adapter.served_name} is {adapter.state}")


@adapters.command("rollback")
@click.argument("name")
@command
async def adapters_rollback(output: Output, settings: Settings, name: str) -> None:
    """Put the adapter back into service that was active before."""
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


@asynccontextmanager
async def _registry(settings: Settings) -> AsyncIterator[Registry]:
    async with open_database(settings) as database:
        yield Registry(database, settings)


def _fields(adapter: Adapter) -> dict[str, Any]:
    names = ("name", "digest", "served_name", "state", "base", "rank", "prompt", "prompt_digest", "contract")
    return {name: getattr(adapter, name) for name in (*names, "contract_digest", "path", "manifest")}


def _progress_note(progress: Any) -> str:
    parts = [progress.stage]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left / 60:.0f} min left")
    return ", ".join([*parts, progress.note] if progress.note else parts)
