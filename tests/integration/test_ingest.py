"""Ingest into a real PostgreSQL: versions in time, shared chunks, deletes, counts, concurrency, bad input."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.database import Database
from orchestrator.errors import EngineUnavailableError, InputError, UnknownNameError
from orchestrator.knowledge.ingest import IngestEvent, IngestReport, ingest, ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

T2024, T2025, T2026 = (datetime(year, 1, 1, tzinfo=UTC) for year in (2024, 2025, 2026))
FILLER = "This sentence only fills the page so that paragraphs become chunks. " * 9

COUNTS = """
select coalesce((select count(*) from chunks where not isempty(live)), 0) as chunks,
       coalesce((select sum(term_count) from chunks where not isempty(live)), 0) as terms,
       coalesce((select json_object_agg(t.term, n.held) from terms t
                 join (select term_id, count(*) as held from postings p join chunks c on c.id = p.chunk_id
                       where not isempty(c.live) group by 1) n on n.term_id = t.id), '{}') as held,
       coalesce((select json_object_agg(term, document_count) from terms where document_count > 0), '{}') as counted,
       (select count(*) from vectors e join chunks c on c.id = e.chunk_id where not isempty(c.live)) as vectors,
       (select count(distinct p.chunk_id) from postings p join chunks c on c.id = p.chunk_id
        where not isempty(c.live)) as posted,
       (select sum(chunk_count) from collections) as chunk_count, (select sum(term_count) from collections) as term_count
"""


def document(text: str, valid_from: datetime | None = None, name: str = "leave", title: str = "Leave") -> Document:
    return Document(name, title, text, f"{name}.md", "text/markdown", valid_from=valid_from)


async def put(store: PgStore, embedder: HashEmbedder, *documents: Document) -> IngestReport:
    report = await ingest_documents(documents, store=store, embedder=embedder, collection="c")
    assert report.failures == ()
    return report


async def find(store: PgStore, text: str, as_of: datetime | None = None) -> list[str]:
    return [
        p.text for p in await store.search(SearchRequest(text, (), collection="c", k=10, as_of=as_of, mode="lexical"))
    ]


async def assert_counts_are_right(database: Database) -> None:
    row = await database.fetch_one(COUNTS)
    assert row is not None
    assert row.counted == row.held
    assert (row.chunks, row.chunks, row.chunks) == (row.vectors, row.posted, row.chunk_count)
    assert row.terms == row.term_count


async def test_folder_of_files(tmp_path: Path, store: PgStore, embedder: HashEmbedder, database: Database) -> None:
    (tmp_path / "hr").mkdir()
    (tmp_path / "hr" / "leave.md").write_text("---\nowner: HR\n---\n# Leave\n\nThirty days of leave.\n")
    (tmp_path / "travel.txt").write_text("Trains are preferred.")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "junk.txt").write_bytes(bytes(range(256)) * 9)
    rows = [json.dumps({"id": f"row{n}", "text": f"Row number {n}"}) for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:1], "{bad", *rows[1:]]))
    events: list[IngestEvent] = []

    report = await ingest([tmp_path], store=store, embedder=embedder, collection="c", progress=events.append)

    assert (report.added, report.updated, report.unchanged, report.skipped, report.failed) == (5, 0, 0, 1, 3)
    assert {Path(f.source).name: f.line for f in report.failures} == {
        "empty.md": None,
        "junk.txt": None,
        "rows.jsonl": 2,
    }
    listed = await store.list_documents("c")
    assert [d.external_id for d in listed] == ["hr/leave.md", "row0", "row1", "row2", "travel.txt"]
    assert (listed[0].title, listed[0].metadata) == ("Leave", {"owner": "HR"})
    assert [e.status for e in events if e.status not in ("embedding",)].count("added") == 5
    assert events[-1].read_bytes == events[-1].total_bytes > 0
    again = await ingest([tmp_path], store=store, embedder=embedder, collection="c")
    assert (again.added, again.updated, again.unchanged, again.failed) == (0, 0, 5, 3)
    await assert_counts_are_right(database)


async def test_small_documents_are_embedded_together(store: PgStore) -> None:
    calls: list[int] = []

    class Counting(HashEmbedder):
        async def embed(self, texts: Sequence[str]) -> list[list[float]]:
            calls.append(len(texts))
            return await super().embed(texts)

    await put(store, Counting(), *(document(f"Text number {n}", name=f"d{n}") for n in range(250)))
    assert calls == [250]


async def test_a_new_version_embeds_only_what_changed(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    old = f"# Leave\n\nThirty days. {FILLER}\n\n## Parents\n\nSixty days. {FILLER}\n\n## Sick\n\nCall us. {FILLER}\n"
    await put(store, embedder, document(old))
    embedder.texts.clear()

    report = await put(store, embedder, document(old.replace("Sixty", "Seventy")))

    assert (report.updated, report.chunks_new, report.chunks_shared) == (1, 1, 2)
    assert len(embedder.texts) == 1
    assert "Seventy" in embedder.texts[0]
    assert len(await find(store, "seventy")) == 1
    assert await find(store, "sixty") == []
    assert len(await find(store, "sixty", T2025)) == 1
    await assert_counts_are_right(database)


async def test_the_same_document_again_is_no_work(store: PgStore, embedder: HashEmbedder, database: Database) -> None:
    await put(store, embedder, document("Thirty days."))
    embedder.texts.clear()
    report = await put(store, embedder, document("Thirty days."))
    assert (report.unchanged, report.added, report.updated, embedder.texts) == (1, 0, 0, [])
    assert len(await store.history("c", "leave")) == 1


async def test_each_time_sees_its_own_version(store: PgStore, embedder: HashEmbedder, database: Database) -> None:
    await put(
        store, embedder, document("Twenty-nine days of leave.", T2026), document("Twenty-seven days of leave.", T2024)
    )
    await put(store, embedder, document("Twenty-eight days of leave.", T2025))

    async def at(year: int) -> list[str]:
        return await find(store, "leave", datetime(year, 6, 1, tzinfo=UTC))

    assert [await at(year) for year in (2023, 2024, 2025, 2027)] == [
        [],
        ["Twenty-seven days of leave."],
        ["Twenty-eight days of leave."],
        ["Twenty-nine days of leave."],
    ]
    passage = (await store.search(SearchRequest("leave", (), collection="c", k=1, as_of=T2025, mode="lexical")))[0]
    assert (passage.version, passage.valid_from, passage.valid_to) == (3, T2025, T2026)
    text = await store.get_version_text("c", "leave", as_of=T2024)
    assert (text.text, text.number) == ("Twenty-seven days of leave.", 2)
    await assert_counts_are_right(database)


async def test_a_shared_chunk_is_cited_from_the_version_of_its_time(store: PgStore, embedder: HashEmbedder) -> None:
    shared = f"## Sick leave\n\nCall the office. {FILLER}"
    await put(store, embedder, document(f"Old intro. {FILLER}\n\n{shared}", T2024))
    await put(store, embedder, document(f"New and longer intro. {FILLER}{FILLER}\n\n{shared}", T2025))
    (old,) = await store.search(SearchRequest("office", (), collection="c", k=1, as_of=T2024, mode="lexical"))
    (new,) = await store.search(SearchRequest("office", (), collection="c", k=1, as_of=T2025, mode="lexical"))
    assert old.chunk_id == new.chunk_id
    assert (old.version, new.version) == (1, 2)
    for passage in (old, new):
        original = await store.get_version_text("c", "leave", number=passage.version)
        assert original.text[slice(*passage.span)] == passage.text


async def test_a_correction_replaces_the_text_of_its_time(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days.", T2024), document("Forty days.", T2025))
    await put(store, embedder, document("Thirty-one days of paid leave.", T2024))
    assert await find(store, "days", T2024) == ["Thirty-one days of paid leave."]
    assert await find(store, "days") == ["Forty days."]
    history = await store.history("c", "leave")
    assert [v.superseded_at is None for v in history] == [False, True, True]
    await assert_counts_are_right(database)


async def test_a_deleted_document_is_never_found_again(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days.", T2024), document("Forty days."), document("Dogs.", name="pets"))
    await store.delete("c", "leave")

    vector = (await embedder.embed(["days"]))[0]
    for moment in (None, T2024, T2025, T2026):
        passages = await store.search(SearchRequest("days thirty forty", vector, collection="c", k=10, as_of=moment))
        assert {p.external_id for p in passages} <= {"pets"}
    assert len(await store.history("c", "leave")) == 2
    assert [d.external_id for d in await store.list_documents("c")] == ["pets"]
    assert [d.external_id for d in await store.list_documents("c", deleted=True)] == ["leave", "pets"]
    await assert_counts_are_right(database)
    with pytest.raises(UnknownNameError, match="no such document"):
        await store.delete("c", "leave")


async def test_a_document_lives_again_when_it_is_ingested_after_its_delete(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days."))
    await store.delete("c", "leave")
    report = await put(store, embedder, document("Thirty days."))
    assert report.added == 1
    assert await find(store, "thirty") == ["Thirty days."]
    assert [v.number for v in await store.history("c", "leave")] == [1, 2]
    await assert_counts_are_right(database)


async def test_an_erased_document_leaves_nothing(store: PgStore, embedder: HashEmbedder, database: Database) -> None:
    await put(store, embedder, document("Thirty days."), document("Dogs.", name="pets"))
    await store.erase("c", "leave")
    with pytest.raises(UnknownNameError):
        await store.history("c", "leave")
    await assert_counts_are_right(database)
    row = await database.fetch_one("select count(*) as n from versions where text like '%%Thirty%%'")
    assert row is not None
    assert row.n == 0


async def test_new_metadata_is_kept_without_a_new_version(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, Document("d", "T", "Text.", "f", metadata={"a": 1}))
    await put(store, embedder, Document("d", "T", "Text.", "f", metadata={"a": 2}))
    assert (await store.list_documents("c"))[0].metadata == {"a": 2}
    assert len(await store.history("c", "d")) == 1


async def test_equal_paragraphs_of_one_document_share_a_chunk(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    text = "\n\n".join([f"Same words. {FILLER}", f"Other words. {FILLER}", f"Same words. {FILLER}"])
    await put(store, embedder, Document("d", "T", text, "f"))
    row = await database.fetch_one(
        "select (select count(*) from chunks) as chunks, (select count(*) from version_chunks) as spans"
    )
    assert tuple(row or ()) == (2, 3)
    await assert_counts_are_right(database)


async def test_writers_of_one_document_converge_to_one_live_version(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    texts = ["Version A of the text."] * 12 + ["Version B of the text."] * 4

    reports = await asyncio.gather(*(put(store, embedder, document(text)) for text in texts))

    assert sum(r.added for r in reports) == 1
    rows = await database.fetch(
        "select count(*) as n from versions where superseded_at is null and valid_to = 'infinity'"
    )
    assert rows[0].n == 1
    assert len(await find(store, "version")) == 1
    await assert_counts_are_right(database)


async def test_writers_of_many_documents_keep_the_counts_right(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    async def work(worker: int) -> None:
        for step in range(6):
            await put(
                store, embedder, document(f"Words {step} shared by all, and {worker * step}.", name=f"d{worker % 4}")
            )
            if step % 3 == 2:
                try:
                    await store.delete("c", f"d{worker % 4}")
                except UnknownNameError:
                    continue  # another worker was faster

    await asyncio.gather(*(work(worker) for worker in range(8)))
    await assert_counts_are_right(database)


async def test_readers_see_the_old_or_the_new_version_never_both(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("Version 0 of the rule."))
    seen: list[int] = []

    async def read() -> None:
        while len(seen) < 60:
            seen.append(len(await find(store, "rule")))
            await asyncio.sleep(0)

    reader = asyncio.create_task(read())
    for number in range(1, 12):
        await put(store, embedder, document(f"Version {number} of the rule."))
    await reader
    assert set(seen) == {1}


class BadEmbedder(HashEmbedder):
    """Gives what a broken server gives for texts that hold ``poison``."""

    def __init__(self, vector: list[float]) -> None:
        super().__init__()
        self._bad = vector

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._bad if "poison" in text else self._vector(text) for text in texts]


@pytest.mark.parametrize("vector", [[math.nan] * 64, [0.0] * 64, [math.inf] + [0.0] * 63, [1.0] * 63, []])
async def test_a_bad_vector_is_never_stored_and_its_neighbours_are(
    store: PgStore, database: Database, vector: list[float]
) -> None:
    documents = [document(f"Text {n}", name=f"d{n}") for n in range(9)] + [document("poison", name="bad")]
    report = await ingest_documents(documents, store=store, embedder=BadEmbedder(vector), collection="c")
    assert (report.added, report.failed) == (9, 1)
    assert "embed" in report.failures[0].reason
    await assert_counts_are_right(database)


async def test_a_dead_embedder_stops_the_ingest(store: PgStore) -> None:
    class Dead(HashEmbedder):
        async def embed(self, texts: Sequence[str]) -> list[list[float]]:
            raise EngineUnavailableError("the embeddings server is down")

    with pytest.raises(EngineUnavailableError):
        await ingest_documents([document("x")], store=store, embedder=Dead(), collection="c")


async def test_a_single_line_of_megabytes(tmp_path: Path, store: PgStore, embedder: HashEmbedder) -> None:
    (tmp_path / "long.txt").write_text("word " * 400_000 + "zebra")
    report = await ingest([tmp_path], store=store, embedder=embedder, collection="c")
    assert (report.added, report.failures) == (1, ())
    assert (await find(store, "zebra"))[0].endswith("zebra")


async def test_text_that_postgres_cannot_hold_is_cleaned(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, Document("d", "T", "a\0b\ud800c\r\nd", "f"))
    text = await store.get_version_text("c", "d")
    assert text.text == "ab\ufffdc\nd"
    assert len((await store.history("c", "d"))[0].notes) == 2


async def test_no_such_path(store: PgStore, embedder: HashEmbedder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        await ingest([tmp_path / "nothing"], store=store, embedder=embedder, collection="c")


async def test_stats(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("Thirty days.", T2024), document("Forty days."), document("Dogs.", name="pets"))
    stats = await store.stats("c")
    assert (stats.document_count, stats.version_count, stats.chunk_count) == (2, 3, 3)
    assert stats.embedding_space == embedder.space
