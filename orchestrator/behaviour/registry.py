"""Keeps trained adapters: checked files under their digest, a row with everything they depend on, one active one per name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.behaviour.audit import Actor, config_digest, find_actor, note
from orchestrator.behaviour.canary import CanaryState, list_canaries, read_canary_on
from orchestrator.behaviour.gate import Rules, load_rules
from orchestrator.behaviour.preflight import Checked, check_adapter, check_kept
from orchestrator.behaviour.probe import prove_active
from orchestrator.database import Connection, Database, Json, Row, statement
from orchestrator.errors import AdapterUnavailableError, InputError, StorageFullError, UnknownNameError
from orchestrator.launch import weights
from orchestrator.prompts import Catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.types import Adapter, AdapterState

__all__ = ["InService", "Registry", "check_digests", "check_kept", "ensure_shipped", "prove_active"]

SHIPPED = "cited-answer"
PROPOSAL_LIFE = timedelta(days=7)
RELEASE = Actor("release", proven=True)  # what ships was measured and reviewed before it was shipped
WATCH = Actor("canary watch", proven=True)


@dataclass(frozen=True, slots=True)
class InService:
    """Who answers for a name now: the adapter, and the canary that takes ``share`` of its conversations."""

    adapter: Adapter
    canary: Adapter | None = None
    canary_id: int = 0
    share: float = 0.0


class Registry:
    """The adapters of one tenant. Their files are copied to ``adapters_dir/name--digest12``, read-only, and never changed.

    Every change of a state is written to the audit in the same transaction, with who did it.
    """

    def __init__(self, database: Database, settings: Settings, actor: Actor | None = None) -> None:
        self._database = database.of(settings.tenant)
        self._settings = settings.resolved()
        self._tenant = settings.tenant
        self._actor = actor

    @property
    def database(self) -> Database:
        """The database, bound to the tenant."""
        return self._database

    async def register(self, path: Path, *, shipped: bool = False) -> Adapter:
        """Checks the adapter in ``path`` and keeps a copy as candidate; one that is known already stays as it is.

        Raises InputError that says what is wrong with it.
        """
        checked = check_adapter(path, links=shipped)
        if (
            not shipped
        ):  # the shipped adapter's base is proven by its probe: another library version may write other bytes
            self._check_base(checked)
        target = self._keep(checked)
        manifest = checked.manifest
        values = {
            "tenant": self._tenant,
            "name": manifest["name"],
            "digest": checked.digest,
            "path": str(target),
            "base": manifest["base"]["name"],
            "rank": checked.rank,
            "prompt": manifest["prompt"]["name"],
            "prompt_digest": manifest["prompt"]["digest"],
            "contract": manifest["contract"]["name"],
            "contract_digest": manifest["contract"]["digest"],
            "manifest": Json(dict(manifest)),
        }
        actor = RELEASE if shipped else await self._who()
        data = {"data": manifest.get("data", {}), "path": str(path)}
        async with self._database.transaction() as connection:
            await connection.execute(statement("insert-adapter"), values)
            await self._note(connection, actor, "register", manifest["name"], checked.digest, data)
        return await self.find(f"{manifest['name']}--{checked.digest[:12]}")

    async def list(self) -> list[Adapter]:
        """Every adapter, by name, newest first."""
        return [_adapter(row) for row in await self._database.fetch(statement("list-adapters"), tenant=self._tenant)]

    async def get(self, name: str) -> Adapter:
        """The adapter that answers for ``name``: a served name means exactly that one, a plain name the active one.

        Raises UnknownNameError, and AdapterUnavailableError when no adapter of the name is active.
        """
        adapter = await self.find(name)
        if adapter.name == name and adapter.state != "active":
            raise AdapterUnavailableError(
                f"no adapter {name!r} is in service; put one into service: orchestrator adapters promote {adapter.served_name}"
            )
        return adapter

    async def find(self, name: str) -> Adapter:
        """The adapter of a served name, or the active, else the newest one of a plain name. Raises UnknownNameError."""
        known = await self.list()
        found = [adapter for adapter in known if name in (adapter.served_name, adapter.name)]
        if not found:
            names = (
                ", ".join(adapter.served_name for adapter in known[:10]) or "none yet; `orchestrator train` makes one"
            )
            raise UnknownNameError(f"there is no adapter {name!r}; there are: {names}", param="adapter")
        return next((adapter for adapter in found if adapter.state == "active"), found[0])

    async def in_service(self, name: str) -> InService:
        """Who answers for a plain name (with its canary) or exactly for a served name; manifests are left out.

        Raises UnknownNameError, and AdapterUnavailableError when no adapter of the name is active.
        """
        plain, _, short = name.rpartition("--")
        values = {"tenant": self._tenant, "name": name, "plain": plain, "short": short}
        rows = await self._database.fetch(statement("adapters-in-service"), **values)
        exact = next((row for row in rows if plain and row.name == plain and row.digest.startswith(short)), None)
        if exact is not None:
            return InService(_adapter(exact))
        active = next((row for row in rows if row.state == "active"), None)
        if active is None:
            return InService(await self.get(name))  # which says what is missing
        canary = next((row for row in rows if row.canary_id is not None), None)
        if canary is None:
            return InService(_adapter(active))
        return InService(_adapter(active), _adapter(canary), canary.canary_id, canary.share)

    async def promote(self, name: str, *, override: str | None = None) -> Adapter:
        """Puts the adapter into service in one step; the one it replaces becomes a candidate again, ready for a rollback.

        A plain name means its canary, else its newest adapter. ``override``: the reason for doing so without a passed gate
        or a ripe canary; it is kept in the audit. Raises UnknownNameError, and InputError that says what is missing.
        """
        adapter = await self.newest(name)
        actor = await self._who()
        canary = await self.running_canary(adapter.name)
        reasons = [*await self._missing(adapter)]
        if canary is not None and not canary.ripe:
            reasons.append(
                f"its canary has seen {canary.arms['canary'].units} of {canary.ripe_at} conversations; wait for more"
            )
        self._refuse_unless(reasons, override, adapter)
        async with self._database.transaction() as connection:
            if not await self._is_approved(connection, actor, adapter, "promote", 1.0):
                return adapter
            await self._activate(connection, adapter.name, adapter.digest)
            details = {"override": override, "unmet": [*reasons] if override else []}
            await self._note(connection, actor, "promote", adapter.name, adapter.digest, details)
        return await self.find(adapter.served_name)

    async def promote_shipped(self, adapter: Adapter) -> Adapter:
        """Puts an adapter of the release into service: it was measured before it was shipped."""
        async with self._database.transaction() as connection:
            await self._activate(connection, adapter.name, adapter.digest)
            await self._note(connection, RELEASE, "promote", adapter.name, adapter.digest, {"shipped": True})
        return await self.find(adapter.served_name)

    async def start_canary(self, name: str, share: float, *, override: str | None = None) -> Adapter:
        """Gives the adapter ``share`` (0..1) of the conversations of its name, until it is promoted, stopped or found worse.

        Raises UnknownNameError, and InputError that says what is missing.
        """
        if not 0 < share < 1:
            raise InputError(f"a canary's share lies between 0 and 100 %, not {share:.0%}", param="canary")
        adapter = await self.newest(name)
        active = next((a for a in await self.list() if a.name == adapter.name and a.state == "active"), None)
        if active is None or active.digest == adapter.digest:
            raise InputError(
                f"{adapter.served_name} has no other active adapter to be compared with; promote it without --canary",
                param="canary",
            )
        actor = await self._who()
        reasons = await self._missing(adapter)
        self._refuse_unless(reasons, override, adapter)
        async with self._database.transaction() as connection:
            if not await self._is_approved(connection, actor, adapter, "canary", share):
                return adapter
            await self._lock(connection, adapter.name)
            await self._end_canary(connection, adapter.name, "stopped", "another canary began")
            values = {"tenant": self._tenant, "name": adapter.name, "digest": adapter.digest}
            await connection.execute(statement("set-adapter-state"), values | {"state": "canary"})
            rules = Json(asdict(self.rules().canary))
            row = values | {"against": active.digest, "share": share, "rules": rules}
            await connection.execute(statement("insert-canary"), row)
            details = {
                "share": share,
                "against": active.digest,
                "override": override,
                "unmet": reasons if override else [],
            }
            await self._note(connection, actor, "canary", adapter.name, adapter.digest, details)
        return await self.find(adapter.served_name)

    async def rollback(self, name: str) -> Adapter:
        """Ends the canary of the name; without one, puts the adapter back into service that was active before.

        Gives the adapter that answers now. Raises InputError when there is nothing to go back to.
        """
        adapter, actor = await self.find(name), await self._who()
        canary = await self.running_canary(adapter.name)
        if canary is not None:
            await self.end_canary(canary, "stopped", "rolled back by hand", actor)
            return await self.find(adapter.name)
        async with self._database.transaction() as connection:
            await self._lock(connection, adapter.name)
            values = {"tenant": self._tenant, "name": adapter.name}
            row: Any = await (await connection.execute(statement("previous-adapter"), values)).fetchone()
            if row is None:
                raise InputError(
                    f"no adapter {adapter.name!r} was in service before {adapter.served_name}", param="adapter"
                )
            await self._activate(connection, adapter.name, row.digest)
            await self._note(connection, actor, "rollback", adapter.name, row.digest, {"from": adapter.digest})
        return await self.find(f"{adapter.name}--{row.digest[:12]}")

    async def retire(self, name: str) -> Adapter:
        """Takes the adapter out of service; its row and files stay for the audit. Raises UnknownNameError."""
        adapter, actor = await self.find(name), await self._who()
        async with self._database.transaction() as connection:
            await self._lock(connection, adapter.name)
            if adapter.state == "canary":
                await self._end_canary(connection, adapter.name, "stopped", "retired")
            values = {"tenant": self._tenant, "name": adapter.name, "digest": adapter.digest, "state": "retired"}
            await connection.execute(statement("set-adapter-state"), values)
            await self._note(connection, actor, "retire", adapter.name, adapter.digest, {"was": adapter.state})
        return await self.find(adapter.served_name)

    async def running_canary(self, name: str) -> CanaryState | None:
        """The canary of a plain name that runs now, with what it showed."""
        found = await list_canaries(self._database, self._tenant, name)
        return next((each for each in found if each.ended is None), None)

    async def end_canary(self, canary: CanaryState, ended: str, reason: str, actor: Actor = WATCH) -> None:
        """Makes the canary a candidate again; one that ended meanwhile is left as it is."""
        async with self._database.transaction() as connection:
            await self._lock(connection, canary.name)
            state = await read_canary_on(connection, self._tenant, canary.id)
            if state.ended is not None:
                return
            await self._end_canary(connection, canary.name, ended, reason)
            counts = {"arms": {arm: asdict(each) for arm, each in state.arms.items()}, "canary": canary.id}
            details = {"reason": reason, "share": state.share, **counts}
            await self._note(connection, actor, ended, canary.name, canary.digest, details)

    async def note_gate(self, adapter: Adapter, passed: bool, details: Mapping[str, Any]) -> None:
        """Writes down what the gate said of the adapter: a promotion asks for it."""
        actor = await self._who()
        async with self._database.transaction() as connection:
            row = {"passed": passed, "rules": self.rules().digest, **details}
            await self._note(connection, actor, "gate", adapter.name, adapter.digest, row)

    def rules(self) -> Rules:
        """The gate's rules as they stand now. Raises SettingsError."""
        return load_rules()

    async def newest(self, name: str) -> Adapter:
        """Of a plain name the running canary, else the newest; of a served name exactly that one. Raises UnknownNameError."""
        known = [adapter for adapter in await self.list() if name in (adapter.served_name, adapter.name)]
        canary = next((adapter for adapter in known if adapter.state == "canary"), None)
        return canary or (known[0] if known else await self.find(name))

    async def _missing(self, adapter: Adapter) -> Sequence[str]:
        """Why the adapter may not go into service without an override."""
        values = {"tenant": self._tenant, "name": adapter.name, "digest": adapter.digest}
        gate = await self._database.fetch_one(statement("last-behaviour-audit"), **values, action="gate")
        if gate is None:
            return [f"the gate has not judged it; run: orchestrator adapters gate {adapter.served_name}"]
        reasons = []
        if not gate.details["passed"]:
            reasons.append(f"the gate refused it: {'; '.join(gate.details.get('reasons', ()))}")
        elif gate.details["rules"] != self.rules().digest:
            reasons.append(f"the gate's rules changed since; run: orchestrator adapters gate {adapter.served_name}")
        last = await self._database.fetch_one(statement("last-canary-of"), **values)
        if last is not None and last.ended == "rolled_back" and last.ended_at > gate.at:
            reasons.append("its canary was rolled back; train it anew, or judge it by the gate on what went wrong")
        return reasons

    def _refuse_unless(self, reasons: Sequence[str], override: str | None, adapter: Adapter) -> None:
        if override is not None and not override.strip():
            raise InputError("an override needs a reason: it is kept in the audit", param="override")
        if reasons and override is None:
            raise InputError(
                f"{adapter.served_name} may not go into service: {'; '.join(reasons)}. "
                "To do it all the same, and have it written down: --override REASON",
                param="adapter",
            )

    async def _is_approved(
        self, connection: Connection, actor: Actor, adapter: Adapter, action: str, share: float
    ) -> bool:
        """True when nobody else is needed, or has asked for the same before; else the proposal is written down."""
        if not self._settings.two_identities:
            return True
        if not actor.proven:
            raise InputError(
                "two identities are needed, and a login proves none: set ORCHESTRATOR_ACTOR_KEY to a key of your own "
                "(`orchestrator keys create`)",
                param="actor_key",
            )
        values = {"tenant": self._tenant, "name": adapter.name, "digest": adapter.digest, "action": "propose"}
        row: Any = await (await connection.execute(statement("last-behaviour-audit"), values)).fetchone()
        wanted = {"action": action, "share": share}
        since = datetime.now(UTC) - PROPOSAL_LIFE
        if row is None or {key: row.details[key] for key in wanted} != wanted or row.at < since or row.details["used"]:
            details = wanted | {"used": False}
            await self._note(connection, actor, "propose", adapter.name, adapter.digest, details)
            return False
        if row.actor == actor.name:
            raise InputError(
                f"you proposed this yourself on {row.at:%Y-%m-%d %H:%M}; somebody else has to run the same command",
                param="actor_key",
            )
        await self._note(connection, actor, "propose", adapter.name, adapter.digest, wanted | {"used": True})
        return True

    async def _lock(self, connection: Connection, name: str) -> None:
        await connection.execute(statement("lock-adapters"), {"tenant": self._tenant, "name": name})

    async def _activate(self, connection: Connection, name: str, digest: str) -> None:
        values: dict[str, Any] = {"tenant": self._tenant, "name": name, "digest": digest}
        await self._lock(connection, name)
        row: Any = await (await connection.execute(statement("running-canary"), values)).fetchone()
        if row is not None:
            own = row.digest == digest
            await self._end_canary(
                connection, name, "promoted" if own else "stopped", None if own else "another was promoted"
            )
        await connection.execute(statement("demote-adapter"), values)
        await connection.execute(statement("activate-adapter"), values)

    async def _end_canary(self, connection: Connection, name: str, ended: str, reason: str | None) -> None:
        values = {"tenant": self._tenant, "name": name, "ended": ended, "reason": reason}
        row: Any = await (await connection.execute(statement("end-canary"), values)).fetchone()
        if row is not None:
            candidate = {"tenant": self._tenant, "name": name, "digest": row.digest, "state": "candidate"}
            await connection.execute(statement("set-adapter-state"), candidate)

    async def _who(self) -> Actor:
        if self._actor is None:
            self._actor = await find_actor(self._database, self._settings)
        return self._actor

    async def _note(
        self, connection: Connection, actor: Actor, action: str, name: str, digest: str, details: Mapping[str, Any]
    ) -> None:
        row = {"tenant": self._tenant, "actor": actor.name, "action": action, "name": name, "digest": digest}
        await note(connection, **row, config=config_digest(self._settings), details=dict(details))

    def _check_base(self, checked: Checked) -> None:
        """Compares the base with the embedded model's recorded weights, when that model is what is served."""
        if self._settings.engine_url:
            return
        served = recorded_base(self._settings.models)
        trained = checked.manifest["base"]["sha256"]
        if served and trained != served:
            raise InputError(
                f"the adapter was trained on the base {checked.manifest['base']['name']} ({trained[:12]}), "
                f"the embedded base is another ({served[:12]}); train it again on this base"
            )

    def _keep(self, checked: Checked) -> Path:
        """Writes the checked bytes, read-only, to a folder that appears complete or not at all."""
        target = self._settings.adapters / f"{checked.manifest['name']}--{checked.digest[:12]}"
        if _is_kept(target, checked):
            return target
        part: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
            for name, content in checked.files.items():
                file = part / name
                file.write_bytes(content)
                file.chmod(0o444)
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            part.chmod(0o755)
            if target.exists():  # damaged: what lies there is not what its name says
                target.rename(part / "damaged")
                part.replace(target)
                shutil.rmtree(target / "damaged")
            else:
                part.replace(target)
        except OSError as error:
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
            if not _is_kept(target, checked):  # else another process was first, with the same bytes
                raise StorageFullError(
                    f"the adapter cannot be kept in {target.parent}: {error}; free some space there"
                ) from error
        return target


async def ensure_shipped(registry: Registry, settings: Settings) -> Adapter | None:
    """Registers the adapter that ships with this release, and promotes it when no adapter of its name can serve.

    One that the user promoted stays in service as long as it was trained on this release's prompt and contract.
    """
    source = folder("adapters") / SHIPPED
    try:
        manifest = json.loads((source / "manifest.json").read_text("utf-8"))
    except OSError:
        return None
    known = [adapter for adapter in await registry.list() if adapter.name == SHIPPED]
    shipped = next((adapter for adapter in known if adapter.digest == manifest["digest"]), None)
    if shipped is None or not (shipped.path / "adapter_config.json").is_file():
        shipped = await registry.register(source, shipped=True)
    digests = (manifest["prompt"]["digest"], manifest["contract"]["digest"])
    active = next((adapter for adapter in known if adapter.state == "active"), None)
    if known and (active is None or (active.prompt_digest, active.contract_digest) == digests):
        return active or shipped  # retired by the user, or in service and fit for it
    return await registry.promote_shipped(shipped)


def check_digests(adapter: Adapter, catalogue: Catalogue) -> None:
    """Raises AdapterUnavailableError when prompt or contract changed since the adapter was trained on them."""
    current: Mapping[str, tuple[str, str]] = {
        "prompt": (adapter.prompt_digest, catalogue.prompt(adapter.prompt).digest),
        "contract": (adapter.contract_digest, catalogue.contract(adapter.contract).digest),
    }
    for kind, (trained, now) in current.items():
        if trained != now:
            raise AdapterUnavailableError(
                f"adapter {adapter.served_name} was trained on {kind} {getattr(adapter, kind)!r} with digest {trained[:12]}, "
                f"which is now {now[:12]}; restore the {kind} or train the adapter again"
            )


def recorded_base(models: Path) -> str | None:
    """sha256 of the embedded base model's weights as recorded when they were converted; None before that."""
    try:
        record = json.loads((models / weights.SMOLLM2.folder / weights.MANIFEST).read_text("utf-8"))
        return str(record["files"]["model.safetensors"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_kept(target: Path, checked: Checked) -> bool:
    try:
        return all((target / name).read_bytes() == content for name, content in checked.files.items())
    except OSError:
        return False


def _adapter(row: Row) -> Adapter:
    state: AdapterState = row.state
    return Adapter(
        name=row.name,
        digest=row.digest,
        path=Path(row.path),
        base=row.base,
        rank=row.rank,
        prompt=row.prompt,
        prompt_digest=row.prompt_digest,
        contract=row.contract,
        contract_digest=row.contract_digest,
        state=state,
        manifest=getattr(row, "manifest", {}),
    )
