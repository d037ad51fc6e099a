"""``kill -9`` at every step of an ingest job and of PostgreSQL: what a second worker makes of it equals an uninterrupted run.

``CRASH_ROUNDS=50`` adds rounds in which the worker dies at a random moment, and kills each worker in both steps.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from orchestrator.database import Database
from orchestrator.errors import DatabaseError
from orchestrator.knowledge import write
from orchestrator.knowledge.ingest import ingest
from orchestrator.knowledge.jobs import Jobs
from orchestrator.knowledge.store import PgStore
from orchestrator.launch import children, postgres
from orchestrator.migrate import migrate
from orchestrator.testing import HashEmbedder
from orchestrator.types import SearchRequest

Dump = dict[str, list[tuple[object, ...]]]

# Imports once, then forks a worker for each line of its input and answers with how that ended.
FORKS = """
import asyncio, json, os, signal, sys
from orchestrator.database import Database
from orchestrator.knowledge import ingest
from orchestrator.knowledge.jobs import Jobs, work
from orchestrator.knowledge.lexical import detect_language
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import ChunkVectors

class Embedder(HashEmbedder):
    letters_per_piece = (2.8, 3.4)

    async def embed(self, texts):
        if any("crashes" in text for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().embed(texts)

    async def embed_tokens(self, texts):
        return [ChunkVectors(vector, text.encode()[:48]) for vector, text in zip(await self.embed(texts), texts)]

    async def embed_question(self, text):
        raise NotImplementedError

async def main(url):
    async with Database.open(url, 3) as database:
        jobs = Jobs(database)
        while (await jobs.count_open())[0]:
            await work(jobs, PgStore(database), Embedder(), lease_s=0.4)
            await asyncio.sleep(0.05)

ingest.BATCH_DOCUMENTS = 2
detect_language("Loads its table once for all workers.")
for line in sys.stdin:
    url, failpoint, seconds = json.loads(line)
    if (child := os.fork()) == 0:
        if failpoint:
            os.environ["FAILPOINT"] = failpoint
        if seconds:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        asyncio.run(main(url))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# Everything that is stored but ids and clock times: `now()` only shows as the order of versions.
DUMP = {
    "documents": "select external_id, title, source, metadata, deleted_at is not null as deleted from documents order by 1",
    "versions": """
        select d.external_id, v.number, v.sha256, v.title, v.source, v.media_type, v.text, v.notes, v.language::text,
               v.valid_from = '-infinity' as since_ever, v.valid_to = 'infinity' as until_now, v.superseded_at is null as counts
        from versions v join documents d on d.id = v.document_id order by 1, 2""",
    "spans": """
        select d.external_id, v.number, m.ordinal, m.span_start, m.span_end, m.paragraph, m.heading_path, m.page, c.sha256
        from version_chunks m join versions v on v.id = m.version_id join documents d on d.id = v.document_id
        join chunks c on c.id = m.chunk_id order by 1, 2, 3""",
    "chunks": """
        select d.external_id, c.sha256, c.context, c.text, c.term_count, isempty(c.live) as dead, e.space,
               e.embedding::text as embedding, encode(e.tokens, 'hex') as tokens
        from chunks c join documents d on d.id = c.document_id left join vectors e on e.chunk_id = c.id order by 1, 2""",
    "postings": """
        select t.term, t.document_count, d.external_id, c.sha256, p.frequency, p.length
        from postings p join terms t on t.id = p.term_id join chunks c on c.id = p.chunk_id
        join documents d on d.id = c.document_id order by 1, 3, 4""",
    "terms": "select term, document_count, max_frequency from terms order by 1",
    "collections": "select name, embedding_space, chunk_count, term_count, languages::text from collections order by 1",
    "orphans": """
        select (select count(*) from chunks c where not exists (select from version_chunks m where m.chunk_id = c.id)),
               (select count(*) from postings p where not exists (select from terms t where t.id = p.term_id)),
               (select count(*) from vectors e where not exists (select from chunks c where c.id = e.chunk_id)),
               (select count(*) from versions v where not exists (select from version_chunks m where m.version_id = v.id))""",
}
FAILPOINTS = [
    "job-taken", "parsed", "loaded", "split", "embedded", "locked", "version-inserted", "chunks-inserted", "vectors-inserted",
    "postings-inserted", "live", "before-commit", "after-commit", "job-ack", "job-acked",
    "embedded:2", "before-commit:2", "after-commit:2",
]  # fmt: skip
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "0"))


@pytest.fixture(scope="module")
def docs() -> Iterator[Path]:
    """The one folder that every job reads: its path is stored as the documents' source."""
    with tempfile.TemporaryDirectory(prefix="orch-docs-") as folder:
        yield Path(folder)


def fill(path: Path, sentence: str, rows: int) -> None:
    shutil.rmtree(path)
    path.mkdir()
    filler = "More words that fill the page and make chunks of it. " * 12
    (path / "leave.md").write_text(
        f"# Leave\n\n{sentence} {filler}\n\n## Sick\n\n{filler}\n\n## Parents\n\n{sentence} {filler}"
    )
    (path / "dated.md").write_text("---\nid: leave-dated\nvalid_from: 2025-01-01\n---\nDated text.")
    (path / "urlaub.md").write_text("Der Urlaub beträgt dreißig Tage im Jahr und wird von der Leitung genehmigt.")
    lines = [json.dumps({"id": f"r{n}", "text": f"Row {n} of the table."}) for n in range(rows)]
    (path / "rows.jsonl").write_text("\n".join(lines))


STEPS: list[tuple[str, int]] = [("Thirty days of leave.", 3), ("Thirty-one days.", 5)]


class Forks:
    """Runs workers that can be killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, url: str, failpoint: str | None = None, seconds: float = 0) -> int:
        """Exit status of a worker that works until no job is open."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([url, failpoint, seconds]).encode() + b"\n")
        return int(await self._process.stdout.readline())


@asynccontextmanager
async def open_forks() -> AsyncIterator[Forks]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]])}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKS, stdin=pipe, stdout=pipe, env=environment
    )
    try:
        yield Forks(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@pytest_asyncio.fixture
async def forks() -> AsyncIterator[Forks]:
    """A process that forks workers."""
    async with open_forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def uninterrupted(new_database: Callable[..., AbstractContextManager[str]], docs: Path) -> list[Dump]:
    """The contents after each of the two steps when nothing dies."""

    async def run() -> list[Dump]:
        dumps = []
        async with open_forks() as forks:
            with new_database() as url:
                for step in STEPS:
                    fill(docs, *step)
                    await enqueue(url, docs)
                    assert await forks.run(url) == 0
                    dumps.append(await dump(url))
        return dumps

    return asyncio.run(run())


async def enqueue(url: str, docs: Path) -> str:
    async with Database.open(url, 1) as database:
        return (await Jobs(database).enqueue_ingest([docs], collection="c")).id


async def dump(url: str) -> Dump:
    async with Database.open(url, 1) as opened:
        database = opened.of("default")
        return {name: [tuple(row) for row in await database.fetch(query)] for name, query in DUMP.items()}


class Reader:
    """Searches all the time; remembers each set of passages of one document that it was shown."""

    def __init__(self, store: PgStore) -> None:
        self._store = store
        self.seen: set[tuple[str, int, tuple[str, ...]]] = set()
        self.searches = 0

    async def read(self) -> None:
        """Searches until it is cancelled."""
        request = SearchRequest(
            "more words that fill the page thirty days leave", (), collection="c", k=50, mode="lexical"
        )
        while True:
            try:
                passages = await self._store.search(request)
            except Exception:  # no such collection yet
                await asyncio.sleep(0.02)
                continue
            self.searches += 1
            texts: dict[tuple[str, int], list[str]] = {}
            for passage in passages:
                texts.setdefault((passage.external_id, passage.version), []).append(passage.text)
            versions = [name for name, _ in texts]
            assert len(versions) == len(set(versions)), "two versions of one document at once"
            self.seen |= {(name, version, tuple(sorted(found))) for (name, version), found in texts.items()}
            await asyncio.sleep(0.005)


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[Reader]:
    async with Database.open(url, 1) as database:
        reader = Reader(PgStore(database))
        task = asyncio.create_task(reader.read())
        yield reader
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def whole_versions(dumps: list[Dump]) -> set[tuple[str, int, int]]:
    """Document, version and number of different chunks, as every reader must find them."""
    spans = {row[:2]: set[object]() for dump in dumps for row in dump["spans"]}
    for dump_ in dumps:
        for row in dump_["spans"]:
            spans[row[:2]].add(row[8])
    return {(str(name), int(str(number)), len(chunks)) for (name, number), chunks in spans.items()}


def test_the_dump_sees_a_difference(uninterrupted: list[Dump]) -> None:
    first, second = uninterrupted
    assert first["orphans"] == second["orphans"] == [(0, 0, 0, 0)]
    assert [name for name in DUMP if first[name] != second[name]] == [name for name in DUMP if name != "orphans"]
    assert len(second["versions"]) == 9
    assert all(row[-1] for row in second["chunks"]), "token vectors"


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_a_killed_workers_job_ends_as_if_it_had_never_died(
    database_url: str, docs: Path, forks: Forks, uninterrupted: list[Dump], failpoint: str
) -> None:
    deadly = {0, 1} if ROUNDS else {FAILPOINTS.index(failpoint) % 2}
    async with reading(database_url) as reader:
        for number, (step, expected) in enumerate(zip(STEPS, uninterrupted, strict=True)):
            fill(docs, *step)
            job_id = await enqueue(database_url, docs)
            if number in deadly:
                assert await forks.run(database_url, failpoint) == -signal.SIGKILL
            assert await forks.run(database_url) == 0
            assert await dump(database_url) == expected
            await assert_done(database_url, job_id)
    assert reader.searches > 5
    shown = {(name, version, len(texts)) for name, version, texts in reader.seen if name == "leave.md"}
    assert shown <= whole_versions(uninterrupted)


async def assert_done(url: str, job_id: str) -> None:
    async with Database.open(url, 1) as database:
        job = await Jobs(database).show(job_id)
    assert (job.state, job.error, job.letters) == ("done", None, 0)


@pytest.mark.parametrize("seed", range(2 + ROUNDS))
async def test_a_worker_may_die_at_any_moment(
    database_url: str, docs: Path, forks: Forks, uninterrupted: list[Dump], seed: int
) -> None:
    chance = random.Random(seed)
    for step, expected in zip(STEPS, uninterrupted, strict=True):
        fill(docs, *step)
        job_id = await enqueue(database_url, docs)
        for _ in range(2):
            await forks.run(database_url, None, chance.uniform(0.02, 0.5))
        assert await forks.run(database_url) == 0
        assert await dump(database_url) == expected
        await assert_done(database_url, job_id)


async def test_a_document_that_kills_workers_is_set_apart_and_the_queue_goes_on(
    database_url: str, docs: Path, forks: Forks
) -> None:
    """Its batch dies with it, then it dies alone, twice; the fourth worker does not touch it any more."""
    fill(docs, *STEPS[0])
    (docs / "killer.md").write_text("# K\n\nThis text crashes the embedder.")
    job_id = await enqueue(database_url, docs)
    async with Database.open(database_url, 1) as database:
        jobs = Jobs(database)
        second = await jobs.enqueue_ingest([docs / "leave.md"], collection="other")

        assert [await forks.run(database_url) for _ in range(4)] == [*[-signal.SIGKILL] * 3, 0]

        job = await jobs.show(job_id)
        assert (job.state, job.attempts, (await jobs.show(second.id)).state) == ("done", 4, "done")
        (letter,) = await jobs.letters(job_id)
        assert (Path(letter.source).name, letter.attempts) == ("killer.md", 3)
        assert "workers died" in letter.reason
        listed = [document.external_id for document in await PgStore(database).list_documents("c")]
        assert listed == ["leave-dated", "leave.md", "r0", "r1", "r2", "urlaub.md"]


@pytest_asyncio.fixture
async def own_postgres() -> AsyncIterator[tuple[Path, str]]:
    """A server of this test's own, which may be killed; fsync is on."""
    with tempfile.TemporaryDirectory(prefix="orch-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        url = await asyncio.to_thread(postgres.start, home)
        async with Database.open(url, 1) as database:
            await migrate(database)
        yield home, url
        await asyncio.to_thread(postgres.stop, home)


def kill_tree(home: Path) -> None:
    """``kill -9`` of the postmaster and everything that it started, at once."""
    pid = int((home / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    postmaster = psutil.Process(pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.kill()
    children.wait_gone(processes, 20)


async def ingest_here(url: str, docs: Path) -> None:
    async with Database.open(url, 3) as database:
        report = await ingest([docs], store=PgStore(database), embedder=HashEmbedder(), collection="c")
        assert report.failures == ()


async def test_killing_all_of_postgresql_loses_and_doubles_nothing(
    own_postgres: tuple[Path, str], database_url: str, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, url = own_postgres
    monkeypatch.setattr("orchestrator.knowledge.ingest.BATCH_DOCUMENTS", 2)
    due: list[str] = []

    def die(name: str) -> None:
        if name in due:
            due.remove(name)
            kill_tree(home)

    monkeypatch.setattr(write, "failpoint", die)
    for step, points in zip(STEPS, (("before-commit",), ("vectors-inserted", "after-commit")), strict=True):
        fill(docs, *step)
        for point in points:
            due.append(point)
            with pytest.raises(DatabaseError):
                await ingest_here(url, docs)
            assert due == [], "it was not reached"
            url = await asyncio.to_thread(postgres.start, home)
        await ingest_here(url, docs)
        await ingest_here(database_url, docs)
        assert await dump(url) == await dump(database_url)
