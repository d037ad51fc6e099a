"""Asking the serving pipeline with one thing changed: what is changed, what stays, and that no trace is left."""

import asyncio
import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.behaviour.canary import Trial
from orchestrator.errors import EngineUnavailableError, InputError, StreamBrokenError
from orchestrator.evaluation.ask import Memory, PipelineAsker, Taught
from orchestrator.evaluation.items import Change, Item
from orchestrator.evaluation.score import score_outcome
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.pipeline import Pipeline, Served
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.router import Router
from orchestrator.settings import Settings
from orchestrator.testing import (
    HashEmbedder,
    MemoryLedger,
    MemoryServing,
    MemoryStore,
    ScriptedEngine,
    WordTokens,
    passage,
)
from orchestrator.types import Adapter

CATALOGUE = load_catalogue(folder("prompts"))
ADAPTER = Adapter("cited-answer", "a" * 64, Path("x"), "base", 16, "grounded", "d", "cited_answer", "d")
LEAVE = passage(1, "Every employee has 25 days of leave.")
PARKING = passage(2, "Parking is free.")
ITEM = Item("q1", "How many days of leave?", ("25 days",))


def written(answerable=True, citations=(1,), answer="25 days"):
    fields = {"answerable": answerable, "citations": list(citations), "evidence": "", "answer": answer}
    return CATALOGUE.contract("cited_answer").dump(fields)


async def reached(engine, count):
    """Waits until so many were asked, and a little longer."""
    async with asyncio.timeout(10):
        while len(engine.received) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.05)


class Learner(MemoryServing):
    """A serving in which a canary runs."""

    async def resolve(self, adapter, key=None):
        return dataclasses.replace(await super().resolve(adapter, key), trial=Trial(1, "canary", key or "", True))


def build(*scripts, store=None, **options):
    engine = ScriptedEngine(*(scripts or ([written()],)))
    pipeline = Pipeline(
        Settings(), CATALOGUE, Router(CATALOGUE, {}), HashEmbedder(), store or MemoryStore({"default": (LEAVE, PARKING)}, 0.9),
        Learner(engine, {"cited-answer": ADAPTER}), MemoryLedger(), WordTokens(),
    )  # fmt: skip
    return PipelineAsker(pipeline, **options), engine, pipeline


async def test_an_answer_becomes_an_outcome():
    asker, _, _ = build(price=lambda usage, adapter: usage.prompt_tokens + len(adapter))

    outcome = await asker.ask(ITEM)

    assert (outcome.item, outcome.refused, outcome.route, outcome.error) == ("q1", False, "grounded", "")
    assert outcome.cited == (("doc-1.md", 1, "Every employee has 25 days of leave."),)
    assert outcome.passages == (LEAVE, PARKING)
    assert (outcome.adapter, outcome.sufficiency) == (ADAPTER.served_name, 0.9)
    assert outcome.cost == 10 + len(ADAPTER.served_name)
    assert {"search", "generate", "total"} <= outcome.timings_ms.keys()
    assert score_outcome(ITEM, outcome).correct == 1.0


async def test_asking_leaves_no_trace():
    asker, _, pipeline = build()

    await asker.ask(ITEM)

    assert pipeline.ledger.records == []
    assert [trial for trial, _ in pipeline.serving.observed] == []


async def test_the_unchanged_question_is_the_served_one():
    asker, engine, pipeline = build()

    await asker.ask(ITEM)
    await pipeline.ask(asker._query(ITEM, Change()))

    assert engine.received[0] == engine.received[1]


@pytest.mark.parametrize(("said", "refused"), [(written(False, (), ""), True), (written(), False)])
async def test_the_contracts_refusal_is_one(said, refused):
    asker, _, _ = build([said])

    assert (await asker.ask(ITEM)).refused is refused


async def test_a_reply_without_a_model_is_a_refusal():
    asker, engine, _ = build()

    outcome = await asker.ask(Item("q1", "Help", answerable=False))

    assert (outcome.refused, outcome.route, engine.received) == (True, "clarify", [])


async def test_a_broken_contract_is_an_outcome_that_knows_what_was_shown():
    asker, _, _ = build(["no JSON"])

    outcome = await asker.ask(ITEM)

    assert outcome.error.startswith("contract: the model's output is not JSON")
    assert (outcome.text, outcome.route, outcome.passages) == ("", "grounded", (LEAVE, PARKING))
    assert (outcome.usage.prompt_tokens, outcome.adapter) == (10, ADAPTER.served_name)
    assert score_outcome(ITEM, outcome).contract_kept == 0.0


async def test_an_engine_that_is_gone_is_an_outcome():
    asker, _, _ = build([EngineUnavailableError("it does not answer")])

    outcome = await asker.ask(ITEM)

    assert (outcome.error, outcome.route) == ("engine_unavailable: it does not answer", "grounded")


async def test_given_passages_are_shown_however_little_they_seem_to_hold():
    gold = passage(9, "Leave is 30 days.")
    asker, engine, _ = build(store=MemoryStore({"default": (PARKING,)}, 0.0))

    assert (await asker.ask(ITEM)).flags == ("passages_insufficient",)
    outcome = await asker.ask(ITEM, Change("gold", passages=(gold,)))

    assert outcome.passages == (gold,)
    assert "Leave is 30 days." in engine.received[0].messages[-1].content


@pytest.mark.parametrize(
    ("change", "passages", "adapter"),
    [
        (Change(k=1), 1, True),
        (Change(min_sufficiency=0.95), 0, False),
        (Change(adapter=""), 2, False),
        (Change(route="direct"), 0, False),
        (Change(route="grounded"), 2, True),
    ],
)
async def test_one_thing_is_changed(change, passages, adapter):
    asker, _, _ = build([written()])

    outcome = await asker.ask(ITEM, change)

    assert len(outcome.passages) == passages
    assert bool(outcome.adapter) == adapter


async def test_decoding_can_be_set_free():
    asker, engine, _ = build()

    await asker.ask(ITEM)
    await asker.ask(ITEM, Change(constrained=False))

    served, free = engine.received
    assert served.schema is not None
    assert (free.schema, free.grammar) == (None, None)
    assert free.messages == served.messages


async def test_the_shipped_prompt_takes_the_place_of_a_broken_one():
    asker, engine, pipeline = build()
    good = CATALOGUE.prompts["grounded"]
    broken = dataclasses.replace(good, turns=tuple((role, f"Sing. {text}") for role, text in good.turns))
    prompts = {**CATALOGUE.prompts, "grounded": broken}
    spoilt = PipelineAsker(dataclasses.replace(pipeline, catalogue=dataclasses.replace(CATALOGUE, prompts=prompts)))

    await asker.ask(ITEM)
    await spoilt.ask(ITEM)
    await spoilt.ask(ITEM, Change(prompt="shipped"))

    as_served, sung, mended = engine.received
    assert sung.messages != as_served.messages == mended.messages


async def test_the_stronger_model_answers_without_our_adapter():
    other = ScriptedEngine([written(answer="Every employee has 25 days")])
    asker, engine, _ = build(strong=Served(other, "strong"))

    outcome = await asker.ask(ITEM, Change(engine="strong"))

    assert (outcome.text, outcome.adapter, engine.received) == ("Every employee has 25 days [1]", None, [])
    assert (await build()[0].ask(ITEM, Change(engine="strong"))).error.startswith("invalid_request: no stronger model")


class Noting(MemoryStore):
    """Remembers what it was asked."""

    def __init__(self):
        super().__init__({"default": (LEAVE, PARKING), "other": (PARKING,)})
        self.requests = []

    async def search(self, request, *, excerpts=False):
        self.requests.append(request)
        return await super().search(request)

    async def learned(self, tenant, collection):
        return None, None


async def test_mode_and_time_reach_the_search():
    store = Noting()
    asker, _, _ = build(store=store)
    then, later = datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)

    await asker.ask(dataclasses.replace(ITEM, as_of=then), Change(mode="lexical"))
    await asker.ask(dataclasses.replace(ITEM, as_of=then), Change(as_of=later))

    assert [(each.mode, each.as_of) for each in store.requests] == [("lexical", then), ("hybrid", later)]


async def test_a_search_without_a_model():
    store = Noting()
    asker, engine, _ = build(store=store)

    assert await asker.search(ITEM, Change(k=500)) == (LEAVE, PARKING)
    assert await asker.search(Item("q", "Classify: I was charged twice")) == (LEAVE, PARKING)
    assert await build(store=store, collection="other")[0].search(ITEM) == (PARKING,)
    assert [each.k for each in store.requests] == [500, 10, 5]
    assert engine.received == []


async def test_re_ranking_is_switched_in_the_real_search_only():
    class Reranker:
        async def rerank(self, query, passages):
            raise AssertionError("it was asked")

    asker, _, pipeline = build()
    real = Retriever(Noting(), HashEmbedder(), Reranker())
    switched = PipelineAsker(dataclasses.replace(pipeline, searcher=real))

    assert (await switched.ask(ITEM, Change(rerank=False))).error == ""
    assert (await asker.ask(ITEM, Change(rerank=False))).error.startswith("invalid_request: re-ranking")
    without = PipelineAsker(dataclasses.replace(pipeline, searcher=dataclasses.replace(real, reranker=None)))
    assert "no re-ranker" in (await without.ask(ITEM, Change(rerank=True))).error


async def test_only_so_many_are_asked_at_once():
    door = asyncio.Event()
    asker, engine, _ = build([door, written()], concurrency=3)

    asked = [asyncio.create_task(asker.ask(dataclasses.replace(ITEM, id=str(number)))) for number in range(10)]
    await reached(engine, 3)
    assert len(engine.received) == 3
    door.set()

    assert {outcome.item for outcome in await asyncio.gather(*asked)} == {str(number) for number in range(10)}


async def test_who_stops_asking_stops_the_model():
    asker, engine, _ = build([asyncio.Event(), written()])
    asked = asyncio.create_task(asker.ask(ITEM))
    await reached(engine, 1)

    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked

    assert engine.cancelled == 1


async def test_a_failed_search_is_no_answer_of_the_system():
    class Down(MemoryStore):
        async def search(self, request, *, excerpts=False):
            raise InputError("the collection is gone")

    asker, _, _ = build(store=Down())

    assert (await asker.ask(ITEM)).error == "invalid_request: the collection is gone"
    with pytest.raises(InputError):
        await asker.search(ITEM)


def test_the_scripts_of_this_file_keep_the_contract():
    assert json.loads(written())["answer"] == "25 days"


async def test_what_was_sent_before_is_not_sent_again():
    asker, engine, _ = build([written()], [written(answer="30 days")], memory=Memory())

    first, again, anew, other = [
        await asker.ask(ITEM, change)
        for change in (Change(), Change("again"), Change("again", anew=True), Change(passages=(LEAVE,)))
    ]

    assert (first.text, again.text, again.usage) == ("25 days [1]", "25 days [1]", first.usage)
    assert (anew.data["answer"], other.data["answer"]) == ("30 days", "30 days")
    assert len(engine.received) == 3


async def test_who_asks_for_what_is_being_written_waits_for_it():
    go = asyncio.Event()
    memory = Memory()
    asker, engine, _ = build([go, written()], memory=memory)

    asked = [asyncio.create_task(asker.ask(ITEM)) for _ in range(3)]
    await reached(engine, 1)
    go.set()

    assert {outcome.text for outcome in await asyncio.gather(*asked)} == {"25 days [1]"}
    assert (len(engine.received), memory.asked) == (1, 1)


async def test_a_failure_is_not_remembered_and_who_waited_asks_for_himself():
    go = asyncio.Event()
    asker, engine, _ = build([go, "{", StreamBrokenError("gone")], [written()], memory=Memory())

    asked = [asyncio.create_task(asker.ask(ITEM)) for _ in range(2)]
    await reached(engine, 1)
    go.set()

    assert sorted(outcome.error for outcome in await asyncio.gather(*asked)) == ["", "stream_broken: gone"]
    assert len(engine.received) == 2


async def test_a_file_is_remembered_by_the_next_process_but_for_a_line_that_was_cut_off(tmp_path):
    file = tmp_path / "memory.jsonl"
    asker, _, _ = build(memory=Memory(file))
    await asker.ask(ITEM)
    file.write_text(file.read_text() + '["half')

    later, engine, _ = build([written(answer="30 days")], memory=Memory(file))

    assert (await later.ask(ITEM)).text == "25 days [1]"
    assert engine.received == []


class Learned:
    """A stronger model."""

    def __init__(self, text):
        self.text, self.asked = text, []

    async def complete(self, messages, schema):
        self.asked.append((messages, schema))
        return self.text


@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```", "  {}\n"])
async def test_a_stronger_model_behind_any_endpoint_gets_the_prompt_and_the_schema(fence):
    teacher = Learned(fence.replace("{}", written()))
    asker, engine, _ = build(strong=Served(Taught(teacher, "big"), "big"))

    outcome = await asker.ask(ITEM, Change(engine="strong"))

    assert (outcome.text, outcome.adapter, outcome.error) == ("25 days [1]", None, "")
    ((messages, schema),) = teacher.asked
    assert messages[0]["role"] == "system"
    assert "25 days of leave" in messages[-1]["content"]
    assert "answerable" in schema["properties"]
    assert engine.received == []


async def test_a_stronger_model_counts_generously_and_takes_no_adapter():
    taught = Taught(Learned(""), "big")

    assert await taught.count_tokens([{"role": "user", "content": "a" * 300}], "big") >= 100
    assert (await taught.models(), await taught.is_ready()) == (["big"], True)
    with pytest.raises(InputError, match="big takes no adapter"):
        await taught.load_adapter("a", "b")


async def test_a_route_as_shipped_asks_with_the_packages_prompt_contract_and_adapter():
    asker, engine, pipeline = build([written()])
    route = dataclasses.replace(CATALOGUE.route("grounded"), prompt="direct", contract="text_answer", adapter=None)
    broken = dataclasses.replace(CATALOGUE, routes={**CATALOGUE.routes, "grounded": route})
    router = dataclasses.replace(pipeline.router, catalogue=broken)
    theirs = PipelineAsker(dataclasses.replace(pipeline, catalogue=broken, router=router))

    served, shipped, healthy = [
        await each.ask(ITEM, change)
        for each, change in ((theirs, Change()), (theirs, Change(prompt="shipped")), (asker, Change()))
    ]

    assert served.adapter is None
    assert (shipped.adapter, shipped.data) == (healthy.adapter, healthy.data)
    assert engine.received[1] == engine.received[2]


async def test_a_passage_of_no_stored_document_is_cited_and_not_looked_up():
    class Strict(MemoryStore):
        async def mark_changes(self, request, citations):
            assert all(each.document_id for each in citations)
            return await super().mark_changes(request, citations)

    asker, _, _ = build(store=Strict({"default": (LEAVE,)}, 0.9))
    item = dataclasses.replace(ITEM, as_of=datetime(2024, 6, 1, tzinfo=UTC))

    outcome = await asker.ask(item, Change(passages=(dataclasses.replace(LEAVE, document_id=""),)))

    assert (outcome.error, outcome.data["answer"], len(outcome.cited)) == ("", "25 days", 1)
