"""Every example runs: over fakes always, over the real stack where the model is."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.app import Orchestrator
from orchestrator.testing import MemoryLedger, ScriptedEngine
from tests.acceptance.conftest import GROUNDED, GROUNDED_TEXT, LEAVE, Start, build

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Whoever opens an Orchestrator gets one over fakes. The folders that were to be ingested."""
    ingested: list[Path] = []

    @asynccontextmanager
    async def open_fake(*args: Any, **options: Any) -> AsyncIterator[Orchestrator]:
        orchestrator, _ = await build(ScriptedEngine(GROUNDED), MemoryLedger())
        yield orchestrator

    async def ingest(self: Orchestrator, path: Path) -> None:
        ingested.append(path)

    monkeypatch.setattr(Orchestrator, "open", open_fake)
    monkeypatch.setattr(Orchestrator, "ingest", ingest)
    return ingested


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_examples_are_short(program: Path) -> None:
    assert len(program.read_text().splitlines()) < 60


async def test_ask(fakes: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    await load("ask").main()

    out = capsys.readouterr().out
    assert out.startswith(GROUNDED_TEXT)
    assert LEAVE in out
    assert [path.name for path in fakes] == ["handbook"]


async def test_stream(fakes: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    await load("stream").main()

    assert re.search(rf"^\(grounded: .*\)\n{re.escape(GROUNDED_TEXT)}\n1 citations", capsys.readouterr().out)


def test_langchain_retriever(fakes: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain_core")

    load("langchain_retriever").main()

    out = capsys.readouterr().out
    assert out.count(GROUNDED_TEXT) == 2
    assert out.count("doc-1.md") == 2


def test_starlette_service(fakes: list[Path]) -> None:
    with TestClient(load("starlette_service").app) as client:
        leave = client.get("/leave?years=3").json()
        models = client.get("/ai/v1/models").json()

    assert leave == {"answer": GROUNDED_TEXT, "sources": ["doc-1.md"]}
    assert models["data"][0]["id"] == "orchestrator"


async def test_openai_client(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    world = await start()

    await asyncio.to_thread(load("openai_client").main, f"{world.url}/v1")

    out = capsys.readouterr().out
    assert out.count(GROUNDED_TEXT) == 2
    assert "/v1/documents/doc-1/versions/1#char=" in out
    assert "64 numbers" in out


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["ask", "stream", "langchain_retriever"])
def test_example_answers_from_the_handbook(stack: dict[str, str], name: str) -> None:
    run = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], env=stack, capture_output=True, text=True, timeout=300, check=False
    )

    assert run.returncode == 0, run.stderr
    assert "annual-leave" in run.stdout or "travel" in run.stdout or "citations" in run.stdout
