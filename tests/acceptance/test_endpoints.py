"""Models, embeddings and probes through the official client."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import httpx
import openai
import pytest

import orchestrator.api.routes as routes
from tests.acceptance.conftest import Start


async def test_models_are_routes_adapters_and_the_embedder(start: Start) -> None:
    world = await start()

    names = [model.id async for model in world.official.models.list()]

    assert names == [
        "orchestrator",
        *(f"orchestrator/{route}" for route in world.orchestrator.catalogue.routes),
        "cited-answer",
        "hash-64",
    ]


async def test_each_model_can_be_retrieved_and_no_other(start: Start) -> None:
    world = await start()

    assert (await world.official.models.retrieve("orchestrator/grounded")).id == "orchestrator/grounded"
    with pytest.raises(openai.NotFoundError) as caught:
        await world.official.models.retrieve("gpt-4o")

    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("encoding", ["float", openai.omit], ids=["float", "default"])
async def test_embeddings_equal_the_embedders(start: Start, encoding: Any) -> None:
    world = await start()
    expected = await world.orchestrator.embed(["a day", "another"])

    reply = await world.official.embeddings.create(
        model="hash-64", input=["a day", "another"], encoding_format=encoding
    )

    assert [item.embedding for item in reply.data] == [pytest.approx(vector, abs=1e-6) for vector in expected]
    assert [item.index for item in reply.data] == [0, 1]


async def test_base64_holds_little_endian_floats(start: Start) -> None:
    world = await start()
    (expected,) = await world.orchestrator.embed(["a day"])

    reply = await world.official.embeddings.create(model="hash-64", input="a day", encoding_format="base64")

    raw = base64.b64decode(reply.data[0].embedding)
    assert struct.unpack("<64f", raw) == pytest.approx(expected, abs=1e-6)


async def test_one_text_is_embedded_too(start: Start) -> None:
    world = await start()

    reply = await world.official.embeddings.create(model="hash-64", input="a day", dimensions=64)

    assert len(reply.data[0].embedding) == 64


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": [1, 2]},
        {"input": [[1]]},
        {"input": ["a"] * 257},
        {"input": "a" * 16_001},
        {"dimensions": 8},
        {"encoding_format": "hex"},
        {"extra_body": {"truncate": True}},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
async def test_embeddings_of_nothing_usable_are_refused(start: Start, wrong: dict[str, object]) -> None:
    world = await start()

    with pytest.raises(openai.BadRequestError):
        await world.official.embeddings.create(**{"model": "hash-64", "input": "a", **wrong})


async def test_another_embedding_model_is_not_found(start: Start) -> None:
    world = await start()

    with pytest.raises(openai.NotFoundError, match="hash-64"):
        await world.official.embeddings.create(model="text-embedding-3-small", input="a")


async def test_a_citations_link_leads_to_the_characters_it_names(start: Start) -> None:
    world = await start()
    reply = await world.ask()
    url, _, fragment = reply.choices[0].message.annotations[0].url_citation.url.partition("#char=")
    begin, end = (int(number) for number in fragment.split(","))

    async with httpx.AsyncClient() as client:
        document = await client.get(url)

    assert document.text[begin:end] == reply.orchestrator["citations"][0]["quote"]
    assert document.headers["content-type"] == "text/plain; charset=utf-8"  # never HTML: a document may hold a script
    assert document.headers["x-content-type-options"] == "nosniff"


async def test_a_link_to_nothing_is_not_found(start: Start) -> None:
    world = await start()
    paths = ["doc-9/versions/1", "doc-1/versions/9", "doc-1/versions/x", "doc-1/versions/" + "9" * 5000, "/versions/1"]
    paths += [
        "a%00b/versions/1",
        "..%2f..%2fetc%2fpasswd/versions/1",
        "doc-1/versions/%C2%B2",
        "doc-1",
        "doc-1/versions/-1",
    ]

    async with httpx.AsyncClient() as client:
        replies = [await client.get(f"{world.url}/v1/documents/{path}") for path in paths]

    assert [reply.status_code for reply in replies] == [404] * len(paths)
    assert all(reply.json()["error"]["code"] == "not_found" for reply in replies)


async def test_ready_when_nothing_is_wrong(start: Start) -> None:
    world = await start()

    async with httpx.AsyncClient(base_url=world.url) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_not_ready_says_why_while_healthy(start: Start) -> None:
    world = await start()
    world.readiness.found = ["PostgreSQL is down"]

    async with httpx.AsyncClient(base_url=world.url) as client:
        reply = await client.get("/readyz")
        assert (await client.get("/healthz")).status_code == 200

    assert (reply.status_code, reply.json()["reasons"]) == (503, ["PostgreSQL is down"])
    assert int(reply.headers["retry-after"]) > 0


async def test_a_check_that_hangs_is_a_reason(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "READY_TIMEOUT_S", 0.05)
    world = await start()
    hanging = asyncio.Event()
    world.readiness.reasons = hanging.wait  # type: ignore[method-assign, assignment]

    async with httpx.AsyncClient(base_url=world.url) as client:
        reply = await client.get("/readyz")

    assert (reply.status_code, len(reply.json()["reasons"])) == (503, 1)
