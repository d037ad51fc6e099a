"""Spreads embedding over processes with a model each: texts of like length go to whichever is free.

On 2 cores one thread of a process embeds 52 texts in a CPU second, two threads 43 (November 2026): threads wait for one
another at the end of each of the model's small steps, processes never do. Each process costs about 200 MB.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from orchestrator.errors import EngineError, EngineUnavailableError, InputError
from orchestrator.knowledge import encode
from orchestrator.knowledge.embed import MiniLM
from orchestrator.launch import weights
from orchestrator.protocols import Embedder, TokenEmbedder
from orchestrator.settings import Settings
from orchestrator.types import ChunkVectors, QuestionVectors

log = logging.getLogger(__name__)

PART = 32  # texts of one request at most
ROUNDS = 4  # requests of a batch for each worker: the last one to end has little left when the others are idle
ENDING_S = 5.0  # from the end of a worker's output to its end
ATTEMPTS = 2  # at a part: what killed two workers is the texts' fault, and halving finds which
LINE = 1 << 20  # bytes of a reply's first line
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # tokenizer, numpy
T = TypeVar("T")


@asynccontextmanager
async def open_indexer(settings: Settings, embedder: Embedder, workers: int = 1) -> AsyncIterator[Embedder]:
    """The embedder for what is stored: ``embedder`` itself for one worker, else that many processes of the embedded model.

    It gives token vectors only where the re-ranker reads them. Raises InputError when ``embedder`` runs elsewhere.
    """
    async with AsyncExitStack() as stack:
        if workers > 1:
            if not isinstance(embedder, MiniLM):
                raise InputError("workers are processes of the embedded model; an embeddings server has its own")
            folder = await asyncio.to_thread(weights.ensure_minilm, settings.models)
            embedder = Spread(embedder, [sys.executable, "-P", encode.__file__, str(folder)], workers)
            stack.push_async_callback(embedder.aclose)
        yield embedder if settings.reranker == "maxsim" and not settings.reranker_url else Untokened(embedder)


class Untokened:
    """An embedder without its token vectors, which take eight times the space of the vectors."""

    def __init__(self, embedder: Embedder) -> None:
        self.space, self.dimensions = embedder.space, embedder.dimensions
        self._embedder = embedder

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """As the embedder."""
        return await self._embedder.embed(texts)


class Spread:
    """A ``TokenEmbedder`` of several processes, started when they are first needed. Questions stay in this one."""

    def __init__(self, front: TokenEmbedder, command: Sequence[str | Path], workers: int) -> None:
        """``command``: starts a child that speaks as ``encode`` does, with vectors of ``front``'s space."""
        self.space, self.dimensions = front.space, front.dimensions
        self.letters_per_piece = front.letters_per_piece
        self._front = front
        self._free: asyncio.LifoQueue[_Child] = asyncio.LifoQueue()
        self._children = [_Child(command) for _ in range(workers)]
        for child in self._children:
            self._free.put_nowait(child)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, in order. Raises EngineError when texts kill their workers."""
        return [list(one.vector) for one in await self._all(texts, tokens=False)]

    async def embed_tokens(self, texts: Sequence[str]) -> list[ChunkVectors]:
        """Unit vector and packed token vectors of each text, in order. Raises as ``embed``."""
        return await self._all(texts, tokens=True)

    async def embed_question(self, text: str) -> QuestionVectors:
        """As the embedder in this process."""
        return await self._front.embed_question(text)

    async def aclose(self) -> None:
        """Ends the processes."""
        await asyncio.gather(*[child.end() for child in self._children])

    async def _all(self, texts: Sequence[str], tokens: bool) -> list[ChunkVectors]:
        """Long texts first: the last parts to be done are the short ones, so the workers end together."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        size = min(PART, math.ceil(len(texts) / (ROUNDS * len(self._children))) or 1)
        parts = [order[first : first + size] for first in range(0, len(order), size)]
        asked = [asyncio.create_task(self._part([texts[place] for place in part], tokens)) for part in parts]
        try:
            found = await asyncio.gather(*asked)
        finally:
            await _stopped(asked)
        by_place = {
            place: one for part, done in zip(parts, found, strict=True) for place, one in zip(part, done, strict=True)
        }
        return [by_place[place] for place in range(len(texts))]

    async def _part(self, texts: list[str], tokens: bool) -> list[ChunkVectors]:
        request = orjson.dumps({"texts": texts, "tokens": tokens}) + b"\n"
        for attempt in range(1, ATTEMPTS + 1):
            child = await self._free.get()
            try:
                return await child.ask(request, len(texts), self.dimensions)
            except (EOFError, OSError) as error:
                log.warning(
                    "an embedding worker died with %d texts (attempt %d): %s", len(texts), attempt, child.status
                )
                if not child.has_served and attempt == ATTEMPTS:
                    raise EngineUnavailableError(
                        f"the embedding workers do not start ({child.status}); run without --workers to see why"
                    ) from error
            finally:
                self._free.put_nowait(child)
        raise EngineError(f"the texts ended {ATTEMPTS} embedding workers ({child.status})")


class _Child:
    """A process that embeds one request at a time; started anew when it has died."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._command = command
        self._process: Process | None = None
        self.has_served = False

    @property
    def status(self) -> str:
        """How it ended, for people."""
        code = self._process.returncode if self._process else None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    async def ask(self, request: bytes, count: int, dimensions: int) -> list[ChunkVectors]:
        """The vectors of a request. Raises EOFError or OSError when the process dies; a reply that is cut off is none."""
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=LINE, env={**os.environ, **ONE_THREAD}
            )
        requests, replies = process.stdin, process.stdout
        assert requests is not None
        assert replies is not None
        try:
            requests.write(request)
            await requests.drain()
            head: dict[str, Any] = orjson.loads(await replies.readuntil(b"\n"))
            if "error" in head:
                raise EngineError(head["error"])
            body = await replies.readexactly(4 * count * dimensions + sum(head["sizes"]))
        except EngineError:
            self.has_served = True
            raise
        except BaseException as error:  # also when it is cancelled: the reply to come would be taken for the next one's
            await self._kill(patience=ENDING_S if isinstance(error, (EOFError, OSError)) else 0)
            raise
        self.has_served = True
        return _read(body, head["sizes"], count, dimensions)

    async def end(self) -> None:
        """Ends the process, which has nothing to lose."""
        if self._process is not None:
            await self._kill()

    async def _kill(self, patience: float = 0) -> None:
        """Ends the process; one that is ending by itself gets `patience` s for it: `kill` would take the exit code away."""
        process = self._process
        assert process is not None
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(patience):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        await process.wait()


def _read(body: bytes, sizes: Sequence[int], count: int, dimensions: int) -> list[ChunkVectors]:
    vectors = np.frombuffer(body, np.float32, count * dimensions).reshape(count, dimensions).tolist()
    packed, place = [], 4 * count * dimensions
    for size in sizes:
        packed.append(body[place : place + size])
        place += size
    return [ChunkVectors(vector, own) for vector, own in zip(vectors, packed, strict=True)]


async def _stopped(tasks: Sequence[asyncio.Task[T]]) -> None:
    """Nothing goes on behind the caller's back when one part failed or the ingest was cancelled."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
