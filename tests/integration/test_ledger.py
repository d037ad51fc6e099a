"""The ledger on a real PostgreSQL: one chain whatever happens at once, and every tampering is found and named (row G2)."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime

import psycopg
import pytest

from orchestrator.database import Database
from orchestrator.errors import DatabaseError, LedgerError, UnknownNameError
from orchestrator.ledger import (
    GENESIS,
    Ledger,
    Record,
    intent_record,
    list_answers,
    outcome_record,
    show_answer,
    verify_ledger,
)
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.tenants import add_tenant
from orchestrator.testing import passage
from orchestrator.types import Answer, Generation, Message, Plan, Query, Usage

CATALOGUE = load_catalogue(folder("prompts"))
PLAN = Plan("answer", "grounded", "because", prompt="grounded", contract="cited_answer", collection="default", k=5)


def pair(query):
    """Intent and outcome of one answer."""
    prompt, contract = CATALOGUE.prompt("grounded"), CATALOGUE.contract("cited_answer")
    generation = Generation("base", (Message("user", query.text),), 10, seed=3, schema={"type": "object"})
    answer = Answer(query.id, "25 days", {"answer": "25 days"}, (), PLAN)
    return (
        intent_record(query, PLAN, [passage(1, "25 days")], prompt, contract, generation),
        outcome_record(query, "complete", "{}", Usage(5, 2), {"total": 1.0}, answer=answer),
    )


async def write_answers(database, count, tenant="default"):
    """Writes answers one after the other; gives their identifiers."""
    queries = [Query(f"question {number}", tenant=tenant) for number in range(count)]
    async with Ledger.open(database) as ledger:
        for query in queries:
            for record in pair(query):
                await ledger.write(record)
    return [query.id for query in queries]


async def as_dba(database, query, **values):
    """One statement of a superuser who has switched the triggers off."""
    async with database.ownership() as connection:
        await connection.execute("set local session_replication_role = replica")
        await connection.execute(query, values)


async def rows(database):
    """Every tenant's, as the superuser sees them."""
    async with database.ownership() as connection:
        return await (await connection.execute("select * from answers order by tenant, seq")).fetchall()


async def test_answers_become_one_chain(database):
    ids = await write_answers(database, 3)

    found = await rows(database)

    assert [(row.seq, row.kind) for row in found] == [(n, ("intent", "outcome")[(n - 1) % 2]) for n in range(1, 7)]
    assert [row.answer_id for row in found] == [one for one in ids for _ in range(2)]
    assert [row.prev_hash for row in found] == [GENESIS, *(row.hash for row in found[:-1])]
    assert await verify_ledger(database, "default") == []


async def test_a_stranger_can_check_the_chain(database):
    await write_answers(database, 2)
    previous = "0" * 64

    for row in await rows(database):
        at = row.at.astimezone(UTC).isoformat(timespec="microseconds")
        line = json.dumps([previous, row.tenant, row.seq, row.answer_id, row.kind, at, row.payload], ensure_ascii=False)
        previous = hashlib.sha256(line.encode()).hexdigest()
        assert row.hash == previous


async def test_sixty_four_writers_at_once_make_one_chain_in_few_transactions(database):
    queries = [Query(f"question {number}") for number in range(64)]

    async def answer(ledger, query):
        intent, outcome = pair(query)
        await ledger.write(intent)
        await ledger.write(outcome)

    async with Ledger.open(database) as ledger:
        await asyncio.gather(*(answer(ledger, query) for query in queries))

    (transactions,) = await database.fetch("select count(distinct xmin::text) as n from answers")
    assert len(await rows(database)) == 128
    assert transactions.n < 64
    assert await verify_ledger(database, "default") == []


async def test_several_processes_share_the_chain(database):
    await add_tenant(database, "other")

    async def process(tenant, number):
        async with Ledger.open(database) as ledger:
            queries = [Query(f"question {number}-{turn}", tenant=tenant) for turn in range(5)]
            await asyncio.gather(*(ledger.write(record) for query in queries for record in pair(query)))

    await asyncio.gather(*(process(tenant, number) for number in range(4) for tenant in ("default", "other")))

    assert len(await rows(database)) == 2 * 4 * 5 * 2
    assert await verify_ledger(database, "default") == []
    assert await verify_ledger(database, "other") == []


async def test_one_batch_of_two_tenants_feeds_two_chains(database):
    for name in ("a", "b"):
        await add_tenant(database, name)
    async with Ledger.open(database) as ledger:
        for tenant in ("a", "b", "a"):
            for record in pair(Query("x", tenant=tenant)):
                ledger.put(record)

    assert [(row.tenant, row.seq) for row in await rows(database)] == [("a", n) for n in range(1, 5)] + [
        ("b", 1),
        ("b", 2),
    ]
    assert await verify_ledger(database, "a") == await verify_ledger(database, "b") == []


async def test_a_restart_continues_the_chain(database):
    await write_answers(database, 2)
    await write_answers(database, 2)

    assert [row.seq for row in await rows(database)] == list(range(1, 9))
    assert await verify_ledger(database, "default") == []


async def test_an_empty_ledger_is_sound(database):
    assert await verify_ledger(database, "default") == []


async def test_more_rows_than_a_page_are_verified(database, monkeypatch):
    monkeypatch.setattr("orchestrator.ledger._PAGE", 3)
    await write_answers(database, 5)

    assert await verify_ledger(database, "default") == []
    await as_dba(database, "update answers set payload = '{}' where seq = 8")
    assert len(await verify_ledger(database, "default")) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("payload", "'{}'"),
        ("answer_id", "'ans_other'"),
        ("at", "at + interval '1 microsecond'"),
        ("kind", "'intent'"),
        ("hash", f"'{'0' * 64}'"),
        ("prev_hash", f"'{'0' * 64}'"),
    ],
)
async def test_an_edited_row_is_named(database, column, value):
    await write_answers(database, 3)
    if column == "kind":
        await as_dba(database, "delete from answers where seq = 3")
    statement = psycopg.sql.SQL("update answers set {} = {} where seq = 4").format(
        psycopg.sql.Identifier(column), psycopg.sql.SQL(value)
    )

    await as_dba(database, statement)

    assert any(
        fault.startswith("row 4 (ans_") and "edited" in fault for fault in await verify_ledger(database, "default")
    )


async def test_a_row_that_was_edited_with_its_hash_breaks_the_next(database):
    await write_answers(database, 2)
    await as_dba(
        database,
        "update answers set payload = '{}', hash = encode(sha256(convert_to(payload, 'utf8')), 'hex') where seq = 2",
    )

    faults = await verify_ledger(database, "default")

    assert any("row 3" in fault and "does not follow" in fault for fault in faults)


@pytest.mark.parametrize(("seq", "said"), [(1, "rows 1 to 1 are missing"), (3, "rows 3 to 3 are missing")])
async def test_a_removed_row_is_named(database, seq, said):
    await write_answers(database, 3)

    await as_dba(database, "delete from answers where seq = %(seq)s", seq=seq)

    assert said in await verify_ledger(database, "default")


async def test_a_cut_tail_is_found(database):
    await write_answers(database, 3)

    await as_dba(database, "delete from answers where seq > 4")

    assert await verify_ledger(database, "default") == ["the chain ends at row 4, the recorded head is row 6"]


async def test_an_emptied_ledger_is_found(database):
    await write_answers(database, 1)

    await as_dba(database, "delete from answers")

    assert await verify_ledger(database, "default") == ["the chain ends at row 0, the recorded head is row 2"]


async def test_an_appended_row_is_found(database):
    await write_answers(database, 2)

    await as_dba(
        database,
        "insert into answers select tenant, seq + 4, 'ans_forged', kind, at, payload, hash, hash from answers where seq = 2",
    )

    faults = await verify_ledger(database, "default")
    assert any("row 6 (ans_forged, outcome)" in fault for fault in faults)


async def test_an_inserted_row_is_found(database):
    await write_answers(database, 3)
    await as_dba(database, "update answers set seq = 100 + seq where seq > 3")
    await as_dba(database, "update answers set seq = seq - 99 where seq > 100")
    await as_dba(
        database,
        "insert into answers select tenant, 4, 'ans_forged', kind, at, payload, hash, hash from answers where seq = 2",
    )

    faults = await verify_ledger(database, "default")

    assert any("row 4 (ans_forged, outcome)" in fault for fault in faults)


async def test_rows_that_changed_places_are_found(database):
    await write_answers(database, 3)
    await as_dba(database, "update answers set seq = 100 + seq where seq in (2, 3)")
    await as_dba(database, "update answers set seq = 105 - seq where seq > 100")

    faults = await verify_ledger(database, "default")

    assert {fault.split(" (")[0] for fault in faults} >= {"row 2", "row 3"}


async def test_a_row_that_moved_to_another_tenant_is_found(database):
    await add_tenant(database, "other")
    await write_answers(database, 2)

    await as_dba(database, "update answers set tenant = 'other' where seq = 4")

    assert await verify_ledger(database, "default")
    assert await verify_ledger(database, "other")


@pytest.mark.parametrize(
    "statement",
    [
        "update answers set payload = '{}'",
        "delete from answers",
        "truncate answers, feedback",
        "truncate answers cascade",
    ],
)
async def test_the_ledger_refuses_to_change(database, statement):
    await write_answers(database, 1)

    with pytest.raises(DatabaseError, match="permission denied"):
        await database.fetch(statement)
    with pytest.raises(DatabaseError, match="append-only"):
        async with database.ownership() as connection:
            await connection.execute(statement)

    assert len(await rows(database)) == 2
    assert await verify_ledger(database, "default") == []


@pytest.mark.parametrize(
    "text", ["nul \x00 byte", "half \ud800 pair", "\u2028", "😀", '"}\\', "%s %(x)s {x}", "a" * 100_000]
)
async def test_any_question_is_kept(database, text):
    query = Query(text)
    async with Ledger.open(database) as ledger:
        for record in pair(query):
            await ledger.write(record)

    assert (await show_answer(database, query.id))["intent"]["question"] == text
    assert await verify_ledger(database, "default") == []


async def test_an_answer_is_shown_with_intent_and_outcome(database):
    (answer_id,) = await write_answers(database, 1)

    shown = await show_answer(database, answer_id)

    assert shown["id"] == answer_id
    assert shown["intent"]["plan"]["route"] == "grounded"
    assert shown["intent"]["passages"][0]["document_id"] == "doc-1"
    assert shown["outcome"]["outcome"] == "complete"
    assert shown["outcome"]["answer"]["text"] == "25 days"


async def test_an_answer_without_an_outcome_was_partial(database):
    query = Query("killed")
    async with Ledger.open(database) as ledger:
        await ledger.write(pair(query)[0])

    assert (await show_answer(database, query.id))["outcome"] == {"outcome": "partial"}
    assert [(answer["id"], answer["outcome"]) for answer in await list_answers(database, "default", 5)] == [
        (query.id, "partial")
    ]


async def test_the_latest_answers_are_listed_first_and_of_one_tenant_only(database):
    await add_tenant(database, "other")
    ids = await write_answers(database, 3)
    await write_answers(database, 1, tenant="other")

    listed = await list_answers(database, "default", 2)

    assert [answer["id"] for answer in listed] == [ids[2], ids[1]]
    assert listed[0]["question"] == "question 2"
    assert (listed[0]["route"], listed[0]["outcome"]) == ("grounded", "complete")


async def test_an_unknown_answer_is_refused(database):
    with pytest.raises(UnknownNameError, match="ans_none"):
        await show_answer(database, "ans_none")


async def test_prompt_and_contract_are_kept_once(database):
    await write_answers(database, 2)
    await write_answers(database, 1)

    (prompt,) = await database.fetch("select * from prompts")
    (contract,) = await database.fetch("select * from contracts")

    assert (prompt.name, prompt.digest) == ("grounded", CATALOGUE.prompt("grounded").digest)
    assert hashlib.sha256(prompt.body.encode()).hexdigest() == prompt.digest
    assert contract.body == CATALOGUE.contract("cited_answer").body


async def test_a_refused_record_does_not_take_down_those_beside_it(database):
    query = Query("first")
    async with Ledger.open(database) as ledger:
        await ledger.write(pair(query)[0])
        records = [pair(Query("a"))[0], pair(query)[0], pair(Query("b"))[0]]
        ends = await asyncio.gather(*(ledger.write(record) for record in records), return_exceptions=True)

    assert [type(end) for end in ends] == [type(None), LedgerError, type(None)]
    assert len(await rows(database)) == 3
    assert await verify_ledger(database, "default") == []


async def test_a_record_of_an_unknown_tenant_is_refused_and_takes_down_no_other(database):
    records = [pair(Query("a"))[0], pair(Query("x", tenant="nobody"))[0], pair(Query("b"))[0]]
    async with Ledger.open(database) as ledger:
        ends = await asyncio.gather(*(ledger.write(record) for record in records), return_exceptions=True)

    assert [type(end) for end in ends] == [type(None), LedgerError, type(None)]
    assert "orchestrator tenants add" in str(ends[1])
    assert len(await rows(database)) == 2


async def test_a_record_that_cannot_be_sent_does_not_stop_the_writer(database):
    broken = Record("default", "ans_1", "intent", "yesterday", "{}")  # type: ignore[arg-type]
    async with Ledger.open(database) as ledger:
        with pytest.raises(LedgerError):
            await ledger.write(broken)
        await ledger.write(pair(Query("next"))[0])

    assert len(await rows(database)) == 1


async def test_a_caller_who_goes_away_leaves_his_record(database):
    async with Ledger.open(database) as ledger:
        task = asyncio.create_task(ledger.write(pair(Query("x"))[0]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert len(await rows(database)) == 1


async def test_what_was_put_is_written_when_the_ledger_closes(database):
    async with Ledger.open(database) as ledger:
        for number in range(300):
            ledger.put(Record("default", f"ans_{number}", "intent", datetime.now(UTC), "{}"))

    assert len(await rows(database)) == 300
    assert await verify_ledger(database, "default") == []


async def test_a_ledger_whose_database_is_gone_gives_an_error_and_then_goes_on(database_url):
    async with Database.open(database_url, 2) as database, Ledger.open(database) as ledger:
        await ledger.write(pair(Query("before"))[0])
        await as_dba(database, "alter table answers rename to gone")

        ends = await asyncio.gather(*(ledger.write(pair(Query("x"))[0]) for _ in range(3)), return_exceptions=True)
        await as_dba(database, "alter table gone rename to answers")
        await ledger.write(pair(Query("after"))[0])

        assert [type(end) for end in ends] == [LedgerError] * 3
        assert all("no answer is given" in str(end) for end in ends)
        assert len(await rows(database)) == 2
        assert await verify_ledger(database, "default") == []


async def test_a_connection_that_was_broken_is_replaced(database_url):
    others = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    async with Database.open(database_url, 1) as database, Ledger.open(database) as ledger:
        await ledger.write(pair(Query("before"))[0])
        with psycopg.connect(database_url, autocommit=True) as dba:
            dba.execute(others)
        await ledger.write(pair(Query("after"))[0])

        assert len(await rows(database)) == 2
        assert await verify_ledger(database, "default") == []
