"""The only door to PostgreSQL: a pool, transactions, named statements from .sql files, our errors for the driver's."""

from __future__ import annotations

import logging
import re
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import lru_cache
from importlib.resources import files
from typing import Any

import psycopg
import psycopg_pool
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb as Json

from orchestrator.errors import DatabaseError, InputError, StorageFullError, UnknownNameError

log = logging.getLogger(__name__)

Row = Any  # a named tuple with the columns of its statement
Connection = psycopg.AsyncConnection[Row]

__all__ = ["Binary", "Connection", "Database", "Json", "Row", "copy_rows", "statement"]

SQL_FILES = (
    "queries.sql",
    "tenants.sql",
    "ledger.sql",
    "feedback.sql",
    "knowledge/queries.sql",
    "knowledge/write.sql",
    "knowledge/time.sql",
    "knowledge/maintain.sql",
    "knowledge/jobs.sql",
    "knowledge/spaces.sql",
    "knowledge/partitions.sql",
    "behaviour/queries.sql",
    "behaviour/service.sql",
    "evaluation/archive.sql",
    "evaluation/queries.sql",
    "evaluation/evidence.sql",
    "evaluation/improve.sql",
)

_NEXT_STEP = (
    "Is PostgreSQL running? `orchestrator up` starts the embedded one, `orchestrator doctor` looks for the cause."
)
_RIGHTS = (
    "What changes the schema needs the login that owns the tables (ORCHESTRATOR_OWNER_DATABASE_URL), what serves must "
    "be bound by its policies; `orchestrator doctor` says which of the two is missing."
)
_NAME = re.compile(r"^-- name: ([\w-]+)[ \t]*$", re.MULTILINE)


class Binary(bytes):
    """A value in the binary form of the type that its statement casts it to."""


class _BinaryDumper(psycopg.adapt.Dumper):
    format = psycopg.pq.Format.BINARY

    def dump(self, obj: Binary) -> Binary:
        return obj


class _BrokenConnection(psycopg.OperationalError):
    """The server ended, or the way to it."""


def statement(name: str) -> str:
    """The statement that stands under ``-- name: <name>`` in one of the package's .sql files."""
    return _statements()[name]


@lru_cache(maxsize=1)
def _statements() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in SQL_FILES:
        parts = _NAME.split(files("orchestrator").joinpath(file).read_text("utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if name in found:
                raise ValueError(f"two statements are named {name}; the second is in {file}")
            found[name] = text.strip()
    return found


class Database:
    """A pool of connections to one PostgreSQL database. Rows come back as named tuples, times in UTC."""

    def __init__(
        self,
        pool: psycopg_pool.AsyncConnectionPool[Connection],
        url: str,
        owner_url: str | None = None,
        tenant: str | None = None,
    ) -> None:
        self._pool = pool
        self._url = url
        self._owner_url = owner_url
        self.tenant = tenant

    def of(self, tenant: str) -> Database:
        """The same pool, working for one tenant: nothing of another tenant can be read or written through it."""
        return Database(self._pool, self._url, self._owner_url, tenant)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, pool_size: int = 8, owner_url: str | None = None) -> AsyncIterator[Database]:
        """A database for the length of the block; ``owner_url``: the login for ``ownership``, when it is another one.

        Raises DatabaseError when it cannot be reached.
        """
        _refuse_malformed(url, "DATABASE_URL")
        if owner_url is not None:
            _refuse_malformed(owner_url, "OWNER_DATABASE_URL")
        with _mapped(url):
            # The pool would retry in the background until its timeout; one plain attempt tells at once what is wrong.
            probe = await psycopg.AsyncConnection.connect(url, connect_timeout=10)
            await probe.close()
        pool: psycopg_pool.AsyncConnectionPool[Connection] = psycopg_pool.AsyncConnectionPool(
            url,
            min_size=1,
            max_size=max(pool_size, 1),
            open=False,
            timeout=30,
            kwargs={"autocommit": True, "row_factory": _named_rows, "application_name": "orchestrator"},
            configure=_configure,
        )
        with _mapped(url):
            await pool.open()
        try:
            yield cls(pool, url, owner_url)
        finally:
            await pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One transaction on one connection: commits at the end, rolls back when the block raises.

        Driver errors leave the block as DatabaseError, StorageFullError or InputError. Without a tenant (``of``) no row of
        any tenant is seen.
        """
        async with self.session() as connection, connection.transaction():
            if self.tenant is not None:
                await connection.execute(statement("use-tenant"), {"tenant": self.tenant})
            yield connection

    @asynccontextmanager
    async def ownership(self) -> AsyncIterator[Connection]:
        """A transaction with the rights of the login, not of the application's role: for changes of the schema.

        Nothing but the statement keeps tenants apart in it when the login is a superuser.
        """
        async with self._owner() as connection, connection.transaction():
            await connection.execute(statement("leave-role"))
            if self.tenant is not None:
                await connection.execute(statement("use-tenant-as-owner"), {"tenant": self.tenant})
            yield connection

    @asynccontextmanager
    async def _owner(self) -> AsyncIterator[Connection]:
        if self._owner_url is None:
            async with self.session() as connection:
                yield connection
            return
        with _mapped(self._owner_url):
            options: dict[str, Any] = {"autocommit": True, "row_factory": _named_rows, "connect_timeout": 10}
            async with await psycopg.AsyncConnection.connect(self._owner_url, **options) as connection:
                await connection.execute("select set_config('TimeZone', 'UTC', false)")
                yield connection

    async def vacuum_full(self, tables: Iterable[str]) -> None:
        """Rewrites tables with the rights of the login; VACUUM runs outside of a transaction."""
        url = self._owner_url or self._url
        with _mapped(url):
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                for table in tables:
                    await connection.execute(sql.SQL("vacuum (full) {}").format(sql.Identifier(table)))

    async def renew(self) -> None:
        """Replaces the connections: those that were made before the first migration do not have the role yet."""
        await self._pool.drain()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """One connection on which each statement is a transaction of its own; errors as in ``transaction``."""
        with _mapped(self._url):
            async with self._asked() as connection:
                yield connection

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Connection]:
        connection = await self._pool.getconn()  # the pool's own context manager would also commit
        try:
            yield connection
        finally:
            await self._pool.putconn(connection)

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[Connection]:
        """A connection that has just answered: after a restart of PostgreSQL the dead ones are replaced first."""
        while True:
            async with self._lent() as connection:
                try:
                    await self._pool.check_connection(connection)
                except psycopg.OperationalError:
                    continue
                yield connection
                return

    async def read(self, query: str, /, **values: Any) -> list[Row]:
        """All rows of one statement that changes nothing and names its tenant itself; they come in binary form.

        It is repeated once when its connection broke, so none is asked before: a twentieth of a search. Errors as in
        ``transaction``.
        """
        with _mapped(self._url):
            try:
                return await self._rows(self._lent(), query, values)
            except _BrokenConnection as error:
                log.warning("a connection broke under a statement that is now repeated: %s", _said(error, self._url))
                return await self._rows(self._asked(), query, values)

    async def _rows(
        self, lent: AbstractAsyncContextManager[Connection], query: str, values: dict[str, Any]
    ) -> list[Row]:
        async with lent as connection:
            try:
                return await (await connection.execute(query, values, binary=True)).fetchall()
            except psycopg.OperationalError as error:
                if not connection.closed:
                    raise
                raise _BrokenConnection(*error.args) from error

    async def fetch(self, query: str, /, **values: Any) -> list[Row]:
        """All rows of one statement in a transaction of its own."""
        async with self._one_statement() as connection:
            return await (await connection.execute(query, values)).fetchall()

    async def fetch_one(self, query: str, /, **values: Any) -> Row | None:
        """The first row of one statement in a transaction of its own; None when there is none."""
        async with self._one_statement() as connection:
            return await (await connection.execute(query, values)).fetchone()

    def _one_statement(self) -> AbstractAsyncContextManager[Connection]:
        return self.session() if self.tenant is None else self.transaction()


async def copy_rows(
    connection: Connection, query: str, rows: Iterable[Sequence[Any]], types: Sequence[str] | None = None
) -> None:
    """Runs ``copy ... from stdin`` with these rows; ``types`` are needed for (and only for) ``format binary``."""
    async with connection.cursor() as cursor, cursor.copy(query) as copy:
        if types:
            copy.set_types(types)
        for row in rows:
            await copy.write_row(row)


def _named_rows(cursor: psycopg.AsyncCursor[Any]) -> Callable[[Sequence[Any]], Row]:
    # psycopg's own namedtuple_row refuses columns without a name or with the same name; here they become _0, _1...
    result = cursor.pgresult
    names = [result.fname(column) for column in range(result.nfields)] if result else []
    make: Callable[[Sequence[Any]], Row] = _row_class(tuple(names))._make
    return make


@lru_cache(maxsize=512)
def _row_class(names: tuple[bytes | None, ...]) -> Any:
    return namedtuple("Row", [(name or b"").decode() for name in names], rename=True)


async def _configure(connection: Connection) -> None:
    connection.adapters.register_dumper(Binary, _BinaryDumper)
    # JIT costs more than any of our statements; times come back in UTC whatever the server's zone is.
    await connection.execute("select set_config('jit', 'off', false), set_config('TimeZone', 'UTC', false)")
    await connection.execute(statement("take-role"))


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.DiskFull as error:
        raise StorageFullError(
            f"PostgreSQL has no space left: {_said(error, url)} Free space on its disk; what was acknowledged is kept."
        ) from error
    except (psycopg.DataError, UnicodeEncodeError) as error:
        raise InputError(f"PostgreSQL cannot hold this value: {_said(error, url)}") from error
    except psycopg.errors.NoDataFound as error:
        if error.diag.table_name != "tenants":
            raise DatabaseError(f"PostgreSQL refused a statement: {_said(error, url)}") from error
        raise UnknownNameError(
            f"{error.diag.message_primary}; make it: orchestrator tenants add NAME", param="tenant"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(f"PostgreSQL refused a statement: {_said(error, url)} {_RIGHTS}") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        message = f"the database at {_place(url)} does not serve: {_said(error, url)} {_NEXT_STEP}"
        raise DatabaseError(message) from error
    except psycopg.Error as error:
        raise DatabaseError(f"PostgreSQL refused a statement: {_said(error, url)}") from error


def _refuse_malformed(url: str, name: str) -> None:
    try:
        conninfo_to_dict(url)
    except psycopg.Error as error:  # the driver quotes what it cannot parse, which may hold the password: not shown
        raise DatabaseError(
            f"ORCHESTRATOR_{name} is malformed; its form is postgresql://user:password@host:port/database. "
            "Without it, `orchestrator up` starts the embedded PostgreSQL."
        ) from error


def _place(url: str) -> str:
    """Host and database of a connection string, without user and password."""
    parts = conninfo_to_dict(url)
    return f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


def _said(error: Exception, url: str) -> str:
    """What the driver said, as one sentence, without the password."""
    secret = str(conninfo_to_dict(url).get("password") or "")
    text = " ".join(str(error).split())
    return (text.replace(secret, "***") if secret else text).rstrip(".") + "."
