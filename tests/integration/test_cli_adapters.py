"""The commands around adapters in service, as a person or a script calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import main

from .test_registry import make_adapter

Run = Callable[..., Any]


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One command on a database and a home of its own."""
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def served_name(run: Run, folder: Path) -> str:
    found: str = json.loads(run("adapters", "register", str(folder), "--json").stdout)["served_name"]
    return found


def test_from_the_first_adapter_to_a_rollback(run: Run, tmp_path: Path) -> None:
    first = served_name(run, make_adapter(tmp_path / "a", 1))
    refused = run("adapters", "promote", first)
    assert (refused.exit_code, "orchestrator adapters gate" in refused.stderr) == (1, True)
    assert "--override" in refused.stderr

    assert f"{first} is active" in run("adapters", "promote", first, "--override", "the first").stdout
    second = served_name(run, make_adapter(tmp_path / "b", 2))
    canary = run("adapters", "promote", second, "--canary", "10%", "--override", "a try")
    assert f"{second} is canary" in canary.stdout
    shown = run("adapters", "canary").stdout
    assert all(word in shown for word in (second, "10%", "running since", "violations", "evidence"))
    assert f"{first} is active" in run("adapters", "rollback", "cited-answer").stdout
    (state,) = json.loads(run("adapters", "canary", "--json").stdout)["canaries"]
    assert (state["ended"], state["reason"]) == ("stopped", "rolled back by hand")

    rows = json.loads(run("adapters", "audit", "cited-answer", "--json").stdout)["entries"]
    assert [row["action"] for row in rows] == ["stopped", "canary", "register", "promote", "register"]
    assert {row["actor"].partition(":")[0] for row in rows} == {"login"}
    assert "the first" in run("adapters", "audit").stdout


@pytest.mark.parametrize("share", ["ten", "10 %%", ""])
def test_a_share_that_is_none_is_wrong_usage(run: Run, share: str) -> None:
    done = run("adapters", "promote", "x", "--canary", share)

    assert (done.exit_code, "takes a share such as 10%" in done.stderr) == (2, True)


def test_two_people_with_keys_of_their_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [json.loads(run("keys", "create", "--json").stdout)["key"] for _ in range(2)]
    name = served_name(run, make_adapter(tmp_path / "a"))
    monkeypatch.setenv("ORCHESTRATOR_TWO_IDENTITIES", "true")
    assert "ORCHESTRATOR_ACTOR_KEY" in run("adapters", "promote", name, "--override", "x").stderr

    monkeypatch.setenv("ORCHESTRATOR_ACTOR_KEY", keys[0])
    first = run("adapters", "promote", name, "--override", "x")
    again = run("adapters", "promote", name, "--override", "x")
    monkeypatch.setenv("ORCHESTRATOR_ACTOR_KEY", keys[1])
    second = run("adapters", "promote", name, "--override", "x")

    assert (first.exit_code, "somebody else has to run the same command" in first.stdout) == (0, True)
    assert (again.exit_code, "you proposed this yourself" in again.stderr) == (1, True)
    assert f"{name} is active" in second.stdout
    assert not any(key in run("adapters", "audit", "--json").stdout for key in keys)
