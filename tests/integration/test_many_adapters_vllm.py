"""The real vLLM with more adapters than slots: under mixed traffic each answer is of the adapter that was asked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.behaviour.preflight import CONFIG, WEIGHTS, digest_files
from orchestrator.engine import VllmEngine
from orchestrator.launch import supervisor
from orchestrator.resident import ResidentEngine, Residents
from orchestrator.types import Adapter, Completion, Generation, Message

from .test_launch_vllm import write_adapter

pytestmark = pytest.mark.vllm

ADAPTERS, SLOTS, QUESTIONS = 6, 3, 36
MESSAGES = (Message("system", "Be brief."), Message("user", "What is the capital of France?"))


@pytest_asyncio.fixture
async def engine(stack: dict[str, str]) -> AsyncIterator[VllmEngine]:
    service = next(s for s in supervisor.status(Path(stack["ORCHESTRATOR_HOME"])) if s.name == "engine")
    assert service.url is not None
    opened = VllmEngine(service.url, token_timeout_s=120, request_timeout_s=400)
    before = await opened.models()
    yield opened
    for name in set(await opened.models()) - set(before):
        await opened.unload_adapter(name)
    await opened.aclose()


@pytest.fixture
def adapters(models_dir: Path, tmp_path: Path) -> list[Adapter]:
    """Random ones, strong enough to be heard."""
    made = []
    for seed in range(ADAPTERS):
        folder = Path(write_adapter(tmp_path / f"{seed}", models_dir / "smollm2-135m-instruct", seed))
        digest = digest_files({name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG)})
        made.append(Adapter(f"random-{seed}", digest, folder, "base", 4, "p", "d", "c", "d"))
    return made


async def ask(engine: VllmEngine | ResidentEngine, model: str) -> str:
    async for piece in engine.stream(Generation(model, MESSAGES, 16)):
        if isinstance(piece, Completion):
            return piece.text
    raise AssertionError("no completion")


async def test_no_answer_is_of_another_adapter(engine: VllmEngine, adapters: list[Adapter]) -> None:
    """36 questions, 8 at once, six adapters and the base on three free slots."""
    kept = [name for name in await engine.models() if "--" in name]
    residents = Residents(engine, SLOTS + len(kept), 300)
    through = {each.served_name: ResidentEngine(engine, residents, each) for each in adapters}
    alone = {name: await ask(own, name) for name, own in through.items()} | {"base": await ask(engine, "base")}
    assert len(set(alone.values())) == ADAPTERS + 1
    order = [name for name in alone for _ in range(QUESTIONS // len(alone) + 1)][:QUESTIONS]
    random.Random(3).shuffle(order)
    limit, most = asyncio.Semaphore(8), 0

    async def one(name: str) -> tuple[str, str]:
        nonlocal most
        async with limit:
            text = await ask(through.get(name, engine), name)
            most = max(most, len(residents.loaded))
            return name, text

    answers = await asyncio.gather(*map(one, order))

    assert most <= SLOTS + len(kept)
    # bf16 sums differ with the batch, so a random adapter has two or three texts; but no text is two adapters'.
    by_text: dict[str, set[str]] = {}
    for name, text in [*answers, *alone.items()]:
        by_text.setdefault(text, set()).add(name)
    assert {text: names for text, names in by_text.items() if len(names) > 1} == {}
    assert len(by_text) < len(answers)
