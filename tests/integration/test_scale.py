"""Large collections: BM25 without reading every posting, partitions that come and go, neighbours, churn, live recall."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.database import Database
from orchestrator.errors import DatabaseError
from orchestrator.knowledge import ingest, partitions
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.search import RecallSample, search_passages
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

DIMENSIONS = 32
Sql = psycopg.Connection[Any]


@pytest.fixture
def sql(database_url: str) -> Iterator[Sql]:
    """A connection that passes the policies, writing for the default tenant."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("select set_config('orchestrator.tenant_id', '1', false)")
        yield connection


def add_collection(sql: Sql, vectors: np.ndarray, *, name: str = "big", tenant: str = "default") -> int:
    """A collection of one chunk for each vector, written without the ingest; documents are named d1, d2..."""
    sql.execute("insert into tenants (name) values (%s) on conflict do nothing", (tenant,))
    sql.execute("select set_config('orchestrator.tenant_id', id::text, false) from tenants where name = %s", (tenant,))
    collection = sql.execute(
        "insert into collections (name, embedding_space, dimensions, languages, chunk_count, term_count) "
        "values (%s, 'hash-32', %s, '{simple}', %s, %s) returning id",
        (name, vectors.shape[1], len(vectors), len(vectors)),
    ).fetchone()[0]  # type: ignore[index]
    sql.execute(
        """
        with d as (
            insert into documents (collection_id, external_id, metadata)
            select %(c)s, 'd' || n, jsonb_build_object('n', n, 'tenth', n %% 10, 'thousandth', n %% 1000)
            from generate_series(1, %(n)s) n returning id, external_id, (metadata->>'n')::bigint as n
        ), v as (
            insert into versions (document_id, number, sha256, media_type, text, valid_from)
            select id, 1, external_id, 'text/plain', external_id, '-infinity' from d returning id, document_id
        ), k as (
            insert into chunks (collection_id, document_id, sha256, text, term_count, live)
            select %(c)s, id, external_id, external_id, 1, '{[-infinity,infinity)}' from d order by n returning id, document_id
        )
        insert into version_chunks (version_id, ordinal, chunk_id, span_start, span_end, paragraph)
        select v.id, 0, k.id, 0, 1, 1 from k join v using (document_id)
        """,
        {"c": collection, "n": len(vectors)},
    )
    sql.execute(
        "insert into vectors (collection_id, chunk_id, space, embedding) "
        "select %s, k.id, 'hash-32', e::halfvec from unnest(%s::text[]) with ordinality u (e, n) "
        "join documents d on d.collection_id = %s and d.external_id = 'd' || n join chunks k on k.document_id = d.id",
        (collection, [str(vector) for vector in vectors.tolist()], collection),
    )
    sql.execute("analyze")
    return int(collection)


def clustered(count: int, seed: int = 0, dimensions: int = DIMENSIONS) -> np.ndarray:
    """Unit vectors around a few hundred centres."""
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((200, dimensions))
    vectors = centres[chance.integers(200, size=count)] + 0.6 * chance.standard_normal((count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def add_postings(sql: Sql, collection: int, words: int, scale: float) -> None:
    """Words w1, w2... by Zipf's law: the n-th is held by ``scale / n`` of the chunks, at least one."""
    sql.execute("select setseed(0.5)")
    sql.execute(
        """
        create temporary table p on commit drop as
        select t, k.id as chunk_id, 1 + floor(-ln(1 - random()) * 1.2)::integer as frequency
        from generate_series(1, %(words)s) t
        cross join lateral (
            select id from chunks where collection_id = %(c)s and t > 0 order by hashint8(id * 7919 + t) limit
            greatest(1, (select count(*) from chunks where collection_id = %(c)s) * %(scale)s / t)) k
        """.replace("on commit drop ", ""),
        {"c": collection, "words": words, "scale": scale},
    )
    sql.execute(
        """
        with named as (
            insert into terms (collection_id, term, document_count, max_frequency)
            select %(c)s, 'w' || t, count(*), max(frequency) from p group by t returning id, term
        ), lengths as (select chunk_id, sum(frequency) as length from p group by 1)
        insert into postings (term_id, chunk_id, frequency, length)
        select n.id, p.chunk_id, p.frequency, l.length from p join named n on n.term = 'w' || p.t join lengths l using (chunk_id)
        """,
        {"c": collection},
    )
    sql.execute("update collections set term_count = (select sum(frequency) from p) where id = %s", (collection,))
    sql.execute("drop table p")
    sql.execute("vacuum analyze postings, terms")


EXHAUSTIVE = """
select k.id, s.score
from (select p.chunk_id, sum(ln(1 + (c.chunk_count - t.document_count + 0.5) / (t.document_count + 0.5)::float8) * 2.2 * p.frequency
             / (p.frequency + 1.2 * (0.25 + 0.75 * p.length * c.chunk_count / c.term_count))) as score
      from collections c join terms t on t.collection_id = c.id join postings p on p.term_id = t.id
      where c.id = %(collection)s and t.term = any (%(words)s) group by 1) s
join chunks k on k.id = s.chunk_id
join documents d on d.id = k.document_id
where k.live @> %(at)s::timestamptz and (%(filter)s::jsonpath is null or d.metadata @@ %(filter)s::jsonpath)
order by s.score desc, k.id
limit %(limit)s
"""


async def test_bm25_of_a_large_collection_equals_reading_every_posting(sql: Sql, database: Database) -> None:
    collection = add_collection(sql, clustered(12_000))
    add_postings(sql, collection, 3_000, 1.2)
    assert sql.execute("select count(*) from postings").fetchone()[0] > 100_000  # type: ignore[index]
    await partitions.promote(database, "big")
    chance = random.Random(1)
    for where in (None, {"tenth": {"lte": 4}}):
        for _ in range(40):
            words = [f"w{int(3_000 ** chance.random())}" for _ in range(chance.randrange(1, 9))]
            request = SearchRequest(" ".join(words), (), collection="big", mode="lexical", where=where)
            found = await search_passages(database, request, None)
            values = {"collection": collection, "words": words, "at": "now", "limit": 10}
            filter = None if where is None else '$."tenth" <= 4'
            expected = sql.execute(EXHAUSTIVE, {**values, "filter": filter}).fetchall()
            assert [p.scores["bm25"] for p in found] == pytest.approx([score for _, score in expected])
            assert {p.chunk_id for p in found if p.scores["bm25"] > expected[-1][1] + 1e-9} <= {
                chunk for chunk, _ in expected
            }


@pytest.fixture(scope="module")
def small(postgres_url: str, template: str, new_database: Any) -> Iterator[tuple[Sql, int]]:
    """300 chunks with 25 words, of which a third is not valid any more."""
    with new_database() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select set_config('orchestrator.tenant_id', '1', false)")
        collection = add_collection(connection, clustered(300))
        add_postings(connection, collection, 25, 1.5)
        connection.execute("update chunks set live = '{[-infinity,2020-01-01)}' where id % 3 = 0")
        yield connection, collection


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    words=st.lists(st.integers(1, 25), min_size=1, max_size=8, unique=True),
    wanted=st.sampled_from([1, 3, 10, 40]),
    budget=st.sampled_from([0, 5, 40, 200]),
    width=st.sampled_from([1, 5, 60]),
    at=st.sampled_from(["2010-01-01", "now"]),
    filter=st.sampled_from([None, '$."tenth" == 3', '$."n" < 0']),
)
def test_best_by_terms_is_exact_wherever_it_stops(
    small: tuple[Sql, int], words: list[int], wanted: int, budget: int, width: int, at: str, filter: str | None
) -> None:
    sql, collection = small
    values = {
        "collection": collection,
        "words": [f"w{word}" for word in words],
        "at": at,
        "filter": filter,
        "limit": wanted,
    }
    expected = sql.execute(EXHAUSTIVE, values).fetchall()
    found = sql.execute(
        """
        with c as (select *, bm25_k1 * 0.75::float8 * chunk_count / term_count as slope from collections where id = %(collection)s),
        t as (select t.id, t.document_count, t.max_frequency, 2.2::float8 * ln(1 + (c.chunk_count - t.document_count + 0.5)
                     / (t.document_count + 0.5)::float8) as weight, c.slope
              from c join terms t on t.collection_id = c.id where t.term = any (%(words)s)),
        a as (select array_agg(id order by document_count, id) as ids, array_agg(weight order by document_count, id) as weights,
                     array_agg(document_count::bigint order by document_count, id) as counts,
                     array_agg(weight * max_frequency / (max_frequency + 0.3 + slope * max_frequency)
                               order by document_count, id) as bounds,
                     max(slope) as slope from t)
        select b.scores from a, best_by_terms(ids, weights, counts, bounds, 0.3, slope, %(limit)s, %(limit)s, %(width)s,
                                              %(at)s::timestamptz, %(filter)s::jsonpath, %(budget)s) b
        """,
        {**values, "width": width, "budget": budget},
    ).fetchone()[0]  # type: ignore[index]
    assert (found or []) == pytest.approx([score for _, score in expected], rel=1e-6)


# Partitions.


def documents(count: int) -> list[Document]:
    return [Document(f"d{number}", f"d{number}", f"Number {number} of the list.", "test") for number in range(count)]


async def everything(store: PgStore, k: int = 200) -> set[str]:
    found = await store.search(SearchRequest("number", [1.0] + [0.0] * 63, collection="c", k=k))
    return {passage.external_id for passage in found if "cosine" in passage.scores}


async def test_a_search_says_the_same_before_in_and_after_a_partition(
    database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await ingest_documents(documents(80), store=store, embedder=embedder, collection="c")
    vector = (await embedder.embed(["Number 17"]))[0]
    requests = [
        SearchRequest("number 17 list", vector, collection="c", mode=mode, where=where)
        for mode in ("hybrid", "lexical", "dense")
        for where in (None, {"x": {"exists": False}})
    ]

    async def answers() -> list[Any]:
        return [
            [(p.external_id, p.scores) for p in await search_passages(database, request, None)] for request in requests
        ]

    before = await answers()
    assert await partitions.promote(database, "c")
    within = await answers()
    assert await partitions.demote(database, "c")
    after = await answers()
    for found in (within, after):
        assert [[name for name, _ in answer] for answer in found] == [[name for name, _ in answer] for answer in before]
        assert [s for answer in found for _, s in answer] == [pytest.approx(s) for answer in before for _, s in answer]
    assert not await partitions.demote(database, "c")


async def test_no_reader_misses_a_row_while_rows_move(
    database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await ingest_documents(documents(60), store=store, embedder=embedder, collection="c")
    expected = {document.external_id for document in documents(60)}
    stop = False
    seen: list[set[str]] = []

    async def read() -> None:
        while not stop:
            seen.append(await everything(store))

    async def write() -> None:
        number = 100
        while not stop:
            await ingest_documents(documents(number)[number - 1 :], store=store, embedder=embedder, collection="c")
            number += 1
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(task) for task in (read(), read(), write())]
    for _ in range(4):
        await partitions.promote(database, "c")
        await partitions.demote(database, "c")
    stop = True
    await asyncio.gather(*tasks)
    assert len(seen) > 8
    assert all(expected <= found for found in seen)
    assert len(await everything(store)) > 60


async def test_a_reader_with_an_older_snapshot_finds_all_rows(
    database_url: str, database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await ingest_documents(documents(30), store=store, embedder=embedder, collection="c")
    query = (
        "select count(*) from search_passages('default', 'c', null, 'number', '{}', '{}', %s::halfvec, 50, 50, null, null, null, "
        "'dense', 0.7, false)"
    )
    vector = str([1.0] + [0.0] * 63)

    async def from_before(change: Any) -> int:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("set transaction isolation level repeatable read")
            await connection.execute("set local role orchestrator_app")
            await connection.execute("select 1")
            # The change waits for tables that were read; only the snapshot is taken here.
            task = asyncio.create_task(change())
            await asyncio.sleep(0.5)
            row = await (await connection.execute(query, (vector,))).fetchone()
            await connection.commit()
        await task
        return int(row[0]) if row else 0

    assert await from_before(lambda: partitions.promote(database, "c")) == 30
    assert await from_before(lambda: partitions.demote(database, "c")) == 30
    tables = await database.fetch(
        "select 1 from pg_tables where tablename like 'vectors\\_%%' and tablename <> 'vectors_shared'"
    )
    assert tables == []


async def test_what_is_written_while_the_copy_is_indexed_is_taken_over(
    database: Database, store: PgStore, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest_documents(documents(20), store=store, embedder=embedder, collection="c")
    build = partitions.index_space

    async def slow(*arguments: Any) -> None:
        await build(*arguments)
        await ingest_documents(documents(25)[20:], store=store, embedder=embedder, collection="c")
        await store.erase("c", "d3")

    monkeypatch.setattr(partitions, "index_space", slow)
    await partitions.promote(database, "c")
    assert await everything(store) == {f"d{number}" for number in range(25)} - {"d3"}
    assert await database.fetch("select from vectors_shared") == []


async def test_a_promotion_that_was_cut_off_goes_on(
    database: Database, store: PgStore, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest_documents(documents(20), store=store, embedder=embedder, collection="c")
    build = partitions.index_space

    async def cut_off(*_: Any) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(partitions, "index_space", cut_off)
    with pytest.raises(DatabaseError):
        await partitions.promote(database, "c")
    assert len(await everything(store)) == 20
    monkeypatch.setattr(partitions, "index_space", build)
    first, second = await asyncio.gather(partitions.promote(database, "c"), partitions.promote(database, "c"))
    assert first or second
    assert len(await everything(store)) == 20


async def test_size_decides_where_vectors_are(
    database: Database, store: PgStore, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest_documents(documents(20), store=store, embedder=embedder, collection="c")
    assert await partitions.settle(database, "c") is None
    monkeypatch.setattr(partitions, "PROMOTE_FROM", 20)
    monkeypatch.setattr(partitions, "DEMOTE_BELOW", 10)
    assert await partitions.settle(database, "c") == "promoted"
    assert await partitions.settle(database, "c") is None
    for number in range(15):
        await store.erase("c", f"d{number}")
    assert await partitions.settle(database, "c") == "demoted"
    assert len(await everything(store)) == 5


async def test_a_large_ingest_ends_with_a_partition(
    database: Database, store: PgStore, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "PROMOTE_FROM", 20)
    monkeypatch.setattr(ingest, "ANALYZE_FROM", 20)
    await ingest_documents(documents(25), store=store, embedder=embedder, collection="c")
    row = await database.fetch_one("select partition = 'vectors_' || id as is_own from collections")
    assert row.is_own
    assert len(await everything(store)) == 25


async def test_a_load_of_more_than_is_stored_is_indexed_after_it(
    sql: Sql, database: Database, store: PgStore, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "DEMOTE_BELOW", 10)
    monkeypatch.setattr(ingest, "ANALYZE_FROM", 10)
    monkeypatch.setattr(ingest, "BATCH_DOCUMENTS", 10)
    await ingest_documents(documents(40), store=store, embedder=embedder, collection="c")
    await partitions.promote(database, "c")
    indexes: list[int] = []

    def see(event: ingest.IngestEvent) -> None:
        if event.status == "added":  # by the catalogue alone, which waits for no lock
            indexes.append(len(sql.execute("select from pg_class where relname like '%\\_hnsw\\_%'").fetchall()))

    await ingest_documents(documents(55), store=store, embedder=embedder, collection="c", progress=see)
    assert set(indexes) == {1}  # 15 are not many
    indexes.clear()
    await ingest_documents(documents(150), store=store, embedder=embedder, collection="c", progress=see)
    assert indexes[0] == 1
    assert indexes[-1] == 0
    see(ingest.IngestEvent("added", ""))
    assert indexes[-1] == 1
    assert len(await everything(store)) == 150


async def test_a_large_load_that_was_killed_gets_its_index_from_the_next_run(
    sql: Sql, database: Database, store: PgStore, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "DEMOTE_BELOW", 10)
    monkeypatch.setattr(ingest, "ANALYZE_FROM", 10)
    await ingest_documents(documents(40), store=store, embedder=embedder, collection="c")
    await partitions.promote(database, "c")
    assert await store.expect_load("c")  # as far as the run that was killed came
    assert len(await everything(store)) == 40
    await ingest_documents(documents(40), store=store, embedder=embedder, collection="c")
    assert len(sql.execute("select from pg_indexes where indexdef like '%hnsw%'").fetchall()) == 1


async def test_the_index_of_a_space_that_was_switched_to_is_built(
    sql: Sql, database: Database, store: PgStore, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest_documents(documents(20), store=store, embedder=embedder, collection="c")
    monkeypatch.setattr(partitions, "DEMOTE_BELOW", 10)
    await partitions.promote(database, "c")
    sql.execute("update vectors set space = 'next'")
    sql.execute("update collections set embedding_space = 'next'")
    assert len(await everything(store)) == 20  # by comparing all of them
    await partitions.settle(database, "c")
    indexes = sql.execute("select from pg_indexes where indexdef like '%hnsw%' and indexdef like '%next%'").fetchall()
    assert len(indexes) == 1
    assert len(await everything(store)) == 20


async def test_without_the_right_to_change_the_schema_a_collection_stays_exact(
    database: Database,
    store: PgStore,
    embedder: HashEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await ingest_documents(documents(20), store=store, embedder=embedder, collection="c")
    monkeypatch.setattr(partitions, "PROMOTE_FROM", 20)
    monkeypatch.setattr(Database, "ownership", Database.transaction)
    assert await partitions.settle(database, "c") is None
    assert "keeps its place" in caplog.text
    assert len(await everything(store)) == 20


async def test_a_partition_that_is_in_use_is_not_dropped(
    database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await ingest_documents(documents(20), store=store, embedder=embedder, collection="c")
    await partitions.promote(database, "c")
    name = (await database.fetch_one("select partition from collections")).partition
    for wrong in (name, "vectors_shared", "vectors_1; drop table documents", "documents"):
        with pytest.raises(DatabaseError, match="in use"):
            await partitions.drop(database, wrong)
    assert len(await everything(store)) == 20


async def test_a_partition_queried_by_its_name_shows_its_tenant_only(database: Database, sql: Sql) -> None:
    collection = add_collection(sql, clustered(30))
    sql.execute("insert into tenants (name) values ('other')")
    await partitions.promote(database, "big")
    queries = {
        "select": f"select chunk_id from vectors_{collection}",
        "update": f"update vectors_{collection} set space = 'x' returning chunk_id",
        "delete": f"delete from vectors_{collection} returning chunk_id",
    }
    for query in queries.values():
        assert await database.of("other").fetch(query) == []
    assert len(await database.fetch(queries["select"])) == 30
    with pytest.raises(DatabaseError, match="row-level security"):
        await database.of("other").fetch(
            f"insert into vectors_{collection} (collection_id, chunk_id, space, embedding, tenant_id) "
            f"select collection_id, 1, 'x', '[1]', 1 from (values ({collection})) c (collection_id)"
        )


# Neighbours.


@pytest.mark.parametrize("promoted", [False, True])
async def test_foreign_rows_near_the_question_neither_hide_own_rows_nor_cost(
    sql: Sql, database: Database, promoted: bool
) -> None:
    chance = np.random.default_rng(0)
    near = np.zeros(DIMENSIONS)
    near[0] = 1.0
    crowd = near + 0.05 * chance.standard_normal((20_000, DIMENSIONS))
    add_collection(sql, (crowd / np.linalg.norm(crowd, axis=1, keepdims=True)).astype(np.float16), tenant="neighbour")
    add_collection(sql, clustered(50, 1))
    if promoted:
        await partitions.promote(database.of("neighbour"), "big")

    async def ask(vector: np.ndarray) -> tuple[int, int]:
        """Passages found, and the rows of `vectors` that were read for them."""
        reads = (
            "select sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint as n from pg_stat_xact_user_tables "
            "where relname like 'vectors%%'"
        )
        async with database.transaction() as connection:

            async def read() -> int:  # of this connection, also what it has not reported from before
                return int((await (await connection.execute(reads)).fetchone()).n or 0)

            before = await read()
            rows = await connection.execute(
                "select 1 from search_passages('default', 'big', null, '', '{}', '{}', %s::halfvec, 10, 50, null, null, "
                "null, 'dense', 0.7, false)",
                (str(vector.tolist()),),
            )
            return len(await rows.fetchall()), await read() - before

    (found_near, read_near), (found_far, read_far) = await ask(near), await ask(-near)
    assert (found_near, found_far) == (10, 10)
    assert max(read_near, read_far) <= 1.2 * min(read_near, read_far)
    assert 50 <= read_near < 500


async def test_a_narrow_filter_in_a_large_partition_fills_k(sql: Sql, database: Database) -> None:
    vectors = clustered(20_000)
    add_collection(sql, vectors)
    await partitions.promote(database, "big")
    question = vectors[5].astype(float)
    cosines = vectors.astype(float) @ question
    numbers = np.arange(1, len(vectors) + 1)
    cases: list[tuple[dict[str, Any], np.ndarray]] = [
        ({"tenth": {"lt": 5}}, numbers % 10 < 5),
        ({"tenth": 3}, numbers % 10 == 3),
        ({"thousandth": {"lt": 10}}, numbers % 1000 < 10),
        ({"thousandth": 7}, numbers % 1000 == 7),
        ({"n": {"in": [3, 14, 15, 92]}}, np.isin(numbers, [3, 14, 15, 92])),
        ({"n": {"gt": 19_998}}, numbers > 19_998),
    ]
    for planner in ("on", "off"):
        async with database.session() as connection:
            await connection.execute("select set_config('enable_seqscan', %s, false)", (planner,))
        for where, allowed in cases:
            request = SearchRequest("", question.tolist(), collection="big", mode="dense", where=where)
            found = [int(p.external_id[1:]) for p in await search_passages(database, request, None)]
            exact = numbers[allowed][np.argsort(-cosines[allowed])][:10]
            assert len(found) == len(exact)
            assert len(set(found) & set(exact.tolist())) >= 0.9 * len(exact)


async def test_far_from_what_the_filter_lets_through_every_vector_is_compared(sql: Sql, database: Database) -> None:
    """6,000 rows that are let through lie behind 20,000 that are not: the index gives up before it has found one."""
    chance = np.random.default_rng(0)
    near = np.zeros(8)
    near[0] = 1.0
    crowd, others = (
        side * near + 0.1 * chance.standard_normal((count, 8)) for side, count in ((1, 24_000), (-1, 6_000))
    )
    vectors = np.concatenate([crowd, others])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    add_collection(sql, vectors)
    await partitions.promote(database, "big")
    request = SearchRequest("", near.tolist(), collection="big", mode="dense", where={"n": {"gt": 24_000}})
    found = [int(p.external_id[1:]) for p in await search_passages(database, request, None)]
    exact = 24_001 + np.argsort(-(vectors[24_000:].astype(float) @ near))[:10]
    assert len(set(found) & set(exact.tolist())) >= 9


# Churn (pgvector's own tests 014 and 047).


async def test_recall_survives_churn_and_vacuum(sql: Sql, database_url: str, database: Database) -> None:
    collection = add_collection(sql, clustered(3_000))
    await partitions.promote(database, "big")
    table = f"vectors_{collection}"
    spare = [row[0] for row in sql.execute(
        "insert into chunks (collection_id, document_id, sha256, text, term_count, live) "
        "select %s, (select id from documents limit 1), 's' || n, '', 0, '{[-infinity,infinity)}' from generate_series(1, 5000) n "
        "returning id", (collection,)).fetchall()]  # fmt: skip
    fresh = clustered(5_000, 3)

    async def client(number: int) -> None:
        chance = random.Random(number)
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            await connection.execute("select set_config('orchestrator.tenant_id', '1', false)")
            for step in range(1_000):
                chunk = spare[number * 1_000 + step]
                vector = str(fresh[number * 1_000 + step].tolist())
                kind = chance.random()
                if kind < 0.5:
                    await connection.execute(
                        f"insert into {table} (collection_id, chunk_id, space, embedding) values (%s, %s, 'hash-32', %s::halfvec)",
                        (collection, chunk, vector),
                    )
                elif kind < 0.8:
                    await connection.execute(
                        f"delete from {table} where chunk_id = (select chunk_id from {table} where chunk_id >= %s limit 1)",
                        (chance.randrange(1, 3_000),),
                    )
                elif kind < 0.998:
                    await connection.execute(
                        f"select chunk_id from {table} where space = 'hash-32' "
                        f"order by embedding::halfvec(32) <#> %s::halfvec(32) limit 10", (vector,))  # fmt: skip
                else:
                    await connection.execute(f"vacuum {table}")

    await asyncio.gather(*[client(number) for number in range(5)])
    assert _recall_at_20(sql, table) >= 0.93
    sql.execute(f"vacuum {table}")
    assert _recall_at_20(sql, table) >= 0.95
    sql.execute(f"reindex table {table}")
    assert _recall_at_20(sql, table) >= 0.95


def _recall_at_20(sql: Sql, table: str) -> float:
    sql.execute("set hnsw.ef_search = 100")
    hits = 0
    for vector in clustered(100, 9).tolist():
        near = "select chunk_id from {} where space = 'hash-32' order by {} limit 20"
        values = (str(vector),)
        sql.execute("set enable_seqscan = off")
        found = sql.execute(near.format(table, "embedding::halfvec(32) <#> %s::halfvec(32)"), values).fetchall()
        sql.execute("set enable_seqscan = on")
        exact = sql.execute(near.format(table, "(embedding <#> %s::halfvec) + 0"), values).fetchall()
        hits += len(set(found) & set(exact))
    return hits / 2_000


# Live recall.


async def test_a_share_of_searches_measures_the_recall_of_the_index(
    database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await ingest_documents(documents(80), store=store, embedder=embedder, collection="c")
    vector = (await embedder.embed(["Number 17"]))[0]
    sample = RecallSample(1.0)
    await search_passages(database, SearchRequest("number", vector, collection="c"), None, sample)
    await sample.finish()
    assert sample.snapshot().searches == 0  # compared exactly anyway
    await partitions.promote(database, "c")
    for where in (None, {"x": {"exists": False}}):
        await search_passages(database, SearchRequest("number", vector, collection="c", where=where), None, sample)
        await sample.finish()
    await search_passages(database, SearchRequest("number", (), collection="c", mode="lexical"), None, sample)
    await search_passages(database, SearchRequest("number", vector, collection="c"), None, RecallSample(0.0))
    await sample.finish()
    found = sample.snapshot()
    assert (found.searches, found.wanted, found.recall) == (1, 10, 1.0)  # the filter's few chunks are compared exactly
    assert found.low is not None
    assert 0.6 < found.low < 1.0
    assert found.high == 1.0


async def test_live_recall_sees_an_index_that_lost_rows(sql: Sql, database: Database) -> None:
    collection = add_collection(sql, clustered(2_000))
    await partitions.promote(database, "big")
    sql.execute(f"drop index vectors_{collection}_hnsw_{_digest(sql)}")
    sql.execute(
        f"create index on vectors_{collection} using hnsw ((embedding::halfvec(32)) halfvec_ip_ops) "
        f"with (m = 2, ef_construction = 4) "
        f"where space = 'hash-32'"
    )
    sample = RecallSample(1.0)
    for vector in clustered(20, 4).tolist():
        await search_passages(database, SearchRequest("", vector, collection="big", mode="dense"), None, sample)
        await sample.finish()
    assert sample.snapshot().recall < 1.0
    assert sample.snapshot().wanted == 200


def _digest(sql: Sql) -> str:
    return str(sql.execute("select left(md5('hash-32'), 8)").fetchone()[0])  # type: ignore[index]
