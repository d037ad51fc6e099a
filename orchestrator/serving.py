"""Finds who answers for an adapter: starts the engine when it is first needed, loads the adapter, and lets a probe prove it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property

from orchestrator.behaviour.registry import Registry, check_digests, prove_active
from orchestrator.engine import VllmEngine
from orchestrator.errors import AdapterUnavailableError, EngineError, OrchestratorError
from orchestrator.launch import supervisor, weights
from orchestrator.pipeline import Served
from orchestrator.prompts import Catalogue
from orchestrator.protocols import Tokens
from orchestrator.settings import Settings
from orchestrator.tokens import LocalTokens
from orchestrator.types import Adapter

logger = logging.getLogger(__name__)
Progress = Callable[[str], None]


class EngineServing:
    """One engine with run-time adapters; embedded on a CPU, a second one with the active adapter merged into the base.

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
            return Served(await self._engine(None), self._settings.engine_model)
        registered = await self._registry.get(adapter)
        if registered is None or registered.state == "retired":
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
            engine = await self._engine(adapter)
            if adapter.served_name not in await engine.models():
                await engine.load_adapter(adapter.served_name, str(adapter.path))
            await prove_active(engine, adapter)
            served = Served(engine, adapter.served_name, adapter)
            self._proven[adapter.served_name] = served
            logger.info("adapter %s is proven active", adapter.served_name)
            return served

    async def _engine(self, adapter: Adapter | None) -> VllmEngine:
        if self._settings.engine_url:
            return self._connect(self._settings.engine_url)
        urls = await start_engines(self._settings, self._registry, self._progress)
        merged = adapter and urls.get(adapter.served_name)
        return self._connect(merged or urls[self._settings.engine_model])

    def _connect(self, url: str) -> VllmEngine:
        if url not in self._engines:
            self._engines[url] = VllmEngine(
                url,
                api_key=self._settings.engine_api_key,
                token_timeout_s=self._settings.token_timeout_s,
                request_timeout_s=self._settings.request_timeout_s,
            )
        return self._engines[url]


async def start_engines(settings: Settings, registry: Registry, progress: Progress | None = None) -> dict[str, str]:
    """The embedded engines, started if they are not: model name to base URL. Raises LaunchError, EngineError."""
    active = [adapter for adapter in await registry.list() if adapter.state == "active"]
    merged = active[0] if active and settings.adapter_serving != "runtime" else None
    status = await asyncio.to_thread(supervisor.up, settings, adapters=active, merged=merged, progress=progress)
    urls = {service.model: service.url for service in status if service.url and service.model}
    if settings.engine_model not in urls:
        raise EngineError("the embedded engine did not start; `orchestrator doctor` says why")
    return urls


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
