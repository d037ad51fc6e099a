"""Tenants on a real PostgreSQL: policies on every table, settings that end with their transaction, keys as hashes."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from click.testing import CliRunner
from psycopg.pq import TransactionStatus

from orchestrator.cli import main
from orchestrator.database import Connection, Database, statement
from orchestrator.doctor import examine
from orchestrator.errors import DatabaseError, InputError, OrchestratorError, UnknownNameError
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.migrate import migrate
from orchestrator.settings import Settings
from orchestrator.tenants import (
    KEY_LIFETIME_S,
    Keys,
    add_tenant,
    create_key,
    list_keys,
    list_tenants,
    remove_tenant,
    revoke_key,
)
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

NewDatabase = Callable[..., AbstractContextManager[str]]
# Tables that hold nothing of a tenant: what the deployment ships, by content, and what was applied to the schema.
SHARED_TABLES = {"contracts", "prompts", "schema_migrations"}
INTERLEAVINGS = int(os.environ.get("TENANT_INTERLEAVINGS", "500"))


@pytest_asyncio.fixture
async def tenants(database: Database) -> dict[str, Database]:
    """A database for each of two tenants."""
    for name in ("a", "b"):
        await add_tenant(database, name)
    return {name: database.of(name) for name in ("a", "b")}


# the schema


async def tables(database: Database) -> dict[str, set[str]]:
    """Every table, partitions too, with its columns."""
    rows = await database.fetch(
        "select c.relname as name, array_agg(a.attname::text) as columns from pg_class c "
        "join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped "
        "where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'f', 'm', 'v') group by 1"
    )
    return {row.name: set(row.columns) for row in rows}


async def test_every_table_has_a_tenant_or_is_known_to_have_none(database: Database) -> None:
    found = await tables(database)

    without = {name for name, columns in found.items() if not columns & {"tenant", "tenant_id"}}

    assert without - {"tenants"} == SHARED_TABLES
    assert len(found) > 10


async def test_every_table_of_tenants_forces_a_policy_for_reading_and_writing(database: Database) -> None:
    rows = await database.fetch(
        "select c.relname as name, c.relrowsecurity and c.relforcerowsecurity as forced, "
        "coalesce(bool_or(p.polcmd = '*' and p.polpermissive and p.polroles = '{0}' "
        "and pg_get_expr(p.polqual, c.oid) like '%%orchestrator.tenant%%' "
        "and pg_get_expr(p.polwithcheck, c.oid) = pg_get_expr(p.polqual, c.oid)), false) as has_policy "
        "from pg_class c left join pg_policy p on p.polrelid = c.oid "
        "where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'f', 'm', 'v') group by c.oid"
    )

    open_tables = {row.name for row in rows if not (row.forced and row.has_policy)}

    assert open_tables == SHARED_TABLES


async def test_what_a_policy_lets_through_beside_the_tenant_is_known(database: Database) -> None:
    rows = await database.fetch(
        "select polrelid::regclass::text as name, polname, polcmd::text as command, polroles::regrole[]::text as roles, "
        "pg_get_expr(polqual, polrelid) as condition from pg_policy where polname <> 'tenant_only'"
    )

    found = {(row.name, row.polname, row.command, row.roles) for row in rows}

    owner = await owner_of(database, "tenants")
    assert found == {("tenants", "kept_by_owner", "*", f"{{{owner}}}"), ("api_keys", "asked_for", "r", "{-}")}
    assert "orchestrator.key" in next(row.condition for row in rows if row.name == "api_keys")


async def test_a_tenant_in_a_row_is_never_null(database: Database) -> None:
    rows = await database.fetch(
        "select c.relname as name from pg_attribute a join pg_class c on c.oid = a.attrelid "
        "where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') "
        "and a.attname in ('tenant', 'tenant_id') and not a.attnotnull"
    )

    assert [row.name for row in rows] == []


async def test_the_application_owns_nothing_and_has_no_power(database: Database) -> None:
    (row,) = await database.fetch(
        "select current_user::text as role, rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolcanlogin as power, "
        "(select count(*) from pg_class where relowner = r.oid and relpersistence <> 't') "
        "+ (select count(*) from pg_proc where proowner = r.oid) + (select count(*) from pg_namespace where nspowner = r.oid "
        "and nspname !~ '^pg_') as owned, has_schema_privilege('public', 'create') as creates "
        "from pg_roles r where rolname = current_user"
    )

    assert (row.role, row.power, row.owned, row.creates) == ("orchestrator_app", False, 0, False)


async def test_no_function_runs_with_its_owners_rights(database: Database) -> None:
    rows = await database.fetch(
        "select p.oid::regprocedure::text as name from pg_proc p where p.prosecdef and p.pronamespace = 'public'::regnamespace"
    )

    assert rows == []


async def test_no_view_reads_with_its_owners_rights(database: Database) -> None:
    rows = await database.fetch(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('v', 'm')"
    )

    assert rows == []


async def test_the_application_cannot_change_what_is_written_once(database: Database) -> None:
    for denied in ("update answers set payload = ''", "delete from answers", "delete from tenants", "drop table terms",
                   "update schema_migrations set sha256 = ''", "alter table chunks disable row level security",
                   "drop policy tenant_only on chunks", "truncate chunks"):  # fmt: skip
        with pytest.raises(DatabaseError, match=r"permission denied|must be owner"):
            await database.fetch(denied)


@pytest.mark.parametrize("value", [None, ""])
async def test_without_a_tenant_nothing_is_seen_and_nothing_is_added(
    database: Database, tenants: dict[str, Database], value: str | None
) -> None:
    await fill(database, "a", "b")
    nobody = Database(database._pool, database._url)

    seen, said = {}, {}
    for name, columns in (await tables(database)).items():
        if name in SHARED_TABLES:
            continue
        async with nobody.transaction() as connection:
            if value is not None:
                for setting in ("orchestrator.tenant", "orchestrator.tenant_id", "orchestrator.key"):
                    await connection.execute("select set_config(%s, %s, true)", (setting, value))
            seen[name] = (await count(connection, name)).n
        if name != "tenants":
            said[name] = await refusals(nobody, name, columns, value)

    assert {name: n for name, n in seen.items() if n} == {}
    assert {
        name: lines for name, lines in said.items() if lines != {"new row violates row-level security policy"}
    } == {}
    async with database.ownership() as connection:
        assert (await count(connection, "documents")).n > 0


async def refusals(database: Database, table: str, columns: set[str], value: str | None) -> set[str]:
    """What is said to a row without a tenant; a policy speaks before anything else that the row lacks is found."""
    said = set()
    column = "tenant" if "tenant" in columns else "tenant_id"
    for given in ("''" if column == "tenant" else "null", "default"):
        query = psycopg.sql.SQL("insert into {} ({}) values ({})").format(
            psycopg.sql.Identifier(table), psycopg.sql.Identifier(column), psycopg.sql.SQL(given)
        )
        with pytest.raises(DatabaseError) as caught:
            await insert_for(database, value or "", query)
        said.add(str(caught.value.__cause__).split(" for table")[0])
    return said


async def insert_for(database: Database, value: str, query: psycopg.sql.Composed) -> None:
    async with database.transaction() as connection:
        for setting in ("orchestrator.tenant", "orchestrator.tenant_id"):
            await connection.execute("select set_config(%s, %s, true)", (setting, value))
        await connection.execute(query)


async def count(connection: Connection, table: str) -> object:
    query = psycopg.sql.SQL("select count(*) as n from {}").format(psycopg.sql.Identifier(table))
    return await (await connection.execute(query)).fetchone()


async def owner_of(database: Database, table: str) -> str:
    (row,) = await database.fetch(
        "select relowner::regrole::text as owner from pg_class where relname = %(t)s", t=table
    )
    return str(row.owner)


# what a statement that forgot its tenant sees


async def fill(database: Database, *names: str) -> None:
    """One document for each tenant, all with the same names; the text holds the tenant's canary."""
    for name in names:
        store = PgStore(database, name)
        text = f"Leave is thirty days. The word is {canary(name)}."
        document = Document("handbook", f"Handbook {canary(name)}", text, canary(name), metadata={"word": canary(name)})
        await ingest_documents([document], store=store, embedder=HashEmbedder(), collection="c")


def canary(tenant: str) -> str:
    return f"canary{tenant}zzz"


async def test_a_statement_without_a_condition_sees_the_own_rows_of_every_table(
    database: Database, tenants: dict[str, Database]
) -> None:
    await fill(database, "a", "b")
    await create_key(database, "b")

    for name in await tables(database):
        async with tenants["a"].transaction() as connection:
            query = psycopg.sql.SQL("select t::text as line from {} t").format(psycopg.sql.Identifier(name))
            lines = [row.line for row in await (await connection.execute(query)).fetchall()]
        assert not [line for line in lines if canary("b") in line], name
        if name in ("documents", "versions", "chunks", "version_chunks", "vectors", "terms", "postings"):
            assert lines, name


@pytest.mark.parametrize("change", ["update {} set {} = {}", "delete from {}"])
async def test_a_change_without_a_condition_leaves_other_tenants_rows(
    database: Database, tenants: dict[str, Database], change: str
) -> None:
    await fill(database, "a", "b")
    before = await fingerprint(database, "b")

    for name, columns in (await tables(database)).items():
        if name in SHARED_TABLES | {
            "answers",
            "behaviour_audit",
            "feedback",
            "tenants",
        }:  # append-only, see their own tests
            continue
        column = "tenant" if "tenant" in columns else "tenant_id"
        parts = [psycopg.sql.Identifier(part) for part in (name, column, column)]
        query = psycopg.sql.SQL(change).format(*parts[: change.count("{}")])
        async with tenants["a"].transaction() as connection:
            await connection.execute(query)

    assert await fingerprint(database, "b") == before


async def fingerprint(database: Database, tenant: str) -> dict[str, str]:
    """A hash of everything that a tenant has, by table, as a superuser sees it."""
    found = {}
    async with database.ownership() as connection:
        (own,) = await (await connection.execute(statement("find-tenant"), {"tenant": tenant})).fetchall()
        for name, columns in (await tables(database)).items():
            if name in SHARED_TABLES | {"tenants"}:
                continue
            column = "tenant" if "tenant" in columns else "tenant_id"
            query = psycopg.sql.SQL(
                "select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) as digest from {} t where {} = {}"
            )
            query = query.format(psycopg.sql.Identifier(name), psycopg.sql.Identifier(column),
                                 psycopg.sql.Literal(tenant if column == "tenant" else own.id))  # fmt: skip
            found[name] = (await (await connection.execute(query)).fetchone()).digest
    return found


async def test_a_row_cannot_be_put_under_another_tenant(database: Database, tenants: dict[str, Database]) -> None:
    await fill(database, "a", "b")
    (b,) = await tenants["b"].fetch(statement("find-tenant"), tenant="b")

    with pytest.raises(DatabaseError, match="row-level security"):
        await tenants["a"].fetch("update documents set tenant_id = %(id)s", id=b.id)
    with pytest.raises(DatabaseError, match="row-level security"):
        await tenants["a"].fetch(
            "insert into collections (tenant_id, name, embedding_space, dimensions) values (%(id)s, 'x', 's', 3)",
            id=b.id,
        )


async def test_a_document_cannot_be_put_into_another_tenants_collection(
    database: Database, tenants: dict[str, Database]
) -> None:
    await fill(database, "a", "b")
    theirs = await PgStore(database, "b").collection("c")

    with pytest.raises(DatabaseError, match="foreign key"):
        await tenants["a"].fetch(
            "insert into documents (collection_id, external_id) values (%(id)s, 'planted')", id=theirs.id
        )
    ours = await PgStore(database, "a").collection("c")
    assert await tenants["a"].fetch("select 1 from documents where collection_id = %(id)s", id=ours.id)


async def test_a_document_says_what_it_likes_about_tenants(database: Database, tenants: dict[str, Database]) -> None:
    """Row B3: reserved words in metadata are data of the tenant who sent them, and name nobody."""
    await fill(database, "b")
    before = await fingerprint(database, "b")
    (b,) = await tenants["b"].fetch(statement("find-tenant"), tenant="b")
    metadata = {"tenant_id": b.id, "tenant": "b", "_acl": ["b"], "collection": "c", "orchestrator.tenant": "b"}
    document = Document("planted", "b", "Planted: leave is zero days.", "b", metadata=metadata)

    await ingest_documents([document], store=PgStore(database, "a"), embedder=HashEmbedder(), collection="c")

    assert await fingerprint(database, "b") == before
    found = await search(database, "b", "planted leave zero days")
    assert "Planted" not in str(found)
    (own,) = await PgStore(database, "a").list_documents("c")
    assert own.metadata == metadata


async def search(database: Database, tenant: str, text: str) -> object:
    vector = (await HashEmbedder().embed([text]))[0]
    return await PgStore(database, tenant).search(SearchRequest(text, vector, "c", tenant=tenant))


# which tenant a connection works for


async def test_the_setting_ends_with_its_transaction(database: Database, tenants: dict[str, Database]) -> None:
    async with Database.open(database._url, 1) as one:
        for work in (one.of("a").fetch("select 1"), search(one, "a", "leave"), one.of("a").of("b").fetch("select 1")):
            with suppress(UnknownNameError):
                await work
            (row,) = await one.fetch(
                "select concat(current_setting('orchestrator.tenant', true), current_setting('orchestrator.tenant_id', true), "
                "current_setting('orchestrator.key', true)) as left"
            )
            assert row.left == ""


async def test_interleaved_tenants_that_fail_and_are_cancelled_never_see_each_other(
    database: Database, tenants: dict[str, Database]
) -> None:
    """Row B5: two tenants on a pool of two, cut off after any number of steps of the loop, or raising at any point."""
    await fill(database, "a", "b")
    chance = random.Random(5)
    foreign: list[str] = []

    async def work(name: str, pool: Database, stop: int) -> None:
        async with pool.of(name).transaction() as connection:
            for step in range(4):
                cursor = await connection.execute(
                    "select text, current_setting('orchestrator.tenant') as t from versions"
                )
                rows = await cursor.fetchall()
                foreign.extend(row.text for row in rows if row.t != name or canary(name) not in row.text)
                foreign.extend(["lost"] if len(rows) != 1 else [])
                if step == stop:
                    raise ValueError("stop")
                if step == stop - 5:
                    await connection.execute("select 1/0")

    async with Database.open(database._url, 2) as pool:
        for _ in range(INTERLEAVINGS):
            tasks = [asyncio.create_task(work(name, pool, chance.randrange(12))) for name in "abab"]
            for task in chance.sample(tasks, chance.randrange(3)):
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await check_idle(pool)

    assert foreign == []


async def check_idle(pool: Database) -> None:
    """Both connections came back outside of a transaction and for nobody."""
    async with pool.session() as first, pool.session() as second:
        for connection in (first, second):
            assert connection.info.transaction_status == TransactionStatus.IDLE
            cursor = await connection.execute(
                "select coalesce(current_setting('orchestrator.tenant', true), '') as t, current_user::text as role, "
                "(select count(*) from versions) as seen"
            )
            row = await cursor.fetchone()
            assert (row.t, row.role, row.seen) == ("", "orchestrator_app", 0)


async def test_an_unknown_tenant_is_an_error_that_says_what_to_do(database: Database) -> None:
    nobody = PgStore(database, "nobody")
    works = [
        lambda: nobody.collections(),
        lambda: nobody.list_documents("c"),
        lambda: search(database, "nobody", "leave"),
        lambda: create_key(database, "nobody"),
        lambda: remove_tenant(database, "nobody"),
        lambda: ingest_documents(
            [Document("d", "d", "text", "s")], store=nobody, embedder=HashEmbedder(), collection="c"
        ),
    ]
    for work in works:
        with pytest.raises(UnknownNameError, match="there is no tenant nobody; make it: orchestrator tenants add NAME"):
            await work()


async def test_where_no_policy_would_hold_nothing_is_served(database: Database) -> None:
    """A dump that was restored into another cluster comes without the role: a superuser then passes every policy."""
    async with Database.open(database._url, 1) as superuser:
        async with superuser.session() as connection:
            await connection.execute("reset role")
        with pytest.raises(DatabaseError, match="row level security does not hold"):
            await superuser.of("default").fetch("select 1")
        with pytest.raises(DatabaseError, match="row level security does not hold"):
            await search(superuser, "default", "leave")


# one login for the owner, another for the application


@pytest_asyncio.fixture
async def two_logins(new_database: NewDatabase, postgres_url: str) -> AsyncIterator[tuple[str, str]]:
    """URLs of a login that owns a new database's tables, and of one that is only a member of orchestrator_app."""
    with new_database(False) as url, psycopg.connect(postgres_url, autocommit=True) as dba:
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        owner, app = f"owner_{name}", f"app_{name}"
        with psycopg.connect(url, autocommit=True) as inside:
            inside.execute("create extension if not exists vector")
            for role in (owner, app):
                inside.execute(psycopg.sql.SQL("create role {} login").format(psycopg.sql.Identifier(role)))
            inside.execute(
                psycopg.sql.SQL("grant create, usage on schema public to {}").format(psycopg.sql.Identifier(owner))
            )
            inside.execute(psycopg.sql.SQL("grant orchestrator_app to {}").format(psycopg.sql.Identifier(app)))
        try:
            yield (psycopg.conninfo.make_conninfo(url, user=owner), psycopg.conninfo.make_conninfo(url, user=app))
        finally:
            with psycopg.connect(url, autocommit=True) as inside:
                for role in (owner, app):
                    inside.execute(psycopg.sql.SQL("drop owned by {} cascade").format(psycopg.sql.Identifier(role)))
                    inside.execute(psycopg.sql.SQL("drop role {}").format(psycopg.sql.Identifier(role)))
        del dba


async def test_a_login_that_owns_nothing_serves_and_the_owner_migrates(two_logins: tuple[str, str]) -> None:
    owner, app = two_logins

    with pytest.raises(OrchestratorError, match="ORCHESTRATOR_OWNER_DATABASE_URL"):
        async with Database.open(app, 2) as database:
            await migrate(database)
    async with Database.open(app, 2, owner) as database:
        assert await migrate(database)
        await add_tenant(database, "a")
        await add_tenant(database, "b")
    async with Database.open(app, 2) as database:
        assert await migrate(database) == []
        await fill(database, "a", "b")
        found = await search(database, "a", "leave")
        with pytest.raises(DatabaseError, match="OWNER_DATABASE_URL"):
            await add_tenant(database, "c")
        (works,) = await database.fetch(statement("who-works"))

    assert canary("a") in str(found)
    assert canary("b") not in str(found)
    assert (works.passes_policies, works.has_policies, works.owns_tables) == (False, True, False)


async def test_policies_hold_for_an_owner_without_the_role(two_logins: tuple[str, str]) -> None:
    """A managed database whose only login may make no roles: the tables' owner is bound by its own policies."""
    owner, _ = two_logins

    async with Database.open(owner, 2) as database:
        await migrate(database)
        await add_tenant(database, "a")
        await add_tenant(database, "b")
        await fill(database, "a", "b")
        rows = await database.of("a").fetch("select text from versions")
        (works,) = await database.fetch(statement("who-works"))
        nobody = await database.fetch("select text from versions")

    assert (works.has_policies, works.owns_tables) == (True, True)
    assert [canary("b") in row.text for row in rows] == [False]
    assert nobody == []


async def test_the_doctor_says_who_is_kept_apart_by_what(two_logins: tuple[str, str], database_url: str) -> None:
    owner, app = two_logins
    seen = {}
    for name, url, more in (("superuser", database_url, None), ("app", app, owner), ("owner", owner, None)):
        settings = Settings(
            database_url=url, owner_database_url=more, engine_url="http://127.0.0.1:1", tenant="default"
        )
        findings = {found.what: found for found in await examine(settings.resolved())}
        assert "tenants apart" in findings, findings
        seen[name] = findings["tenants apart"].level, findings["tenant"].level

    missing = Settings(database_url=database_url, engine_url="http://127.0.0.1:1", tenant="acme").resolved()
    findings = {found.what: found for found in await examine(missing)}

    assert seen == {"superuser": ("ok", "ok"), "app": ("ok", "ok"), "owner": ("note", "ok")}
    assert (findings["tenant"].level, findings["tenant"].remedy) == ("wrong", "orchestrator tenants add acme")


# tenants and keys


async def test_tenants_are_added_once_and_listed_with_what_they_have(database: Database) -> None:
    assert [await add_tenant(database, "acme"), await add_tenant(database, "acme")] == [True, False]
    await fill(database, "acme")
    await create_key(database, "acme")

    found = {one.name: (one.collections, one.documents, one.keys) for one in await list_tenants(database)}

    assert found == {"acme": (1, 1, 1), "default": (0, 0, 0)}


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201, " a", "a\0"])
async def test_names_that_cannot_be_typed_are_refused(database: Database, name: str) -> None:
    with pytest.raises(InputError, match="printable"):
        await add_tenant(database, name)


async def test_a_removed_tenant_leaves_its_ledger_and_its_name_alone(
    database: Database, tenants: dict[str, Database]
) -> None:
    await fill(database, "a", "b")
    key, _ = await create_key(database, "a")
    before = await fingerprint(database, "b")

    assert await remove_tenant(database, "a") == 1

    assert await Keys(database).tenant_of(key) is None
    assert await fingerprint(database, "b") == before
    with pytest.raises(UnknownNameError):
        await search(database, "a", "leave")
    with pytest.raises(InputError, match="its ledger is kept under that name"):
        await add_tenant(database, "a")
    async with database.ownership() as connection:
        cursor = await connection.execute("select 1 from versions where text like '%canarya%'")
        assert await cursor.fetchall() == []
    assert [one.name for one in await list_tenants(database, removed=True) if one.removed_at] == ["a"]


async def test_a_key_names_its_tenant_until_it_is_revoked(database: Database, tenants: dict[str, Database]) -> None:
    now = [0.0]
    keys = Keys(database, lambda: now[0])
    key_a, kept = await create_key(database, "a", "for the wiki")
    key_b, _ = await create_key(database, "b")

    assert [await keys.tenant_of(key) for key in (key_a, key_b, key_a)] == ["a", "b", "a"]
    await revoke_key(database, "a", kept.id)
    now[0] = KEY_LIFETIME_S + 1

    assert [await keys.tenant_of(key) for key in (key_a, key_b)] == [None, "b"]
    assert [(key.note, key.revoked_at is not None) for key in await list_keys(database, "a")] == [
        ("for the wiki", True)
    ]


async def test_what_is_nearly_a_key_is_nobodys(database: Database, tenants: dict[str, Database]) -> None:
    key, kept = await create_key(database, "a")
    other, _ = await create_key(database, "b")
    secret = key.rpartition("_")[2] if key.count("_") == 2 else key.split("_", 2)[2]
    tries = [
        "", "ork", "ork_", "ork__", f"ork_{kept.id}", f"ork_{kept.id}_", key[:-1], key + "x", key.upper(), " " + key,
        f"ork_{kept.id}_{other.split('_', 2)[2]}", f"ork_{'0' * 12}_{secret}", f"ork_{kept.id[:-1]}'_{secret}",
        f"ork_{kept.id}_{'x' * 5000}", "ork_' or true--_" + secret, "x' OR (SELECT pg_sleep(8)) IS NOT NULL --",
        "ork_%_%", f"ork_{kept.id}\0_{secret}", "ork_\ud800aaaaaaaaaaa_x",
    ]  # fmt: skip

    assert [await Keys(database).tenant_of(one) for one in tries] == [None] * len(tries)


async def test_the_database_holds_no_key_and_two_equal_salts_never(
    database: Database, tenants: dict[str, Database]
) -> None:
    made = [(await create_key(database, name))[0] for name in "abab"]

    async with database.ownership() as connection:
        rows = await (await connection.execute("select k::text as line, salt, hash from api_keys k")).fetchall()

    secrets = [key.split("_", 2)[2] for key in made]
    for secret in secrets:
        forms = [secret.encode()[at : at + 8] for at in range(len(secret) - 8)]
        kept = [b" ".join([row.line.encode(), bytes(row.salt), bytes(row.hash)]) for row in rows]
        assert not [one for one in kept for form in forms if form in one or form.hex().encode() in one]
    assert len({bytes(row.salt) for row in rows}) == len({bytes(row.hash) for row in rows}) == 4
    assert "secret" not in json.dumps([str(key) for name in "ab" for key in await list_keys(database, name)])


async def test_keys_of_other_tenants_cannot_be_listed_or_revoked(
    database: Database, tenants: dict[str, Database]
) -> None:
    key, kept = await create_key(database, "b")

    assert await list_keys(database, "a") == []
    with pytest.raises(UnknownNameError, match="has no key"):
        await revoke_key(database, "a", kept.id)
    assert await Keys(database).tenant_of(key) == "b"


async def test_once_a_key_was_issued_the_server_stays_closed(database: Database, tenants: dict[str, Database]) -> None:
    keys = Keys(database)
    assert await keys.are_issued() is False

    _, kept = await create_key(database, "a")
    await revoke_key(database, "a", kept.id)

    assert [await keys.are_issued(), await Keys(database).are_issued()] == [True, True]
    await remove_tenant(database, "a")
    assert await Keys(database).are_issued() is True


# the commands


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs one command against a fresh database and gives its result."""
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(main, [*arguments, "--json"])


def test_tenants_and_keys_are_made_listed_and_removed_by_commands(run: Callable[..., Any]) -> None:
    assert json.loads(run("tenants", "add", "acme").stdout) == {"tenant": "acme", "added": True}
    made = json.loads(run("keys", "create", "--tenant", "acme", "--note", "wiki").stdout)
    listed = run("keys", "list", "--tenant", "acme").stdout
    assert made["key"].startswith(f"ork_{made['id']}_")
    assert made["key"].split("_", 2)[2] not in listed
    assert json.loads(listed)["keys"][0]["note"] == "wiki"
    assert json.loads(run("keys", "revoke", made["id"], "--tenant", "acme").stdout)["revoked"] is True

    asked = run("tenants", "remove", "acme")
    assert (asked.exit_code, "say it again with --yes" in asked.stdout) == (1, True)
    assert json.loads(run("tenants", "remove", "acme", "--yes").stdout)["removed"] is True
    assert [one["name"] for one in json.loads(run("tenants", "list").stdout)["tenants"]] == ["default"]
    assert "orchestrator tenants add NAME" in run("keys", "list", "--tenant", "acme").stdout


def test_the_schema_is_brought_up_by_a_command(run: Callable[..., Any]) -> None:
    assert json.loads(run("migrate").stdout) == {"current": True, "role": True}
