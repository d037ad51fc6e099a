"""What is streamed is the start of what is said, and nothing is said before the verdict: letters, fields and lines."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.check import check_output
from orchestrator.errors import ContractError
from orchestrator.reveal import AnswerStream, open_reveal
from tests.shown import BRIEF, CARD, CITED, EXTRACT, SHOWN, TEXT, made

EVIDENT = {
    "answerable": {"type": "boolean"},
    "citations": {"type": "array", "items": {"type": "integer"}},
    "evidence": {"type": "string"},
    "answer": {"type": "string"},
}
ROLES = {"citations": "citations", "answerable": "answerable", "evidence": "evidence", "refusal": "No."}


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


@pytest.mark.parametrize("order", [["evidence", "answer"], ["answer", "evidence"]])
def test_evidence_may_stand_before_or_after_the_answer(order):
    contract = made({name: EVIDENT[name] for name in ["answerable", "citations", *order]}, **ROLES)
    written = contract.dump({"answerable": True, "citations": [1], "evidence": '"25" days', "answer": "25 days"})

    shown = "".join(streamed(contract, written))

    assert shown == "25 days"
    assert check_output(contract, written, SHOWN).text.startswith(shown)


def revealed(contract, pieces, message=""):
    reveal = open_reveal(contract, SHOWN, message)
    return [reveal.feed(piece) for piece in pieces]


WORDS = st.sampled_from(["", "25 days", "Parking is free", "zebra 7", "a [2] b", " x ", "[1]"])
PART = st.fixed_dictionaries({"citations": st.lists(st.integers(1, 3), max_size=3), "value": WORDS})
FIELDS = ["rule", "applies_to", "limit", "deadline", "approval"]
CARDS = st.fixed_dictionaries({"answerable": st.booleans(), **{name: PART for name in FIELDS}})


@settings(max_examples=200)
@given(CARDS, st.lists(st.integers(0, 600), max_size=12))
def test_fields_are_streamed_once_they_are_sure(data, places):
    written = json.dumps({name: data[name] for name in ["answerable", *FIELDS]})

    shown = "".join(revealed(CARD, cut(written, places)))
    text = check_output(CARD, written, SHOWN).text

    assert text == (shown or CARD.refusal)
    assert not shown or data["answerable"]


def test_a_line_comes_with_its_field():
    data = {"answerable": True, **{name: {"citations": [], "value": ""} for name in FIELDS}}
    data["rule"] = {"citations": [2], "value": "Parking is free"}
    data["limit"] = {"citations": [1], "value": "30 days"}
    pieces = json.dumps(data).replace('}, "', '}|, "').split("|")

    assert revealed(CARD, pieces)[:4] == ["", "- Rule: Parking is free [2]", "", "\n- Limit: 30 days [no source]"]


@pytest.mark.parametrize(
    "order",
    [["rule", "answerable"], ["limit", "rule"], ["answerable", "limit", "rule"], ["answerable", "rule", "limit"]],
)
def test_fields_out_of_order_are_not_streamed(order):
    data = {"answerable": True, **{name: {"citations": [1], "value": "25 days"} for name in FIELDS}}
    data = {name: data[name] for name in [*order, *(each for each in data if each not in order)]}

    shown = "".join(revealed(CARD, [json.dumps(data)]))

    assert check_output(CARD, json.dumps(data), SHOWN).text.startswith(shown)
    assert shown.count("\n") == 0


@pytest.mark.parametrize("value", ['"x"', "5", "null", "[]", '{"value": "25 days"}', '{"citations": [1], "value": 5}'])
def test_a_field_that_breaks_the_schema_ends_the_stream(value):
    written = f'{{"answerable": true, "rule": {value}, "applies_to": {{"citations": [1], "value": "25 days"}}, "limit"'

    assert "".join(revealed(CARD, [written])) == ""


def test_what_is_extracted_is_streamed_as_far_as_the_message_holds_it():
    data = {name: [] for name in EXTRACT.schema["properties"]} | {"people": ["Ann", "Eve"], "dates": ["1 May"]}
    written, message = json.dumps(data), "Ann came on 1 May."

    shown = "".join(revealed(EXTRACT, written, message))

    assert shown == check_output(EXTRACT, written, SHOWN, message).text == "- People: Ann\n- Dates: 1 May"


LINE = st.tuples(
    st.sampled_from(["Parking is free", "25 days", "zebra 7"]), st.lists(st.integers(1, 3), min_size=1, max_size=2)
)


@settings(max_examples=200)
@given(st.lists(LINE, min_size=2, max_size=5), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_lines_are_streamed_once_they_are_whole(lines, places, ends_with_line):
    head, *rest = [said + "".join(f" [{number}]" for number in numbers) for said, numbers in lines]
    written = f"## Summary\n{head}\n\n## Findings\n" + "\n".join(f"- {line}" for line in rest)
    written += "\n\n## Open questions\n- What else?" + "\n" * ends_with_line

    shown = "".join(revealed(BRIEF, cut(written, places)))
    text = check_output(BRIEF, written, SHOWN).text

    assert text.startswith(shown)
    assert len(text) - len(shown) == (0 if ends_with_line else len("\n- What else?"))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (BRIEF.refusal + "\n", ""),
        ("# Summary\n25 days [1]\n", ""),
        ("## Findings\n- 25 days [1]\n", ""),
        ("## Summary\n25 days\n\n## Findings\n", "## Summary"),
        ("## Summary\n\n25 days [1]\n", "## Summary"),
        ("## Summary\n25 days [1]\n25 days [1]\n", "## Summary\n25 days [1]"),
        ("## Summary\n25 days [1]\n\n## Other\n- x\n", "## Summary\n25 days [1]"),
        ("\n\n", ""),
    ],
)
def test_a_line_that_breaks_the_form_ends_the_stream(written, shown):
    assert "".join(revealed(BRIEF, written)) == shown
