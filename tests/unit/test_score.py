"""How an outcome is judged, and how a run is summed up: failures and junk are never left out."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.evaluation.items import Fault, Gold, Item, Outcome
from orchestrator.evaluation.metrics import detectable, interval, wilson
from orchestrator.evaluation.score import check_pattern, is_answer, score_outcome
from orchestrator.evaluation.summary import compare_runs, summarise
from orchestrator.testing import passage
from orchestrator.types import Usage

ITEM = Item("q1", "How many days of leave?", ("25 days",), gold=(Gold("leave.md"),))
NONE = Item("none", "Who founded the moon?", answerable=False)
CITED = (("leave.md", 1, "Every employee has 25 days of leave."),)
RIGHT = Outcome("q1", "25 days of leave [1]", cited=CITED)


def judge(said, item=ITEM, **fields):
    return score_outcome(item, Outcome(item.id, said, **fields))


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("25 days", "25 days"),
        ("The 25 Days.", "25 days"),
        ("Employees have 25 days of leave a year", "25 days"),
        ("No, that is not allowed", "no"),
        ("Yes, but not on Sundays", "yes"),
        ("25 days, not 30", "25 days"),
        ("Der Betrag ist 20 €", "20 €"),
        ("北京是中国的首都。", "北京"),
        ("Beyonce\u0301 sang", "Beyoncé"),
        ("from Monday to Friday in the summer", "Monday to Friday in summer"),
    ],
)
def test_another_wording_of_an_accepted_answer_is_right(said, accepted):
    assert is_answer(said, accepted)


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("30 days", "25 days"),
        ("It is not 25 days", "25 days"),
        ("30 days of annual leave per year", "25 days of annual leave per year"),
        ("not allowed on all weekdays of summer", "allowed on all weekdays of summer"),
        ("250 days", "25 days"),
        ("", "25 days"),
        ("anything", "the"),
        ("上海是中国的首都。", "北京"),
        ("Leave is a thing that every company in this country has to give to all of its people, 25 days", "25 days"),
    ],
)
def test_another_answer_is_wrong(said, accepted):
    assert not is_answer(said, accepted)


def test_a_right_answer_with_its_source():
    shown = passage(1, "Every employee has 25 days of leave.", external_id="leave.md")

    score = score_outcome(replace(ITEM, route="grounded"), replace(RIGHT, passages=(shown,), route="grounded"))

    assert (score.correct, score.reason, score.exact, score.refusal_right) == (1.0, "", 0.0, 1.0)
    assert (score.citation_precision, score.citation_recall, score.supported) == (1.0, 1.0, 1.0)
    assert (score.gold_found, score.route_right, score.contract_kept) == (1.0, 1.0, 1.0)


def test_a_failure_is_wrong_and_says_why():
    score = judge("", error="engine_unavailable: it does not answer")

    assert (score.correct, score.f1, score.exact, score.refusal_right, score.citation_recall) == (0, 0, 0, 0, 0)
    assert score.reason == "failed: engine_unavailable"
    assert score.contract_kept is None
    assert judge("", error="contract: no JSON").contract_kept == 0.0


def test_a_failure_is_no_refusal():
    assert judge("", NONE, error="contract: no JSON").correct == 0.0


@pytest.mark.parametrize(("item", "refused", "correct"), [(NONE, True, 1), (NONE, False, 0), (ITEM, True, 0)])
def test_a_refusal_is_right_where_nothing_answers(item, refused, correct):
    score = judge("25 days", item, refused=refused)

    assert (score.correct, score.refusal_right) == (correct, correct)


@pytest.mark.parametrize(
    ("fields", "said", "correct"),
    [
        ({"contains": ("25", "leave")}, "25 days of LEAVE", 1),
        ({"contains": ("25", "March")}, "25 days of leave", 0),
        ({"pattern": r"^\d+ days"}, "25 days of leave", 1),
        ({"pattern": r"^\d+ weeks"}, "25 days of leave", 0),
        ({"pattern": r"25", "contains": ("March",)}, "25 days", 0),
        ({"pattern": r"(?=25)"}, "25 days", 0),
    ],
)
def test_assertions(fields, said, correct):
    assert judge(said, replace(ITEM, answers=(), **fields)).correct == correct


def test_an_assertion_holds_beside_an_answer():
    assert judge("25 days", replace(ITEM, contains=("March",))).correct == 0.0


def test_gold_documents_alone_are_judged_by_the_citations():
    item = replace(ITEM, answers=())

    assert judge("anything", item, cited=CITED).correct == 1.0
    assert judge("anything", item, cited=(("other.md", 1, ""),)).reason == "cites no gold document"
    assert judge("anything", replace(item, gold=())).reason == "nothing to judge it by"


def test_a_pattern_of_another_cannot_stop_a_run():
    check_pattern("^(a+)+$")
    assert judge("a" * 9_000 + "b", replace(ITEM, answers=(), pattern="^(a+)+$")).correct == 0.0
    for pattern in ("x" * 301, "(", "(?=a)", "(a)\\1", "a{1000}{1000}"):
        with pytest.raises(InputError):
            check_pattern(pattern)


@pytest.mark.parametrize(
    ("gold", "cited", "precision", "recall"),
    [
        ((Gold("a"), Gold("b")), (("a", 1, ""),), 1.0, 0.5),
        ((Gold("a"),), (("a", 1, ""), ("c", 1, "")), 0.5, 1.0),
        ((Gold("a", version=2),), (("a", 1, ""),), 0.0, 0.0),
        ((Gold("a", quote="Everybody has 25 days."),), (("a", 1, "Everybody has 25 days of leave."),), 1.0, 1.0),
        ((Gold("a", quote="Everybody has 25 days."),), (("a", 1, "Parking is free."),), 0.0, 0.0),
        ((Gold("", quote="Everybody has 25 days."),), (("z", 3, "Everybody has 25 days."),), 1.0, 1.0),
        ((Gold("a"),), (), None, 0.0),
    ],
)
def test_citations_are_held_against_the_gold(gold, cited, precision, recall):
    score = judge("25 days", replace(ITEM, gold=gold), cited=cited)

    assert (score.citation_precision, score.citation_recall) == (precision, recall)


def test_a_quote_that_says_something_else_supports_nothing():
    assert judge("25 days", cited=(("leave.md", 1, "Parking is free."),)).supported == 0.0
    assert judge("25 days").supported is None


@pytest.mark.parametrize("flag", ["citation_dropped:3", "unsupported", "evidence_not_verbatim", "not_in_message:name"])
def test_what_the_check_had_to_take_away_breaks_the_contract(flag):
    assert judge("25 days", flags=(flag,)).contract_kept == 0.0
    assert judge("25 days", flags=("no_passages", "marks_removed")).contract_kept == 1.0


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [("leave.md", "25 days it is", 1), ("leave.md", "Parking is free", 0), ("other.md", "25 days it is", 0)],
)
def test_the_gold_is_found_where_a_passage_of_it_holds_the_answer(name, text, found):
    assert judge("x", passages=(passage(1, text, external_id=name),)).gold_found == found


@given(st.text(), st.text(min_size=1), st.booleans())
def test_any_text_is_judged(said, accepted, refused):
    score = judge(said, replace(ITEM, answers=(accepted,)), refused=refused, cited=(("leave.md", 1, said),))

    values = [value for name in score.__slots__ if isinstance(value := getattr(score, name), float)]
    assert all(0 <= value <= 1 for value in values)
    assert bool(score.reason) == (score.correct == 0.0)


def run(count=8, wrong=2):
    items = [replace(ITEM, id=f"q{number}", tags=("leave",)) for number in range(count)]
    said = {item.id: "30 days" if number < wrong else "25 days" for number, item in enumerate(items)}
    outcomes = {
        item.id: Outcome(
            item.id, said[item.id], timings_ms={"total": number * 10.0}, usage=Usage(5, 2), route="grounded"
        )
        for number, item in enumerate(items, 1)
    }
    return items, outcomes, {item.id: score_outcome(item, outcomes[item.id]) for item in items}


def test_junk_lowers_every_measure_and_says_why():
    items, outcomes, scores = run(10, 0)
    faults = [Fault(number, "no JSON") for number in range(11, 101)]

    clean, junk = summarise(items, outcomes, scores), summarise(items, outcomes, scores, faults)

    assert (clean.measures["correct"].value, clean.n) == (1.0, 10)
    assert {name: found.value for name, found in junk.measures.items() if found.value > 0.1} == {}
    assert (junk.measures["correct"].value, junk.n, junk.fault_reasons) == (0.1, 100, {"no JSON": 90})
    assert "90 of 100 rows (90%) could not be read" in junk.notes[0]
    assert "no JSON" in junk.notes[0]


def test_only_junk_is_summed_up_as_zero():
    assert summarise([], {}, {}, [Fault(1, "no JSON")]).measures["correct"].value == 0.0
    with pytest.raises(InputError):
        summarise([], {}, {})


def test_a_question_that_was_not_asked_is_wrong():
    items, outcomes, scores = run(4, 0)
    del outcomes["q0"], scores["q0"]

    summary = summarise(items, outcomes, scores)

    assert (summary.measures["correct"].value, summary.measures["f1"].value, summary.asked) == (0.75, 0.75, 3)
    assert "1 questions were not asked" in summary.notes[0]


def test_errors_stay_in_the_denominator():
    items, outcomes, scores = run(4, 0)
    outcomes["q0"] = Outcome("q0", error="contract: no JSON")
    scores["q0"] = score_outcome(items[0], outcomes["q0"])

    summary = summarise(items, outcomes, scores)

    assert (summary.errors, summary.measures["correct"].value, summary.measures["correct"].n) == (1, 0.75, 4)
    assert summary.measures["contract_kept"].value == 0.75
    assert summary.reasons == {"failed: contract": 1}


def test_slices_timings_tokens_and_refusals():
    items, outcomes, scores = run(8, 2)
    asked = [*items, NONE, replace(NONE, id="none2")]
    outcomes |= {"none": Outcome("none", refused=True), "none2": Outcome("none2", "the Romans")}
    scores |= {item.id: score_outcome(item, outcomes[item.id]) for item in asked}

    summary = summarise(asked[8:] + items[3:], outcomes, scores)

    assert summary.slices["unanswerable"].value == 0.5
    assert (summary.slices["tag:leave"].value, summary.slices["tag:leave"].n) == (1.0, 5)
    assert (summary.refusal_precision.value, summary.refusal_recall.value) == (1.0, 0.5)
    assert (summary.timings_ms["total"].p50, summary.timings_ms["total"].p95) == (60.0, 80.0)
    assert (summary.prompt_tokens, summary.completion_tokens, summary.cost) == (25, 10, None)


def test_two_runs_are_compared_item_by_item():
    items, _, before = run(40, 20)
    after = run(40, 0)[2]

    difference, least = compare_runs(items, after, before)

    assert (difference.value, difference.is_gain, difference.n) == (0.5, True, 40)
    assert 0 < least < 0.5
    assert compare_runs(items, before, before)[0].value == 0.0
    assert compare_runs(items, {"q0": after["q0"]}, {})[0].n == 1
    junk, _ = compare_runs(items, after, before, faults=60)
    assert (junk.value, junk.n) == (0.2, 100)  # as the figures of the two runs differ
    with pytest.raises(InputError):
        compare_runs([NONE], after, before)


def test_wilson_against_published_values():
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = wilson(hits, n)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert wilson(20, 20).high == 1.0
    assert wilson(0, 0) == interval([])


def test_an_interval_of_other_values_holds_their_mean():
    found = interval([0.1, 0.4, 0.4, 0.9, 0.3])

    assert found.low < found.value < found.high
    assert found == interval([0.1, 0.4, 0.4, 0.9, 0.3])


def test_what_can_be_detected_shrinks_with_the_root_of_n():
    assert math.isclose(detectable(400, 0.5) * 2, detectable(100, 0.5))
    assert math.isclose(detectable(100, 0.5), 0.14, abs_tol=0.001)


def test_every_question_stands_in_its_slices():
    items, outcomes, _ = run(4, 2)
    items = [replace(item, route="grounded", synthetic=number > 0) for number, item in enumerate(items)]
    outcomes["q3"] = replace(outcomes["q3"], route="direct")
    scores = {item.id: score_outcome(item, outcomes[item.id]) for item in items}

    slices = summarise(items, outcomes, scores).slices

    assert {name: (found.value, found.n) for name, found in slices.items()} == {
        "answerable": (0.5, 4), "tag:leave": (0.5, 4), "route:grounded": (0.5, 4), "served by:grounded": (pytest.approx(1 / 3), 3),
        "served by:direct": (1.0, 1), "by people": (0.0, 1), "synthetic": (pytest.approx(2 / 3), 3),
    }  # fmt: skip


def test_questions_of_a_model_are_said_to_be_so():
    items, outcomes, scores = run(4, 1)
    mixed = [replace(item, synthetic=number > 1) for number, item in enumerate(items)]

    summary = summarise(mixed, outcomes, scores)

    assert summary.synthetic == 2
    assert summary.notes == (
        "2 of 4 questions were made by a model: 100.0% of them are right, and 50.0% of the others",
    )
    assert summarise([replace(item, synthetic=True) for item in items], outcomes, scores).notes == (
        "4 of 4 questions were made by a model",
    )
    assert summarise(items, outcomes, scores).notes == ()


def test_costs_are_added_up_and_unknown_where_nothing_was_priced():
    items, outcomes, scores = run(3, 0)
    priced = {name: replace(outcome, cost=0.5) for name, outcome in outcomes.items() if name != "q2"}

    assert summarise(items, outcomes | priced, scores).cost == 1.0
    assert summarise(items, outcomes, scores).cost is None


def test_the_smallest_difference_that_is_seen_is_the_one_of_the_formula():
    items, _, before = run(400, 200)
    after = {name: score for name, score in run(400, 160)[2].items()}

    difference, least = compare_runs(items, after, before)

    # 40 of 400 pairs differ, all one way: spread sqrt(0.1 * 0.9) = 0.3, and (1.96 + 0.84) * 0.3 / 20.
    assert (difference.value, round(least, 3)) == (0.1, 0.042)
    # Independent runs at one half spread by sqrt(2 / 4): 2.8 * 0.707 / 20.
    assert round(summarise(items, run(400, 200)[1], before).detectable, 3) == 0.099


@pytest.mark.parametrize(
    ("said", "accepted", "question", "right"),
    [
        ("45", "45 days", "How many days after a purchase?", True),
        ("45", "45 days", "How long after a purchase?", False),
        ("54", "45 days", "How many days after a purchase?", False),
        ("45", "45 working days", "How many days after a purchase?", False),
        ("45", "45 days", "Is it 45 days or 30 days?", False),
        ("days", "45 days", "How many days after a purchase?", False),
    ],
)
def test_a_unit_that_the_question_names_may_be_left_out(said: str, accepted: str, question: str, right: bool) -> None:
    item = Item("q", question, (accepted,))
    assert score_outcome(item, Outcome("q", said)).correct == float(right)
