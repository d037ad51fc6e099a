"""Who answers: an adapter is proven once for each process of the engine, and never stands in for another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import resident
from orchestrator import serving as module
from orchestrator.behaviour.canary import CanaryState, Signs
from orchestrator.behaviour.registry import InService
from orchestrator.errors import AdapterUnavailableError
from orchestrator.launch.service import Service
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.serving import EngineServing
from orchestrator.settings import Settings
from orchestrator.types import Adapter, Completion, Generation

CATALOGUE = load_catalogue(folder("prompts"))
ADAPTER = Adapter(
    name="cited-answer",
    digest="ab" * 32,
    path=Path("x"),
    base="b",
    rank=2,
    prompt="grounded",
    prompt_digest=CATALOGUE.prompt("grounded").digest,
    contract="cited_answer",
    contract_digest=CATALOGUE.contract("cited_answer").digest,
    state="active",
)
CANARY = replace(ADAPTER, digest="cd" * 32, state="canary")
READY = Service("engine", "ready", pid=1, url="http://e", since=datetime(2026, 1, 1, tzinfo=UTC), model="base")


class World:
    """An engine, its supervisor and a registry that remember what was asked of them."""

    def __init__(self) -> None:
        self.services = [READY]
        self.adapters = [ADAPTER]
        self.loaded: list[str] = []
        self.ups: list[list[str]] = []
        self.proofs = 0
        self.refuse = False
        self.broken: set[str] = set()
        self.canary: Adapter | None = None
        self.ended: list[tuple[int, str, str]] = []
        self.merging = threading.Event()
        self.merging.set()

    def up(self, settings: Settings, *, adapters: list[Adapter], merged: Adapter | None, **_: Any) -> list[Service]:
        self.ups.append([adapter.served_name for adapter in adapters])
        self.services = [READY]
        if merged is not None and settings.adapter_serving == "merged":
            self.merging.wait(30)
            self.services = [READY, replace(READY, name="merged", pid=9, url="http://m", model=merged.served_name)]
        return self.services

    async def prove(self, engine: Any, adapter: Adapter, base: str | None) -> None:
        self.proofs += 1
        async for _ in engine.stream(Generation(adapter.served_name, (), 1)):
            pass
        if self.refuse or adapter.served_name in self.broken:
            raise AdapterUnavailableError("it answers like the base")

    async def in_service(self, name: str) -> InService:
        return InService(await self.find(name), self.canary, 7, 0.5)

    async def find(self, name: str) -> Adapter:
        return next(adapter for adapter in self.adapters if name in (adapter.name, adapter.served_name))

    async def running_canary(self, name: str) -> CanaryState:
        return CanaryState(7, name, CANARY.digest, ADAPTER.digest, 0.5, READY.since, None, None, None)  # type: ignore[arg-type]

    async def end_canary(self, canary: CanaryState, ended: str, reason: str) -> None:
        self.ended.append((canary.id, ended, reason))

    async def list(self) -> list[Adapter]:
        return self.adapters


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    class Engine:
        def __init__(self, url: str, **_: Any) -> None:
            self.url = url

        async def models(self) -> list[str]:
            return ["base", *world.loaded]

        async def load_adapter(self, name: str, path: str) -> None:
            world.loaded.append(name)

        async def unload_adapter(self, name: str) -> None:
            world.loaded.remove(name)

        async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
            if self.url != "http://m" and generation.model not in await self.models():
                raise AdapterUnavailableError("404")
            yield Completion(generation.model, "stop", generation.model)

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(module, "VllmEngine", Engine)
    monkeypatch.setattr(module, "prove_active", world.prove)
    for user in (module, resident):  # tests/integration/test_many_adapters.py has real files
        monkeypatch.setattr(user, "check_kept", lambda adapter: None)
    monkeypatch.setattr(module, "supervisor", SimpleNamespace(up=world.up, status=lambda home: world.services))
    return world


@pytest.fixture
async def serving(world: World, tmp_path: Path) -> AsyncGenerator[EngineServing]:
    settings = Settings.from_env({}, home=tmp_path)
    async with EngineServing.open(settings, CATALOGUE, world) as opened:  # type: ignore[arg-type]
        yield opened


def another(world: World, serving: EngineServing) -> EngineServing:
    """The serving of another process on the same home."""
    return EngineServing(serving._settings, CATALOGUE, world)  # type: ignore[arg-type]


async def test_an_adapter_is_proven_once_for_one_process_of_the_engine(world: World, serving: EngineServing) -> None:
    for opened in (serving, serving, another(world, serving)):
        assert (await opened.resolve("cited-answer")).model == ADAPTER.served_name
    assert world.proofs == 1


@pytest.mark.parametrize("change", [{"pid": 2}, {"since": datetime(2026, 1, 2, tzinfo=UTC)}])
async def test_a_restarted_engine_is_proven_anew(world: World, serving: EngineServing, change: dict[str, Any]) -> None:
    await serving.resolve("cited-answer")
    world.services = [replace(READY, **change)]
    await another(world, serving).resolve("cited-answer")
    assert world.proofs == 2


async def test_a_proof_of_one_adapter_is_none_of_another(world: World, serving: EngineServing) -> None:
    await serving.resolve("cited-answer")
    world.adapters = [replace(ADAPTER, digest="cd" * 32)]
    await serving.resolve("cited-answer")
    assert world.proofs == 2


async def test_an_adapter_that_fails_its_probe_never_answers(world: World, serving: EngineServing) -> None:
    world.refuse = True
    for _ in range(2):
        with pytest.raises(AdapterUnavailableError):
            await serving.resolve("cited-answer")
    assert world.proofs == 2


@pytest.mark.parametrize("change", [{"state": "retired"}, {"prompt_digest": "0"}, {"contract_digest": "0"}])
async def test_an_adapter_that_may_not_serve_is_refused(
    world: World, serving: EngineServing, change: dict[str, Any]
) -> None:
    world.adapters = [replace(ADAPTER, **change)]
    with pytest.raises(AdapterUnavailableError):
        await serving.resolve(ADAPTER.served_name)
    assert (world.loaded, world.proofs) == ([], 0)


async def test_an_active_adapter_is_given_to_the_supervisor_and_a_candidate_is_not(
    world: World, serving: EngineServing
) -> None:
    await serving.resolve("cited-answer")
    assert world.ups == [[ADAPTER.served_name]]
    world.adapters = [*world.adapters, replace(ADAPTER, digest="cd" * 32, state="candidate")]
    await serving.resolve("cited-answer--cdcdcdcdcdcd")
    assert len(world.ups) == 1


async def test_a_running_engine_is_used_as_it_is_and_a_stopped_one_is_started(
    world: World, serving: EngineServing
) -> None:
    assert (await serving.resolve(None)).model == "base"
    assert world.ups == []
    world.services = [Service("engine", "stopped")]
    assert (await serving.resolve(None)).model == "base"
    assert len(world.ups) == 1


async def test_what_was_forgotten_is_loaded_and_proven_again(world: World, serving: EngineServing) -> None:
    await serving.resolve("cited-answer")
    world.loaded, world.services = [], [replace(READY, pid=2)]
    serving.forget("cited-answer")
    await serving.resolve("cited-answer")
    assert (world.loaded, world.proofs) == ([ADAPTER.served_name], 2)


# merged into the base


@pytest.fixture
async def merging(world: World, tmp_path: Path) -> AsyncGenerator[EngineServing]:
    """A serving that merges, whose base engine runs and whose merge waits for the test."""
    world.merging.clear()
    settings = Settings.from_env({}, home=tmp_path, adapter_serving="merged")
    async with EngineServing.open(settings, CATALOGUE, world) as opened:  # type: ignore[arg-type]
        yield opened
        world.merging.set()


async def test_until_its_merged_copy_is_proven_the_run_time_adapter_answers(
    world: World, merging: EngineServing
) -> None:
    """A cut-over to a new adapter makes nobody wait for a merge and a second engine's start."""
    first = await merging.resolve("cited-answer")
    assert (first.model, isinstance(first.engine, resident.ResidentEngine)) == (ADAPTER.served_name, True)

    world.merging.set()
    await asyncio.gather(*merging._merging.values())

    second = await merging.resolve("cited-answer")
    assert (second.model, getattr(second.engine, "url", "")) == (ADAPTER.served_name, "http://m")
    assert world.proofs == 2


async def test_a_merged_copy_that_fails_its_probe_never_answers(world: World, merging: EngineServing) -> None:
    await merging.resolve("cited-answer")
    world.refuse = True
    world.merging.set()

    await asyncio.gather(*merging._merging.values())

    assert isinstance((await merging.resolve("cited-answer")).engine, resident.ResidentEngine)


async def test_a_merged_copy_that_runs_already_answers_at_once(world: World, merging: EngineServing) -> None:
    world.services = [READY, replace(READY, name="merged", pid=9, url="http://m", model=ADAPTER.served_name)]
    world.merging.set()

    assert getattr((await merging.resolve("cited-answer")).engine, "url", "") == "http://m"


async def test_times_are_not_compared_where_only_one_arm_is_merged(world: World, merging: EngineServing) -> None:
    world.adapters, world.canary = [ADAPTER, CANARY], CANARY
    world.services = [READY, replace(READY, name="merged", pid=9, url="http://m", model=ADAPTER.served_name)]
    world.merging.set()

    found = [(await merging.resolve("cited-answer", str(number))).trial for number in range(20)]

    assert {trial.arm for trial in found if trial} == {"canary", "active"}
    assert not any(trial.same_engine for trial in found if trial)


# a canary


@pytest.fixture
def canary(world: World) -> Adapter:
    """A canary with half of the conversations, beside the active adapter."""
    world.adapters = [ADAPTER, CANARY]
    world.canary = CANARY
    return CANARY


async def test_conversations_are_divided_and_each_stays_where_it_is(serving: EngineServing, canary: Adapter) -> None:
    keys = [f"conversation {number}" for number in range(40)]

    first = [(await serving.resolve("cited-answer", key)).model for key in keys]

    assert set(first) == {ADAPTER.served_name, canary.served_name}
    assert first == [(await serving.resolve("cited-answer", key)).model for key in keys]


async def test_an_answer_knows_its_arm(serving: EngineServing, canary: Adapter) -> None:
    found = [await serving.resolve("cited-answer", str(number)) for number in range(20)]

    for served in found:
        assert served.trial is not None
        assert (served.trial.arm == "canary") == (served.model == canary.served_name)
        assert served.trial.canary_id == 7


async def test_who_names_no_conversation_or_exactly_one_adapter_is_in_no_trial(
    serving: EngineServing, canary: Adapter, world: World
) -> None:
    assert (await serving.resolve("cited-answer")).model == ADAPTER.served_name
    assert (await serving.resolve("cited-answer")).trial is None
    world.canary = None
    assert (await serving.resolve(canary.served_name, "key")).trial is None


async def test_a_canary_that_cannot_be_served_is_ended_and_the_active_one_answers(
    world: World, serving: EngineServing, canary: Adapter
) -> None:
    world.broken = {canary.served_name}

    found = {(await serving.resolve("cited-answer", str(number))).model for number in range(20)}

    assert found == {ADAPTER.served_name}
    assert {(number, ended) for number, ended, _ in world.ended} == {(7, "rolled_back")}
    assert "answers like the base" in world.ended[0][2]


async def test_outside_of_a_trial_nothing_is_counted(serving: EngineServing) -> None:
    serving.observe(None, Signs(violation=True))
    await serving.observed()
