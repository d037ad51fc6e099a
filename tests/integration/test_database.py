"""Migrations and the door to PostgreSQL: errors that say what to do, never a password."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest

from orchestrator.database import Binary, Database, statement
from orchestrator.errors import DatabaseError, InputError, MigrationError, OrchestratorError, StorageFullError
from orchestrator.migrate import migrate
from orchestrator.resources import folder


async def names(database: Database) -> list[str]:
    return [row.name for row in await database.fetch("select name from schema_migrations order by name")]


async def test_migrations_are_applied_once_in_order(empty_database_url: str) -> None:
    async with Database.open(empty_database_url, 2) as database:
        applied = await migrate(database)
        assert applied == sorted(file.name for file in folder("migrations").glob("*.sql"))
        assert await migrate(database) == []
        assert await names(database) == applied


async def test_many_processes_may_migrate_at_once(empty_database_url: str) -> None:
    async def run() -> list[str]:
        async with Database.open(empty_database_url, 1) as database:
            return await migrate(database)

    found = await asyncio.gather(*(run() for _ in range(6)))
    shipped = sorted(file.name for file in folder("migrations").glob("*.sql"))
    assert sorted(name for applied in found for name in applied) == shipped


async def test_an_edited_migration_is_refused(empty_database_url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_pre_a.sql").write_text("create extension vector; create table a (x integer);")
    async with Database.open(empty_database_url, 1) as database:
        await migrate(database, tmp_path)
        (tmp_path / "0001_pre_a.sql").write_text("create table a (x bigint);")
        with pytest.raises(MigrationError, match=r"0001_pre_a.sql was edited"):
            await migrate(database, tmp_path)


async def test_a_failing_migration_leaves_nothing_behind(empty_database_url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_pre_a.sql").write_text("create table a (x integer); insert into a values (1); select 1/0;")
    async with Database.open(empty_database_url, 1) as database:
        with pytest.raises(MigrationError, match="division by zero"):
            await migrate(database, tmp_path)
        (tmp_path / "0001_pre_a.sql").write_text("create table a (x integer);")
        assert await migrate(database, tmp_path) == ["0001_pre_a.sql"]


async def test_a_migration_does_not_wait_for_a_locked_table(database: Database, tmp_path: Path) -> None:
    (tmp_path / "9999_pre_a.sql").write_text("alter table documents add column x integer;")
    async with database.transaction() as connection:
        await connection.execute("lock table documents in access share mode")
        with pytest.raises(MigrationError, match="lock timeout"):
            await migrate(database, tmp_path)


async def test_an_older_program_runs_on_a_newer_schema(database: Database, tmp_path: Path) -> None:
    first = sorted(folder("migrations").glob("*.sql"))[0]
    (tmp_path / first.name).write_text(first.read_text())
    assert await migrate(database, tmp_path) == []


async def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.ownership() as connection:
            await connection.execute("create table t (x integer)")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        await fail()
    row = await database.fetch_one("select to_regclass('t') as found")
    assert row is not None
    assert row.found is None


async def test_columns_may_have_no_name_or_the_same(database: Database) -> None:
    assert tuple(await database.fetch_one("select 1 + 1, 2 + 1, 3 as x, 4 as x") or ()) == (2, 3, 3, 4)


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("select 1/0", InputError),
        ("select no_such_column", DatabaseError),
        ("insert into terms (collection_id, term) values (1, 'x')", DatabaseError),
        ("do $$ begin raise exception 'full' using errcode = '53100'; end $$", StorageFullError),
    ],
)
async def test_driver_errors_become_ours(database: Database, query: str, kind: type[OrchestratorError]) -> None:
    with pytest.raises(kind) as found:
        await database.fetch_one(query)
    assert isinstance(found.value.__cause__, psycopg.Error)


async def test_nul_in_a_value_is_an_input_error(database: Database) -> None:
    with pytest.raises(InputError, match="cannot hold"):
        await database.fetch_one("select %(x)s::text", x="a\0b")
    with pytest.raises(InputError, match="cannot hold"):
        await database.fetch_one("select %(x)s::text", x="\ud800")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cret@127.0.0.1:1/db",
        "postgresql://user:s3cret@no-such-host.invalid/db",
        "host=127.0.0.1 port=1 user=u password=s3cret",
        "s3cret is not a connection string",
        "postgresql://user:s3cret@127.0.0.1:1/db?s3cret=1",
        "host=/no/such/dir password='s3cret",
    ],
)
async def test_an_unreachable_database_says_what_to_do_and_no_secret(url: str) -> None:
    with pytest.raises(DatabaseError, match="orchestrator up") as found:
        async with Database.open(url):
            pass
    assert "s3cret" not in found.value.message


async def test_a_wrong_password_is_not_shown(postgres_url: str) -> None:
    url = psycopg.conninfo.make_conninfo(postgres_url, user="nobody", password="s3cret")
    with pytest.raises(DatabaseError) as found:
        async with Database.open(url):
            pass
    assert "s3cret" not in found.value.message


async def test_connections_are_replaced_after_they_were_cut(database: Database) -> None:
    await database.fetch_one("select 1")
    async with database.ownership() as connection:  # the application's role may not
        await connection.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
    for _ in range(3):
        assert await database.fetch_one("select 1") is not None


async def test_a_statement_that_only_reads_is_repeated_when_its_connection_breaks(database: Database) -> None:
    reading = asyncio.create_task(database.read("select 7 as x, pg_sleep(0.7), 'cut me'"))

    await cut(database, "%cut me%")

    assert [row.x for row in await reading] == [7]


async def test_it_is_repeated_once_and_the_error_is_ours(database: Database) -> None:
    reading = asyncio.create_task(database.read("select pg_sleep(60), 'cut me'"))

    for _ in range(2):
        await cut(database, "%cut me%")

    with pytest.raises(DatabaseError, match="orchestrator up"):
        await reading


async def test_what_fails_without_breaking_the_connection_is_not_repeated(database: Database) -> None:
    async with database.ownership() as connection:
        await connection.execute("create sequence runs")
        await connection.execute("grant all on sequence runs to public")
    with pytest.raises(InputError):
        await database.read("select 1 / (nextval('runs') - 1)")
    with pytest.raises(DatabaseError):  # an operational error, as that of a broken connection
        await database.read("do $$ begin perform nextval('runs'); raise exception 'x' using errcode = '55P03'; end $$")
    (row,) = await database.read("select last_value from runs")
    assert row.last_value == 2


async def test_a_read_finds_a_live_connection_after_all_were_cut(empty_database_url: str) -> None:
    async with Database.open(empty_database_url, 4) as database:
        async with AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(database.session())
        async with await psycopg.AsyncConnection.connect(empty_database_url, autocommit=True) as other:
            await other.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                "where application_name = 'orchestrator' and datname = current_database()"
            )
        assert [tuple(row) for row in await database.read("select 7 as x")] == [(7,)]


async def cut(database: Database, query: str) -> None:
    """Ends the backend that runs this, as soon as there is one."""
    found: list[object] = []
    while not found:
        async with database.ownership() as connection:
            rows = await connection.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                "where query like %s and state = 'active' and pid <> pg_backend_pid()",
                [query],
            )
            found = await rows.fetchall()


async def test_a_session_that_raises_gives_a_clean_connection_back(database: Database) -> None:
    async def fail() -> None:
        async with database.session() as connection:
            await connection.execute("begin")
            await connection.execute("create temporary table t (x integer)")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        await fail()
    row = await database.fetch_one("select to_regclass('t') as found")
    assert row is not None
    assert row.found is None


async def test_a_session_that_is_cancelled_gives_its_place_back(empty_database_url: str) -> None:
    async with Database.open(empty_database_url, 1) as database:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), database.session() as connection:
                await connection.execute("select pg_sleep(60)")
        assert tuple(await database.fetch_one("select 7") or ()) == (7,)


async def test_a_binary_value_is_read_as_the_type_that_it_is_cast_to(database: Database) -> None:
    row = await database.fetch_one("select %(x)s::integer as x", x=Binary(b"0007"))
    assert tuple(row or ()) == (0x30303037,)


def test_every_statement_is_found_by_name() -> None:
    assert statement("search").startswith("-- One round trip")
    with pytest.raises(KeyError):
        statement("no-such-statement")
