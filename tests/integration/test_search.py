"""Search on a real PostgreSQL: scores against recomputations, modes, as of, bad input."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime

import psycopg
import pytest

from orchestrator.database import Database
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

TEXTS = {
    "leave": "Employees have thirty days of annual leave. Leave is asked for in the calendar.",
    "travel": "Travel is booked by the travel desk. Days in the air count as working days.",
    "pets": "Dogs may come to the office on Fridays. Cats may not.",
    "long": "The annual report lists annual figures. " * 12 + "Annual leave is not in it.",
}


async def fill(store: PgStore, embedder: HashEmbedder, texts: dict[str, str] = TEXTS) -> None:
    documents = [Document(external_id=name, title=name, text=text, source="test") for name, text in texts.items()]
    report = await ingest_documents(documents, store=store, embedder=embedder, collection="c")
    assert report.added == len(texts)


async def test_bm25_equals_a_recomputation_from_the_same_lexemes(
    database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await fill(store, embedder)
    question = "annual leave days"
    rows = await database.fetch(
        "select d.external_id as name, array_agg(u.lexeme) as lexemes, array_agg(cardinality(u.positions)) as counts "
        "from documents d join versions v on v.document_id = d.id, "
        "unnest(to_tsvector('english', d.title || e'\n\n' || v.text)) u group by 1"
    )
    counts = {row.name: dict(zip(row.lexemes, row.counts, strict=True)) for row in rows}
    asked = await database.fetch("select lexeme from unnest(to_tsvector('english', %(q)s))", q=question)
    average = sum(sum(found.values()) for found in counts.values()) / len(counts)

    def bm25(found: dict[str, int]) -> float:
        total = 0.0
        for term in (row.lexeme for row in asked):
            holders = sum(term in other for other in counts.values())
            idf = math.log(1 + (len(counts) - holders + 0.5) / (holders + 0.5))
            frequency = found.get(term, 0)
            norm = 1.2 * (1 - 0.75 + 0.75 * sum(found.values()) / average)
            total += idf * frequency * 2.2 / (frequency + norm)
        return total

    passages = await store.search(SearchRequest(question, (), collection="c", k=10, mode="lexical"))

    assert {p.external_id: p.scores["bm25"] for p in passages} == pytest.approx(
        {name: bm25(found) for name, found in counts.items() if bm25(found) > 0}, rel=1e-6
    )
    assert [p.scores["bm25"] for p in passages] == sorted((p.scores["bm25"] for p in passages), reverse=True)


async def test_fused_score_is_the_convex_combination_of_both(store: PgStore, embedder: HashEmbedder) -> None:
    await fill(store, embedder)
    question = "annual leave days"
    vector = (await embedder.embed([question]))[0]

    lexical = {
        p.external_id: p.score
        for p in await store.search(SearchRequest(question, (), collection="c", k=10, mode="lexical"))
    }
    dense = await store.search(SearchRequest(question, vector, collection="c", k=10, mode="dense"))
    fused = await store.search(SearchRequest(question, vector, collection="c", k=10))

    cosine = {p.external_id: p.scores["cosine"] for p in dense}
    best = max(cosine.values())
    expected = {name: 0.3 * lexical.get(name, 0) + 0.7 * max(cosine[name], 0) / best for name in cosine}
    assert {p.external_id: p.score for p in fused} == pytest.approx(expected, rel=1e-6)
    assert [p.external_id for p in fused] == sorted(expected, key=lambda name: -expected[name])


async def test_cosine_is_exact(store: PgStore, embedder: HashEmbedder) -> None:
    await fill(store, embedder)
    vector = (await embedder.embed(["Cats and dogs in the office"]))[0]
    stored = {name: (await embedder.embed([f"{name}\n\n{text}"]))[0] for name, text in TEXTS.items()}

    passages = await store.search(SearchRequest("x", vector, collection="c", k=10, mode="dense"))

    expected = {name: sum(a * b for a, b in zip(vector, other, strict=True)) for name, other in stored.items()}
    assert {p.external_id: p.scores["cosine"] for p in passages} == pytest.approx(expected, abs=2e-3)  # 16-bit floats


async def test_a_question_of_stop_words_is_answered_by_the_dense_side(store: PgStore, embedder: HashEmbedder) -> None:
    await fill(store, embedder)
    vector = (await embedder.embed([TEXTS["pets"]]))[0]

    for question in ("", "the of and", "  ", "?!", "\0", "\ud800"):
        passages = await store.search(SearchRequest(question, vector, collection="c", k=1))
        assert [p.external_id for p in passages] == ["pets"]
    assert await store.search(SearchRequest("the of and", vector, collection="c", k=1, mode="lexical")) == []


async def test_text_span_and_version_agree_with_the_stored_original(store: PgStore, embedder: HashEmbedder) -> None:
    text = (
        "Die Fußgängerzone \U0001f469\u200d\U0001f469\u200d\U0001f467 liegt in Ko\u0308ln.\n\n" * 60
        + "Zebra 🦓 am Ende, naïve é."
    )
    text = "".join(f"{number} {line}" for number, line in enumerate(text.splitlines(keepends=True)))
    await fill(store, embedder, {"emoji": text, "leave": TEXTS["leave"]})

    passages = await store.search(SearchRequest("zebra", (await embedder.embed(["zebra"]))[0], collection="c", k=50))

    original = await store.get_version_text("c", "emoji")
    found = [p for p in passages if p.external_id == "emoji"]
    assert len(found) > 2
    assert original.text == text
    assert [text[p.span[0] : p.span[1]] for p in found] == [p.text for p in found]


async def test_equal_scores_come_in_one_order(store: PgStore, embedder: HashEmbedder) -> None:
    await fill(store, embedder, {f"d{number}": f"{number}" for number in range(9)} | {"e": "word word word"})
    orders = {
        tuple(p.chunk_id for p in await store.search(SearchRequest("the", [1.0] + [0.0] * 63, collection="c", k=9)))
        for _ in range(8)
    }
    assert len(orders) == 1


async def test_unknown_collection_names_those_there_are(store: PgStore, embedder: HashEmbedder) -> None:
    await fill(store, embedder)
    with pytest.raises(UnknownNameError, match="Collections: c"):
        await store.search(SearchRequest("x", [0.0] * 64, collection="nope", k=3))


async def test_vectors_of_another_space_are_never_compared(
    database: Database, store: PgStore, embedder: HashEmbedder
) -> None:
    await fill(store, embedder)
    with pytest.raises(InputError, match=r"hash-64 \(64 numbers"):
        await store.search(SearchRequest("x", [1.0] * 32, collection="c", k=3))
    with pytest.raises(InputError, match="cannot be compared"):
        await PgStore(database, space="minilm@1").search(SearchRequest("leave", [1.0] * 64, collection="c", k=3))
    with pytest.raises(InputError, match="ingest into another collection"):
        await ingest_documents([], store=store, embedder=HashEmbedder(32), collection="c")


@pytest.mark.parametrize("k", [0, -1, 100_000])
async def test_k_out_of_range_is_refused(store: PgStore, embedder: HashEmbedder, k: int) -> None:
    await fill(store, embedder)
    with pytest.raises(InputError, match="k must be"):
        await store.search(SearchRequest("x", [1.0] * 64, collection="c", k=k))


async def test_a_vector_with_nan_is_refused(store: PgStore, embedder: HashEmbedder) -> None:
    await fill(store, embedder)
    with pytest.raises(InputError, match="not finite"):
        await store.search(SearchRequest("x", [math.nan] * 64, collection="c", k=3))


@pytest.mark.parametrize("vector", [[], [0.5] * 17_000])
async def test_a_vector_of_no_possible_length_is_refused(
    store: PgStore, embedder: HashEmbedder, vector: list[float]
) -> None:
    await fill(store, embedder)
    with pytest.raises(InputError):
        await store.search(SearchRequest("x", vector, collection="c", k=3))


async def test_a_search_answers_though_all_connections_were_cut_since_the_last(
    store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    await fill(store, embedder)
    request = SearchRequest("annual leave", (await embedder.embed(["annual leave"]))[0], collection="c", k=3)
    before = await asyncio.gather(*(store.search(request) for _ in range(8)))

    async with await psycopg.AsyncConnection.connect(database._url, autocommit=True) as connection:
        await connection.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )

    assert await asyncio.gather(*(store.search(request) for _ in range(8))) == before


async def test_question_of_100_kb_is_searched(store: PgStore, embedder: HashEmbedder) -> None:
    await fill(store, embedder)
    question = "annual leave " * 8_000 + "w" * 5_000
    assert await store.search(SearchRequest(question, (await embedder.embed([question]))[0], collection="c", k=1))


async def test_a_document_that_begins_later_is_not_found_before(store: PgStore, embedder: HashEmbedder) -> None:
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    document = Document("d", "d", "Bicycles are paid for.", "test", valid_from=begin)
    await ingest_documents([document], store=store, embedder=embedder, collection="c")
    vector = (await embedder.embed(["bicycles"]))[0]

    async def found(moment: datetime) -> int:
        return len(await store.search(SearchRequest("bicycles", vector, collection="c", k=5, as_of=moment)))

    assert [await found(datetime(2024, 12, 31, tzinfo=UTC)), await found(begin)] == [0, 1]


async def test_quotes_and_sql_in_names_are_data(store: PgStore, embedder: HashEmbedder) -> None:
    name = "o'hara\"; drop table documents; -- %s {x} \\"
    document = Document(name, name, f"About {name}", name, metadata={name: [name, None, 1.5]})
    await ingest_documents([document], store=store, embedder=embedder, collection=name)
    found = await store.search(SearchRequest("about", (await embedder.embed(["about"]))[0], collection=name, k=1))
    assert (found[0].external_id, found[0].title, found[0].source) == (name, name, name)
    assert (await store.list_documents(name))[0].metadata == {name: [name, None, 1.5]}


IDENTIFIERS = [
    "ERR-4011", "ERR-4012", "ERR-4013", "max_connections", "min_connections", "C++", "C#", ".NET", "file.py", "file.rs",
    "2.0.1", "2.0.11", "10.0.0.1", "10.0.0.2",
]  # fmt: skip


@pytest.mark.parametrize("wanted", IDENTIFIERS)
async def test_an_identifier_that_is_typed_wins(store: PgStore, embedder: HashEmbedder, wanted: str) -> None:
    texts = {name: f"Notes about {name} and what to do then." for name in IDENTIFIERS}
    texts["chat"] = "What is it, what does it mean, and what should be done about it? Error, file, version, host."
    await fill(store, embedder, texts)
    question = f"what does {wanted} mean and what should be done about it?"
    vector = (await embedder.embed([texts["chat"]]))[0]  # the dense side is for another one
    passages = await store.search(SearchRequest(question, vector, collection="c", k=3, dense_weight=0.7))
    assert passages[0].external_id == wanted


async def test_a_quoted_phrase_wins_over_its_words(store: PgStore, embedder: HashEmbedder) -> None:
    texts = {
        "words": "Annual leave, the leave of the year, and leave again: annual, annual leave days are days of leave.",
        "phrase": "Whoever falls ill keeps the days of\nleave in reserve.",
        "other": "Something else.",
    }
    await fill(store, embedder, texts)
    vector = (await embedder.embed([texts["words"]]))[0]
    passages = await store.search(SearchRequest('annual "leave in reserve"', vector, collection="c", k=3))
    assert passages[0].external_id == "phrase"


async def test_an_identifier_that_stands_everywhere_decides_nothing(store: PgStore, embedder: HashEmbedder) -> None:
    texts = {f"d{number}": f"COVID-19, part {number} of the report." for number in range(60)}
    texts["masks"] = "Masks are worn in the hospital and in the bus during the pandemic."
    await fill(store, embedder, texts)
    vector = (await embedder.embed([texts["masks"]]))[0]
    passages = await store.search(SearchRequest("masks in the bus COVID-19", vector, collection="c", k=3))
    assert passages[0].external_id == "masks"


async def test_what_stands_behind_20_000_characters_of_a_question_is_not_read(
    store: PgStore, embedder: HashEmbedder
) -> None:
    await fill(store, embedder)
    words = " ".join(f"w{number}" for number in range(20_000))
    front = await store.search(SearchRequest(f"dogs {words}", (), collection="c", mode="lexical"))
    behind = await store.search(SearchRequest(f"{words} dogs", (), collection="c", mode="lexical"))
    assert ([p.external_id for p in front], behind) == (["pets"], [])
