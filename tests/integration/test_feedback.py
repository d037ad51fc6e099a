"""Feedback on a real PostgreSQL: append-only, behind the tenant's wall, held to the answer's contract, and turned into rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.api import create_app
from orchestrator.behaviour.rows import from_answer, read_rows
from orchestrator.database import Database
from orchestrator.errors import DatabaseError, InputError, UnknownNameError
from orchestrator.feedback import Feedback, give_feedback, latest_feedback, list_feedback, passages_of
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.ledger import Ledger, intent_record, outcome_record, show_answer, verify_ledger
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.tenants import add_tenant
from orchestrator.testing import HashEmbedder
from orchestrator.types import Answer, Document, Plan, Query, SearchRequest, Usage

CATALOGUE = load_catalogue(folder("prompts"))
CONTRACT = CATALOGUE.contract("text_answer")
LEAVE = (
    "# Days\n\n"
    + "Everybody has 25 days of leave. " * 60
    + "\n\n## Carry over\n\n"
    + "Unused leave ends in March. " * 60
)
PLAN = Plan("answer", "grounded", "because", prompt="grounded", contract="text_answer", collection="default", k=5)


async def answer(database: Database, tenant: str = "default", **changes: Any) -> str:
    """A recorded answer over a stored document; gives its id."""
    store = PgStore(database, tenant)
    document = Document("leave", "Leave", LEAVE, "leave.md", "text/markdown")
    await ingest_documents([document], store=store, embedder=HashEmbedder(), collection="default")
    vector = (await HashEmbedder().embed(["leave"]))[0]
    passages = await store.search(SearchRequest("leave", vector, "default", tenant=tenant))
    query = Query("How many days?", tenant=tenant)
    said = Answer(query.id, "25 days", {"answer": "25 days"}, (), PLAN)
    contract = changes.get("contract", CONTRACT)
    async with Ledger.open(database) as ledger:
        await ledger.write(intent_record(query, PLAN, list(passages), CATALOGUE.prompt("grounded"), contract))
        await ledger.write(outcome_record(query, "complete", "{}", Usage(5, 2), {"total": 1.0}, answer=said))
    return query.id


async def test_the_last_word_counts_and_every_word_is_kept(database: Database) -> None:
    name = await answer(database)

    await give_feedback(database, name, "bad", note="too short")
    fixed = await give_feedback(database, name, "fix", fix={"answer": "25 days a year"})

    assert [each.verdict for each in await list_feedback(database, name)] == ["bad", "fix"]
    assert await latest_feedback(database) == [fixed]
    assert fixed.fix == '{"answer":"25 days a year"}'
    assert await verify_ledger(database, "default") == []


async def test_a_rejected_answer_is_no_example(database: Database) -> None:
    name = await answer(database)
    await give_feedback(database, name, "good")
    await give_feedback(database, name, "bad")

    assert await latest_feedback(database) == []


@pytest.mark.parametrize(
    ("verdict", "fix", "said"),
    [
        ("great", None, "good, bad or fix"),
        ("fix", None, "comes with the output"),
        ("good", {"answer": "x"}, "comes with the output"),
        ("fix", {"answer": ""}, "the correction breaks contract 'text_answer'"),
        ("fix", "no json", "the correction is not JSON"),
    ],
)
async def test_what_cannot_be_used_is_refused(database: Database, verdict: str, fix: Any, said: str) -> None:
    name = await answer(database)

    with pytest.raises(InputError, match=said):
        await give_feedback(database, name, verdict, fix=fix)
    with pytest.raises(InputError, match="4000 are kept"):
        await give_feedback(database, name, "good", note="x" * 4001)
    assert await list_feedback(database, name) == []


async def test_only_answers_get_feedback(database: Database) -> None:
    with pytest.raises(UnknownNameError, match="no answer 'ans_0'"):
        await give_feedback(database, "ans_0", "good")
    name = await answer(database, contract=None)
    with pytest.raises(InputError, match="no output to correct"):
        await give_feedback(database, name, "fix", fix={"answer": "x"})


async def test_feedback_stays_on_its_side_of_the_wall(database: Database) -> None:
    for tenant in ("a", "b"):
        await add_tenant(database, tenant)
    name = await answer(database, "b")
    await give_feedback(database, name, "good", tenant="b")

    with pytest.raises(UnknownNameError):
        await give_feedback(database, name, "bad", tenant="a")
    assert await list_feedback(database, name, "a") == []
    assert await latest_feedback(database, "a") == []
    assert await database.of("a").fetch("select * from feedback") == []
    assert len(await latest_feedback(database, "b")) == 1


@pytest.mark.parametrize(
    "change", ["update feedback set verdict = 'good'", "delete from feedback", "truncate feedback"]
)
async def test_nothing_is_taken_back(database: Database, change: str) -> None:
    name = await answer(database)
    await give_feedback(database, name, "bad")

    with pytest.raises(DatabaseError):
        await database.fetch(change)
    async with database.ownership() as connection:
        with pytest.raises(Exception, match="append-only"):
            await connection.execute(change)
    assert [each.verdict for each in await list_feedback(database, name)] == ["bad"]


async def test_the_rights_are_the_same_when_they_are_given_again(database: Database) -> None:
    async with database.ownership() as connection:
        await connection.execute("select grant_to_application()")

    rights = await database.fetch(
        "select table_name as name, privilege_type as right from information_schema.role_table_grants "
        "where grantee = 'orchestrator_app' and table_name in ('answers', 'feedback', 'behaviour_audit')"
    )

    assert {(row.name, row.right) for row in rights} == {
        (name, right) for name in ("answers", "feedback", "behaviour_audit") for right in ("SELECT", "INSERT")
    }


async def test_an_accepted_answer_becomes_a_row_with_what_it_was_answered_from(database: Database) -> None:
    name = await answer(database)
    said = await give_feedback(database, name, "good")
    record = await show_answer(database, name)

    row = from_answer(record, asdict(said), await passages_of(database, record))

    assert row.input == "How many days?"
    assert row.output == {"answer": "25 days"}
    vector = (await HashEmbedder().embed(["leave"]))[0]
    shown = await PgStore(database).search(SearchRequest("leave", vector, "default"))
    assert [(p.external_id, p.version, p.title, p.text, p.heading_path) for p in row.passages] == [
        (p.external_id, p.version, p.title, p.text, p.heading_path) for p in shown
    ]
    assert any(p.heading_path for p in row.passages)


async def test_an_answer_from_an_erased_document_is_no_example_any_more(database: Database) -> None:
    name = await answer(database)
    said = await give_feedback(database, name, "good")
    await PgStore(database).erase("default", "leave")
    record = await show_answer(database, name)

    assert await passages_of(database, record) == []
    with pytest.raises(ValueError, match="is gone"):
        from_answer(record, asdict(said), [])


async def test_the_command_line_records_and_exports(database: Database, database_url: str, tmp_path: Path) -> None:
    name = await answer(database)
    (tmp_path / "fix.json").write_text('{"answer": "25 days a year"}')
    environment = {**os.environ, "ORCHESTRATOR_DATABASE_URL": database_url, "ORCHESTRATOR_HOME": str(tmp_path)}

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "orchestrator", *arguments]
        return subprocess.run(program, env=environment, capture_output=True, text=True, check=False, **options)

    wrong = run("feedback", name, "--good", "--fix", str(tmp_path / "fix.json"))
    fixed = run("feedback", name, "--fix", "-", "--note", "per year", "--json", input='{"answer": "25 days a year"}')
    exported = run("data", "export", "--from", "ledger")

    assert wrong.returncode == 1
    assert "one of --good, --bad and --fix" in wrong.stderr
    assert json.loads(fixed.stdout)["verdict"] == "fix"
    (tmp_path / "rows.jsonl").write_text(exported.stdout)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.target(CONTRACT) == '{"answer":"25 days a year"}'
    assert row.origin["answer"] == name


class Edge:
    """As much of an Orchestrator as the endpoint asks for."""

    def __init__(self, database: Database, tenant: str = "default") -> None:
        self.database, self.settings, self.keys = database, Settings(tenant=tenant), None

    async def feedback(self, answer_id: str, verdict: str, **options: Any) -> Feedback:
        return await give_feedback(self.database, answer_id, verdict, tenant=self.settings.tenant, **options)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"verdict": "good"}, 201, '"verdict":"good"'),
        ({"verdict": "fix", "output": {"answer": "25 days a year"}, "note": "n"}, 201, '"object":"feedback"'),
        ({"verdict": "fix", "output": {"answer": 3}}, 400, "the correction breaks contract"),
        ({"verdict": "fix"}, 400, "comes with the output"),
        ({"verdict": "great"}, 400, "verdict must be one of"),
        ({"verdict": "good", "note": 3}, 400, "note must be a text"),
        ({"verdict": "good", "output": [1]}, 400, "output must be an object or a text"),
        ({"verdict": "good", "stars": 5}, 400, "unknown parameter 'stars'"),
    ],
)
async def test_feedback_comes_over_http(database: Database, body: dict[str, Any], status: int, said: str) -> None:
    name = await answer(database)
    app = create_app(Edge(database))  # type: ignore[arg-type]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post(f"/v1/answers/{name}/feedback", json=body)
        nobody = await client.post("/v1/answers/ans_0/feedback", json={"verdict": "good"})

    assert (response.status_code, nobody.status_code) == (status, 404)
    assert said in response.text
    assert len(await list_feedback(database, name)) == (status == 201)
