"""Finds passages: BM25 and exact cosine in one statement, fused by a convex combination of normalised scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from orchestrator.database import Database, Row, statement
from orchestrator.errors import InputError
from orchestrator.types import Passage

Mode = Literal["hybrid", "lexical", "dense"]

MAX_K = 1_000


async def search_passages(
    database: Database,
    text: str,
    vector: Sequence[float],
    *,
    tenant: str,
    collection: str,
    space: str | None,
    k: int,
    as_of: datetime | None,
    mode: Mode = "hybrid",
) -> list[Passage]:
    """The k best passages that were valid at ``as_of`` (now when None), best first, with both scores of each.

    A question of stop words only is answered by the dense side. Empty when there is no such collection, or it is not of
    ``space`` (any when None).
    """
    if not 1 <= k <= MAX_K:
        raise InputError(f"k must be from 1 to {MAX_K}, not {k}", param="k")
    rows = await database.fetch(
        statement("search"),
        tenant=tenant,
        collection=collection,
        space=space,
        text=text.replace("\0", " ").encode("utf-8", "replace").decode(),
        vector=None if mode == "lexical" else vector_text(vector),
        k=k,
        depth=max(100, 4 * k),
        as_of=as_of,
        mode=mode,
    )
    return [_passage(row) for row in rows]


def vector_text(vector: Sequence[float]) -> str:
    """A vector as pgvector reads it. Raises InputError when a number is not finite."""
    if not all(map(math.isfinite, vector)):
        raise InputError("the question's vector holds a number that is not finite; check the embedder")
    return "[" + ",".join([f"{value:.6g}" for value in vector]) + "]"


def _passage(row: Row) -> Passage:
    scores = {name: getattr(row, name) for name in ("bm25", "cosine", "bm25_norm", "cosine_norm")}
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
        scores={name: value for name, value in scores.items() if value is not None} | {"fused": row.score},
        heading_path=tuple(row.heading_path),
        page=row.page,
        source=row.source,
        valid_from=row.valid_from,
        valid_to=row.valid_to,
    )
