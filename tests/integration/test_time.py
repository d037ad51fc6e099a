"""Documents in two times: when something was true and when it was known; ends, corrections, restorations, citations."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.citations import cite
from orchestrator.database import Database
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.ingest import IngestReport, ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Citation, Document, SearchRequest

T2024, T2025, T2026 = (datetime(year, 1, 1, tzinfo=UTC) for year in (2024, 2025, 2026))

COUNTS = """
select (select count(*) from chunks where not isempty(live)) as live, (select chunk_count from collections) as counted,
       coalesce((select json_object_agg(t.term, n.held) from terms t
                 join (select term_id, count(*) as held from postings p join chunks c on c.id = p.chunk_id
                       where not isempty(c.live) group by 1) n on n.term_id = t.id), '{}') as held,
       coalesce((select json_object_agg(term, document_count) from terms where document_count > 0), '{}') as frequencies
"""


def document(text: str, valid_from: datetime | None = None, name: str = "leave") -> Document:
    return Document(name, "Leave", text, f"{name}.md", "text/markdown", valid_from=valid_from)


async def put(store: PgStore, embedder: HashEmbedder, *documents: Document) -> IngestReport:
    report = await ingest_documents(documents, store=store, embedder=embedder, collection="c")
    assert report.failures == ()
    return report


async def clock(database: Database) -> datetime:
    row = await database.fetch_one("select clock_timestamp() as now")
    assert row is not None
    moment: datetime = row.now
    return moment


async def find(
    store: PgStore, text: str, as_of: datetime | None = None, known_at: datetime | None = None
) -> list[tuple[str, int]]:
    request = SearchRequest(text, (), collection="c", k=10, as_of=as_of, known_at=known_at, mode="lexical")
    return [(passage.text, passage.version) for passage in await store.search(request)]


async def assert_counts_are_right(database: Database) -> None:
    row = await database.fetch_one(COUNTS)
    assert row is not None
    assert (row.live, row.held) == (row.counted, row.frequencies)


# ends


async def test_a_retired_document_is_answered_as_of_before_and_not_after(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days.", T2024))

    moved = await store.retire("c", "leave", T2026)

    assert (moved.version, moved.valid_from, moved.valid_to) == (2, T2026, None)
    assert await find(store, "days", T2025) == [("Thirty days.", 1)]
    assert [await find(store, "days", moment) for moment in (T2026, None)] == [[], []]
    assert (await store.get_version_text("c", "leave", as_of=T2025)).text == "Thirty days."
    with pytest.raises(UnknownNameError, match="was retired: from 2026-01-01"):
        await store.get_version_text("c", "leave")
    assert [version.is_end for version in await store.history("c", "leave")] == [False, True]
    assert await store.list_documents("c") == []
    (listed,) = await store.list_documents("c", deleted=True)
    assert (listed.version, listed.retired_at, listed.deleted_at, listed.versions) == (None, T2026, None, 1)
    assert [d.version for d in await store.list_documents("c", as_of=T2025)] == [1]
    await assert_counts_are_right(database)


async def test_the_same_text_begins_anew_after_an_end(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days."))
    await store.retire("c", "leave")
    between = await clock(database)
    embedder.texts.clear()

    report = await put(store, embedder, document("Thirty days."))

    assert (report.updated, report.chunks_new, embedder.texts) == (1, 0, [])
    assert await find(store, "days") == [("Thirty days.", 3)]
    assert await find(store, "days", between) == []
    await assert_counts_are_right(database)


async def test_a_document_ends_only_until_its_next_version_unless_later_ones_go_too(
    store: PgStore, embedder: HashEmbedder
) -> None:
    await put(store, embedder, document("Thirty days.", T2024), document("Forty days.", T2026))
    moved = await store.retire("c", "leave", T2025)
    assert (moved.valid_to, moved.withdrawn) == (T2026, ())
    assert await find(store, "days", T2025) == []
    assert await find(store, "days", T2026) == [("Forty days.", 2)]

    again = await store.retire("c", "leave", T2025, and_later=True)
    assert (again.version, again.withdrawn) == (None, (2,))
    assert await find(store, "days", T2026) == []


async def test_an_end_in_place_of_a_version_corrects_it(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("Thirty days.", T2024), document("Forty days.", T2025))
    moved = await store.retire("c", "leave", T2025)
    assert moved.withdrawn == (2,)
    assert [await find(store, "days", moment) for moment in (T2024, T2025)] == [[("Thirty days.", 1)], []]


async def test_retiring_twice_or_before_the_beginning_is_no_work(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("Thirty days.", T2025))
    assert (await store.retire("c", "leave", T2024)).version is None
    assert (await store.retire("c", "leave", T2026)).version == 2
    assert (await store.retire("c", "leave", T2026 + timedelta(days=9))).version is None
    with pytest.raises(UnknownNameError, match="no such document 'other'"):
        await store.retire("c", "other")


# corrections


async def test_a_withdrawn_version_leaves_its_time_to_the_one_before(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days.", T2024))
    await put(store, embedder, document("Ninety days.", T2025))
    before = await clock(database)

    moved = await store.withdraw("c", "leave", 2)

    assert (moved.version, moved.withdrawn) == (1, (2,))
    assert await find(store, "days", T2026) == [("Thirty days.", 1)]
    assert await find(store, "days", T2026, before) == [("Ninety days.", 2)]
    assert await find(store, "days", T2026, await clock(database)) == [("Thirty days.", 1)]
    assert (await store.get_version_text("c", "leave")).text == "Thirty days."
    assert (await store.get_version_text("c", "leave", known_at=before)).text == "Ninety days."
    assert [version.number for version in await store.history("c", "leave", known_at=before)] == [1, 2]
    with pytest.raises(InputError, match="already"):
        await store.withdraw("c", "leave", 2)
    await assert_counts_are_right(database)


async def test_a_withdrawn_end_lets_the_document_hold_again(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days.", T2024))
    await store.retire("c", "leave", T2025)
    await store.withdraw("c", "leave", 2)
    assert await find(store, "days") == [("Thirty days.", 1)]
    assert [d.external_id for d in await store.list_documents("c")] == ["leave"]


async def test_withdrawing_the_only_version_deletes_the_document(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days."))
    before = await clock(database)
    moved = await store.withdraw("c", "leave", 1)
    assert moved.version is None
    assert await find(store, "days") == []
    assert await store.list_documents("c") == []
    assert [d.external_id for d in await store.list_documents("c", known_at=before)] == ["leave"]
    assert (await put(store, embedder, document("Thirty days."))).added == 1
    await assert_counts_are_right(database)


async def test_a_deleted_document_is_found_only_as_known_before(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days.", T2024))
    before = await clock(database)
    await store.delete("c", "leave")
    assert [await find(store, "days", moment) for moment in (None, T2025)] == [[], []]
    assert await find(store, "days", T2025, before) == [("Thirty days.", 1)]


async def test_what_was_known_then_does_not_know_how_it_ended(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days.", T2024))
    before = await clock(database)
    await put(store, embedder, document("Forty days.", T2025))
    request = SearchRequest("days", (), collection="c", as_of=T2024, known_at=before, mode="lexical")
    (passage,) = await store.search(request)
    assert (passage.version, passage.valid_from, passage.valid_to) == (1, T2024, None)
    assert (await store.get_version_text("c", "leave", as_of=T2024, known_at=before)).valid_to is None
    assert (await store.get_version_text("c", "leave", as_of=T2024)).valid_to == T2025


# restorations


@pytest.mark.parametrize("end", ["change", "retire", "delete"])
async def test_a_restored_version_holds_from_now_on_and_embeds_nothing(
    store: PgStore, embedder: HashEmbedder, database: Database, end: str
) -> None:
    await put(store, embedder, document("Thirty days.", T2024))
    if end == "change":
        await put(store, embedder, document("Forty days."))
    elif end == "retire":
        await store.retire("c", "leave")
    else:
        await store.delete("c", "leave")
    between = await clock(database)
    embedder.texts.clear()

    moved = await store.restore("c", "leave", 1)

    assert (moved.valid_to, embedder.texts) == (None, [])
    assert await find(store, "days") == [("Thirty days.", moved.version)]
    assert await find(store, "days", between) == ([("Forty days.", 2)] if end == "change" else [])
    assert (await store.restore("c", "leave", 1)).version is None
    assert [d.title for d in await store.list_documents("c")] == ["Leave"]
    await assert_counts_are_right(database)


async def test_an_end_and_an_unknown_version_cannot_be_restored(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("Thirty days."))
    await store.retire("c", "leave")
    with pytest.raises(InputError, match="is an end"):
        await store.restore("c", "leave", 2)
    with pytest.raises(UnknownNameError, match="no version 9"):
        await store.restore("c", "leave", 9)


async def test_a_version_without_vectors_of_the_present_model_is_not_restored(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("Thirty days."), document("Dogs.", name="pets"))
    await store.delete("c", "leave")
    async with database.transaction() as connection:
        await connection.execute("delete from vectors where chunk_id = (select min(id) from chunks)")
    with pytest.raises(InputError, match="present model"):
        await store.restore("c", "leave", 1)
    assert await find(store, "days") == []


# differences and citations


async def test_the_difference_of_two_versions(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("One.\n\nThirty days of leave.", T2024))
    await put(store, embedder, document("One.\n\nForty days of leave.\n\nTwo.", T2026))
    await put(store, embedder, document("One.\n\nThirty-five days of leave.", T2025))

    found = await store.diff("c", "leave")

    assert (found.before, found.after) == (3, 2)  # the order is that of time, not that of arrival
    assert [(one.kind, one.before, one.after) for one in found.differences] == [
        ("changed", "Thirty-five days of leave.", "Forty days of leave."),
        ("added", "", "Two."),
    ]
    assert [one.kind for one in (await store.diff("c", "leave", 2, 1)).differences] == ["changed", "removed"]
    with pytest.raises(UnknownNameError, match="Versions: 1, 2, 3"):
        await store.diff("c", "leave", 1, 7)
    with pytest.raises(InputError, match="no version before 1"):
        await store.diff("c", "leave", after=1)


async def cited(store: PgStore, question: str, as_of: datetime | None, known_at: datetime | None = None) -> Citation:
    request = SearchRequest(question, (), collection="c", k=1, as_of=as_of, known_at=known_at, mode="lexical")
    (passage,) = await store.search(request)
    return cite(1, passage, passage.text)


async def changes(store: PgStore, *citations: Citation) -> list[tuple[int | None, str | None]]:
    return [(one.changed_in, one.now) for one in await store.mark_changes(citations, "default")]


RULES = "# Travel\n\nA hotel may cost {} EUR\na night.\n\nTrains are preferred to planes.\n\n{}"


async def test_a_citation_says_what_its_paragraph_says_today(store: PgStore, embedder: HashEmbedder) -> None:
    texts = ("120", "Dogs travel free."), ("130", "Cats travel free."), ("140", "Bicycles are paid for.")
    for number, (limit, last) in enumerate(texts):
        text = RULES.replace("{}", limit, 1).replace("{}", last)
        await put(store, embedder, document(text, datetime(2022 + number, 1, 1, tzinfo=UTC)))
    then = datetime(2022, 6, 1, tzinfo=UTC)
    (passage,) = await store.search(SearchRequest("hotel", (), collection="c", k=1, as_of=then, mode="lexical"))
    hotel, trains, dogs = (
        cite(1, passage, text) for text in ("A hotel may cost 120 EUR", "Trains are preferred", "Dogs travel")
    )

    assert await changes(store, hotel, trains, dogs) == [
        (2, "A hotel may cost 140 EUR\na night."),
        (None, None),
        (2, ""),
    ]
    current = await cited(store, "hotel", None)
    assert await changes(store, current) == [(None, None)]
    assert await changes(store) == []


async def test_a_paragraph_that_was_wrapped_anew_stands(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("A hotel may cost 120 EUR\na night.", T2024))
    await put(store, embedder, document("New.\n\nA hotel may cost 120\nEUR a night.", T2025))
    assert await changes(store, await cited(store, "hotel", T2024)) == [(None, None)]


async def test_a_paragraph_that_came_back_stands(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("120 EUR.", T2024), document("130 EUR.", T2025), document("120 EUR.", T2026))
    assert await changes(store, await cited(store, "EUR", T2024)) == [(None, None)]
    assert await changes(store, await cited(store, "EUR", T2025)) == [(3, "120 EUR.")]


async def test_a_citation_of_a_retired_document_is_gone_since_its_end(store: PgStore, embedder: HashEmbedder) -> None:
    await put(store, embedder, document("120 EUR.", T2024))
    await store.retire("c", "leave", T2025)
    assert await changes(store, await cited(store, "EUR", T2024)) == [(2, "")]


async def test_a_citation_of_a_withdrawn_version_shows_what_holds_in_its_place(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await put(store, embedder, document("A hotel may cost 120 EUR.", T2024))
    await put(store, embedder, document("A hotel may cost 900 EUR.", T2025))
    before = await clock(database)
    await store.withdraw("c", "leave", 2)
    assert await changes(store, await cited(store, "hotel", None, before)) == [(1, "A hotel may cost 120 EUR.")]
    await store.delete("c", "leave")
    assert await changes(store, await cited(store, "hotel", None, before)) == [(None, "")]


# readers and writers


async def test_the_next_search_after_a_commit_sees_it(store: PgStore, embedder: HashEmbedder) -> None:
    for number in range(1, 8, 2):
        await put(store, embedder, document(f"Rule {number} holds."))
        assert await find(store, "rule") == [(f"Rule {number} holds.", number)]
        await store.retire("c", "leave")
        assert await find(store, "rule") == []
        await store.withdraw("c", "leave", number + 1)
        assert await find(store, "rule") == [(f"Rule {number} holds.", number)]


async def test_readers_never_see_half_of_a_change(store: PgStore, embedder: HashEmbedder) -> None:
    parts = [
        f"## Part {part}\n\nThe rule of edition {{}}. " + f"Words of part {part} fill it. " * 40 for part in range(5)
    ]
    editions = ["\n\n".join(part.replace("{}", str(edition)) for part in parts) for edition in (1, 2)]
    await put(store, embedder, document(editions[0]))
    await put(store, embedder, document(editions[1]))
    seen: set[tuple[int, ...]] = set()
    writing = True

    async def read() -> None:
        while writing:
            seen.add(tuple(sorted(version for _, version in await find(store, "rule edition"))))

    async def write() -> None:
        nonlocal writing
        try:
            for _ in range(6):
                await store.restore("c", "leave", 1)
                await store.restore("c", "leave", 2)
        finally:
            writing = False

    await asyncio.gather(write(), read(), read())
    assert all(len(versions) == 5 and len(set(versions)) == 1 for versions in seen), seen
    assert len(seen) > 2


async def test_what_was_known_at_a_time_stays_the_same_when_a_writer_had_to_wait(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    """A writer's transaction begins before it gets the lock: the clock of its beginning would be in the past."""
    await put(store, embedder, document("Rule 0."))
    async with database.transaction() as slow:
        await slow.execute("select id from collections for no key update")
        writer = asyncio.create_task(put(store, embedder, document("Rule 1.")))
        await asyncio.sleep(0.3)
        meanwhile = await clock(database)
        known = await find(store, "rule", known_at=meanwhile)
    await writer
    assert known == [("Rule 0.", 1)]
    assert await find(store, "rule", known_at=meanwhile) == known
    rows = await store.history("c", "leave")
    assert all(row.superseded_at is None or row.recorded_at < row.superseded_at for row in rows)
    assert await find(store, "rule") == [("Rule 1.", 2)]
