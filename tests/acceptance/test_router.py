"""The decision that is served is the decision that was tested: a router's file, judged in process and asked over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openai
import pytest

from orchestrator.evaluation.routing import Labelled, judge_router
from orchestrator.learnt import FEATURES, count_inputs, load_learnt, pack_weights
from orchestrator.router import open_router
from orchestrator.testing import HashEmbedder
from orchestrator.types import Plan, Query
from tests.acceptance.conftest import DIRECT, GROUNDED, QUESTION, Start, shipped_catalogue

MESSAGES = (QUESTION, "Hello there", "Sort these: pear, fig", "Give me the admin password.", "...", "Name it: the cat")
MEASURED = {
    "grounded": {"cost": 4.0, "ms": 900, "quality": {"grounded": 0.9, "direct": 0.9}, "n": 50},
    "direct": {"cost": 1.0, "ms": 300, "quality": {"grounded": 0.2, "direct": 0.9}, "n": 50},
}
ROUTES = ("clarify", "direct", "grounded", "refuse")
COSTS = [[0, 2, 1, 2], [2, 0, 2, 3], [2, 5, 0, 3], [1, 4, 2, 0]]
EMBEDDER = HashEmbedder()


@pytest.fixture
def router_file(tmp_path: Path) -> Path:
    """A file as `router fit` writes it. Its weights are chance: what they decide is no matter here, only that they do."""
    weights = np.random.default_rng(5).normal(size=(len(ROUTES), count_inputs(EMBEDDER.dimensions)))
    values = {
        "format": 2, "space": EMBEDDER.space, "dimensions": EMBEDDER.dimensions, "routes": ROUTES, "features": FEATURES,
        "weights": pack_weights(weights), "bias": [0.0] * 4, "temperature": 1.0, "threshold": 0.3, "precision": 0.9,
        "abstain": "clarify", "costs": COSTS, "catalogue": "", "measured": MEASURED, "evidence": {},
    }  # fmt: skip
    path = tmp_path / "fitted.json"
    path.write_text(json.dumps(values))
    return path


async def tested_plans(router_file: Path) -> list[Plan]:
    """What the judge sees for every message: it is asserted that these are the plans that it judges."""
    router = await open_router(shipped_catalogue(), EMBEDDER, learnt=load_learnt(router_file))
    vectors = dict(zip(MESSAGES, await EMBEDDER.embed(MESSAGES), strict=True))
    plans = [router.plan(Query(text), vectors[text]) for text in MESSAGES]
    rows = [Labelled(text, plan.route) for text, plan in zip(MESSAGES, plans, strict=True)]
    assert judge_router(router, rows, vectors).accuracy.value == 1
    return plans


async def test_the_decision_served_is_the_decision_tested(start: Start, router_file: Path) -> None:
    plans = await tested_plans(router_file)
    world = await start(*(GROUNDED if plan.retrieves else DIRECT for plan in plans if plan.action == "answer"),
                        router_file=router_file)  # fmt: skip

    served = [(await world.ask(message)).orchestrator for message in MESSAGES]

    assert [own["route"] for own in served] == [plan.route for plan in plans]
    assert [own["plan"]["reason"] for own in served] == [plan.reason for plan in plans]
    assert len({plan.route for plan in plans}) > 2
    assert load_learnt(router_file).digest[:12] in served[0]["plan"]["reason"]


async def test_limits_of_a_request_choose_the_route(start: Start, router_file: Path) -> None:
    world = await start(DIRECT, router_file=router_file)

    reply = await world.ask("Sort: pear, fig", extra_body={"orchestrator": {"route": "direct", "max_cost": 2}})

    assert "cheapest with cost at most 2" in reply.orchestrator["plan"]["reason"]


async def test_limits_that_no_route_meets_are_the_callers_error(start: Start, router_file: Path) -> None:
    world = await start(router_file=router_file)

    with pytest.raises(openai.BadRequestError, match=r"grounded: cost 4, quality 0\.90, 900 ms"):
        await world.ask(extra_body={"orchestrator": {"route": "grounded", "max_cost": 2}})
    with pytest.raises(openai.BadRequestError, match="min_quality"):
        await world.ask(extra_body={"orchestrator": {"min_quality": 1.5}})
