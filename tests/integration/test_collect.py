"""Questions of the ledger become items: what is right is what people said last, and nothing that was asked is lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.database import Database
from orchestrator.errors import ConflictError, InputError, UnknownNameError
from orchestrator.evaluation.collect import add_item, item_of_answer
from orchestrator.evaluation.items import Gold, Item
from orchestrator.evaluation.read import read_items
from orchestrator.feedback import give_feedback
from orchestrator.ledger import Ledger, intent_record, outcome_record
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.tenants import add_tenant
from orchestrator.types import Answer, Citation, Message, Plan, Query, Usage

CATALOGUE = load_catalogue(folder("prompts"))
CONTRACT = CATALOGUE.contract("cited_answer")
THEN = datetime(2024, 3, 1, tzinfo=UTC)
PLAN = Plan("answer", "grounded", "because", prompt="grounded", contract="cited_answer", collection="default", k=5)
SAID = {"answerable": True, "citations": [1], "evidence": "", "answer": "25 days"}
REFUSED = {"answerable": False, "citations": [], "evidence": "", "answer": ""}


async def recorded(
    database: Database, data: dict[str, Any] = SAID, plan: Plan = PLAN, ends: bool = True, **asked: Any
) -> str:
    """An answer in the ledger; gives its id."""
    query = Query("How many days?", **asked)
    quote = "Every employee has 25 days of leave."
    cited = (Citation(1, "d", "leave.md", 2, 0, (0, len(quote)), quote, ""),) * 2 if data["citations"] else ()
    said = Answer(query.id, str(data["answer"]) + " [1]", data, cited, plan)
    async with Ledger.open(database) as ledger:
        await ledger.write(intent_record(query, plan, (), CATALOGUE.prompt("grounded"), CONTRACT))
        if ends:
            await ledger.write(outcome_record(query, "complete", "{}", Usage(5, 2), {"total": 1.0}, answer=said))
    return query.id


async def test_an_accepted_answer_is_right_and_its_citations_are_the_gold(database: Database) -> None:
    name = await recorded(database, plan=replace(PLAN, as_of=THEN))
    await give_feedback(database, name, "good")

    item = await item_of_answer(database, name, tags=["leave"])

    assert item == Item(
        name, "How many days?", ("25 days",), gold=(Gold("leave.md", quote="Every employee has 25 days of leave."),),
        as_of=THEN, tags=("leave",),
    )  # fmt: skip


async def test_an_accepted_refusal_and_one_that_people_wrote_are_unanswerable(database: Database) -> None:
    accepted, written = await recorded(database, REFUSED), await recorded(database)
    await give_feedback(database, accepted, "good")
    await give_feedback(database, written, "fix", fix=REFUSED)

    for name in (accepted, written):
        assert await item_of_answer(database, name) == Item(name, "How many days?", answerable=False)


async def test_the_last_word_counts(database: Database) -> None:
    name = await recorded(database)
    await give_feedback(database, name, "good")
    await give_feedback(database, name, "fix", fix={**SAID, "answer": "26 days"})
    fixed = await item_of_answer(database, name)
    await give_feedback(database, name, "bad")

    assert (fixed.answers, fixed.gold) == (("26 days",), ())  # what was corrected was perhaps cited wrongly too
    with pytest.raises(InputError, match="nobody has said"):
        await item_of_answer(database, name)
    assert (await item_of_answer(database, name, answers=["27 days"])).answers == ("27 days",)


async def test_an_answer_that_never_ended_can_be_added_with_what_is_right(database: Database) -> None:
    name = await recorded(database, ends=False)

    with pytest.raises(InputError, match="nobody has said"):
        await item_of_answer(database, name)
    assert (await item_of_answer(database, name, unanswerable=True)).answerable is False


@pytest.mark.parametrize(
    "asked",
    [
        {"history": (Message("user", "What is leave?"), Message("assistant", "Days off."))},
        {"plan": replace(PLAN, where={"country": "FR"})},
        {"plan": replace(PLAN, known_at=THEN)},
    ],
    ids=["history", "filter", "known_at"],
)
async def test_a_question_that_is_none_by_itself_is_written_out(database: Database, asked: dict[str, Any]) -> None:
    name = await recorded(database, **asked)

    with pytest.raises(InputError, match="--question"):
        await item_of_answer(database, name, answers=["25 days"])
    item = await item_of_answer(database, name, answers=["25 days"], question="How many days of leave in France?")

    assert item == Item(name, "How many days of leave in France?", ("25 days",))


async def test_another_tenants_answer_is_none(database: Database) -> None:
    await add_tenant(database, "other")
    name = await recorded(database)
    await give_feedback(database, name, "good")

    theirs = await recorded(database, tenant="other")
    await give_feedback(database, theirs, "good", tenant="other")

    with pytest.raises(UnknownNameError):
        await item_of_answer(database, name, tenant="other", answers=["25 days"])
    assert (await item_of_answer(database, theirs, tenant="other")).answers == ("25 days",)


def test_an_item_joins_a_file_once(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    add_item(Item("a", "Zwölf?", ("ja",)), file)
    file.write_text(file.read_text("utf-8").rstrip("\n"), "utf-8")  # an editor cut the last line end
    add_item(Item("b", "Who?", answerable=False), file)

    assert read_items(file).items == (Item("a", "Zwölf?", ("ja",)), Item("b", "Who?", answerable=False))
    with pytest.raises(ConflictError, match="holds a already"):
        add_item(Item("a", "Another?", ("x",)), file)
