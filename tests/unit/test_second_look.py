"""A refusal that is only probable is checked by one search, which the answer then uses: nothing is searched twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import UnknownNameError
from orchestrator.learnt import Learnt, count_inputs
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.router import Router
from orchestrator.settings import Settings
from orchestrator.testing import HashEmbedder, MemoryLedger, MemoryServing, ScriptedEngine, WordTokens, passage
from orchestrator.types import Adapter, Query, SearchResult

CATALOGUE = load_catalogue(folder("prompts"))
EMBEDDER = HashEmbedder()
ROUTES = ("clarify", "direct", "grounded", "refuse")
SAID = '{"answerable": true, "citations": [1], "evidence": "A stolen card is blocked.", "answer": "It is blocked."}'
QUESTION = "Someone has stolen my card, how is it blocked?"
REFUSING = Learnt(
    ROUTES, EMBEDDER.space, np.zeros((4, count_inputs(EMBEDDER.dimensions))), np.asarray([0.0, 0.0, 0.0, 9.0]),
    1.0, 0.5, 0.95, "grounded", 1 - np.eye(4), "", {}, {}, "d1",
)  # fmt: skip


class Searcher:
    """Finds one passage that suffices so far, or raises; counts."""

    def __init__(self, sufficiency=None, error=None):
        self.result = SearchResult((passage(1, "A stolen card is blocked."),), sufficiency)
        self.error = error
        self.requests = []

    async def search(self, request, *, excerpts=False):
        self.requests.append(request)
        if self.error:
            raise self.error
        return self.result

    async def mark_changes(self, request, citations):
        return tuple(citations)


def build(searcher):
    engine = ScriptedEngine([SAID])
    adapter = Adapter("cited-answer", "a" * 64, Path("x"), "base", 16, "grounded", "d", "cited_answer", "d")
    router = Router(CATALOGUE, {}, learnt=REFUSING)
    serving = MemoryServing(engine, {"cited-answer": adapter})
    return Pipeline(Settings(), CATALOGUE, router, EMBEDDER, searcher, serving, MemoryLedger(), WordTokens()), engine


async def test_documents_that_suffice_answer_and_are_searched_once():
    searcher = Searcher(0.7)
    pipeline, _ = build(searcher)

    answer = await pipeline.ask(Query(QUESTION))

    assert (answer.route, answer.data["answer"], len(answer.citations)) == ("grounded", "It is blocked.", 1)
    assert "refuse with probability 1.00, but the documents suffice" in answer.plan.reason
    assert len(searcher.requests) == 1


@pytest.mark.parametrize("sufficiency", [None, 0.1])
async def test_without_them_it_is_refused_and_no_model_is_asked(sufficiency):
    pipeline, engine = build(Searcher(sufficiency))

    answer = await pipeline.ask(Query(QUESTION))

    assert (answer.route, answer.plan.action) == ("refuse", "refuse")
    assert engine.received == []


async def test_a_collection_that_is_missing_does_not_make_an_error_of_a_refusal():
    pipeline, _ = build(Searcher(error=UnknownNameError("there is no such collection")))

    assert (await pipeline.ask(Query(QUESTION))).route == "refuse"


async def test_the_plan_alone_looks_too():
    pipeline, _ = build(Searcher(0.7))

    assert (await pipeline.plan(Query(QUESTION))).route == "grounded"
