"""The server over the real stack: a cited answer whose link resolves, and a client that goes away stops vLLM (row F5)."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from tests.acceptance.conftest import end

pytestmark = pytest.mark.vllm
PROGRAM = [sys.executable, "-m", "orchestrator"]
NOTE = Path(__file__).parents[2] / "examples" / "handbook" / "annual-leave.md"
LONG = "Rewrite this text politely and at length: " + "send me the file now, I need it for the report. " * 8


@pytest.fixture(scope="module")
def corpus(stack: dict[str, str]) -> dict[str, str]:
    """The stack, with one document in it."""
    subprocess.run([*PROGRAM, "ingest", str(NOTE)], env=stack, check=True, capture_output=True, timeout=120)
    return stack


@pytest.fixture
async def client(corpus: dict[str, str]) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client of `orchestrator serve`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = await asyncio.create_subprocess_exec(*PROGRAM, "serve", "--port", port, env=corpus)
    try:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=60
        ) as official:
            await official.models.list()  # its retries wait for the start
            yield official.with_options(max_retries=0)
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_cited_answer_links_to_what_it_quotes(client: openai.AsyncOpenAI) -> None:
    reply: Any = await client.chat.completions.create(
        model="orchestrator/grounded",
        messages=[{"role": "user", "content": "How many days of annual leave do full-time employees receive?"}],
    )

    url, _, span = reply.choices[0].message.annotations[0].url_citation.url.partition("#char=")
    start, stop = (int(number) for number in span.split(","))
    async with httpx.AsyncClient() as web:
        text = (await web.get(url)).text
    assert text[start:stop] == reply.orchestrator["citations"][0]["quote"]
    assert "28" in reply.choices[0].message.content


@pytest.mark.parametrize("route", ["card", "brief", "triage", "extract"])
async def test_every_form_is_kept_by_the_base_under_its_constraint(client: openai.AsyncOpenAI, route: str) -> None:
    reply: Any = await client.chat.completions.create(
        model=f"orchestrator/{route}",
        messages=[{"role": "user", "content": "How many days of annual leave are there?"}],
    )

    own = reply.orchestrator
    contract = load_catalogue(folder("prompts")).contract(own["plan"]["contract"])
    assert contract.parse_output(contract.dump(own["data"])) == own["data"]
    assert reply.choices[0].message.content == contract.render(own["data"])
    assert own["model"] == "base"


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_goes_away_stops_the_model(
    client: openai.AsyncOpenAI, stack: dict[str, str], stream: bool
) -> None:
    engines = _engines(stack)
    asking: asyncio.Task[Any] = asyncio.create_task(_read(client, stream))
    await _until_running(engines, 1)

    await end(asking)

    await _until_running(engines, 0)


def _engines(stack: dict[str, str]) -> list[str]:
    status = subprocess.run([*PROGRAM, "status", "--json"], env=stack, check=True, capture_output=True, timeout=60)
    return [service["url"] for service in json.loads(status.stdout)["services"] if service["name"] != "postgres"]


async def _until_running(engines: list[str], wanted: int) -> None:
    """Waits until vLLM itself counts so many requests (about ten seconds, then the test fails)."""
    async with httpx.AsyncClient() as web:
        for _ in range(200):
            pages = [(await web.get(f"{engine}/metrics")).text for engine in engines]
            counts = re.findall(r"^vllm:num_requests_running\{[^}]*\} (\S+)", "".join(pages), re.MULTILINE)
            if sum(float(count) for count in counts) == wanted:
                return
            await asyncio.sleep(0.05)
    raise AssertionError(f"vLLM never counted {wanted} running requests")


async def _read(client: openai.AsyncOpenAI, stream: bool) -> None:
    reply: Any = await client.chat.completions.create(
        model="orchestrator/direct", stream=stream, messages=[{"role": "user", "content": LONG}]
    )
    async for _ in reply:
        pass
