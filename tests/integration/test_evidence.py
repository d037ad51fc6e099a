"""What advice rests on, read from a real ledger and a real history of documents."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from psycopg import sql

from orchestrator.cli.advise import advise
from orchestrator.database import Database, statement
from orchestrator.evaluation.causes import Diagnosis, share_of
from orchestrator.evaluation.evidence import Traffic, gather, read_asked, read_history, read_traffic
from orchestrator.evaluation.items import Change, Item, ItemSet
from orchestrator.evaluation.items import Outcome as Asked
from orchestrator.evaluation.runs import Runs
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
    # The condition of each statement holds by itself: here nothing else keeps the tenants apart.
    async with database.ownership() as connection:
        await connection.execute("alter table answers no force row level security, disable row level security")
    found = await read_traffic(database, "default", NOW)
    assert (found.by_day, found.sample) == ((), 0)
    assert (await read_traffic(database, "other", NOW)).sample == 1


async def test_days_without_an_answer_count_and_days_before_the_first_do_not(database: Database) -> None:
    async with Ledger.open(database) as ledger:
        await answered(ledger, DIRECT, Usage(100, 60))

    later = await read_traffic(database, "default", NOW + timedelta(days=9))
    gone = await read_traffic(database, "default", NOW + timedelta(days=40))

    assert (len(later.by_day), sum(later.by_day), later.by_day[0]) == (10, 1, 1)
    assert (gone.by_day, gone.sample) == ((), 0)


async def test_answers_are_counted_by_an_index_and_not_by_reading_them(database: Database) -> None:
    async with database.ownership() as connection:
        await connection.execute(
            "insert into answers (tenant, seq, answer_id, kind, at, payload, prev_hash, hash) "
            "select 'default', g, 'a' || g / 2, case when g % 2 = 0 then 'intent' else 'outcome' end, "
            "now() - g * interval '1 minute', repeat('x', 500), '', '' from generate_series(2, 4001) g"
        )
    async with database.ownership() as connection:
        await connection.execute("analyze answers")
    since = {"tenant": "default", "since": NOW - timedelta(days=1)}

    plan = await database.fetch("explain " + statement("traffic-by-day"), **since)

    assert "answers_at" in "\n".join(row[0] for row in plan)


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


async def test_the_size_is_of_what_holds_and_not_of_what_was_corrected_or_is_not_yet_true(database: Database) -> None:
    start = NOW - timedelta(days=100)
    await put(database, "leave", "A first text that was wrong from the beginning.", start)
    await put(database, "leave", "21 days.", start)  # supersedes the first: same begin
    await put(database, "leave", "22 days of leave, but not before next year.", NOW + timedelta(days=50))
    await put(database, "gone", "What was retired.", start)
    await PgStore(database).retire("default", "gone", valid_from=NOW - timedelta(days=10))
    await put(database, "deleted", "What was deleted.", start)
    await PgStore(database).delete("default", "deleted")

    found = await read_history(database, "default", "default", datetime.now(UTC))

    assert (found.documents, found.characters) == (1, len("21 days."))
    assert found.months == pytest.approx(100 / 30.4375, rel=0.01)


async def test_another_tenants_documents_are_not_counted(database: Database) -> None:
    await add_tenant(database, "other")
    await put(database, "leave", "20 days of leave.", NOW - timedelta(days=100))
    async with database.ownership() as connection:
        for table in ("collections", "documents", "versions"):
            await connection.execute(
                sql.SQL("alter table {} no force row level security").format(sql.Identifier(table))
            )

    assert (await read_history(database, "other", "default", NOW)).documents == 0


async def test_what_stands_is_read_from_the_latest_run_over_the_set(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    await put(database, "leave", "25 days of leave.")
    runs = Runs(database, "default")
    wanted = ItemSet("handbook", tuple(Item(f"q{n}", f"How many days, {n}?", ("25",)) for n in range(5)))
    frozen = await runs.freeze(wanted, "default")

    class Asker:
        def __init__(self, adapter: str | None, usage: Usage) -> None:
            self.adapter, self.usage = adapter, usage

        async def ask(self, item: Item, change: Change = Change()) -> Asked:  # noqa: B008
            if item.id == "q0":
                return Asked(item.id, error="engine_error: gone")
            if item.id == "q1":
                return Asked(item.id, refused=True, passages=(PASSAGE,))  # no model was asked
            return Asked(
                item.id, "25", cited=(("leave", 1, "25"),), passages=(PASSAGE,), adapter=self.adapter, usage=self.usage
            )

        async def search(self, item: Item, change: Change = Change()) -> tuple[Passage, ...]:  # noqa: B008
            return ()

    await runs.run(frozen, Asker("old", Usage(9000, 1)), {"version": "1"}, name="first")
    await runs.run(frozen, Asker(None, Usage(500, 20)), {"version": "2"}, name="second")

    found = await read_asked(database, "default", wanted.sha256, "default")

    assert (found.by_day, found.sample, found.cited, found.retrieved, found.adapted) == ((), 3, 3, 3, 0)
    assert (found.prompt_tokens, found.passage_tokens, found.completion_tokens) == (500, 100, 20)
    assert await read_asked(database, "default", "0" * 64, "default") == Traffic()
    assert await read_asked(database, "default", wanted.sha256, "elsewhere") == Traffic()
    diagnosis = Diagnosis("handbook", wanted.sha256, 400, share_of(350, 400), ())
    (tmp_path / "diagnosis.json").write_text(diagnosis.to_json(), "utf-8")
    told = [
        "--diagnosis",
        str(tmp_path / "diagnosis.json"),
        "--queries-per-day",
        "50",
        "--needs-source",
        "yes",
        "--json",
    ]
    done = await asyncio.to_thread(invoke, database_url, *told)
    work = json.loads(done.stdout)["workload"]
    assert (work["built"], work["prompt_tokens"], work["passage_tokens"]) == (["retrieval"], 400, 100)


async def test_a_collection_that_does_not_exist_has_no_history(database: Database) -> None:
    assert (await read_history(database, "default", "nothing", NOW)).documents == 0


def invoke(database_url: str, *options: str) -> Any:
    environment = {"ORCHESTRATOR_DATABASE_URL": database_url}
    done = CliRunner().invoke(advise, [*options], env=environment, catch_exceptions=False)
    return done


def test_the_command_says_what_it_does_not_know(database_url: str) -> None:
    done = invoke(database_url)

    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Evidence is too thin to advise: nobody has measured or said")
    assert "questions with known answers" in done.stdout
    assert "not measured: queries per day is taken as 1000" in done.stdout
    assert "orchestrator advise --diagnosis diagnosis.json --queries-per-day N" in done.stdout
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
