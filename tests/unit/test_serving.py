"""Who answers: an adapter is proven once for each process of the engine, and never stands in for another."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import serving as module
from orchestrator.errors import AdapterUnavailableError
from orchestrator.launch.service import Service
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.serving import EngineServing
from orchestrator.settings import Settings
from orchestrator.types import Adapter

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

    def up(self, settings: Settings, *, adapters: list[Adapter], **_: Any) -> list[Service]:
        self.ups.append([adapter.served_name for adapter in adapters])
        self.services = [READY]
        return self.services

    async def prove(self, *_: Any) -> None:
        self.proofs += 1
        if self.refuse:
            raise AdapterUnavailableError("it answers like the base")

    async def get(self, name: str) -> Adapter:
        return next(adapter for adapter in self.adapters if name in (adapter.name, adapter.served_name))

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

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(module, "VllmEngine", Engine)
    monkeypatch.setattr(module, "prove_active", world.prove)
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
