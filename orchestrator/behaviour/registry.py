"""Keeps trained adapters: checked files under their digest, a row with everything they depend on, one active one per name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.behaviour.preflight import Checked, check_adapter
from orchestrator.behaviour.probe import prove_active
from orchestrator.database import Database, Json, Row, statement
from orchestrator.errors import AdapterUnavailableError, InputError, StorageFullError, UnknownNameError
from orchestrator.launch import weights
from orchestrator.prompts import Catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.types import Adapter, AdapterState

__all__ = ["Registry", "check_digests", "ensure_shipped", "prove_active"]

SHIPPED = "cited-answer"


class Registry:
    """The adapters of one tenant. Their files are copied to ``adapters_dir/name--digest12``, read-only, and never changed."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database.of(settings.tenant)
        self._settings = settings.resolved()
        self._tenant = settings.tenant

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
        async with self._database.transaction() as connection:
            await connection.execute(statement("insert-adapter"), values)
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

    async def promote(self, name: str) -> Adapter:
        """Puts the adapter into service in one step; the one it replaces becomes a candidate again, ready for a rollback.

        A plain name means its newest adapter. Raises UnknownNameError.
        """
        known = [adapter for adapter in await self.list() if name in (adapter.served_name, adapter.name)]
        adapter = known[0] if known else await self.find(name)
        await self._activate(adapter.name, adapter.digest)
        return await self.find(adapter.served_name)

    async def rollback(self, name: str) -> Adapter:
        """Puts the adapter back into service that was active before. Raises InputError when there was none."""
        adapter = await self.find(name)
        row = await self._database.fetch_one(statement("previous-adapter"), tenant=self._tenant, name=adapter.name)
        if row is None:
            raise InputError(
                f"no adapter {adapter.name!r} was in service before {adapter.served_name}", param="adapter"
            )
        await self._activate(adapter.name, row.digest)
        return await self.find(f"{adapter.name}--{row.digest[:12]}")

    async def retire(self, name: str) -> Adapter:
        """Takes the adapter out of service; its row and files stay for the audit. Raises UnknownNameError."""
        adapter = await self.find(name)
        async with self._database.transaction() as connection:
            values = {"tenant": self._tenant, "name": adapter.name, "digest": adapter.digest, "state": "retired"}
            await connection.execute(statement("set-adapter-state"), values)
        return await self.find(adapter.served_name)

    async def _activate(self, name: str, digest: str) -> None:
        values: dict[str, Any] = {"tenant": self._tenant, "name": name, "digest": digest}
        async with self._database.transaction() as connection:
            await connection.execute(statement("lock-adapters"), {"tenant": self._tenant, "name": name})
            await connection.execute(statement("demote-adapter"), values)
            await connection.execute(statement("set-adapter-state"), values | {"state": "active"})

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
    return await registry.promote(shipped.served_name)


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
        manifest=row.manifest,
    )
