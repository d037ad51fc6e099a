"""Rows: every source is read, nothing is lost on the way back, and what is wrong is named with its line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.behaviour.examples import Branch, Group
from orchestrator.behaviour.rows import (
    Row,
    from_answer,
    from_groups,
    from_question,
    is_rows,
    origins,
    parse_row,
    provenance,
    read_rows,
    scan_rows,
    to_groups,
    write_rows,
)
from orchestrator.errors import ContractError, TrainingError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import passage

CONTRACT = load_catalogue(folder("prompts")).contract("text_answer")
CITED = load_catalogue(folder("prompts")).contract("cited_answer")


def line(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "input": "Shorten: much ado", "output": {"answer": "ado"}, **changes}


def write(where: Path, *lines: Any) -> Path:
    file = where / "rows.jsonl"
    file.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return file


def test_a_row_by_hand_is_read_with_its_line(tmp_path: Path) -> None:
    shown = ["plain text", {"text": "two", "title": "T", "id": "doc", "version": 3, "heading_path": ["H"]}]

    (row,) = read_rows(write(tmp_path, "", line(passages=shown, kind="short")))

    assert (row.input, row.kind, row.source, row.number) == ("Shorten: much ado", "short", "file", 2)
    assert [each.text for each in row.passages] == ["plain text", "two"]
    assert (row.passages[1].external_id, row.passages[1].version, row.passages[1].heading_path) == ("doc", 3, ("H",))
    assert row.documents == ("doc",)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    row = parse_row(
        line(passages=[{"text": "x", "title": "T", "id": "d"}], origin={"source": "distilled", "model": "m"}), 1
    )

    write_rows([row], tmp_path / "rows.jsonl")

    assert read_rows(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        [{"type": "human", "data": {"content": "Hi"}}, {"type": "ai", "data": {"content": "Ho"}}],
        [{"role": "human", "content": [{"type": "text", "text": "Hi"}]}, {"role": "ai", "content": "Ho"}],
    ],
)
def test_chats_of_openai_and_langchain_are_rows(messages: list[Any]) -> None:
    row = parse_row({"messages": messages}, 7)

    assert (row.input, row.output, row.source, row.id) == ("Hi", "Ho", "chat", "row-7")


def test_a_system_message_is_left_out_and_remembered() -> None:
    row = parse_row({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]}, 1)

    assert row.input == "Hi"
    assert row.output is None
    assert row.origin["system_sha256"] == hashlib.sha256(b"S").hexdigest()


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ([], "no JSON object"),
        (line(input=" "), "input must be a text"),
        (line(output=[1]), "output must be an object or a text"),
        (line(passages="x"), "passages must be a list"),
        (line(passages=[{"title": "t"}]), "passage 1 needs a text"),
        (line(passages=[{"text": "t", "version": "new"}]), "passage 1: "),
        (line(origin={"source": "heaven"}), "origin must be"),
        (line(answer="x"), "unknown field 'answer'"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "one question and one answer"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "this conversation has tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
        ({"messages": [{"role": "user", "content": ""}]}, "message is empty"),
        ({"messages": "x"}, "messages must be a list"),
        ({"messages": ["x"]}, "must be an object"),
        ({"messages": [{"role": "user"}]}, "needs a text as content"),
    ],
)
def test_what_is_no_row_is_said(item: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_row(item, 1)


def test_bad_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    file = write(tmp_path, line(), "{", line(id="b"), line(), '{"input": "x", "output": NaN}')

    rows, faults = scan_rows(file)

    assert [row.id for row in rows] == ["a", "b"]
    assert [number for number, _ in faults] == [2, 4, 5]
    with pytest.raises(TrainingError, match=r"line 2: .*line 4: line 1 has the id 'a' already"):
        read_rows(file)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no row"):
        read_rows(write(tmp_path, ""))
    with pytest.raises(TrainingError, match="cannot read"):
        read_rows(tmp_path / "nothing.jsonl")


def test_rows_are_told_from_questions(tmp_path: Path) -> None:
    assert is_rows(write(tmp_path, line()))
    assert is_rows(write(tmp_path, {"messages": []}))
    assert not is_rows(write(tmp_path, {"id": "q", "question": "?", "answers": []}))
    assert not is_rows(write(tmp_path, "no json"))
    assert not is_rows(tmp_path)


def test_the_text_to_write_is_the_contracts() -> None:
    assert Row("a", "x", output={"answer": "é"}).target(CONTRACT) == '{"answer":"é"}'
    assert Row("a", "x", output='{ "answer": "b" }').target(CONTRACT) == '{"answer":"b"}'


@pytest.mark.parametrize("output", [None, {"answer": ""}, {"answer": "x", "more": 1}, "no json"])
def test_an_output_that_breaks_the_contract_is_refused(output: Any) -> None:
    with pytest.raises(ContractError):
        Row("a", "x", output=output).target(CONTRACT)


def test_rows_over_the_same_passages_branch_from_one_prefix() -> None:
    one, two = (passage(1, "first"),), (passage(2, "second"),)
    rows = [Row(f"r{n}", f"question {n}", shown, {"answer": str(n)}) for n, shown in enumerate([one, two, one, one])]

    groups = to_groups(rows, CONTRACT, "train")

    assert [[branch.question_id for branch in group.branches] for group in groups] == [["r0", "r2", "r3"], ["r1"]]
    assert groups[0].branches[1].output == '{"answer":"2"}'
    assert groups[0].made == "rows"


def test_groups_name_the_rows_that_cannot_be_trained_on() -> None:
    rows = [Row(f"r{n}", "x", output={"answer": ""}, number=n) for n in range(1, 9)]

    with pytest.raises(TrainingError, match=r"row 1 \(r1\).*and 3 more.*data lint"):
        to_groups(rows, CONTRACT, "train")


def test_provenance_has_no_word_of_the_text() -> None:
    secret = Row("a", "canary question", (passage(1, "canary text", external_id="d"),), {"answer": "canary"}, number=4)

    (record,) = provenance([secret], "train")

    assert "canary" not in json.dumps(record)
    assert (record["row"], record["id"], record["split"], record["origin"]) == (4, "a", "train", {"source": "file"})
    assert record["documents"][0]["external_id"] == "d"
    (other,) = provenance([Row("a", "canary question", secret.passages, {"answer": "else"}, number=4)], "train")
    assert other["sha256"] != record["sha256"]


def test_origins_are_counted() -> None:
    rows = [Row("a", "x"), Row("b", "x"), Row("c", "x", origin={"source": "ledger"})]

    assert origins(rows) == {"file": 2, "ledger": 1}


def test_built_examples_become_rows() -> None:
    branch = Branch("q1", "Who?", "d", "answerable", (1,), ("Ann",), output='{"answer":"Ann"}')
    group = Group("g", "train", "shuffled", (passage(1, "Ann did.", external_id="d"),), (branch,))

    (row,) = from_groups([group])

    assert (row.id, row.input, row.kind, row.number, row.source) == ("q1", "Who?", "answerable", 1, "builder")
    assert row.target(CONTRACT) == '{"answer":"Ann"}'


def recorded(text: str = "25 days") -> dict[str, Any]:
    return {
        "id": "ans-1",
        "intent": {
            "question": "How many?",
            "contract": {"name": "text_answer", "digest": "c" * 64},
            "passages": [{"text_sha256": hashlib.sha256(text.encode()).hexdigest()}],
        },
        "outcome": {"output": "raw", "answer": {"data": {"answer": "25"}}},
    }


def said(verdict: str, fix: str | None = None) -> dict[str, Any]:
    return {"id": 3, "verdict": verdict, "fix": fix}


def test_an_accepted_answer_is_a_row_with_the_way_back_to_it() -> None:
    row = from_answer(recorded(), said("good"), [passage(1, "25 days")], 1)

    assert (row.id, row.input, row.output) == ("ans-1", "How many?", {"answer": "25"})
    assert row.origin == {
        "source": "ledger", "answer": "ans-1", "verdict": "good", "feedback": 3, "contract_sha256": "c" * 64,
    }  # fmt: skip


def test_a_corrected_answer_is_a_row_with_the_correction() -> None:
    assert from_answer(recorded(), said("fix", '{"answer":"30"}'), [passage(1, "25 days")]).output == '{"answer":"30"}'


@pytest.mark.parametrize("shown", [[], [passage(1, "other text")]])
def test_an_answer_whose_passages_are_gone_is_no_example(shown: list[Any]) -> None:
    with pytest.raises(ValueError, match="is gone"):
        from_answer(recorded(), said("good"), shown)


def test_an_answer_without_a_model_is_no_example() -> None:
    bare = recorded() | {"outcome": {"outcome": "partial"}}

    with pytest.raises(ValueError, match="no model answered"):
        from_answer(bare, said("good"), [passage(1, "25 days")])


def test_a_question_of_a_set_becomes_a_row_with_the_right_citation() -> None:
    shown = [passage(1, "Nothing here.", external_id="a"), passage(2, "Leave is 25 days.", external_id="d")]

    row = from_question("q", "How long is leave?", "d", ["25 days"], shown, {"source": "eval", "set": "s"}, CITED)

    assert row is not None
    assert json.loads(row.target(CITED))["citations"] == [2]
    assert from_question("q", "?", "d", ["30 days"], shown, {"source": "eval"}, CITED) is None
    bare = from_question("q", "?", "d", [], shown, {"source": "eval"}, CITED)
    assert bare is not None
    assert bare.output is None
