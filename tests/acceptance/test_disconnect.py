"""A client that goes away stops its generation, streamed or not; a slow reader is not buffered for (rows F5, A10)."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from orchestrator.api import stream as api_stream
from tests.acceptance.conftest import Start, World, until

OPENING = '{"answerable": true, "citations": [1], "answer": "25'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("opening", [(), (OPENING,)], ids=["before the first token", "after it"])
async def test_client_that_goes_away_cancels_the_generation(
    start: Start, stream: bool, opening: tuple[str, ...]
) -> None:
    world = await start([*opening, asyncio.Event()])
    task = asyncio.create_task(_read(world, stream))
    await until(lambda: len(world.engine.received) == 1)

    task.cancel()

    await until(lambda: world.engine.cancelled == 1)
    await until(lambda: len(world.ledger.payloads("outcome")) == 1)
    assert world.ledger.payloads("outcome")[0]["outcome"] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
async def test_fifty_clients_that_time_out_leave_nothing_running(start: Start, stream: bool) -> None:
    world = await start([OPENING, asyncio.Event()])

    ends = await asyncio.gather(*(_read(world, stream, timeout=1.0) for _ in range(50)), return_exceptions=True)

    assert [type(end) for end in ends] == [openai.APITimeoutError] * 50
    await until(lambda: world.engine.cancelled == 50)
    outcomes = [payload["outcome"] for payload in world.ledger.payloads("outcome")]
    assert outcomes == ["cancelled"] * 50


async def test_client_that_closes_its_stream_cancels_the_generation(start: Start) -> None:
    world = await start([OPENING, " days", asyncio.Event()])
    reply = await world.ask(stream=True)
    await anext(aiter(reply))

    await reply.close()

    await until(lambda: world.engine.cancelled == 1)


async def test_client_that_goes_away_during_the_embedding_cancels_it(start: Start) -> None:
    world = await start()
    ended: list[str] = []

    async def embed(texts: object) -> list[list[float]]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return []

    world.orchestrator.embedder.embed = embed  # type: ignore[method-assign]

    with pytest.raises(openai.APITimeoutError):
        async with world.client(timeout=0.5) as client:
            await client.embeddings.create(model=world.orchestrator.embedding_model, input="x")

    await until(lambda: ended == ["cancelled"])


async def test_slow_reader_holds_the_generation_back_and_is_cut_off(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_stream, "WRITE_TIMEOUT_S", 0.5)
    taken: list[int] = []

    class Counted(list[str]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield OPENING
            for number in range(10_000):
                taken.append(number)
                yield "a" * 20_000

    world = await start(Counted())
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1024)
    body = b'{"model":"orchestrator","stream":true,"messages":[{"role":"user","content":"How many days of leave do I get?"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)

    await until(lambda: world.engine.cancelled == 1, steps=2000)

    assert len(taken) < 1000  # 20 kB each: what the kernel's own buffers take, and no more
    writer.close()
    assert reader is not None


async def _read(world: World, stream: bool, **options: Any) -> None:
    reply = await world.ask(stream=stream, **options)
    async for _ in reply:
        pass
