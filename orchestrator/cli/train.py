"""The command train: rows of any contract, or questions over an indexed collection, to a registered adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from orchestrator.app import Orchestrator, open_database
from orchestrator.behaviour.defaults import choose_fit, questions_fit
from orchestrator.behaviour.examples import Recipe, Search
from orchestrator.behaviour.fit import Fit
from orchestrator.behaviour.guard import Limits
from orchestrator.behaviour.hard import ATTACKS, Hard, read_attacks
from orchestrator.behaviour.held_out import summary
from orchestrator.behaviour.processes import count_gpus
from orchestrator.behaviour.registry import Registry
from orchestrator.behaviour.rows import is_rows
from orchestrator.behaviour.train import NOT_HARD, TrainRequest, train_adapter
from orchestrator.cli.output import Output, command
from orchestrator.launch import weights
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.types import Adapter, Passage


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path), help="Rows or questions as JSONL.")
@click.option("--name", required=True, help="Name of the adapter.")
@click.option(
    "--collection", metavar="C", help="Collection that questions are about; the configured one when not given."
)
@click.option(
    "--base", type=click.Path(exists=True, path_type=Path), help="Model folder; the embedded model when not given."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the adapter; `trained/NAME` under home when not given."
)
@click.option("--prompt", default="grounded", show_default=True, help="Prompt that it is trained on, and served with.")
@click.option("--contract", default="cited_answer", show_default=True, help="Contract that its answers keep.")
@click.option(
    "--max-examples", default=3000, show_default=True, type=click.IntRange(8), help="Examples built from questions."
)
@click.option(
    "--epochs",
    type=click.IntRange(1, 20),
    help="Passes over the examples; chosen from their number when not given. Each pass over questions draws new passages.",
)
@click.option("--rank", type=click.IntRange(1, 16), help="Rank of the LoRA matrices; 16 when not given.")
@click.option("--seed", default=0, show_default=True, help="Seed of data and training.")
@click.option(
    "--attacks", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Orders that documents hide, to train against; a few of our own when not given.",
)  # fmt: skip
@click.option(
    "--hard/--no-hard", default=True, show_default=True,
    help="Stale, conflicting, hostile and foreign passages among the examples built from questions.",
)  # fmt: skip
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads of each process.")
@click.option("--processes", type=click.IntRange(1), help="Processes that train together; one a GPU when not given.")
@click.option(
    "--max-underived", default=0.1, show_default=True, type=click.FloatRange(0, 1),
    help="Share of answers that their passages may fail to give before training is refused.",
)  # fmt: skip
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
    """Train an adapter on rows of any contract, or on questions over a collection. Stopped or killed, the same command goes on.

    Rows (`input`, `passages`, `output`, or `messages`) need nothing else; epochs and learning rate follow from their number.
    """
    if base is None:
        base = await asyncio.to_thread(weights.ensure_smollm2, settings.models, output.say)
    request = TrainRequest(
        name=name,
        data=data,
        collection=collection or settings.collection,
        base=base,
        out=out or settings.home_dir / "trained" / name,
        prompt=options["prompt"],
        contract=options["contract"],
        max_examples=options["max_examples"],
        threads=options["threads"],
        processes=options["processes"] or max(1, count_gpus()),
        recipe=Recipe(seed=options["seed"], passes=options["epochs"] or 1),
        fit=None if is_rows(data) and not options["epochs"] and not options["rank"] else _fit(options, data),
        hard=Hard() if options["hard"] else NOT_HARD,
        attacks=read_attacks(options["attacks"]) if options["attacks"] else ATTACKS,
        limits=Limits(underived=options["max_underived"]),
    )
    async with _search(settings, request, output) as search:
        with output.bar("training") as update:

            def show(progress: Any) -> None:
                update(progress.done, progress.total, _progress_note(progress))

            catalogue = load_catalogue(settings.prompts_dir or folder("prompts"))
            where = await train_adapter(request, search=search, catalogue=catalogue, progress=show)
    async with open_database(settings) as database:
        adapter = await Registry(database, settings).register(where)
    output.emit(adapter, _told(adapter, where))


def _fit(options: dict[str, Any], data: Path) -> Fit | None:
    """What the options say; the rest as for so many rows. None: it follows from how many examples are built."""
    epochs, rank, seed = options["epochs"], options["rank"], options["seed"]
    if not is_rows(data):
        return questions_fit(options["max_examples"], rank=rank, seed=seed) if rank else None
    with data.open("rb") as lines:
        rows = sum(bool(line.strip()) for line in lines)
    return choose_fit(rows, -(-rows // 4), epochs=epochs, rank=rank, seed=seed)


@asynccontextmanager
async def _search(settings: Settings, request: TrainRequest, output: Output) -> AsyncIterator[Search | None]:
    """How the builder finds passages; rows bring their own, and then nothing is opened."""
    if is_rows(request.data):
        yield None
        return
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:

        async def search(text: str, k: int) -> list[Passage]:
            return list(await orchestrator.search(text, k=k, collection=request.collection))

        yield search


def _told(adapter: Adapter, where: Path) -> str:
    manifest = adapter.manifest
    lines = [f"{adapter.served_name} is trained and registered as {adapter.state}; its files are in {where}"]
    if manifest.get("held_out", {}).get("inputs"):
        lines.append(summary(manifest["held_out"]))
    closed = manifest.get("closed_book", {})
    if closed.get("risen"):
        lines.append(
            f"warning: without passages it names {closed['adapter']} of {closed['questions']} answers, the base "
            f"{closed['base']}: it learnt facts. Give more passages that answer, fewer epochs, or leave repeated rows out"
        )
    lines.append(f"let the gate judge it: orchestrator adapters gate {adapter.served_name} --eval QUESTIONS")
    return "\n".join([*lines, f"put it into service: orchestrator adapters promote {adapter.served_name}"])


def _progress_note(progress: Any) -> str:
    parts = [progress.stage]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left / 60:.0f} min left")
    return ", ".join([*parts, progress.note] if progress.note else parts)
