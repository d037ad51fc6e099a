"""Tenants and their API keys: made and removed by the owner of the tables; a caller's key in, the name of its tenant out."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.database import Database, Row, statement
from orchestrator.errors import InputError, UnknownNameError

MAX_NAME = 200
KEY_LIFETIME_S = 10.0  # a revoked key answers no longer than this in a server that has just seen it
MAX_KNOWN_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose documents, adapters and answers are kept apart from everybody else's. Sizes are None once it is removed."""

    name: str
    created_at: datetime
    removed_at: datetime | None = None
    collections: int | None = None
    documents: int | None = None
    keys: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: its secret is shown once, when it is made, and never again."""

    id: str
    tenant: str
    note: str
    created_at: datetime
    revoked_at: datetime | None = None


async def add_tenant(database: Database, name: str) -> bool:
    """Makes a tenant; False when it is there. Raises InputError for a name that is not usable or was removed."""
    if not name or len(name) > MAX_NAME or not name.isprintable() or name != name.strip():
        raise InputError(f"a tenant's name has 1 to {MAX_NAME} printable characters, not {name[:80]!r}", param="tenant")
    made = await _as_owner(database, "add-tenant", tenant=name)
    if not made:
        (found,) = await _as_owner(database, "find-tenant", tenant=name)
        if found.removed_at:
            raise InputError(
                f"the tenant {name!r} was removed on {found.removed_at:%Y-%m-%d}; its ledger is kept under that name, "
                "so choose another one",
                param="tenant",
            )
    return bool(made)


async def list_tenants(database: Database, removed: bool = False) -> list[Tenant]:
    """Every tenant with its sizes, by name."""
    tenants = []
    for row in await _as_owner(database, "list-tenants", removed=removed):
        sizes: Row = None
        if row.removed_at is None:
            sizes = await database.of(row.name).fetch_one(statement("tenant-sizes"), tenant=row.name)
        tenants.append(Tenant(*row, *(sizes or ())))
    return tenants


async def remove_tenant(database: Database, name: str) -> int:
    """Removes a tenant's documents and keys; gives the number of collections. Its ledger and its name stay taken.

    Raises UnknownNameError.
    """
    async with database.of(name).ownership() as connection:
        removed = await (await connection.execute(statement("remove-tenant"), {"tenant": name})).fetchall()
    return len(removed)


async def create_key(database: Database, tenant: str, note: str = "") -> tuple[str, ApiKey]:
    """A new key of the tenant, ``ork_<id>_<secret>``, and what is kept of it. Raises UnknownNameError."""
    if len(note) > MAX_NAME or not note.isprintable():
        raise InputError(f"a note has at most {MAX_NAME} printable characters", param="note")
    key_id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_bytes(16)
    values = {"id": key_id, "tenant": tenant, "note": note, "salt": salt, "hash": key_hash(salt, secret)}
    async with database.of(tenant).transaction() as connection:
        await connection.execute(statement("insert-key"), values)
    kept = next(key for key in await list_keys(database, tenant) if key.id == key_id)
    return f"ork_{key_id}_{secret}", kept


async def list_keys(database: Database, tenant: str) -> list[ApiKey]:
    """The tenant's keys, the oldest first. Raises UnknownNameError."""
    return [ApiKey(*row) for row in await database.of(tenant).fetch(statement("list-keys"), tenant=tenant)]


async def revoke_key(database: Database, tenant: str, key_id: str) -> None:
    """Ends a key: servers refuse it within KEY_LIFETIME_S. Raises UnknownNameError."""
    if await database.of(tenant).fetch_one(statement("revoke-key"), tenant=tenant, id=key_id) is None:
        raise UnknownNameError(
            f"the tenant {tenant!r} has no key {key_id[:80]!r}; `orchestrator keys list` shows them", param="key"
        )


def key_hash(salt: bytes, secret: str) -> bytes:
    """What is kept of a secret. One sha256 is enough: 256 random bits cannot be tried out, whatever a try costs.

    A slow hash (scrypt) guards what people choose; here it would only make each refused call cost 50 ms of CPU.
    """
    return hashlib.sha256(salt + secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class _Known:
    tenant: str
    salt: bytes
    hash: bytes
    until: float


class Keys:
    """Finds the tenant of a caller's key. What was found is kept for a few seconds: hashes, never a key."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._issued_until = 0.0

    async def tenant_of(self, key: str) -> str | None:
        """The tenant's name; None for a key that is malformed, unknown, wrong or revoked. Raises DatabaseError."""
        kind, _, rest = key.partition("_")
        key_id, _, secret = rest.partition("_")
        if (
            kind != "ork"
            or len(key_id) != 12
            or not key_id.isalnum()
            or not key_id.isascii()
            or not 0 < len(secret) < 100
        ):
            return None
        known = self._known.get(key_id)
        if known is None or known.until < self._clock():
            known = await self._find(key_id)
        # One comparison whether or not the id is known; of hashes, so that no prefix of a secret can be found by its time.
        salt, expected = (known.salt, known.hash) if known else (b"", bytes(32))
        matches = hmac.compare_digest(key_hash(salt, secret), expected)
        return known.tenant if known and matches else None

    async def are_issued(self) -> bool:
        """Whether any tenant ever got a key: from then on a caller without one is refused, also when all are revoked."""
        if self._clock() >= self._issued_until:
            row = await self._database.fetch_one(statement("are-keys-issued"))
            # Issued once is issued for ever; the other answer is asked for again.
            self._issued_until = float("inf") if row and row.issued else 0.0
            return bool(row and row.issued)
        return True

    async def _find(self, key_id: str) -> _Known | None:
        async with self._database.session() as connection:  # the function reads the one row that the id names
            row: Any = await (await connection.execute(statement("find-key"), {"id": key_id})).fetchone()
        if row is None:
            self._known.pop(key_id, None)
            return None
        if len(self._known) >= MAX_KNOWN_KEYS:
            self._known.clear()
        known = _Known(row.tenant, bytes(row.salt), bytes(row.hash), self._clock() + KEY_LIFETIME_S)
        self._known[key_id] = known
        return known


async def _as_owner(database: Database, name: str, **values: Any) -> list[Row]:
    async with database.ownership() as connection:
        return await (await connection.execute(statement(name), values)).fetchall()
