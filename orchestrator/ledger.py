"""The append-only record of every answer: an intent row before its first byte, an outcome row before its end, hash-chained."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.contract import Contract
from orchestrator.database import Connection, Database, statement
from orchestrator.errors import DatabaseError, LedgerError, OrchestratorError, UnknownNameError
from orchestrator.prompts import Prompt
from orchestrator.types import Answer, Generation, Outcome, Passage, Plan, Query, Usage

if TYPE_CHECKING:
    from orchestrator.types import Adapter

GENESIS = "0" * 64
_PAGE = 2000
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One row before it is chained. ``payload`` is canonical JSON: the exact bytes that are hashed."""

    tenant: str
    answer_id: str
    kind: str
    at: datetime
    payload: str
    bodies: tuple[tuple[str, str, str, str], ...] = ()  # (table, digest, name, body) of prompt and contract


def chain_hash(previous: str, tenant: str, seq: int, answer_id: str, kind: str, at: datetime, payload: str) -> str:
    """sha256 over the previous hash and every column of the row, hex."""
    row = [previous, tenant, seq, answer_id, kind, at.astimezone(UTC).isoformat(timespec="microseconds"), payload]
    return hashlib.sha256(json.dumps(row, ensure_ascii=False).encode()).hexdigest()


def intent_record(
    query: Query,
    plan: Plan,
    passages: Sequence[Passage] = (),
    prompt: Prompt | None = None,
    contract: Contract | None = None,
    generation: Generation | None = None,
    served_adapter: Adapter | None = None,
    degraded: str | None = None,
) -> Record:
    """What is about to be asked, of whom, with which passages: everything that is needed to rebuild the prompt."""
    payload: dict[str, Any] = {
        "question": query.text,
        "history": [asdict(turn) for turn in query.history],
        "plan": plan_fields(plan),
        "passages": [passage_fields(number, passage) for number, passage in enumerate(passages, 1)],
        "prompt": prompt and {"name": prompt.name, "digest": prompt.digest},
        "contract": contract and {"name": contract.name, "digest": contract.digest},
        "adapter": served_adapter and {"name": served_adapter.served_name, "digest": served_adapter.digest},
        "degraded": degraded,
    }
    if generation:
        messages = [asdict(message) for message in generation.messages]
        payload["generation"] = {
            "model": generation.model,
            "max_tokens": generation.max_tokens,
            "temperature": generation.temperature,
            "seed": generation.seed,
            "messages_sha256": hashlib.sha256(canonical(messages).encode()).hexdigest(),
            "schema_sha256": hashlib.sha256(canonical(generation.grammar or generation.schema).encode()).hexdigest(),
        }
    bodies = tuple(
        (table, thing.digest, thing.name, thing.body)
        for table, thing in (("prompts", prompt), ("contracts", contract))
        if thing is not None
    )
    return Record(query.tenant, query.id, "intent", datetime.now(UTC), canonical(payload), bodies)


def outcome_record(
    query: Query,
    outcome: Outcome,
    output: str,
    usage: Usage,
    timings_ms: Mapping[str, float],
    answer: Answer | None = None,
    error: OrchestratorError | None = None,
) -> Record:
    """How it ended: what the model wrote, what was made of it, tokens and timings."""
    payload: dict[str, Any] = {
        "outcome": outcome,
        "output": output,
        "usage": asdict(usage),
        "timings_ms": dict(timings_ms),
        "error": error and {"code": error.code, "message": error.message},
    }
    if answer:
        payload["answer"] = {
            "text": answer.text,
            "data": answer.data,
            "flags": answer.flags,
            "finish_reason": answer.finish_reason,
            "citations": [asdict(citation) for citation in answer.citations],
        }
    return Record(query.tenant, query.id, "outcome", datetime.now(UTC), canonical(payload))


def canonical(value: Any) -> str:
    """JSON with sorted keys; NUL, which PostgreSQL cannot store, and lone surrogates are written as escapes."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()


def plan_fields(plan: Plan) -> dict[str, Any]:
    """The plan as plain values."""
    values = asdict(plan)
    for moment in ("as_of", "known_at"):
        values[moment] = values[moment] and values[moment].isoformat()
    values["scores"] = {name: round(score, 4) for name, score in plan.scores.items()}
    return values


def passage_fields(number: int, passage: Passage) -> dict[str, Any]:
    """Where a passage stands and how it scored; its text is in the registry, here only its hash."""
    return {
        "number": number,
        "chunk_id": passage.chunk_id,
        "document_id": passage.document_id,
        "external_id": passage.external_id,
        "version": passage.version,
        "span": list(passage.span),
        "score": passage.score,
        "scores": dict(passage.scores),
        "text_sha256": hashlib.sha256(passage.text.encode()).hexdigest(),
    }


class Ledger:
    """One writer with group commit: concurrent answers share a transaction, each waits until its row is durable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: asyncio.Queue[tuple[Record, asyncio.Future[None]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._known_bodies: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, database: Database) -> AsyncIterator[Ledger]:
        """A ledger whose writer runs; on leaving, everything that was put is written."""
        ledger = cls(database)
        ledger._task = asyncio.create_task(ledger._write_forever(), name="ledger")
        try:
            yield ledger
        finally:
            await ledger.flush()
            ledger._task.cancel()
            with suppress(asyncio.CancelledError):
                await ledger._task

    def put(self, record: Record) -> asyncio.Future[None]:
        """Hands over a record without waiting; for the end of an answer whose caller has gone."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_log_failure)
        self._queue.put_nowait((record, future))
        return future

    async def write(self, record: Record) -> None:
        """Returns when the record is committed. Raises LedgerError when it cannot be: then there is no answer."""
        await asyncio.shield(self.put(record))

    async def flush(self) -> None:
        """Waits until everything that was put is written or has failed."""
        await self._queue.join()

    async def _write_forever(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and len(batch) < 256:
                batch.append(self._queue.get_nowait())
            failure = await self._try([record for record, _ in batch])
            for record, future in batch:
                # A record that PostgreSQL refuses must not take down the answers that share its transaction.
                fault = await self._try([record]) if failure and _is_own_fault(failure) else failure
                if not future.done():
                    future.set_exception(fault) if fault else future.set_result(None)
                self._queue.task_done()

    async def _try(self, records: Sequence[Record]) -> LedgerError | None:
        try:
            await self._commit(records)
        except Exception as error:  # whatever it is, the writer lives on and every waiting answer is told
            said = error.message if isinstance(error, OrchestratorError) else repr(error)
            failure = LedgerError(f"the answer's record could not be written, so no answer is given: {said}")
            failure.__cause__ = error
            return failure
        return None

    async def _commit(self, records: Sequence[Record]) -> None:
        async with self._database.transaction() as connection:
            await self._keep_bodies(connection, records)  # before the locks, which are taken in one order: no deadlock
            for tenant in sorted({record.tenant for record in records}):
                await connection.execute(statement("use-tenant"), {"tenant": tenant})
                await connection.execute(statement("ledger-lock"), {"tenant": tenant})
                head = await (await connection.execute(statement("ledger-head"), {"tenant": tenant})).fetchone()
                seq, previous = (head.seq, head.hash) if head else (0, GENESIS)
                for record in records:
                    if record.tenant == tenant:
                        seq += 1
                        previous = await _insert(connection, previous, seq, record)
                values = {"tenant": tenant, "seq": seq, "hash": previous}
                await connection.execute(statement("ledger-move-head"), values)
        self._known_bodies.update(digest for record in records for _, digest, _, _ in record.bodies)

    async def _keep_bodies(self, connection: Connection, records: Sequence[Record]) -> None:
        bodies = {body for record in records for body in record.bodies if body[1] not in self._known_bodies}
        for table, digest, name, text in sorted(bodies):
            await connection.execute(statement(f"keep-{table}"), {"digest": digest, "name": name, "body": text})


async def _insert(connection: Connection, previous: str, seq: int, record: Record) -> str:
    row: dict[str, Any] = {
        "tenant": record.tenant,
        "seq": seq,
        "answer_id": record.answer_id,
        "kind": record.kind,
        "at": record.at,
        "payload": record.payload,
    }
    digest = chain_hash(previous, **row)
    await connection.execute(statement("ledger-insert"), {**row, "prev_hash": previous, "hash": digest})
    return digest


async def show_answer(database: Database, answer_id: str, tenant: str = "default") -> dict[str, Any]:
    """How an answer came about: its intent and its outcome. Raises UnknownNameError."""
    rows = await database.of(tenant).fetch(statement("ledger-show"), answer_id=answer_id, tenant=tenant)
    if not rows:
        raise UnknownNameError(f"no answer {answer_id!r} is recorded; `orchestrator audit list` shows the latest")
    parts = {
        row.kind: {"seq": row.seq, "at": row.at.isoformat(), "hash": row.hash, **json.loads(row.payload)}
        for row in rows
    }
    return {"id": answer_id, "intent": parts.get("intent"), "outcome": parts.get("outcome", {"outcome": "partial"})}


async def list_answers(database: Database, tenant: str, limit: int) -> list[dict[str, Any]]:
    """The latest answers, newest first: id, time, question, route, outcome."""
    listed = []
    for row in await database.of(tenant).fetch(statement("ledger-list"), tenant=tenant, limit=limit):
        intent = json.loads(row.intent)
        listed.append(
            {
                "id": row.answer_id,
                "at": row.at.isoformat(),
                "question": intent["question"],
                "route": intent["plan"]["route"],
                "outcome": json.loads(row.outcome)["outcome"] if row.outcome else "partial",
            }
        )
    return listed


async def verify_ledger(database: Database, tenant: str) -> list[str]:
    """Every fault of the tenant's chain, in order: edited, removed, inserted or reordered rows, and a cut tail."""
    faults: list[str] = []
    previous, seq = GENESIS, 0
    async with database.of(tenant).transaction() as connection:
        await connection.execute(statement("ledger-lock"), {"tenant": tenant})  # no row is added while we read
        while True:
            page = {"tenant": tenant, "after": seq, "limit": _PAGE}
            rows = await (await connection.execute(statement("ledger-scan"), page)).fetchall()
            for row in rows:
                faults.extend(_row_faults(row, tenant, seq + 1, previous))
                previous, seq = row.hash, row.seq
            if not rows:
                break
        head = await (await connection.execute(statement("ledger-head"), {"tenant": tenant})).fetchone()
    if ((head.seq, head.hash) if head else (0, GENESIS)) != (seq, previous):
        faults.append(f"the chain ends at row {seq}, the recorded head is row {head.seq if head else 0}")
    return faults


def _row_faults(row: Any, tenant: str, expected: int, previous: str) -> list[str]:
    name = f"row {row.seq} ({row.answer_id}, {row.kind})"
    faults = [f"rows {expected} to {row.seq - 1} are missing"] if row.seq != expected else []
    if row.prev_hash != previous:
        faults.append(f"{name} does not follow the row before it")
    if chain_hash(row.prev_hash, tenant, row.seq, row.answer_id, row.kind, row.at, row.payload) != row.hash:
        faults.append(f"{name} was edited")
    return faults


def _is_own_fault(failure: LedgerError) -> bool:
    """True when PostgreSQL serves but refuses a value: an identifier used twice, a tenant that does not exist."""
    cause = failure.__cause__ and failure.__cause__.__cause__
    return (getattr(cause, "sqlstate", None) or "")[:2] in ("22", "23", "P0")


def _log_failure(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and isinstance(future.exception(), DatabaseError | LedgerError):
        logger.error("a ledger record was not written: %s", type(future.exception()).__name__)
