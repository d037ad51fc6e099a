"""Finds passages: BM25 and cosine in one statement and one snapshot, fused by a convex combination of normalised scores."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.database import Binary, Database, Row, statement
from orchestrator.errors import InputError, OrchestratorError
from orchestrator.intervals import wilson
from orchestrator.knowledge.filters import compile_filter
from orchestrator.knowledge.lexical import exact_terms, phrases, segment
from orchestrator.types import Passage, SearchRequest

log = logging.getLogger(__name__)

MAX_K = 1_000
MAX_TEXT = 20_000  # characters that words are taken from; of them the 64 rarest words count
MAX_DIMENSIONS = 16_000  # of a halfvec
DEPTH = 50  # candidates of each side, at least


@dataclass(frozen=True, slots=True)
class IndexRecall:
    """How much of the exact nearest chunks HNSW found, over live searches: ``recall`` in its 95 % interval; None: no search."""

    searches: int
    wanted: int
    recall: float | None
    low: float | None
    high: float | None


class RecallSample:
    """Searches a share of the questions a second time, exactly, and counts what the index had missed.

    Searches that compare every vector anyway are not counted: they miss nothing.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._tasks: set[asyncio.Task[None]] = set()
        self._searches = self._wanted = self._hits = 0

    def consider(self, database: Database, request: SearchRequest) -> None:
        """Measures this search in the background, or not: at most one at a time."""
        if request.mode == "lexical" or request.known_at or self._tasks or random.random() >= self._share:
            return
        task = asyncio.create_task(self._measure(database, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Waits for a measurement that is under way."""
        await asyncio.gather(*self._tasks)

    def snapshot(self) -> IndexRecall:
        """What was counted so far, with Wilson's interval."""
        if not self._wanted:
            return IndexRecall(self._searches, 0, None, None, None)
        low, high = wilson(self._hits, self._wanted)
        return IndexRecall(self._searches, self._wanted, self._hits / self._wanted, low, high)

    async def _measure(self, database: Database, request: SearchRequest) -> None:
        try:
            async with database.session() as connection:
                values = {**_where(request), "k": min(request.k, 10), "depth": _depth(request)}
                row = await (await connection.execute(statement("recall-of-index"), values)).fetchone()
        except OrchestratorError as error:
            log.warning("the recall of a search was not measured: %s", error.message)
            return
        if row and row.wanted:
            self._searches += 1
            self._wanted += row.wanted
            self._hits += row.hits


async def search_passages(
    database: Database, request: SearchRequest, space: str | None, sample: RecallSample | None = None
) -> list[Passage]:
    """The k best passages that were valid at ``as_of`` (now when None), best first, with the scores of each stage.

    A question of stop words only is answered by the dense side. Empty when there is no such collection, or it is not of
    ``space`` (any when None). ``sample``: measures the index by some of the searches.
    """
    if not 1 <= request.k <= MAX_K:
        raise InputError(f"k must be from 1 to {MAX_K}, not {request.k}", param="k")
    text = request.text[:MAX_TEXT].replace("\0", " ").encode("utf-8", "replace").decode()
    rows = await database.read(
        statement("search"),
        **_where(request),
        space=space,
        text=segment(text),
        exact_terms=exact_terms(text),
        phrases=phrases(text),
        k=request.k,
        depth=_depth(request),
        known_at=request.known_at,
        mode=request.mode,
        dense_weight=request.dense_weight,
        with_tokens=request.with_tokens,
    )
    if sample:
        sample.consider(database, request)
    return [_passage(row) for row in rows]


def _where(request: SearchRequest) -> dict[str, Any]:
    return {
        "tenant": request.tenant,
        "collection": request.collection,
        "vector": None if request.mode == "lexical" else pack_halfvec(request.vector),
        "as_of": request.as_of,
        "filter": compile_filter(request.where),
    }


def _depth(request: SearchRequest) -> int:
    return max(DEPTH, 2 * request.k)


def pack_halfvec(vector: Sequence[float]) -> Binary:
    """A vector as PostgreSQL receives a halfvec. Raises InputError when a number is not finite in 16 bits."""
    if len(vector) > MAX_DIMENSIONS:
        raise InputError(f"the question's vector has {len(vector)} numbers, more than {MAX_DIMENSIONS}")
    try:
        packed = struct.pack(f">HH{len(vector)}e", len(vector), 0, *vector)
        finite = math.isfinite(sum(vector))
    except OverflowError:
        finite = False
    if not finite:
        raise InputError("the question's vector holds a number that is not finite; check the embedder")
    return Binary(packed)


def _passage(row: Row) -> Passage:
    scores = {
        "bm25": row.bm25,
        "covered": row.covered,
        "cosine": row.cosine,
        "bm25_norm": row.bm25_norm,
        "cosine_norm": row.cosine_norm,
        "exact": row.exact,
        "fused": row.score,
    }
    return Passage(
        chunk_id=row.chunk_id,
        document_id=row.document_id,
        external_id=row.external_id,
        version=row.version,
        title=row.title,
        text=row.text,
        span=(row.span_start, row.span_end),
        paragraph=row.paragraph,
        score=row.score,
        scores={name: value for name, value in scores.items() if value is not None},
        heading_path=tuple(row.heading_path),
        page=row.page,
        source=row.source,
        valid_from=row.valid_from,
        valid_to=row.valid_to,
        context=row.context,
        metadata=row.metadata,
        tokens=row.tokens,
    )
