"""The packaged cross-encoder, and the client of a re-ranking server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestrator.errors import EngineError, EngineUnavailableError, InputError
from orchestrator.knowledge.embed import MiniLM
from orchestrator.knowledge.rerank import CrossEncoder, HttpReranker, MaxSim, Ranker
from orchestrator.launch import weights
from orchestrator.protocols import Reranker
from orchestrator.types import Passage

TEXTS = [
    "The library opens at nine.",
    "Employees have thirty days of paid leave a year.",
    "Leaves fall from the trees in autumn.",
]


def passages(texts: list[str]) -> list[Passage]:
    scores = {"cosine_norm": 0.5, "bm25_norm": 0.5}
    return [Passage(n, "d", "e", 1, "", text, (0, len(text)), 0, 0.5, scores) for n, text in enumerate(texts)]


@asynccontextmanager
async def server(answer: Any, status: int = 200, path: str = "/v1/rerank") -> AsyncIterator[tuple[str, list[Any]]]:
    asked: list[Any] = []

    async def reply(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_post(path, reply)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def scores_of(url: str, texts: list[str]) -> list[float]:
    reranker = HttpReranker(url, "model")
    try:
        return await reranker.rerank("question", passages(texts))
    finally:
        await reranker.aclose()


async def test_the_cross_encoder_finds_the_answer(models_dir: Path) -> None:
    reranker = CrossEncoder(weights.ensure_reranker(models_dir), threads=1)

    found = await reranker.rerank("How many days of paid leave do employees have?", passages(TEXTS * 4))

    assert isinstance(reranker, Reranker)
    assert all(0 <= score <= 1 for score in found)
    assert found.index(max(found)) == 1
    assert found[1] > found[0] + 0.5
    assert found[4] == pytest.approx(found[1], abs=0.05)  # in a run of its own: int8 scales with its batch


async def test_token_vectors_find_the_answer(models_dir: Path) -> None:
    minilm = MiniLM(weights.ensure_minilm(models_dir), threads=1)
    stored = await minilm.embed_tokens(TEXTS)
    found = [
        Passage(n, "d", "e", 1, "", p.text, p.span, 0, 0.5, p.scores, tokens=vectors.packed)
        for n, (p, vectors) in enumerate(zip(passages(TEXTS), stored, strict=True))
    ]

    ranked = await Ranker(minilm, MaxSim(minilm)).rank("How many days of paid leave do employees have?", found, 3)

    assert ranked[0].chunk_id == 1
    assert ranked[0].scores["maxsim"] > ranked[1].scores["maxsim"] + 0.2


async def test_a_servers_scores_come_back_in_order() -> None:
    answer = {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}
    async with server(answer) as (url, asked):
        assert await scores_of(url, ["one", "two"]) == [0.1, 0.9]

    assert asked == [{"query": "question", "model": "model", "documents": ["one", "two"]}]


async def test_a_server_of_the_other_form_is_asked_its_way() -> None:
    async with server([{"index": 0, "score": 0.3}, {"index": 1, "score": 0.2}], path="/rerank") as (url, asked):
        assert await scores_of(url, ["one", "two"]) == [0.3, 0.2]

    assert asked == [{"query": "question", "texts": ["one", "two"]}]


@pytest.mark.parametrize(
    ("status", "error"), [(401, EngineError), (404, EngineError), (422, InputError), (503, EngineUnavailableError)]
)
async def test_a_server_that_refuses_has_its_error(status: int, error: type[Exception]) -> None:
    async with server({"error": "no"}, status) as (url, _):
        with pytest.raises(error):
            await scores_of(url, ["one"])


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(EngineUnavailableError, match="Check that it runs"):
        await scores_of("http://127.0.0.1:9", ["one"])


async def test_no_passages_ask_no_server() -> None:
    assert await scores_of("http://127.0.0.1:9", []) == []


async def test_a_server_that_is_down_does_not_stop_the_search(models_dir: Path) -> None:
    minilm = MiniLM(weights.ensure_minilm(models_dir), threads=1)
    reranker = HttpReranker("http://127.0.0.1:9", "model")

    found = await Ranker(minilm, reranker).rank("leave", passages(TEXTS), 3)

    assert len(found) == 3
    assert found[0].scores["rerank_skipped"] == 1
    await reranker.aclose()
