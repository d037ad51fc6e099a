"""A canary in service: which arm a conversation is on, what both arms showed, and the end of a canary that is worse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from orchestrator.behaviour.gate import WATCHES
from orchestrator.behaviour.sequential import SlowAnswers, evidence
from orchestrator.database import Connection, Database, statement
from orchestrator.errors import OrchestratorError, UnknownNameError

Arm = Literal["canary", "active"]
logger = logging.getLogger(__name__)

MAX_WAITING = 10_000  # answers whose signs are not written yet; more are dropped, and said


@dataclass(frozen=True, slots=True)
class Trial:
    """The place of one answer in a running canary. ``unit``: its conversation, as a seeded hash.

    ``same_engine``: both arms run on one, so that their times may be compared.
    """

    canary_id: int
    arm: Arm
    unit: str
    same_engine: bool = True


@dataclass(frozen=True, slots=True)
class Signs:
    """What one answer showed of its adapter. ``model_ms``: from the request to the model's last token; None: not known."""

    violation: bool = False
    refused: bool = False
    uncited: bool = False
    model_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """One arm so far: conversations, answers, and conversations with at least one of each fault."""

    units: int = 0
    answers: int = 0
    violations: int = 0
    refusals: int = 0
    uncited: int = 0
    slow: int = 0
    mean_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """One comparison. ``evidence`` is an e-value: at ``limit`` the canary is rolled back. ``p``: always-valid p-value."""

    name: str
    canary: int
    active: int
    allowed_ratio: float
    evidence: float
    limit: float

    @property
    def p(self) -> float:
        """At most alpha times in all, however often one looks, is it below alpha for a canary that is as good."""
        return min(1.0, 1.0 / self.evidence)


@dataclass(frozen=True, slots=True)
class CanaryState:
    """A canary with what it showed. ``ripe``: it has run long enough to become active."""

    id: int
    name: str
    digest: str
    against: str
    share: float
    started_at: datetime
    ended_at: datetime | None
    ended: str | None
    reason: str | None
    arms: Mapping[str, ArmCounts] = field(default_factory=dict)
    watched: tuple[Watched, ...] = ()
    ripe: bool = False
    ripe_at: int = 0

    @property
    def fault(self) -> Watched | None:
        """The comparison by which it must be rolled back."""
        return next((each for each in self.watched if each.evidence >= each.limit), None)


async def read_canary(database: Database, tenant: str, canary_id: int) -> CanaryState:
    """One canary. Raises UnknownNameError."""
    async with database.of(tenant).transaction() as connection:
        return await read_canary_on(connection, tenant, canary_id)


async def read_canary_on(connection: Connection, tenant: str, canary_id: int) -> CanaryState:
    """The same, seen by a running transaction."""
    row: Any = await (
        await connection.execute(statement("find-canary"), {"tenant": tenant, "id": canary_id})
    ).fetchone()
    if row is None:
        raise UnknownNameError(f"there is no canary {canary_id}; `orchestrator adapters canary` lists them")
    counted = await (
        await connection.execute(statement("canary-arms"), {"tenant": tenant, "canary_id": canary_id})
    ).fetchall()
    return _state(row, counted)


async def list_canaries(database: Database, tenant: str, name: str | None = None) -> list[CanaryState]:
    """The latest canaries, newest first, of one plain name or of all."""
    rows = await database.of(tenant).fetch(statement("list-canaries"), tenant=tenant, name=name)
    return [await read_canary(database, tenant, row.id) for row in rows]


def _state(row: Any, counted: Sequence[Any]) -> CanaryState:
    arms = {
        each.arm: ArmCounts(
            each.units,
            each.answers,
            each.violations,
            each.refusals,
            each.uncited,
            each.slow,
            each.model_ms / each.timed if each.timed else None,
        )
        for each in counted
    }
    canary, active = arms.get("canary", ArmCounts()), arms.get("active", ArmCounts())
    limit = len(WATCHES) / row.rules["alpha"]  # each comparison gets its part of alpha
    watched = tuple(
        Watched(
            name,
            getattr(canary, name),
            getattr(active, name),
            ratio := float(row.rules["allowed_ratio"].get(name, 1.0)),
            evidence(getattr(canary, name), getattr(active, name), row.share, ratio),
            limit,
        )
        for name in WATCHES
    )
    ripe_at = int(row.rules["ripe"])
    return CanaryState(
        row.id, row.name, row.digest, row.against, row.share, row.started_at, row.ended_at, row.ended, row.reason,
        {"canary": canary, "active": active}, watched, canary.units >= ripe_at, ripe_at,
    )  # fmt: skip


class CanaryWatch:
    """Writes down what answers showed, and rolls a bad canary back: in the background, no answer waits for it."""

    def __init__(
        self, database: Database, tenant: str, roll_back: Callable[[CanaryState, str], Awaitable[None]]
    ) -> None:
        self._database = database.of(tenant)
        self._tenant = tenant
        self._roll_back = roll_back
        self._queue: asyncio.Queue[tuple[Trial, Signs]] = asyncio.Queue(MAX_WAITING)
        self._slow: dict[int, SlowAnswers] = {}
        self._task: asyncio.Task[None] | None = None

    def put(self, trial: Trial, signs: Signs) -> None:
        """Hands over without waiting."""
        if self._task is None:
            self._task = asyncio.create_task(self._write_forever(), name="canary")
        try:
            self._queue.put_nowait((trial, signs))
        except asyncio.QueueFull:
            logger.warning("an answer is not counted for canary %d: the database is too slow", trial.canary_id)

    async def flush(self) -> None:
        """Waits until everything handed over is written and judged."""
        if self._task is not None:
            await self._queue.join()

    async def aclose(self) -> None:
        """Writes what is left and ends."""
        if self._task is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self.flush()
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _write_forever(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and len(batch) < 256:
                batch.append(self._queue.get_nowait())
            try:
                await self._write(batch)
            except OrchestratorError as error:  # the counts of these answers are lost, the answers are not
                logger.error("answers were not counted for a canary: %s", error.message)
            except Exception:
                logger.exception("answers were not counted for a canary")
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _write(self, batch: Sequence[tuple[Trial, Signs]]) -> None:
        suspects: set[int] = set()
        async with self._database.transaction() as connection:
            for trial, signs in sorted(batch, key=lambda pair: (pair[0].canary_id, pair[0].unit)):  # no deadlock
                values = self._values(trial, signs)
                await connection.execute(statement("note-unit"), {"tenant": self._tenant, **values})
                if trial.arm == "canary" and any(values[name] for name in WATCHES):
                    suspects.add(trial.canary_id)
        for canary_id in suspects:  # the evidence rises with a fault of the canary's only
            state = await read_canary(self._database, self._tenant, canary_id)
            if state.ended is None and (fault := state.fault):
                await self._roll_back(state, _reason(state, fault))

    def _values(self, trial: Trial, signs: Signs) -> dict[str, Any]:
        slow = self._slow.setdefault(trial.canary_id, SlowAnswers())
        model_ms = signs.model_ms if trial.same_engine else None
        return {
            "canary_id": trial.canary_id,
            "unit": trial.unit,
            "arm": trial.arm,
            "violations": int(signs.violation),
            "refusals": int(signs.refused),
            "uncited": int(signs.uncited),
            "slow": int(model_ms is not None and slow.judge(model_ms)),
            "timed": int(model_ms is not None),
            "model_ms": model_ms or 0.0,
        }


def _reason(state: CanaryState, fault: Watched) -> str:
    canary, active = state.arms["canary"], state.arms["active"]
    return (
        f"{fault.name}: {fault.canary} of the canary's {canary.units} conversations against {fault.active} of {active.units} "
        f"of the active one's; {fault.allowed_ratio:g} times its rate is allowed (always-valid p {fault.p:.2g}, "
        f"limit {1 / fault.limit:.2g})"
    )
