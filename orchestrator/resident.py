"""The adapters that one engine holds: at most so many at once, loaded when they are asked for, the least used one makes room."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from orchestrator.behaviour.registry import check_kept
from orchestrator.engine import VllmEngine
from orchestrator.errors import AdapterUnavailableError
from orchestrator.types import Adapter, Completion, Generation

_OURS = re.compile(r".+--[0-9a-f]{12}")  # an adapter that somebody else loaded under another kind of name is left alone
logger = logging.getLogger(__name__)


class Residents:
    """Keeps an engine's adapters within ``slots``. One that answers is never taken out; others wait for ``wait_s`` at most."""

    def __init__(self, engine: VllmEngine, slots: int, wait_s: float) -> None:
        self._engine = engine
        self._slots = slots
        self._wait_s = wait_s
        self._loaded: dict[str, None] = {}  # served names, the least used first
        self._uses: Counter[str] = Counter()  # answers that run
        self._changing = asyncio.Lock()  # one load or unload at a time
        self._freed = asyncio.Event()
        self._load_task: asyncio.Task[bool] | None = None

    async def aclose(self) -> None:
        """Ends a load that goes on though its caller left, before the engine's connections are closed."""
        if self._load_task is not None:
            self._load_task.cancel()
            await asyncio.gather(self._load_task, return_exceptions=True)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Served names, as far as we know, the least used first."""
        return tuple(self._loaded)

    @asynccontextmanager
    async def hold(self, adapter: Adapter) -> AsyncIterator[None]:
        """The adapter is loaded for the length of the block. Raises AdapterUnavailableError when no slot gets free in time."""
        name = adapter.served_name
        self._uses[name] += 1  # from now on it is not taken out
        try:
            async with asyncio.timeout(self._wait_s):
                await self._ensure(adapter)
        except TimeoutError as error:
            self._release(name)
            raise AdapterUnavailableError(
                f"adapter {name} could not be loaded within {self._wait_s:g} s, as all {self._slots} adapters that the engine "
                "holds are at work; ask again, or raise ORCHESTRATOR_ADAPTER_SLOTS"
            ) from error
        except BaseException:
            self._release(name)
            raise
        try:
            yield
        finally:
            self._release(name)

    def lose(self, name: str) -> None:
        """The engine does not know it any more: it was restarted, or another process took the adapter out."""
        self._loaded.pop(name, None)

    def _release(self, name: str) -> None:
        self._uses[name] -= 1
        if self._uses[name] <= 0:
            del self._uses[name]
            self._freed.set()

    async def _ensure(self, adapter: Adapter) -> None:
        name = adapter.served_name
        while True:
            if name in self._loaded:
                self._loaded[name] = self._loaded.pop(name)  # the latest used now
                return
            async with self._changing:
                if name in self._loaded:
                    continue
                self._freed.clear()
                # A caller who leaves must not leave half a load behind: it is finished, and the next one finds it.
                self._load_task = asyncio.create_task(self._load(adapter))
                if await asyncio.shield(self._load_task):
                    continue
            await self._freed.wait()

    async def _load(self, adapter: Adapter) -> bool:
        """False when every slot is in use."""
        name = adapter.served_name
        on_engine = [each for each in await self._engine.models() if _OURS.fullmatch(each)]
        self._loaded = {each: None for each in self._loaded if each in on_engine}
        self._loaded = dict.fromkeys([each for each in on_engine if each not in self._loaded]) | self._loaded
        if name in self._loaded:
            return True
        for idle in [each for each in self._loaded if each not in self._uses]:
            if len(self._loaded) < self._slots:
                break
            await self._engine.unload_adapter(idle)
            del self._loaded[idle]
            logger.info("adapter %s made room for %s", idle, name)
        if len(self._loaded) >= self._slots:
            return False
        await asyncio.to_thread(check_kept, adapter)
        await self._engine.load_adapter(name, str(adapter.path))
        try:
            await asyncio.to_thread(check_kept, adapter)  # exchanged between the check and the engine's reading
        except AdapterUnavailableError:
            await self._engine.unload_adapter(name)
            raise
        self._loaded[name] = None
        return True


class ResidentEngine:
    """An engine through which one adapter is asked: it is loaded before each answer, when it has to be."""

    def __init__(self, engine: VllmEngine, residents: Residents, adapter: Adapter) -> None:
        self._engine = engine
        self._residents = residents
        self._adapter = adapter

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """As the engine's; an adapter that the engine lost meanwhile is loaded again, once."""
        for again in (False, True):
            started = False
            async with self._residents.hold(self._adapter):  # who waited in vain for a slot does not wait twice
                try:
                    async with aclosing(self._engine.stream(generation)) as pieces:
                        async for piece in pieces:
                            started = True
                            yield piece
                    return
                except AdapterUnavailableError:
                    if started or again:
                        raise
                    self._residents.lose(self._adapter.served_name)

    async def count_tokens(self, messages: Sequence[Mapping[str, str]], model: str) -> int:
        """As the engine's."""
        async with self._residents.hold(self._adapter):
            return await self._engine.count_tokens(messages, model)

    async def models(self) -> list[str]:
        """As the engine's."""
        return await self._engine.models()

    async def load_adapter(self, name: str, path: str) -> None:
        """As the engine's."""
        await self._engine.load_adapter(name, path)

    async def unload_adapter(self, name: str) -> None:
        """As the engine's."""
        await self._engine.unload_adapter(name)

    async def is_ready(self) -> bool:
        """As the engine's."""
        return await self._engine.is_ready()
