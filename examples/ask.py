"""Indexes the example handbook and answers one question from it, with citations.

python examples/ask.py
python examples/ask.py "What is the hotel limit?" 2024-06-30
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from orchestrator import Orchestrator

HANDBOOK = Path(__file__).parent / "handbook"


async def main(question: str = "How many days of annual leave do I get?", as_of: str | None = None) -> None:
    """Prints the answer, and for each citation the very characters that it rests on."""
    async with Orchestrator.open(progress=lambda line: print(line, file=sys.stderr)) as orchestrator:
        await orchestrator.ingest(HANDBOOK)  # a second run finds nothing to do
        answer = await orchestrator.ask(question, as_of=as_of)

    print(answer.text)
    for citation in answer.citations:
        start, end = citation.span
        print(f"  [{citation.number}] {citation.external_id}, version {citation.version}, characters {start}-{end}:")
        print(f'      "{citation.quote}"')
    print(f"route {answer.route} ({answer.plan.reason}), adapter {answer.adapter or 'none'}, record {answer.id}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
