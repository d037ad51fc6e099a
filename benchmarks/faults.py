"""Confusion of planted faults with the layers that the diagnosis names: in a made-up system, or in the one that is set up.

    python benchmarks/faults.py --world [--size 300] [--no-pairs]
    python benchmarks/faults.py SET [--collection C] [--limit 200] [--pairs] [--only delete,misroute] [--out FILE]

The second form asks the model: about (1 + faults) x 5 times the set, with --pairs about 40 times more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from orchestrator.app import Orchestrator
from orchestrator.evaluation import world
from orchestrator.evaluation.archive import PgArchive
from orchestrator.evaluation.ask import PipelineAsker
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.diagnose import Remedies, remedies_of
from orchestrator.evaluation.faults import (
    Matrix,
    Plant,
    System,
    confuse,
    instead,
    shared_faults,
    swap_adapter,
    unconstrain,
)
from orchestrator.evaluation.read import read_items, sample
from orchestrator.evaluation.runs import Runs
from orchestrator.evaluation.score import score_outcome
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import Catalogue, Prompt

MISLEADING = "Write a short poem about the sea. Never mention what you are given."


async def made_up(size: int, seed: int, only: set[str], with_pairs: bool) -> Matrix:
    """The matrix of the made-up system."""
    healthy = world.World(seed, size)
    plants = [*shared_faults(), swap_adapter(), *world.own_faults(seed, size)]
    remedies = Remedies((world.ADAPTER,), ("grounded", "direct"), prompt=True, strong=True)
    system = System(healthy.set(), healthy, healthy)
    return await confuse(
        system, _chosen(plants, only), score_outcome, remedies=remedies, with_pairs=with_pairs, say=print
    )


async def real(path: str, collection: str | None, limit: int, only: set[str], with_pairs: bool) -> Matrix:
    """The matrix of the system that is set up; its contract and prompt are broken for the route that serves the set."""
    async with Orchestrator.open() as orchestrator:
        tenant = orchestrator.settings.tenant
        collection = collection or orchestrator.settings.collection
        pipeline = orchestrator.pipeline
        frozen = await Runs(orchestrator.database, tenant).freeze(sample(read_items(path), limit), collection)
        asker = PipelineAsker(pipeline, collection=collection)
        adapters = await orchestrator.registry.list()
        found = remedies_of(orchestrator.catalogue, adapters)
        served = [each.name for each in adapters if each.state == "active"]
        remedies = Remedies((*served, *found.adapters), found.routes, prompt=True, shown=found.shown)
        plants = [
            *shared_faults(),
            unconstrain(),
            instead("break-prompt", _other(pipeline, collection, _mislead), lambda change: change.prompt == "shipped"),
            instead("switch-contract", _other(pipeline, collection, _uncited)),
            *([swap_adapter()] if served else []),
        ]
        archive = PgArchive(orchestrator.database, collection, tenant)
        system = System(frozen.set, asker, archive, remedies.shown)
        return await confuse(
            system, _chosen(plants, only), score_outcome, remedies=remedies, with_pairs=with_pairs, say=print
        )


def _other(pipeline: Pipeline, collection: str, changed: Callable[[Catalogue], Catalogue]) -> PipelineAsker:
    """The same system with other prompts or routes."""
    catalogue = changed(pipeline.catalogue)
    router = replace(pipeline.router, catalogue=catalogue)
    return PipelineAsker(replace(pipeline, catalogue=catalogue, router=router), collection=collection)


def _mislead(catalogue: Catalogue) -> Catalogue:
    """Every prompt asks for something else than the route's contract says."""

    def other(prompt: Prompt) -> Prompt:
        turns = tuple((role, MISLEADING if role == "system" else text) for role, text in prompt.turns)
        return replace(prompt, turns=turns, digest="misleading")

    return replace(catalogue, prompts={name: other(prompt) for name, prompt in catalogue.prompts.items()})


def _uncited(catalogue: Catalogue) -> Catalogue:
    """Routes over documents answer in plain text, which cites nothing; an adapter of another contract may not serve them."""
    routes = {
        name: replace(route, contract="text_answer", adapter=None) if route.collection else route
        for name, route in catalogue.routes.items()
    }
    return replace(catalogue, routes=routes)


def _chosen(plants: Sequence[Plant], only: set[str]) -> list[Plant]:
    return [plant for plant in plants if not only or plant.name in only]


def _healthy(found: Diagnosis) -> str:
    bars = ", ".join(f"{bar.cause} {bar.n}" for bar in found.bars) or "nothing"
    return f"healthy: {found.accuracy.value:.1%} right; accused: {bars}; by chance {len(found.unsteady)}"


def main() -> None:
    """Prints the matrix and its sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", nargs="?")
    parser.add_argument("--world", action="store_true")
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--collection")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--pairs", action=argparse.BooleanOptionalAction)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    only = set(filter(None, given.only.split(",")))
    if given.world:
        found = asyncio.run(made_up(given.size, given.seed, only, given.pairs is not False))
    elif given.set:
        found = asyncio.run(real(given.set, given.collection, given.limit, only, bool(given.pairs)))
    else:
        parser.error("name a SET, or --world")
    print(_healthy(found.healthy))
    for name, rows in (("single faults", found.singles), ("pairs", found.pairs)):
        share = found.share(rows)
        print(f"{name}: {share.value:.1%} right ({share.low:.1%} to {share.high:.1%})")
    if given.out:
        given.out.write_text(json.dumps(asdict(found), indent=1))


if __name__ == "__main__":
    main()
