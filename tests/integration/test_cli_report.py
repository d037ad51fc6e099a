"""The command that writes a run as a page, on runs that are kept in a real PostgreSQL: what it writes, says and refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.database import Database
from orchestrator.evaluation.drilldown import read_texts
from orchestrator.evaluation.items import ItemSet
from orchestrator.evaluation.runs import Runs
from orchestrator.knowledge.store import PgStore
from tests.pages import make_diagnosis

from .test_cli_eval import run, runs
from .test_eval_runs import ITEMS, LEAVE, PARKING, SYSTEM, asker, build, ingest

__all__ = ["run", "runs"]  # fixtures
Run = Callable[..., Any]


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text("utf-8")
    found: dict[str, Any] = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    return found


def diagnose(database_url: str, name: str, path: Path) -> None:
    """A diagnosis that fits the run; the command itself asks a model again."""

    async def write() -> None:
        async with Database.open(database_url, 2) as opened:
            path.write_text(make_diagnosis(await Runs(opened.of("default"), "default").show(name)).to_json())

    asyncio.run(write())


@pytest.mark.usefixtures("runs")
def test_a_run_becomes_a_page_with_its_passages_and_its_figures(run: Run, database_url: str, tmp_path: Path) -> None:
    diagnose(database_url, "bad", tmp_path / "why.json")
    done = run("eval", "report", "bad", "--against", "good", "--diagnosis", "why.json", "--json")

    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["file"], said["bytes"]) == ("report.html", (tmp_path / "report.html").stat().st_size)
    assert (said["questions"], said["faults"], said["verdict"]) == (7, 1, "loss")
    assert said["accuracy"]["value"] == pytest.approx(1 / 7)
    assert said["difference"]["value"] == pytest.approx(-5 / 7)
    assert (len(said["lost"]), said["gained"]) == (5, [])
    assert {"measures", "waterfall", "refusals", "latency"} <= set(said["plots"])
    data = data_of(tmp_path / "report.html")
    assert [each["text"] for each in data["passages"]] == [LEAVE.text]
    assert [each["now"]["state"] for each in data["questions"]] == ["right", *["wrong"] * 5, "unreadable"]
    assert all(each["now"]["passages"][0]["holds"] for each in data["questions"][:6])
    assert all(each["causes"] for each in data["questions"][1:])
    assert "Worse than &#x27;good&#x27;" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("runs")
def test_a_person_reads_where_it_is_and_how_it_went(run: Run, tmp_path: Path) -> None:
    done = run("eval", "report", "good", "--out", "my.html")

    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"my\.html \(0\.\d MB\): 85\.7% of 7 questions are right\n", done.stdout)
    assert (tmp_path / "my.html").read_text().startswith("<!doctype html>")
    assert run("eval", "report", "good", "--against", "good").stdout.endswith("no significant difference\n")


@pytest.mark.usefixtures("runs")
def test_the_same_run_is_the_same_page(run: Run, tmp_path: Path) -> None:
    run("eval", "report", "good", "--out", "one.html")
    run("eval", "report", "good", "--out", "two.html")

    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.usefixtures("runs")
def test_what_cannot_be_reported_is_refused_and_leaves_the_old_page(
    run: Run, database_url: str, tmp_path: Path
) -> None:
    async def more() -> None:
        async with Database.open(database_url, 2) as opened:
            kept = Runs(opened.of("default"), "default")
            other = await kept.freeze(ItemSet("other", ITEMS[:2]), "default")
            await kept.run(other, asker(build(opened.of("default"), None)), SYSTEM, name="other")
            empty = await kept.freeze(ItemSet("empty", ITEMS[:3]), "default")
            await kept._open(empty, "stamp", SYSTEM, "empty", True)

    asyncio.run(more())
    diagnose(database_url, "good", tmp_path / "why.json")
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "none.json").write_text("{}")

    for arguments, said in (
        (("nothing",), "there is no run 'nothing'"),
        (("good", "--against", "nothing"), "there is no run 'nothing'"),
        (("good", "--against", "other"), "their questions differ"),
        (("empty",), "has no answer yet"),
        (("bad", "--diagnosis", "why.json"), "this diagnosis is of another run"),
        (("bad", "--diagnosis", "none.json"), "this is no diagnosis"),
        (("good", "--out", "none/report.html"), "cannot write none/report.html"),
    ):
        done = run("eval", "report", *arguments)
        assert (done.exit_code, said in done.stderr) == (1, True), done.output
    assert (tmp_path / "report.html").read_text() == "old"


async def test_texts_are_those_that_are_stored_and_erased_ones_are_missing(database: Database) -> None:
    await ingest(database, LEAVE, PARKING)
    kept = Runs(database, "default")
    frozen = await kept.freeze(ItemSet("s", (replace(ITEMS[0], question="leave parking employee"),)), "default")
    done = await kept.run(frozen, asker(build(database, None)), SYSTEM)
    (outcome,) = done.outcomes.values()
    assert {each.external_id for each in outcome.passages} == {"leave.md", "parking.md"}

    whole = await read_texts(kept, done, done)
    store = PgStore(database)
    gone = next(each.document_id for each in outcome.passages if each.external_id == "leave.md")
    await store.erase("default", "leave.md")
    left = await read_texts(kept, done)

    assert sorted(whole.values()) == sorted([LEAVE.text, PARKING.text])
    assert list(left.values()) == [PARKING.text]
    assert {place[0] for place in whole} - {place[0] for place in left} == {gone}
