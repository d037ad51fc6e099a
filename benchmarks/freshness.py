"""Measures what it costs to keep a folder that changes up to date, and whether questions as of each release are answered from it.

python benchmarks/freshness.py FOLDER [--dates DATE,...] [--json]

FOLDER has one folder for each release, in the order of their names. They are synced in turn into one collection, each with
its date as `valid_from`, as if one checkout were updated; beside it each is indexed anew into a collection of its own.
Questions are derived from what only one release says: the rarest words of a sentence, asked as of every release.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.app import open_database
from orchestrator.knowledge.compare import normalised, paragraphs
from orchestrator.knowledge.embed import open_embedder
from orchestrator.knowledge.ingest import ingest, ingest_documents
from orchestrator.knowledge.rerank import open_reranker
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.sources.load import Loader
from orchestrator.knowledge.split import split
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.sync import sync
from orchestrator.launch import postgres
from orchestrator.protocols import Embedder
from orchestrator.settings import Settings
from orchestrator.types import Document, Passage, SearchMode, SearchRequest, start_of

Search = Callable[[SearchRequest], Awaitable[Sequence[Passage]]]

PER_RELEASE = 15
WORDS = 8  # of a question
UPDATES = 50
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*])")
PROSE = re.compile(r"[A-Z`*].{40,240}[.!?]")


@dataclass(frozen=True, slots=True)
class Release:
    """One state of the folder, valid from ``moment`` on; ``documents`` by id."""

    name: str
    moment: datetime
    folder: Path
    documents: Mapping[str, Document]

    @property
    def whole(self) -> str:
        """All that it says."""
        return normalised("\n\n".join(document.text for document in self.documents.values()))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that only one release answers: ``sentence`` stands there and in no other."""

    question: str
    release: str
    external_id: str
    sentence: str


@dataclass(slots=True)
class Verdict:
    """What became of the questions. ``right``: found in the release that says it; ``foreign``: passages of another release."""

    asked: int = 0
    right: int = 0
    passages: int = 0
    foreign: int = 0
    faults: list[str] = field(default_factory=list)


def read_releases(folder: Path, dates: Sequence[str]) -> list[Release]:
    """The releases in order of their numbers; without dates one a year."""
    folders = sorted((path for path in folder.iterdir() if path.is_dir()), key=_numbers)
    days = dates or [date(2020 + place, 1, 1).isoformat() for place in range(len(folders))]
    if len(days) != len(folders):
        raise SystemExit(f"{len(folders)} releases in {folder} and {len(days)} dates: give one date for each")
    return [_release(path, day) for path, day in zip(folders, days, strict=True)]


def _numbers(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.name)]


def _release(path: Path, day: str) -> Release:
    moment = start_of(day)
    assert moment is not None
    documents = {item.external_id: item for item in Loader([path]) if isinstance(item, Document)}
    return Release(path.name, moment, path, documents)


def derive_questions(releases: Sequence[Release], per_release: int = PER_RELEASE) -> list[Asked]:
    """Up to ``per_release`` questions for each release, each from another document, the most telling sentences first."""
    whole = {release.name: release.whole for release in releases}
    commonness = Counter(word for text in whole.values() for word in _words(text))
    asked: list[Asked] = []
    for release in releases:
        others = [text for name, text in whole.items() if name != release.name]
        best = (_most_telling(release.name, one, others, commonness) for one in release.documents.values())
        found = sorted((one for one in best if one), key=lambda pair: (pair[0], pair[1].external_id))
        asked += [question for _, question in found[:per_release]]
    return asked


def _most_telling(
    release: str, document: Document, others: Sequence[str], commonness: Counter[str]
) -> tuple[float, Asked] | None:
    """The document's sentence of the rarest words that no other release has; one that a single chunk holds."""
    found = []
    sentences = [
        one for chunk in split(document) for part in paragraphs(chunk.text) for one in SENTENCE.split(normalised(part))
    ]
    for sentence in sentences:
        words = list(dict.fromkeys(word for word in _words(sentence) if len(word) > 2))
        if PROSE.fullmatch(sentence) and len(words) >= 5 and not any(sentence in other for other in others):
            rarest = sorted(words, key=lambda word: commonness[word])[:WORDS]
            question = " ".join(word for word in words if word in rarest)
            rarity = sum(commonness[word] for word in rarest) / len(rarest)
            found.append((rarity, Asked(question, release, document.external_id, sentence)))
    return min(found, key=lambda pair: (pair[0], pair[1].sentence), default=None)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z_]+", text.lower())


async def ask_all(
    search: Search, collection: str, releases: Sequence[Release], asked: Sequence[Asked], mode: SearchMode = "hybrid"
) -> Verdict:
    """Asks each question as of every release: only its own may answer, and no passage may be of another."""
    verdict = Verdict()
    whole = {release.name: release.whole for release in releases}
    for one in asked:
        for release in releases:
            moment = release.moment + timedelta(days=1)
            found = await search(SearchRequest(one.question, (), collection, 5, as_of=moment, mode=mode))
            texts = [normalised(passage.text) for passage in found]
            foreign = [text for text in texts if text not in whole[release.name]]
            verdict.passages += len(texts)
            verdict.foreign += len(foreign)
            is_told = any(one.sentence in text for text in texts)
            if release.name == one.release:
                verdict.asked += 1
                verdict.right += is_told
            if foreign or is_told != (release.name == one.release):
                verdict.faults.append(f"as of {release.name}: {one.question!r} ({one.release}, {one.external_id})")
    return verdict


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as one JSON value."""
    releases = read_releases(Path(arguments.folder), arguments.dates.split(",") if arguments.dates else ())
    with temporary_home() as home:
        settings = replace(Settings.from_env(), home=home, pool_size=2)
        settings = replace(settings, database_url=await asyncio.to_thread(postgres.start, home))
        try:
            async with open_database(settings) as database:
                embedder = await asyncio.to_thread(open_embedder, settings, say)
                store = PgStore(database, settings.tenant, embedder.space)
                reranker = await asyncio.to_thread(open_reranker, settings, embedder, say)
                retriever = Retriever(store, embedder, reranker, budget_s=60)
                await embedder.embed(["warm"])
                rows = [await one_release(store, embedder, home, release) for release in releases]

                async def search(request: SearchRequest) -> Sequence[Passage]:
                    return (await retriever.search(request)).passages

                verdict = await ask_all(search, "synced", releases, derive_questions(releases))
                visible = await commit_to_visible(store, embedder)
        finally:
            await asyncio.to_thread(postgres.stop, home)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "embedder": embedder.space,
        "releases": [{**row, "changed_text": share} for row, share in zip(rows, changed_text(releases), strict=True)],
        "questions": asdict(verdict),
        "commit_to_visible_ms": visible,
    }


def changed_text(releases: Sequence[Release]) -> list[float]:
    """For each release the share of its characters in paragraphs that its documents did not have in the one before."""
    shares, before = [], dict[str, set[str]]()
    for release in releases:
        now = {name: list(map(normalised, paragraphs(one.text))) for name, one in release.documents.items()}
        new = sum(len(part) for name, parts in now.items() for part in parts if part not in before.get(name, ()))
        shares.append(new / sum(len(part) for parts in now.values() for part in parts))
        before = {name: set(parts) for name, parts in now.items()}
    return shares


async def one_release(store: PgStore, embedder: Embedder, home: Path, release: Release) -> dict[str, Any]:
    """The release as an update of the checkout, and beside it as a new index."""
    from clock import measured  # beside this file, which a test loads by its path

    checkout = home / "checkout"
    shutil.rmtree(checkout, ignore_errors=True)
    shutil.copytree(release.folder, checkout)
    say(f"{release.name}: sync")
    with measured(home) as update:
        synced = await sync(
            checkout,
            store=store,
            embedder=embedder,
            collection="synced",
            valid_from=release.moment,
            confirm=lambda plan: True,
        )
    say(f"{release.name}: full re-index")
    with measured(home) as full:
        anew = await ingest([release.folder], store=store, embedder=embedder, collection=f"full-{release.name}")
    report = synced.ingest
    return {
        "release": release.name,
        "date": release.moment.date().isoformat(),
        "documents": len(release.documents),
        "renamed": len(synced.renamed),
        "retired": len(synced.retired),
        "chunks": report.chunks_new + report.chunks_shared,
        "chunks_embedded": report.chunks_new,
        "chunks_full": anew.chunks_new,
        "sync": asdict(update),
        "full": asdict(full),
    }


async def commit_to_visible(store: PgStore, embedder: Embedder) -> dict[str, float]:
    """Milliseconds from the return of a write to the return of a search that finds it; ``searches``: most that it took."""
    times, most = [], 0
    for number in range(UPDATES):
        text = f"The limit of edition{number} is {number} EUR a night."
        document = Document("limit", "Limit", text, "limit.md")
        await ingest_documents([document], store=store, embedder=embedder, collection="synced")
        began, searches, found = time.perf_counter(), 0, False
        while not found:
            request = SearchRequest(f"edition{number}", (), "synced", 1, mode="lexical")
            found = any(passage.text == text for passage in await store.search(request))
            searches += 1
        times.append((time.perf_counter() - began) * 1000)
        most = max(most, searches)
    times.sort()
    return {"p50": times[len(times) // 2], "max": times[-1], "updates": UPDATES, "searches": most}


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A folder for the database, reachable by PostgreSQL's own user; removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="orch-fresh-"))
    home.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def table(result: Mapping[str, Any]) -> str:
    """The figures for a person."""
    head = (
        "release",
        "documents",
        "renamed",
        "retired",
        "new text",
        "chunks",
        "embedded",
        "sync CPU s",
        "full CPU s",
        "CPU",
    )
    lines = [head, tuple("---" for _ in head), *map(_row, result["releases"])]
    asked, visible = result["questions"], result["commit_to_visible_ms"]
    return "\n".join(
        [
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            f"as-of questions answered from the right release: {asked['right']} of {asked['asked']}; "
            f"passages of another release: {asked['foreign']} of {asked['passages']}",
            f"from commit to visible: p50 {visible['p50']:.1f} ms, max {visible['max']:.1f} ms "
            f"({visible['updates']:.0f} updates, at most {visible['searches']:.0f} search each)",
            f"{result['date']}, {result['machine']}, {result['embedder']}",
        ]
    )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    sync_cpu, full_cpu = (row[name]["client_cpu"] + row[name]["server_cpu"] for name in ("sync", "full"))
    share = row["chunks_embedded"] / row["chunks"]
    counts = [str(row[name]) for name in ("release", "documents", "renamed", "retired")]
    embedded = f"{row['chunks_embedded']} ({share:.0%})"
    times = f"{sync_cpu:.1f}", f"{full_cpu:.1f}", f"{sync_cpu / full_cpu:.0%}"
    return (*counts, f"{row['changed_text']:.0%}", str(row["chunks"]), embedded, *times)


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Iterable[str] | None = None) -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--dates", help="dates of the releases, separated by commas")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(None if arguments is None else list(arguments))
    result = asyncio.run(measure(options))
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
