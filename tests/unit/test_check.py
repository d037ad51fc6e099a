"""The check: 0 of all forged citations pass, refusals carry none, in whatever place of an answer they stand."""

import json
from random import Random

import pytest

from orchestrator.check import check_output, refusal
from orchestrator.contract import Contract
from orchestrator.errors import ContractError
from orchestrator.testing import passage
from tests.shown import BRIEF, CARD, CITED, EXTRACT, SHOWN, TEXT, TRIAGE, made


def output(answer="25 days of leave", citations=(1,), answerable=True, **more):
    return json.dumps({"answerable": answerable, "citations": list(citations), "answer": answer, **more})


def test_a_good_answer_passes_as_it_is():
    checked = check_output(CITED, output(), SHOWN)

    assert checked.text == "25 days of leave [1]"
    assert checked.data == json.loads(output())
    assert [citation.quote for citation in checked.citations] == ["Every employee has 25 days of leave."]
    assert checked.flags == ()


@pytest.mark.parametrize(
    ("citations", "kept", "flags"),
    [
        ([1, 3], [1], ("citation_dropped:3",)),
        ([99], [], ("citation_dropped:99", "no_source")),
        ([1, 1, 1], [1], ()),
        ([1, 2], [1], ("citation_dropped:2",)),
        ([1.0], [1], ()),
        ([10**30, 1], [1], ("citation_dropped:10000000000000000000000",)),
        ([], [], ("no_source",)),
    ],
)
def test_only_citations_that_resolve_and_carry_are_kept(citations, kept, flags):
    checked = check_output(CITED, output(citations=citations), SHOWN)

    assert checked.data["citations"] == [citation.number for citation in checked.citations] == kept
    assert checked.flags == flags
    assert checked.text.endswith("[1]" if kept else "[no source]")


def test_of_a_thousand_forged_citations_none_passes():
    random = Random(5)
    for _ in range(1000):
        numbers = random.choices([1, 2, 1.0, 2.0, 3, 4.0, 99, 10**9], k=random.randrange(6))
        checked = check_output(CITED, output(random.choice(["25", "free", "zebra 7", "Yes"]), numbers), SHOWN)

        assert checked.data["citations"] == [citation.number for citation in checked.citations]
        assert bool(checked.citations) != ("no_source" in checked.flags)
        for citation in checked.citations:
            source = SHOWN[citation.number - 1]
            assert source.text[citation.span[0] : citation.span[1]] == citation.quote
            assert source.document_id == citation.document_id


@pytest.mark.parametrize("answer", ["30 days of leave", "25 days, 3 of them paid"])
def test_an_answer_with_foreign_numbers_has_no_source(answer):
    checked = check_output(CITED, output(answer), SHOWN)

    assert checked.citations == ()
    assert checked.text == f"{answer} [no source]"
    assert checked.flags == ("unsupported", "no_source")


def test_marks_of_the_models_own_are_removed_from_the_text():
    checked = check_output(CITED, output("[2] 25 days [7] of leave[1]."), SHOWN)

    assert checked.text == "25 days of leave. [1]"
    assert checked.data["answer"] == "25 days of leave."
    assert checked.flags == ("marks_removed",)


def test_marks_stay_where_the_contract_has_no_citations():
    assert check_output(TEXT, '{"answer": " items[0] "}', ()).text == "items[0]"


def test_a_refusal_carries_nothing():
    checked = check_output(CITED, output("25 days", [1, 9], answerable=False), SHOWN)

    assert checked.text == CITED.refusal
    assert checked.data == {"answerable": False, "citations": [], "answer": ""}
    assert checked.citations == ()
    assert checked.flags == ("citation_dropped:1", "citation_dropped:9")


@pytest.mark.parametrize("answer", ["", "  \n", "[1]"])
def test_an_empty_answer_is_a_refusal_and_says_so(answer):
    checked = check_output(CITED, output(answer), SHOWN)

    assert checked.text == CITED.refusal
    assert checked.flags == ("citation_dropped:1", "empty_answer")


def test_an_empty_text_says_so():
    assert check_output(TEXT, '{"answer": " "}', ()).flags == ("empty_answer",)


def test_a_contract_may_refuse_without_citations():
    contract = made({"answer": {"type": "string"}, "known": {"type": "boolean"}}, answerable="known", refusal="No.")

    assert check_output(contract, '{"answer": "x", "known": false}', ()).text == "No."


def test_other_fields_of_a_refusal_are_kept_in_the_schemas_order():
    contract = made(
        {"topic": {"type": "string"}, "known": {"type": "boolean"}, "answer": {"type": "string"}},
        answerable="known",
        refusal="No.",
    )

    checked = check_output(contract, '{"known": false, "answer": "", "topic": "leave"}', ())

    assert list(checked.data.items()) == [("topic", "leave"), ("known", False), ("answer", "")]


def test_the_refusal_of_the_system_keeps_the_contract():
    checked = refusal(CITED, ("no_passages",))

    assert CITED.parse_output(json.dumps(checked.data)) == checked.data
    assert checked.flags == ("no_passages",)


def test_output_that_breaks_the_contract_is_not_an_answer():
    with pytest.raises(ContractError):
        check_output(CITED, output()[:-3], SHOWN)


EVIDENT = {
    "answerable": {"type": "boolean"},
    "citations": {"type": "array", "items": {"type": "integer"}},
    "evidence": {"type": "string"},
    "answer": {"type": "string"},
}
ROLES = {"citations": "citations", "answerable": "answerable", "evidence": "evidence", "refusal": "No."}
BROKEN = [passage(1, "Paid leave.\n\nEvery employee\nhas 25 days of leave. Sick days are apart."), SHOWN[1]]


def evident(evidence, citations=(1,), answer="25 days of leave"):
    return check_output(made(EVIDENT, **ROLES), output(answer, citations, evidence=evidence), BROKEN)


def test_evidence_becomes_the_quote_of_the_citation():
    checked = evident("employee has 25  days")

    (citation,) = checked.citations
    assert checked.data["evidence"] == citation.quote == "employee\nhas 25 days"
    assert BROKEN[0].text[slice(*citation.span)] == citation.quote
    assert citation.paragraph == 1
    assert checked.flags == ()


@pytest.mark.parametrize(
    "evidence", ["", " ", "employee has 30 days", "5 days of leave", "mployee has 25 days", "Parking is free"]
)
def test_evidence_that_no_cited_passage_holds_is_dropped_and_flagged(evidence):
    checked = evident(evidence)

    assert checked.data["evidence"] == ""
    assert checked.text == "25 days of leave [1]"
    assert checked.citations[0].quote == "Every employee\nhas 25 days of leave."
    assert checked.flags == ("evidence_not_verbatim",)


def test_evidence_quotes_the_passage_it_stands_in():
    checked = evident("free for visitors", [1, 2], "free for 25 days of leave")

    assert [citation.quote for citation in checked.citations] == [
        "Every employee\nhas 25 days of leave.",
        "free for visitors",
    ]


def test_evidence_of_a_citation_that_was_dropped_goes_with_it():
    checked = evident("Parking is free for visitors.", [2])

    assert checked.data["evidence"] == ""
    assert checked.flags == ("citation_dropped:2", "no_source")


def test_a_refusal_has_no_evidence():
    written = output("25", [], answerable=False, evidence="employee has 25 days")

    assert check_output(made(EVIDENT, **ROLES), written, BROKEN).data["evidence"] == ""
    assert refusal(made(EVIDENT, **ROLES)).data == {"answerable": False, "citations": [], "evidence": "", "answer": ""}


def card(**fields):
    empty = {"rule": [[], ""], "applies_to": [[], ""], "limit": [[], ""], "deadline": [[], ""], "approval": [[], ""]}
    parts = {name: {"citations": part[0], "value": part[1]} for name, part in {**empty, **fields}.items()}
    return json.dumps({"answerable": True, **parts})


def test_each_field_carries_its_own_citations():
    checked = check_output(CARD, card(rule=[[2], "Parking is free"], limit=[[1], "25 days"]), SHOWN)

    assert checked.text == "- Rule: Parking is free [2]\n- Limit: 25 days [1]"
    assert [(each.number, each.quote) for each in checked.citations] == [
        (2, "Parking is free for visitors."),
        (1, "Every employee has 25 days of leave."),
    ]
    assert checked.flags == ()


def test_one_passage_may_carry_two_fields_with_a_quote_each():
    both = passage(1, "Leave is 25 days. Parking is free.")

    checked = check_output(CARD, card(rule=[[1], "Parking is free"], limit=[[1], "25 days"]), [both])

    assert [each.quote for each in checked.citations] == ["Parking is free.", "Leave is 25 days."]


@pytest.mark.parametrize(
    ("part", "kept", "text", "flags"),
    [
        ([[1, 9], "25 days"], [1], "25 days [1]", ("citation_dropped:9:limit",)),
        ([[2], "25 days"], [], "25 days [no source]", ("citation_dropped:2:limit", "no_source:limit")),
        ([[1], "30 days"], [], "30 days [no source]", ("unsupported:limit", "no_source:limit")),
        ([[1], "25 [2] days"], [1], "25 days [1]", ("marks_removed:limit",)),
        ([[], "25 days"], [], "25 days [no source]", ("no_source:limit",)),
        ([[1], "25\ndays"], [1], "25 days [1]", ()),
    ],
)
def test_a_field_is_checked_like_an_answer(part, kept, text, flags):
    checked = check_output(CARD, card(rule=[[2], "Parking is free"], limit=part), SHOWN)

    assert checked.data["limit"]["citations"] == kept
    assert checked.text == f"- Rule: Parking is free [2]\n- Limit: {text}"
    assert checked.flags == flags


def test_an_empty_field_cites_nothing():
    checked = check_output(CARD, card(rule=[[2], "Parking is free"], limit=[[1], " "]), SHOWN)

    assert checked.data["limit"] == {"citations": [], "value": ""}
    assert checked.flags == ("citation_dropped:1:limit",)


def test_a_card_without_a_word_is_a_refusal():
    checked = check_output(CARD, card(limit=[[1], ""]), SHOWN)

    assert checked.text == CARD.refusal
    assert checked.flags == ("citation_dropped:1:limit", "empty_answer")
    assert CARD.parse_output(json.dumps(checked.data))["answerable"] is False


def test_a_refused_card_is_emptied():
    written = card(limit=[[1], "25 days"]).replace("true", "false")

    checked = check_output(CARD, written, SHOWN)

    assert checked.data == refusal(CARD).data == CARD.parse_output(json.dumps(checked.data))
    assert (checked.text, checked.citations, checked.flags) == (CARD.refusal, (), ("citation_dropped:1:limit",))


def claims(*parts):
    item = {
        "type": "object",
        "properties": {
            "no": {"type": "array", "items": {"type": "integer"}},
            "quote": {"type": "string"},
            "said": {"type": "string"},
        },
        "required": ["no", "quote", "said"],
        "x-orchestrator": {"answer": "said", "citations": "no", "evidence": "quote"},
    }
    roles = {"show": {"topic": "", "claims": "Claims"}, "refusal": "No."}
    properties = {"topic": {"type": "string"}, "claims": {"type": "array", "items": item}}
    body = {"type": "object", "properties": properties, "required": list(properties), "x-orchestrator": roles}
    written = {"topic": "leave [7]", "claims": [{"no": no, "quote": quote, "said": said} for no, quote, said in parts]}
    return Contract.parse("claims", json.dumps(body)), json.dumps(written)


def test_a_list_of_claims_is_checked_one_by_one():
    contract, written = claims(([1], "has 25 days", "25 days"), ([2], "free for dogs", "free"), ([2], "", "zebras"))

    checked = check_output(contract, written, SHOWN)

    assert checked.text == "- leave\n- Claims: 25 days [1]; free [2]; zebras [no source]"
    assert [each.quote for each in checked.citations] == ["has 25 days", "Parking is free for visitors."]
    assert [part["quote"] for part in checked.data["claims"]] == ["has 25 days", "", ""]
    assert checked.flags == (
        "evidence_not_verbatim:claims.1",
        "citation_dropped:2:claims.2",
        "no_source:claims.2",
    )


def extracted(**fields):
    return json.dumps({name: [] for name in EXTRACT.schema["properties"]} | fields)


def test_what_is_extracted_stands_in_the_message():
    message = "Ann  Lee paid 25 EUR,\nBob paid 125 EUR."

    checked = check_output(EXTRACT, extracted(people=["Ann Lee", "Eve"], amounts=["25 EUR", "5 EUR"]), (), message)

    assert checked.data["people"] == ["Ann  Lee"]
    assert checked.data["amounts"] == ["25 EUR"]
    assert checked.text == "- People: Ann Lee\n- Amounts: 25 EUR"
    assert checked.flags == ("not_in_message:people", "not_in_message:amounts")


def test_a_message_that_names_nothing_is_told_so():
    nothing = check_output(EXTRACT, extracted(), (), "It rained.")
    lost = check_output(EXTRACT, extracted(people=["Eve"]), (), "It rained.")

    assert (nothing.text, nothing.flags) == (EXTRACT.refusal, ())
    assert (lost.text, lost.flags) == (EXTRACT.refusal, ("not_in_message:people", "empty_answer"))
    assert EXTRACT.parse_output(json.dumps(lost.data)) == lost.data


def test_the_words_that_decide_are_the_messages():
    written = {"quote": "charged twice", "reason": "An error.", "category": "billing", "priority": "normal"}

    right = check_output(TRIAGE, json.dumps(written), (), "I was charged twice.")
    wrong = check_output(TRIAGE, json.dumps(written), (), "I was charged once.")

    assert right.text.splitlines()[0] == "- From the message: charged twice"
    assert (wrong.data["quote"], wrong.flags) == ("", ("not_in_message:quote",))
    assert wrong.text == "- Why: An error.\n- Category: billing\n- Priority: normal"


REPORT = """## Summary
Every employee has 25 days. [1]

## Findings
- Parking is free. [2]
- Parking costs 7 euros. [2] [9]

## Open questions
- Who parks there?"""


def test_the_lines_of_a_report_are_checked_like_answers():
    checked = check_output(BRIEF, REPORT, SHOWN)

    assert checked.text == REPORT.replace("7 euros. [2] [9]", "7 euros. [no source]")
    assert [each.number for each in checked.citations] == [1, 2]
    assert checked.data["report"]["Findings"][1] == {"citations": [], "text": "Parking costs 7 euros."}
    assert checked.flags == (
        "citation_dropped:9:report.Findings.1",
        "unsupported:report.Findings.1",
        "no_source:report.Findings.1",
    )


def test_a_report_refuses_in_its_own_words():
    checked = check_output(BRIEF, BRIEF.refusal + "\n", SHOWN)

    assert (checked.text, checked.citations, checked.flags) == (BRIEF.refusal, (), ())
    assert checked.data == refusal(BRIEF).data


def test_of_a_thousand_forged_citations_in_fields_and_lines_none_passes():
    random = Random(6)
    for _ in range(500):
        numbers = random.choices([1, 2, 3, 99], k=random.randrange(1, 3))
        words = random.choice(["25", "free", "zebra 7", "25 free"])
        marks = "".join(f" [{number}]" for number in numbers)
        report = f"## Summary\n{words}{marks}\n\n## Findings\n- {words}{marks}\n\n## Open questions\n- x"
        for contract, written in ((CARD, card(limit=[numbers, words])), (BRIEF, report)):
            checked = check_output(contract, written, SHOWN)

            assert checked.text.count("[1]") + checked.text.count("[2]") == len(checked.citations)
            assert not {"[3]", "[99]"} & set(checked.text.split())
            assert all(SHOWN[each.number - 1].text[slice(*each.span)] == each.quote for each in checked.citations)
            assert ("[no source]" in checked.text) == any(flag.startswith("no_source") for flag in checked.flags)
