"""Many at once on the same documents: one version per text, and what was deleted is never seen again (rows E7, E8).

``RACE_ROUNDS`` scales the number of transactions of each client.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.database import Database
from orchestrator.errors import UnknownNameError
from orchestrator.knowledge.ingest import IngestReport, ingest_documents
from orchestrator.knowledge.jobs import Jobs, work
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

ROUNDS = int(os.environ.get("RACE_ROUNDS", "40"))
CLIENTS = 5
NAMES = ("leave", "travel", "pets")


async def put(store: PgStore, name: str, text: str) -> IngestReport:
    document = Document(name, name.title(), text, f"{name}.md")
    report = await ingest_documents([document], store=store, embedder=HashEmbedder(), collection="c")
    assert report.failures == ()
    return report


@pytest.mark.parametrize("seed", range(2))
async def test_forty_writers_of_one_document_make_one_version_of_each_text(
    store: PgStore, database: Database, seed: int
) -> None:
    await put(store, "leave", "The text before them all.")
    texts = ["Version A of the text."] * 32 + ["Version B of the text."] * 8
    random.Random(seed).shuffle(texts)
    began = asyncio.Event()

    async def write(text: str) -> IngestReport:
        await began.wait()
        return await put(store, "leave", text)

    writers = [asyncio.create_task(write(text)) for text in texts]
    began.set()
    reports = await asyncio.gather(*writers)

    rows = await database.fetch("select text, superseded_at from versions order by number")
    assert sorted(row.text for row in rows[1:]) == ["Version A of the text.", "Version B of the text."]
    assert [row.superseded_at for row in rows] == [None] * 3
    live = await database.fetch("select text from versions where superseded_at is null and valid_to = 'infinity'")
    assert [row.text for row in live] == [rows[-1].text]
    assert sum(report.updated for report in reports) == 2
    found = await store.search(SearchRequest("version text", (), collection="c", k=10, mode="lexical"))
    assert [passage.text for passage in found] == [live[0].text]


async def test_replayed_requests_of_many_clients_are_one_job_each(
    store: PgStore, database: Database, tmp_path: Path
) -> None:
    jobs = Jobs(database)
    for number in range(8):
        (tmp_path / f"d{number}.md").write_text(f"Document number {number}.")

    async def ask(number: int) -> str:
        return (await jobs.enqueue_ingest([tmp_path / f"d{number}.md"], collection="c", key=f"key {number}")).id

    asked = await asyncio.gather(*(ask(number % 8) for number in range(32)))

    assert len(set(asked)) == len(await jobs.find()) == 8
    assert [asked[number] for number in range(8)] * 4 == list(asked)
    workers = await asyncio.gather(*(work(jobs, store, HashEmbedder()) for _ in range(3)))
    assert sum(workers) == 8
    assert {job.state for job in await jobs.find()} == {"done"}
    rows = await database.fetch("select count(*) as n from versions")
    assert rows[0].n == 8


@dataclass
class History:
    """What the clients did. A text holds one word of its own."""

    stored: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in NAMES})
    deleted: set[str] = field(default_factory=set)  # words whose delete was acknowledged
    queries: int = 0
    deletes: int = 0


class Client:
    """One of several that ingest, delete and search the same documents."""

    def __init__(self, number: int, store: PgStore, history: History) -> None:
        self._number = number
        self._store = store
        self._history = history
        self._chance = random.Random(number)

    async def run(self) -> None:
        """Does its transactions."""
        for step in range(ROUNDS):
            name = self._chance.choice(NAMES)
            act = self._chance.choices((self.ingest, self.delete, self.query), (3, 2, 5))[0]
            await act(name, f"word{self._number}x{step}")

    async def ingest(self, name: str, word: str) -> None:
        await put(self._store, name, f"Rule {word} of the house.")
        self._history.stored[name].add(word)

    async def delete(self, name: str, _: str) -> None:
        """What was acknowledged before the delete was asked for must never be seen after its acknowledgement."""
        gone = set(self._history.stored[name])
        try:
            await self._store.delete("c", name)
        except UnknownNameError:
            return
        self._history.deleted |= gone
        self._history.deletes += 1

    async def query(self, name: str, _: str) -> None:
        forbidden = set(self._history.deleted)
        request = SearchRequest("rule of the house", (), collection="c", k=50, mode="lexical")
        found = await self._store.search(request)
        self._history.queries += 1
        assert not {word for passage in found for word in passage.text.split()} & forbidden
        names = [passage.external_id for passage in found]
        assert len(names) == len(set(names)), "two versions at once"


async def test_what_was_deleted_is_never_found_again(store: PgStore, database: Database) -> None:
    history = History()
    for name in NAMES:
        await put(store, name, f"Rule first{name} of the house.")
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(Client(number, store, history).run())
    assert history.queries > ROUNDS
    assert history.deletes > ROUNDS / 10
    await Client(9, store, history).query("", "")
    rows = await database.fetch(
        "select count(*) as n from documents d join versions v on v.document_id = d.id "
        "where d.deleted_at is not null and v.superseded_at is null"
    )
    assert rows[0].n == 0


class Slow(HashEmbedder):
    """Embeds when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.may_go = asyncio.Event()

    async def embed(self, texts: object) -> list[list[float]]:
        self.reached.set()
        await self.may_go.wait()
        return await super().embed(texts)  # type: ignore[arg-type]


async def test_an_ingest_on_its_way_does_not_bring_back_what_is_deleted_meanwhile(store: PgStore) -> None:
    await put(store, "leave", "Rule one of the house.")
    text = "Rule two of the house."
    slow = Slow()
    document = Document("leave", "Leave", text, "leave.md")
    late = asyncio.create_task(ingest_documents([document], store=store, embedder=slow, collection="c"))
    await slow.reached.wait()
    await store.delete("c", "leave")
    slow.may_go.set()
    report = await late
    assert (report.added, report.updated, report.unchanged) == (0, 0, 1)
    assert await store.list_documents("c") == []
    assert (await put(store, "leave", text)).added == 1
