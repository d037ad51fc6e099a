"""A folder as the source of truth, with a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.database import Database
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.ingest import ingest, ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.sync import Rename, SyncPlan, SyncReport, sync
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

T2024, T2025, T2026 = (datetime(year, 1, 1, tzinfo=UTC) for year in (2024, 2025, 2026))
LONG = "\n\n".join(f"Paragraph {n} says what nobody else says, at some length." for n in range(9))


class Synced:
    """A folder and the collection that follows it."""

    def __init__(self, folder: Path, store: PgStore, embedder: HashEmbedder) -> None:
        self.folder, self.store, self.embedder = folder, store, embedder
        self.asked: list[SyncPlan] = []

    def write(self, **files: str) -> None:
        self.folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (self.folder / f"{name}.md").write_text(text)

    async def run(self, *, answer: bool = False, **options: object) -> SyncReport:
        def confirm(plan: SyncPlan) -> bool:
            self.asked.append(plan)
            return answer

        return await sync(
            self.folder,
            store=self.store,
            embedder=self.embedder,
            collection="c",
            confirm=confirm,
            **options,  # type: ignore[arg-type]
        )

    async def names(self) -> list[str]:
        return [one.external_id for one in await self.store.list_documents("c")]

    async def find(self, text: str, as_of: datetime | None = None) -> list[str]:
        request = SearchRequest(text, (), collection="c", as_of=as_of, mode="lexical")
        return [passage.external_id for passage in await self.store.search(request)]


@pytest.fixture
def synced(tmp_path: Path, store: PgStore, embedder: HashEmbedder) -> Synced:
    return Synced(tmp_path / "handbook", store, embedder)


async def test_a_file_that_is_gone_is_retired_and_not_deleted(synced: Synced) -> None:
    synced.write(leave="Thirty days of leave.", pets="Dogs may come.")
    await synced.run(valid_from=T2024)
    (synced.folder / "pets.md").unlink()

    report = await synced.run(valid_from=T2026)

    assert (report.retired, report.renamed, report.ingest.added) == (("pets.md",), (), 0)
    assert await synced.names() == ["leave.md"]
    assert await synced.find("dogs", T2025) == ["pets.md"]
    assert [await synced.find("dogs", moment) for moment in (T2026, None)] == [[], []]
    assert (await synced.run(valid_from=T2026)).retired == ()


async def test_a_file_that_comes_back_begins_anew(synced: Synced, embedder: HashEmbedder) -> None:
    synced.write(pets="Dogs may come.", leave="---\nvalid_from: 2024-01-01\n---\nThirty days.")
    await synced.run()
    texts = {path: path.read_text() for path in synced.folder.iterdir()}
    for path in texts:
        path.unlink()
    synced.write(other="Something.")
    assert (await synced.run()).retired == ("leave.md", "pets.md")
    for path, text in texts.items():
        path.write_text(text)
    embedder.texts.clear()

    report = await synced.run()

    assert report.restored == ("leave.md",)
    assert embedder.texts == []
    assert await synced.names() == ["leave.md", "other.md", "pets.md"]


async def test_a_renamed_file_keeps_its_identity(synced: Synced, embedder: HashEmbedder) -> None:
    synced.write(leave=f"# Leave\n\n{LONG}", pets="Dogs may come.")
    await synced.run()
    before = {one.external_id: one.document_id for one in await synced.store.list_documents("c")}
    (synced.folder / "leave.md").rename(synced.folder / "holidays.md")
    synced.write(holidays=f"# Leave\n\n{LONG.replace('Paragraph 3', 'Section 3')}")
    embedder.texts.clear()

    report = await synced.run()

    assert (report.renamed, report.retired, report.ingest.updated) == ((Rename("leave.md", "holidays.md"),), (), 1)
    after = {one.external_id: one.document_id for one in await synced.store.list_documents("c")}
    assert after == {"holidays.md": before["leave.md"], "pets.md": before["pets.md"]}
    assert len(await synced.store.history("c", "holidays.md")) == 2
    with pytest.raises(UnknownNameError, match=r"called 'holidays.md' now"):
        await synced.store.history("c", "leave.md")


async def test_many_files_gone_are_asked_about_first(synced: Synced) -> None:
    synced.write(**{f"d{n}": f"Text number {n}." for n in range(10)})
    await synced.run()
    for n in range(5):
        (synced.folder / f"d{n}.md").unlink()
    synced.write(new="Something new.")

    with pytest.raises(InputError, match=r"5 of the 10 documents .* nothing was changed.*--yes"):
        await synced.run()

    assert len(await synced.names()) == 10
    assert len(synced.asked[0].retired) == 5
    assert len((await synced.run(answer=True)).retired) == 5
    assert len(await synced.names()) == 6


async def test_documents_from_elsewhere_are_never_touched(
    synced: Synced, tmp_path: Path, store: PgStore, embedder: HashEmbedder
) -> None:
    other = tmp_path / "handbook-of-others"
    other.mkdir()
    (other / "rules.md").write_text("Rules of others.")
    await ingest([other], store=store, embedder=embedder, collection="c")
    await ingest_documents([Document("api", "", "From a program.", "")], store=store, embedder=embedder, collection="c")
    third = Synced(tmp_path / "third", store, embedder)
    third.write(third="Text of the third folder.")
    await third.run()
    synced.write(leave="Thirty days.")

    report = await synced.run(answer=True)

    assert report.retired == ()
    assert await synced.names() == ["api", "leave.md", "rules.md", "third.md"]


async def test_two_folders_do_not_take_each_others_documents(
    synced: Synced, tmp_path: Path, store: PgStore, embedder: HashEmbedder
) -> None:
    other = Synced(tmp_path / "other", store, embedder)
    other.write(leave="Thirty days.")
    await other.run()
    synced.write(leave="Forty days.")

    report = await synced.run()

    assert "is stated by the folder" in report.ingest.failures[0].reason
    assert await synced.find("thirty") == ["leave.md"]
    assert await synced.find("forty") == []


async def test_a_named_folder_may_move(synced: Synced, tmp_path: Path) -> None:
    synced.write(leave="Thirty days.", pets="Dogs may come.")
    await synced.run(name="handbook")
    synced.folder = synced.folder.rename(tmp_path / "elsewhere")
    (synced.folder / "pets.md").unlink()
    report = await synced.run(name="handbook")
    assert (report.retired, report.ingest.unchanged) == (("pets.md",), 1)


async def test_what_was_ingested_from_the_folder_before_is_followed_too(
    synced: Synced, store: PgStore, embedder: HashEmbedder
) -> None:
    synced.write(leave="Thirty days.", pets="Dogs may come.")
    await ingest([synced.folder], store=store, embedder=embedder, collection="c")
    (synced.folder / "pets.md").unlink()
    assert (await synced.run()).retired == ("pets.md",)


async def test_a_file_that_cannot_be_read_keeps_its_document(synced: Synced) -> None:
    synced.write(leave="Thirty days.", pets="Dogs may come.")
    await synced.run()
    (synced.folder / "pets.md").write_bytes(b"")
    report = await synced.run()
    assert (report.retired, report.kept, report.ingest.failed) == ((), ("pets.md",), 1)
    assert await synced.find("dogs") == ["pets.md"]


async def test_a_version_of_the_future_goes_with_its_file(synced: Synced) -> None:
    future = datetime.now(UTC) + timedelta(days=30)
    synced.write(a="Text.", b=f"---\nvalid_from: {future.date()}\n---\nFrom next month on.")
    await synced.run()
    (synced.folder / "b.md").unlink()
    assert (await synced.run()).retired == ("b.md",)
    assert await synced.find("month", future + timedelta(days=2)) == []


async def test_a_file_is_no_folder(synced: Synced, tmp_path: Path) -> None:
    synced.folder = tmp_path / "x.md"
    synced.folder.write_text("x")
    with pytest.raises(InputError, match="folders only"):
        await synced.run()


async def test_metadata_and_pages_survive_the_wait_on_disk(synced: Synced, database: Database) -> None:
    synced.write(leave="---\nowner: HR\nlevel: 99999999999999999999\nvalid_from: 2024-01-01\n---\nThirty days.")
    await synced.run()
    (listed,) = await synced.store.list_documents("c")
    assert (listed.metadata, listed.valid_from) == ({"owner": "HR", "level": 99999999999999999999}, T2024)
