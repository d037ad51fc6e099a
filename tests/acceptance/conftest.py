"""A real server on loopback over the shipped prompts and fakes for the world, and the unmodified official client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from orchestrator.api import serve
from orchestrator.app import Orchestrator
from orchestrator.errors import UnknownNameError
from orchestrator.knowledge.records import VersionText
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.resources import folder
from orchestrator.router import find_learnt, open_router
from orchestrator.settings import Settings
from orchestrator.testing import (
    HashEmbedder,
    MemoryLedger,
    MemoryServing,
    MemoryStore,
    ScriptedEngine,
    WordTokens,
    passage,
)
from orchestrator.types import Adapter

LEAVE = "Every employee has 25 days of leave a year."
GROUNDED = (
    '{"answerable": true, "citations": [1], ',
    '"answer": "25',
    " days",
    " of",
    f' leave", "evidence": "{LEAVE}"}}',
)
GROUNDED_TEXT = "25 days of leave [1]"
DIRECT = ('{"answer": "Good', " morning", '"}')
QUESTION = "How many days of leave do I get?"


@cache
def shipped_catalogue() -> Catalogue:
    return load_catalogue(folder("prompts"))


class MemoryRegistry:
    """The adapters that are in service."""

    async def list(self) -> list[Adapter]:
        return [ADAPTER]


class LiveDatabase:
    """A database that answers."""

    async def fetch_one(self, sql: str) -> tuple[int]:
        return (1,)


class DocumentStore(MemoryStore):
    """Finds a passage's document again."""

    async def version(self, document_id: str, number: int) -> VersionText:
        for found in self.collections["default"]:
            if (found.document_id, found.version) == (document_id, number):
                return VersionText(
                    document_id, found.external_id, number, found.title, "text/html", "", found.text, None, None, None
                )
        raise UnknownNameError(f"there is no document {document_id!r} with a version {number}", param="document_id")


class Readiness:
    """Reasons that a test may set."""

    def __init__(self) -> None:
        self.found: list[str] = []

    async def reasons(self) -> list[str]:
        return self.found


ADAPTER = Adapter(
    name="cited-answer",
    digest="ab" * 32,
    path=Path("adapter"),
    base="base",
    rank=16,
    prompt="grounded",
    prompt_digest="",
    contract="cited_answer",
    contract_digest="",
    state="active",
)


@dataclass
class World:
    """A running server and everything behind it."""

    url: str
    engine: ScriptedEngine
    ledger: MemoryLedger
    serving: MemoryServing
    readiness: Readiness
    orchestrator: Orchestrator
    server: asyncio.Task[None]

    def __post_init__(self) -> None:
        self.official = self.client()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, api_key: str = "any", **options: Any) -> AsyncOpenAI:
        """The official client, without its own retries."""
        plain = openai.DefaultAsyncHttpxClient(verify=False)  # loads no certificates: 20 ms less for each test
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, http_client=plain, **options)

    async def ask(self, question: str = QUESTION, **options: Any) -> Any:
        """One call through the official client."""
        values = {"model": "orchestrator", "messages": [{"role": "user", "content": question}], **options}
        return await self.official.chat.completions.create(**values)

    async def read(self, into: list[Any], **options: Any) -> None:
        """Reads a stream to its end; what came stays in ``into`` when it breaks."""
        async for chunk in await self.ask(stream=True, **options):
            into.append(chunk)

    async def refusal(self, question: str = QUESTION, **options: Any) -> openai.APIStatusError:
        """The error of a call that must not succeed."""
        with pytest.raises(openai.APIStatusError) as caught:
            await self.ask(question, **options)
        return caught.value


Start = Callable[..., Awaitable[World]]


async def build(engine: ScriptedEngine, ledger: MemoryLedger, **settings: Any) -> tuple[Orchestrator, Readiness]:
    """An Orchestrator over fakes."""
    values = Settings(**settings).resolved()
    catalogue = shipped_catalogue()
    embedder = HashEmbedder()
    store = DocumentStore(
        {"default": [passage(1, LEAVE), passage(2, "Lunch is at noon."), passage(3, "Parking is free.")]}
    )
    serving = MemoryServing(engine, {"cited-answer": ADAPTER})
    learnt = find_learnt(catalogue, folder("prompts"), values.router_file, embedder.space)
    router = await open_router(catalogue, embedder, values.collection, learnt)
    pipeline = Pipeline(values, catalogue, router, embedder, store, serving, ledger, WordTokens())
    readiness = Readiness()
    parts: Any = {"database": LiveDatabase(), "store": store, "registry": MemoryRegistry(), "serving": readiness}
    orchestrator = Orchestrator(values, catalogue, pipeline, embedder, **parts)
    return orchestrator, readiness


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers that end with the test."""
    async with AsyncExitStack() as stack:

        async def begin(
            *scripts: Any, ledger: MemoryLedger | None = None, truncated: bool = False, **settings: Any
        ) -> World:
            engine = ScriptedEngine(*(scripts or (GROUNDED,)), truncated=truncated)
            kept = ledger or MemoryLedger()
            orchestrator, readiness = await build(engine, kept, **settings)
            url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(serve(orchestrator, "127.0.0.1", 0, ready=url.set_result))
            stack.push_async_callback(end, task)
            await asyncio.wait({task, url}, return_when=asyncio.FIRST_COMPLETED)
            world = World(await url, engine, kept, orchestrator.pipeline.serving, readiness, orchestrator, task)  # type: ignore[arg-type]
            stack.push_async_callback(world.official.close)
            return world

        yield begin


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], bool], steps: int = 500) -> None:
    """Waits for a condition; the test fails when it does not come (about five seconds)."""
    for _ in range(steps):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")
