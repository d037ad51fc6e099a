"""Reading questions of every form: what can be used is read, what cannot is a fault that counts."""

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.evaluation.items import Fault, Gold, Item, ItemSet, Outcome, Score
from orchestrator.evaluation.metrics import ndcg, rank_documents
from orchestrator.evaluation.read import parse_item, read_items, sample, write_items, write_results, write_trec
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
        ('{"question": "Wh\\ud800?", "answers": ["x"]}', "half of a character"),
        ('{"question": "Who?", "answers": ["\\udfff"]}', "half of a character"),
        ({"id": "a\0", "question": "Who?", "answers": ["x"]}, "an id with a NUL"),
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


def test_marks_and_separators_of_other_systems_cost_no_row(tmp_path):
    row = json.dumps({**ROW, "question": "How\u2028many?"}, ensure_ascii=False)
    (tmp_path / "set.jsonl").write_bytes(
        b"\xef\xbb\xbf" + f"{row}\r\n\r\n{json.dumps({**ROW, 'id': 'b'})}\r\nx".encode()
    )

    found = read_items(tmp_path / "set.jsonl")

    assert [(item.id, item.question) for item in found.items] == [("a", "How\u2028many?"), ("b", "How many?")]
    assert [fault.number for fault in found.faults] == [4]  # the line that an editor shows, empty ones counted


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


def test_squad_1_and_2_as_they_are_published(tmp_path):
    """With answers given three times, answer_start, plausible answers of what is impossible, and broken articles."""
    first = {
        "id": "56be4db0acb8001400a502ec",
        "question": "Which NFL team represented the AFC at Super Bowl 50?",
        "answers": [{"text": "Denver Broncos", "answer_start": 177}] * 3,
    }
    second = {
        "id": "5ad39d53604f3c001a3fe8d1",
        "question": "Who gave their name to Normandy in the 1000's and 1100's",
        "is_impossible": True,
        "answers": [],
        "plausible_answers": [{"text": "Normans", "answer_start": 4}],
    }
    third = {**first, "id": "x", "is_impossible": False}
    one = {
        "version": "1.1",
        "data": [{"title": "Super_Bowl_50", "paragraphs": [{"context": "Super...", "qas": [first]}]}],
    }
    paragraphs = [{"context": "The Normans", "qas": [second, third]}, {"context": "x", "qas": "lost"}, "torn"]
    two = {
        "version": "v2.0",
        "data": [{"title": "Normans", "paragraphs": paragraphs}, {"title": "y", "paragraphs": None}, 7],
    }

    old, new = read_items(written(tmp_path / "v1.json", one)), read_items(written(tmp_path / "v2.json", two))

    assert old.items == (Item(first["id"], first["question"], ("Denver Broncos",), gold=(Gold("0000-000"),)),)
    assert [(item.answerable, item.answers) for item in new.items] == [(False, ()), (True, ("Denver Broncos",))]
    assert [(fault.number, fault.reason) for fault in new.faults] == [(place, "no question") for place in (3, 4, 5, 6)]


def test_a_beir_folder_as_it_is_published(tmp_path):
    written(
        tmp_path / "queries.jsonl",
        {"_id": "PLAIN-2", "text": "Do Cholesterol Statin Drugs Cause Breast Cancer?", "metadata": {"url": "http://x"}},
        {"_id": "PLAIN-12", "text": "Exploiting Autophagy to Live Longer", "metadata": {}},
        {"_id": "PLAIN-train", "text": "of the training split", "metadata": {}},
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nPLAIN-2\tMED-2427\t2\nPLAIN-2\tMED-10\t1\nPLAIN-12\tMED-3\t1\nPLAIN-12\tMED-4\tx\n"
        "PLAIN-gone\tMED-5\t1\nPLAIN-gone\tMED-6\t1\n"
    )

    found = read_items(tmp_path)

    assert [(item.id, item.gold) for item in found.items] == [
        ("PLAIN-2", (Gold("MED-2427", grade=2.0), Gold("MED-10"))),
        ("PLAIN-12", (Gold("MED-3"),)),
    ]
    assert [(fault.number, fault.reason) for fault in found.faults] == [
        (5, "test.tsv: no judgement of query, document and grade"),
        (6, "test.tsv: query 'PLAIN-gone' is judged and not in queries.jsonl"),
    ]


def test_a_judged_query_whose_row_is_torn_counts_once(tmp_path):
    written(tmp_path / "queries.jsonl", {"_id": "1", "text": "leave"}, '{"_id": "2", "te')
    (tmp_path / "qrels.tsv").write_text("1\td1\t1\n2\td1\t1\n")

    found = read_items(tmp_path)

    assert ([item.id for item in found.items], [fault.number for fault in found.faults]) == (["1"], [2])


def test_what_ragas_and_deepeval_write_is_read_with_its_bad_rows(tmp_path):
    ragas = [  # EvaluationDataset.to_jsonl
        {"user_input": "When was the tower built?", "retrieved_contexts": ["found once"], "reference_contexts": ["Built in 1889."],
         "response": "1889", "reference": "in 1889", "rubrics": {"score1": "bad"}},
        {"user_input": [{"type": "human", "content": "hi"}], "reference": "a conversation"},
        {"user_input": "Who?", "response": "nobody said what is right", "reference": None, "retrieved_contexts": ["x"]},
    ]  # fmt: skip
    deepeval = {  # EvaluationDataset.save_as
        "goldens": [
            {"input": "When was it built?", "actual_output": None, "expected_output": "in 1889", "context": ["Built in 1889."],
             "retrieval_context": None, "source_file": "tower.md", "additional_metadata": {"x": 1}},
            {"input": "Who?", "actual_output": "x", "expected_output": None, "context": None},
        ]
    }  # fmt: skip

    ours, theirs = read_items(written(tmp_path / "r.jsonl", *ragas)), read_items(written(tmp_path / "d.json", deepeval))

    for found in (ours, theirs):
        (item,) = found.items
        assert (item.answers, item.gold) == (("in 1889",), (Gold("", quote="Built in 1889."),))
    assert [(fault.number, fault.reason[:15]) for fault in ours.faults] == [
        (2, "no question: on"),
        (3, "nothing to judg"),
    ]
    assert [(fault.number, fault.reason[:15]) for fault in theirs.faults] == [(2, "nothing to judg")]


def test_rankings_are_written_as_trec_eval_reads_them(tmp_path):
    items = (
        Item("q 1", "x", gold=(Gold("a b.md", grade=2.0), Gold("c.md"))),
        Item("q2", "y", gold=(Gold("c.md"),)),
        Item("q3", "z", ("no gold",)),
    )
    shown = [passage(at, "t", external_id=name, score=score) for at, (name, score) in enumerate(
        [("d.md", 0.1), ("a b.md", 0.9), ("d.md", 0.05), ("c.md", 0.5)], 1)]  # fmt: skip
    outcomes = {"q 1": Outcome("q 1", "t", passages=tuple(shown)), "q3": Outcome("q3", "t", passages=tuple(shown))}

    assert write_trec(ItemSet("s", items), outcomes, "as served", tmp_path / "trec") == 2

    # Ranked as shown and not by the first stage's score, each document once.
    assert (tmp_path / "trec" / "run.txt").read_text().splitlines() == [
        "q_1 Q0 d.md 1 1.000000 as_served", "q_1 Q0 a_b.md 2 0.500000 as_served", "q_1 Q0 c.md 3 0.333333 as_served",
    ]  # fmt: skip
    assert (tmp_path / "trec" / "qrels.txt").read_text().splitlines() == [
        "q_1 0 a_b.md 2",
        "q_1 0 c.md 1",
        "q2 0 c.md 1",
    ]


def test_trec_eval_reads_our_files_and_agrees(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    items = tuple(Item(f"q{n}", "x", gold=(Gold("a", grade=2.0), Gold("b"))) for n in range(3))
    orders = ("xab", "bxa", "axx")
    outcomes = {
        item.id: Outcome(
            item.id, passages=tuple(passage(at, "t", external_id=name) for at, name in enumerate(order, 1))
        )
        for item, order in zip(items, orders, strict=True)
    }
    write_trec(ItemSet("s", items), outcomes, "t", tmp_path)

    with (tmp_path / "run.txt").open() as ranked, (tmp_path / "qrels.txt").open() as judged:
        measure = pytrec_eval.RelevanceEvaluator(pytrec_eval.parse_qrel(judged), {"ndcg_cut.10"})
        theirs = measure.evaluate(pytrec_eval.parse_run(ranked))

    for item, order in zip(items, orders, strict=True):
        ours = ndcg(rank_documents(order), {"a": 2.0, "b": 1.0}, 10)
        assert theirs[item.id]["ndcg_cut_10"] == pytest.approx(ours)


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

    found = ItemSet("s", (item, Item("b", "Who?", ("Ann",))), (Fault(7, "no JSON"),))
    assert write_results(found, {"a": outcome}, {"a": Score(1.0)}, tmp_path / "out.jsonl") == 3

    row, missing, junk = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [each["correct"] for each in (row, missing, junk)] == [1, 0, 0]  # whoever averages them gets our figure
    assert (missing["error"], junk["id"], junk["error"]) == ("not asked", "row 7", "no question: no JSON")
    assert (row["response"], row["actual_output"], row["retrieved_contexts"]) == (
        "25 days",
        "25 days",
        ["25 days of leave"],
    )
    again = read_items(tmp_path / "out.jsonl").items[0]
    assert (again.question, again.answers, again.gold) == ("How many?", ("25",), (Gold("", quote="25 days of leave"),))
    assert [fault.number for fault in read_items(tmp_path / "out.jsonl").faults] == [3]  # and junk stays junk


def test_a_larger_sample_holds_the_smaller_one(tmp_path):
    found = read_items(written(tmp_path / "set.jsonl", *[{**ROW, "id": f"q{number}"} for number in range(50)]))

    small, large = sample(found, 10), sample(found, 30)

    backwards = sample(replace(found, items=found.items[::-1], faults=(Fault(1, "x"),)), 10)
    assert len(small.items) == 10
    assert set(small.items) < set(large.items)
    assert set(backwards.items) == set(small.items) != set(found.items[:10])  # whatever stands first in the file
    assert backwards.faults == (Fault(1, "x"),)
    assert sample(found, 99).items == found.items


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda deeper: st.lists(deeper) | st.dictionaries(
    st.sampled_from(["question", "answers", "gold", "documents", "contains", "pattern", "tags", "as_of", "external_id", "quote"]),
    deeper)))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_any_json_is_an_item_or_says_what_is_wrong(value):
    with suppress(InputError):
        assert parse_item(value, 1).question
