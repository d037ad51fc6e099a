"""The real vLLM under its supervisor: constrained answers, adapters at run time, streams that stop, kill -9."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import pytest

from orchestrator.engine import VllmEngine
from orchestrator.launch import supervisor
from orchestrator.launch.service import Service
from orchestrator.launch.vllm import on_cpu
from orchestrator.types import Completion, Generation, Message

pytestmark = pytest.mark.vllm

QUESTION = (Message("system", "Be brief."), Message("user", "What is the capital of France?"))
LONG = (Message("user", "Count from one to a thousand in words."),)
SLOTS = 4
DEADLINE_S = 240


@pytest.fixture
def home(stack: dict[str, str]) -> Path:
    return Path(stack["ORCHESTRATOR_HOME"])


def service(home: Path) -> Service:
    return next(s for s in supervisor.status(home) if s.name == "engine")


@pytest.fixture
async def engine(home: Path) -> AsyncIterator[VllmEngine]:
    url = service(home).url
    assert url is not None
    engine = VllmEngine(url, request_timeout_s=DEADLINE_S)
    yield engine
    await engine.aclose()


async def answer(engine: VllmEngine, model: str = "base", **options: object) -> Completion:
    generation = Generation(model, QUESTION, 24, **options)  # type: ignore[arg-type]
    pieces = [piece async for piece in engine.stream(generation)]
    assert isinstance(pieces[-1], Completion)
    return pieces[-1]


def write_adapter(folder: Path, base: Path, seed: int) -> str:
    """A LoRA of rank 4 on every q_proj, strong enough to be heard."""
    from safetensors.numpy import save_file

    config = json.loads((base / "config.json").read_text())
    width, random = config["hidden_size"], np.random.default_rng(seed)
    factors = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors[f"{name}.lora_A.weight"] = random.normal(0, 0.2, (4, width)).astype(np.float32)
        factors[f"{name}.lora_B.weight"] = random.normal(0, 0.2, (width, 4)).astype(np.float32)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    return str(folder)


async def test_a_constrained_answer_keeps_its_schema_without_blanks(engine: VllmEngine) -> None:
    flags = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}
    schema = {"type": "object", "properties": {"a": flags}, "required": ["a"], "additionalProperties": False}

    found = await answer(engine, schema=schema)

    assert 2 <= len(json.loads(found.text)["a"]) <= 3
    assert " " not in found.text


async def test_tokens_are_counted_as_the_server_renders_them(engine: VllmEngine) -> None:
    counted = await engine.count_tokens([{"role": m.role, "content": m.content} for m in QUESTION], "base")

    assert counted == (await answer(engine)).usage.prompt_tokens


async def test_adapters_answer_for_themselves_and_leave_the_base_alone(
    engine: VllmEngine, models_dir: Path, tmp_path: Path
) -> None:
    """With every slot in use, vLLM's own arithmetic gives the last adapter to base requests of the same batch."""
    alone = (await answer(engine)).text
    names = [f"random{seed}--{seed:012d}" for seed in range(SLOTS)]
    for seed, name in enumerate(names):
        await engine.load_adapter(name, write_adapter(tmp_path / name, models_dir / "smollm2-135m-instruct", seed))
    found = [(await answer(engine, name)).text for name in names]

    async with aclosing(engine.stream(Generation(names[0], LONG, 2000, temperature=1.0))) as stream:
        await anext(stream)  # an adapter is at work in every batch from here on
        together = (await answer(engine)).text
    for name in names:
        await engine.unload_adapter(name)

    assert together == alone
    assert len({alone, *found}) == SLOTS + 1


async def test_leaving_a_stream_stops_the_generation(engine: VllmEngine) -> None:
    async with aclosing(engine.stream(Generation("base", LONG, 2000, temperature=1.0))) as stream:
        await anext(stream)

    async with asyncio.timeout(20), aiohttp.ClientSession() as http:
        while await running(http, engine.url):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def running(http: aiohttp.ClientSession, url: str) -> float:
    async with http.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running"))


async def test_a_killed_vllm_is_back_with_its_adapters(home: Path, engine: VllmEngine) -> None:
    before, served = service(home), await engine.models()
    assert before.pid is not None
    worker = psutil.Process(before.pid).children(recursive=True)[-1]

    worker.kill()

    end = time.monotonic() + DEADLINE_S
    while (now := service(home)).restarts == before.restarts or now.state != "ready":
        assert time.monotonic() < end, now
        await asyncio.sleep(0.2)
    assert now.url == before.url
    assert await engine.models() == served
    assert (await answer(engine)).text


PATIENCE = """
import zmq
from orchestrator.launch import vllm_server
vllm_server._install()
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
context = zmq.Context()
writer, reader = (SpinCondition(is_reader, context, "inproc://pings") for is_reader in (False, True))
print(writer.busy_loop_s, reader.busy_loop_s)
"""


def test_a_scheduler_that_waits_does_not_take_a_core() -> None:
    if not on_cpu():
        pytest.skip("the installed vLLM is not the CPU build")
    done = subprocess.run([sys.executable, "-c", PATIENCE], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.split()[-2:] == ["0", "0.001"]
