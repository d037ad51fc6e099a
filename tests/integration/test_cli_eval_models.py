"""The commands that let another model help to evaluate, against an endpoint that replies by rule."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.database import Database
from orchestrator.evaluation.items import Change, Item, Outcome
from orchestrator.evaluation.read import read_items
from orchestrator.evaluation.runs import Runs

from .test_distill import Endpoint, endpoint  # noqa: F401 - a fixture
from .test_eval_runs import ITEMS, LEAVE, SET, SYSTEM, ingest

Run = Callable[..., Awaitable[Any]]
LONG = (
    "Every employee has 25 days of leave in a year. Who has been with us for ten years has five days more, and who works at "
    "night has two. Leave that is not taken ends in March of the year after."
)


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One command, in a thread of its own: the endpoint answers in this one."""
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: asyncio.to_thread(CliRunner().invoke, main, list(arguments))


def drafted(messages: list[dict[str, str]]) -> str:
    """Reads a number of days out of a text; of its two unanswerable questions another document answers the first."""
    shown = json.loads(messages[-1]["content"])
    if "does not answer" in messages[0]["content"]:
        place = "Rome" if "night" in shown["text"] else "Oslo"
        return json.dumps({"question": f"How many days of leave has an employee in {place}?"})
    if "question" not in shown:
        return json.dumps(
            {"question": "How much leave is there?", "answer": "25 days", "quote": "25 days of leave in a year"}
        )
    if "Rome" in shown["question"] or "Oslo" in shown["question"]:
        return json.dumps({"answer": "20 days" if "Rome" in shown["question"] and "Rome" in shown["text"] else ""})
    return '{"answer": "25 days"}'


async def test_a_set_is_drafted_and_marked(run: Run, database: Database, endpoint: Endpoint, tmp_path: Path) -> None:  # noqa: F811
    other = LONG.replace("works at night", "travels")
    await ingest(database, replace(LEAVE, text=LONG), replace(LEAVE, external_id="travel.md", text=other))
    await ingest(database, replace(LEAVE, external_id="rome.md", text="An employee in Rome has 20 days."))
    endpoint.reply = drafted
    options = ("--from", endpoint.url, "--model", "big")

    done = await run("eval", "init", "set.jsonl", "--questions", "2", "--unanswerable", "2", "--json", *options)
    again = await run("eval", "init", "set.jsonl", *options)

    assert (done.exit_code, again.exit_code) == (0, 1), done.output
    assert "is there already" in again.stderr
    items = read_items(tmp_path / "set.jsonl").items
    assert {item.synthetic for item in items} == {True}
    assert sorted((item.answers, item.gold[0].external_id) for item in items if item.answerable) == [
        (("25 days",), "leave.md"),
        (("25 days",), "travel.md"),
    ]
    assert [item.question for item in items if not item.answerable] == [
        "How many days of leave has an employee in Oslo?"
    ]
    said = json.loads(done.stdout)
    assert (said["drafted"], said["unanswerable"]) == (3, 1)
    assert said["dropped"] == {"unanswerable: a text answers it": 1}  # found by a search, in the document about Rome
    endpoint.reply = lambda messages: "no JSON"
    failed = await run("eval", "init", "other.jsonl", *options)
    assert (failed.exit_code, "no draft held" in failed.stderr) == (1, True)
    assert not (tmp_path / "other.jsonl").exists()


async def test_a_fifth_as_many_unanswerable_questions_are_drafted_unless_told(
    run: Run, database: Database, endpoint: Endpoint, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    documents = [replace(LEAVE, external_id=f"d{number}", text=f"{LONG} Also {number}.") for number in range(8)]
    await ingest(database, *documents)
    endpoint.reply = drafted

    for name, more in (("five", ()), ("none", ("--unanswerable", "0"))):
        options = ("--from", endpoint.url, "--model", "big", *more)
        done = await run("eval", "init", f"{name}.jsonl", "--questions", "5", *options)
        assert done.exit_code == 0, done.output

    counts = [
        [
            sum(item.answerable is kind for item in read_items(tmp_path / f"{name}.jsonl").items)
            for kind in (True, False)
        ]
        for name in ("five", "none")
    ]
    assert counts == [[5, 1], [5, 0]]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest_asyncio.fixture
async def judged(database: Database) -> list[str]:
    """A run over 40 questions: those below 30 are answered right, in words that no rule knows; the rest is another answer."""
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    many = tuple(replace(ITEMS[0], id=f"q{number:02}", question=f"Question {number:02}") for number in range(40))
    frozen = await runs.freeze(replace(SET, items=many), "default")

    class Saying:
        async def ask(self, item: Item, change: Change = Change()) -> Outcome:  # noqa: B008
            return Outcome(item.id, "five weeks" if item.id < "q30" else "nobody knows")

        async def search(self, item: Item, change: Change = Change()) -> Any:  # noqa: B008
            return ()

    await runs.run(frozen, Saying(), SYSTEM, name="said")
    return [item.id for item in many]


LABELS = [{"id": f"q{number:02}", "right": number < 30} for number in range(10, 40)]


async def test_a_judge_says_how_far_it_agrees_with_people(
    run: Run, judged: list[str], endpoint: Endpoint, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    def reply(messages: list[dict[str, str]]) -> str:
        shown = json.loads(messages[-1]["content"])
        generous = shown["question"] in ("Question 38", "Question 39")
        return json.dumps({"same": generous or "five weeks" in shown.values()})

    endpoint.reply = reply
    options = ("--from", endpoint.url, "--model", "big", "--labels", written(tmp_path / "labels.jsonl", LABELS))

    found = json.loads((await run("eval", "judge", "said", "--json", *options)).stdout)
    read = await run("eval", "judge", "said", *options)

    calibration = found["calibration"]
    assert (calibration["n"], calibration["agreement"]["value"], calibration["lenient"], calibration["strict"]) == (
        30,
        28 / 30,
        2,
        0,
    )
    assert calibration["agreement"]["low"] < 0.9 < calibration["agreement"]["high"] < 1
    assert found["summary"]["measures"]["correct"]["value"] == 32 / 41  # a row of junk stays wrong
    assert "78.0% of 41 questions are right" in read.stdout
    assert "the judge agrees with people on 93% of 30 labelled answers (kappa 0.84" in read.stdout


async def test_a_judge_that_errs_on_some_rows_drops_none_of_them(
    run: Run, judged: list[str], endpoint: Endpoint, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    def reply(messages: list[dict[str, str]]) -> str | int:
        shown = json.loads(messages[-1]["content"])
        number = int(shown["question"][-2:])
        if number < 3:
            return 500
        if number < 5:
            return "I think that they are the same."
        if number < 7:
            return 404
        if number < 9:  # of the first shown, whatever it is
            return json.dumps({"same": shown["answer 1"] == "five weeks"})
        return json.dumps({"same": "five weeks" in shown.values()})

    endpoint.reply = reply
    options = ("--from", endpoint.url, "--model", "big", "--labels", written(tmp_path / "labels.jsonl", LABELS))

    found = json.loads((await run("eval", "judge", "said", "--json", *options)).stdout)

    verdicts = found["verdicts"]
    assert len(verdicts) == 40
    assert [verdicts[f"q{number:02}"]["judgement"] for number in (0, 3, 5, 7, 9, 30)] == [
        *["unsure"] * 4,
        "right",
        "wrong",
    ]
    assert [verdicts[f"q{number:02}"]["error"][:19] for number in (0, 3, 5, 7)] == [
        "engine_unavailable:", "the judge did not r", "engine_error: http:", "",
    ]  # fmt: skip
    # 21 of 30 right answers are left, over all 40 questions and the row of junk: failures of the judge are not left out.
    assert found["summary"]["measures"]["correct"] == {
        **found["summary"]["measures"]["correct"],
        "value": 21 / 41,
        "n": 41,
    }
    assert found["summary"]["reasons"]["the judge failed"] == 7
    assert found["summary"]["reasons"]["the judge is unsure"] == 2
    assert found["calibration"]["unsure"] == 0  # labels are of other rows


async def test_a_judge_unlike_people_is_refused_and_no_score_is_printed(
    run: Run, judged: list[str], endpoint: Endpoint, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    endpoint.reply = lambda messages: '{"same": true}'
    options = ("--from", endpoint.url, "--model", "big", "--labels")
    labels = written(tmp_path / "labels.jsonl", LABELS)

    flattering = await run("eval", "judge", "said", *options, labels)
    endpoint.reply = lambda messages: 500
    broken = await run("eval", "judge", "said", *options, labels)
    few = await run("eval", "judge", "said", *options, written(tmp_path / "few.jsonl", LABELS[:19]))
    bad = await run(
        "eval", "judge", "said", *options, written(tmp_path / "bad.jsonl", [{"id": "nobody", "right": True}])
    )

    assert (flattering.exit_code, broken.exit_code) == (1, 1)
    assert "agrees with people on 67% of 30 labelled answers (kappa 0.00" in flattering.stderr
    assert "so its scores are not used" in flattering.stderr
    assert "are right" not in flattering.stdout + broken.stdout
    assert "20 too strict; 30 unsure, 30 of them errors" in broken.stderr
    assert "at least 20" in few.stderr
    assert "bad.jsonl:1" in bad.stderr
