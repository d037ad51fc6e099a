"""A large collection: ``python benchmarks/scale.py [--chunks N] [--json]``: recall and cost of each plan of a search.

Vectors are clustered (topics of sub-topics), words follow Zipf's law, each document carries metadata that lets a known share
of all documents through. Everything is made in a scratch database of the embedded PostgreSQL (or beside the database of
``--url``) and dropped at the end. CPU is that of the server's process, so that a busy machine does not show.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from orchestrator.database import Database
from orchestrator.knowledge.partitions import demote, promote
from orchestrator.knowledge.search import search_passages
from orchestrator.launch import postgres
from orchestrator.migrate import migrate
from orchestrator.settings import Settings
from orchestrator.types import SearchRequest

SCRATCH = "orchestrator_scale"
DIMENSIONS = 384
VOCABULARY = 30_000
SHARES = {"0.1 %": 0.001, "1 %": 0.01, "10 %": 0.1, "50 %": 0.5}


@dataclass(frozen=True, slots=True)
class World:
    """The scratch database and what was put into it. ``places``: of each document, from 0 to 1, what the filters ask for."""

    database: Database  # of one connection, whose process is ``server``
    server: psutil.Process
    connection: psycopg.Connection[Any]
    vectors: np.ndarray
    places: np.ndarray
    questions: np.ndarray
    texts: list[str]


async def main(chunks: int, rounds: int, url: str | None, as_json: bool) -> None:
    """Prints a row for each plan."""
    async with _world(chunks, rounds, url) as world:
        rows = [await _row(world, "shared partition", None)]
        began = time.perf_counter()
        await promote(world.database, "scale")
        promoted = time.perf_counter() - began
        rows.append(await _row(world, "own partition", None))
        for name, share in SHARES.items():
            rows.append(await _row(world, f"{name} by equality", {name: True}, share))
            rows.append(await _row(world, f"{name} by range", {"place": {"lt": share}}, share))
        began = time.perf_counter()
        await demote(world.database, "scale")
        report = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
            "chunks": chunks,
            "promote_s": promoted,
            "demote_s": time.perf_counter() - began,
            "rows": rows,
        }
    if as_json:
        print(json.dumps(report, indent=1))
        return
    print(f"{chunks:,} chunks; promoted in {promoted:.1f} s, demoted in {report['demote_s']:.1f} s")
    print(f"{'':22}{'recall@10':>10}{'BM25 same':>10}{'server ms':>11}{'client ms':>11}{'bare dense':>11}{'p50 ms':>8}")
    for row in rows:
        print(
            f"{row['plan']:22}{row['recall']:10.4f}{row['bm25_same']:10.3f}{row['server_ms']:11.2f}{row['client_ms']:11.2f}"
            f"{row['bare_dense_ms']:11.2f}{row['p50_ms']:8.2f}"
        )


async def _row(world: World, plan: str, where: dict[str, Any] | None, share: float = 1.0) -> dict[str, Any]:
    """What hybrid searches cost, and how much of the dense and of the lexical best ten they find."""
    requests = [
        SearchRequest(text, vector, "scale", where=where)
        for text, vector in zip(world.texts, world.questions.tolist(), strict=True)
    ]
    for request in requests[:5]:
        await search_passages(world.database, request, None)
    walls = []
    server, client = sum(world.server.cpu_times()[:2]), time.process_time()
    for request in requests:
        began = time.perf_counter()
        await search_passages(world.database, request, None)
        walls.append(time.perf_counter() - began)
    server, client = sum(world.server.cpu_times()[:2]) - server, time.process_time() - client
    return {
        "plan": plan,
        **await _quality(world, requests, world.places < share),
        "server_ms": server * 1000 / len(requests),
        "client_ms": client * 1000 / len(requests),
        "p50_ms": statistics.median(walls) * 1000,
        "bare_dense_ms": _bare_dense(world),
    }


async def _quality(world: World, requests: Sequence[SearchRequest], allowed: np.ndarray) -> dict[str, float]:
    recall, same = [], []
    for number, request in enumerate(requests):
        dense = await search_passages(world.database, replace(request, mode="dense"), None)
        exact = np.sort(world.vectors[allowed] @ world.questions[number])[::-1][:10]
        # Chunks whose cosines are equal in 16-bit floats stand for each other.
        recall.append(np.mean([p.scores["cosine"] >= exact[-1] - 5e-4 for p in dense]) * len(dense) / len(exact))
        if number % 5 == 0:
            lexical = await search_passages(world.database, replace(request, mode="lexical"), None)
            expected = _bm25(world, request.text, allowed)
            same.append(np.allclose([p.scores["bm25"] for p in lexical], expected))
    return {"recall": statistics.fmean(recall), "bm25_same": statistics.fmean(same)}


def _bm25(world: World, text: str, allowed: np.ndarray) -> np.ndarray:
    """The ten best scores, from every posting."""
    rows = world.connection.execute(
        "select p.chunk_id, sum(ln(1 + (c.chunk_count - t.document_count + 0.5) / (t.document_count + 0.5)::float8) * 2.2"
        " * p.frequency / (p.frequency + 1.2 * (0.25 + 0.75 * p.length * c.chunk_count / c.term_count))) "
        "from collections c join terms t on t.collection_id = c.id join postings p on p.term_id = t.id "
        "where t.term = any (%s) group by 1",
        (text.split(),),
    ).fetchall()
    return np.sort([score for chunk, score in rows if allowed[chunk - 1]])[::-1][:10]


def _bare_dense(world: World) -> float:
    """CPU of the server for the plainest exact query by hand, in ms."""
    table = world.connection.execute("select coalesce(partition, 'vectors_shared') from collections").fetchone()
    query = psycopg.sql.SQL(
        "select chunk_id from {} where collection_id = 1 and space = 'scale' order by embedding <#> %s::halfvec limit 10"
    ).format(psycopg.sql.Identifier(table[0] if table else ""))
    process = psutil.Process(world.connection.info.backend_pid)
    before = sum(process.cpu_times()[:2])
    for vector in world.questions[:40].tolist():
        world.connection.execute(query, (str(vector),)).fetchall()
    return (sum(process.cpu_times()[:2]) - before) * 1000 / 40


# What the scratch database is filled with.


@asynccontextmanager
async def _world(chunks: int, rounds: int, url: str | None) -> AsyncIterator[World]:
    chance = np.random.default_rng(7)
    # Topics, sub-topics, chunks: neighbours are near each other, as those of real embeddings are.
    topics = chance.standard_normal((200, DIMENSIONS))
    centres = topics[chance.integers(200, size=2_000)] + 0.7 * chance.standard_normal((2_000, DIMENSIONS))
    vectors = _unit(centres[chance.integers(2_000, size=chunks)] + 0.8 * chance.standard_normal((chunks, DIMENSIONS)))
    questions = _unit(
        vectors[chance.integers(chunks, size=rounds)] * 28 + 0.6 * chance.standard_normal((rounds, DIMENSIONS))
    )
    places = chance.random(chunks)
    frequencies = np.maximum(1, 0.2 * chunks / np.arange(1, VOCABULARY + 1) ** 0.8).astype(int)
    words = [f"w{number}" for number in range(VOCABULARY)]
    texts = [
        " ".join(words[n] for n in np.unique((VOCABULARY ** chance.random(7)).astype(int) - 1)) for _ in range(rounds)
    ]
    with _scratch(url) as scratch:
        async with Database.open(scratch, 1) as opened:
            await migrate(opened)
            database = opened.of("default")
            with psycopg.connect(scratch, autocommit=True) as connection:
                connection.execute(
                    "select set_config('orchestrator.tenant_id', '1', false), set_config('jit', 'off', false)"
                )
                _fill(connection, chunks, vectors, places, frequencies, words, chance)
                row = await database.fetch_one("select pg_backend_pid() as pid")
                server = psutil.Process(row.pid if row else 0)
                yield World(database, server, connection, vectors, places, questions, texts)


@contextmanager
def _scratch(url: str | None) -> Iterator[str]:
    url = url or Settings.from_env().database_url or postgres.start(Settings.from_env().home_dir)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"drop database if exists {SCRATCH} with (force)")
        connection.execute(f"create database {SCRATCH}")
        try:
            yield make_conninfo(url, dbname=SCRATCH)
        finally:
            connection.execute(f"drop database {SCRATCH} with (force)")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _fill(
    connection: psycopg.Connection[Any],
    chunks: int,
    vectors: np.ndarray,
    places: np.ndarray,
    frequencies: np.ndarray,
    words: list[str],
    chance: np.random.Generator,
) -> None:
    """One document of one version and one chunk for each vector, and 40 postings, without the price of the real way in."""
    connection.execute(
        "insert into collections (name, embedding_space, dimensions, languages) values ('scale', 'scale', %s, '{simple}')",
        (DIMENSIONS,),
    )
    metadata = [
        json.dumps({"place": round(place, 6), **{name: True for name, share in SHARES.items() if place < share}})
        for place in places
    ]
    connection.execute(
        "insert into documents (collection_id, external_id, metadata) select 1, 'd' || n, m "
        "from unnest(%s::jsonb[]) with ordinality u (m, n)",
        (metadata,),
    )
    connection.execute(
        "insert into versions (document_id, number, sha256, media_type, text, valid_from) "
        "select id, 1, external_id, 'text/plain', external_id, '-infinity' from documents order by substr(external_id, 2)::bigint"
    )
    connection.execute(
        "insert into chunks (collection_id, document_id, sha256, text, term_count, live) "
        "select 1, document_id, sha256, repeat(sha256 || ' ', 100), 0, '{[-infinity,infinity)}' from versions order by id"
    )
    connection.execute(
        "insert into version_chunks (version_id, ordinal, chunk_id, span_start, span_end, paragraph) "
        "select id, 0, id, 0, 1, 1 from versions"
    )
    ids = np.arange(1, chunks + 1)
    halves = np.concatenate([np.full((chunks, 1), DIMENSIONS, ">u2").view(np.uint8), np.zeros((chunks, 2), np.uint8),
                             vectors.astype(">f2").view(np.uint8)], axis=1)  # fmt: skip
    _copy(connection, "copy vectors (collection_id, chunk_id, space, embedding) from stdin (format binary)",
          [np.full(chunks, 1, ">i8"), ids.astype(">i8"), np.full(chunks, b"scale", "S5"), halves])  # fmt: skip
    holders = [chance.choice(chunks, count, replace=False, shuffle=False) + 1 for count in frequencies]
    term = np.repeat(np.arange(1, len(words) + 1), frequencies)
    chunk = np.concatenate(holders)
    often = np.minimum(chance.geometric(0.7, len(term)), 20)
    length = np.bincount(chunk, weights=often, minlength=chunks + 1).astype(int)
    connection.execute(
        "insert into terms (collection_id, term, document_count, max_frequency) "
        "select 1, w, n, m from unnest(%s::text[], %s::bigint[], %s::bigint[]) u (w, n, m)",
        (words, frequencies.tolist(), np.maximum.reduceat(often, np.cumsum(frequencies) - frequencies).tolist()),
    )
    _copy(connection, "copy postings (term_id, chunk_id, frequency, length) from stdin (format binary)",
          [term.astype(">i8"), chunk.astype(">i8"), often.astype(">i4"), length[chunk].astype(">i4")])  # fmt: skip
    connection.execute("update collections set chunk_count = %s, term_count = %s", (chunks, int(length.sum())))
    connection.execute("vacuum (analyze)")


def _copy(connection: psycopg.Connection[Any], query: str, columns: Sequence[np.ndarray], size: int = 100_000) -> None:
    """Rows of PostgreSQL's binary COPY, laid out by NumPy: each field behind its length in bytes."""
    widths = [column[0].nbytes if column.ndim > 1 else column.itemsize for column in columns]
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for first in range(0, len(columns[0]), size):
            parts = [column[first : first + size] for column in columns]
            rows = len(parts[0])
            fields = [np.full((rows, 1), len(columns), ">i2").view(np.uint8)]
            for part, width in zip(parts, widths, strict=True):
                fields += [
                    np.full((rows, 1), width, ">i4").view(np.uint8),
                    np.ascontiguousarray(part).view(np.uint8).reshape(rows, width),
                ]
            copy.write(np.concatenate(fields, axis=1).tobytes())
        copy.write(b"\xff\xff")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=100, help="questions")
    parser.add_argument("--url", help="a PostgreSQL whose login may make databases; the settings' when unset")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    asyncio.run(main(options.chunks, options.rounds, options.url, options.as_json))
