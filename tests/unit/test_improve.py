"""The walk: what is chosen on one half is decided on the other, kept only when it helps there, and little else is touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.improve import offer_training
from orchestrator.cli.output import Output
from orchestrator.errors import InputError
from orchestrator.evaluation import improve as module
from orchestrator.evaluation.causes import Diagnosis, draw_bars, share_of
from orchestrator.evaluation.diagnose import Remedies, diagnose
from orchestrator.evaluation.improve import Earlier, Measured, State, Try, Walk, decide, improve, sentence
from orchestrator.evaluation.items import Change, Item, ItemSet, Outcome, Score
from orchestrator.evaluation.knobs import (
    REMEDIES,
    Knobs,
    Prospect,
    depths,
    edit_routes,
    halve,
    rank_remedies,
    thresholds,
)
from orchestrator.evaluation.score import score_outcome
from orchestrator.evaluation.sets import Question
from orchestrator.evaluation.tune import split_questions
from orchestrator.evaluation.world import ADAPTER, Noise, World
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings

SILENT = Noise(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
LOW = replace(SILENT, low=0.3)  # 3 of 10 gold passages stand at 6 to 35
UNSET = Knobs()
BEST = Knobs(dense=0.5)


@cache
def world(seed: int, size: int, noise: Noise) -> World:
    """One for all tests: what it remembers of itself is the slow part."""
    return World(seed, size, noise)


@dataclass
class MadeUp:
    """A made-up world behind the knobs. ``dense`` 1: its lexical leg is off. ``values``: what is tried for each remedy.

    ``lucky``: questions that come out right, whatever is wrong, as soon as a knob is turned.
    """

    world: World
    set_to: Knobs = UNSET
    values: Mapping[str, Sequence[Knobs]] = field(default_factory=dict)
    lucky: frozenset[str] = frozenset()
    before: list[Earlier] = field(default_factory=list)
    writable: bool = True
    stamps: list[str] = field(default_factory=list)  # the next ones, the last first
    collection: str = "world"
    search_only: bool = False
    seen: dict[str, set[str]] = field(default_factory=dict)  # by stage: the questions that it saw
    kept: list[Try] = field(default_factory=list)
    declined: list[Try] = field(default_factory=list)

    async def knobs(self) -> Knobs:
        return self.set_to

    async def stamp(self) -> str:
        return self.stamps.pop() if self.stamps else "as built"

    async def measure(self, half: ItemSet, knobs: Knobs, title: str) -> Measured:
        self._see(title.partition(":")[0], half)
        outcomes = {item.id: await self._ask(item, knobs) for item in half.items}
        return Measured(outcomes, {item.id: score_outcome(item, outcomes[item.id]) for item in half.items})

    async def diagnose(self, half: ItemSet, measured: Measured, knobs: Knobs) -> Diagnosis:
        self._see("diagnosing", half)
        remedies = Remedies((ADAPTER,), ("grounded",), strong=True)
        asker = Turned(self.world, self._change(knobs))
        return await diagnose(half, measured.outcomes, asker, self.world, score_outcome, remedies=remedies)

    async def propose(self, prospect: Prospect, half: ItemSet, measured: Measured, knobs: Knobs) -> Sequence[Knobs]:
        self._see("proposing", half)
        return self.values.get(prospect.remedy.name, ())

    async def earlier(self, held: str) -> Sequence[Earlier]:
        return self.before

    async def keep(self, tried: Try) -> tuple[State, str, str]:
        self.kept.append(tried)
        if not self.writable:
            return "proposed", "-k = 5\n+k = 8", "imp_1"
        self.set_to = tried.after
        return "kept", "dense 1 -> 0.5", "imp_1"

    async def decline(self, tried: Try) -> str:
        self.declined.append(tried)
        return "imp_2"

    async def _ask(self, item: Item, knobs: Knobs) -> Outcome:
        if knobs != self.set_to and item.id in self.lucky:
            return await self.world.ask(item, Change())
        return await self.world.ask(item, self._change(knobs))

    def _change(self, knobs: Knobs) -> Change:
        return Change(mode="dense" if knobs.dense == 1 else None, k=knobs.k, min_sufficiency=knobs.min_sufficiency)

    def _see(self, stage: str, half: ItemSet) -> None:
        self.seen.setdefault(stage, set()).update(item.id for item in half.items)


@dataclass
class Turned:
    """The world with a change beneath every other one."""

    world: World
    under: Change

    async def ask(self, item: Item, change: Change) -> Outcome:
        return await self.world.ask(item, self._both(change))

    async def search(self, item: Item, change: Change) -> Any:
        return await self.world.search(item, self._both(change))

    def _both(self, change: Change) -> Change:
        return replace(change, mode=change.mode or self.under.mode, k=change.k or self.under.k)


def badly_set(**options: Any) -> MadeUp:
    """All on the dense leg, and the remedy is at hand."""
    return MadeUp(world(0, 120, SILENT), Knobs(dense=1.0), {"search weights": [BEST]}, **options)


async def walk(system: MadeUp, **options: Any) -> Walk:
    return await improve(system.world.set(), system, **options)


async def test_a_collection_that_is_searched_badly_is_noticed_mended_and_kept() -> None:
    system = badly_set()

    found = await walk(system)

    (attempt,) = found.attempts
    assert found.prospects[0][0] == attempt.remedy == "search weights"
    assert (attempt.state, attempt.before, attempt.after) == ("kept", Knobs(dense=1.0), BEST)
    assert attempt.decision is not None
    assert attempt.decision.difference.low > 0.1
    assert attempt.decision.after.value == 1.0
    assert (system.set_to, [each.after for each in system.kept]) == (BEST, [BEST])
    assert "a gain of" in attempt.said
    assert found.next == ()


async def test_a_remedy_that_helps_the_half_that_chose_it_only_is_not_kept() -> None:
    asked = world(0, 120, SILENT).set()
    chosen, _ = halve(asked)
    system = badly_set(lucky=frozenset(item.id for item in chosen.items))
    system.values = {"search weights": [Knobs(dense=1.0, second=0.9)]}

    async def as_it_is(item: Item, knobs: Knobs) -> Outcome:
        helped = knobs.second is not None and item.id in system.lucky
        return await system.world.ask(item, Change() if helped else Change(mode="dense"))

    system._ask = as_it_is  # type: ignore[method-assign]
    found = await walk(system)

    (attempt,) = found.attempts
    assert attempt.state == "declined"
    assert attempt.chosen is not None
    assert attempt.chosen[1] > attempt.chosen[0] + 0.1
    assert (system.kept, system.set_to) == ([], Knobs(dense=1.0))
    assert [each.decision.verdict for each in system.declined] == ["no gain"]


async def test_were_the_halves_one_the_same_remedy_would_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test before this one can fail: it is the split alone that refuses the remedy."""
    chosen, _ = halve(world(0, 120, SILENT).set())
    monkeypatch.setattr(module, "halve", lambda asked: (chosen, chosen))
    system = badly_set(lucky=frozenset(item.id for item in chosen.items))

    found = await walk(system)

    assert [each.state for each in found.attempts] == ["kept"]


async def test_the_half_that_decides_is_seen_by_nothing_that_chooses() -> None:
    system = badly_set()
    system.values = {"search weights": [BEST], "depth": [Knobs(k=8)], "threshold": [Knobs(min_sufficiency=0.0)]}
    chosen, held = ({item.id for item in half.items} for half in halve(system.world.set()))

    await walk(system, steps=3)

    deciding = {stage: seen for stage, seen in system.seen.items() if stage == "deciding"}
    others = [seen for stage, seen in system.seen.items() if stage != "deciding"]
    assert deciding == {"deciding": held}
    assert {"asking", "diagnosing", "proposing", "choosing"} <= system.seen.keys()
    assert all(seen == chosen for seen in others)
    assert not chosen & held


async def test_what_makes_no_more_answers_right_is_not_put_before_the_other_half() -> None:
    system = badly_set()
    system.values = {"search weights": [Knobs(dense=1.0, second=0.1)]}

    found = await walk(system)

    assert [each.state for each in found.attempts] == ["not chosen", "not chosen"][: len(found.attempts)]
    assert "deciding" not in system.seen
    assert (system.kept, system.declined) == ([], [])


async def test_a_gain_that_few_questions_cannot_show_says_how_many_would() -> None:
    system = MadeUp(
        world(1, 60, replace(SILENT, low=0.1)),
        Knobs(),
        {"depth": [Knobs(route="grounded", k=20), Knobs(route="grounded", k=40)]},
    )

    found = await walk(system)

    (attempt,) = (each for each in found.attempts if each.decision)
    assert attempt.decision is not None
    assert (attempt.state, attempt.decision.verdict) == ("declined", "unclear")
    assert attempt.decision.more > 20
    assert f"about {attempt.decision.more} more are needed" in attempt.said
    assert system.set_to == Knobs()


async def test_of_several_values_the_best_on_the_choosing_half_is_decided_on() -> None:
    values = [Knobs(route="grounded", k=each) for each in (2, 40, 8)]
    system = MadeUp(world(0, 120, LOW), Knobs(), {"depth": values})

    found = await walk(system)

    (attempt,) = (each for each in found.attempts if each.decision)
    assert (attempt.remedy, attempt.after, attempt.state) == ("depth", values[1], "kept")


async def test_steps_go_on_with_what_was_kept_and_try_each_remedy_once() -> None:
    mixed = world(0, 160, LOW)
    deep = Knobs(dense=0.5, route="grounded", k=40)
    system = MadeUp(mixed, Knobs(dense=1.0), {"search weights": [BEST], "depth": [deep]})

    one = await walk(MadeUp(mixed, Knobs(dense=1.0), system.values))
    both = await walk(system, steps=5)

    assert [each.remedy for each in one.attempts if each.decision] == ["search weights"]
    assert [(each.remedy, each.state) for each in both.attempts] == [("search weights", "kept"), ("depth", "kept")]
    assert both.attempts[1].before == BEST
    assert both.attempts[1].decision is not None
    assert both.attempts[1].decision.looks == 2
    assert any("looked at 2 times; the next look needs p <= 0.0167" in note for note in both.notes)


async def test_what_is_a_persons_to_change_is_proposed() -> None:
    system = badly_set(writable=False)

    found = await walk(system)

    assert [(each.state, each.edit) for each in found.attempts] == [("proposed", "-k = 5\n+k = 8")]
    assert system.set_to == Knobs(dense=1.0)


async def test_a_dry_run_tries_nothing() -> None:
    system = badly_set()

    found = await walk(system, dry_run=True)

    assert (found.attempts, system.kept, system.seen.keys()) == ((), [], {"asking", "diagnosing"})
    assert found.prospects[0][0] == "search weights"


async def test_what_was_decided_against_is_not_tried_again_until_something_else_changes() -> None:
    again = badly_set(before=[Earlier("as built", BEST, "no gain")])
    other = badly_set(before=[Earlier("built otherwise", BEST, "no gain")])

    assert next(each.state for each in (await walk(again)).attempts) == "tried before"
    assert "deciding" not in again.seen
    (attempt,) = (await walk(other)).attempts
    assert attempt.state == "kept"
    assert attempt.decision is not None
    assert attempt.decision.looks == 2


async def test_nothing_is_decided_when_documents_change_meanwhile() -> None:
    system = badly_set(stamps=["of new documents", "as built"])

    with pytest.raises(InputError, match="changed while both were measured"):
        await walk(system)

    assert (system.kept, system.declined) == ([], [])


async def test_few_questions_are_refused() -> None:
    with pytest.raises(InputError, match="at least 60 are needed"):
        await walk(MadeUp(world(0, 30, SILENT)))


async def test_what_is_left_names_commands_and_which_of_them_train() -> None:
    system = MadeUp(world(0, 120, replace(SILENT, broken=0.2, distracted=0.2)))

    found = await walk(system)

    left = {step.cause: step for step in found.next}
    assert (left["ignored_in_context"].trains, left["contract_broken"].trains) == (True, False)
    assert left["ignored_in_context"].command.startswith("orchestrator train")
    assert left["ignored_in_context"].gain.value > 0.02


# the decision


def measured(right: Sequence[float]) -> tuple[list[Item], Measured]:
    items = [Item(f"q{at}", f"What is {at}?", ("x",)) for at in range(len(right))]
    return items, Measured({}, {item.id: Score(value) for item, value in zip(items, right, strict=True)})


@pytest.mark.parametrize(
    ("was", "would", "looks", "verdict"),
    [
        ([0] * 20 + [1] * 20, [1] * 12 + [0] * 8 + [1] * 20, 1, "gain"),
        ([0] * 20 + [1] * 20, [1] * 7 + [0] * 13 + [1] * 20, 1, "gain"),
        ([0] * 20 + [1] * 20, [1] * 7 + [0] * 13 + [1] * 20, 8, "unclear"),
        ([0] * 20 + [1] * 20, [1] * 2 + [0] * 18 + [1] * 20, 1, "unclear"),
        ([0] * 6, [1] * 3 + [0] * 3, 1, "unclear"),  # its interval lies above zero
        ([0] * 20 + [1] * 20, [0] * 20 + [1] * 20, 1, "no gain"),
        ([0] * 20 + [1] * 20, [0] * 25 + [1] * 15, 1, "no gain"),
    ],
)
def test_a_gain_is_one_by_interval_and_by_permutation(
    was: list[float], would: list[float], looks: int, verdict: str
) -> None:
    items, before = measured(was)
    _, after = measured(would)

    found = decide(items, before, after, looks)

    assert found.verdict == verdict
    assert (found.before.value, found.after.value) == (sum(was) / len(was), sum(would) / len(would))
    assert sentence(found).startswith({"gain": "a gain of", "no gain": "no gain", "unclear": "not enough"}[verdict])


def test_the_interval_alone_would_have_called_three_of_six_a_gain() -> None:
    items, before = measured([0] * 6)
    _, after = measured([1] * 3 + [0] * 3)

    assert decide(items, before, after, 1).difference.is_gain


# halves


def asked_of(count: int) -> ItemSet:
    return ItemSet("made", tuple(Item(f"q{at:03d}", f"What is thing {at}?", ("x",)) for at in range(count)))


def test_a_question_stays_in_its_half_in_every_sample_and_in_that_of_tuning() -> None:
    asked = asked_of(200)
    chosen, held = ([item.id for item in half.items] for half in halve(asked))
    fewer, _ = ([item.id for item in half.items] for half in halve(replace(asked, items=asked.items[::2])))
    train, _ = split_questions([Question(item.id, item.question, {"d": 1.0}) for item in asked.items])

    assert sorted([*chosen, *held]) == [item.id for item in asked.items]
    assert 0.35 < len(chosen) / 200 < 0.65
    assert fewer == [name for name in chosen if name in {item.id for item in asked.items[::2]}]
    assert chosen == [question.id for question in train]


def test_a_question_that_stands_twice_is_in_one_half() -> None:
    items = asked_of(60).items
    twice = tuple(replace(item, id=f"copy-{item.id}", question=f" {item.question.upper()}  ") for item in items)

    chosen, held = (
        {" ".join(i.question.lower().split()) for i in half.items} for half in halve(ItemSet("two", (*items, *twice)))
    )

    assert not chosen & held


# remedies


def found(causes: dict[str, tuple[Any, ...]], n: int = 100) -> Diagnosis:
    return Diagnosis("made", "0", n, share_of(n - len(causes), n), draw_bars(causes, n), causes=causes)


def test_the_remedy_with_the_highest_ceiling_is_first_and_the_worthless_are_left_out() -> None:
    causes = {f"r{at}": ("false_refusal",) for at in range(9)} | {f"s{at}": ("not_retrieved",) for at in range(5)}
    causes |= {"t": ("ignored_in_context",), "u": ("ranked_out", "contract_broken")}

    ranked = rank_remedies(found(causes), worth=0.02)
    everything = rank_remedies(found(causes), worth=0.01)
    searching = rank_remedies(found(causes), worth=0.01, search_only=True)

    assert [(each.remedy.name, len(each.items)) for each in ranked] == [("threshold", 9), ("search weights", 5)]
    assert [each.remedy.name for each in everything] == ["threshold", "search weights", "depth", "excerpts"]
    assert [each.remedy.name for each in searching] == ["search weights", "depth", "excerpts"]
    assert rank_remedies(found({}), worth=0.0) == []


def test_no_remedy_trains_or_deletes_by_itself() -> None:
    assert {remedy.cost for remedy in REMEDIES} <= {"free", "re-index"}


@pytest.mark.parametrize(("k", "tried"), [(5, [8, 10, 2]), (1, [2]), (2, [3, 4, 1]), (20, [10]), (12, [18, 6])])
def test_depths_around_what_is_set(k: int, tried: list[int]) -> None:
    assert depths(k) == tried


def test_a_threshold_is_set_where_most_come_out_right() -> None:
    items = [Item(f"q{at}", "?", ("x",), answerable=at >= 10) for at in range(40)]
    opened = {item.id: Outcome(item.id, sufficiency=at / 40) for at, item in enumerate(items)}
    scores = {item.id: Score(float(item.answerable)) for item in items}

    (best,) = thresholds(items, opened, scores, 0.0)
    assert 0.2 < best <= 0.3
    assert thresholds(items, opened, scores, 0.24) == []
    (lower,) = thresholds(items, opened, scores, 0.9)
    assert lower < 0.3


def test_without_a_signal_the_threshold_can_only_be_taken_away() -> None:
    items = [Item("q", "?", ("x",))]
    assert thresholds(items, {"q": Outcome("q")}, {"q": Score(1.0)}, 0.2) == [0.0]
    assert thresholds(items, {"q": Outcome("q")}, {"q": Score(1.0)}, 0.0) == []


# routes.toml


SHIPPED = (folder("prompts") / "routes.toml").read_text("utf-8")


def test_one_number_of_one_route_is_changed_and_no_other_byte(tmp_path: Any) -> None:
    edited = edit_routes(SHIPPED, "routes.grounded", "min_sufficiency", 0.05)

    differing = [(old, new) for old, new in zip(SHIPPED.split("\n"), edited.split("\n"), strict=True) if old != new]
    ((old, new),) = differing
    assert old.replace("0.2  ", "0.05  ") == new
    assert "# refuse unasked" in new
    (tmp_path / "routes.toml").write_text(edited)
    assert edit_routes(edited, "routes.grounded", "min_sufficiency", 0.2) == SHIPPED


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        (
            "[routes.a]\r\nk = 5 # five\r\n[routes.b]\r\nk = 5\r\n",
            "[routes.a]\r\nk = 8 # five\r\n[routes.b]\r\nk = 5\r\n",
        ),
        ('[routes."a"]\nprompt = "k = 5"\nk=5\n', '[routes."a"]\nprompt = "k = 5"\nk=8\n'),
        ("[routes.a]\nexcerpts = true\n", "[routes.a]\nk = 8\nexcerpts = true\n"),
        (
            "[routes.b]\nk = 5\n\n[ routes . a ]  # the first\nk = 1",
            "[routes.b]\nk = 5\n\n[ routes . a ]  # the first\nk = 8",
        ),
    ],
)
def test_files_of_people_keep_their_form(text: str, edited: str) -> None:
    assert edit_routes(text, "routes.a", "k", 8) == edited


def test_the_router_has_a_table_of_its_own() -> None:
    edited = edit_routes(SHIPPED, "router", "margin", 0.05)

    assert edited == SHIPPED.replace("margin = 0.03 ", "margin = 0.05 ")


def test_a_switch_is_written_as_toml_has_it() -> None:
    edited = edit_routes("[routes.a]\nexcerpts = false # whole chunks\n", "routes.a", "excerpts", True)
    assert edited == "[routes.a]\nexcerpts = true # whole chunks\n"


@pytest.mark.parametrize(
    "text",
    [
        "[routes]\na = { k = 5 }\n",
        "[routes]\na.k = 5\n",
        "[routes.b]\nk = 5\n",
        '[routes.a]\nk = """\n5"""\n',
        "[routes.a\n",
    ],
)
def test_a_file_that_cannot_be_edited_safely_is_left_alone(text: str) -> None:
    with pytest.raises(InputError, match="by hand"):
        edit_routes(text, "routes.a", "k", 8)


def test_the_edited_file_loads(tmp_path: Any) -> None:
    import shutil

    shutil.copytree(folder("prompts"), tmp_path / "prompts")
    file = tmp_path / "prompts" / "routes.toml"
    file.write_text(edit_routes(SHIPPED, "routes.grounded", "k", 8))

    assert load_catalogue(tmp_path / "prompts").route("grounded").k == 8


# training is asked for


class Started:
    """In place of the child that trains."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []

    async def __call__(self, *command: str, **options: Any) -> "Started":
        self.commands.append(command)
        return self

    async def wait(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("yes", "data", "started"), [(False, "rows.jsonl", 0), (True, "rows.jsonl", 1), (True, None, 0)]
)
async def test_nothing_is_trained_unless_it_is_asked_for(
    yes: bool, data: str | None, started: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = await walk(MadeUp(world(0, 120, replace(SILENT, distracted=0.3))), dry_run=True)
    child = Started()
    monkeypatch.setattr("asyncio.create_subprocess_exec", child)

    await offer_training(Output(False), Settings(), found, Path(data) if data else None, yes)

    assert any(step.trains for step in found.next)
    assert len(child.commands) == started
    assert ("not trained without being asked to" in capsys.readouterr().err) is (data is not None and not yes)
    assert all(command[3:6] == ("train", "--data", "rows.jsonl") for command in child.commands)
