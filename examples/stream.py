"""Prints an answer while it is generated: first the plan, then the text, then what was checked.

python examples/stream.py "Who approves travel expenses?"
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from orchestrator import Answer, Delta, Orchestrator, Plan

HANDBOOK = Path(__file__).parent / "handbook"


async def main(question: str = "Who approves travel expenses?") -> None:
    """Shows each event as it comes. The last one, the Answer, is in the ledger already."""
    async with Orchestrator.open(progress=lambda line: print(line, file=sys.stderr)) as orchestrator:
        await orchestrator.ingest(HANDBOOK)
        async for event in orchestrator.stream(question):
            match event:
                case Plan():
                    print(f"({event.route}: {event.reason})")
                case Delta():
                    print(event.text, end="", flush=True)
                case Answer():
                    print(
                        f"\n{len(event.citations)} citations, {event.usage.completion_tokens} tokens, record {event.id}"
                    )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
