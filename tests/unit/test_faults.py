"""Planted faults in a made-up system: the layer is named, alone and in pairs, and a healthy system is not accused."""

from dataclasses import replace

import pytest

from orchestrator.evaluation.archive import MemoryArchive
from orchestrator.evaluation.causes import Layer
from orchestrator.evaluation.diagnose import Remedies
from orchestrator.evaluation.faults import (
    UNCHANGED,
    Matrix,
    Plant,
    System,
    causes_of,
    confuse,
    corrupt,
    cut,
    delete,
    describe,
    future_date,
    misroute,
    poison,
    shared_faults,
    shuffle,
    swap_adapter,
    unconstrain,
)
from orchestrator.evaluation.gold import Held, Piece, weigh
from orchestrator.evaluation.items import Change, Gold, Item, ItemSet
from orchestrator.evaluation.score import score_outcome
from orchestrator.evaluation.world import ADAPTER, Noise, World, own_faults

SIZE = 60
NOISE = Noise()
SILENT = Noise(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
REMEDIES = Remedies((ADAPTER,), ("grounded", "direct"), prompt=True, strong=True)
EVERY = (*shared_faults(), swap_adapter(), *own_faults(0, SIZE))


def system(noise: Noise = NOISE, size: int = SIZE) -> System:
    world = World(0, size, noise)
    return System(world.set(), world, world)


async def matrix(plants: tuple[Plant, ...], *, with_pairs: bool, size: int = SIZE) -> Matrix:
    return await confuse(system(size=size), plants, score_outcome, remedies=REMEDIES, with_pairs=with_pairs)


async def test_single_faults_are_named_in_95_of_100_failures_for_at_most_four_calls_each() -> None:
    found = await matrix(EVERY, with_pairs=False)
    assert len(found.singles) == 12
    assert all(row.n >= 5 for row in found.singles), [describe(row) for row in found.singles]
    assert found.share(found.singles).value >= 0.95, [describe(row) for row in found.singles]
    assert all(row.calls <= 4 for row in found.singles)


@pytest.mark.parametrize(
    "plants",
    [
        (delete(), poison()),
        (cut(), swap_adapter()),
        (shuffle(), own_faults(0, SIZE)[0]),
        (misroute(), swap_adapter()),
        (corrupt(), own_faults(0, SIZE)[1]),
    ],
    ids=lambda plants: "+".join(plant.name for plant in plants),
)  # fmt: skip
async def test_pairs_are_named_in_85_of_100_failures(plants: tuple[Plant, ...]) -> None:
    (row,) = (await matrix(plants, with_pairs=True)).pairs
    assert row.n >= 15
    assert row.right.value >= 0.85, describe(row)
    assert row.calls <= 4


async def test_without_noise_nothing_fails_and_nobody_is_accused() -> None:
    found = await confuse(system(SILENT), (), score_outcome, remedies=REMEDIES)
    assert found.healthy.accuracy.value == 1
    assert found.healthy.bars == ()


async def test_a_healthy_system_is_accused_of_its_own_noise_only() -> None:
    found = await confuse(system(size=200), (), score_outcome, remedies=REMEDIES)
    rates = {
        "routed_wrong": 0.005, "not_retrieved": 0.005, "ranked_out": 0.015, "ignored_in_context": 0.025, "contract_broken": 0.005,
        "false_refusal": 0.01, "beyond_the_model": 0.01, "missed_refusal": 0.02, "wrong_citation": 0.0,
        "knowledge_missing": 0.0, "stale": 0.0, "chunked_apart": 0.0, "bad_label": 0.0,
    }  # fmt: skip
    for bar in found.healthy.bars:
        assert bar.share.low <= rates[bar.cause], causes_of(found.healthy)  # type: ignore[index]
        assert rates[bar.cause] > 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("plant", "layer", "cause"),
    [
        (delete(1.0), "knowledge", "knowledge_missing"),
        (corrupt(1.0), "knowledge", "knowledge_missing"),
        (future_date(1.0), "knowledge", "stale"),
        (cut(1.0), "retrieval", "chunked_apart"),
        (shuffle(1.0), "retrieval", "ranked_out"),
        (misroute(1.0), "router", "routed_wrong"),
        (poison(1.0), "label", "bad_label"),
        (own_faults(0, 20)[1], "behaviour", "wrong_citation"),
    ],
    ids=lambda part: part.name if isinstance(part, Plant) else str(part),
)
async def test_in_a_silent_world_each_fault_has_its_cause(plant: Plant, layer: Layer, cause: str) -> None:
    healthy = World(0, 20, replace(SILENT))
    world = own_faults(0, 20, SILENT)[1] if plant.name == "switch-contract" else plant
    found = await confuse(System(healthy.set(), healthy, healthy), (world,), score_outcome, remedies=REMEDIES)
    (row,) = found.singles
    assert plant.layer == layer
    assert row.n >= 10
    assert dict(row.named) == {layer: row.n}
    planted = world.into(System(healthy.set(), healthy, healthy))
    again = await confuse(planted, (), score_outcome, remedies=REMEDIES)
    assert set(causes_of(again.healthy)) == {cause}


async def test_a_deleted_document_is_neither_found_nor_counted() -> None:
    planted = delete(1.0).into(system(SILENT))
    item = next(each for each in planted.asked.items if each.gold)
    found = await planted.asker.search(item, Change(k=50))
    assert all(passage.external_id != item.gold[0].external_id for passage in found)
    assert not weigh(item, await planted.archive.versions(item)).ever


async def test_cut_passages_keep_their_place_in_the_document() -> None:
    planted = cut(1.0).into(system(SILENT))
    item = next(each for each in planted.asked.items if each.gold)
    (held,) = await planted.archive.versions(item)
    found = [each for each in await planted.asker.search(item, Change(k=300)) if each.external_id == held.external_id]
    assert len(found) == 2
    assert all(held.text[slice(*each.span)] == each.text for each in found)
    assert {each.span for each in found} <= {piece.span for piece in held.pieces}


async def test_what_is_unreadable_keeps_its_length() -> None:
    planted = corrupt(1.0).into(system(SILENT))
    item = next(each for each in planted.asked.items if each.gold)
    (held,) = await planted.archive.versions(item)
    assert item.gold[0].quote not in held.text
    assert len(held.text) == len(World(0, SIZE).document(int(item.id[1:])).text)


async def test_a_fault_leaves_what_a_change_mends() -> None:
    seen: list[Change] = []

    class Keeping(World):
        async def ask(self, item, change=UNCHANGED):  # type: ignore[no-untyped-def]
            seen.append(change)
            return await super().ask(item, change)

    world = Keeping(0, 5, SILENT)
    item = world.set().items[0]
    planted = System(world.set(), world, MemoryArchive(()))
    for plant in (swap_adapter(), misroute(1.0), unconstrain()):
        planted = plant.into(planted)
    await planted.asker.ask(item)
    await planted.asker.ask(item, Change(adapter="trained", route="grounded", constrained=True))
    assert (seen[0].adapter, seen[0].route, seen[0].constrained) == ("", "direct", False)
    assert (seen[1].adapter, seen[1].route, seen[1].constrained) == ("trained", "grounded", True)


async def test_a_fault_that_struck_another_document_is_no_cause_of_a_failure() -> None:
    """The reader tips over when a passage beside the gold one is another, whatever the fault was meant to do."""

    class Tipping(World):
        async def ask(self, item, change=UNCHANGED):  # type: ignore[no-untyped-def]
            outcome = await super().ask(item, change)
            tipped = change.passages is not None and len(change.passages) > 1
            return replace(outcome, text="something else") if tipped else outcome

    world = Tipping(0, 20, SILENT)
    planted = System(world.set(), world, world)
    found = await confuse(planted, (delete(0.3),), score_outcome, remedies=REMEDIES)
    (row,) = found.singles
    answerable = sum(bool(item.gold) for item in planted.asked.items)
    assert row.n > 0
    assert sum(row.tipped.values()) + row.n == answerable
    assert set(row.tipped) == {"behaviour"}
    assert "not struck: behaviour" in describe(row)


async def test_a_second_look_at_the_healthy_system_shows_what_chance_accuses() -> None:
    class Moody(World):
        async def ask(self, item, change=UNCHANGED):  # type: ignore[no-untyped-def]
            outcome = await super().ask(item, change)
            tips = self.calls > self.size and item.id == "q1" and change == UNCHANGED
            return replace(outcome, text="something else") if tips else outcome

    world = Moody(0, 10, SILENT)
    found = await confuse(System(world.set(), world, world), (), score_outcome, remedies=REMEDIES, twice=world)
    assert found.nothing is not None
    assert (found.nothing.n, dict(found.nothing.named), found.nothing.right.value) == (1, {"nobody": 1}, 1.0)
    assert found.again is not None
    assert (found.healthy.causes, found.again.causes, found.again.unsteady) == ({}, {}, ("q1",))


async def test_chosen_pairs_are_planted_and_no_others() -> None:
    plants = (delete(), cut(), poison())
    wanted = [frozenset({"poison", "delete"})]
    found = await confuse(system(), plants, score_outcome, remedies=REMEDIES, pairs=wanted)
    assert [row.planted for row in found.pairs] == ["delete + poison"]


async def test_a_cut_leaves_no_form_of_an_answer_whole() -> None:
    item = Item("q", "How many days?", ("within 30 days", "30 days"), gold=(Gold("d"),))
    text = "You pay within 30\ndays. All of it."
    held = Held("d", 1, text, pieces=(Piece(1, (0, len(text))),))
    world = World(0, 1, SILENT)
    planted = cut(1.0).into(System(ItemSet("s", (item,)), world, MemoryArchive((held,))))
    (found,) = await planted.archive.versions(item)
    assert not weigh(item, [found]).whole
    assert [text[slice(*piece.span)] for piece in found.pieces] == ["You pay within 30\n", "days. All of it."]
    assert len({piece.chunk_id for piece in found.pieces}) == 2
