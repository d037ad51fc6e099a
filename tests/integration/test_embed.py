"""MiniLM on onnxruntime, and the client of an embeddings server that may misbehave (row E11)."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from orchestrator.errors import EngineError, EngineUnavailableError, InputError
from orchestrator.knowledge.embed import QUESTIONS, HttpEmbedder, MiniLM, open_embedder
from orchestrator.knowledge.rerank import Ranker
from orchestrator.launch import weights
from orchestrator.protocols import Embedder
from orchestrator.settings import Settings


@pytest.fixture(scope="module")
def minilm(models_dir: Path) -> MiniLM:
    return MiniLM(weights.ensure_minilm(models_dir), threads=1)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def test_like_meanings_are_near(minilm: MiniLM) -> None:
    leave, holiday, engine = await minilm.embed(
        ["How many days of leave do I have?", "Number of holidays per year", "The diesel engine needs oil."]
    )

    assert cosine(leave, holiday) > cosine(leave, engine) + 0.2


async def test_vectors_are_of_unit_length_and_stay_the_same_in_any_batch(minilm: MiniLM) -> None:
    texts = ["short", "", "a much longer text about travel expenses " * 30, "日本語", "x" * 5000]

    together = await minilm.embed(texts)
    alone = [(await minilm.embed([text]))[0] for text in texts]

    assert all(math.isclose(cosine(vector, vector), 1, abs_tol=1e-5) for vector in together)
    assert all(cosine(a, b) > 0.99999 for a, b in zip(together, alone, strict=True))
    assert {len(vector) for vector in together} == {minilm.dimensions}


async def test_many_texts_keep_their_order(minilm: MiniLM) -> None:
    texts = [f"number {n} " * (1 + n % 17) for n in range(100)]

    vectors = await minilm.embed(texts)

    assert cosine(vectors[57], (await minilm.embed([texts[57]]))[0]) > 0.99999


async def test_no_text_needs_no_vector(minilm: MiniLM) -> None:
    assert await minilm.embed([]) == []


async def test_the_loop_goes_on_while_it_embeds(minilm: MiniLM) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await minilm.embed(["some words " * 40] * 30)
    ticking.cancel()

    assert ticks > 5


async def test_one_run_gives_a_text_its_vector_and_its_token_vectors(minilm: MiniLM) -> None:
    texts = ["How many days of leave?", "", "travel expenses " * 500]

    found = await minilm.embed_tokens(texts)
    alone = [(await minilm.embed([text]))[0] for text in texts]

    assert all(cosine(list(one.vector), other) > 0.99999 for one, other in zip(found, alone, strict=True))
    assert [len(one.packed) for one in found] == [6 * 48, 0, 254 * 48]


async def test_token_vectors_are_those_of_the_question(minilm: MiniLM) -> None:
    text = "How many days of leave?"
    asked = await minilm.embed_question(text)
    (stored,) = await minilm.embed_tokens([text])

    rows = np.frombuffer(asked.tokens, np.float32).reshape(-1, minilm.dimensions)

    assert len(rows) == len(asked.weights) == 6
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.packbits(rows > 0, axis=1).tobytes() == stored.packed


async def test_rare_words_of_a_question_weigh_more(minilm: MiniLM) -> None:
    the, of, seismograph_first, *_, mark = (await minilm.embed_question("the of seismograph?")).weights

    assert the < of < 0.2 < 0.8 < seismograph_first <= 1
    assert mark == 0


async def test_a_question_is_run_once(minilm: MiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    (vector,) = await minilm.embed(["What is asked but once?"])
    monkeypatch.setattr(minilm, "_session", None)  # a run would fail

    again = await minilm.embed_question("What is asked but once?")

    assert list(again.vector) == vector


async def test_only_the_last_questions_are_kept(minilm: MiniLM) -> None:
    first = await minilm.embed_question("question number -1")
    for number in range(QUESTIONS):
        await minilm.embed_question(f"question number {number}")

    assert await minilm.embed_question("question number -1") is not first
    assert len(minilm._questions) == QUESTIONS


async def test_languages_are_told_by_the_length_of_the_pieces(minilm: MiniLM) -> None:
    ranker = Ranker(minilm)

    found = [
        (await ranker.weights(question)).familiarity
        for question in (
            "What problems and concerns are there in making up descriptive titles?",
            "Wie viele Punkte gab die Verteidigung der Panthers auf?",
            "黑豹队的防守丢了多少分？",
            "แนวรับของแพนเธอร์สเสียแต้มไปเท่าไร",
        )
    ]

    assert found == [1, 0, 0, 0]


def test_the_space_names_the_weights(minilm: MiniLM) -> None:
    assert minilm.space == f"minilm-l6-v2/{weights.digest(weights.MINILM)[:12]}"
    assert isinstance(minilm, Embedder)


def test_an_unknown_embedder_without_a_server_is_refused() -> None:
    with pytest.raises(InputError, match="ORCHESTRATOR_EMBEDDER_URL"):
        open_embedder(Settings(embedder="bge-large"))


# The client of a server


Answer = Callable[[list[str]], Any]


def rows(*vectors: list[Any]) -> Answer:
    return lambda texts: {"data": [{"index": i, "embedding": v} for i, v in enumerate(vectors[: len(texts)])]}


@asynccontextmanager
async def served(answer: Answer, status: int = 200, **options: Any) -> AsyncIterator[HttpEmbedder]:
    async def handle(request: web.Request) -> web.Response:
        found = answer((await request.json())["input"])
        if asyncio.iscoroutine(found):
            found = await found
        if isinstance(found, web.Response):
            return found
        return web.Response(text=json.dumps(found), status=status, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/embeddings", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    embedder = HttpEmbedder(f"http://127.0.0.1:{runner.addresses[0][1]}/", "m", 2, **options)
    try:
        yield embedder
    finally:
        await embedder.aclose()
        await runner.cleanup()


async def test_a_servers_vectors_are_scaled_and_put_in_order() -> None:
    def backwards(texts: list[str]) -> Any:
        return {"data": [{"index": i, "embedding": [3.0 * (i + 1), 4.0 * (i + 1)]} for i in (1, 0)]}

    async with served(backwards) as embedder:
        vectors = await embedder.embed(["a", "b"])

    assert vectors == [pytest.approx([0.6, 0.8])] * 2


async def test_long_lists_go_in_batches() -> None:
    sizes: list[int] = []

    def count(texts: list[str]) -> Any:
        sizes.append(len(texts))
        return {"data": [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(texts)]}

    async with served(count, batch=3) as embedder:
        vectors = await embedder.embed(["x" * n for n in range(1, 8)])

    assert sizes == [3, 3, 1]
    assert [round(a / b) for a, b in vectors] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "bad",
    [[float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0], [1.0], [1.0, 2.0, 3.0], [None, 1.0], ["a", 1.0]],
    ids=["nan", "infinity", "zero", "short", "long", "null", "text"],
)
async def test_a_bad_vector_is_refused(bad: list[Any]) -> None:
    async with served(rows([1.0, 0.0], bad, [0.0, 1.0])) as embedder:
        with pytest.raises(EngineError):
            await embedder.embed(["a", "b", "c"])


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0]], ids=["zero", "short"])
async def test_a_bad_vector_is_named(bad: list[Any]) -> None:
    async with served(rows([1.0, 0.0], bad), batch=2) as embedder:
        with pytest.raises(EngineError) as caught:
            await embedder.embed(["a", "b"])

    assert caught.value.param == "texts[1]"


async def test_too_few_vectors_are_refused() -> None:
    async with served(rows([1.0, 0.0])) as embedder:
        with pytest.raises(EngineError, match="1 vectors for 2 texts"):
            await embedder.embed(["a", "b"])


async def test_the_one_text_that_the_server_refuses_is_found() -> None:
    def refuse_long(texts: list[str]) -> Any:
        if any(len(text) > 5 for text in texts):
            return web.json_response({"error": {"message": "too long"}}, status=400)
        return {"data": [{"index": i, "embedding": [1.0, 0.0]} for i in range(len(texts))]}

    async with served(refuse_long) as embedder:
        with pytest.raises(InputError, match="too long") as caught:
            await embedder.embed(["a"] * 11 + ["too long a text"] + ["a"] * 20)

    assert caught.value.param == "texts[11]"


@pytest.mark.parametrize(
    ("status", "error"), [(401, EngineError), (404, EngineError), (429, EngineError), (500, EngineUnavailableError)]
)
async def test_a_server_that_refuses_has_its_error(status: int, error: type[EngineError]) -> None:
    async with served(lambda _: {"error": {"message": "because"}}, status) as embedder:
        with pytest.raises(EngineError) as caught:
            await embedder.embed(["a"])

    assert type(caught.value) is error


async def test_an_answer_that_is_not_the_openai_form_is_refused() -> None:
    async with served(lambda _: {"embeddings": []}) as embedder:
        with pytest.raises(EngineError, match="OpenAI form"):
            await embedder.embed(["a"])


async def test_a_server_that_is_silent_is_unavailable() -> None:
    async with served(lambda _: asyncio.sleep(5), timeout_s=0.05) as embedder:
        with pytest.raises(EngineUnavailableError):
            await embedder.embed(["a"])


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        embedder = HttpEmbedder(f"http://127.0.0.1:{free.getsockname()[1]}", "m", 2)
        with pytest.raises(EngineUnavailableError, match="ORCHESTRATOR_EMBEDDER_URL"):
            await embedder.embed(["a"])
        await embedder.aclose()
