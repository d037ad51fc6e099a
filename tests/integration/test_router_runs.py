"""Runs that tried every route, kept in a real PostgreSQL, become what the router knows of cost and quality; headings likewise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.database import Database
from orchestrator.evaluation.ask import PipelineAsker
from orchestrator.evaluation.fit_router import Wanted, fit_router, measure_routes
from orchestrator.evaluation.items import Change, Item, ItemSet
from orchestrator.evaluation.labelled import answering_routes, rows_of_documents, rows_of_runs
from orchestrator.evaluation.routing import Labelled
from orchestrator.evaluation.runs import Runs, describe_system
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.store import PgStore
from orchestrator.learnt import parse_learnt
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.router import Router
from orchestrator.settings import Settings
from orchestrator.testing import HashEmbedder, MemoryServing, ScriptedEngine, WordTokens
from orchestrator.types import Adapter, Document, Query

SHIPPED = load_catalogue(folder("prompts"))
CATALOGUE = replace(
    SHIPPED, routes={name: replace(route, min_sufficiency=0.0) for name, route in SHIPPED.routes.items()}
)
ADAPTER = Adapter("cited-answer", "a" * 64, Path("x"), "base", 16, "grounded", "d", "cited_answer", "d")
LEAVE = Document("leave.md", "Leave", "# Leave\n\n## Carrying over\n\nEvery employee has 25 days of leave.", "leave.md")
SAID = '{"answerable":true,"citations":[1],"evidence":"","answer":"25 days"}'
SET = ItemSet(
    "handbook", tuple(Item(f"q{at}", f"How many days of leave has employee {at}?", ("25 days",)) for at in range(3))
)
EMBEDDER = HashEmbedder()


async def try_routes(database: Database) -> list[str]:
    """A run for each route that answers, as `router try` makes them; their ids."""
    store = PgStore(database)
    await ingest_documents([LEAVE], store=store, embedder=EMBEDDER, collection="default")
    serving = MemoryServing(ScriptedEngine([SAID]), {"cited-answer": ADAPTER})
    pipeline = Pipeline(
        Settings(), CATALOGUE, Router(CATALOGUE, {}), EMBEDDER, Retriever(store, EMBEDDER), serving, None, WordTokens()  # type: ignore[arg-type]
    )  # fmt: skip
    runs = Runs(database, "default")
    frozen = await runs.freeze(SET, "default")
    made = []
    for name in answering_routes(CATALOGUE):
        change = Change(f"by {name}", route=name)
        system = describe_system(pipeline, {}, change)
        run = await runs.run(
            frozen, PipelineAsker(pipeline, concurrency=1), system, change=change, name=f"handbook by {name}"
        )
        made.append(run.info.id)
    return made


async def test_runs_of_every_route_say_what_each_gives(database: Database) -> None:
    made = await try_routes(database)
    kept = Runs(database, "default")

    rows = rows_of_runs([await kept.show(run) for run in made])
    table = measure_routes(rows)

    assert {row.route for row in rows} == {"grounded"}
    assert (table["grounded"]["quality"], table["direct"]["quality"]) == ({"grounded": 1.0}, {"grounded": 0.0})
    assert table["grounded"]["cost"] > 0 < table["grounded"]["ms"]


async def test_what_the_runs_measured_is_what_limits_choose_by(database: Database) -> None:
    made = await try_routes(database)
    kept = Runs(database, "default")
    rows = [*rows_of_runs([await kept.show(run) for run in made]), *toy_messages()]
    vectors = dict(zip([row.text for row in rows], await EMBEDDER.embed([row.text for row in rows]), strict=True))

    fitted = fit_router(rows, vectors, Router(CATALOGUE, {}), Wanted(EMBEDDER.space))
    router = Router(CATALOGUE, {}, learnt=parse_learnt(fitted.raw))
    plan = router.plan(Query("How many days of leave has employee 1?", route="grounded", min_quality=0.9))

    assert "quality 1.00" in plan.reason
    assert parse_learnt(fitted.raw).measured["direct"].n == 3


async def test_headings_of_a_stored_collection_are_practice(database: Database) -> None:
    await ingest_documents([LEAVE], store=PgStore(database), embedder=EMBEDDER, collection="default")
    store = PgStore(database)

    documents = await store.list_documents("default")
    (text,) = await store.current_texts("default", [documents[0].external_id])
    rows = rows_of_documents([(documents[0].title, text.text)], "grounded")

    assert "carrying over" in {row.text for row in rows}


def test_fit_without_messages_and_runs_says_what_it_needs() -> None:
    result = CliRunner().invoke(main, ["router", "fit"])

    assert result.exit_code != 0
    assert "--from-run" in result.output


def toy_messages() -> list[Labelled]:
    """Enough messages of every route with examples to fit on; of words that the hash embedder tells apart."""
    chance = np.random.default_rng(0)
    return [
        Labelled(
            f"{word} {''.join(map(chr, chance.integers(97, 123, 12)))}" + (": x y" if route == "direct" else ""), route
        )
        for route, word in (("grounded", "when"), ("direct", "sort"), ("clarify", "hello"), ("refuse", "hack"))
        for _ in range(30)
    ]


@pytest.mark.parametrize("name", ["try", "fit", "eval", "show"])
def test_the_commands_are_there(name: str) -> None:
    result = CliRunner().invoke(main, ["router", name, "--help"])

    assert result.exit_code == 0
    assert json.dumps(name)[1:-1] in result.output
