"""Evaluation sets of every layout, what is wrong with them named by file and line, and samples that stay the same."""

import json
from dataclasses import replace

import pytest

from orchestrator.errors import InputError
from orchestrator.evaluation.sets import Neighbours, load_set
from orchestrator.types import end_of


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "tiny"
    write_rows(
        folder / "corpus.jsonl",
        [
            {"_id": "d1", "title": "One", "text": "first", "metadata": {"url": "x"}},
            {"_id": "d2", "text": "second\u2028line"},
            {"_id": "d3", "title": "", "text": "third"},
        ],
    )
    write_rows(folder / "queries.jsonl", [{"_id": "q1", "text": "what?"}, {"_id": "q2", "text": "who?"}])
    write(folder / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq1\td3\t0\n")
    return folder


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def test_a_beir_folder(beir):
    found = load_set(beir)

    assert found.name == "tiny"
    assert [(d.external_id, d.title, d.text) for d in found.documents] == [
        ("d1", "One", "first"),
        ("d2", "", "second\u2028line"),
        ("d3", "", "third"),
    ]
    assert found.documents[0].metadata == {"url": "x"}
    [question] = found.questions
    assert (question.id, question.text, dict(question.relevant)) == ("q1", "what?", {"d1": 2.0, "d2": 1.0})


def test_judgements_without_a_header_beside_the_corpus_win(beir):
    write(beir / "qrels.tsv", "q2\td3\t1\n")

    assert [question.id for question in load_set(beir).questions] == ["q2"]


def test_judgements_of_trec_have_four_columns(beir):
    write(beir / "qrels.tsv", "q2 0 d3 1\nq1 0 d1 0\n")

    found = load_set(beir)

    assert {question.id: dict(question.relevant) for question in found.questions} == {"q2": {"d3": 1.0}}
    assert found.skipped == 1  # q1 was judged, and nothing is relevant


def test_a_document_of_only_a_title_is_its_title(beir):
    write_rows(
        beir / "corpus.jsonl", [{"_id": "d1", "title": "One", "text": ""}, {"_id": "d9", "title": "", "text": ""}]
    )
    write(beir / "qrels.tsv", "q1\td1\t1\n")

    assert [(d.external_id, d.text) for d in load_set(beir).documents] == [("d1", "One")]


def test_judged_documents_that_are_not_there_are_counted(beir):
    write(beir / "qrels.tsv", "q1\td1\t1\nq1\td7\t1\nq2\td8\t1\n")

    found = load_set(beir)

    assert {question.id: dict(question.relevant) for question in found.questions} == {"q1": {"d1": 1.0}}
    assert (found.missing, found.skipped) == (2, 1)


def test_a_corpus_with_questions(tmp_path):
    write_rows(tmp_path / "corpus.jsonl", [{"id": "w1", "title": "T", "text": "text"}])
    write_rows(
        tmp_path / "questions.jsonl",
        [
            {"id": "a", "question": "yes?", "document_id": "w1", "answerable": True, "answers": ["x"]},
            {"id": "b", "question": "no?", "document_id": "w1", "answerable": False, "answers": []},
        ],
    )

    found = load_set(tmp_path)

    assert [(question.id, question.text, dict(question.relevant)) for question in found.questions] == [
        ("a", "yes?", {"w1": 1.0})
    ]
    assert found.skipped == 1
    assert len(found.documents) == 1


def test_questions_over_documents_that_are_indexed_already(tmp_path):
    rows = [
        {"id": "1", "question": "then?", "document": "handbook", "as_of": "2024-06-30"},
        {"question": "several?", "documents": ["a", "b"]},
        {"id": "3", "question": "graded?", "relevant": {"a": 2, "b": 0}},
        {"id": "4", "question": "off topic?", "document": None},
    ]
    write_rows(tmp_path / "mine.jsonl", rows)

    found = load_set(tmp_path / "mine.jsonl")

    assert (found.name, found.documents, found.skipped) == ("mine", (), 1)
    assert [dict(question.relevant) for question in found.questions] == [
        {"handbook": 1.0},
        {"a": 1.0, "b": 1.0},
        {"a": 2.0},
    ]
    assert found.questions[0].as_of == end_of("2024-06-30")
    assert found.questions[1].id == "2"  # a question without an id has its line's number


def test_squad(tmp_path):
    squad = {
        "data": [
            {
                "title": "Super_Bowl",
                "paragraphs": [
                    {
                        "context": "Text one.",
                        "qas": [
                            {"id": "q1", "question": "One?", "answers": [{"text": "one", "answer_start": 5}]},
                            {"id": "q2", "question": "None?", "answers": [], "is_impossible": True},
                        ],
                    },
                    {"context": "Text two.", "qas": []},
                    {
                        "context": "Text one.",  # stands twice: one document
                        "qas": [{"id": "q3", "question": "Again?", "answers": [{"text": "one", "answer_start": 5}]}],
                    },
                ],
            }
        ]
    }
    write(tmp_path / "squad.json", json.dumps(squad))

    found = load_set(tmp_path / "squad.json")

    assert [(d.external_id, d.title, d.text) for d in found.documents] == [
        ("0000-000", "Super Bowl", "Text one."),
        ("0000-001", "Super Bowl", "Text two."),
    ]
    assert {question.id: list(question.relevant) for question in found.questions} == {
        "q1": ["0000-000"],
        "q3": ["0000-000"],
    }
    assert found.skipped == 1


def test_a_folder_with_one_squad_file_is_that_set(tmp_path):
    paragraph = {"context": "c", "qas": [{"id": "q", "question": "?", "answers": [{"text": "c"}]}]}
    write(tmp_path / "one.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))

    assert load_set(tmp_path).name == "one"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "is no evaluation set"),
        ({"a.json": "{}", "b.json": "{}"}, "holds 2 sets: name one of a.json, b.json"),
        ({"a.json": "[]"}, "SQuAD"),
        ({"questions.jsonl": '{"question": "?"}\n'}, "nothing to measure"),
        ({"questions.jsonl": "{\n"}, "questions.jsonl:1 is no JSON"),
        ({"questions.jsonl": "[]\n"}, "questions.jsonl:1 is no JSON object"),
        ({"questions.jsonl": '\n{"document": "d"}\n'}, "questions.jsonl:2 has no question or text"),
        ({"questions.jsonl": '{"question": "?", "document": "d", "as_of": "soon"}\n'}, "as_of 'soon' is no date"),
        ({"questions.jsonl": '{"question": "?", "document": 1.5}\n'}, "the relevant documents are"),
        ({"questions.jsonl": '{"id": "a", "question": "?", "document": "d"}\n' * 2}, "two questions with the id 'a'"),
        ({"corpus.jsonl": "{}\n", "queries.jsonl": "{}\n"}, "no judgements"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, said):
    for name, text in files.items():
        write(tmp_path / name, text)

    with pytest.raises(InputError) as error:
        load_set(tmp_path)

    assert said in error.value.message


def test_a_broken_judgement_is_named_by_its_line(beir):
    write(beir / "qrels.tsv", "q1\td1\t1\nq1\td2\tgood\n")

    with pytest.raises(InputError, match=r"qrels\.tsv:2 is no judgement"):
        load_set(beir)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no evaluation set"):
        load_set(tmp_path / "absent")


def test_a_sample_is_the_same_every_time_and_in_order(tmp_path):
    write_rows(tmp_path / "m.jsonl", [{"id": f"{n:03d}", "question": "?", "document": "d"} for n in range(100)])
    whole = load_set(tmp_path / "m.jsonl")

    sample = whole.sample(10)

    assert sample == whole.sample(10)
    assert [q.id for q in sample.questions] == sorted(q.id for q in sample.questions)
    assert len({q.id for q in sample.questions}) == 10
    assert whole.sample(10, seed=1) != sample
    assert whole.sample(1000) is whole


def test_the_hash_names_questions_and_judgements_not_their_order(tmp_path):
    rows = [{"id": "a", "question": "?", "document": "d"}, {"id": "b", "question": "!", "document": "e"}]
    write_rows(tmp_path / "m.jsonl", rows)
    write_rows(tmp_path / "n.jsonl", rows[::-1])
    write_rows(tmp_path / "o.jsonl", [{**rows[0], "document": "e"}, rows[1]])
    m, n, o = (load_set(tmp_path / f"{name}.jsonl").sha256 for name in "mno")

    assert m == n
    assert m != o


def test_known_answers_are_read(tmp_path):
    write_rows(tmp_path / "m.jsonl", [{"id": "a", "question": "?", "document": "d", "answers": ["x", 3]}])
    paragraph = {
        "context": "It is blue.",
        "qas": [{"id": "q", "question": "?", "answers": [{"text": "blue"}, {"text": "blue"}]}],
    }
    write(tmp_path / "s.json", json.dumps({"data": [{"title": "T", "paragraphs": [paragraph]}]}))

    assert load_set(tmp_path / "m.jsonl").questions[0].answers == ("x",)
    assert load_set(tmp_path / "s.json").questions[0].answers == ("blue",)


def test_neighbours_are_the_relevant_document_and_what_is_nearest_to_the_question(tmp_path):
    texts = {
        "a": "the red lamp of Ghent",
        "b": "the red lamp of Riga",
        "c": "a tram in Riga",
        "d": "nothing at all",
        "e": "the of a",
    }
    write_rows(tmp_path / "corpus.jsonl", [{"_id": name, "text": text} for name, text in texts.items()])
    asked = [{"id": f"q{n}", "question": "where is the red lamp of Ghent", "document": "a"} for n in range(40)]
    write_rows(tmp_path / "questions.jsonl", asked)
    found = load_set(tmp_path)
    near = Neighbours(found)

    shown = [[passage.external_id for passage in near.passages(question, 2)] for question in found.questions]

    assert {frozenset(each) for each in shown} == {frozenset("ab")}
    assert 8 < sum(each[0] == "a" for each in shown) < 32
    assert [len(near.passages(found.questions[0], k)) for k in (1, 4, 9)] == [1, 4, 5]
    assert near.passages(replace(found.questions[0], relevant={"gone": 1.0}), 3) == []
