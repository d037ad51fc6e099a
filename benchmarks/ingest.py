"""What ingest costs on top of embedding: ``python benchmarks/ingest.py CORPUS.jsonl [--limit N] [--synthetic N [--more N]]``.

With a corpus (a line: {"id", "title", "text"}): the embedded MiniLM embeds all chunks alone, then the same corpus is
ingested; the ratio of the two says what reading, splitting, storing and indexing cost. ``--synthetic N``: N chunks with
vectors that cost nothing, so that only our own part and PostgreSQL's are left; memory is sampled on the way. ``--more N``:
N further ones after that, when the collection has its index. CPU seconds hold on a busy machine, wall seconds do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import psutil
from clock import Spent, measured

from orchestrator.database import Database
from orchestrator.knowledge.embed import open_embedder
from orchestrator.knowledge.ingest import IngestEvent, ingest_documents
from orchestrator.knowledge.sources.load import Loader
from orchestrator.knowledge.split import split
from orchestrator.knowledge.spread import open_indexer
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.vectors import EMBED_TEXTS
from orchestrator.launch import postgres
from orchestrator.migrate import migrate
from orchestrator.protocols import Embedder, TokenEmbedder
from orchestrator.resources import processor
from orchestrator.settings import Settings
from orchestrator.types import Document

WORDS = 60_000  # of the synthetic texts' vocabulary, drawn as Zipf would
SENTENCE = 120  # words of a synthetic document: one chunk


@dataclass
class Load(Spent):
    """What a run cost. ``rss_mb``: memory of this process on the way."""

    chunks: int = 0
    rss_mb: list[int] = field(default_factory=list)


class FreeEmbedder:
    """Vectors that cost next to nothing: slices of one table of random numbers."""

    space = "free-384"
    dimensions = 384

    def __init__(self) -> None:
        rows = np.random.default_rng(0).standard_normal((4096, self.dimensions), dtype=np.float32)
        self._rows: list[list[float]] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).tolist()
        self._next = 0

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The next rows of the table."""
        self._next += len(texts)
        return [self._rows[(self._next + place) % len(self._rows)] for place in range(len(texts))]


def synthetic(count: int, first: int = 0) -> Iterator[Document]:
    """Documents of one chunk each, numbered from ``first``."""
    chance = random.Random(first)
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    names = ["".join(letters) for letters in islice(product(ascii_lowercase, repeat=4), WORDS)]
    chance.shuffle(names)
    cumulative = list(np.cumsum(weights))
    for number in range(first, first + count):
        words = chance.choices(names, cum_weights=cumulative, k=SENTENCE)
        yield Document(f"s{number}", f"Title {number}", " ".join(words), "synthetic")


async def embed_alone(embedder: Embedder, documents: Sequence[Document]) -> Load:
    """Embeds the chunks in calls as large as those of an ingest."""
    texts = [chunk.indexed for document in documents for chunk in split(document)]
    with measured() as spent:
        for first in range(0, len(texts), EMBED_TEXTS):
            part = texts[first : first + EMBED_TEXTS]
            await (embedder.embed_tokens(part) if isinstance(embedder, TokenEmbedder) else embedder.embed(part))
    return Load(**asdict(spent), chunks=len(texts))


async def ingest_all(url: str, home: Path, embedder: Embedder, documents: Iterable[Document], name: str) -> Load:
    """Ingests into a collection."""
    load = Load()
    process = psutil.Process()

    def see(event: IngestEvent) -> None:
        if event.status != "added":
            return
        if load.chunks // 10_000 != (load.chunks + event.chunks) // 10_000 or not load.chunks:
            load.rss_mb.append(process.memory_info().rss >> 20)
        load.chunks += event.chunks

    async with Database.open(url, 4) as database:
        store = PgStore(database)
        with measured(home) as spent:
            report = await ingest_documents(documents, store=store, embedder=embedder, collection=name, progress=see)
        assert not report.failures, report.failures[:3]
    return replace(load, **asdict(spent), rss_mb=[*load.rss_mb, process.memory_info().rss >> 20])


async def main(corpus: Path | None, limit: int, count: int, more: int, workers: int, as_json: bool) -> None:
    """Prints what was asked for."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="orch-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        url = postgres.start(home)
        try:
            async with Database.open(url, 1) as database:
                await migrate(database)
            if corpus:
                documents = [item for item in Loader([corpus]) if isinstance(item, Document)][:limit]
                settings = Settings.from_env()
                async with open_indexer(settings, open_embedder(settings, print), workers) as embedder:
                    await embedder.embed(["warm"] * 64)
                    rows["embedding"] = await embed_alone(embedder, documents)
                    rows["ingest"] = await ingest_all(url, home, embedder, documents, "corpus")
            if count:
                rows["synthetic"] = await ingest_all(url, home, FreeEmbedder(), synthetic(count), "synthetic")
            if more:
                rows["more"] = await ingest_all(url, home, FreeEmbedder(), synthetic(more, count), "synthetic")
        finally:
            postgres.stop(home)
    _print(rows, as_json)


def _print(rows: dict[str, Load], as_json: bool) -> None:
    machine = {"processor": processor(), "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat()}
    if as_json:
        print(json.dumps({"machine": machine, "rows": {name: asdict(row) for name, row in rows.items()}}))
        return
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['date']}")
    for name, row in rows.items():
        print(
            f"{name}: {row.chunks} chunks in {row.wall:.1f} s ({row.chunks / row.wall:.0f}/s); CPU client "
            f"{row.client_cpu:.1f} s, server {row.server_cpu:.1f} s ({1000 * row.server_cpu / row.chunks:.2f} ms a chunk)"
        )
        if row.rss_mb:
            print(f"  memory of the client every 10,000 chunks, MB: {' '.join(map(str, row.rss_mb))}")
    if "ingest" in rows:
        alone, whole = rows["embedding"], rows["ingest"]
        cpu = (whole.client_cpu + whole.server_cpu) / alone.client_cpu
        print(f"ingest / embedding alone: wall {whole.wall / alone.wall:.2f}, CPU {cpu:.2f} with the server")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--limit", type=int, default=1_000_000, help="documents of the corpus")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="chunks with vectors that cost nothing")
    parser.add_argument("--more", type=int, default=0, metavar="N", help="as many again, with the index in place")
    parser.add_argument("--workers", type=int, default=1, help="processes that embed the corpus")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(
        main(arguments.corpus, arguments.limit, arguments.synthetic, arguments.more, arguments.workers, arguments.json)
    )
