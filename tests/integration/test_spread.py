"""Embedding by several processes: the same vectors, nothing lost when one is killed, none left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator.errors import EngineUnavailableError, InputError
from orchestrator.knowledge.embed import MiniLM
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.spread import PART, Spread, open_indexer
from orchestrator.knowledge.store import PgStore
from orchestrator.launch import weights
from orchestrator.protocols import TokenEmbedder
from orchestrator.settings import Settings
from orchestrator.testing import HashEmbedder
from orchestrator.types import ChunkVectors, Document, QuestionVectors

ROOT = str(Path(__file__).parents[2])

# A worker that dies of some texts, and names itself in its token vectors.
CHILD = f"""
import os, signal, sys, time
sys.path.insert(0, {ROOT!r})
signal.signal(signal.SIGINT, signal.SIG_IGN)
from orchestrator.knowledge.encode import serve
from orchestrator.testing import HashEmbedder
from orchestrator.types import ChunkVectors

class Embedder(HashEmbedder):
    letters_per_piece = (1.0, 2.0)
    async def embed_question(self, text):
        raise NotImplementedError
    async def embed_tokens(self, texts):
        for text in texts:
            if "deadly" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "fatal once" in text:
                try:
                    os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            if "slow" in text:
                time.sleep(0.3)
        return [ChunkVectors(v, str(os.getpid()).encode()) for v in await self.embed(texts)]

serve(Embedder(), sys.stdin.buffer, sys.stdout.buffer)
"""


class Front(HashEmbedder):
    """In the place of the model in this process."""

    letters_per_piece = (1.0, 2.0)

    async def embed_tokens(self, texts: Sequence[str]) -> list[ChunkVectors]:
        raise AssertionError("the workers do this")

    async def embed_question(self, text: str) -> QuestionVectors:
        return QuestionVectors(self._vector(text), b"", ())


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    return [sys.executable, "-c", CHILD, str(tmp_path / "died")]


@pytest.fixture
async def spread(command: list[str]) -> AsyncIterator[Spread]:
    opened = Spread(Front(), command, 2)
    yield opened
    await opened.aclose()


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(f"d{number}", f"d{number}", text, "test") for number, text in enumerate(texts)]


async def test_two_processes_give_the_vectors_of_one(spread: Spread) -> None:
    texts = [f"Number {number} " + "word " * (number % 7) + "slow" * (number % PART == 0) for number in range(3 * PART)]

    found = await spread.embed_tokens(texts)

    assert isinstance(spread, TokenEmbedder)
    assert np.allclose([one.vector for one in found], await Front().embed(texts), atol=1e-6)
    assert len({one.packed for one in found}) == 2
    assert str(os.getpid()).encode() not in {one.packed for one in found}
    assert (await spread.embed_question("word")).vector == Front()._vector("word")
    assert await spread.embed([]) == []


async def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(store: PgStore, spread: Spread) -> None:
    texts = [f"Number {number} of the list." for number in range(100)]
    texts[50] = "This one is fatal once."

    report = await ingest_documents(documents(texts), store=store, embedder=spread, collection="c")

    assert (report.added, report.failures) == (100, ())


async def test_a_text_that_kills_its_workers_is_set_apart_by_name(store: PgStore, spread: Spread) -> None:
    texts = [f"Number {number} of the list." for number in range(40)]
    texts[7] = "This one is deadly."

    report = await ingest_documents(documents(texts), store=store, embedder=spread, collection="c")

    assert report.added == 39
    (failure,) = report.failures
    assert failure.reason.startswith("d7: ")
    assert "ended 2 embedding workers (signal 9)" in failure.reason


async def test_workers_that_do_not_start_stop_the_ingest(store: PgStore) -> None:
    spread = Spread(Front(), [sys.executable, "-c", "raise SystemExit(3)"], 2)

    with pytest.raises(EngineUnavailableError, match=r"do not start \(exit code 3\)"):
        await ingest_documents(documents(["One."]), store=store, embedder=spread, collection="c")
    await spread.aclose()


async def test_a_cancelled_call_leaves_no_reply_for_the_next_one(spread: Spread) -> None:
    asked = asyncio.create_task(spread.embed_tokens(["slow one"] * 4))
    await asyncio.sleep(0.5)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked

    (found,) = await spread.embed_tokens(["another"])

    assert found.vector == pytest.approx(Front()._vector("another"))


PARENT = """
import asyncio, sys
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
from test_spread import CHILD, Front
from orchestrator.knowledge.spread import Spread

async def main():
    spread = Spread(Front(), [sys.executable, "-c", CHILD, "unused"], 2)
    try:
        print(*{{one.packed.decode() for one in await spread.embed_tokens(["slow"] * 64)}}, flush=True)
        await spread.embed_tokens(["slow"] * 10_000)
    finally:
        await spread.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_ingest(how: signal.Signals) -> None:
    code = PARENT.format(root=ROOT, tests=str(Path(__file__).parent))
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0
    )
    with parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if how is signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does
        else:
            parent.send_signal(how)
        parent.wait(60)
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


async def test_the_embedded_model_in_processes_of_its_own(models_dir: Path) -> None:
    alone = MiniLM(weights.ensure_minilm(models_dir), threads=1)
    texts = [f"Line {number} of a report about {'water ' * (number % 9)}." for number in range(40)]
    settings = replace(Settings.from_env(), models_dir=models_dir)

    async with open_indexer(settings, alone, workers=2) as embedder:
        assert isinstance(embedder, Spread)
        found = await embedder.embed_tokens(texts)

    expected = await alone.embed_tokens(texts)
    assert np.allclose([one.vector for one in found], [one.vector for one in expected], atol=1e-5)
    assert [len(one.packed) for one in found] == [len(one.packed) for one in expected]


async def test_a_server_has_its_own_workers() -> None:
    with pytest.raises(InputError, match="embeddings server has its own"):
        async with open_indexer(Settings.from_env(), HashEmbedder(), workers=2):
            pass


@pytest.mark.parametrize(
    ("reranker", "url", "is_stored"),
    [("maxsim", None, True), ("none", None, False), ("cross-encoder", None, False), ("maxsim", "http://r", False)],
)
async def test_token_vectors_are_stored_where_the_re_ranker_reads_them(
    reranker: str, url: str | None, is_stored: bool
) -> None:
    settings = replace(Settings.from_env(), reranker=reranker, reranker_url=url)
    async with open_indexer(settings, Front()) as embedder:
        assert isinstance(embedder, TokenEmbedder) is is_stored
        assert embedder.space == "hash-64"
        assert await embedder.embed(["a b"]) == await Front().embed(["a b"])
