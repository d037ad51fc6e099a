"""Advice from evidence: three written scenarios, their break-evens, diagnoses of every kind, and what is not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.evaluation.advise import Advice, advise
from orchestrator.evaluation.causes import Cause, Diagnosis, draw_bars, draw_ceilings, share_of
from orchestrator.evaluation.costs import Option, load_costs
from orchestrator.evaluation.evidence import Evidence, Given, History, Known, Traffic, gather, poisson
from orchestrator.evaluation.money import break_even

SHEET = load_costs()

# A bank: 3,000 policies (3 million tokens) of which 40 change each quarter; every answer shows its source.
BANK_PAPERS = History(3000, 12_000_000, months=24, changes=8, changed=320)
BANK = gather(Traffic(), BANK_PAPERS, Given(queries_per_day=2000, needs_source=True))
# A help desk: short messages, one label and a reason, nothing looked up.
TICKETS = Traffic((5_000_000,) * 30, 2000, prompt_tokens=400, completion_tokens=60)
TRIAGE = gather(TICKETS, History(), Given(needs_source=False))
# A club's statutes: 20,000 tokens that have not changed for two years; a few questions a day.
STATUTES = History(12, 80_000, months=24)
CLUB = gather(Traffic(), STATUTES, Given(queries_per_day=100, changes_per_month=0, needs_source=True))


def moved(evidence: Evidence, **values: float) -> Evidence:
    return replace(evidence, workload=replace(evidence.workload, **values))


def diagnosis(n: int, **failed: int) -> Diagnosis:
    """A diagnosis of n questions: so many failed for each cause; ``a__b`` for both causes at once."""
    causes: dict[str, tuple[Cause, ...]] = {
        f"{names}-{number}": tuple(names.split("__"))  # type: ignore[misc]
        for names, count in failed.items()
        for number in range(count)
    }
    right = n - len(causes)
    return Diagnosis(
        "wiki", "abc", n, share_of(right, n), draw_bars(causes, n), draw_ceilings(causes, right, n), causes
    )


def served(evidence: Evidence, *layers: str) -> Evidence:
    return moved(evidence, built=layers)  # type: ignore[arg-type]


def says(advice: Advice, *parts: str) -> None:
    assert [part for part in parts if part not in advice.verdict] == [], advice.verdict


# Scenarios


def test_a_bank_with_quarterly_changes_builds_retrieval_and_does_not_fine_tune() -> None:
    found = advise(BANK, SHEET)

    says(found, "Do not fine-tune yet, build retrieval", "change every 3 months", "must show a source")
    says(
        found, "12 months cost $44,354 ($23,617 to $86,630) against $48,312 for a larger model at 2,000 questions a day"
    )
    assert found.option == "retrieval"
    assert found.choice("adapter").excluded == "cannot show where an answer came from"
    assert "3,000,000 tokens, 100,000 fit" in found.choice("long context").excluded
    assert found.choice("full fine-tuning").estimate.total.likely > 140_000
    assert (found.choice("retrieval").accuracy.low, found.choice("retrieval").accuracy.high) == (0.85, 0.90)
    assert [(each.answer, each.known.source) for each in found.questions] == [("yes", "measured"), ("yes", "given")]


def test_ticket_triage_at_five_million_a_day_trains_an_adapter() -> None:
    found = advise(TRIAGE, SHEET)

    says(found, "Train an adapter", "$126,148", "5,000,000 questions a day")
    assert found.option == "adapter"
    assert found.choice("retrieval").excluded == "answers rest on no document"
    assert [(each.answer, each.known.source) for each in found.questions] == [("no", "measured"), ("no", "given")]
    assert found.choice("adapter").estimate.per_thousand.likely == pytest.approx(0.069, abs=0.001)
    assert found.choice("prompt only").estimate.per_thousand.likely == pytest.approx(0.499, abs=0.001)
    assert [each.by for each in found.break_evens] == ["queries_per_day"]  # no documents, nothing that changes


def test_a_small_static_corpus_goes_into_the_prompt() -> None:
    found = advise(CLUB, SHEET)

    says(
        found,
        "Do not fine-tune yet, put the documents into the prompt",
        "the documents do not change",
        "$4,893",
        "$43,638",
    )
    assert (found.option, found.rival) == ("long context", "retrieval")
    assert found.choice("long context").estimate.weeks.high == 3


def test_without_sources_and_documents_in_the_prompt_a_bank_still_needs_them() -> None:
    found = advise(moved(BANK, needs_source=0.0), SHEET)

    assert found.option == "retrieval"  # an adapter may be chosen, and is not accurate enough
    assert found.choice("adapter").excluded == ""


# Break-evens: the verdict flips where the two cost the same


def flip(evidence: Evidence, cheap: Option, dear: Option) -> float:
    found = break_even(cheap, dear, evidence.workload, SHEET.likely, 12)
    assert found.cheaper == (cheap, dear)
    return found.at[0]


@settings(max_examples=25)
@given(st.floats(1.01, 20), st.sampled_from(["triage", "club", "bank"]))
def test_the_verdict_flips_at_the_break_even_in_queries_per_day(factor: float, scenario: str) -> None:
    evidence, below, above = {
        "triage": (TRIAGE, "larger model", "adapter"),
        "club": (CLUB, "long context", "retrieval"),
        "bank": (BANK, "retrieval", "both"),
    }[scenario]
    at = flip(evidence, below, above)  # type: ignore[arg-type]

    assert advise(moved(evidence, queries_per_day=at / factor), SHEET).option == below
    assert advise(moved(evidence, queries_per_day=at * 1.01), SHEET).option == above
    assert (
        advise(moved(evidence, queries_per_day=at * factor), SHEET).option != below
    )  # far above, a third may be cheapest


def test_a_corpus_that_no_longer_fits_needs_retrieval() -> None:
    assert advise(moved(CLUB, corpus_tokens=100_000), SHEET).option == "long context"
    assert advise(moved(CLUB, corpus_tokens=100_001), SHEET).option == "retrieval"


def test_the_cheaper_of_two_trained_options_flips_with_the_changes_of_knowledge() -> None:
    still = moved(BANK, changes_per_month=0.0)
    found = break_even("adapter", "both", still.workload, SHEET.likely, 12, "changes_per_month")

    assert found.cheaper == ("adapter", "both")
    assert 1 < found.at[0] < 4  # times a month that an adapter would be trained for facts


@settings(max_examples=25)
@given(st.floats(10, 1e7), st.floats(0, 20), st.floats(0, 1), st.integers(0, 5000), st.floats(1e3, 1e7))
def test_what_is_advised_is_possible_and_the_cheapest_of_the_accurate(
    queries: float, changes: float, source: float, documents: int, tokens: float
) -> None:
    work = {"queries_per_day": queries, "changes_per_month": changes, "needs_source": source}
    found = advise(moved(BANK, **work, documents=documents, corpus_tokens=tokens if documents else 0), SHEET)
    possible = [each for each in found.choices if not each.excluded]
    best = max(each.accuracy.likely for each in possible)

    chosen = found.choice(found.option)
    assert chosen in possible
    assert chosen.accuracy.likely >= best - 0.05 - 1e-9
    assert all(
        chosen.estimate.total.likely <= each.estimate.total.likely
        for each in possible
        if each.accuracy.likely >= best - 0.05
    )


# Diagnoses

RUNNING = served(BANK, "retrieval")


def test_failures_of_retrieval_are_no_reason_to_fine_tune() -> None:
    found = advise(
        RUNNING, SHEET, diagnosis(400, not_retrieved=30, ranked_out=6, contract_broken=8, beyond_the_model=7)
    )

    says(found, "Do not fine-tune yet, work on retrieval: 71% of the failures are retrieval")
    says(found, "mending retrieval is worth at most +9 ±3 points", "an adapter is worth at most +2 ±1 points")
    assert found.option == "retrieval"
    assert found.choice("retrieval").accuracy.likely == pytest.approx(385 / 400)
    assert found.choice("both").accuracy.likely == pytest.approx(393 / 400)
    assert found.choice("larger model").accuracy.likely == pytest.approx(356 / 400)
    assert found.choice("retrieval").source == "measured"
    assert found.commands[0] == "orchestrator eval tune SET --collection COLLECTION --apply"


def test_failures_of_behaviour_are_a_reason_to_train() -> None:
    found = advise(RUNNING, SHEET, diagnosis(400, not_retrieved=10, ignored_in_context=60, wrong_citation=20))

    says(found, "Train an adapter: 89% of the failures are behaviour", "an adapter is worth at most +20 ±4 points")
    assert found.option == "both"
    assert "orchestrator train --data FILE --name NAME --collection COLLECTION" in found.commands


def test_a_trained_system_is_told_to_work_on_retrieval() -> None:
    found = advise(served(BANK, "retrieval", "adapter"), SHEET, diagnosis(400, not_retrieved=40, ignored_in_context=4))

    says(found, "Do not train again yet, keep both layers: 91% of the failures are retrieval")
    assert found.choice("retrieval").source == "assumed"  # nobody measured it without the adapter


def test_a_layer_is_not_dropped_on_an_assumption() -> None:
    # At 60 % of right answers the sheet's 88 % for retrieval alone would look better than anything measured.
    found = advise(served(BANK, "retrieval", "adapter"), SHEET, diagnosis(400, bad_label=70, not_retrieved=90))

    assert found.option == "both"


def test_what_only_a_larger_model_mends() -> None:
    found = advise(RUNNING, SHEET, diagnosis(400, beyond_the_model=60, not_retrieved=4))

    says(found, "use a larger model", "94% of the failures are beyond the model")
    assert found.option == "larger model"


def test_two_causes_at_once_are_won_by_both_remedies_only() -> None:
    found = advise(RUNNING, SHEET, diagnosis(400, not_retrieved__contract_broken=60))

    assert found.choice("retrieval").accuracy.likely == pytest.approx(340 / 400)
    assert found.choice("both").accuracy.likely == 1.0
    assert found.option == "both"


def test_bad_labels_are_mended_first() -> None:
    says(advise(RUNNING, SHEET, diagnosis(400, bad_label=30, not_retrieved=10)), "Mend the set first: 75%")


def test_a_router_that_fails_is_fitted_first() -> None:
    says(advise(RUNNING, SHEET, diagnosis(400, routed_wrong=30, not_retrieved=10)), "Fit the router first: 75%")


def test_a_good_system_is_left_alone() -> None:
    says(advise(RUNNING, SHEET, diagnosis(1000, not_retrieved=5)), "Leave it as it is: 100% (99% to 100%) of 1,000")
    says(advise(RUNNING, SHEET, diagnosis(1000)), "Leave it as it is", "nothing failed")


def test_thin_evidence_says_how_many_more_questions_are_needed() -> None:
    found = advise(RUNNING, SHEET, diagnosis(60, not_retrieved=12, contract_broken=5))

    says(found, "Do not train on this evidence: after 60 questions", "+8 ±8 points", "more questions settle it")
    says(found, "Mending retrieval need not wait")
    assert found.doubt is not None
    assert found.doubt.more_questions > 60


@settings(max_examples=25)
@given(st.integers(20, 200), st.integers(0, 10), st.integers(0, 10))
def test_with_as_many_more_questions_the_doubt_is_gone(n: int, missed: int, broken: int) -> None:
    first = advise(RUNNING, SHEET, diagnosis(n, not_retrieved=missed, contract_broken=broken))
    assume(first.doubt is not None)
    assert first.doubt is not None
    factor = -(-(n + first.doubt.more_questions) // n) + 1  # the same shares, in whole multiples
    # A lead within a point of what decides stays in doubt for longer than anybody asks questions.
    assume(abs(first.doubt.lead.value - 0.05) > 0.01)

    more = advise(RUNNING, SHEET, diagnosis(n * factor, not_retrieved=missed * factor, contract_broken=broken * factor))

    assert more.doubt is None or more.doubt.option != first.doubt.option


# What is known


def test_nothing_known_is_said_with_the_flag_that_gives_it() -> None:
    found = advise(gather(Traffic(), History()), SHEET)

    unknown = {each.name: each for each in found.known if each.source == "assumed"}
    assert "--queries-per-day" in unknown["queries_per_day"].note
    assert "--needs-source" in unknown["needs_source"].note
    assert [each.answer for each in found.questions] == ["unknown", "unknown"]
    assert "--collection" in found.questions[0].known.note


def test_documents_of_yesterday_do_not_say_whether_they_change() -> None:
    found = advise(gather(Traffic(), History(10, 1000, months=0.1)), SHEET)

    assert found.questions[0].answer == "unknown"
    assert "known for 3 days only; give --changes-per-month" in found.questions[0].known.note


def test_half_a_year_of_silence_is_no_proof_that_nothing_changes() -> None:
    def answer(months: float) -> str:
        return advise(gather(Traffic(), History(10, 1000, months=months)), SHEET).questions[0].answer

    assert (answer(6), answer(24)) == ("unknown", "no")


def test_what_is_given_goes_before_what_is_measured() -> None:
    traffic = Traffic((100, 120, 80), sample=100, cited=90, retrieved=100, prompt_tokens=1500, passage_tokens=1200)
    measured = gather(traffic, BANK_PAPERS)
    told = gather(traffic, BANK_PAPERS, Given(5, 2, False))

    assert (measured.workload.queries_per_day, measured.workload.needs_source) == (100, 0.9)
    assert measured.of("queries_per_day").range.low == pytest.approx(100 - 1.96 * 20 / 3**0.5, abs=0.01)
    assert measured.of("changes_per_month").range.likely == pytest.approx(8 / 24)
    assert (told.workload.queries_per_day, told.workload.changes_per_month, told.workload.needs_source) == (5, 2, 0)
    assert {each.source for each in told.known[:3]} == {"given"}


def test_a_system_is_known_by_what_it_serves() -> None:
    traffic = Traffic((100,), sample=100, cited=90, retrieved=80, adapted=60, prompt_tokens=1300, passage_tokens=960)
    work = gather(traffic, BANK_PAPERS).workload

    assert work.built == ("retrieval", "adapter")
    assert (work.prompt_tokens, work.passage_tokens) == (340, 1200)
    assert (work.documents, work.corpus_tokens, work.documents_per_change) == (3000, 3_000_000, 40)


def test_documents_that_no_answer_rests_on_do_not_count() -> None:
    work = gather(replace(TICKETS, cited=0), BANK_PAPERS).workload

    assert (work.documents, work.corpus_tokens, work.changes_per_month) == (0, 0, 0)
    assert work.built == ()


def test_ranges_that_were_measured_move_the_result() -> None:
    traffic = Traffic((10, 200_000), sample=100, retrieved=100, cited=100)
    found = advise(gather(traffic, BANK_PAPERS), SHEET)

    assert "queries_per_day" in {swing.name for swing in found.swings}


def test_poisson_intervals_are_those_of_the_tables() -> None:
    # Exact limits of Garwood 1936: 0 to 3.69, 3.45 to 15.76 (8 events), 81.4 to 121.6 (100).
    assert poisson(0, 1).high == pytest.approx(3.69, rel=0.02)
    assert (poisson(8, 1).low, poisson(8, 1).high) == (pytest.approx(3.45, rel=0.02), pytest.approx(15.76, rel=0.02))
    assert (poisson(100, 2).low, poisson(100, 2).high) == (pytest.approx(40.7, rel=0.01), pytest.approx(60.8, rel=0.01))


def test_a_diagnosis_without_causes_is_read_from_its_bars() -> None:
    full = diagnosis(400, not_retrieved=36, contract_broken=8)

    assert advise(RUNNING, SHEET, replace(full, causes={})).choice("both").accuracy.likely == pytest.approx(1.0)


def test_an_unknown_input_is_no_input() -> None:
    with pytest.raises(KeyError):
        BANK.of("luck")
    assert isinstance(BANK.of("queries_per_day"), Known)
