"""Many adapters on one engine over real HTTP and a real registry: who answers, who makes room, and what a cut-over costs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator import serving as module
from orchestrator.behaviour.audit import Actor
from orchestrator.behaviour.preflight import WEIGHTS
from orchestrator.behaviour.registry import Registry
from orchestrator.database import Database
from orchestrator.engine import VllmEngine
from orchestrator.errors import AdapterUnavailableError
from orchestrator.pipeline import Served
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.serving import EngineServing
from orchestrator.settings import Settings
from orchestrator.types import Adapter, Completion, Generation, Message

from .test_registry import make_adapter
from .vllm_double import BASE, Double, run_double, until, weights_digest

CATALOGUE = load_catalogue(folder("prompts"))
MESSAGES = (Message("user", "Who are you?"),)


@pytest_asyncio.fixture
async def double() -> AsyncIterator[Double]:
    async with run_double() as running:
        yield running


@pytest.fixture
def settings(double: Double, tmp_path: Path) -> Settings:
    return Settings.from_env({}, home=tmp_path / "home", engine_url=double.url, adapter_wait_s=20.0)


@pytest.fixture
def registry(database: Database, settings: Settings) -> Registry:
    return Registry(database, settings, Actor("test"))


@pytest_asyncio.fixture
async def serving(
    settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EngineServing]:
    async def prove(engine: VllmEngine, adapter: Adapter, base: str | None) -> None:
        """The double's own fingerprint stands for the eight prompts of tests/unit/test_probe.py."""
        assert await ask(Served(engine, adapter.served_name)) == weights_digest(adapter.path)

    monkeypatch.setattr(module, "prove_active", prove)
    async with EngineServing.open(settings, CATALOGUE, registry) as opened:
        yield opened


async def ask(served: Served) -> str:
    async for piece in served.engine.stream(Generation(served.model, MESSAGES, 8)):
        if isinstance(piece, Completion):
            return piece.text
    raise AssertionError("no completion")


async def add(registry: Registry, where: Path, seed: int, name: str = "cited-answer") -> Adapter:
    adapter = await registry.register(make_adapter(where / f"{name}-{seed}", seed, name=name))
    return await registry.promote(adapter.served_name, override="test")


@pytest_asyncio.fixture
async def sixteen(registry: Registry, tmp_path: Path) -> list[Adapter]:
    return [await add(registry, tmp_path, seed, f"form-{seed}") for seed in range(16)]


async def test_sixteen_adapters_answer_for_themselves_through_four_slots(
    serving: EngineServing, double: Double, sixteen: list[Adapter]
) -> None:
    """480 answers, 24 at once, mixed with the base: none is of another adapter's weights, and never more than four are there."""
    chance = random.Random(1)
    order = [*sixteen * 30, *[None] * 60]
    chance.shuffle(order)
    limit = asyncio.Semaphore(24)
    wrong = []

    async def one(adapter: Adapter | None) -> None:
        async with limit:
            text = await ask(await serving.resolve(adapter.name if adapter else None))
            if text != (weights_digest(adapter.path) if adapter else BASE):
                wrong.append((adapter, text))

    await asyncio.gather(*(one(adapter) for adapter in order))

    assert wrong == []
    assert double.most <= 4
    assert double.busiest > 4
    assert {body["lora_name"] for body in double.loads} == {adapter.served_name for adapter in sixteen}
    assert all(body.keys() == {"lora_name", "lora_path"} for body in double.loads)  # never load_inplace


async def test_the_least_used_one_makes_room(serving: EngineServing, double: Double, sixteen: list[Adapter]) -> None:
    for number in (0, 1, 2, 3, 0, 1, 3):
        await ask(await serving.resolve(sixteen[number].name))

    await ask(await serving.resolve(sixteen[9].name))

    assert double.unloads == [sixteen[2].served_name]
    assert set(double.loaded) == {sixteen[number].served_name for number in (0, 1, 3, 9)}


async def test_one_that_answers_is_never_taken_out_and_the_wait_is_bounded(
    settings: Settings, registry: Registry, serving: EngineServing, double: Double, sixteen: list[Adapter]
) -> None:
    for adapter in sixteen[:4]:
        await serving.resolve(adapter.name)
    double.gate = asyncio.Event()
    answers = [asyncio.create_task(ask(await serving.resolve(adapter.name))) for adapter in sixteen[:4]]
    await until(lambda: double.running == 4)
    serving._residents[double.url]._wait_s = 0.2

    with pytest.raises(AdapterUnavailableError, match="ADAPTER_SLOTS") as caught:
        await asyncio.wait_for(serving.resolve(sixteen[5].name), 30)

    assert (caught.value.http_status, caught.value.retry_after_s) == (503, 30)
    assert double.unloads == []
    double.gate.set()
    assert await asyncio.gather(*answers) == [weights_digest(adapter.path) for adapter in sixteen[:4]]


async def test_who_waits_gets_the_slot_that_is_freed(
    serving: EngineServing, double: Double, sixteen: list[Adapter]
) -> None:
    for adapter in sixteen[:4]:
        await serving.resolve(adapter.name)
    double.gate = asyncio.Event()
    answers = [asyncio.create_task(ask(await serving.resolve(adapter.name))) for adapter in sixteen[:4]]
    await until(lambda: double.running == 4)
    waiting = asyncio.create_task(serving.resolve(sixteen[5].name))
    await asyncio.sleep(0.05)
    assert not waiting.done()

    double.gate.set()

    assert await ask(await waiting) == weights_digest(sixteen[5].path)
    await asyncio.gather(*answers)


async def test_who_leaves_while_his_adapter_is_loaded_leaves_nothing_half(
    serving: EngineServing, double: Double, sixteen: list[Adapter]
) -> None:
    double.load_s = 0.1
    leaving = asyncio.create_task(serving.resolve(sixteen[0].name))
    await until(lambda: bool(double.loads))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    assert await ask(await serving.resolve(sixteen[0].name)) == weights_digest(sixteen[0].path)
    assert len(double.loads) <= 2


async def test_an_engine_that_lost_its_adapters_gets_them_back_and_never_answers_as_the_base(
    serving: EngineServing, double: Double, sixteen: list[Adapter]
) -> None:
    """Row D7, in the middle of traffic: the engine forgets everything between two questions."""
    served = await serving.resolve(sixteen[0].name)
    double.loaded.clear()

    assert await ask(served) == weights_digest(sixteen[0].path)


async def test_an_adapter_of_somebody_else_is_left_alone(
    serving: EngineServing, double: Double, sixteen: list[Adapter]
) -> None:
    double.loaded["preloaded-by-the-operator"] = "x"

    for adapter in sixteen[:6]:
        await ask(await serving.resolve(adapter.name))

    assert "preloaded-by-the-operator" in double.loaded


async def test_a_swapped_file_is_not_loaded(serving: EngineServing, double: Double, sixteen: list[Adapter]) -> None:
    """Row D2: what lies in the registry's folder is compared with the digest each time before an engine reads it."""
    file = sixteen[0].path / WEIGHTS
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(AdapterUnavailableError, match="were changed after it was registered"):
        await serving.resolve(sixteen[0].name)

    assert double.loads == []
    assert await ask(await serving.resolve(sixteen[1].name)) == weights_digest(sixteen[1].path)


async def test_a_file_swapped_while_it_is_loaded_is_taken_out_again(
    serving: EngineServing, double: Double, sixteen: list[Adapter]
) -> None:
    double.load_s = 0.1
    resolving = asyncio.create_task(serving.resolve(sixteen[0].name))
    await until(lambda: bool(double.loads))
    (sixteen[0].path / WEIGHTS).chmod(0o644)
    (sixteen[0].path / WEIGHTS).write_bytes(b"other weights")

    with pytest.raises(AdapterUnavailableError, match="were changed after it was registered"):
        await resolving

    assert double.loaded == {}


# cut-over


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_cut_over_drops_no_answer_and_the_old_one_gives_none_after_it(
    settings: Settings, registry: Registry, serving: EngineServing, double: Double, tmp_path: Path, slots: int
) -> None:
    """Row D3: 16 askers, three promotions and two rollbacks under them. Each answer is of the adapter that was in service
    when it was asked or came into service before it ended; after the last cut-over none is of another."""
    serving._settings = replace(settings, adapter_slots=slots)
    first = await add(registry, tmp_path, 1)
    second = await registry.register(make_adapter(tmp_path / "second", 2))
    digests = {weights_digest(adapter.path): adapter.digest for adapter in (first, second)}
    stop, answers = asyncio.Event(), []

    async def keep_asking() -> None:
        while not stop.is_set():
            served = await serving.resolve("cited-answer", "key")
            assert served.adapter is not None
            answers.append((served.adapter.digest, digests[await ask(served)]))

    askers = [asyncio.create_task(keep_asking()) for _ in range(16)]
    for step in ("promote", "rollback", "promote", "rollback", "promote"):
        enough = len(answers) + 60
        await until(lambda: len(answers) >= enough or any(asker.done() for asker in askers))  # noqa: B023
        assert not any(asker.done() for asker in askers), "an answer was dropped"
        if step == "promote":
            await registry.promote(second.served_name, override="test")
        else:
            await registry.rollback("cited-answer")
    last = len(answers)
    await until(lambda: len(answers) >= last + 100)
    stop.set()
    await asyncio.gather(*askers)  # raises what an asker met

    assert all(wanted == got for wanted, got in answers)
    assert {got for _, got in answers} == {first.digest, second.digest}
    assert {got for _, got in answers[last + 16 :]} == {second.digest}
    assert double.most <= slots


async def test_a_rollback_is_seen_by_the_next_question_without_a_load(
    registry: Registry, serving: EngineServing, double: Double, tmp_path: Path
) -> None:
    first, second = await add(registry, tmp_path, 1), await registry.register(make_adapter(tmp_path / "s", 2))
    await ask(await serving.resolve("cited-answer"))
    await registry.promote(second.served_name, override="test")
    await ask(await serving.resolve("cited-answer"))
    loads = len(double.loads)

    await registry.rollback("cited-answer")

    assert await ask(await serving.resolve("cited-answer")) == weights_digest(first.path)
    assert len(double.loads) == loads
