"""Two walls between tenants (row B4): each statement names its tenant, and PostgreSQL's policies hold. Either one alone suffices.

Every mutation here takes one wall away, in one place; a stranger who knows all of a tenant's names must still get nothing.
With both walls gone he gets everything: the probes can see what they look for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from orchestrator.behaviour.audit import note, read_audit
from orchestrator.behaviour.canary import list_canaries, read_canary
from orchestrator.behaviour.gate import load_rules
from orchestrator.behaviour.registry import Registry
from orchestrator.database import Database, Json, _statements, statement
from orchestrator.errors import OrchestratorError, UnknownNameError
from orchestrator.evaluation.evidence import read_asked, read_history, read_traffic
from orchestrator.evaluation.items import Change, Gold, Item, ItemSet
from orchestrator.evaluation.items import Outcome as Asked
from orchestrator.evaluation.runs import Run, Runs
from orchestrator.feedback import VERDICTS, give_feedback, latest_feedback, list_feedback, passages_of
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.jobs import Jobs
from orchestrator.knowledge.store import PgStore
from orchestrator.ledger import Ledger, intent_record, list_answers, show_answer, verify_ledger
from orchestrator.settings import Settings
from orchestrator.tenants import Keys, add_tenant, create_key, list_keys, revoke_key
from orchestrator.testing import HashEmbedder, passage
from orchestrator.types import Citation, Document, Plan, Query, SearchRequest, Usage

CANARY = "canaryofbzzz"
SHARED_TABLES = {"contracts", "prompts", "schema_migrations"}
# `tenant_id = current_tenant()` with or without an alias, and `tenant = %(tenant)s`.
PREDICATE = re.compile(r"(?:\w+\.)?tenant_id = current_tenant\(\)|(?:\w+\.)?tenant = %\(tenant\)s")


@dataclass(frozen=True)
class Theirs:
    """Every name and id that b has."""

    document_id: str
    external_id: str
    collection: str
    answer_id: str
    job_id: str
    key_id: str
    adapter: str
    canary_id: int
    run_id: str
    set_id: int
    set_sha256: str


@pytest_asyncio.fixture
async def theirs(database: Database, tmp_path: Path) -> Theirs:
    """Tenants a and b; b has something of everything, with his canary in all of its text."""
    for name in ("a", "b"):
        await add_tenant(database, name)
        store = PgStore(database, name)
        word = CANARY if name == "b" else "own"
        for collection in ("c", "only-b", f"named {word}") if name == "b" else ("c",):
            for text in ("Leave is thirty days.", "Leave is now forty days, and twenty more for those who ask for it."):
                document = Document(
                    "handbook", f"Title {word}", f"{text} The word is {word}.", word, metadata={"m": word}
                )
                await ingest_documents([document], store=store, embedder=HashEmbedder(), collection=collection)
    b = database.of("b")
    query = Query(f"what is {CANARY}", tenant="b")
    async with Ledger.open(database) as ledger:
        await ledger.write(intent_record(query, Plan("answer", CANARY, "because"), [passage(1, CANARY)]))
    await give_feedback(database, query.id, "good", note=CANARY, tenant="b")
    job = await Jobs(database, "b").enqueue_ingest([tmp_path], collection=CANARY, key="k")
    _, key = await create_key(database, "b", CANARY)
    fields = ("name", "path", "base", "prompt", "prompt_digest", "contract", "contract_digest")
    values: dict[str, Any] = {name: "adapter-of-b" if name == "name" else CANARY for name in fields}
    async with b.transaction() as connection:
        row = {"tenant": "b", "digest": "ab" * 32, "rank": 8, "manifest": Json({"m": CANARY}), **values}
        await connection.execute(statement("insert-adapter"), row)
        rules = Json(asdict(load_rules().canary))
        trial = {
            "tenant": "b",
            "name": "adapter-of-b",
            "digest": "ab" * 32,
            "against": CANARY,
            "share": 0.5,
            "rules": rules,
        }
        canary = await (await connection.execute(statement("insert-canary"), trial)).fetchone()
        await note(
            connection,
            tenant="b",
            actor=CANARY,
            action="note",
            name="adapter-of-b",
            digest="ab" * 32,
            config="",
            details={},
        )
    (document,) = await b.fetch("select d.id::text as id from documents d join collections c on c.id = d.collection_id "
                                "where c.name = 'only-b'")  # fmt: skip
    run = await evaluated(database, "b", CANARY, "only-b")
    return Theirs(
        document.id,
        "handbook",
        "only-b",
        query.id,
        job.id,
        key.id,
        "adapter-of-b",
        canary.id,
        run.info.id,
        run.info.set_id,
        run.info.sha256,
    )


class Saying:
    """Answers every question with the same word, in tokens enough for a thousand."""

    def __init__(self, word: str) -> None:
        self.word = word

    async def ask(self, item: Item, change: Change = Change()) -> Asked:  # noqa: B008
        return Asked(item.id, self.word, passages=(passage(1, "x"),), usage=Usage(1234, 56))

    async def search(self, item: Item, change: Change = Change()) -> Any:  # noqa: B008
        return ()


async def evaluated(database: Database, tenant: str, word: str, collection: str) -> Run:
    """A run over one question, on the collection as it is."""
    runs = Runs(database, tenant)
    wanted = ItemSet(f"set of {word}", (Item("q", f"what is {word}?", (word,), gold=(Gold("handbook"),)),))
    return await runs.run(
        await runs.freeze(wanted, collection), Saying(word), {"of": word}, name=f"evaluation of {tenant}"
    )


# what a stranger tries


def tries(database: Database, theirs: Theirs) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
    """Everything that a may ask for with b's names in it."""
    store, jobs = PgStore(database, "a"), Jobs(database, "a")
    registry = Registry(database, Settings(tenant="a"))
    runs = Runs(database, "a")
    name, document = theirs.collection, theirs.external_id
    spans = [replace(passage(1, "x"), document_id=theirs.document_id, version=1, span=(0, 1000))]
    shown = {"document_id": theirs.document_id, "version": 1, "chunk_id": 1, "span": [0, 1000]}
    citation = Citation(1, theirs.document_id, document, 1, 0, (0, 5), "Leave", "", "")
    yield "collections", store.collections
    yield "collection", lambda: store.collection(name)
    yield "stats", lambda: store.stats(name)
    yield "learned", lambda: store.learned("a", name)
    yield "search", lambda: find(store, "leave days word", name)
    yield "search c", lambda: find(store, "leave days word", "c")
    yield "filter", lambda: find(store, "leave", name, where={"m": {"exists": True}})
    yield "lexical", lambda: find(store, "leave", name, mode="lexical")
    yield "documents", lambda: store.list_documents(name, deleted=True)
    yield "history", lambda: store.history(name, document)
    yield "text", lambda: store.get_version_text(name, document)
    yield "diff", lambda: store.diff(name, document)
    yield "version", lambda: store.version(theirs.document_id, 1)
    yield "spans", lambda: store.read_spans(spans, "a")
    yield "changes", lambda: store.mark_changes([citation], "a")
    yield "job", lambda: jobs.show(theirs.job_id)
    yield "jobs", jobs.find
    yield "letters", lambda: jobs.letters(theirs.job_id)
    yield "count jobs", jobs.count_open
    yield "answer", lambda: show_answer(database, theirs.answer_id, "a")
    yield "answers", lambda: list_answers(database, "a", 10)
    yield "feedback", lambda: list_feedback(database, theirs.answer_id, "a")
    yield "latest feedback", lambda: latest_feedback(database, "a", VERDICTS)
    yield "give feedback", lambda: give_feedback(database, theirs.answer_id, "bad", tenant="a")
    yield "passages", lambda: passages_of(database, {"intent": {"passages": [shown]}}, "a")
    yield "verify", lambda: verify_ledger(database, "a")
    yield "adapters", registry.list
    yield "adapter", lambda: registry.find(theirs.adapter)
    yield "canaries", lambda: list_canaries(database, "a")
    yield "canary", lambda: read_canary(database, "a", theirs.canary_id)
    yield "audit", lambda: read_audit(database, "a")
    yield "keys", lambda: list_keys(database, "a")
    yield "runs", runs.latest
    yield "run", lambda: runs.show(theirs.run_id)
    yield "run by name", lambda: runs.show("evaluation of b")
    yield "results", lambda: database.of("a").fetch(statement("results-of-run"), run_id=theirs.run_id)
    yield "set", lambda: runs.read_set(theirs.set_id)
    yield "asked", lambda: asked_tokens(database, theirs)
    yield "traffic", lambda: seen_traffic(database)
    yield "history of documents", lambda: seen_history(database, name)
    yield "remove run", lambda: runs.remove(theirs.run_id)
    yield "promote", lambda: registry.promote(theirs.adapter, override="test")
    yield "retire adapter", lambda: registry.retire(theirs.adapter)
    yield "revoke", lambda: revoke_key(database, "a", theirs.key_id)
    yield "cancel", lambda: jobs.cancel(theirs.job_id)
    yield "retry", lambda: jobs.retry(theirs.job_id)
    yield "take", lambda: jobs.take("worker of a")
    yield "learn", lambda: store.learn(name, 0.1, None, {})
    yield "withdraw", lambda: store.withdraw(name, document, 1)
    yield "retire", lambda: store.retire(name, document)
    yield "delete", lambda: store.delete(name, document)
    yield "erase", lambda: store.erase(name, document)


async def asked_tokens(database: Database, theirs: Theirs) -> str:
    """The canary when b's evaluation is counted as a's."""
    found = await read_asked(database, "a", theirs.set_sha256, theirs.collection)
    return CANARY if found.sample else ""


async def seen_traffic(database: Database) -> str:
    """The canary when b's answers are counted as a's."""
    found = await read_traffic(database, "a", datetime.now(UTC))
    return CANARY if found.by_day or found.sample else ""


async def seen_history(database: Database, collection: str) -> str:
    """The canary when b's documents, or their changes, are counted as a's."""
    found = await read_history(database, "a", collection, datetime.now(UTC))
    return CANARY if found.documents or found.changes else ""


async def find(store: PgStore, text: str, collection: str, **options: Any) -> Any:
    vector = (await HashEmbedder().embed([text]))[0]
    return await store.search(SearchRequest(text, vector, collection, tenant="a", **options))


async def harm(database: Database, theirs: Theirs, log: pytest.LogCaptureFixture, one_by_one: bool = False) -> set[str]:
    """The tries that showed something of b's, in their result, error or log; "change" when something of his changed.

    ``one_by_one``: those that changed something, by name.
    """
    found = set()
    before = await fingerprint(database)
    for name, work in tries(database, theirs):
        log.clear()
        try:
            said = repr(await work())
        except OrchestratorError as error:
            said = f"{error!r} {error.__cause__!r} {error.__context__!r}"
        if CANARY in said + log.text:
            found.add(name)
        if one_by_one:
            after = await fingerprint(database)
            found |= {name} if after != before else set()
            before = after
    return found | ({"change"} if await fingerprint(database) != before else set())


async def fingerprint(database: Database) -> list[str]:
    """A hash of everything that b has, by table, as a superuser sees it."""
    async with database.ownership() as connection:
        parts = [
            sql.SQL("select {table} as name, md5(coalesce(string_agg(t::text, '|' order by t::text), '')) as digest from {name} t "
                    "where {column}::text in ('b', (select id::text from tenants where name = 'b'))")
            .format(table=sql.Literal(name), name=sql.Identifier(name), column=sql.Identifier(column))
            for name, column in await tenant_tables(database)
        ]  # fmt: skip
        rows = await (await connection.execute(sql.SQL(" union all ").join(parts))).fetchall()
    return sorted(f"{row.name} {row.digest}" for row in rows)


async def tenant_tables(database: Database) -> list[tuple[str, str]]:
    """Tables with the name of their tenant's column."""
    rows = await database.fetch(
        "select c.relname as name, a.attname as column from pg_class c join pg_attribute a on a.attrelid = c.oid "
        "where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attname in ('tenant', 'tenant_id') "
        "order by 1"
    )
    return [(row.name, row.column) for row in rows]


# walls that come down


@contextmanager
def without_predicate(*names: str) -> Iterator[None]:
    """These statements do not ask for the tenant."""
    before = {name: _statements()[name] for name in names}
    try:
        _statements().update({name: PREDICATE.sub("true", text) for name, text in before.items()})
        yield
    finally:
        _statements().update(before)


@asynccontextmanager
async def without_policies(database: Database, *names: str) -> AsyncIterator[None]:
    """These tables do not ask for the tenant, and nothing notices."""
    forget = "alter table {0} no force row level security, disable row level security"
    again = "alter table {0} enable row level security, force row level security"
    async with unnoticed(database):
        await alter(database, forget, names)
        try:
            yield
        finally:
            await alter(database, again, names)


@asynccontextmanager
async def with_open_policy(database: Database, name: str) -> AsyncIterator[None]:
    """One more policy on a table, under which every row is seen: policies are joined by `or`."""
    await alter(database, "create policy mistake on {0} using (true) with check (true)", [name])
    try:
        yield
    finally:
        await alter(database, "drop policy mistake on {0}", [name])


@asynccontextmanager
async def unnoticed(database: Database) -> AsyncIterator[None]:
    """``use_tenant`` without the check that policies hold; it would refuse to work at all."""
    (row,) = await database.fetch("select pg_get_functiondef('use_tenant'::regproc) as text")
    async with database.ownership() as connection:
        assert "row_security_active('collections')" in row.text
        await connection.execute(row.text.replace("row_security_active('collections')", "true"))
    try:
        yield
    finally:
        async with database.ownership() as connection:
            await connection.execute(row.text)


async def alter(database: Database, change: str, names: Any) -> None:
    async with database.ownership() as connection:
        for name in names:
            await connection.execute(sql.SQL(change).format(sql.Identifier(name)))


def guarded() -> list[str]:
    """The statements that name the tenant in a condition."""
    return sorted(name for name, text in _statements().items() if PREDICATE.search(text))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that is logged."""
    caplog.set_level(logging.DEBUG)
    return caplog


async def test_a_stranger_gets_nothing(database: Database, theirs: Theirs, log: pytest.LogCaptureFixture) -> None:
    assert await harm(database, theirs, log) == set()


async def test_every_statement_may_forget_its_tenant(
    database: Database, theirs: Theirs, log: pytest.LogCaptureFixture
) -> None:
    found = {}
    for name in guarded():
        with without_predicate(name):
            found[name] = await harm(database, theirs, log)
    with without_predicate(*guarded()):
        found["all of them"] = await harm(database, theirs, log)

    assert len(found) > 20
    assert {name: harmed for name, harmed in found.items() if harmed} == {}


async def test_every_table_may_lose_its_policy(
    database: Database, theirs: Theirs, log: pytest.LogCaptureFixture
) -> None:
    found = {}
    names = [name for name, _ in await tenant_tables(database)] + ["tenants"]
    for name in names:
        async with without_policies(database, name):
            found[name] = await harm(database, theirs, log)
        async with with_open_policy(database, name):
            found[f"{name}, open"] = await harm(database, theirs, log)
    async with without_policies(database, *names):
        found["all of them"] = await harm(database, theirs, log)

    assert len(found) > 30
    assert {name: harmed for name, harmed in found.items() if harmed} == {}


async def test_the_search_function_may_forget_its_tenant(
    database: Database, theirs: Theirs, log: pytest.LogCaptureFixture
) -> None:
    async with without_predicate_in_functions(database):
        assert await harm(database, theirs, log) == set()
        async with without_policies(database, *[name for name, _ in await tenant_tables(database)]):
            assert "search" in await harm(database, theirs, log)


@asynccontextmanager
async def without_predicate_in_functions(database: Database) -> AsyncIterator[None]:
    rows = await database.fetch(
        "select pg_get_functiondef(oid) as text from pg_proc where pronamespace = 'public'::regnamespace and prokind = 'f' "
        "and prosrc ~ 'tenant_id = tenant\\M'"
    )
    assert rows
    async with database.ownership() as connection:
        for row in rows:
            await connection.execute(re.sub(r"(\w+\.)?tenant_id = tenant\b", "true", row.text))
    try:
        yield
    finally:
        async with database.ownership() as connection:
            for row in rows:
                await connection.execute(row.text)


async def test_without_both_walls_the_same_tries_get_everything(
    database: Database, theirs: Theirs, log: pytest.LogCaptureFixture
) -> None:
    names = [name for name, _ in await tenant_tables(database)]
    async with without_policies(database, *names):
        with without_predicate(*guarded()):
            found = await harm(database, theirs, log, one_by_one=True)

    reading = {"collections", "documents", "history", "text", "diff", "version", "spans", "changes", "job", "jobs", "answer",
               "answers", "feedback", "latest feedback", "passages", "adapters", "adapter", "keys", "runs", "run", "run by name",
               "results", "set", "asked", "traffic", "history of documents"}  # fmt: skip
    # Feedback has a third wall: its foreign key names tenant and answer.
    assert "give feedback" not in found
    writing = {"promote", "revoke", "cancel", "take", "learn", "erase", "remove run"}
    assert reading | writing <= found


async def test_policies_that_stopped_holding_are_noticed_before_anything_is_read(
    database: Database, theirs: Theirs
) -> None:
    await alter(database, "alter table {0} disable row level security", ["collections"])

    with pytest.raises(OrchestratorError, match="row level security does not hold"):
        await PgStore(database, "a").collections()


async def test_a_key_id_of_another_tenant_shows_one_row_to_who_names_it(database: Database, theirs: Theirs) -> None:
    async with database.session() as connection:
        rows = await (await connection.execute("select * from find_key(%s)", (theirs.key_id,))).fetchall()
        others = await (await connection.execute("select * from find_key('%')")).fetchall()
        all_rows = await (await connection.execute("select * from api_keys")).fetchall()

    assert ([row.tenant for row in rows], others, all_rows) == (["b"], [], [])
    assert await Keys(database).tenant_of(f"ork_{theirs.key_id}_guess") is None


async def test_a_superuser_can_see_what_the_probes_look_for(
    database_url: str, database: Database, theirs: Theirs
) -> None:
    with psycopg.connect(database_url) as dba:
        held = {
            name
            for name, _ in await tenant_tables(database)
            if dba.execute(sql.SQL("select 1 from {} t where t::text like {}").format(
                sql.Identifier(name), sql.Literal(f"%{CANARY}%"))).fetchone()
        }  # fmt: skip

    assert held >= {
        "collections",
        "documents",
        "versions",
        "chunks",
        "terms",
        "answers",
        "adapters",
        "jobs",
        "api_keys",
        "eval_sets",
        "eval_runs",
        "eval_results",
    }


async def test_errors_about_anothers_document_are_those_about_none(database: Database, theirs: Theirs) -> None:
    said = {}
    for kind, document_id in (("theirs", theirs.document_id), ("nobodys", "0" * 8 + theirs.document_id[8:])):
        with pytest.raises(UnknownNameError) as caught:
            await PgStore(database, "a").version(document_id, 1)
        said[kind] = caught.value.message.replace(document_id, "ID"), caught.value.code, caught.value.param

    assert said["theirs"] == said["nobodys"]
