"""The commands around runs of an evaluation, as a person or a script calls them; answers come from a scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.database import Database
from orchestrator.evaluation.items import Gold, Item
from orchestrator.evaluation.read import read_items
from orchestrator.evaluation.runs import Runs
from orchestrator.feedback import give_feedback

from .test_eval_runs import ADAPTER, CATALOGUE, LEAVE, SAID, SET, SYSTEM, asker, build, ingest
from .test_feedback import answer

Run = Callable[..., Any]
assert ADAPTER.contract in CATALOGUE.contracts


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One command on a database and a home of its own."""
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


@pytest.fixture
def runs(database_url: str) -> None:
    """Two runs over one set: `good` answers all six questions right, `bad` the first one only."""

    async def fill() -> None:
        async with Database.open(database_url, 2) as opened:
            database = opened.of("default")
            await ingest(database, LEAVE)
            kept = Runs(database, "default")
            frozen = await kept.freeze(SET, "default")
            wrong = [SAID.replace("25", "30")]
            await kept.run(frozen, asker(build(database, None)), SYSTEM, name="good")
            await kept.run(frozen, asker(build(database, None, [SAID], wrong)), {"version": "2"}, name="bad")

    asyncio.run(fill())


@pytest.mark.usefixtures("runs")
def test_runs_are_listed_shown_and_compared(run: Run, tmp_path: Path) -> None:
    listed = json.loads(run("eval", "list", "--json").stdout)["runs"]
    shown = json.loads(run("eval", "show", "good", "--json", "--out", "out.jsonl").stdout)
    run("eval", "show", "good", "--out", "trec", "--format", "trec")
    compared = json.loads(run("eval", "compare", "good", "bad", "--json").stdout)

    assert [each["name"] for each in listed] == ["bad", "good"]
    assert (shown["summary"]["n"], shown["summary"]["faults"]) == (7, 1)
    assert shown["summary"]["measures"]["correct"]["value"] == pytest.approx(6 / 7)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["retrieved_contexts"] == [LEAVE.text]
    assert sum(row["correct"] for row in rows) / len(rows) == pytest.approx(6 / 7)  # the row of junk is one of them
    assert (tmp_path / "trec" / "run.txt").read_text().startswith("q0 Q0 leave.md 1 1.000000 good\n")
    assert len((tmp_path / "trec" / "qrels.txt").read_text().splitlines()) == 6
    assert compared["measures"]["correct"]["difference"]["value"] == pytest.approx(-5 / 7)  # as 6/7 and 1/7 say
    assert (len(compared["lost"]), compared["gained"]) == (5, [])


@pytest.mark.usefixtures("runs")
def test_a_person_reads_what_is_wrong_and_why(run: Run) -> None:
    shown = run("eval", "show", "bad", "--failed").stdout
    assert "14.3% of 7 questions of handbook are right" in shown
    assert "1 of 7 rows (14%) could not be read and count as wrong" in shown
    assert "another answer (5)" in shown
    assert "How many days of leave has employee" in shown
    assert "handbook" in run("eval", "list").stdout
    assert "correct: a gain of +71.4%" in run("eval", "compare", "bad", "good").stdout


@pytest.mark.usefixtures("runs")
def test_a_loss_can_stop_a_release(run: Run) -> None:
    assert run("eval", "compare", "good", "bad", "--fail-on-loss").exit_code == 1
    assert run("eval", "compare", "bad", "good", "--fail-on-loss").exit_code == 0
    assert run("eval", "compare", "good", "good", "--fail-on-loss").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "none"), 1, "there is no run 'none'"),
        (("compare", "none", "other"), 1, "there is no run 'none'"),
        (("add", "ans_none", "--set", "set.jsonl"), 1, "no answer 'ans_none' is recorded"),
        (("add", "x", "--set", "s", "--answer", "a", "--unanswerable"), 1, "a right answer or none"),
        (("run", "none.jsonl"), 2, "does not exist"),
        (("show",), 2, "Missing argument"),
    ],
)
def test_a_wrong_name_says_what_to_do(run: Run, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run("eval", *arguments)

    assert (done.exit_code, said in done.stderr) == (code, True), done.output


def given_answer(database_url: str, verdict: str = "", **said: Any) -> str:
    async def give() -> str:
        async with Database.open(database_url, 2) as opened:
            name = await answer(opened.of("default"))
            if verdict:
                await give_feedback(opened.of("default"), name, verdict, **said)
            return name

    return asyncio.run(give())


def test_an_answer_joins_a_set(run: Run, database_url: str, tmp_path: Path) -> None:
    name = given_answer(database_url, "good")
    (tmp_path / "set.jsonl").write_text('{"question": "Who?", "answers": ["Ann"]}')  # without a line end

    done = run("eval", "add", name, "--set", "set.jsonl", "--tag", "leave")
    again = run("eval", "add", name, "--set", "set.jsonl")

    assert (done.exit_code, again.exit_code) == (0, 1), done.output
    assert "holds" in again.stderr
    first, added = read_items(tmp_path / "set.jsonl").items
    assert (first.question, added) == ("Who?", Item(name, "How many days?", ("25 days",), tags=("leave",)))


@pytest.mark.parametrize(
    ("verdict", "said", "options", "answers", "answerable"),
    [
        ("fix", {"fix": {"answer": "26 days"}}, (), ("26 days",), True),
        ("bad", {}, ("--answer", "26 days"), ("26 days",), True),
        ("", {}, ("--unanswerable",), (), False),
    ],
)
def test_what_is_right_is_what_people_say(
    run: Run,
    database_url: str,
    tmp_path: Path,
    verdict: str,
    said: dict[str, Any],
    options: tuple[str, ...],
    answers: tuple[str, ...],
    answerable: bool,
) -> None:
    name = given_answer(database_url, verdict, **said)

    done = run("eval", "add", name, "--set", "set.jsonl", *options)

    assert done.exit_code == 0, done.output
    (item,) = read_items(tmp_path / "set.jsonl").items
    assert item == replace(Item(name, "How many days?"), answers=answers, answerable=answerable)


@pytest.mark.parametrize("verdict", ["bad", ""])
def test_nobody_knows_what_is_right(run: Run, database_url: str, verdict: str) -> None:
    done = run("eval", "add", given_answer(database_url, verdict), "--set", "set.jsonl")

    assert (done.exit_code, "say it with --answer" in done.stderr) == (1, True)


def test_a_gold_is_what_an_accepted_answer_cited(tmp_path: Path) -> None:
    gold = Gold("leave.md", quote="Every employee has 25 days of leave.")
    (tmp_path / "set.jsonl").write_text(
        json.dumps({"question": "x", "gold": [{"external_id": gold.external_id, "quote": gold.quote}]}) + "\n"
    )

    assert read_items(tmp_path / "set.jsonl").items[0].gold == (gold,)
