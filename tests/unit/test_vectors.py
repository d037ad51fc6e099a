"""Embedding of a batch when the embedder misbehaves: the bad text is set apart, its neighbours are kept (row E11)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import pytest

from orchestrator.errors import EngineError, EngineUnavailableError, InputError
from orchestrator.knowledge.vectors import EMBED_TEXTS, PROBE, Vectors
from orchestrator.testing import HashEmbedder
from orchestrator.types import ChunkVectors

TEXTS = {f"hash{number}": f"Text number {number}" for number in range(64)}
BAD = "hash17"


class Misbehaving(HashEmbedder):
    """Does something else for a call that holds the bad text. ``calls``: sizes of all calls."""

    def __init__(self, act: Callable[[list[list[float]], int], Awaitable[list[list[float]]]]) -> None:
        super().__init__()
        self._act = act
        self.calls: list[int] = []

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(len(texts))
        good = await super().embed(texts)
        return await self._act(good, texts.index(TEXTS[BAD])) if TEXTS[BAD] in texts else good


def replaced(vector: list[float]) -> Callable[[list[list[float]], int], Awaitable[list[list[float]]]]:
    async def act(good: list[list[float]], place: int) -> list[list[float]]:
        return [*good[:place], vector, *good[place + 1 :]]

    return act


def raising(error: BaseException) -> Callable[[list[list[float]], int], Awaitable[list[list[float]]]]:
    async def act(good: list[list[float]], place: int) -> list[list[float]]:
        raise error

    return act


async def one_less(good: list[list[float]], place: int) -> list[list[float]]:
    return good[:-1]


async def too_late(good: list[list[float]], place: int) -> list[list[float]]:
    async with asyncio.timeout(0):
        await asyncio.sleep(60)
    return good


@pytest.mark.parametrize(
    "act",
    [
        replaced([math.nan] * 64),
        replaced([math.inf, *[0.0] * 63]),
        replaced([0.0] * 64),
        replaced([1.0] * 63),
        replaced([]),
        raising(EngineError("the vector for text 17 is all zeros")),
        raising(EngineUnavailableError("the server did not answer within 60 s")),
        raising(InputError("the server refused text 17")),
        raising(RuntimeError("CUDA error")),
        one_less,
        too_late,
    ],
)
async def test_one_bad_text_of_64_is_set_apart(
    act: Callable[[list[list[float]], int], Awaitable[list[list[float]]]],
) -> None:
    embedder = Misbehaving(act)
    vectors = Vectors(embedder, 64)

    packed = await vectors.embed(TEXTS)

    assert packed.keys() == TEXTS.keys() - {BAD}
    assert vectors.refused.keys() == {BAD}
    assert vectors.refused[BAD]
    assert len([size for size in embedder.calls if size > 1]) <= 2 * 6, "halving, not one by one"
    alone = await Vectors(HashEmbedder(), 64).embed(TEXTS)
    assert packed == {name: one for name, one in alone.items() if name != BAD}


async def test_a_refused_text_is_not_tried_again() -> None:
    embedder = Misbehaving(replaced([0.0] * 64))
    vectors = Vectors(embedder, 64)
    await vectors.embed(TEXTS)
    calls = len(embedder.calls)
    assert await vectors.embed({BAD: TEXTS[BAD]}) == {}
    assert len(embedder.calls) == calls


class Dead(HashEmbedder):
    """Does nothing at all."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.asked: list[int] = []

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked.append(len(texts))
        raise self.error


@pytest.mark.parametrize("error", [EngineUnavailableError("it is down"), ConnectionError("refused"), TimeoutError()])
async def test_a_dead_embedder_is_told_from_a_bad_text_at_once(error: Exception) -> None:
    embedder = Dead(error)
    with pytest.raises(EngineError):
        await Vectors(embedder, 64).embed(TEXTS)
    assert embedder.asked == [64, 1]


async def test_calls_are_bounded_and_progress_is_told() -> None:
    embedder = Misbehaving(one_less)
    texts = {f"h{number}": f"Sentence {number}" for number in range(EMBED_TEXTS + 5)}
    told: list[int] = []
    assert len(await Vectors(embedder, 64).embed(texts, told.append)) == len(texts)
    assert (embedder.calls, told) == ([EMBED_TEXTS, 5], [EMBED_TEXTS, EMBED_TEXTS + 5])


class WithTokens(HashEmbedder):
    """Gives token vectors from the same run."""

    letters_per_piece = (2.8, 3.4)
    runs = 0

    async def embed_tokens(self, texts: Sequence[str]) -> list[ChunkVectors]:
        self.runs += 1
        return [ChunkVectors(self._vector(text), text.encode()) for text in texts]

    async def embed_question(self, text: str) -> None:
        raise NotImplementedError


async def test_token_vectors_come_from_the_same_run() -> None:
    embedder = WithTokens()
    packed = await Vectors(embedder, 64).embed(TEXTS)
    assert packed[BAD].tokens == TEXTS[BAD].encode()
    assert (embedder.runs, embedder.texts) == (1, [])
    assert PROBE not in embedder.texts
