"""Ingest as jobs in a table: asked for once, leased by a worker, taken over when it dies, worked off to the end.

queued -> running -> done                 what could not be ingested is in the job's dead letters
             ├─ failed -> running ...      the database or the embedder was down: it waits, longer each time
             └─ dead                       its input is wrong, or it stalled MAX_STALLS times
A worker that dies leaves its job running until the lease is over. What is stored already is no work for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from orchestrator.database import Database, Json, Row, statement
from orchestrator.errors import ConflictError, DatabaseError, InputError, OrchestratorError, UnknownNameError
from orchestrator.failpoints import failpoint
from orchestrator.knowledge.ingest import IngestEvent, IngestReport, ingest
from orchestrator.knowledge.sources.fetch import is_url
from orchestrator.knowledge.sources.load import MAX_BYTES, Fetch, LoadFailure
from orchestrator.knowledge.store import PgStore
from orchestrator.protocols import Embedder
from orchestrator.types import Document

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "dead", "cancelled"]
STATES = ("queued", "running", "done", "failed", "dead", "cancelled")
LEASE_S = 30.0  # after which a worker that says nothing is taken for dead
MAX_STALLS = 5  # that a job is taken in a row without getting further
MAX_CRASHES = 3  # of workers with the same document in work: the first time in company, then twice alone
MAX_WAIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Letter:
    """A file or line that a job could not ingest."""

    source: str
    line: int | None
    reason: str
    attempts: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. ``progress``: documents by outcome, chunks, bytes read; ``letters``: number of dead letters."""

    id: str
    kind: str
    payload: Mapping[str, Any]
    key: str | None
    state: State
    attempts: int
    progress: Mapping[str, Any]
    error: str | None
    leased_by: str | None
    lease_until: datetime | None
    run_after: datetime
    created_at: datetime
    asked_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    letters: int


class Jobs:
    """The jobs of one tenant."""

    def __init__(self, database: Database, tenant: str = "default") -> None:
        self._database = database.of(tenant)

    async def enqueue_ingest(
        self,
        paths: Sequence[str | Path],
        *,
        collection: str,
        key: str | None = None,
        valid_from: datetime | None = None,
        id_from: str | None = None,
        language: str | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> Job:
        """Puts an ingest into the queue. The same ``key`` with the same request is the same job, asked for once.

        Raises ConflictError for a key that another request has, InputError when a path does not exist.
        """
        given = [str(path) for path in paths]
        missing = next((path for path in given if not is_url(path) and not Path(path).exists()), None)
        if missing is not None:
            raise InputError(f"there is no file or folder {missing!r}", param="paths")
        payload = {
            "paths": [path if is_url(path) else str(Path(path).absolute()) for path in given],
            "collection": collection,
            "valid_from": valid_from.isoformat() if valid_from else None,
            "id_from": id_from,
            "language": language,
            "max_bytes": max_bytes,
        }
        return await self._enqueue("ingest", payload, key)

    async def _enqueue(self, kind: str, payload: dict[str, Any], key: str | None) -> Job:
        digest = hashlib.sha256(json.dumps([kind, payload], sort_keys=True).encode()).hexdigest()
        values = {"kind": kind, "payload": Json(payload), "key": key, "digest": digest}
        row = await self._database.fetch_one(statement("add-job"), **values)
        if row is None:
            row = await self._database.fetch_one(statement("job-of-key"), key=key)
            if row is None or row.digest != digest:
                raise ConflictError(
                    f"the idempotency key {key!r} belongs to another request; send a new key with a new request",
                    param="key",
                )
        return await self.show(str(row.id))

    async def find(self, state: str | None = None, limit: int = 100) -> list[Job]:
        """Jobs, newest first."""
        rows = await self._database.fetch(statement("list-jobs"), id=None, state=state, limit=limit)
        return [Job(*row) for row in rows]

    async def show(self, job_id: str) -> Job:
        """One job. Raises UnknownNameError."""
        row = await self._database.fetch_one(statement("list-jobs"), id=job_id, state=None, limit=1)
        if row is None:
            raise UnknownNameError(f"there is no job {job_id!r}. `orchestrator jobs list` shows them.", param="job")
        return Job(*row)

    async def letters(self, job_id: str) -> list[Letter]:
        """What the job could not ingest, and why. Raises UnknownNameError."""
        job = await self.show(job_id)
        return [Letter(*row) for row in await self._database.fetch(statement("list-letters"), id=job.id)]

    async def retry(self, job_id: str) -> Job:
        """Puts a job that has ended into the queue again, with everything that was set apart. Raises InputError."""
        job = await self.show(job_id)
        async with self._database.transaction() as connection:
            found = await (await connection.execute(statement("retry-job"), {"id": job.id})).fetchone()
            await connection.execute(statement("forget-letters"), {"id": job.id})
            if found is None:
                raise InputError(f"the job {job_id} is {job.state}: it is worked on anyway", param="job")
        return await self.show(job_id)

    async def cancel(self, job_id: str) -> Job:
        """Ends a job; what it has stored stays. Its worker stops within a few seconds. Raises InputError."""
        job = await self.show(job_id)
        if await self._database.fetch_one(statement("cancel-job"), id=job.id) is None:
            raise InputError(f"the job {job_id} is {(await self.show(job_id)).state} already", param="job")
        return await self.show(job_id)

    async def count_open(self) -> tuple[int, int]:
        """Jobs that have not ended, and how many of them a worker holds."""
        row: Row = await self._database.fetch_one(statement("count-open-jobs"))
        return row.open, row.running

    async def take(self, worker: str, lease_s: float = LEASE_S) -> _Held | None:
        """The next job, leased to this worker; None when there is none to take."""
        row = await self._database.fetch_one(statement("take-job"), worker=worker, lease_s=lease_s)
        return _Held(self._database, row, worker, lease_s) if row else None


@dataclass(slots=True)
class _Held:
    """A job that this worker holds the lease of, and how far it is."""

    database: Database
    row: Row
    worker: str
    lease_s: float
    counts: Counter[str] = field(default_factory=Counter)
    bytes: tuple[int, int] = (0, 0)
    unsent: list[tuple[LoadFailure, int]] = field(
        default_factory=list
    )  # letters that are not written yet, with attempts
    is_further: bool = False

    def see(self, event: IngestEvent) -> None:
        """Counts an event of the ingest."""
        if event.status == "embedding":
            return
        self.counts[event.status] += 1
        self.counts["chunks"] += event.chunks
        self.bytes = (event.read_bytes, event.total_bytes)
        self.is_further |= event.status in ("added", "updated")
        if event.failure and not event.failure.skipped:
            self.unsent.append((event.failure, 2 if event.failure.poisoned else 1))

    @property
    def progress(self) -> dict[str, int]:
        read, total = self.bytes
        return {**self.counts, "read_bytes": read, "total_bytes": total}

    async def gate(self, documents: Sequence[Document]) -> AsyncGenerator[list[Document]]:
        """Groups of documents to work on together. One that a worker died with goes alone, and at last not at all."""
        crashes: Mapping[str, int] = self.row.crashes
        usual = [document for document in documents if document.external_id not in crashes]
        groups = [usual] if usual else []
        for document in documents:
            if crashes.get(document.external_id, 0) >= MAX_CRASHES:
                await self._set_apart(document, crashes[document.external_id])
            elif document.external_id in crashes:
                groups.append([document])
        for group in groups:
            names = [document.external_id for document in group]
            await self._update("mark-in-work", names=names)
            yield group

    async def _set_apart(self, document: Document, died: int) -> None:
        name = document.external_id
        reason = f"{name}: {died} workers died while they had it in work"
        self.counts["failed"] += 1
        self.unsent.append((LoadFailure(document.source or name, reason, poisoned=True), died))
        await self.renew()

    async def renew(self) -> None:
        """Renews the lease and shows how far the job is. Raises LeaseLost when it is another's, or was cancelled."""
        await self._add_letters()
        values = {"lease_s": self.lease_s, "progress": Json(self.progress), "is_further": self.is_further}
        await self._update("renew-job", **values)

    async def leave(self, state: State, error: str | None = None, wait_s: float = 0) -> None:
        """Ends this worker's part. Raises LeaseLost."""
        await self._add_letters()
        failpoint("job-ack")
        values = {"wait_s": wait_s, "progress": Json(self.progress), "is_further": self.is_further}
        await self._update("leave-job", state=state, error=error, **values)
        failpoint("job-acked")

    async def _add_letters(self) -> None:
        letters, self.unsent = self.unsent, []
        if letters:
            added = await self.database.fetch(
                statement("add-letters"),
                id=self.row.id,
                sources=[failure.source for failure, _ in letters],
                lines=[failure.line or 0 for failure, _ in letters],
                reasons=[failure.reason for failure, _ in letters],
                attempts=[attempts for _, attempts in letters],
            )
            self.is_further |= bool(added)

    async def _update(self, name: str, **values: Any) -> None:
        if await self.database.fetch_one(statement(name), id=self.row.id, worker=self.worker, **values) is None:
            raise LeaseLost


class LeaseLost(Exception):
    """Another worker has the job, or it was cancelled."""


async def work(
    jobs: Jobs,
    store: PgStore,
    embedder: Embedder,
    *,
    is_forever: bool = False,
    lease_s: float = LEASE_S,
    poll_s: float = 1.0,
    progress: Callable[[str, IngestEvent], None] | None = None,
    fetch: Fetch | None = None,
) -> int:
    """Works jobs off until none is to be taken, or forever; gives their number. Cancelling gives the current one back.

    ``fetch``: reads URLs; without it a job that names one is dead.
    """
    worked = 0
    while True:
        held = None
        try:
            held = await jobs.take(_worker_name(), lease_s)
        except DatabaseError as error:
            if not is_forever:
                raise
            log.warning("no job can be taken: %s", error.message)
        if held is None:
            if not is_forever:
                return worked
            await asyncio.sleep(poll_s)
            continue
        failpoint("job-taken")
        await _work_on(held, _Tools(store, embedder, progress, fetch))
        worked += 1


def _worker_name() -> str:
    """New for each lease: a job that this worker lost and another one gave up is not taken for its own."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class _Tools:
    """What a worker works with."""

    store: PgStore
    embedder: Embedder
    progress: Callable[[str, IngestEvent], None] | None
    fetch: Fetch | None


async def _work_on(held: _Held, tools: _Tools) -> None:
    ingesting = asyncio.create_task(_ingest(held, tools))
    beating = asyncio.create_task(_beat(held))
    try:
        await asyncio.wait({ingesting, beating}, return_when=asyncio.FIRST_COMPLETED)
        if not ingesting.done():
            log.warning("job %s: the lease is lost or the job was cancelled", held.row.id)
            return
        beating.cancel()
        await asyncio.wait({beating})
        with contextlib.suppress(LeaseLost):
            await _close(held, ingesting)
    except asyncio.CancelledError:
        await _stop(ingesting, beating)
        with contextlib.suppress(LeaseLost, OrchestratorError):
            await held.leave("queued")
        raise
    finally:
        await _stop(ingesting, beating)


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _beat(held: _Held) -> None:
    """Renews the lease for as long as it can."""
    while True:
        await asyncio.sleep(held.lease_s / 6)
        try:
            await held.renew()
        except DatabaseError as error:
            log.warning("job %s: the lease could not be renewed: %s", held.row.id, error.message)
        except LeaseLost:
            return


async def _ingest(held: _Held, tools: _Tools) -> IngestReport:
    def see(event: IngestEvent) -> None:
        held.see(event)
        if tools.progress:
            tools.progress(held.row.id, event)

    payload = held.row.payload
    if held.row.stalls > MAX_STALLS:
        raise InputError(
            f"it was taken {MAX_STALLS} times and never got further; `orchestrator jobs retry` tries again"
        )
    return await ingest(
        payload["paths"],
        store=tools.store,
        embedder=tools.embedder,
        collection=payload["collection"],
        valid_from=datetime.fromisoformat(payload["valid_from"]) if payload["valid_from"] else None,
        id_from=payload["id_from"],
        language=payload["language"],
        max_bytes=payload["max_bytes"],
        progress=see,
        fetch=tools.fetch,
        began=held.row.asked_at,
        gate=held.gate,
    )


async def _close(held: _Held, ingesting: asyncio.Task[IngestReport]) -> None:
    """Says how the work ended. Without a database nobody can be told: the lease runs out by itself."""
    try:
        error = ingesting.exception()
        if error is None:
            await held.leave("done")
        elif isinstance(error, LeaseLost):
            return
        elif isinstance(error, InputError) or (held.row.stalls >= MAX_STALLS and not held.is_further):
            await held.leave("dead", _said(error))
        else:
            log.warning("job %s failed: %s", held.row.id, _said(error))
            await held.leave("failed", _said(error), min(5.0 * 2**held.row.stalls, MAX_WAIT_S))
    except DatabaseError as error:
        log.warning("job %s: its end could not be recorded: %s", held.row.id, error.message)


def _said(error: BaseException) -> str:
    return error.message if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
