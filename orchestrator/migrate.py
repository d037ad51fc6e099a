"""Brings a database to the schema of this code: plain SQL files, each applied once, an edited file refused."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from orchestrator.database import Database, Row, statement
from orchestrator.errors import DatabaseError, InputError, MigrationError
from orchestrator.resources import folder

log = logging.getLogger(__name__)

PGVECTOR_AT_LEAST = (0, 8, 4)  # security floor


async def migrate(database: Database, path: Path | None = None) -> list[str]:
    """Applies what is missing from ``path`` (the shipped folder when None), in order of name; gives the names applied.

    Safe to run from several processes at once. Raises MigrationError.
    """
    wanted = [(file.name, file.read_text("utf-8")) for file in sorted((path or folder("migrations")).glob("*.sql"))]
    async with database.ownership() as connection:
        table: Row = await (await connection.execute(statement("has-migrations"))).fetchone()
        found = await connection.execute(statement("applied-migrations")) if table.found else None
        known = await found.fetchall() if found else []
    _refuse_edited(known, wanted)
    if {name for name, _ in wanted} <= {row.name for row in known}:
        return []
    await _check_pgvector(database)
    applied = [name for name, text in wanted if await _apply(database, name, text)]
    await database.renew()
    log.info("migrations applied: %d", len(applied))
    return applied


async def _apply(database: Database, name: str, text: str) -> bool:
    try:
        async with database.ownership() as connection:
            # Waits for another process that migrates; only then is the wait for tables limited, so that a migration
            # gives up before it queues all readers behind itself.
            await connection.execute(statement("lock-migrations"))
            await connection.execute(statement("create-migrations"))
            known = await (await connection.execute(statement("applied-migrations"))).fetchall()
            _refuse_edited(known, [(name, text)])
            if any(row.name == name for row in known):
                return False
            await connection.execute(statement("limit-lock-wait"))
            await connection.execute(text)
            await connection.execute(statement("record-migration"), {"name": name, "sha256": _digest(text)})
    except MigrationError:
        raise
    except (DatabaseError, InputError) as error:
        raise MigrationError(f"migration {name} failed and was rolled back: {error.message}") from error
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_edited(known: list[Row], wanted: list[tuple[str, str]]) -> None:
    recorded = {row.name: row.sha256 for row in known}
    for name, text in wanted:
        if name in recorded and recorded[name] != _digest(text):
            raise MigrationError(
                f"migration {name} was edited after this database had applied it. "
                "Restore the file as it was and put the change into a new migration."
            )


async def _check_pgvector(database: Database) -> None:
    row = await database.fetch_one(statement("pgvector-version"))
    if row is None:
        raise MigrationError(
            "this PostgreSQL has no pgvector. Install pgvector 0.8.4 or newer there (package postgresql-NN-pgvector), "
            "or unset ORCHESTRATOR_DATABASE_URL to use the embedded PostgreSQL."
        )
    if tuple(int(part) for part in row.version.split(".")) < PGVECTOR_AT_LEAST:
        raise MigrationError(
            f"pgvector {row.version} is too old, 0.8.4 is needed. Update it, then run: alter extension vector update"
        )
