"""Who changed which adapter, when, and under which configuration: an append-only record in PostgreSQL (row G9)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.database import Connection, Database, Json, statement
from orchestrator.errors import SettingsError
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.tenants import Keys

GATE_FILES = ("gate.toml", "safety.jsonl")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. ``proven``: by an API key of the tenant; else it is what the operating system calls the process's owner."""

    name: str
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the record."""

    id: int
    at: datetime
    actor: str
    action: str
    name: str
    digest: str
    config: str
    details: Mapping[str, Any]


async def find_actor(database: Database, settings: Settings) -> Actor:
    """The owner of ``actor_key``, else of the process. Raises SettingsError for a key that is none of the tenant's."""
    if settings.actor_key is None:
        return Actor(f"login:{_login()}")
    tenant = await Keys(database).tenant_of(settings.actor_key)
    if tenant != settings.tenant:
        raise SettingsError(
            f"ORCHESTRATOR_ACTOR_KEY is no key of the tenant {settings.tenant!r}; make one: orchestrator keys create"
        )
    return Actor(f"key:{settings.actor_key.split('_')[1]}", proven=True)


def config_digest(settings: Settings) -> str:
    """sha256 over routes, prompts, contracts and the gate's rules: two rows with one digest were written under one policy."""
    prompts, rules = settings.prompts_dir or folder("prompts"), folder("adapters")
    files = [*sorted(prompts.glob("*.md")), *sorted(prompts.glob("*.toml")), *sorted(prompts.glob("contracts/*.json"))]
    digest = hashlib.sha256()
    for file in (*files, *(rules / name for name in GATE_FILES)):
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


async def note(connection: Connection, **row: Any) -> int:
    """Adds a row in the transaction that does what it tells: one is not committed without the other."""
    values = row | {"details": Json(row["details"])}
    cursor = await connection.execute(statement("insert-behaviour-audit"), values)
    found: Any = await cursor.fetchone()
    return int(found.id)


async def read_audit(database: Database, tenant: str, name: str | None = None, limit: int = 50) -> list[Entry]:
    """The latest rows, newest first, of one adapter's plain name or of all."""
    rows = await database.of(tenant).fetch(statement("list-behaviour-audit"), tenant=tenant, name=name, limit=limit)
    return [Entry(*row) for row in rows]


def _login() -> str:
    """By the process's uid, not by variables that anybody may set."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError, AttributeError):
        return str(getattr(os, "getuid", lambda: "unknown")())
