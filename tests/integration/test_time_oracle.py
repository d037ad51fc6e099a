"""Random histories of documents against an oracle of thirty lines: what was true when, as known when."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.database import Database
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document, SearchRequest

# The oracle's time: stated dates are below 0, the step with index n happens at n + 0.5, and questions are asked at whole numbers.
DATES = {
    -3: datetime(2024, 1, 1, tzinfo=UTC),
    -2: datetime(2025, 1, 1, tzinfo=UTC),
    -1: datetime(2026, 1, 1, tzinfo=UTC),
}
DATES[1_000] = datetime(2100, 1, 1, tzinfo=UTC)
NAMES, TEXTS = ("one", "two"), ("alpha rule", "beta rule", "gamma rule")


@dataclass
class Fact:
    """A version, or an end when ``text`` is None; it counts from ``known`` until ``forgotten``."""

    number: int
    text: str | None
    begin: float
    known: float
    forgotten: float = inf


@dataclass
class Oracle:
    """One document."""

    facts: list[Fact] = field(default_factory=list)

    def at(self, moment: float, known: float) -> Fact | None:
        there = [f for f in self.facts if f.known <= known < f.forgotten and f.begin <= moment]
        return max(there, key=lambda f: f.begin, default=None)

    def counting(self) -> list[Fact]:
        return [f for f in self.facts if f.forgotten == inf]

    def add(self, text: str | None, begin: float, now: float) -> None:
        for other in self.counting():
            if other.begin == begin:
                other.forgotten = now
        self.facts.append(Fact(len(self.facts) + 1, text, begin, now))

    def ingest(self, text: str, begin: float | None, now: float) -> None:
        current = self.at(now, now)
        if begin is None:
            texts = [f.text for f in self.counting() if f.text]
            is_over = current is not None and current.text is None
            if not is_over and text in ([current.text] if current else []) + texts[-1:]:
                return
            begin = now if self.counting() else -inf
        if all((f.begin, f.text) != (begin, text) for f in self.counting()):
            self.add(text, begin, now)

    def retire(self, begin: float | None, now: float) -> None:
        start = now if begin is None else begin
        holding = self.at(start, now)
        if holding and holding.text:
            self.add(None, start, now)

    def restore(self, number: int, now: float) -> None:
        current = self.at(now, now)
        text = self.facts[number - 1].text if number <= len(self.facts) else None
        if text and (current.text if current else None) != text:
            self.add(text, now, now)

    def withdraw(self, number: int, now: float) -> None:
        for fact in self.counting():
            if fact.number == number:
                fact.forgotten = now

    def delete(self, now: float) -> None:
        for fact in self.counting():
            fact.forgotten = now


Step = tuple[str, str, str, int | None, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["ingest", "ingest", "ingest", "retire", "restore", "withdraw", "delete"]),
        st.sampled_from(NAMES),
        st.sampled_from(TEXTS),
        st.sampled_from([None, None, *DATES]),
        st.integers(1, 5),
    ),
    min_size=2,
    max_size=9,
)


async def perform(store: PgStore, embedder: HashEmbedder, collection: str, step: Step) -> None:
    kind, name, text, begin, number = step
    valid_from = None if begin is None else DATES[begin]
    try:
        if kind == "ingest":
            document = Document(name, name, text, "f", valid_from=valid_from)
            await ingest_documents([document], store=store, embedder=embedder, collection=collection)
        elif kind == "retire":
            await store.retire(collection, name, valid_from)
        elif kind == "restore":
            await store.restore(collection, name, number)
        elif kind == "withdraw":
            await store.withdraw(collection, name, number)
        else:
            await store.delete(collection, name)
    except (InputError, UnknownNameError):
        pass  # nothing to do it with: the oracle does nothing either


def foresee(oracles: dict[str, Oracle], step: Step, now: float) -> None:
    kind, name, text, begin, number = step
    oracle = oracles[name]
    if kind == "ingest":
        oracle.ingest(text, begin, now)
    elif kind == "retire":
        oracle.retire(begin, now)
    elif kind == "restore":
        oracle.restore(number, now)
    elif kind == "withdraw":
        oracle.withdraw(number, now)
    else:
        oracle.delete(now)


async def answers(
    store: PgStore, collection: str, as_of: datetime | None, known_at: datetime | None
) -> tuple[dict[str, str], dict[str, int], dict[str, str]]:
    """What search, the list and the text say that there is."""
    request = SearchRequest("rule", (), collection, 10, as_of=as_of, known_at=known_at, mode="lexical")
    passages = await store.search(request)
    listed = await store.list_documents(collection, as_of=as_of, known_at=known_at)
    texts = {}
    for name in NAMES:
        try:
            found = await store.get_version_text(collection, name, as_of=as_of, known_at=known_at)
            texts[name] = found.text
        except UnknownNameError:
            continue
    assert len(passages) == len({passage.external_id for passage in passages})
    versions = {one.external_id: one.version for one in listed if one.version is not None}
    return {passage.external_id: passage.text for passage in passages}, versions, texts


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=steps, asked=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=4, max_size=8))
async def test_every_question_about_two_times_is_answered_as_the_oracle_says(
    store: PgStore,
    embedder: HashEmbedder,
    database: Database,
    history: Sequence[Step],
    asked: Sequence[tuple[int, int]],
) -> None:
    collection = uuid.uuid4().hex
    await store.open_collection(collection, space=embedder.space, dimensions=embedder.dimensions)
    oracles = {name: Oracle() for name in NAMES}
    clocks: dict[int, datetime] = dict(DATES)

    async def read_clock(place: int) -> None:
        row = await database.fetch_one("select clock_timestamp() as now")
        assert row is not None
        clocks[place] = row.now

    await read_clock(0)
    for place, step in enumerate(history):
        await perform(store, embedder, collection, step)
        foresee(oracles, step, place + 0.5)
        await read_clock(place + 1)

    last = len(history)
    whens = [*DATES, *range(last + 1)]
    questions = [(whens[a % len(whens)], b % (last + 1)) for a, b in asked] + [(when, last) for when in (*DATES, last)]
    for when, known in questions:
        expected = {name: fact for name, oracle in oracles.items() if (fact := oracle.at(when, known)) and fact.text}
        known_at = None if known == last and when % 2 else clocks[known]  # what is known now, asked in both ways
        found, versions, texts = await answers(store, collection, clocks[when], known_at)
        said = {name: str(fact.text) for name, fact in expected.items()}
        assert (found, texts) == (said, said), (when, known)
        assert versions == {name: fact.number for name, fact in expected.items()}, (when, known)
    row = await database.fetch_one(
        "select c.chunk_count, (select count(*) from chunks h where h.collection_id = c.id and not isempty(h.live)) as live "
        "from collections c where c.name = %(name)s",
        name=collection,
    )
    assert row is not None
    assert row.chunk_count == row.live


@pytest.mark.parametrize("known", [0, 1, 2])
def test_the_oracle_itself(known: int) -> None:
    oracle = Oracle()
    oracle.ingest("alpha", None, 0.5)
    oracle.ingest("beta", None, 1.5)
    fact = oracle.at(1_000, known)
    assert (fact.text if fact else None) == (None, "alpha", "beta")[known]
