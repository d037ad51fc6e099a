"""Jobs: asked for once, taken over when a worker dies, worked off although files and embedders misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.database import Database
from orchestrator.errors import ConflictError, DatabaseError, EngineUnavailableError, InputError, UnknownNameError
from orchestrator.knowledge import jobs as jobs_module
from orchestrator.knowledge.ingest import IngestEvent
from orchestrator.knowledge.jobs import Job, Jobs, work
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder


@pytest.fixture
def jobs(database: Database) -> Jobs:
    """The jobs of the default tenant."""
    return Jobs(database)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good files and one that is no text."""
    (tmp_path / "a.md").write_text("# A\n\nThirty days of leave.")
    (tmp_path / "b.md").write_text("# B\n\nTrains are preferred.")
    (tmp_path / "junk.txt").write_bytes(bytes(range(256)) * 9)
    return tmp_path


async def ended(jobs: Jobs, store: PgStore, embedder: HashEmbedder, job: Job) -> Job:
    await work(jobs, store, embedder)
    return await jobs.show(job.id)


async def expire_leases(database: Database) -> None:
    await database.fetch(
        "update jobs set lease_until = now() - interval '1 second' where state = 'running' returning id"
    )


async def end_waits(database: Database) -> None:
    await database.fetch("update jobs set run_after = now() where state = 'failed' returning id")


async def test_a_job_is_worked_off_and_says_what_it_left_out(
    jobs: Jobs, store: PgStore, embedder: HashEmbedder, folder: Path
) -> None:
    queued = await jobs.enqueue_ingest([folder], collection="c")
    assert (queued.state, queued.attempts) == ("queued", 0)

    done = await ended(jobs, store, embedder, queued)

    assert (done.state, done.attempts, done.error, done.leased_by) == ("done", 1, None, None)
    assert (done.progress["added"], done.progress["failed"]) == (2, 1)
    assert done.progress["read_bytes"] == done.progress["total_bytes"] > 0
    (letter,) = await jobs.letters(done.id)
    assert (Path(letter.source).name, letter.line) == ("junk.txt", None)
    assert "binary" in letter.reason
    assert [d.external_id for d in await store.list_documents("c")] == ["a.md", "b.md"]


async def test_options_travel_with_the_job(jobs: Jobs, store: PgStore, embedder: HashEmbedder, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"number": 7, "text": "Ein Satz.", "id": "x"}))
    since = datetime(2025, 1, 1, tzinfo=UTC)
    job = await jobs.enqueue_ingest([tmp_path], collection="c", valid_from=since, id_from="number", language="german")
    assert (await ended(jobs, store, embedder, job)).state == "done"
    (document,) = await store.list_documents("c")
    assert (document.external_id, document.valid_from) == ("7", since)
    assert (await store.stats("c")).language == "german"


async def test_a_key_is_one_job(jobs: Jobs, folder: Path, database: Database) -> None:
    first = await jobs.enqueue_ingest([folder], collection="c", key="k")
    replays = await asyncio.gather(*(jobs.enqueue_ingest([folder], collection="c", key="k") for _ in range(3)))
    assert {job.id for job in replays} == {first.id}
    with pytest.raises(ConflictError, match="another request") as caught:
        await jobs.enqueue_ingest([folder], collection="other", key="k")
    assert caught.value.http_status == 409
    assert len(await jobs.find()) == 1
    assert (await jobs.enqueue_ingest([folder], collection="c")).id != first.id


async def test_a_replay_after_the_job_has_ended_is_still_that_job(
    jobs: Jobs, store: PgStore, embedder: HashEmbedder, folder: Path
) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c", key="k")
    await work(jobs, store, embedder)
    again = await jobs.enqueue_ingest([folder], collection="c", key="k")
    assert (again.id, again.state) == (job.id, "done")
    assert await work(jobs, store, embedder) == 0


async def test_tenants_do_not_see_each_others_jobs(jobs: Jobs, database: Database, folder: Path) -> None:
    async with database.ownership() as connection:
        await connection.execute("insert into tenants (name) values ('other')")
    job = await jobs.enqueue_ingest([folder], collection="c", key="k")
    other = Jobs(database, "other")
    assert await other.find() == []
    assert await other.take("w") is None
    with pytest.raises(UnknownNameError):
        await other.show(job.id)
    assert (await other.enqueue_ingest([folder], collection="d", key="k")).id != job.id


async def test_two_workers_never_hold_one_job(jobs: Jobs, folder: Path) -> None:
    for _ in range(5):
        await jobs.enqueue_ingest([folder], collection="c")
    held = await asyncio.gather(*(jobs.take(f"w{n}") for n in range(8)))
    taken = [one.row.id for one in held if one]
    assert len(taken) == len(set(taken)) == 5


async def test_a_dead_workers_job_is_taken_over_and_nothing_is_done_twice(
    jobs: Jobs, store: PgStore, embedder: HashEmbedder, folder: Path, database: Database
) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c")
    assert await jobs.take("dead") is not None
    assert await work(jobs, store, embedder) == 0, "the lease still holds"
    await expire_leases(database)
    done = await ended(jobs, store, embedder, job)
    assert (done.state, done.attempts, done.progress["added"]) == ("done", 2, 2)


async def test_a_worker_that_lost_its_lease_cannot_end_the_job(jobs: Jobs, folder: Path, database: Database) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c")
    slow = await jobs.take("slow")
    await expire_leases(database)
    quick = await jobs.take("quick")
    assert slow is not None
    assert quick is not None
    with pytest.raises(jobs_module.LeaseLost):
        await slow.leave("done")
    assert (await jobs.show(job.id)).leased_by == "quick"


class Gated(HashEmbedder):
    """Waits for a permission before it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.may_go = asyncio.Event()

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.reached.set()
        await self.may_go.wait()
        return await super().embed(texts)


async def test_the_lease_is_renewed_while_the_work_lasts(
    jobs: Jobs, store: PgStore, folder: Path, database: Database
) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c")
    embedder = Gated()
    working = asyncio.create_task(work(jobs, store, embedder, lease_s=0.6))
    await embedder.reached.wait()
    first = (await jobs.show(job.id)).lease_until
    for _ in range(500):
        now = await jobs.show(job.id)
        if now.lease_until != first:
            break
        await asyncio.sleep(0.02)
    assert first is not None
    assert now.lease_until is not None
    assert now.lease_until > first
    assert await jobs.take("thief") is None
    embedder.may_go.set()
    assert await working == 1
    assert (await jobs.show(job.id)).state == "done"


async def test_a_cancelled_job_stops_its_worker(jobs: Jobs, store: PgStore, folder: Path) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c")
    working = asyncio.create_task(work(jobs, store, embedder := Gated(), lease_s=0.3))
    await embedder.reached.wait()
    assert (await jobs.cancel(job.id)).state == "cancelled"
    assert await working == 1
    assert (await jobs.show(job.id)).state == "cancelled"
    assert await store.list_documents("c") == []
    with pytest.raises(InputError, match="cancelled already"):
        await jobs.cancel(job.id)


async def test_a_worker_that_is_stopped_gives_the_job_back(
    jobs: Jobs, store: PgStore, embedder: HashEmbedder, folder: Path
) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c")
    working = asyncio.create_task(work(jobs, store, gated := Gated()))
    await gated.reached.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert (await jobs.show(job.id)).state == "queued"
    assert (await ended(jobs, store, embedder, job)).state == "done"


class Flaky(HashEmbedder):
    """Is down for the first calls."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.left = failures

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.left -= 1
        if self.left >= 0:
            raise EngineUnavailableError("the embeddings server is down")
        return await super().embed(texts)


async def test_a_job_waits_for_an_embedder_that_is_down(
    jobs: Jobs, store: PgStore, folder: Path, database: Database
) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c")
    embedder = Flaky(4)  # twice a batch and the probe
    failed = await ended(jobs, store, embedder, job)
    assert (failed.state, failed.error) == ("failed", "the embeddings server is down")
    assert failed.run_after > failed.created_at
    await end_waits(database)
    assert (await ended(jobs, store, embedder, job)).state == "failed"
    await end_waits(database)
    done = await ended(jobs, store, embedder, job)
    assert (done.state, done.attempts, done.error) == ("done", 3, None)


async def test_a_job_that_never_gets_further_is_dead_until_it_is_retried(
    jobs: Jobs, store: PgStore, folder: Path, database: Database
) -> None:
    job = await jobs.enqueue_ingest([folder / "a.md"], collection="c")
    embedder = Flaky(1000)
    for _ in range(jobs_module.MAX_STALLS):
        await end_waits(database)
        await work(jobs, store, embedder)
    dead = await jobs.show(job.id)
    assert (dead.state, dead.attempts) == ("dead", jobs_module.MAX_STALLS)
    embedder.left = 0
    assert await work(jobs, store, embedder) == 0
    assert (await jobs.retry(job.id)).state == "queued"
    assert (await ended(jobs, store, embedder, job)).state == "done"
    with pytest.raises(UnknownNameError, match="no job"):
        await jobs.retry("00000000-0000-0000-0000-000000000000")


async def test_wrong_input_is_dead_at_once(
    jobs: Jobs, store: PgStore, embedder: HashEmbedder, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        await jobs.enqueue_ingest([tmp_path / "nothing"], collection="c")
    gone = tmp_path / "gone.md"
    gone.write_text("text")
    job = await jobs.enqueue_ingest([gone], collection="c")
    gone.unlink()
    dead = await ended(jobs, store, embedder, job)
    assert dead.state == "dead"
    assert "no file or folder" in (dead.error or "")


async def test_progress_is_visible_while_the_job_runs(jobs: Jobs, store: PgStore, tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("One.")
    (tmp_path / "two.md").write_text("Two.")
    seen: list[tuple[str, IngestEvent]] = []
    job = await jobs.enqueue_ingest([tmp_path], collection="c")
    await work(jobs, store, HashEmbedder(), progress=lambda job_id, event: seen.append((job_id, event)))
    assert {job_id for job_id, _ in seen} == {job.id}
    assert [event.name for _, event in seen if event.status == "added"] == ["one.md", "two.md"]


async def test_a_job_that_was_asked_for_before_a_delete_does_not_bring_the_document_back(
    jobs: Jobs, store: PgStore, embedder: HashEmbedder, folder: Path, database: Database
) -> None:
    await ended(jobs, store, embedder, await jobs.enqueue_ingest([folder], collection="c"))
    late = await jobs.enqueue_ingest([folder], collection="c")
    await store.delete("c", "a.md")
    assert (await ended(jobs, store, embedder, late)).state == "done"
    assert [d.external_id for d in await store.list_documents("c")] == ["b.md"]
    await ended(jobs, store, embedder, await jobs.enqueue_ingest([folder], collection="c"))
    assert [d.external_id for d in await store.list_documents("c")] == ["a.md", "b.md"]


async def test_a_database_that_is_gone_leaves_the_job_to_its_lease(
    jobs: Jobs, store: PgStore, embedder: HashEmbedder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await jobs.enqueue_ingest([folder], collection="c")
    held = await jobs.take("w")
    assert held is not None

    async def down(*_: Any, **__: Any) -> None:
        raise DatabaseError("down")

    monkeypatch.setattr(type(held), "leave", down)
    await jobs_module._work_on(held, jobs_module._Tools(store, embedder, None, None))
    assert (await jobs.show(job.id)).state == "running"
