"""Finds passages: BM25 and cosine in one statement and one snapshot, fused by a convex combination of normalised scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.database import Database, Row, statement
from orchestrator.errors import InputError
from orchestrator.knowledge.filters import compile_filter
from orchestrator.knowledge.lexical import exact_terms, phrases, segment
from orchestrator.types import Passage, SearchRequest

MAX_K = 1_000
DEPTH = 50  # candidates of each side, at least


async def search_passages(database: Database, request: SearchRequest, space: str | None) -> list[Passage]:
    """The k best passages that were valid at ``as_of`` (now when None), best first, with the scores of each stage.

    A question of stop words only is answered by the dense side. Empty when there is no such collection, or it is not of
    ``space`` (any when None).
    """
    if not 1 <= request.k <= MAX_K:
        raise InputError(f"k must be from 1 to {MAX_K}, not {request.k}", param="k")
    text = request.text.replace("\0", " ").encode("utf-8", "replace").decode()
    async with database.session() as connection:  # the statement names the tenant itself: one round trip
        cursor = await connection.execute(
            statement("search"),
            {
                "tenant": request.tenant,
                "collection": request.collection,
                "space": space,
                "text": segment(text),
                "exact_terms": exact_terms(text),
                "phrases": phrases(text),
                "vector": None if request.mode == "lexical" else vector_text(request.vector),
                "k": request.k,
                "depth": max(DEPTH, 2 * request.k),
                "as_of": request.as_of,
                "known_at": request.known_at,
                "filter": compile_filter(request.where),
                "mode": request.mode,
                "dense_weight": request.dense_weight,
                "with_tokens": request.with_tokens,
            },
        )
        return [_passage(row) for row in await cursor.fetchall()]


def vector_text(vector: Sequence[float]) -> str:
    """A vector as pgvector reads it. Raises InputError when a number is not finite."""
    if not all(map(math.isfinite, vector)):
        raise InputError("the question's vector holds a number that is not finite; check the embedder")
    return "[" + ",".join([f"{value:.6g}" for value in vector]) + "]"


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
