"""What advice rests on, read from a real ledger and a real history of documents."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.advise import advise
from orchestrator.database import Database
from orchestrator.evaluation.causes import Diagnosis, share_of
from orchestrator.evaluation.evidence import gather, read_history, read_traffic
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.ledger import Ledger, intent_record, outcome_record
from orchestrator.tenants import add_tenant
from orchestrator.testing import HashEmbedder
from orchestrator.types import Answer, Citation, Document, Outcome, Passage, Plan, Query, Usage

NOW = datetime.now(UTC)
GROUNDED = Plan("answer", "grounded", "because", collection="default", k=5)
DIRECT = Plan("answer", "direct", "because")
CLARIFY = Plan("clarify", "clarify", "because")
PASSAGE = Passage(1, "d", "leave", 1, "Leave", "x" * 400, (0, 400), 0, 1.0)
CITATION = Citation(1, "d", "leave", 1, 0, (0, 2), "25", "hash")


async def answered(
    ledger: Ledger,
    plan: Plan,
    usage: Usage,
    *,
    passages: tuple[Passage, ...] = (),
    cited: bool = False,
    outcome: Outcome = "complete",
    text: str = "How many?",
    tenant: str = "default",
) -> None:
    query = Query(text, tenant=tenant)
    citations = (CITATION,) if cited else ()
    await ledger.write(intent_record(query, plan, passages))
    said = Answer(query.id, "25", None, citations, plan) if outcome == "complete" else None
    await ledger.write(outcome_record(query, outcome, "25", usage, {"total": 1.0}, answer=said))


async def test_traffic_is_what_the_ledger_says(database: Database) -> None:
    async with Ledger.open(database) as ledger:
        for _ in range(3):
            await answered(ledger, GROUNDED, Usage(500, 20), passages=(PASSAGE, PASSAGE), cited=True)
        await answered(ledger, DIRECT, Usage(100, 60), text="a NUL \x00 in it")
        await answered(ledger, CLARIFY, Usage())  # no model was asked: not an answer whose tokens count
        await answered(ledger, GROUNDED, Usage(9000, 900), outcome="failed")

    found = await read_traffic(database, "default", NOW)

    assert sum(found.by_day) == 6
    assert (found.sample, found.cited, found.retrieved, found.adapted) == (4, 3, 3, 0)
    assert (found.prompt_tokens, found.passage_tokens, found.completion_tokens) == (400, 150, 30)


async def test_another_tenants_traffic_is_not_seen(database: Database) -> None:
    await add_tenant(database, "other")
    async with Ledger.open(database) as ledger:
        await answered(ledger, DIRECT, Usage(100, 60), tenant="other")

    assert (await read_traffic(database, "default", NOW)).by_day == ()
    assert sum((await read_traffic(database, "other", NOW)).by_day) == 1


async def put(database: Database, name: str, text: str, valid_from: datetime | None = None) -> None:
    document = Document(name, name, text, f"{name}.md", "text/markdown", valid_from=valid_from)
    await ingest_documents([document], store=PgStore(database), embedder=HashEmbedder(), collection="default")


async def test_history_counts_days_on_which_documents_changed(database: Database) -> None:
    def back(days: float) -> datetime:
        return NOW - timedelta(days=days)

    await put(database, "leave", "20 days of leave.", back(360))
    await put(database, "travel", "Trains only.", back(360))
    for name, text in (("leave", "25 days of leave."), ("travel", "Trains and ships.")):
        await put(database, name, text, back(180))  # two documents on one day are one change of knowledge
    await put(database, "leave", "28 days of leave.", back(90))
    await put(database, "leave", "30 days of leave.", back(-90))  # not yet
    await put(database, "leave", "28 days of leave.", back(90))  # the same text again is no change

    found = await read_history(database, "default", "default", NOW)
    known = gather(await read_traffic(database, "default", NOW), found).of("changes_per_month")

    assert (found.documents, found.changes, found.changed) == (2, 2, 3)
    assert found.characters == len("28 days of leave.") + len("Trains and ships.")
    assert found.months == pytest.approx(360 / 30.4375, rel=0.01)
    assert (known.source, known.range.likely) == ("measured", pytest.approx(2 / found.months))


async def test_a_corrected_and_a_retired_document_are_changes(database: Database) -> None:
    start = NOW - timedelta(days=100)
    await put(database, "leave", "20 days of leave.", start)
    await put(database, "leave", "21 days of leave.", start)  # in place of the first, as of the same time
    await put(database, "travel", "Trains only.", start)
    await PgStore(database).retire("default", "travel", valid_from=NOW - timedelta(days=10))

    found = await read_history(database, "default", "default", datetime.now(UTC))

    assert (found.documents, found.changes) == (1, 2)


async def test_a_collection_that_does_not_exist_has_no_history(database: Database) -> None:
    assert (await read_history(database, "default", "nothing", NOW)).documents == 0


def invoke(database_url: str, *options: str) -> Any:
    environment = {"ORCHESTRATOR_DATABASE_URL": database_url}
    done = CliRunner().invoke(advise, [*options], env=environment, catch_exceptions=False)
    return done


def test_the_command_says_what_it_does_not_know(database_url: str) -> None:
    done = invoke(database_url)

    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Do not fine-tune yet")
    assert "not measured: queries per day is taken as 1000" in done.stdout
    assert "give --queries-per-day" in done.stdout


def test_the_command_takes_diagnosis_costs_and_flags(database_url: str, tmp_path: Path) -> None:
    diagnosis = tmp_path / "diagnosis.json"
    diagnosis.write_text(Diagnosis("wiki", "abc", 1000, share_of(995, 1000), ()).to_json(), "utf-8")
    costs = tmp_path / "costs.toml"
    costs.write_text("engineer_hour_usd = 1\n", "utf-8")
    options = [
        "--queries-per-day",
        "50",
        "--changes-per-month",
        "2",
        "--needs-source",
        "yes",
        "--months",
        "6",
        "--json",
    ]

    done = invoke(database_url, *options, "--diagnosis", str(diagnosis), "--costs", str(costs))
    found = json.loads(done.stdout)

    assert done.exit_code == 0, done.output
    assert found["verdict"].startswith("Leave it as it is: 100%")
    assert (found["workload"]["queries_per_day"], found["workload"]["needs_source"], found["months"]) == (50, 1.0, 6)
    upkeep = [
        line for each in found["choices"] for line in each["estimate"]["lines"] if line["what"] == "upkeep of retrieval"
    ]
    assert upkeep[0]["usd"] == 7.5


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("--costs", "gpu_hour = 2", "unknown keys"), ("--diagnosis", '{"set": "x"}', "this is no diagnosis")],
)
def test_a_file_that_cannot_be_used_is_refused(
    database_url: str, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / "file").write_text(text, "utf-8")

    done = invoke(database_url, name, str(tmp_path / "file"))

    assert done.exit_code == 1
    assert said in done.stderr
