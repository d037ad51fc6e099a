"""The command that names the broken layer, on a run that is kept, and the models that it asks over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.behaviour.distill import HttpTeacher
from orchestrator.cli.diagnose import as_judge, diagnose
from orchestrator.database import Database
from orchestrator.evaluation.archive import PgArchive
from orchestrator.evaluation.ask import PipelineAsker, Taught
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.diagnose import Remedies
from orchestrator.evaluation.diagnose import diagnose as diagnose_run
from orchestrator.evaluation.items import ItemSet
from orchestrator.evaluation.score import score_outcome
from orchestrator.pipeline import Served

from .test_cli_eval import run, runs
from .test_distill import Endpoint, endpoint
from .test_eval_runs import ITEMS, LEAVE, SAID, build, ingest

__all__ = ["endpoint", "run", "runs"]  # fixtures


@pytest.mark.usefixtures("run", "runs")
def test_a_kept_run_is_diagnosed_and_written_down() -> None:
    done = CliRunner().invoke(diagnose, ["good", "--json", "--write", "found.json"])
    assert done.exit_code == 0, done.output
    found = Diagnosis.from_json(Path("found.json").read_text())
    assert json.loads(done.stdout)["n"] == found.n == 7
    assert (found.accuracy.value, found.causes) == (6 / 7, {"row 7": ("bad_label",)})
    assert found.calls == 0

    shown = CliRunner().invoke(diagnose, ["good", "--explain"])
    assert shown.exit_code == 0
    assert "85.7% (48.7% to 97.4%) right, 1 failed" in shown.stdout
    assert "the question or its expected answer is at fault" in shown.stdout
    assert "today" in shown.stdout
    assert "it could not be read: no JSON" in shown.stdout


@pytest.mark.usefixtures("run", "runs")
def test_an_unknown_run_and_a_strong_model_without_a_name_are_refused() -> None:
    unknown = CliRunner().invoke(diagnose, ["nothing"])
    nameless = CliRunner().invoke(diagnose, ["good", "--strong-url", "http://localhost:1"])
    judge = CliRunner().invoke(diagnose, ["good", "--judge", "http://localhost:1"])
    assert (unknown.exit_code, nameless.exit_code, judge.exit_code) == (1, 1, 1)
    assert "there is no run 'nothing'" in unknown.stderr
    assert "--strong-model M" in nameless.stderr
    assert "--judge-model M" in judge.stderr


async def _found(database: Database, endpoint: Endpoint, said: str, *, judged: bool = False) -> Diagnosis:
    """The diagnosis of one question that is answered with `said`, with the endpoint as the stronger model or as the judge."""
    await ingest(database, LEAVE)
    item = ITEMS[0]
    async with HttpTeacher.open(endpoint.url, "big", "secret") as teacher:
        strong = None if judged else Served(Taught(teacher, "big"), "big")
        asker = PipelineAsker(build(database, None, [said]), strong=strong)  # type: ignore[arg-type]
        return await diagnose_run(
            ItemSet("set", (item,)), {item.id: await asker.ask(item)}, asker, PgArchive(database, "default"),
            score_outcome, remedies=Remedies(strong=not judged, times=20), judge=as_judge((teacher, "big") if judged else None),
        )  # fmt: skip


async def test_a_stronger_model_is_asked_through_any_endpoint(database: Database, endpoint: Endpoint) -> None:
    endpoint.reply = lambda messages: f"```json\n{SAID}\n```"
    found = await _found(database, endpoint, SAID.replace("25", "30"))
    assert found.causes == {"q0": ("beyond_the_model",)}
    assert [step.mended for step in found.trails["q0"] if step.change == "a stronger model"] == [True]
    (body,) = endpoint.bodies
    assert (body["model"], endpoint.keys) == ("big", ["Bearer secret"])
    assert body["response_format"]["type"] == "json_schema"
    assert "25 days of leave" in body["messages"][-1]["content"]


async def test_an_endpoint_that_fails_names_nothing_by_itself(database: Database, endpoint: Endpoint) -> None:
    endpoint.reply = lambda messages: 403
    found = await _found(database, endpoint, SAID.replace("25", "30"))
    assert found.causes == {"q0": ("beyond_the_model",)}
    assert "the stronger model could not be asked" in found.notes["q0"]


async def test_a_judge_behind_an_endpoint_blames_the_label(database: Database, endpoint: Endpoint) -> None:
    endpoint.reply = lambda messages: '{"same": true}'
    found = await _found(database, endpoint, SAID.replace("25 days", "five weeks"), judged=True)
    assert (found.causes, found.notes["q0"]) == ({"q0": ("bad_label",)}, "the judge calls the answer right")
    assert len(endpoint.bodies) == 2  # in both orders
