"""The command that names the broken layer, on a run that is kept: what is read, what is printed, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.diagnose import diagnose
from orchestrator.evaluation.causes import Diagnosis

from .test_cli_eval import run, runs

__all__ = ["run", "runs"]  # fixtures


@pytest.mark.usefixtures("run", "runs")
def test_a_kept_run_is_diagnosed_and_written_down() -> None:
    done = CliRunner().invoke(diagnose, ["good", "--json", "--write", "found.json"])
    assert done.exit_code == 0, done.output
    found = Diagnosis.from_json(Path("found.json").read_text())
    assert json.loads(done.stdout)["n"] == found.n == 7
    assert (found.accuracy.value, found.causes) == (6 / 7, {"row 7": ("bad_label",)})
    assert found.calls == 0

    shown = CliRunner().invoke(diagnose, ["good"])
    assert shown.exit_code == 0
    assert "bad_label" in shown.stdout
    assert "today" in shown.stdout


@pytest.mark.usefixtures("run", "runs")
def test_an_unknown_run_and_a_strong_model_without_a_name_are_refused() -> None:
    unknown = CliRunner().invoke(diagnose, ["nothing"])
    nameless = CliRunner().invoke(diagnose, ["good", "--strong-url", "http://localhost:1"])
    assert (unknown.exit_code, nameless.exit_code) == (1, 1)
    assert "there is no run 'nothing'" in unknown.stderr
    assert "--strong-model NAME" in nameless.stderr
