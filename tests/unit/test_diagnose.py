"""The diagnosis: each rule named on a question that only it explains, two causes, the budget, and the waterfall."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from orchestrator.errors import InputError
from orchestrator.evaluation.archive import MemoryArchive
from orchestrator.evaluation.causes import CAUSES, COMMANDS, LAYER_OF, Diagnosis, draw_bars, draw_ceilings
from orchestrator.evaluation.diagnose import HOPELESS, Remedies, diagnose, remedies_of
from orchestrator.evaluation.gold import Held, Piece, weigh
from orchestrator.evaluation.items import Change, Fault, Gold, Item, ItemSet, Outcome
from orchestrator.evaluation.score import score_outcome
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import passage
from orchestrator.types import Adapter, Passage, Usage

QUOTE = "Annual leave is 25 days for all staff."
TEXT = f"The handbook.\n\n{QUOTE}\n\nIt was approved in May."
AT = TEXT.index(QUOTE)
WHOLE = Piece(1, (AT, AT + len(QUOTE)))
HELD = Held("leave", 1, TEXT, sha256="s1", pieces=(WHOLE,))
ITEM = Item("q", "How many days of leave?", ("25 days",), gold=(Gold("leave", None, QUOTE),), route="grounded")
OTHERS = tuple(passage(at, f"Paragraph {at} is about other things.", external_id=f"other-{at}") for at in range(2, 8))
GOLD = Passage(1, "", "leave", 1, "", QUOTE, WHOLE.span, 0, 1.0)
ROOM = Remedies(times=50.0)
EVERYTHING = replace(ROOM, adapters=("trained",), prompt=True, strong=True)

UNCHANGED = Change()

Reader = Callable[[Change, tuple[Passage, ...]], str]


@dataclass
class Scripted:
    """An asker whose ranking is given, and whose answer follows from the change and from what is shown."""

    reader: Reader
    ranking: tuple[Passage, ...] = (GOLD, *OTHERS)
    route: str = "grounded"
    changes: list[Change] = field(default_factory=list)

    async def ask(self, item: Item, change: Change = UNCHANGED) -> Outcome:
        self.changes.append(change)
        route = change.route or self.route
        shown = change.passages if change.passages is not None else self.ranking[:5]
        shown = () if route in ("direct", "extract") else shown
        text = self.reader(replace(change, route=route), shown)
        served = Outcome(item.id, passages=shown, route=route, usage=Usage(9, 9))
        if text.startswith("contract"):
            return replace(served, error=text)
        if text == "refused":
            return replace(served, refused=True)
        if text == "gated":
            return replace(served, refused=True, passages=(), flags=("passages_insufficient",), usage=Usage())
        source, _, said = text.rpartition(">")
        cited = next((each for each in shown if each.external_id == source), None)
        return replace(served, text=said, cited=((source, cited.version, cited.text),) if cited else ())

    async def search(self, item: Item, change: Change = UNCHANGED) -> tuple[Passage, ...]:
        return self.ranking[: change.k or 5]


def holds_gold(shown: tuple[Passage, ...]) -> bool:
    return any(QUOTE in each.text for each in shown)


def reads(change: Change, shown: tuple[Passage, ...]) -> str:
    """A sound reader: it needs the words in the passages."""
    return "leave>25 days" if holds_gold(shown) else "refused"


async def find(asker: Scripted, *, item: Item = ITEM, held: tuple[Held, ...] = (HELD,), **options: object) -> Diagnosis:
    outcome = await asker.ask(item)
    asker.changes.clear()
    snapshot = options.pop("snapshot", {})
    asked = ItemSet("set", (item,), snapshot=snapshot)  # type: ignore[arg-type]
    options = {"remedies": ROOM, **options}
    return await diagnose(asked, {item.id: outcome}, asker, MemoryArchive(held), score_outcome, **options)  # type: ignore[arg-type]


async def test_a_right_answer_accuses_nobody() -> None:
    found = await find(Scripted(reads))
    assert (found.causes, found.unsteady, found.accuracy.value) == ({}, (), 1.0)


async def test_a_document_that_was_deleted_is_missing() -> None:
    found = await find(Scripted(reads, OTHERS), held=(replace(HELD, counts=False, holds=False),))
    assert found.causes == {"q": ("knowledge_missing",)}


async def test_a_document_that_never_was_is_missing_and_its_quote_is_shown_instead() -> None:
    asker = Scripted(reads, OTHERS)
    found = await find(asker, held=())
    assert found.causes == {"q": ("knowledge_missing",)}
    assert any(change.passages and change.passages[0].text == QUOTE for change in asker.changes)


async def test_words_that_are_no_longer_in_the_document_are_missing() -> None:
    other = replace(HELD, text=TEXT.replace("25", "xx"), sha256="s2")
    found = await find(Scripted(reads, OTHERS), held=(other,), snapshot={"leave": "s1"})
    assert found.causes == {"q": ("knowledge_missing",)}


async def test_a_version_that_does_not_hold_yet_is_stale_and_the_note_says_since_when() -> None:
    later = replace(HELD, holds=False, valid_from=datetime(2100, 1, 1, tzinfo=UTC))
    found = await find(Scripted(reads, OTHERS), held=(later,))
    assert found.causes == {"q": ("stale",)}
    assert "2100-01-01" in found.notes["q"]


async def test_words_cut_by_chunks_are_chunked_apart() -> None:
    middle = AT + 18
    cut = replace(HELD, pieces=(Piece(1, (AT, middle)), Piece(2, (middle, WHOLE.span[1]))))
    found = await find(Scripted(reads, OTHERS), held=(cut,))
    assert found.causes == {"q": ("chunked_apart",)}


async def test_a_piece_that_would_do_alone_was_overlooked_not_cut() -> None:
    start = TEXT.index("25 days")
    cut = replace(HELD, pieces=(Piece(1, (AT, start)), Piece(2, (start, WHOLE.span[1]))))
    piece = replace(GOLD, chunk_id=2, text=TEXT[start : WHOLE.span[1]], span=(start, WHOLE.span[1]))

    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        first_or_alone = shown[0].external_id == "leave" and (len(shown) == 1 or QUOTE in shown[0].text)
        return "leave>25 days" if first_or_alone else "other-2>nothing"

    found = await find(Scripted(reader, (*OTHERS[:2], piece, *OTHERS[2:])), held=(cut,))
    assert found.causes == {"q": ("ignored_in_context",)}


@pytest.mark.parametrize(("ranking", "cause"), [(OTHERS, "not_retrieved"), ((*OTHERS, GOLD), "ranked_out")])
async def test_a_passage_that_is_not_shown_was_not_found_or_ranked_out(
    ranking: tuple[Passage, ...], cause: str
) -> None:
    found = await find(Scripted(reads, ranking))
    assert found.causes == {"q": (cause,)}
    assert found.calls == 2  # asked again, and with the gold passage


async def test_a_passage_among_others_that_is_not_read_is_ignored() -> None:
    found = await find(Scripted(lambda change, shown: reads(change, shown) if len(shown) == 1 else "other-2>30 days"))
    assert found.causes == {"q": ("ignored_in_context",)}


async def test_a_refusal_in_the_face_of_the_answer_is_false() -> None:
    found = await find(Scripted(lambda change, shown: reads(change, shown) if len(shown) == 1 else "refused"))
    assert found.causes == {"q": ("false_refusal",)}


async def test_a_threshold_that_keeps_the_answer_out_is_a_false_refusal() -> None:
    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return reads(change, shown) if change.min_sufficiency == 0 or change.passages else "gated"

    asker = Scripted(reader)
    found = await find(asker)
    assert found.causes == {"q": ("false_refusal",)}
    assert [(change.min_sufficiency, change.anew) for change in asker.changes] == [(0, False), (None, True)]


async def test_a_threshold_that_is_right_about_what_was_found_is_not_to_blame() -> None:
    found = await find(Scripted(lambda change, shown: reads(change, shown) if change.passages else "gated", OTHERS))
    assert found.causes == {"q": ("not_retrieved",)}


async def test_a_broken_contract_that_constrained_decoding_mends() -> None:
    found = await find(Scripted(lambda change, shown: reads(change, shown) if change.constrained else "contract: no"))
    assert found.causes == {"q": ("contract_broken",)}


async def test_a_passage_not_found_and_a_contract_broken_behind_it_are_two_causes() -> None:
    found = await find(
        Scripted(lambda change, shown: reads(change, shown) if change.constrained else "contract: no", OTHERS)
    )
    assert found.causes == {"q": ("not_retrieved", "contract_broken")}


async def test_a_contract_that_nothing_keeps_is_to_blame_whatever_the_model_is() -> None:
    found = await find(Scripted(lambda change, shown: "contract: no"), remedies=EVERYTHING)
    assert (found.causes, found.notes["q"]) == ({"q": ("contract_broken",)}, "no change kept the contract")


async def test_an_adapter_that_mends_it_is_named_by_the_sign() -> None:
    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return reads(change, shown) if change.adapter == "trained" else "refused"

    found = await find(Scripted(reader), remedies=EVERYTHING)
    assert found.causes == {"q": ("false_refusal",)}


async def test_a_right_answer_with_another_source_is_a_wrong_citation() -> None:
    asker = Scripted(lambda change, shown: "other-2>25 days")
    found = await find(asker)
    assert found.causes == {"q": ("wrong_citation",)}
    assert (found.accuracy.value, found.calls) == (0, 1)


async def test_what_cannot_be_answered_and_was_is_a_missed_refusal() -> None:
    item = Item("q", "Who owns the moon?", answerable=False, route="grounded")
    found = await find(Scripted(lambda change, shown: "other-2>a king"), item=item, held=())
    assert found.causes == {"q": ("missed_refusal",)}


async def test_the_route_of_the_item_mends_it() -> None:
    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return reads(change, shown) if change.route == "grounded" else "hello"

    asker = Scripted(reader, route="direct")
    found = await find(asker)
    assert found.causes == {"q": ("routed_wrong",)}
    assert found.notes["q"] == "route grounded mends it"


async def test_another_route_is_tried_when_the_item_names_none() -> None:
    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return "25 days" if change.route == "extract" else "30 days"

    item = Item("q", "Which days does 'from 25 days' name?", ("25 days",))
    asker = Scripted(reader, route="direct")
    found = await find(asker, item=item, held=(), remedies=replace(ROOM, routes=("direct", "extract")))
    assert found.causes == {"q": ("routed_wrong",)}


async def test_a_stronger_model_that_reads_it_shows_that_the_model_is_too_weak() -> None:
    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return reads(change, shown) if change.engine == "strong" else "other-2>30 days"

    found = await find(Scripted(reader), remedies=EVERYTHING)
    assert found.causes == {"q": ("beyond_the_model",)}
    assert "q" not in found.notes


async def test_without_a_stronger_model_the_note_says_that_it_was_not_tested() -> None:
    found = await find(Scripted(lambda change, shown: "other-2>30 days"))
    assert (found.causes, found.notes["q"]) == ({"q": ("beyond_the_model",)}, "no stronger model was asked")


async def test_a_label_that_its_own_quote_does_not_say_is_bad_and_no_model_is_asked() -> None:
    found = await find(Scripted(reads), item=replace(ITEM, answers=("30 days",)))
    assert (found.causes, found.calls) == ({"q": ("bad_label",)}, 0)


async def test_behind_a_bad_label_a_missing_document_is_still_seen() -> None:
    gone = replace(HELD, counts=False, holds=False)
    found = await find(Scripted(reads, OTHERS), item=replace(ITEM, answers=("30 days",)), held=(gone,))
    assert found.causes == {"q": ("knowledge_missing", "bad_label")}


async def test_an_unchanged_document_without_the_labels_words_makes_the_label_bad_when_nothing_mends_it() -> None:
    sha = hashlib.sha256(b"x").hexdigest()
    item = replace(ITEM, answers=("thirty weeks",), gold=(Gold("leave"),))
    found = await find(Scripted(reads), item=item, held=(replace(HELD, sha256=sha),), snapshot={"leave": sha})
    assert found.causes == {"q": ("bad_label",)}


async def test_words_that_the_gold_document_does_not_say_make_the_label_bad_when_nothing_mends_it() -> None:
    item = replace(ITEM, answers=("thirty weeks",), gold=(Gold("leave"),))
    found = await find(Scripted(reads), item=item)
    assert (found.causes, found.notes["q"]) == ({"q": ("bad_label",)}, "the gold passage does not say the label")


async def test_an_answer_in_other_words_than_the_documents_is_no_missing_document() -> None:
    item = replace(ITEM, question="Is leave more than 20 days?", answers=("yes",), gold=(Gold("leave"),))

    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return "leave>yes" if len(shown) == 1 else "other-2>no"

    found = await find(Scripted(reader), item=item)
    assert found.causes == {"q": ("ignored_in_context",)}


async def test_a_judge_that_calls_the_answer_right_blames_the_label() -> None:
    async def judge(item: Item, outcome: Outcome) -> str:
        return "right"

    found = await find(Scripted(lambda change, shown: "leave>five weeks"), judge=judge)
    assert found.causes == {"q": ("bad_label",)}


async def test_two_models_that_agree_on_other_words_of_the_passage_blame_the_label() -> None:
    found = await find(Scripted(lambda change, shown: "leave>all staff"), remedies=EVERYTHING)
    assert found.causes == {"q": ("bad_label",)}


async def test_what_comes_right_by_chance_accuses_nobody() -> None:
    answers = iter(["refused", *["leave>25 days"] * 2])
    asker = Scripted(lambda change, shown: next(answers))
    found = await find(asker)
    assert (found.causes, found.unsteady) == ({}, ("q",))
    assert [(step.change, step.mended) for step in found.trails["q"]] == [("gold passage alone", True), ("again", True)]
    assert [change.anew for change in asker.changes] == [False, True]


async def test_what_no_change_mends_is_not_asked_again_unchanged() -> None:
    found = await find(Scripted(lambda change, shown: "leave>30 days"))
    assert found.causes == {"q": ("beyond_the_model",)}
    assert [step.change for step in found.trails["q"]] == ["gold passage alone"]


async def test_a_remedy_that_mends_nothing_is_given_up() -> None:
    asker = Scripted(lambda change, shown: "leave>30 days")
    items = [replace(ITEM, id=f"q{at}") for at in range(HOPELESS + 15)]
    outcomes = {item.id: await asker.ask(item) for item in items}
    asker.changes.clear()
    remedies = replace(ROOM, adapters=("other",), concurrency=1)
    found = await diagnose(
        ItemSet("set", tuple(items)), outcomes, asker, MemoryArchive((HELD,)), score_outcome, remedies=remedies
    )
    assert set(found.causes.values()) == {("beyond_the_model",)}
    tried = [change.passages is None for change in asker.changes if change.adapter == "other"]
    assert (tried.count(False), tried.count(True)) == (HOPELESS, HOPELESS)  # gold alone, and as it was shown


@pytest.mark.parametrize(("gold", "routes"), [(ITEM.gold, {"notes"}), ((), {"notes", "direct"})])
async def test_what_stands_in_a_document_is_not_asked_of_a_route_that_looks_nothing_up(
    gold: tuple[Gold, ...], routes: set[str]
) -> None:
    asker = Scripted(lambda change, shown: "leave>30 days")
    remedies = replace(ROOM, routes=("grounded", "notes", "direct"), closed=("direct",))
    await find(asker, item=replace(ITEM, route=None, gold=gold), remedies=remedies)
    assert {change.route for change in asker.changes} - {None} == routes


async def test_a_passage_not_found_and_then_not_read_are_two_causes() -> None:
    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return reads(change, shown) if change.adapter == "trained" else "other-2>30 days"

    found = await find(Scripted(reader, OTHERS), remedies=EVERYTHING)
    assert found.causes == {"q": ("not_retrieved", "ignored_in_context")}
    assert found.layers("q") == ("retrieval", "behaviour")


async def test_a_passage_not_found_that_mends_it_alone_is_one_cause() -> None:
    found = await find(
        Scripted(lambda change, shown: reads(change, shown) if len(shown) == 1 else "other-2>30 days", OTHERS)
    )
    assert found.causes == {"q": ("not_retrieved",)}


async def test_a_wrong_route_is_a_second_cause_only_when_the_rest_needs_it() -> None:
    def needed(change: Change, shown: tuple[Passage, ...]) -> str:
        return reads(change, shown) if change.route == "grounded" else "hello"

    found = await find(Scripted(needed, OTHERS, route="direct"))
    assert found.causes == {"q": ("routed_wrong", "not_retrieved")}

    def alike(change: Change, shown: tuple[Passage, ...]) -> str:
        return "leave>25 days" if change.passages else "hello"

    asker = Scripted(alike, OTHERS)
    item = replace(ITEM, route="other")
    found = await find(asker, item=item)
    assert found.causes == {"q": ("not_retrieved",)}


async def test_no_document_named_and_the_answer_among_the_deeper_passages_is_ranked_out() -> None:
    found = await find(Scripted(reads, (*OTHERS, GOLD)), item=replace(ITEM, gold=()), held=())
    assert found.causes == {"q": ("ranked_out",)}


async def test_no_document_named_and_no_passage_says_the_answer() -> None:
    found = await find(Scripted(reads, OTHERS), item=replace(ITEM, gold=()), held=())
    assert found.causes == {"q": ("knowledge_missing",)}
    assert "none of the first 100" in found.notes["q"]


async def test_calls_never_exceed_four_times_the_run_and_easy_questions_leave_theirs_to_hard_ones() -> None:
    easy = replace(ITEM, answers=(), gold=())
    items = tuple(replace(easy if at % 2 else ITEM, id=f"q{at}") for at in range(20))
    asker = Scripted(lambda change, shown: "refused")
    outcomes = {item.id: await asker.ask(item) for item in items}
    found = await diagnose(
        ItemSet("set", items), outcomes, asker, MemoryArchive((HELD,)), score_outcome,
        remedies=replace(EVERYTHING, times=4.0),
    )  # fmt: skip
    assert found.run_calls == 20
    assert found.calls == len(asker.changes) - 20 <= 4 * 20
    assert all("no calls left" not in note for note in found.notes.values())


async def test_a_question_whose_calls_are_spent_is_named_by_what_was_looked_up() -> None:
    found = await find(Scripted(reads, OTHERS), remedies=Remedies(times=0.5))
    assert (found.causes, found.calls) == ({"q": ("not_retrieved",)}, 0)
    assert found.notes["q"] == "looked up, not replayed"


async def test_a_row_that_could_not_be_read_lowers_the_accuracy_and_is_a_bad_label() -> None:
    asker = Scripted(reads)
    asked = ItemSet("set", (ITEM,), (Fault(7, "no JSON"),))
    found = await diagnose(asked, {"q": await asker.ask(ITEM)}, asker, MemoryArchive((HELD,)), score_outcome)
    assert (found.n, found.accuracy.value) == (2, 0.5)
    assert found.causes == {"row 7": ("bad_label",)}
    assert found.notes["row 7"] == "it could not be read: no JSON"


async def test_an_engine_that_is_down_is_no_layers_fault() -> None:
    asker = Scripted(lambda change, shown: "contract: x")
    asked = ItemSet("set", (replace(ITEM, gold=()),))

    async def ask(item: Item, change: Change = UNCHANGED) -> Outcome:
        return Outcome(item.id, route="grounded", error="engine_unavailable: nobody listens")

    asker.ask = ask  # type: ignore[method-assign]
    asker.ranking = (GOLD,)
    found = await diagnose(asked, {"q": await ask(ITEM)}, asker, MemoryArchive(()), score_outcome, remedies=ROOM)
    assert (found.causes, found.unsteady) == ({}, ("q",))
    assert "orchestrator doctor" in found.notes["q"]


def test_the_waterfall_wins_a_question_when_the_last_of_its_layers_is_perfect() -> None:
    causes = {
        "a": ("stale",), "b": ("ranked_out",), "c": ("stale", "ignored_in_context"), "d": ("routed_wrong", "not_retrieved"),
    }  # fmt: skip
    steps = draw_ceilings(causes, right=6, n=10)  # type: ignore[arg-type]
    assert [(step.layer, step.n, step.accuracy.value) for step in steps] == [
        ("knowledge", 1, 0.7), ("retrieval", 1, 0.8), ("behaviour", 1, 0.9), ("router", 1, 1.0), ("model", 0, 1.0),
        ("label", 0, 1.0),
    ]  # fmt: skip


def test_a_bars_gain_counts_the_questions_that_have_no_other_cause() -> None:
    (bar, other) = draw_bars({"a": ("stale",), "b": ("stale", "wrong_citation")}, 4, collection="hr")
    assert (bar.cause, bar.n, bar.share.value, bar.gain.value, bar.items) == ("stale", 2, 0.5, 0.25, ("a", "b"))
    assert bar.command == "orchestrator documents history DOCUMENT_ID --collection hr"
    assert (other.cause, other.gain.value) == ("wrong_citation", 0.0)
    assert bar.share.low < 0.5 < bar.share.high


async def test_a_diagnosis_is_the_same_after_its_json() -> None:
    found = await find(Scripted(reads, OTHERS))
    assert Diagnosis.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"accuracy": 1}'])
def test_what_is_no_diagnosis_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="orchestrator diagnose"):
        Diagnosis.from_json(text)


async def test_an_unknown_cause_is_refused() -> None:
    row = json.loads((await find(Scripted(reads, OTHERS))).to_json())
    row["causes"] = {"q": ["bad_luck"]}
    with pytest.raises(InputError, match="bad_luck"):
        Diagnosis.from_json(json.dumps(row))


def test_every_cause_has_a_layer_and_a_command_of_ours_with_its_options() -> None:
    from orchestrator.cli import main

    assert set(LAYER_OF) == set(COMMANDS) == set(CAUSES)
    for line in COMMANDS.values():
        name, *parts = line.split()
        found: click.Command = main
        while isinstance(found, click.Group) and parts:
            found = found.get_command(click.Context(found), parts.pop(0)) or click.Command("none")
        known = {option for each in found.params for option in each.opts}
        assert name == "orchestrator"
        assert {part for part in parts if part.startswith("-")} <= known, line


async def test_a_context_of_the_documents_own_chunks_is_tried_before_a_second_cause_is_named() -> None:
    about = "Days of leave: how many are there?"
    text = f"{TEXT}\n\n{about}"
    pieces = (WHOLE, Piece(9, (len(TEXT) + 2, len(text))))
    held = replace(HELD, text=text, pieces=pieces)

    def reader(change: Change, shown: tuple[Passage, ...]) -> str:
        return reads(change, shown) if any(about in each.text for each in shown) else "refused"

    found = await find(Scripted(reader, OTHERS), held=(held,))
    assert found.causes == {"q": ("not_retrieved",)}
    assert [step.change for step in found.trails["q"]] == ["gold passage first", "gold passage in its company", "again"]


async def test_what_nothing_mends_is_put_down_to_a_document_that_was_changed() -> None:
    item = replace(ITEM, gold=(Gold("leave"),))
    later = replace(HELD, holds=False, sha256="s2")
    found = await find(
        Scripted(lambda change, shown: "leave>30 days", OTHERS), item=item, held=(later,), snapshot={"leave": "s1"}
    )
    assert found.causes == {"q": ("stale",)}
    assert "changed since the set was frozen" in found.notes["q"]


def test_without_a_quote_the_chunk_that_says_most_of_the_question_is_the_gold_one() -> None:
    text = "Pay: 25 days.\n\nDays of leave: 25 days."
    pieces = (Piece(1, (0, 13)), Piece(2, (15, len(text))))
    held = Held("leave", 1, text, pieces=pieces)
    found = weigh(replace(ITEM, gold=(Gold("leave"),)), [held])
    assert [each.chunk_id for each in found.passages] == [2]
    assert [each.chunk_id for each in found.document] == [2, 1]


def test_what_there_is_to_try_follows_from_the_routes_and_the_adapters() -> None:
    shipped = load_catalogue(folder("prompts"))
    route = shipped.route("grounded")

    def adapter(digest: str, state: str) -> Adapter:
        return Adapter(route.adapter or "", digest * 64, Path("x"), "base", 16, route.prompt or "", "p",
                       route.contract or "", "c", state=state)  # type: ignore[arg-type]  # fmt: skip

    kept = [adapter("a", "active"), adapter("b", "candidate"), adapter("c", "retired")]
    found = remedies_of(shipped, kept, shipped=shipped)
    assert found.adapters == (kept[1].served_name, "")
    assert (found.routes, found.closed) == (("grounded", "direct"), ("direct",))
    assert (found.prompt, found.strong, found.shown) == (False, False, route.k)
    edited = {name: replace(each, digest="mine") for name, each in shipped.prompts.items()}
    assert remedies_of(replace(shipped, prompts=edited), kept, shipped=shipped).prompt
    assert not remedies_of(replace(shipped, prompts=edited), kept).prompt
    routes = {**shipped.routes, "grounded": replace(route, contract="text_answer", adapter=None)}
    assert remedies_of(replace(shipped, routes=routes), kept, shipped=shipped).prompt
