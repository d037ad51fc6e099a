"""The commands that let another model help to evaluate, against an endpoint that replies by rule."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.database import Database
from orchestrator.evaluation.read import read_items
from orchestrator.evaluation.runs import Runs

from .test_distill import Endpoint, endpoint  # noqa: F401 - a fixture
from .test_eval_runs import ITEMS, LEAVE, SET, SYSTEM, asker, build, ingest

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
    if "question" in json.loads(messages[-1]["content"]):
        return '{"answer": "25 days"}'
    made = {"question": "How much leave is there?", "answer": "25 days", "quote": LONG.partition(". ")[0]}
    return json.dumps(made)


async def test_a_set_is_drafted_and_marked(run: Run, database: Database, endpoint: Endpoint, tmp_path: Path) -> None:  # noqa: F811
    await ingest(database, replace(LEAVE, text=LONG))
    endpoint.reply = drafted
    options = ("--from", endpoint.url, "--model", "big")

    done = await run("eval", "init", "set.jsonl", "--questions", "3", *options)
    again = await run("eval", "init", "set.jsonl", *options)

    assert (done.exit_code, again.exit_code) == (0, 1), done.output
    assert "is there already" in again.stderr
    (item,) = read_items(tmp_path / "set.jsonl").items
    assert (item.synthetic, item.answers, item.gold[0].external_id) == (True, ("25 days",), "leave.md")
    endpoint.reply = lambda messages: "no JSON"
    failed = await run("eval", "init", "other.jsonl", *options)
    assert (failed.exit_code, "no draft held" in failed.stderr) == (1, True)
    assert not (tmp_path / "other.jsonl").exists()


async def test_a_judge_says_how_far_it_agrees_with_people(
    run: Run, database: Database, endpoint: Endpoint, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    await ingest(database, LEAVE)
    runs = Runs(database, "default")
    many = tuple(replace(ITEMS[0], id=f"q{number}") for number in range(24))
    frozen = await runs.freeze(replace(SET, items=many), "default")
    await runs.run(frozen, asker(build(database, None)), SYSTEM, name="good")
    labels = [{"id": f"q{number}", "right": number < 21} for number in range(24)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (tmp_path / "few.jsonl").write_text(json.dumps(labels[0]) + "\n")
    (tmp_path / "bad.jsonl").write_text('{"id": "nobody", "right": true}\n')
    endpoint.reply = lambda messages: '{"same": true}'
    options = ("--from", endpoint.url, "--model", "big", "--labels")

    judged = json.loads((await run("eval", "judge", "good", "--json", *options, "labels.jsonl")).stdout)
    read = await run("eval", "judge", "good", *options, "labels.jsonl")

    assert judged["calibration"]["agreement"]["value"] == 21 / 24
    assert judged["summary"]["measures"]["correct"]["value"] == 24 / 25  # a row of junk stays wrong
    assert "the judge agrees with people on 88% of 24 labelled answers (kappa 0.00" in read.stdout
    assert "at least 20" in (await run("eval", "judge", "good", *options, "few.jsonl")).stderr
    assert "bad.jsonl:1" in (await run("eval", "judge", "good", *options, "bad.jsonl")).stderr
