"""Changes a collection's embedding model while it serves: fill a second space, judge it, switch, and switch back.

A query never compares vectors of two models: a space serves as a whole or not at all, and a search names the space that
its vector is of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.database import Connection, Database, Json, Row, copy_rows, statement
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.records import Collection
from orchestrator.knowledge.search import pack_halfvec
from orchestrator.knowledge.vectors import Vectors
from orchestrator.protocols import Embedder, TokenEmbedder

PAGE = 256  # chunks of one transaction: what a crash costs
Question = tuple[str, frozenset[str]]  # a question and the external ids of the documents that answer it


@dataclass(frozen=True, slots=True)
class Space:
    """Vectors of one embedder in a collection. ``judged``: recall@10 in it and in the space that served then."""

    space: str
    dimensions: int
    is_serving: bool
    switched_at: datetime | None
    judged: dict[str, Any]
    vectors: int
    chunks: int

    @property
    def is_complete(self) -> bool:
        """True when every chunk has a vector of it."""
        return self.vectors >= self.chunks


@dataclass(frozen=True, slots=True)
class Judgement:
    """Recall@10 of the dense side on an eval set, new space beside the serving one, and the paired 95 % interval."""

    questions: int
    before: float
    after: float
    low: float
    high: float

    @property
    def is_worse(self) -> bool:
        """True when the loss is significant."""
        return self.high < 0


async def list_spaces(database: Database, collection: Collection) -> list[Space]:
    """The spaces of a collection, oldest first."""
    return [Space(*row) for row in await database.fetch(statement("list-spaces"), collection_id=collection.id)]


async def fill(
    database: Database,
    collection: Collection,
    embedder: Embedder,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embeds what the space of ``embedder`` lacks, page by page; gives their number. After a crash it goes on.

    For an embedder with token vectors that is also every chunk without them.
    """
    with_tokens = isinstance(embedder, TokenEmbedder)
    names = {"collection_id": collection.id, "space": embedder.space, "with_tokens": with_tokens}
    async with database.transaction() as connection:
        await connection.execute(statement("add-space"), {**names, "dimensions": embedder.dimensions})
    total = (await _fetch_one(database, "count-without-vector", **names)).missing
    after, done = 0, 0
    while page := await database.fetch(statement("chunks-without-vector"), after=after, limit=PAGE, **names):
        await _fill_page(database, page, embedder, names)
        failpoint("space-page")
        after, done = page[-1].id, done + len(page)
        if progress:
            progress(done, max(total, done))
    return done


async def _fill_page(database: Database, page: Sequence[Row], embedder: Embedder, names: dict[str, Any]) -> None:
    vectors = Vectors(embedder, embedder.dimensions)
    packed = await vectors.embed(
        {str(row.id): f"{row.context}\n\n{row.text}" if row.context else row.text for row in page}
    )
    if vectors.refused:
        raise InputError(
            f"{len(vectors.refused)} chunks cannot be embedded; the first: {next(iter(vectors.refused.values()))}"
        )
    rows = [(int(name), one.embedding, one.tokens) for name, one in packed.items()]
    async with database.transaction() as connection:
        await connection.execute(statement("make-incoming"))
        await copy_rows(connection, statement("copy-vectors"), rows, ("int8", "bytea", "bytea"))
        values = {**names, "chunk_ids": [row.id for row in page]}
        await connection.execute(statement("move-vectors-of-space"), values)


async def judge(
    database: Database, collection: Collection, embedder: Embedder, current: Embedder, questions: Sequence[Question]
) -> Judgement:
    """Compares recall@10 of ``embedder``'s space with the serving one's on questions, and records the figures."""
    if not questions:
        raise InputError("the eval set has no questions")
    before = [await _recall(database, collection, current, question) for question in questions]
    after = [await _recall(database, collection, embedder, question) for question in questions]
    differences = [new - old for new, old in zip(after, before, strict=True)]
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((value - mean) ** 2 for value in differences) / max(len(differences) - 1, 1))
    margin = 1.96 * spread / math.sqrt(len(differences))
    judged = Judgement(len(questions), sum(before) / len(before), sum(after) / len(after), mean - margin, mean + margin)
    values = {"before": judged.before, "after": judged.after, "low": judged.low, "high": judged.high}
    async with database.transaction() as connection:
        names = {"collection_id": collection.id, "space": embedder.space}
        await connection.execute(statement("record-judgement"), {**names, "judged": Json(values)})
    return judged


async def _recall(database: Database, collection: Collection, embedder: Embedder, question: Question) -> float:
    text, wanted = question
    (vector,) = await embedder.embed([text])
    values = {"collection_id": collection.id, "space": embedder.space, "vector": pack_halfvec(vector), "k": 10}
    found = {row.external_id for row in await database.fetch(statement("nearest-in-space"), **values)}
    return len(found & wanted) / max(len(wanted), 1)


async def switch(database: Database, collection: Collection, space: str) -> None:
    """Lets ``space`` serve from the next search on, in one transaction; the other stays for the way back.

    Raises UnknownNameError for a space that the collection does not have, InputError while chunks lack a vector of it.
    """
    names = {"collection_id": collection.id, "space": space}
    async with database.transaction() as connection:
        await connection.execute(statement("lock-collection"), {"collection_id": collection.id})
        await _known(connection, collection, space)
        lacking = {**names, "with_tokens": False}
        counted: Row = await (await connection.execute(statement("count-without-vector"), lacking)).fetchone()
        if missing := counted.missing:
            raise InputError(
                f"{missing} chunks of {collection.name!r} have no vector of {space} yet. "
                f"Run: orchestrator collections reembed {collection.name}",
                param="space",
            )
        await connection.execute(statement("serve-space"), names)
        failpoint("space-switched")
        await connection.execute(statement("mark-serving"), names)


async def drop(database: Database, collection: Collection, space: str) -> None:
    """Removes the vectors of a space that does not serve. Raises UnknownNameError, InputError when it serves."""
    names = {"collection_id": collection.id, "space": space}
    async with database.transaction() as connection:
        await connection.execute(statement("lock-collection"), {"collection_id": collection.id})
        if (await _known(connection, collection, space)).is_serving:
            raise InputError(f"{space} serves the collection; switch to another space first", param="space")
        await connection.execute(statement("remove-vectors-of-space"), names)
        await connection.execute(statement("remove-space"), names)


async def _known(connection: Connection, collection: Collection, space: str) -> Space:
    rows = await (await connection.execute(statement("list-spaces"), {"collection_id": collection.id})).fetchall()
    found = next((Space(*row) for row in rows if row.space == space), None)
    if found is None:
        names = ", ".join(row.space for row in rows)
        raise UnknownNameError(f"{collection.name!r} has no space {space!r}. It has: {names}", param="space")
    return found


async def _fetch_one(database: Database, name: str, **values: Any) -> Row:
    return (await database.fetch(statement(name), **values))[0]
