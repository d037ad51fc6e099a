"""The public fakes keep their seams and say the same every time."""

import asyncio
import math
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.errors import AdapterUnavailableError, LedgerError, StreamBrokenError
from orchestrator.ledger import intent_record
from orchestrator.protocols import Embedder, Engine, Store
from orchestrator.testing import (
    HashEmbedder,
    MemoryLedger,
    MemoryServing,
    MemoryStore,
    ScriptedEngine,
    WordTokens,
    passage,
)
from orchestrator.types import Adapter, Completion, Generation, Message, Plan, Query, SearchRequest

GENERATION = Generation("base", (Message("user", "hello"),), 10)
ADAPTER = Adapter("cited", "a" * 64, Path("x"), "base", 16, "p", "d", "c", "d")


async def play(engine):
    return [piece async for piece in engine.stream(GENERATION)]


def test_the_fakes_keep_their_protocols():
    assert isinstance(HashEmbedder(), Embedder)
    assert isinstance(ScriptedEngine(["x"]), Engine)
    assert isinstance(MemoryStore(), Store)


async def test_an_embedding_has_unit_length_and_depends_on_the_words_only():
    embedder = HashEmbedder(32)

    first, second, near, empty = await embedder.embed(["Days of leave", "days of LEAVE", "days of rest", ""])

    assert first == second != near
    assert all(math.isclose(sum(value * value for value in vector), 1) for vector in (first, near, empty))
    assert [len(vector) for vector in (first, empty)] == [embedder.dimensions] * 2
    assert embedder.space != HashEmbedder(64).space


async def test_the_store_finds_what_shares_words_and_is_valid():
    old = passage(1, "leave is 20 days", valid_to=datetime(2025, 1, 1, tzinfo=UTC))
    new = passage(2, "leave is 25 days", valid_from=datetime(2025, 1, 1, tzinfo=UTC))
    store = MemoryStore({"default": [passage(3, "parking"), old, new]})

    now = await store.search(SearchRequest("leave days", [], collection="default", k=5))
    before = await store.search(
        SearchRequest("leave days", [], collection="default", k=1, as_of=datetime(2024, 6, 1, tzinfo=UTC))
    )

    assert [found.chunk_id for found in now] == [2, 3]
    assert [found.chunk_id for found in before] == [1]
    assert (await store.search(SearchRequest("leave", [], collection="other", k=5))).passages == ()


async def test_the_engine_plays_its_scripts_in_order_and_repeats_the_last():
    engine = ScriptedEngine(["a", "b"], ["c"])

    played = [await play(engine) for _ in range(3)]

    assert [pieces[:-1] for pieces in played] == [["a", "b"], ["c"], ["c"]]
    assert [pieces[-1].text for pieces in played] == ["ab", "c", "c"]
    assert engine.received == [GENERATION] * 3


async def test_the_engine_can_be_cut_off_fail_and_wait():
    gate = asyncio.Event()
    engine = ScriptedEngine(["a", StreamBrokenError("gone")], ["a", gate, "b"], truncated=True)

    with pytest.raises(StreamBrokenError):
        await play(engine)
    async with aclosing(engine.stream(GENERATION)) as pieces:
        assert await anext(pieces) == "a"
        gate.set()
        assert [piece async for piece in pieces] == ["b"]

    assert (engine.closed, engine.cancelled) == (2, 0)


async def test_the_engine_counts_who_left_early():
    engine = ScriptedEngine(["a", "b"])
    async with aclosing(engine.stream(GENERATION)) as pieces:
        await anext(pieces)

    assert (engine.closed, engine.cancelled) == (1, 1)


async def test_a_completion_of_ones_own_ends_the_script():
    own = Completion("other", "length", "base")

    assert await play(ScriptedEngine(["a", own, "b"])) == ["a", own]


async def test_the_engine_knows_its_adapters():
    engine = ScriptedEngine(["x"])

    await engine.load_adapter("one", "/a")
    await engine.load_adapter("one", "/b")
    await engine.load_adapter("two", "/c")
    await engine.unload_adapter("two")
    await engine.unload_adapter("three")

    assert await engine.models() == ["base", "one"]
    assert engine.loaded == {"one": "/a"}
    assert await engine.is_ready()
    assert await engine.count_tokens([{"role": "user", "content": "two words"}], "base") == 6


async def test_serving_knows_its_adapters():
    serving = MemoryServing(ScriptedEngine(["x"]), {"cited": ADAPTER})

    assert (await serving.resolve(None)).model == "base"
    assert (await serving.resolve("cited")).model == ADAPTER.served_name
    with pytest.raises(AdapterUnavailableError, match="other"):
        await serving.resolve("other")
    serving.forget("cited")
    assert serving.forgotten == ["cited"]


async def test_the_ledger_keeps_or_refuses():
    record = intent_record(Query("hello"), Plan("answer", "direct", "because"))
    kept, refusing = MemoryLedger(), MemoryLedger(fail_on="intent")

    await kept.write(record)
    await kept.flush()
    refusing.put(record)
    with pytest.raises(LedgerError):
        await refusing.write(record)

    assert kept.records == [record]
    assert kept.payloads("intent")[0]["question"] == "hello"
    assert refusing.records == []


def test_words_and_marks_are_counted():
    assert WordTokens().count("Two words, one mark.") == 6
