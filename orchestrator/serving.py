"""Finds who answers for an adapter: starts the engine when it is first needed, loads the adapter, and lets a probe prove it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path

from orchestrator.behaviour.probe import prove_active
from orchestrator.behaviour.registry import Registry, check_digests
from orchestrator.engine import VllmEngine
from orchestrator.errors import AdapterUnavailableError, EngineUnavailableError, OrchestratorError
from orchestrator.launch import children, supervisor, vllm, weights
from orchestrator.launch.service import Service
from orchestrator.pipeline import Served
from orchestrator.prompts import Catalogue
from orchestrator.protocols import Tokens
from orchestrator.settings import Settings
from orchestrator.tokens import LocalTokens
from orchestrator.types import Adapter

logger = logging.getLogger(__name__)
Progress = Callable[[str], None]


class EngineServing:
    """One engine with run-time adapters; embedded and asked to (adapter_serving), a second with the active adapter merged.

    An adapter answers under ``name--digest12`` only, and only after the probe of its manifest proved it active.
    """

    def __init__(
        self, settings: Settings, catalogue: Catalogue, registry: Registry, progress: Progress | None = None
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._registry = registry
        self._progress = progress
        self._engines: dict[str, VllmEngine] = {}  # by URL
        self._proven: dict[str, Served] = {}  # by served name
        self._lock = asyncio.Lock()

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
            for engine in serving._engines.values():
                await engine.aclose()

    async def resolve(self, adapter: str | None) -> Served:
        """Who answers. Raises AdapterUnavailableError, EngineUnavailableError, LaunchError."""
        if adapter is None:
            return Served(self._connect((await self._service(None)).url or ""), self._settings.engine_model)
        registered = await self._registry.get(adapter)
        if registered.state == "retired":
            raise AdapterUnavailableError(
                f"adapter {adapter!r} is not in service; `orchestrator adapters list` shows what is, "
                "`orchestrator adapters promote NAME` puts one into service"
            )
        check_digests(registered, self._catalogue)
        proven = self._proven.get(registered.served_name)
        return proven or await self._prove(registered)

    def forget(self, adapter: str | None) -> None:
        """The engine does not know the adapter any more: load and prove it again."""
        self._proven = {
            name: served
            for name, served in self._proven.items()
            if adapter not in (name, served.adapter and served.adapter.name)
        }

    async def start(self) -> None:
        """Starts what is embedded and proves the adapter of every route. Raises EngineError, LaunchError."""
        for name in self._route_adapters():
            await self.resolve(name)

    async def reasons(self) -> list[str]:
        """Why the routes' adapters could not answer now; starts nothing."""
        if not self._settings.engine_url:
            for service in supervisor.status(self._settings.home_dir):
                if service.state != "ready":
                    return [f"{service.name} is {service.state}: {service.detail or 'run `orchestrator up`'}"]
        reasons = []
        for name in self._route_adapters():
            try:
                served = await self.resolve(name)
                if served.model not in await served.engine.models():
                    self.forget(name)
                    reasons.append(f"adapter {name!r} is not loaded")
            except OrchestratorError as error:
                reasons.append(error.message)
        return reasons

    def _route_adapters(self) -> list[str]:
        return sorted({route.adapter for route in self._catalogue.routes.values() if route.adapter})

    async def _prove(self, adapter: Adapter) -> Served:
        async with self._lock:
            if adapter.served_name in self._proven:
                return self._proven[adapter.served_name]
            service = await self._service(adapter)
            engine = self._connect(service.url or "")
            if adapter.served_name not in await engine.models():
                if adapter.state == "active" and not self._settings.engine_url:
                    await self._start(None)  # the supervisor loads it, now and after each restart
                await engine.load_adapter(adapter.served_name, str(adapter.path))
            if not self._is_recorded(adapter, service):
                await prove_active(engine, adapter, self._settings.engine_model if self._settings.engine_url else None)
                self._record(adapter, service)
            served = Served(engine, adapter.served_name, adapter)
            self._proven[adapter.served_name] = served
            logger.info("adapter %s is proven active", adapter.served_name)
            return served

    async def _service(self, adapter: Adapter | None) -> Service:
        """The engine that answers for an adapter, running: the one with it merged, else the one with run-time adapters."""
        if self._settings.engine_url:
            return Service("engine", "ready", url=self._settings.engine_url, model=self._settings.engine_model)
        merged = adapter if adapter and adapter.state == "active" and vllm.wants_merged(self._settings) else None
        model = merged.served_name if merged else self._settings.engine_model
        found = _ready(supervisor.status(self._settings.home_dir.absolute())).get(model)
        if found:  # what runs already is used as it is: another process may have wanted more than we do
            return found
        ready = _ready(await self._start(merged))
        service = ready.get(model) or ready.get(self._settings.engine_model)
        if service is None:
            raise EngineUnavailableError("the embedded engine is not ready; `orchestrator doctor` says why")
        return service

    async def _start(self, merged: Adapter | None) -> list[Service]:
        active = [known for known in await self._registry.list() if known.state == "active"]
        if merged is None:
            wanted = self._route_adapters()
            merged = next((known for known in active if known.name in wanted), None)
        return await asyncio.to_thread(
            supervisor.up, self._settings, adapters=active, merged=merged, progress=self._progress
        )

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
