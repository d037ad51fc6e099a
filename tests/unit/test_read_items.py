"""Reading questions of every form: what can be used is read, what cannot is a fault that counts."""

import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.evaluation.items import Gold, Item, Outcome, Score
from orchestrator.evaluation.read import parse_item, read_items, sample, write_items, write_results
from orchestrator.evaluation.score import score_outcome
from orchestrator.evaluation.summary import summarise
from orchestrator.testing import passage


def written(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


ROW = {"id": "a", "question": "How many?", "answers": ["25"], "document_id": "leave.md"}


def test_our_form_is_read_and_written_back(tmp_path):
    whole = Item(
        "a", "How many?", ("25", "25 days"), True, (Gold("leave.md", 2, "25 days of leave", 0.5),), ("days",), "^25", "grounded",
        datetime(2024, 1, 2, tzinfo=UTC), ("leave", "stale"), True,
    )  # fmt: skip
    other = Item("b", "Who?", answerable=False)

    write_items([whole, other], tmp_path / "set.jsonl")

    assert read_items(tmp_path / "set.jsonl").items == (whole, other)
    assert read_items(tmp_path / "set.jsonl").name == "set"


def test_a_folder_of_questions(tmp_path):
    written(tmp_path / "corpus.jsonl", {"id": "leave.md", "text": "x"})
    written(tmp_path / "questions.jsonl", ROW, {"id": "b", "question": "Who?", "answerable": False, "answers": []})

    found = read_items(tmp_path)

    assert found.items == (
        Item("a", "How many?", ("25",), gold=(Gold("leave.md"),)),
        Item("b", "Who?", answerable=False),
    )
    assert found.faults == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "no JSON"),
        ('{"question": NaN}', "no question"),
        ("[1]", "no JSON object"),
        ({"answers": ["x"]}, "no question"),
        ({"question": 5, "answers": ["x"]}, "no question"),
        ({"question": "Who?"}, "nothing to judge it by"),
        ({"question": "Who?", "answers": [{}]}, "answers is a text"),
        ({"question": "Who?", "answers": ["x"], "answerable": "no"}, "answerable is true or false"),
        ({"question": "Who?", "answers": ["x"], "as_of": "soon"}, "as_of 'soon' is no date"),
        ({"question": "Who?", "pattern": "(?=x)"}, "the pattern"),
        ({"question": "Who?", "gold": [{"version": 2}]}, "gold is a list"),
        ({"question": "Who?", "gold": [{"external_id": "a", "version": "2"}]}, "the version"),
        ({"question": "Who?", "documents": {"a": "high"}}, "a grade is a number"),
        (ROW, "an id that another row has"),
    ],
)
def test_a_row_that_cannot_be_read_is_a_fault(tmp_path, row, reason):
    found = read_items(written(tmp_path / "set.jsonl", ROW, row))

    assert [item.id for item in found.items] == ["a"]
    assert [fault.number for fault in found.faults] == [2]
    assert found.faults[0].reason.startswith(reason)


def test_a_set_of_junk_is_read_and_scored_as_such(tmp_path):
    good = [{**ROW, "id": f"q{number}"} for number in range(10)]
    found = read_items(written(tmp_path / "set.jsonl", *good, *["\ufffd not json"] * 90))
    outcomes = {item.id: Outcome(item.id, "25") for item in found.items}
    scores = {item.id: score_outcome(item, outcomes[item.id]) for item in found.items}

    summary = summarise(found.items, outcomes, scores, found.faults)

    assert (summary.measures["correct"].value, summary.faults) == (0.1, 90)
    assert "90 of 100 rows (90%) could not be read" in summary.notes[0]


def test_bytes_that_are_no_text_spoil_their_row_only(tmp_path):
    (tmp_path / "set.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n\xff\xfe\x00junk\n")

    found = read_items(tmp_path / "set.jsonl")

    assert (len(found.items), len(found.faults)) == (1, 1)


def test_only_a_set_without_a_row_is_refused(tmp_path):
    with pytest.raises(InputError, match="no question"):
        read_items(written(tmp_path / "set.jsonl", ""))
    with pytest.raises(InputError, match="there is no"):
        read_items(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no evaluation set"):
        read_items(tmp_path / "..")
    assert len(read_items(written(tmp_path / "junk.jsonl", "x")).faults) == 1
    assert len(read_items(written(tmp_path / "junk.json", "x")).faults) == 1


def test_squad(tmp_path):
    rows = [
        {"id": "1", "question": "When?", "answers": [{"text": "in 1911"}, {"text": "1911"}, {"text": "1911"}]},
        {"id": "2", "question": "Why?", "is_impossible": True, "answers": []},
        {"id": "3", "question": "Who?", "answers": []},
        "junk",
    ]
    data = {
        "data": [
            {"paragraphs": []},
            {"title": "Tower", "paragraphs": [{"context": "x"}, {"context": "y", "qas": rows}]},
        ]
    }

    found = read_items(written(tmp_path / "dev.json", data))

    assert found.items == (
        Item("1", "When?", ("in 1911", "1911"), gold=(Gold("0001-001"),)),
        Item("2", "Why?", answerable=False),
    )
    assert [fault.number for fault in found.faults] == [3, 4]


def test_beir(tmp_path):
    written(tmp_path / "corpus.jsonl", {"_id": "d1", "text": "x"})
    written(tmp_path / "queries.jsonl", {"_id": "1", "text": "leave"}, {"_id": "9", "text": "of another split"}, "junk")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t2\n1\td2\t0\nbroken\n")

    found = read_items(tmp_path)

    assert found.items == (Item("1", "leave", gold=(Gold("d1", grade=2.0),)),)
    assert len(found.faults) == 2


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"question": "How many?", "ground_truth": "25", "contexts": ["found once"]}, ()),
        ({"user_input": "How many?", "reference": "25", "retrieved_contexts": ["found once"]}, ()),
        (
            {"user_input": "How many?", "reference": "25", "reference_contexts": ["25 days"]},
            (Gold("", quote="25 days"),),
        ),
        ({"user_input": "How many?", "reference": "25", "reference_context_ids": ["d1"]}, (Gold("d1"),)),
        ({"input": "How many?", "expected_output": "25", "context": ["25 days"]}, (Gold("", quote="25 days"),)),
        ({"input": "How many?", "expected_output": 25, "retrieval_context": ["found once"]}, ()),
    ],
)
def test_rows_of_ragas_and_deepeval(row, gold):
    item = parse_item(row, 7)

    assert (item.id, item.question, item.answers, item.gold) == ("7", "How many?", ("25",), gold)


def test_a_list_of_rows_in_one_file(tmp_path):
    rows = [{"input": "How many?", "expected_output": "25"}, {"input": "", "expected_output": "25"}]

    for whole in (rows, {"test_cases": rows}):
        found = read_items(written(tmp_path / "cases.json", whole))
        assert (len(found.items), [fault.number for fault in found.faults]) == (1, [2])


def test_results_are_written_as_rows_that_are_read_back(tmp_path):
    item = Item("a", "How many?", ("25",), gold=(Gold("leave.md", quote="25 days of leave"),))
    outcome = Outcome("a", "25 days [1]", passages=(passage(1, "25 days of leave"),))

    assert write_results([item, Item("b", "x")], {"a": outcome}, {"a": Score(1.0)}, tmp_path / "out.jsonl") == 1

    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (row["response"], row["actual_output"], row["retrieved_contexts"]) == (
        "25 days",
        "25 days",
        ["25 days of leave"],
    )
    again = read_items(tmp_path / "out.jsonl").items[0]
    assert (again.question, again.answers, again.gold) == ("How many?", ("25",), (Gold("", quote="25 days of leave"),))


def test_a_larger_sample_holds_the_smaller_one(tmp_path):
    found = read_items(written(tmp_path / "set.jsonl", *[{**ROW, "id": f"q{number}"} for number in range(50)]))

    small, large = sample(found, 10), sample(found, 30)

    assert len(small.items) == 10
    assert set(small.items) < set(large.items)
    assert sample(found, 99).items == found.items


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda deeper: st.lists(deeper) | st.dictionaries(
    st.sampled_from(["question", "answers", "gold", "documents", "contains", "pattern", "tags", "as_of", "external_id", "quote"]),
    deeper)))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_any_json_is_an_item_or_says_what_is_wrong(value):
    with suppress(InputError):
        assert parse_item(value, 1).question
