"""Finds texts that are nearly the same: MinHash signatures banded to candidates, each then compared exactly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HASHES, BANDS = (
    64,
    16,
)  # 16 bands of 4: pairs of similarity .8 meet with probability .9998, of .5 with .64, of .2 with .03
WIDTH = 5  # bytes in a shingle
Shingles = NDArray[np.uint64]
_NOISE = re.compile(r"[^\w]+")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts by their place, the smaller first, and how many of their shingles they share (Jaccard, 0..1)."""

    first: int
    second: int
    similarity: float


def near_pairs(texts: Sequence[str], threshold: float) -> list[Pair]:
    """Pairs of texts at least ``threshold`` alike, in order; texts without a letter or digit are like nothing.

    MinHash and banding: Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3.
    """
    shingles = [_shingles(text) for text in texts]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    rows = HASHES // BANDS
    for place, signature in enumerate(_signatures(shingles)):
        if signature is not None:
            for band in range(BANDS):
                buckets[band, signature[band * rows : (band + 1) * rows].tobytes()].append(place)
    candidates = (
        {
            (members[0], other) if members[0] < other else (other, members[0])
            for members in buckets.values()
            for other in members[1:]
        }
        | {
            pair
            for members in buckets.values()
            if len(members) <= 64  # in larger buckets each is compared with the first only: enough to find a crowd
            for at, one in enumerate(members)
            for pair in ((one, other) for other in members[at + 1 :])
        }
    )
    pairs = (Pair(one, other, _jaccard(shingles[one], shingles[other])) for one, other in candidates)
    return sorted((pair for pair in pairs if pair.similarity >= threshold), key=lambda pair: (pair.first, pair.second))


def clusters(size: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Places 0..size-1 joined through pairs, each cluster in order, clusters by their first place."""
    head = list(range(size))

    def find(place: int) -> int:
        while head[place] != place:
            head[place] = head[head[place]]
            place = head[place]
        return place

    for one, other in pairs:
        low, high = sorted((find(one), find(other)))
        head[high] = low
    members: dict[int, list[int]] = defaultdict(list)
    for place in range(size):
        members[find(place)].append(place)
    return list(members.values())


def similarity(one: str, other: str) -> float:
    """How many shingles two texts share (Jaccard, 0..1)."""
    return _jaccard(_shingles(one), _shingles(other))


def _shingles(text: str) -> Shingles:
    """Every stretch of WIDTH bytes of the text in small letters without punctuation, as a number, sorted and once each."""
    plain = np.frombuffer(_NOISE.sub(" ", text.casefold()).strip().encode(), dtype=np.uint8).astype(np.uint64)
    if 0 < len(plain) < WIDTH:
        plain = np.pad(plain, (0, WIDTH - len(plain)))
    count = max(0, len(plain) - WIDTH + 1)
    numbers = np.zeros(count, dtype=np.uint64)
    for at in range(WIDTH):
        numbers = numbers << np.uint64(8) | plain[at : at + count]
    return np.unique(numbers)


def _signatures(shingles: Sequence[Shingles]) -> list[Shingles | None]:
    chance = np.random.default_rng(0)
    factors = chance.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = chance.integers(0, 1 << 63, HASHES, dtype=np.uint64)
    # multiply-shift (Dietzfelbinger 1997): the product wraps around, its upper half is the hash
    return [
        ((each[:, None] * factors + shifts) >> np.uint64(32)).min(axis=0) if len(each) else None for each in shingles
    ]


def _jaccard(one: Shingles, other: Shingles) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)
