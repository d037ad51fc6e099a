"""A program for test_serve: serves an answer that takes as long as its second argument says, in seconds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from orchestrator.api import serve
from orchestrator.testing import MemoryLedger, ScriptedEngine
from orchestrator.types import Completion, Generation
from tests.acceptance.conftest import build


class SlowEngine(ScriptedEngine):
    """Twelve tokens with a pause after each."""

    async def stream(self, generation: Generation) -> AsyncIterator[str | Completion]:
        pieces = ['{"answerable": true, "citations": [1], "answer": "25', *[" days"] * 10, '", "evidence": ""}']
        for piece in pieces:
            yield piece
            await asyncio.sleep(float(sys.argv[1]) / 10)
        yield Completion("".join(pieces), "stop", generation.model)


async def main() -> None:
    orchestrator, _ = await build(SlowEngine(()), MemoryLedger())
    await serve(orchestrator, "127.0.0.1", 0, ready=lambda url: print(url, flush=True))


asyncio.run(main())
