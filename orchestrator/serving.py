"""Finds who answers for an adapter: starts the engine when it is first needed, loads the adapter, and lets a probe prove it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from orchestrator.behaviour.canary import CanaryState, CanaryWatch, Signs, Trial
from orchestrator.behaviour.probe import prove_active
from orchestrator.behaviour.registry import InService, Registry, check_digests, check_kept
from orchestrator.behaviour.sequential import in_canary
from orchestrator.engine import VllmEngine
from orchestrator.errors import AdapterUnavailableError, EngineUnavailableError, OrchestratorError
from orchestrator.launch import children, supervisor, vllm, weights
from orchestrator.launch.service import Service
from orchestrator.pipeline import Served
from orchestrator.prompts import Catalogue
from orchestrator.protocols import Engine, Tokens
from orchestrator.resident import ResidentEngine, Residents
from orchestrator.settings import Settings
from orchestrator.tokens import LocalTokens
from orchestrator.types import Adapter

logger = logging.getLogger(__name__)
Progress = Callable[[str], None]


class EngineServing:
    """One engine with run-time adapters; embedded and asked to (adapter_serving), a second with the active adapter merged.

    An adapter answers under ``name--digest12`` only, and only after the probe of its manifest proved it active. Where a
    canary runs, it has its share of the conversations of its name.
    """

    def __init__(
        self, settings: Settings, catalogue: Catalogue, registry: Registry, progress: Progress | None = None
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._registry = registry
        self._progress = progress
        self._engines: dict[str, VllmEngine] = {}  # by URL
        self._residents: dict[str, Residents] = {}  # by URL
        self._proven: dict[str, Served] = {}  # by served name
        self._starting = asyncio.Lock()
        self._proving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._merging: dict[str, asyncio.Task[None]] = {}
        self._watch: CanaryWatch | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, catalogue: Catalogue, registry: Registry, progress: Progress | None = None
    ) -> AsyncIterator[EngineServing]:
        """A serving whose connections are closed at the end of the block."""
        serving = cls(settings, catalogue, registry, progress)
        try:
            yield serving
        finally:
            if serving._watch is not None:
                await serving._watch.aclose()
            for task in serving._merging.values():
                task.cancel()
            for residents in serving._residents.values():
                await residents.aclose()
            for engine in serving._engines.values():
                await engine.aclose()

    async def resolve(self, adapter: str | None, key: str | None = None) -> Served:
        """Who answers; ``key`` names the conversation, which stays on one arm of a canary.

        Raises AdapterUnavailableError, EngineUnavailableError, LaunchError.
        """
        if adapter is None:
            return Served(self._connect((await self._service(None)).url or ""), self._settings.engine_model)
        found = await self._registry.in_service(adapter)
        if found.canary is None or key is None:
            return await self._serve(found.adapter)
        return await self._serve_arm(found, found.canary, key)

    def forget(self, adapter: str | None) -> None:
        """The engine does not know the adapter any more: load and prove it again."""
        for name, served in list(self._proven.items()):
            if adapter in (name, served.adapter and served.adapter.name):
                del self._proven[name]
                for residents in self._residents.values():
                    residents.lose(name)

    def observe(self, trial: Trial | None, signs: Signs) -> None:
        """Counts what an answer showed of its arm, where a canary runs; returns at once."""
        if trial is None:
            return
        if self._watch is None:
            self._watch = CanaryWatch(self._registry.database, self._settings.tenant, self._roll_back)
        self._watch.put(trial, signs)

    async def observed(self) -> None:
        """Waits until everything that was observed is counted and judged."""
        if self._watch is not None:
            await self._watch.flush()

    async def start(self) -> None:
        """Starts what is embedded and proves the adapter of every route. Raises EngineError, LaunchError."""
        for name in self._route_adapters():
            await self.resolve(name)

    async def reasons(self) -> list[str]:
        """Why the routes' adapters could not answer now; starts nothing. One that only made room for another could."""
        if not self._settings.engine_url:
            for service in supervisor.status(self._settings.home_dir):
                if service.state != "ready":
                    return [f"{service.name} is {service.state}: {service.detail or 'run `orchestrator up`'}"]
        reasons = []
        for name in self._route_adapters():
            try:
                served = await self.resolve(name)
                if served.model not in await served.engine.models() and self._is_thought_loaded(served.model):
                    self.forget(name)
                    reasons.append(f"adapter {name!r} is not loaded")
            except OrchestratorError as error:
                reasons.append(error.message)
        return reasons

    def _is_thought_loaded(self, name: str) -> bool:
        known = [residents for residents in self._residents.values() if residents.loaded]
        return not known or any(name in residents.loaded for residents in known)

    def _route_adapters(self) -> list[str]:
        return sorted({route.adapter for route in self._catalogue.routes.values() if route.adapter})

    async def _serve_arm(self, found: InService, canary: Adapter, key: str) -> Served:
        """One of the two arms. A canary that cannot be served is ended, and the active adapter answers: never the base."""
        chosen, unit = in_canary(canary.digest, self._settings.tenant, key, found.share)
        active = await self._serve(found.adapter)
        same_engine = isinstance(active.engine, ResidentEngine)  # a canary is never merged
        if not chosen:
            return replace(active, trial=Trial(found.canary_id, "active", unit, same_engine))
        try:
            served = await self._serve(canary)
        except AdapterUnavailableError as error:
            running = await self._registry.running_canary(canary.name)
            if running is not None and running.id == found.canary_id:
                await self._roll_back(running, f"it cannot be served: {error.message}")
            return active
        return replace(served, trial=Trial(found.canary_id, "canary", unit, same_engine))

    async def _roll_back(self, canary: CanaryState, reason: str) -> None:
        logger.warning("the canary %s--%s is rolled back: %s", canary.name, canary.digest[:12], reason)
        await self._registry.end_canary(canary, "rolled_back", reason)

    async def _serve(self, adapter: Adapter) -> Served:
        if adapter.state == "retired":
            raise AdapterUnavailableError(
                f"adapter {adapter.served_name!r} is not in service; `orchestrator adapters list` shows what is, "
                "`orchestrator adapters promote NAME` puts one into service"
            )
        check_digests(adapter, self._catalogue)
        return self._proven.get(adapter.served_name) or await self._prove(adapter)

    async def _prove(self, adapter: Adapter) -> Served:
        async with self._proving[adapter.served_name]:
            if adapter.served_name in self._proven:
                return self._proven[adapter.served_name]
            adapter = await self._registry.find(adapter.served_name)  # with its manifest
            service = await self._service(adapter)
            if adapter.state == "active" and not self._settings.engine_url and adapter.served_name not in self._merging:
                await self._start(None)  # the supervisor loads it, now and after each restart
            served = await self._prove_on(adapter, service)
            self._proven[adapter.served_name] = served
            return served

    async def _prove_on(self, adapter: Adapter, service: Service) -> Served:
        url = service.url or ""
        plain = self._connect(url)
        merged = service.model == adapter.served_name
        engine: Engine = plain if merged else ResidentEngine(plain, self._residents_of(url), adapter)
        if not self._is_recorded(adapter, service):
            await prove_active(engine, adapter, self._settings.engine_model if self._settings.engine_url else None)
            self._record(adapter, service)
        logger.info("adapter %s is proven active", adapter.served_name)
        return Served(engine, adapter.served_name, adapter)

    async def _service(self, adapter: Adapter | None) -> Service:
        """The engine that answers for an adapter now: the one with it merged, else the one with run-time adapters.

        A merged copy that does not run yet is made and started behind the answers, which go through the run-time adapter
        until it is proven: a promotion makes nobody wait.
        """
        if self._settings.engine_url:
            return Service("engine", "ready", url=self._settings.engine_url, model=self._settings.engine_model)
        wanted = [self._settings.engine_model]
        if adapter is not None and self._is_merged(adapter):
            wanted.insert(0, adapter.served_name)
        ready = _ready(supervisor.status(self._settings.home_dir.absolute()))
        if self._settings.engine_model not in ready:  # what runs already is used as it is: another may have wanted more
            async with self._starting:
                ready = _ready(await self._start(None))
        elif adapter is not None and wanted[0] not in ready:
            self._merge_behind(adapter)
        service = next((ready[name] for name in wanted if name in ready), None)
        if service is None:
            raise EngineUnavailableError("the embedded engine is not ready; `orchestrator doctor` says why")
        return service

    def _is_merged(self, adapter: Adapter) -> bool:
        return adapter.state == "active" and vllm.wants_merged(self._settings)

    def _merge_behind(self, adapter: Adapter) -> None:
        name = adapter.served_name
        if name not in self._merging or self._merging[name].done():
            self._merging[name] = asyncio.create_task(self._switch_to_merged(adapter), name=f"merge {name}")

    async def _switch_to_merged(self, adapter: Adapter) -> None:
        name = adapter.served_name
        with suppress(asyncio.CancelledError):
            try:
                await asyncio.to_thread(check_kept, adapter)
                async with self._starting:
                    ready = _ready(await self._start(adapter))
                if name in ready:
                    served = await self._prove_on(adapter, ready[name])
                    self._proven[name] = served
            except OrchestratorError as error:  # the run-time adapter goes on answering
                logger.error("adapter %s is not served merged: %s", name, error.message)

    async def _start(self, merged: Adapter | None) -> list[Service]:
        known = await self._registry.list()
        active = [each for each in known if each.state == "active"]
        wanted = self._route_adapters()
        if merged is None:
            merged = next((each for each in active if each.name in wanted), None)
        first = sorted(active, key=lambda each: each.name not in wanted)  # stable: of equals the list's order
        desired = [*first, *(each for each in known if each.state == "canary")][: self._settings.adapter_slots]
        return await asyncio.to_thread(
            supervisor.up, self._settings, adapters=desired, merged=merged, progress=self._progress
        )

    def _residents_of(self, url: str) -> Residents:
        if url not in self._residents:
            settings = self._settings
            self._residents[url] = Residents(self._connect(url), settings.adapter_slots, settings.adapter_wait_s)
        return self._residents[url]

    def _connect(self, url: str) -> VllmEngine:
        if url not in self._engines:
            self._engines[url] = VllmEngine(
                url,
                api_key=self._settings.engine_api_key,
                token_timeout_s=self._settings.token_timeout_s,
                request_timeout_s=self._settings.request_timeout_s,
            )
        return self._engines[url]

    # A proof holds for one process of the engine: pid and start are part of the record, so a restart is proven anew.

    def _is_recorded(self, adapter: Adapter, service: Service) -> bool:
        if service.pid is None:
            return False
        try:
            return bool(json.loads(self._record_file(adapter).read_text("utf-8")) == _identity(service))
        except (OSError, ValueError):
            return False

    def _record(self, adapter: Adapter, service: Service) -> None:
        if service.pid is not None:
            children.write_atomic(self._record_file(adapter), json.dumps(_identity(service)).encode())

    def _record_file(self, adapter: Adapter) -> Path:
        return self._settings.home_dir / "run" / f"proven-{adapter.digest[:12]}.json"


def _ready(services: Sequence[Service]) -> dict[str, Service]:
    return {service.model: service for service in services if service.state == "ready"}


def _identity(service: Service) -> list[str]:
    return [str(service.pid), str(service.since), str(service.url), service.model]


def open_tokens(settings: Settings, progress: Progress | None = None) -> Tokens | None:
    """The base model's tokenizer when the engine is embedded; a remote engine counts by itself (None)."""
    return None if settings.engine_url else BaseTokens(settings, progress)


class BaseTokens:
    """The embedded base model's own tokenizer, unpacked when it is first needed."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self._settings = settings
        self._progress = progress

    @cached_property
    def _tokens(self) -> LocalTokens:
        return LocalTokens(weights.ensure_smollm2(self._settings.models, self._progress))

    def count(self, text: str) -> int:
        """Tokens of ``text``. Raises LaunchError when the weights cannot be had."""
        return self._tokens.count(text)
