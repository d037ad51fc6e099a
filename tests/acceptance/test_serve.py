"""The process: it drains on SIGTERM, cuts off on the second one, and says when its address is taken (row F12)."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from orchestrator.api import serve
from orchestrator.errors import LaunchError
from tests.acceptance.conftest import QUESTION, Start, end

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def serving(seconds: float) -> AsyncIterator[tuple[asyncio.subprocess.Process, openai.AsyncOpenAI]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.acceptance.server_of_fakes", str(seconds), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    url = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    try:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_running_streams_end_and_the_exit_is_clean() -> None:
    async with serving(2) as (process, client):
        streams = [await _begin(client) for _ in range(10)]

        process.send_signal(signal.SIGTERM)

        reasons = await asyncio.gather(*(_finish(stream) for stream in streams))
        assert reasons == ["stop"] * 10
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_new_calls_are_refused_while_it_drains() -> None:
    async with serving(2) as (process, client):
        stream = await _begin(client)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)

        with pytest.raises(openai.APIConnectionError):
            await client.with_options(timeout=5).models.list(extra_headers={"Connection": "close"})

        assert await _finish(stream) == "stop"


async def test_second_signal_ends_streams_with_an_error_event() -> None:
    async with serving(60) as (process, client):
        stream = await _begin(client)

        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)

        with pytest.raises(openai.APIError) as caught:
            await asyncio.wait_for(_finish(stream), 20)  # sooner than the drain ends by itself
        assert caught.value.code == "engine_unavailable"
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_no_answer_outlives_the_server(start: Start) -> None:
    world = await start(['{"answerable": true, "citations": [1], "answer": "25', asyncio.Event()])
    stream = await _begin(world.official)

    await end(world.server)

    assert world.engine.cancelled == 1
    assert world.ledger.payloads("outcome")[0]["outcome"] == "cancelled"
    with pytest.raises(openai.APIError):
        await _finish(stream)


async def test_address_that_is_taken_is_named(start: Start) -> None:
    world = await start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(LaunchError, match=f"127.0.0.1:{port}"):
            await serve(world.orchestrator, "127.0.0.1", port)


async def _begin(client: openai.AsyncOpenAI) -> Any:
    stream = await client.chat.completions.create(
        model="orchestrator", stream=True, messages=[{"role": "user", "content": QUESTION}]
    )
    await anext(aiter(stream))
    return stream


async def _finish(stream: Any) -> str | None:
    last = None
    async for chunk in stream:
        last = chunk.choices[0].finish_reason
    return last
