"""The check: 0 of all forged citations pass, refusals carry none, and what is streamed is the start of what is said."""

import json
from itertools import pairwise
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.check import AnswerStream, check_output, refusal
from orchestrator.contract import Contract
from orchestrator.errors import ContractError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import passage

CATALOGUE = load_catalogue(folder("prompts"))
CITED = CATALOGUE.contract("cited_answer")
TEXT = CATALOGUE.contract("text_answer")
SHOWN = [passage(1, "Every employee has 25 days of leave."), passage(2, "Parking is free for visitors.")]


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


def made(properties, **roles):
    named = {"answer": "answer", **roles}
    body = {"type": "object", "properties": properties, "required": list(properties), "x-orchestrator": named}
    return Contract.parse("made", json.dumps(body))


def streamed(contract, pieces):
    stream = AnswerStream(contract)
    return [stream.feed(piece) for piece in pieces]


def cut(text, places):
    bounds = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


PIECES = ["[1]", " [2]", "[", "[1", "[[", "]", "1", " ", "\n", '"', "\\", '"answer": "', "😀", "\u2028", "é", "\x00"]
ANSWERS = st.lists(st.text(max_size=6) | st.sampled_from(PIECES), max_size=10).map("".join)


@settings(max_examples=300)
@given(ANSWERS, st.lists(st.integers(0, 400), max_size=12), st.booleans(), st.lists(st.integers(1, 3), max_size=3))
@example("a  [1] b", [], True, [1])
@example("[1[2]3]", list(range(80)), True, [1])
def test_what_is_streamed_is_the_start_of_what_is_said(answer, places, is_ascii, citations):
    written = json.dumps({"answerable": True, "citations": citations, "answer": answer}, ensure_ascii=is_ascii)

    shown = "".join(streamed(CITED, cut(written, places)))

    assert check_output(CITED, written, SHOWN).text.startswith(shown)


@given(ANSWERS.filter(str.strip), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_a_text_is_streamed_to_its_end(answer, places, is_ascii):
    written = json.dumps({"answer": answer}, ensure_ascii=is_ascii)

    assert "".join(streamed(TEXT, cut(written, places))) == check_output(TEXT, written, ()).text


def test_text_comes_as_soon_as_it_is_sure():
    pieces = [
        '{"answerable": true, "citations"',
        ': [1], "answer": "25',
        " days ",
        "[",
        "x",
        r" \u00",
        r"e9 \ud83d",
        r'\ude00"}',
    ]

    assert streamed(CITED, pieces) == ["", "25", " days", "", " [x", "", " é", " 😀"]


@pytest.mark.parametrize(
    "written",
    [
        '{"answer": "25 days", "answerable": false, "citations": []}',
        '{"answer": "25 days", "answerable": true, "citations": [1]}',
        '{"citations": [1], "answer": "25 days", "answerable": true}',
        '{"answerable": true, "answer": "25 days", "citations": [1]}',
        '{"answerable": false, "citations": [], "answer": "25 days"}',
        '{"answerable": "true", "citations": [], "answer": "25 days"}',
        '{"answerable": null, "citations": [], "answer": "25 days"}',
        '{"x": {"answerable": true, "citations": [1], "answer": "25 days"}}',
        '{"x": "\\"answerable\\": true, \\"citations\\": [], \\"answer\\": \\"25", "answer": "days"}',
        '["answerable", true, "answer", "25 days"]',
        'Sure: {"answerable": true, "citations": [1], "answer": "25 days"}',
        '{"answerable": true, "citations": [1], "answer": 25}',
        '{"answerable": true, "citations": [1], "answer": null}',
        '{"answerable": true, "citations": [1',
        '"answer": "25 days"',
    ],
)
def test_nothing_is_streamed_before_the_verdict(written):
    assert "".join(streamed(CITED, written)) == ""


@pytest.mark.parametrize("escape", ["\ud800", "\\ud800", "\\udc00", "\\ud800\\ud800", "\\x", "\\u00g0", "\n", "\x00"])
def test_a_broken_escape_ends_the_stream_and_the_answer(escape):
    written = f'{{"answer": "sure {escape} x"}}'

    assert "".join(streamed(TEXT, written)) == "sure"
    with pytest.raises(ContractError):
        check_output(TEXT, written, ())


def test_a_number_before_the_answer_is_read_to_its_end():
    contract = made({"note": {"type": "integer"}, "answer": {"type": "string"}})

    assert "".join(streamed(contract, '{"note": 1234, "answer": "yes"}')) == "yes"


def test_fields_before_the_answer_may_be_of_any_kind():
    contract = made({"note": {}, "answer": {"type": "string"}})
    written = '{ "note" : {"answer": "no", "a": [1, "}"]}, "answer" : "yes" }'

    assert "".join(streamed(contract, written)) == "yes"
