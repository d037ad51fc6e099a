"""Labelled messages of runs that tried every route, and of the documents in a collection."""

from datetime import UTC, datetime

import pytest

from orchestrator.errors import InputError
from orchestrator.evaluation.fit_router import measure_routes
from orchestrator.evaluation.items import Item, ItemSet, Outcome, Score
from orchestrator.evaluation.labelled import MOST, answering_routes, rows_of_documents, rows_of_runs, searching_route
from orchestrator.evaluation.routing import Tried
from orchestrator.evaluation.runs import Run, RunInfo
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.types import Usage

CATALOGUE = load_catalogue(folder("prompts"))
ITEMS = (Item("q1", "How many days?"), Item("q2", "Who signs?"), Item("q3", "Sort: a", route="direct"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def run(route, correct, *, sha256="s", cost=None, error="", asked=ITEMS):
    """A run of one route: what is correct for each item, in order."""
    info = RunInfo(
        f"run-{route}",
        f"by {route}",
        1,
        "set",
        sha256,
        "c",
        "corpus",
        "stamp",
        {"change": {"route": route}},
        NOW,
        NOW,
        3,
    )
    scores = dict(zip([item.id for item in asked], correct, strict=True))
    return Run(
        info, ItemSet("set", ITEMS),
        {name: Outcome(name, usage=Usage(100, 20), timings_ms={"total": 50.0}, cost=cost, error=error) for name in scores},
        {name: Score(value) for name, value in scores.items()},
    )  # fmt: skip


def test_each_question_knows_what_every_route_gave_and_the_best_one_is_its_label():
    rows = rows_of_runs([run("grounded", [1.0, 0.0, 0.0], cost=4.0), run("direct", [0.0, 0.0, 1.0], cost=1.0)])

    assert [(row.text, row.route) for row in rows] == [
        ("How many days?", "grounded"), ("Who signs?", "direct"), ("Sort: a", "direct"),
    ]  # fmt: skip
    assert rows[0].tried == {"grounded": Tried(1.0, 4.0, 50.0), "direct": Tried(0.0, 1.0, 50.0)}
    assert measure_routes(rows)["grounded"] == {
        "cost": 4.0, "ms": 50.0, "n": 3, "quality": {"direct": 0.0, "grounded": 1.0},
    }  # fmt: skip


def test_the_route_that_the_set_names_is_the_label_though_another_was_right():
    rows = rows_of_runs([run("grounded", [1.0, 1.0, 1.0]), run("direct", [0.0, 0.0, 0.0])])

    assert rows[2].route == "direct"


def test_without_prices_tokens_are_the_cost():
    rows = rows_of_runs([run("grounded", [1.0] * 3, cost=4.0), run("direct", [1.0] * 3)])

    assert {each.cost for row in rows for each in row.tried.values()} == {120.0}


def test_an_answer_that_failed_has_no_quality():
    rows = rows_of_runs([run("grounded", [1.0] * 3, error="contract: no JSON")])

    assert rows[0].tried["grounded"].quality == 0


def test_a_question_that_one_run_did_not_ask_is_left_out():
    rows = rows_of_runs([run("grounded", [1.0] * 3), run("direct", [1.0], asked=ITEMS[:1])])

    assert [row.text for row in rows] == ["How many days?"]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([run(None, [1.0] * 3)], "router chose"),
        ([run("direct", [1.0] * 3), run("direct", [1.0] * 3)], "same route"),
        ([run("grounded", [1.0] * 3), run("direct", [1.0] * 3, sha256="t")], "different sets"),
        ([run("grounded", [], asked=())], "let them finish"),
    ],
)
def test_runs_that_do_not_compare_are_refused(runs, said):
    with pytest.raises(InputError, match=said):
        rows_of_runs(runs)


def test_titles_and_headings_become_practice():
    rows = rows_of_documents(
        [("Pricing and plans", "# Pricing and plans\n\n## Starter\n\nThe Starter plan costs.")], "grounded"
    )

    assert {row.text for row in rows} == {
        "pricing and plans", "What applies to Pricing and plans?", "Tell me about Pricing and plans",
        "What applies to Starter?", "Tell me about Starter",
    }  # fmt: skip
    assert {(row.route, row.practice) for row in rows} == {("grounded", True)}


def test_a_large_collection_does_not_outweigh_what_people_wrote():
    rows = rows_of_documents([(f"Title {number}", "") for number in range(1000)], "grounded")

    assert len(rows) == MOST
    assert rows == rows_of_documents([(f"Title {number}", "") for number in reversed(range(1000))], "grounded")


def test_the_routes_that_are_tried_are_those_that_the_router_chooses_and_that_answer():
    assert answering_routes(CATALOGUE) == ["grounded", "direct"]
    assert searching_route(CATALOGUE, "handbook", "handbook") == "grounded"
    with pytest.raises(InputError, match="no route searches"):
        searching_route(CATALOGUE, "other", "handbook")
