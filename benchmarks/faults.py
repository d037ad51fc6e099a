"""Confusion of planted faults with the layers that the diagnosis names: in a made-up system, or in the one that is set up.

    python benchmarks/faults.py --world [--size 300] [--moody 0.1] [--pairs no] [--no-noise]
    python benchmarks/faults.py SET [--collection C] [--limit 200] [--only delete,misroute] [--pairs all|no|A+B,...]
        [--memory FILE] [--out FILE]

The second form asks the model. What it wrote is kept by the hash of all that was sent to it, since it answers without sampling;
with --memory over a restart too, so that a benchmark which was stopped goes on. --anew asks everything every time. The healthy
system is diagnosed a second time with every answer asked anew (--no-noise: not), to see what chance alone accuses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scipy.stats import binomtest

from orchestrator.app import Orchestrator
from orchestrator.evaluation import world
from orchestrator.evaluation.archive import Archive, PgArchive
from orchestrator.evaluation.ask import Memory, PipelineAsker
from orchestrator.evaluation.causes import LAYERS, Diagnosis
from orchestrator.evaluation.diagnose import Remedies, remedies_of
from orchestrator.evaluation.faults import (
    Forced,
    Matrix,
    Plant,
    Row,
    System,
    confuse,
    describe,
    instead,
    shared_faults,
    swap_adapter,
    unconstrain,
)
from orchestrator.evaluation.gold import says, words
from orchestrator.evaluation.items import Asker, Change, Item, ItemSet
from orchestrator.evaluation.read import read_items, sample
from orchestrator.evaluation.runs import Runs
from orchestrator.evaluation.score import score_outcome
from orchestrator.prompts import Catalogue, Prompt

CONCURRENCY = 16
MISLEADING = "Write a short poem about the sea. Never mention what you are given."


@dataclass(frozen=True)
class Wanted:
    """What to plant: ``only`` these faults (all when empty), and ``pairs`` of them: None for none, () for all."""

    only: frozenset[str]
    pairs: tuple[frozenset[str], ...] | None
    noise: bool = True  # whether the healthy system is asked once more
    quotes: bool = False  # whether items get the sentence that answers them
    say: Callable[[Row], None] = lambda row: None

    def plants(self, plants: Sequence[Plant]) -> list[Plant]:
        """Those of the faults that are wanted."""
        return [plant for plant in plants if not self.only or plant.name in self.only]


async def made_up(size: int, seed: int, noise: world.Noise, wanted: Wanted) -> Matrix:
    """The matrix of the made-up system."""
    healthy = world.World(seed, size, noise)
    plants = [*shared_faults(), swap_adapter(), *world.own_faults(seed, size, noise)]
    remedies = Remedies((world.ADAPTER,), ("grounded", "direct"), prompt=True, strong=True)
    return await confuse(
        System(healthy.set(), healthy, healthy), wanted.plants(plants), score_outcome, remedies=remedies,
        with_pairs=wanted.pairs is not None, pairs=wanted.pairs or (), twice=healthy if wanted.noise else None, say=wanted.say,
    )  # fmt: skip


async def quoted(asked: ItemSet, archive: Archive) -> ItemSet:
    """The set with quotes: of each gold document the sentence that says the answer and most of the question."""

    async def with_quote(item: Item) -> Item:
        if not item.answers or any(gold.quote for gold in item.gold):
            return item
        held = [each for each in await archive.versions(item) if each.counts and each.holds]
        sentences = [part.strip() for each in held for part in re.split(r"\n\s*\n|\n(?=[-|#])|(?<=[.!?])\s", each.text)]
        telling = [each for each in sentences if says(each, item)]
        if not telling:
            return item
        question = set(words(item.question))
        best = max(telling, key=lambda each: len(question & set(words(each))))
        return replace(item, gold=tuple(replace(gold, quote=best) for gold in item.gold))

    return replace(asked, items=tuple([await with_quote(item) for item in asked.items]))


async def real(path: str, collection: str | None, limit: int, wanted: Wanted, memory: Memory | None) -> Matrix:
    """The matrix of the system that is set up; its contract and prompt are broken for the route that serves the set."""
    async with Orchestrator.open(progress=print) as orchestrator:
        await orchestrator.start()
        tenant = orchestrator.settings.tenant
        collection = collection or orchestrator.settings.collection
        pipeline = orchestrator.pipeline
        frozen = await Runs(orchestrator.database, tenant).freeze(sample(read_items(path), limit), collection)

        def asking(catalogue: Catalogue) -> Asker:
            router = replace(pipeline.router, catalogue=catalogue)
            changed = replace(pipeline, catalogue=catalogue, router=router)
            asker = PipelineAsker(changed, collection=collection, concurrency=CONCURRENCY, memory=memory)
            # What the model said is what it says: a replay that sends the same differs by rounding alone.
            return Forced(asker, lambda item, change: replace(change, anew=False)) if memory else asker

        adapters = await orchestrator.registry.list()
        found = remedies_of(orchestrator.catalogue, adapters)
        served = [each.name for each in adapters if each.state == "active"]
        remedies = replace(found, adapters=(*served, *found.adapters), prompt=True)
        plants = [
            *shared_faults(),
            unconstrain(),
            *([swap_adapter()] if served else []),
            instead("switch-contract", asking(_uncited(pipeline.catalogue)), _is_shipped),
            instead("break-prompt", asking(_mislead(pipeline.catalogue)), _is_shipped),
        ]  # fmt: skip
        archive = PgArchive(orchestrator.database, collection, tenant)
        asked = await quoted(frozen.set, archive) if wanted.quotes else frozen.set
        system = System(asked, asking(pipeline.catalogue), archive, remedies.shown)
        anew = PipelineAsker(pipeline, collection=collection, concurrency=CONCURRENCY)
        return await confuse(
            system, wanted.plants(plants), score_outcome, remedies=remedies,
            with_pairs=wanted.pairs is not None, pairs=wanted.pairs or (), twice=anew if wanted.noise else None, say=wanted.say,
        )  # fmt: skip


def _is_shipped(change: Change) -> bool:
    return change.prompt == "shipped"


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


def _say(row: Row) -> None:
    print(describe(row), flush=True)


def _say_all(row: Row) -> None:
    print(describe(row), *(f"    {item}: {tried}" for item, tried in row.wrong.items()), sep="\n", flush=True)


def _healthy(name: str, found: Diagnosis) -> str:
    bars = ", ".join(f"{bar.cause} {bar.n}" for bar in found.bars) or "nothing"
    return f"{name}: {found.accuracy.value:.1%} of {found.n} right; accused: {bars}; by chance {len(found.unsteady)}"


def _noise(found: Matrix) -> list[str]:
    """Each layer's questions in the two runs of the healthy system, with McNemar's exact test."""
    lines: list[str] = []
    if found.again is None:
        return lines
    for layer in LAYERS:
        one, other = (
            {item for item in each.causes if layer in each.layers(item)} for each in (found.healthy, found.again)
        )
        p = binomtest(len(one - other), len(one ^ other)).pvalue if one ^ other else 1.0
        counts = f"accused of {len(one)} questions, then of {len(other)}, {len(one & other)} the same"
        lines.append(f"  {layer:<10} {counts}: p {p:.2f}")
    return lines


def _print(found: Matrix) -> None:
    """The sums, and the confusion of the layer that is broken with the layers that are named."""
    print(_healthy("healthy", found.healthy))
    if found.again:
        print(_healthy("once more", found.again), *_noise(found), sep="\n")
    for name, rows in (("single faults", found.singles), ("pairs", found.pairs)):
        share = found.share(rows)
        print(f"{name}: {share.value:.1%} of {sum(row.n for row in rows)} right ({share.low:.1%} to {share.high:.1%})")


def main() -> None:
    """Prints the matrix and its sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?")
    parser.add_argument("--world", action="store_true")
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moody", type=float, default=world.Noise().moody)
    parser.add_argument("--collection")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--pairs", default="", help="all, no, or names: delete+cut,cut+poison; all of --world, none of a SET"
    )
    parser.add_argument("--noise", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quoted", action="store_true", help="look up for each item the sentence that answers it")
    parser.add_argument("--wrong", action="store_true", help="print what was tried where the wrong layer is named")
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pairs = _pairs(given.pairs or ("all" if given.world else "no"))
    only, say = frozenset(filter(None, given.only.split(","))), _say_all if given.wrong else _say
    wanted = Wanted(only, pairs, given.noise, given.quoted, say)
    if given.world:
        found = asyncio.run(made_up(given.size, given.seed, world.Noise(moody=given.moody), wanted))
    elif given.set:
        memory = None if given.anew else Memory(given.memory)
        found = asyncio.run(real(given.set, given.collection, given.limit, wanted, memory))
    else:
        parser.error("name a SET, or --world")
    _print(found)
    if given.out:
        given.out.write_text(json.dumps(asdict(found), indent=1))


def _pairs(text: str) -> tuple[frozenset[str], ...] | None:
    return {"no": None, "all": ()}.get(text, tuple(frozenset(pair.split("+")) for pair in text.split(",")))


if __name__ == "__main__":
    main()
