"""Evaluations on a real PostgreSQL: frozen, resumed, found again by what entered, behind the tenant's wall, free of texts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.database import Database
from orchestrator.errors import DatabaseError, InputError, UnknownNameError
from orchestrator.evaluation.ask import PipelineAsker
from orchestrator.evaluation.items import Change, Fault, Gold, Item, ItemSet, Outcome
from orchestrator.evaluation.runs import (
    Runs,
    changed_documents,
    describe_system,
    dump_outcome,
    load_outcome,
    read_corpus,
    refuse_other_sets,
)
from orchestrator.evaluation.summary import compare_runs, summarise
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.store import PgStore
from orchestrator.ledger import Ledger, list_answers
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.router import Router
from orchestrator.settings import Settings
from orchestrator.tenants import add_tenant, remove_tenant
from orchestrator.testing import HashEmbedder, MemoryServing, ScriptedEngine, WordTokens, passage
from orchestrator.types import Adapter, Document

CATALOGUE = load_catalogue(folder("prompts"))
ADAPTER = Adapter("cited-answer", "a" * 64, Path("x"), "base", 16, "grounded", "d", "cited_answer", "d")
LEAVE = Document("leave.md", "Leave", "Every employee has 25 days of leave.", "leave.md")
PARKING = Document("parking.md", "Parking", "Parking is free for every employee.", "parking.md")
ITEMS = tuple(
    Item(
        f"q{number}",
        f"How many days of leave has employee {number}?",
        ("25 days",),
        gold=(Gold("leave.md"),),
        tags=("leave",),
    )
    for number in range(6)
)
SET = ItemSet("handbook", ITEMS, (Fault(7, "no JSON"),))
SAID = '{"answerable":true,"citations":[1],"evidence":"","answer":"25 days"}'


class Counting:
    """An asker that counts, and stops the run after so many."""

    def __init__(self, inner: PipelineAsker, stop_after: int | None = None) -> None:
        self.inner = inner
        self.asked: list[str] = []
        self.stop_after = stop_after
        self.turn = asyncio.Semaphore(1)

    async def ask(self, item: Item, change: Change = Change()) -> Outcome:  # noqa: B008
        async with self.turn:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                await asyncio.sleep(0.1)  # what was asked before is being kept
                raise DatabaseError("the database went away")
            self.asked.append(item.id)
            return await self.inner.ask(item, change)


async def ingest(database: Database, *documents: Document, tenant: str = "default") -> None:
    await ingest_documents(documents, store=PgStore(database, tenant), embedder=HashEmbedder(), collection="default")


def build(database: Database, ledger: Ledger | None, *scripts: list[str], tenant: str = "default") -> Pipeline:
    serving = MemoryServing(ScriptedEngine(*(scripts or ([SAID],))), {"cited-answer": ADAPTER})
    searcher = Retriever(PgStore(database, tenant), HashEmbedder())
    catalogue = replace(
        CATALOGUE, routes={name: replace(route, min_sufficiency=0.0) for name, route in CATALOGUE.routes.items()}
    )
    return Pipeline(
        Settings(tenant=tenant), catalogue, Router(catalogue, {}), HashEmbedder(), searcher, serving, ledger, WordTokens()  # type: ignore[arg-type]
    )  # fmt: skip


def asker(pipeline: Pipeline, stop_after: int | None = None) -> Counting:
    return Counting(PipelineAsker(pipeline, concurrency=1), stop_after)


SYSTEM = {"version": "1"}


async def test_a_run_is_asked_kept_and_summed_up(database: Database) -> None:
    await ingest(database, LEAVE, PARKING)
    runs, told = Runs(database, "default"), list[tuple[int, int]]()
    async with Ledger.open(database) as ledger:
        pipeline = build(database, ledger)
        frozen = await runs.freeze(SET, "default")
        system = describe_system(pipeline, {"cited-answer": ADAPTER.digest}, Change())

        run = await runs.run(frozen, asker(pipeline), system, progress=lambda *each: told.append(each))

    summary = summarise(run.set.items, run.outcomes, run.scores, run.set.faults)
    assert (summary.n, summary.faults, summary.asked) == (7, 1, 6)
    assert summary.measures["correct"].value == pytest.approx(6 / 7)
    assert summary.measures["gold_found"].value == pytest.approx(6 / 7)
    assert told[-1] == (6, 6)
    assert run.set == replace(SET, snapshot=(await read_corpus(database, "default", "default")).holds)
    assert run.set.sha256 == run.info.sha256
    assert run.info.finished_at is not None
    assert await list_answers(database, "default", 10) == []


async def test_a_run_that_was_stopped_goes_on(database: Database) -> None:
    await ingest(database, LEAVE)
    runs, pipeline = Runs(database, "default"), build(database, None)
    frozen = await runs.freeze(SET, "default")
    first, second = asker(pipeline, stop_after=2), asker(pipeline)
    with pytest.raises(DatabaseError):
        await runs.run(frozen, first, SYSTEM)
    (stopped,) = await runs.latest()

    run = await runs.run(frozen, second, SYSTEM)

    assert (stopped.asked, stopped.finished_at, run.info.id) == (2, None, stopped.id)
    assert sorted(first.asked + second.asked) == [item.id for item in ITEMS]
    assert run.reused == 2


async def test_a_finished_run_asks_nothing_again_unless_it_shall(database: Database) -> None:
    await ingest(database, LEAVE)
    runs, pipeline, counting = Runs(database, "default"), build(database, None), asker(build(database, None))
    frozen = await runs.freeze(SET, "default")
    first = await runs.run(frozen, asker(pipeline), SYSTEM)

    again = await runs.run(frozen, counting, SYSTEM)
    named = await runs.run(frozen, counting, SYSTEM, name="tuesday")
    assert counting.asked == []
    fresh = await runs.run(frozen, counting, SYSTEM, fresh=True)

    assert (again.info.id, again.outcomes) == (first.info.id, first.outcomes)
    assert (named.info.id != first.info.id, named.reused, named.scores) == (True, 6, first.scores)
    assert (fresh.info.id != first.info.id, len(counting.asked)) == (True, 6)


@pytest.mark.parametrize("entered", ["system", "corpus", "question"])
async def test_what_enters_an_answer_makes_it_another(database: Database, entered: str) -> None:
    await ingest(database, LEAVE)
    runs, counting = Runs(database, "default"), asker(build(database, None))
    await runs.run(await runs.freeze(SET, "default"), asker(build(database, None)), SYSTEM)
    changed = SET

    if entered == "corpus":
        await ingest(database, replace(LEAVE, text="Every employee has 26 days of leave."))
    if entered == "question":
        changed = replace(SET, items=tuple(replace(item, question=f"{item.question}?") for item in SET.items))
    system = {"version": "2"} if entered == "system" else SYSTEM
    await runs.run(await runs.freeze(changed, "default"), counting, system)

    assert len(counting.asked) == 6


async def test_another_change_is_another_system(database: Database) -> None:
    pipeline = build(database, None)

    systems = [
        describe_system(pipeline, {"a": "1"}, Change()),
        describe_system(pipeline, {"a": "2"}, Change()),
        describe_system(pipeline, {"a": "1"}, Change(k=3)),
        describe_system(replace(pipeline, settings=Settings(reranker="none")), {"a": "1"}, Change()),
        describe_system(pipeline, {"a": "1"}, Change(passages=(passage(1, "x"),))),
    ]

    assert all(one != other for at, one in enumerate(systems) for other in systems[:at])


async def test_a_failure_of_the_day_is_asked_again_and_one_of_the_model_is_not(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    frozen = await runs.freeze(SET, "default")
    codes = ["contract", "too_large", "invalid_request", "not_found", "engine_unavailable", "stream_broken"]

    class Failing:
        async def ask(self, item: Item, change: Change = Change()) -> Outcome:  # noqa: B008
            return Outcome(item.id, error=f"{codes[int(item.id[1:])]}: it failed")

    failed = await runs.run(frozen, Failing(), SYSTEM)  # type: ignore[arg-type]
    counting = asker(build(database, None))
    named = await runs.run(frozen, counting, SYSTEM, name="another run")
    run = await runs.run(frozen, counting, SYSTEM)

    assert summarise(failed.set.items, failed.outcomes, failed.scores).errors == 6
    assert sorted(counting.asked) == ["q4", "q5"]  # the second run finds what the first one has asked anew
    assert [run.scores[f"q{number}"].reason for number in range(6)] == [
        "failed: contract", "failed: too_large", "failed: invalid_request", "failed: not_found", "", "",
    ]  # fmt: skip
    assert (named.reused, run.reused) == (4, 6)


async def test_an_outcome_belongs_to_its_question(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    frozen = await runs.freeze(replace(SET, items=ITEMS[:1]), "default")
    again = await runs.freeze(replace(SET, items=(replace(ITEMS[0], id="other"),)), "default")
    counting = asker(build(database, None))

    await runs.run(frozen, asker(build(database, None)), SYSTEM)
    run = await runs.run(again, counting, SYSTEM)

    assert (counting.asked, list(run.outcomes)) == (["other"], ["other"])


async def test_what_was_found_in_one_collection_is_not_taken_for_another(database: Database) -> None:
    runs, counting = Runs(database, "default"), asker(build(database, None))
    for collection in ("one", "two"):
        await ingest_documents([LEAVE], store=PgStore(database), embedder=HashEmbedder(), collection=collection)
    one, two = await runs.freeze(SET, "one"), await runs.freeze(SET, "two")

    await runs.run(one, asker(build(database, None)), SYSTEM)
    await runs.run(two, counting, SYSTEM)

    assert (one.corpus, len(counting.asked)) == (two.corpus, 6)


async def test_a_run_goes_on_under_its_own_name_only(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    frozen = await runs.freeze(SET, "default")

    monday = await runs.run(frozen, asker(build(database, None)), SYSTEM, name="monday")
    tuesday = await runs.run(frozen, asker(build(database, None)), SYSTEM, name="tuesday")
    again = await runs.run(frozen, asker(build(database, None)), SYSTEM, name="monday")
    smaller = await runs.run(
        await runs.freeze(replace(SET, items=ITEMS[:2]), "default"), asker(build(database, None)), SYSTEM, name="monday"
    )

    assert again.info.id == monday.info.id != tuesday.info.id
    assert (smaller.info.id != monday.info.id, len(smaller.outcomes)) == (True, 2)
    assert [each.id for each in await runs.latest()] == [smaller.info.id, tuesday.info.id, monday.info.id]
    assert (await runs.show("monday")).info.id == smaller.info.id  # the latest of the name


@pytest.mark.parametrize(
    "change",
    [
        "update collections set language = 'german'",
        "update collections set dense_weight = 0.1",
        "update collections set rerank_weight = 0.1",
        "update collections set embedding_space = 'another'",
        "update collections set chunk_count = chunk_count + 1",
        'update documents set metadata = \'{"country": "FR"}\'',
        "update versions set title = 'Another'",
        "update versions set valid_from = valid_from + interval '1 second'",
        "update versions set valid_to = now() - interval '1 second'",
        "update versions set is_end = true",
        "update versions set sha256 = repeat('0', 64)",
    ],
)
async def test_what_a_search_can_find_is_part_of_the_corpus(database: Database, change: str) -> None:
    document = replace(LEAVE, valid_from=datetime(2020, 1, 1, tzinfo=UTC))
    await ingest(database, document)
    before = await read_corpus(database, "default", "default")

    async with database.ownership() as connection:
        await connection.execute("alter table versions disable trigger user")
        await connection.execute(change)
    after = await read_corpus(database, "default", "default")

    assert before.digest != after.digest
    holds = {} if "valid_to" in change or "is_end" in change else {"leave.md"}
    assert set(after.holds) == set(holds)


async def test_a_kept_outcome_holds_no_text_of_a_passage_and_finds_it_again(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    run = await runs.run(await runs.freeze(SET, "default"), asker(build(database, None)), SYSTEM)

    (shown,) = run.outcomes["q0"].passages
    rows = await database.fetch("select outcome from eval_results")

    assert (shown.external_id, shown.text) == ("leave.md", "")
    assert [each.text for each in await runs.passages(run.outcomes["q0"])] == [LEAVE.text]
    assert [LEAVE.text in json.dumps(json.loads(row.outcome)["passages"]) for row in rows] == [False] * len(ITEMS)
    await PgStore(database).erase("default", "leave.md")
    assert await runs.passages(run.outcomes["q0"]) == []


def test_an_outcome_is_kept_whole() -> None:
    outcome = Outcome(
        "q1", "25\0 days", {"answer": "x"}, False, (("a", 1, "b"),), (passage(1, "", scores={"bm25": 1.0}),), "grounded", "x",
        ("f",), "", 0.5, timings_ms={"total": 1.5}, cost=0.1,
    )  # fmt: skip

    assert load_outcome(dump_outcome(outcome)) == replace(
        outcome, passages=(replace(outcome.passages[0], span=(0, 0)),)
    )


async def test_two_runs_are_compared_on_the_same_questions_only(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    frozen = await runs.freeze(SET, "default")
    good = await runs.run(frozen, asker(build(database, None)), SYSTEM)
    bad = await runs.run(frozen, asker(build(database, None, [SAID.replace("25", "30")])), {"version": "2"})
    other = await runs.run(
        await runs.freeze(replace(SET, items=ITEMS[:2]), "default"), asker(build(database, None)), SYSTEM
    )

    difference, _ = compare_runs(good.set.items, good.scores, bad.scores)
    refuse_other_sets(good, bad)

    assert (difference.value, difference.n) == (1.0, 6)
    with pytest.raises(InputError, match="questions differ"):
        refuse_other_sets(good, other)


async def test_the_same_set_on_the_same_corpus_is_kept_once(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")

    first, second = await runs.freeze(SET, "default"), await runs.freeze(SET, "default")
    await ingest(database, PARKING, replace(LEAVE, text="Every employee has 26 days of leave."))
    third = await runs.freeze(SET, "default")

    assert first.id == second.id != third.id
    assert changed_documents((await runs.read_set(first.id)).snapshot, third.set.snapshot) == {
        "added": 1,
        "removed": 0,
        "changed": 1,
    }
    with pytest.raises(UnknownNameError):
        await runs.freeze(SET, "nowhere")


async def test_runs_are_of_their_tenant(database: Database) -> None:
    for name in ("a", "b"):
        await add_tenant(database, name)
        await ingest(database, LEAVE, tenant=name)
    ours, theirs = Runs(database, "a"), Runs(database, "b")
    counting = asker(build(database, None, tenant="a"))
    run = await theirs.run(await theirs.freeze(SET, "default"), asker(build(database, None, tenant="b")), SYSTEM)

    assert await ours.latest() == []
    for refused in (ours.show(run.info.id), ours.remove(run.info.id)):
        with pytest.raises(UnknownNameError):
            await refused
    await ours.run(await ours.freeze(SET, "default"), counting, SYSTEM)
    assert len(counting.asked) == 6  # nothing is taken from another tenant's results

    await remove_tenant(database, "b")
    rows = await database.fetch("select count(*) as n from eval_results")
    assert [row.n for row in rows] == [0]
    async with database.ownership() as connection:
        left = await (await connection.execute("select count(*) as n from eval_sets")).fetchone()
    assert left.n <= 1  # type: ignore[union-attr]


async def test_signs_that_postgresql_cannot_hold_do_not_end_a_run(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    odd = replace(ITEMS[0], question="How many days\0 of leave?", tags=("\0",))

    class Odd:
        async def ask(self, item: Item, change: Change = Change()) -> Outcome:  # noqa: B008
            return Outcome(item.id, "25 days\0 \ud800", error="")

        async def search(self, item: Item, change: Change = Change()) -> tuple[object, ...]:  # noqa: B008
            return ()

    run = await runs.run(await runs.freeze(replace(SET, items=(odd,)), "default"), Odd(), SYSTEM)  # type: ignore[arg-type]

    assert run.set.items == (odd,)
    assert run.outcomes["q0"].text.startswith("25 days\0")


async def test_a_run_can_be_removed_and_found_by_its_name(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    frozen = await runs.freeze(SET, "default")
    run = await runs.run(frozen, asker(build(database, None)), SYSTEM, name="monday")

    assert (await runs.show("monday")).info.id == run.info.id
    await runs.remove(run.info.id)

    assert await runs.latest() == []
    assert await database.fetch("select from eval_results") == []


async def test_many_outcomes_are_kept_at_once(database: Database) -> None:
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    many = replace(SET, items=tuple(replace(ITEMS[0], id=str(number)) for number in range(60)))
    wide = PipelineAsker(build(database, None), concurrency=16)

    run = await asyncio.wait_for(runs.run(await runs.freeze(many, "default"), wide, SYSTEM), 60)

    assert len(run.outcomes) == 60
    assert {score.correct for score in run.scores.values()} == {1.0}
