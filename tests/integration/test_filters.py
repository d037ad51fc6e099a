"""Metadata filters on a real PostgreSQL: what matches, against a second implementation; hostile names; every plan of a search."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from decimal import Decimal
from operator import ge, gt, le, lt
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.database import Database, statement
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.filters import compile_filter
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

KEYS = ["a", "b", "größe", 'q"\\', "$x", "a.b"]
VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    1.0,
    1.5,
    1e-7,
    10**20,
    -2.5e300,
    "",
    "a",
    "A",
    "b",
    "1",
    "true",
    "ä",
    "年",
    "\uffff",
    "😀",
    '"\\\n\x7f',
]
SLEEP = "')::text IS NOT NULL OR pg_sleep(1) IS NOT NULL --"


# What matches, written a second time.


def holds(where: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return all(_entry(key, value, metadata) for key, value in where.items())


def _entry(key: str, value: Any, metadata: Mapping[str, Any]) -> bool:
    if key == "not":
        return not holds(value, metadata)
    if key in ("and", "or"):
        return (all if key == "and" else any)(holds(part, metadata) for part in value)
    conditions = value if isinstance(value, Mapping) else {"eq": value}
    return all(_condition(metadata, key, name, operand) for name, operand in conditions.items())


def _condition(metadata: Mapping[str, Any], key: str, operator: str, operand: Any) -> bool:
    held = metadata.get(key, [])
    elements = held if isinstance(held, list) else [held]
    if operator == "exists":
        return (key in metadata) is operand
    if operator == "ne":
        return not any(_equal(element, operand) for element in elements)
    if operator in ("eq", "in"):
        return any(_equal(element, one) for element in elements for one in (operand if operator == "in" else [operand]))
    order = {"lt": lt, "lte": le, "gt": gt, "gte": ge}[operator]
    pairs = [(_typed(element), _typed(operand)) for element in elements]
    return any(a[0] == b[0] and order(a[1], b[1]) for a, b in pairs)


def _typed(value: Any) -> tuple[str, Any]:
    """Its JSON type and a value of that type that compares exactly."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, int | float):
        return "number", Decimal(repr(value))
    return type(value).__name__, value


def _equal(a: Any, b: Any) -> bool:
    return _typed(a) == _typed(b) and not isinstance(a, list | dict)


scalars = st.sampled_from(VALUES)
ordered = st.sampled_from([value for value in VALUES if value is not None and not isinstance(value, bool)])
conditions = st.one_of(
    scalars,
    st.fixed_dictionaries(
        {}, optional={"eq": scalars, "ne": scalars, "in": st.lists(scalars, max_size=3), "exists": st.booleans()}
    ),
    st.fixed_dictionaries({}, optional={"lt": ordered, "lte": ordered, "gt": ordered, "gte": ordered}),
)
filters = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), conditions, max_size=2),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"not": inner, "and": st.lists(inner, max_size=3), "or": st.lists(inner, max_size=3)}
    ),
    max_leaves=6,
)


def _random_metadata(chance: random.Random) -> dict[str, Any]:
    def value(depth: int) -> Any:
        kind = chance.random()
        if kind < 0.2 and depth == 0:
            return [value(1) for _ in range(chance.randrange(4))]
        return {"a": 1} if kind > 0.97 else chance.choice(VALUES)

    return {key: value(0) for key in KEYS if chance.random() < 0.5}


@pytest.fixture(scope="module")
def table(postgres_url: str) -> Iterator[tuple[psycopg.Connection[Any], list[dict[str, Any]]]]:
    """400 random metadata, in a table with the index of `documents`."""
    rows = [_random_metadata(random.Random(number)) for number in range(400)]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("create temporary table m (id integer, metadata jsonb)")
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into m values (%s, %s::jsonb)", [(n, json.dumps(row)) for n, row in enumerate(rows)]
            )
        connection.execute("create index on m using gin (metadata jsonb_path_ops)")
        connection.execute("analyze m")
        yield connection, rows


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(where=filters)
def test_what_matches_is_what_the_second_implementation_says(
    table: tuple[psycopg.Connection[Any], list[dict[str, Any]]], where: dict[str, Any]
) -> None:
    connection, rows = table
    predicate = compile_filter(where) or "1 == 1"
    expected = {number for number, row in enumerate(rows) if holds(where, row)}
    for scan in ("on", "off"):  # through the rows, and through the index where it can be used
        connection.execute("select set_config('enable_seqscan', %s, false)", [scan])
        found = connection.execute("select id from m where metadata @@ %s::jsonpath", [predicate]).fetchall()
        assert {row[0] for row in found} == expected


def test_the_index_serves_equality_in_and_lists(table: tuple[psycopg.Connection[Any], list[dict[str, Any]]]) -> None:
    connection, _ = table
    connection.execute("set enable_seqscan = off")
    predicate = compile_filter({"a": "b", "b": {"in": [1, "a"]}, "not": {"größe": 1}, "$x": {"gte": 0}})
    plan = connection.execute("explain select id from m where metadata @@ %s::jsonpath", [predicate]).fetchall()
    assert "Bitmap Index Scan on m_metadata_idx" in "\n".join(row[0] for row in plan)


# In a search.

DOCUMENTS = {
    "hr": {"department": "HR", "year": 2021, "tags": ["leave", "pay"], "draft": False},
    "it": {"department": "IT", "year": 2019, "tags": ["pay"], "draft": True},
    "old": {"department": "HR", "year": 2001, "tags": []},
    "none": {},
    "odd": {"department": 7, "year": "2021", SLEEP: "x", 'a"b': "x", "$or": "x", "größe": "x", "年": "x"},
}


async def _fill(store: PgStore, embedder: HashEmbedder) -> None:
    documents = [
        Document(name, name, f"About leave, {name}.", "test", metadata=data) for name, data in DOCUMENTS.items()
    ]
    await ingest_documents(documents, store=store, embedder=embedder, collection="c")


async def _found(store: PgStore, where: Any, **more: Any) -> set[str]:
    request = SearchRequest("leave", [1.0] + [0.0] * 63, collection="c", where=where, **more)
    return {passage.external_id for passage in await store.search(request)}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, set(DOCUMENTS)),
        ({}, set(DOCUMENTS)),
        ({"department": "HR"}, {"hr", "old"}),
        ({"department": "HR", "year": {"gte": 2020, "lt": 2022}}, {"hr"}),
        ({"tags": {"in": ["leave", "nothing"]}}, {"hr"}),
        ({"tags": "pay"}, {"hr", "it"}),
        ({"or": [{"department": "IT"}, {"year": {"lt": 2010}}]}, {"it", "old"}),
        ({"not": {"department": "HR"}}, {"it", "none", "odd"}),
        ({"department": {"ne": "HR"}}, {"it", "none", "odd"}),
        ({"department": {"exists": False}}, {"none"}),
        ({"draft": False}, {"hr"}),
        ({"draft": 0}, set()),
        ({"year": "2021"}, {"odd"}),
        ({SLEEP: "x"}, {"odd"}),
        ({'a"b': "x"}, {"odd"}),
        ({"größe": "x", "年": {"in": ["x"]}}, {"odd"}),
        ({SLEEP: {"exists": True}, "department": SLEEP}, set()),
    ],
)
async def test_a_search_finds_what_the_filter_lets_through(
    store: PgStore, embedder: HashEmbedder, where: Any, expected: set[str]
) -> None:
    await _fill(store, embedder)
    for mode in ("hybrid", "lexical", "dense"):
        assert await _found(store, where, mode=mode) == expected


async def test_a_filter_holds_as_of_a_time_and_as_it_was_known(
    database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await _fill(store, embedder)
    now = (await database.fetch_one(statement("database-now"))).now
    assert await _found(store, {"department": "HR"}, as_of=now, known_at=now) == {"hr", "old"}


async def test_hostile_names_sleep_nowhere_and_leave_the_statement_as_it_is(
    database_url: str, database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await _fill(store, embedder)
    text = statement("search")
    with psycopg.connect(database_url, autocommit=True) as probe:
        probe.execute(
            "create function public.pg_sleep(integer) returns boolean language plpgsql as $$ begin raise 'slept'; end $$"
        )
        probe.execute(
            psycopg.sql.SQL("alter database {} set search_path = public, pg_catalog").format(
                psycopg.sql.Identifier(probe.info.dbname)
            )
        )
    await database.renew()
    for name in (SLEEP, 'a"b', "'; drop table documents; --", '")) || 1 == 1 || ($."', "{0.__class__}", "%(tenant)s"):
        assert await _found(store, {name: name}) == set()
        assert await _found(store, {"department": {"in": [name]}}) == set()
        with pytest.raises(InputError, match="no operator"):
            await _found(store, {"department": {name: 1}})
        with pytest.raises(UnknownNameError):
            await store.search(SearchRequest("leave", [1.0] + [0.0] * 63, collection=name))
    assert statement("search") == text
    assert await _found(store, None) == set(DOCUMENTS)
