"""Measures finding on one evaluation set: quality, CPU, throughput, ingest and size of each way to search.

python benchmarks/retrieval.py SET [--questions N] [--timed N] [--seed N] [--database URL] [--json]

SET: a BEIR folder (corpus.jsonl, queries.jsonl, qrels.tsv), a folder with corpus.jsonl and questions.jsonl, or a SQuAD .json.
It is indexed into a new embedded database under a temporary home, which is removed at the end; with --database into a
collection `bench-...` there, which stays. Quality is of documents: one stands where its best passage stands.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from retrieval_report import report

from orchestrator.app import open_database
from orchestrator.database import Database
from orchestrator.evaluation.metrics import compare, mean, ndcg, rank_documents, recall, reciprocal_rank
from orchestrator.evaluation.sets import EvalSet, Question, load_set
from orchestrator.knowledge.embed import open_embedder
from orchestrator.knowledge.ingest import IngestReport, ingest_documents
from orchestrator.knowledge.rerank import Ranker, open_reranker
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.split import split
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.vectors import EMBED_TEXTS
from orchestrator.launch import postgres
from orchestrator.protocols import Embedder, TokenEmbedder
from orchestrator.resources import processor
from orchestrator.settings import Settings
from orchestrator.types import Passage, SearchMode, SearchRequest

RRF_K = 60  # Cormack, Clarke & Büttcher 2009
DEPTH = 100  # documents of each list: what RRF fuses and recall@100 sees
MAX_K = 1_000
AT_ONCE = 8
PATIENCE_S = 60.0  # for the re-ranker while quality is measured: a busy machine must not look like a bad ranking
WARM = 10  # searches before those that are timed: caches and plans
SAMPLE = 300  # documents that are embedded once more, to have the embedder's time alone
RRF, LEXICAL, DENSE, HYBRID, RERANKED = "RRF of both", "BM25", "dense", "hybrid", "re-ranked"
BASES = (LEXICAL, DENSE, RRF)
SELECT_1, BARE_DENSE = "SELECT 1", "hand-written dense query"
METRICS: Mapping[str, Callable[[Sequence[str], Mapping[str, float]], float]] = {
    "ndcg@10": lambda ranking, grades: ndcg(ranking, grades, 10),
    "mrr@10": lambda ranking, grades: reciprocal_rank(ranking, grades, 10),
    "recall@10": lambda ranking, grades: recall(ranking, grades, 10),
    "recall@100": lambda ranking, grades: recall(ranking, grades, 100),
}
TENANT = """select set_config('orchestrator.tenant', %s, false)"""
TENANT_ID = """select set_config('orchestrator.tenant_id', id::text, false) from tenants where name = %s"""
DENSE_QUERY = """
    select chunk_id, embedding <#> %(vector)s::halfvec as distance from vectors
    where collection_id = %(collection_id)s and space = %(space)s
    order by embedding <#> %(vector)s::halfvec limit 10"""
SIZES = """
    select t.name, sum(pg_relation_size(t.oid)) as rows, sum(pg_indexes_size(t.oid)) as indexes,
           sum(coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0)) as large
    from (select case when i.inhparent is null then k.relname else p.relname end as name, k.oid
          from pg_class k left join pg_inherits i on i.inhrelid = k.oid left join pg_class p on p.oid = i.inhparent
          where k.relkind = 'r' and k.relnamespace = 'public'::regnamespace) t
    join pg_class c on c.oid = t.oid
    where t.name in ('vectors', 'postings', 'terms', 'chunks', 'versions', 'version_chunks', 'documents')
    group by t.name order by t.name"""


@dataclass(frozen=True)
class Asked:
    """A question with its vector, which is made before anything is timed."""

    question: Question
    vector: Sequence[float]


Search = Callable[[Asked, int], Awaitable[Sequence[Passage]]]


@dataclass(frozen=True)
class World:
    """What the measurements share: one database connection for exact CPU accounts, more for throughput."""

    settings: Settings
    database: Database
    store: PgStore
    embedder: Embedder
    retriever: Retriever
    url: str
    collection: str
    is_local: bool = True

    def on(self, database: Database) -> World:
        """The same on other connections."""
        store = PgStore(database, self.settings.tenant, self.embedder.space)
        return replace(self, database=database, store=store, retriever=replace(self.retriever, store=store))


async def measure(arguments: argparse.Namespace, wanted: EvalSet) -> dict[str, Any]:
    """Everything that is measured on one set, as JSON values."""
    async with open_world(arguments, wanted) as world:
        say(f"{wanted.name}: {len(wanted.documents)} documents, {len(wanted.questions)} questions")
        ingested = await ingest(world, wanted)
        chosen = wanted.sample(arguments.questions or len(wanted.questions), arguments.seed)
        asked = await embed_questions(world, chosen.questions)
        stats = await world.store.stats(world.collection)
        per_document = math.ceil(stats.chunk_count / max(stats.document_count, 1))
        searches = ways(world)
        patient = ways(replace(world, retriever=replace(world.retriever, budget_s=PATIENCE_S)))
        rankings = await rank_all(patient, asked, per_document)
        timed = random.Random(arguments.seed).sample(asked, min(arguments.timed, len(asked)))
        return {
            "set": {
                "name": wanted.name,
                "documents": len(wanted.documents),
                "questions": len(chosen.questions),
                "questions_of_set": len(wanted.questions),
                "chunks": stats.chunk_count,
                "languages": list(stats.languages),
                "passages_for_10_documents": min(10 * per_document, MAX_K),
            },
            "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
            "date": datetime.now(UTC).date().isoformat(),
            "quality": quality(rankings, asked),
            "comparisons": comparisons(rankings, asked),
            "cost": await cost(world, searches, timed),
            "embedding": world.embedder.space,
            "end_to_end": await end_to_end(world, timed),
            "at_once": AT_ONCE,
            "throughput": await throughput(world, timed),
            "ingest": ingested,
            "bytes": await sizes(world),
        }


@asynccontextmanager
async def open_world(arguments: argparse.Namespace, wanted: EvalSet) -> AsyncIterator[World]:
    """A database with one connection, and an embedder."""
    settings = Settings.from_env()
    name = f"bench-{wanted.name}-{wanted.sha256[:8]}"
    with temporary_home() as home:
        settings = replace(settings, home=home, pool_size=1, database_url=arguments.database or settings.database_url)
        url = settings.database_url or await asyncio.to_thread(postgres.start, home)
        settings = replace(settings, database_url=url)
        try:
            async with open_database(settings) as database:
                embedder = await asyncio.to_thread(open_embedder, settings, say)
                reranker = await asyncio.to_thread(open_reranker, settings, embedder, say)
                store = PgStore(database, settings.tenant, embedder.space)
                retriever = Retriever(store, embedder, reranker, budget_s=settings.rerank_budget_ms / 1000)
                is_local = not arguments.database
                yield World(settings, database, store, embedder, retriever, url, name, is_local)
        finally:
            if not arguments.database:
                await asyncio.to_thread(postgres.stop, home)


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A home for the embedded PostgreSQL that its own user can reach."""
    home = Path(tempfile.mkdtemp(prefix="orch-bench-"))
    home.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


# ingest


async def ingest(world: World, wanted: EvalSet) -> dict[str, Any]:
    """Indexes the documents; how fast, and in which ratio to embedding alone."""
    began, cpu = time.perf_counter(), time.process_time()
    with server_time(world) as server:
        report = await ingest_documents(
            wanted.documents,
            store=world.store,
            embedder=world.embedder,
            collection=world.collection,
            progress=every(500, lambda done: say(f"indexed {done} of {len(wanted.documents)}")),
        )
        server_cpu_s = server()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    refuse_failures(report)
    # The visibility map, as autovacuum would leave it a minute later.
    async with await psycopg.AsyncConnection.connect(world.url, autocommit=True) as connection:
        await connection.execute("vacuum (analyze)")
    wall_each, cpu_each = await embedding_alone(world, wanted) if report.chunks_new else (0.0, 0.0)
    embedding_s, embedding_cpu_s = wall_each * report.chunks_new, cpu_each * report.chunks_new
    return {
        "documents": report.added,
        "chunks": report.chunks_new,
        "seconds": seconds,
        "documents_per_s": report.added / seconds,
        "client_cpu_s": cpu_s,
        "server_cpu_s": server_cpu_s,
        "embedding_alone_s": embedding_s,
        "embedding_alone_cpu_s": embedding_cpu_s,
        "wall_ratio_to_embedding": seconds / embedding_s if embedding_s else None,
        "cpu_ratio_to_embedding": (cpu_s + (server_cpu_s or 0)) / embedding_cpu_s if embedding_cpu_s else None,
    }


async def embedding_alone(world: World, wanted: EvalSet) -> tuple[float, float]:
    """Seconds and CPU seconds to embed one chunk of these documents, in bulk and doing nothing else; from a sample."""
    documents = random.Random(0).sample(wanted.documents, min(SAMPLE, len(wanted.documents)))
    texts = [chunk.indexed for document in documents for chunk in split(document)]
    embedder = world.embedder
    embed = embedder.embed_tokens if isinstance(embedder, TokenEmbedder) else embedder.embed
    began, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(texts), EMBED_TEXTS):
        await embed(texts[first : first + EMBED_TEXTS])
    return (time.perf_counter() - began) / len(texts), (time.process_time() - cpu) / len(texts)


def refuse_failures(report: IngestReport) -> None:
    """A corpus with holes would be measured as a bad ranking."""
    if report.failures:
        first = report.failures[0]
        raise SystemExit(f"{report.failed} documents were not indexed, the first: {first.source}: {first.reason}")


def every(step: int, tell: Callable[[int], None]) -> Callable[[Any], None]:
    """A progress callback that tells each step-th document."""
    done = 0

    def count(event: Any) -> None:
        nonlocal done
        if event.status != "embedding":
            done += 1
            if done % step == 0:
                tell(done)

    return count


async def embed_questions(world: World, questions: Sequence[Question]) -> list[Asked]:
    """All vectors, one by one as questions come; from now on the embedder has them in memory."""
    remember(world.embedder)
    return [Asked(question, (await world.embedder.embed([question.text]))[0]) for question in questions]


def remember(embedder: Embedder) -> None:
    """Keeps the token vectors of every question; the embedder itself keeps those of the last few."""
    if not isinstance(embedder, TokenEmbedder):
        return
    make, known = embedder.embed_question, dict[str, Any]()

    async def embed_question(text: str) -> Any:
        if text not in known:
            known[text] = await make(text)
        return known[text]

    setattr(embedder, "embed_question", embed_question)  # noqa: B010 - a protocol's method


# ways to search


def ways(world: World) -> dict[str, Search]:
    """Each way to search. RRF is not among them: it is computed from the lists of the first two."""
    return {
        LEXICAL: by_mode(world, "lexical"),
        DENSE: by_mode(world, "dense"),
        HYBRID: by_first_stage(world),
        RERANKED: as_configured(world),
    }


def request_for(world: World, asked: Asked, k: int, **options: Any) -> SearchRequest:
    """What a store or a retriever is asked."""
    return SearchRequest(
        asked.question.text, asked.vector, world.collection, k, world.settings.tenant, asked.question.as_of, **options
    )


def by_mode(world: World, mode: SearchMode) -> Search:
    """The store alone, by one side."""

    async def search(asked: Asked, k: int) -> Sequence[Passage]:
        return await world.store.search(request_for(world, asked, k, mode=mode))

    return search


def by_first_stage(world: World) -> Search:
    """The store alone: BM25 and dense fused in one statement, with the weight that the question calls for."""
    ranker = Ranker(world.embedder)

    async def search(asked: Asked, k: int) -> Sequence[Passage]:
        weights = await ranker.weights(asked.question.text)
        return await world.store.search(request_for(world, asked, k, dense_weight=weights.dense))

    return search


def as_configured(world: World) -> Search:
    """What a user gets: all stages."""

    async def search(asked: Asked, k: int) -> Sequence[Passage]:
        return await world.retriever.search(request_for(world, asked, k))

    return search


# quality

# way -> "short" (what k = 10 gives) or "long" (k = 100) -> documents of each question
Rankings = dict[str, dict[str, list[list[str]]]]


async def rank_all(searches: Mapping[str, Search], asked: Sequence[Asked], per_document: int) -> Rankings:
    """Documents in order, for each way and question: with k as a user gives it, and deep for recall@100."""
    short, long = min(10 * per_document, MAX_K), min(DEPTH * per_document, MAX_K)
    found: Rankings = {}
    for name, search in searches.items():
        began = time.perf_counter()
        deep = await rank(search, asked, long)
        # BM25 and dense alone are exact: their first ten are the same at any depth.
        found[name] = {"long": deep, "short": deep if name in BASES else await rank(search, asked, short)}
        say(f"{name}: {len(asked)} questions in {time.perf_counter() - began:.0f} s")
    pairs = zip(found[LEXICAL]["long"], found[DENSE]["long"], strict=True)
    fused = [reciprocal_rank_fusion([a[:DEPTH], b[:DEPTH]]) for a, b in pairs]
    found[RRF] = {"long": fused, "short": fused}
    order = [*BASES, *(name for name in found if name not in BASES)]
    return {name: found[name] for name in order}


async def rank(search: Search, asked: Sequence[Asked], k: int) -> list[list[str]]:
    """Documents of each question, in order."""
    return [rank_documents(passage.external_id for passage in await search(each, k)) for each in asked]


def reciprocal_rank_fusion(lists: Iterable[Sequence[str]]) -> list[str]:
    """Sum of 1 / (60 + rank) over the lists; equal sums in the order of the first list."""
    scores: dict[str, float] = {}
    for names in lists:
        for place, name in enumerate(names, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (RRF_K + place)
    return sorted(scores, key=lambda name: -scores[name])


def values(rankings: Mapping[str, list[list[str]]], asked: Sequence[Asked], metric: str) -> list[float]:
    """The metric of each question."""
    chosen = rankings["long" if metric.endswith("100") else "short"]
    measure_one = METRICS[metric]
    return [measure_one(ranking, each.question.relevant) for ranking, each in zip(chosen, asked, strict=True)]


def quality(rankings: Rankings, asked: Sequence[Asked]) -> dict[str, Any]:
    """Means with standard errors, and how often k = 10 gives the ten that a deep search gives."""
    found: dict[str, Any] = {}
    for name, lists in rankings.items():
        means = {metric: mean(values(lists, asked, metric)) for metric in METRICS}
        same = [a[:10] == b[:10] for a, b in zip(lists["short"], lists["long"], strict=True)]
        found[name] = {
            **{metric: {"value": m.value, "error": m.error} for metric, m in means.items()},
            "same_at_any_depth": statistics.mean(same),
        }
    return found


def comparisons(rankings: Rankings, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Hybrid and re-ranked against the best of BM25, dense and RRF, and re-ranked against hybrid, by nDCG@10."""
    scores = {name: values(lists, asked, "ndcg@10") for name, lists in rankings.items()}
    best = max(BASES, key=lambda name: math.fsum(scores[name]))
    pairs = [(HYBRID, best), (RERANKED, best), (RERANKED, HYBRID)]
    return [
        {"system": a, "against": b, **difference(scores[a], scores[b])} for a, b in pairs if a in scores and b in scores
    ]


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """A paired difference as JSON values."""
    found = compare(ours, theirs)
    return {"difference": found.value, "low": found.low, "high": found.high, "p": found.p}


# cost


@contextmanager
def server_time(world: World) -> Iterator[Callable[[], float | None]]:
    """Reads the CPU seconds of our backends since the block began; None for a server on another machine."""
    before = backend_seconds(world)
    yield lambda: None if before is None else (backend_seconds(world) or 0) - before


def backend_seconds(world: World) -> float | None:
    """CPU seconds of the backends of our own connections, to the nanosecond where the kernel has it."""
    if not world.is_local:
        return None
    with psycopg.connect(world.url, autocommit=True) as connection:
        rows = connection.execute(
            "select pid from pg_stat_activity where datname = current_database() and backend_type = 'client backend' "
            "and pid <> pg_backend_pid()"
        ).fetchall()
    return sum(process_seconds(row[0]) for row in rows)


def process_seconds(pid: int) -> float:
    """CPU seconds of a process: its scheduler's account, else the ticks of its stat line."""
    folder = Path("/proc") / str(pid)
    try:
        return int((folder / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError):
        pass
    try:
        cells = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(cells[11]) + int(cells[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Spent:
    """Milliseconds of each call of one way."""

    wall: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)


async def spend(spent: Spent, backend: int | None, call: Callable[[], Awaitable[Any]]) -> Any:
    """What the call gives; what it took is noted. ``backend``: the process that serves it, when it can be seen."""
    server = process_seconds(backend) if backend else 0.0
    began, client = time.perf_counter(), time.process_time()
    found = await call()
    spent.client.append((time.process_time() - client) * 1000)
    spent.wall.append((time.perf_counter() - began) * 1000)
    spent.server.append((process_seconds(backend) - server) * 1000 if backend else 0.0)
    return found


async def cost(world: World, searches: Mapping[str, Search], timed: Sequence[Asked]) -> dict[str, Any]:
    """CPU and latency of one search with its vector at hand, every way in turn so that a busy machine hits all alike."""
    async with await bare_connection(world) as bare:
        target = await world.store.collection(world.collection)
        pid = await backend_of(world)
        calls: dict[str, tuple[int, Callable[[Asked], Awaitable[Any]]]] = {
            SELECT_1: (bare.info.backend_pid, lambda asked: bare.execute("select 1", prepare=True)),
            BARE_DENSE: (bare.info.backend_pid, lambda asked: bare.execute(DENSE_QUERY, dense_values(target, asked), prepare=True)),
            **{name: (pid, lambda asked, search=search: search(asked, 10)) for name, search in searches.items()},
        }  # fmt: skip
        for _, call in calls.values():
            for asked in timed[:WARM]:
                await call(asked)
        spent = {name: Spent() for name in calls}
        for asked in timed:
            for name, (backend, call) in calls.items():
                seen = backend if world.is_local else None
                await spend(spent[name], seen, lambda call=call, asked=asked: call(asked))
    rows = {name: summary(each, world.is_local) for name, each in spent.items()}
    for row in rows.values():
        row["ratio_to_select_1"] = row["cpu_ms"] / rows[SELECT_1]["cpu_ms"]
        row["ratio_to_dense"] = row["cpu_ms"] / rows[BARE_DENSE]["cpu_ms"]
    return rows


def dense_values(target: Any, asked: Asked) -> dict[str, Any]:
    """Parameters of the hand-written query."""
    return {"collection_id": target.id, "space": target.space, "vector": str(list(asked.vector))}


def summary(spent: Spent, with_server: bool) -> dict[str, Any]:
    """Means of CPU and percentiles of the wall."""
    return {
        "client_cpu_ms": statistics.mean(spent.client),
        "server_cpu_ms": statistics.mean(spent.server) if with_server else None,
        "cpu_ms": statistics.mean(spent.client) + statistics.mean(spent.server),
        **percentiles(spent.wall),
    }


def percentiles(wall: Sequence[float]) -> dict[str, float]:
    """p50 and p95, in milliseconds."""
    ordered = sorted(wall)
    return {"p50_ms": statistics.median(ordered), "p95_ms": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]}


async def bare_connection(world: World) -> psycopg.AsyncConnection[Any]:
    """A connection as anybody would open it, seeing our tenant's rows."""
    connection = await psycopg.AsyncConnection.connect(world.url, autocommit=True)
    await connection.execute("set jit = off")  # as ours do
    await connection.execute(TENANT, (world.settings.tenant,))
    await connection.execute(TENANT_ID, (world.settings.tenant,))
    return connection


async def backend_of(world: World) -> int:
    """The process that serves the store: its pool has one connection."""
    async with world.database.session() as connection:
        return connection.info.backend_pid


class WatchedStore:
    """The store, which notes what each search takes."""

    def __init__(self, store: PgStore, backend: int | None) -> None:
        self._store, self._backend = store, backend
        self.spent = Spent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def search(self, request: SearchRequest) -> Sequence[Passage]:
        """As the store's."""
        return await spend(self.spent, self._backend, lambda: self._store.search(request))  # type: ignore[no-any-return]


async def end_to_end(world: World, timed: Sequence[Asked]) -> dict[str, Any]:
    """From the question's text to passages as configured, one at a time, and each stage of it."""
    backend = await backend_of(world) if world.is_local else None
    watched = WatchedStore(world.store, backend)
    retriever = replace(world.retriever, store=watched)
    whole, embedding = Spent(), Spent()

    async def ask(asked: Asked) -> None:
        text = asked.question.text + " "  # reads alike, and no memory knows it
        [vector] = await spend(embedding, backend, lambda: world.embedder.embed([text]))
        again = Asked(replace(asked.question, text=text), vector)
        await retriever.search(request_for(world, again, 10))

    for asked in timed:
        await spend(whole, backend, lambda asked=asked: ask(asked))
    parts = {"embedding": embedding, "search": watched.spent}
    rest = Spent(*(rest_of(whole, parts.values(), name) for name in ("wall", "client", "server")))
    stages = {**parts, "re-ranking": rest}
    return {
        **summary(whole, world.is_local),
        "stages": {name: summary(spent, world.is_local) for name, spent in stages.items()},
    }


def rest_of(whole: Spent, parts: Iterable[Spent], name: str) -> list[float]:
    """What the parts leave of each call."""
    columns = zip(*(getattr(part, name) for part in parts), strict=True)
    return [each - sum(taken) for each, taken in zip(getattr(whole, name), columns, strict=True)]


async def throughput(world: World, timed: Sequence[Asked]) -> dict[str, Any]:
    """Searches per second of eight callers at once, in rounds so that all ways see the same machine."""
    async with AsyncExitStack() as stack:
        settings = replace(world.settings, pool_size=AT_ONCE)
        database = await stack.enter_async_context(open_database(settings))
        wide = world.on(database)
        bare = [await stack.enter_async_context(await bare_connection(world)) for _ in range(AT_ONCE)]
        target = await world.store.collection(world.collection)
        calls: dict[str, Callable[[Asked, int], Awaitable[Any]]] = {
            SELECT_1: lambda asked, lane: bare[lane].execute("select 1", prepare=True),
            BARE_DENSE: lambda asked, lane: bare[lane].execute(DENSE_QUERY, dense_values(target, asked), prepare=True),
            **{name: lambda asked, lane, search=search: search(asked, 10) for name, search in ways(wide).items()},
        }
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(4):  # the first opens connections and makes plans
            for name, call in calls.items():
                rate = await searches_per_s(call, timed)
                if turn:
                    rates[name].append(rate)
    found = {name: statistics.median(each) for name, each in rates.items()}
    return {
        name: {"per_s": rate, "ratio_to_select_1": rate / found[SELECT_1], "ratio_to_dense": rate / found[BARE_DENSE]}
        for name, rate in found.items()
    }


async def searches_per_s(call: Callable[[Asked, int], Awaitable[Any]], timed: Sequence[Asked]) -> float:
    """All questions once, by eight lanes that each take the next."""
    waiting = iter(timed)

    async def lane(number: int) -> None:
        for asked in waiting:
            await call(asked, number)

    began = time.perf_counter()
    await asyncio.gather(*(lane(number) for number in range(AT_ONCE)))
    return len(timed) / (time.perf_counter() - began)


async def sizes(world: World) -> dict[str, Any]:
    """Bytes of each table: rows, indexes, and what is kept beside the rows (token vectors, long texts)."""
    async with await psycopg.AsyncConnection.connect(world.url) as connection:
        rows = await (await connection.execute(SIZES)).fetchall()
    return {
        name: {"rows": int(rows_), "indexes": int(indexes), "large": int(large)} for name, rows_, indexes, large in rows
    }


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Parses the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path, metavar="SET")
    parser.add_argument("--questions", type=int, help="ask this many, drawn with the seed; all when not given")
    parser.add_argument("--timed", type=int, default=200, help="questions that are timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", metavar="URL", help="PostgreSQL to use in place of a new embedded one")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.set.exists():
        say(f"skipped: there is no {arguments.set}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the embedded database is stopped and removed then too
    result = asyncio.run(measure(arguments, load_set(arguments.set)))
    print(json.dumps(result, indent=1) if arguments.json else report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
