"""Makes an item of an answer that was given: a recorded answer in, a question with what is right out, and it joins a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.contract import Contract
from orchestrator.database import Database, statement
from orchestrator.errors import ConflictError, InputError
from orchestrator.evaluation.items import Gold, Item
from orchestrator.evaluation.read import item_row, read_items
from orchestrator.feedback import list_feedback
from orchestrator.ledger import show_answer
from orchestrator.types import end_of


async def item_of_answer(
    database: Database,
    answer_id: str,
    *,
    tenant: str = "default",
    answers: Sequence[str] = (),
    unanswerable: bool = False,
    tags: Sequence[str] = (),
    question: str = "",
) -> Item:
    """The question as it was asked, with ``answers``, or else with what people said of the answer: accepted, or corrected.

    An accepted answer's citations are the gold. ``question``: in place of one that is none by itself, as it followed other
    turns or was asked of some of the documents. Raises UnknownNameError without such an answer, InputError when nobody has
    said what is right.
    """
    record = await show_answer(database, answer_id, tenant)
    intent, said = record["intent"] or {}, record["outcome"].get("answer") or {}
    plan = intent.get("plan") or {}
    if not question and (intent.get("history") or plan.get("where") or plan.get("known_at")):
        raise InputError(
            f"{answer_id} was asked behind other turns, with a filter, or of what was known then: asked alone it is another "
            "question. Write it out with --question",
            param="question",
        )
    item = Item(answer_id, question or intent.get("question", ""), as_of=end_of(plan.get("as_of")), tags=tuple(tags))
    if unanswerable:
        return replace(item, answerable=False)
    if answers:
        return replace(item, answers=tuple(answers))
    words = await list_feedback(database, answer_id, tenant)
    last = words[-1] if words else None
    if last is None or last.verdict == "bad":
        raise InputError(
            f"nobody has said what the right answer to {answer_id} is; say it with --answer, or --unanswerable",
            param="answer",
        )
    contract = await _contract(database, intent)
    data = contract.parse_output(last.fix) if contract and last.fix else said.get("data")
    if contract and data and contract.is_refusal(data):
        return replace(item, answerable=False)
    right = str(data[contract.answer]) if contract and contract.answer and data else str(said.get("text", ""))
    if last.verdict == "fix":
        return replace(item, answers=(right,))
    return replace(item, answers=(right,), gold=_gold(said.get("citations") or ()))


def add_item(item: Item, file: Path) -> None:
    """Adds the item to a file of JSON lines, which is made when it is not there. Raises ConflictError when it holds the id."""
    if file.exists() and file.stat().st_size:
        if any(each.id == item.id for each in read_items(file).items):
            raise ConflictError(f"{file} holds {item.id} already; edit its line there", param="set")
        whole = file.read_bytes().endswith(b"\n")
    else:
        whole = True
    with file.open("a", encoding="utf-8") as lines:
        lines.write(("" if whole else "\n") + json.dumps(item_row(item), ensure_ascii=False) + "\n")


async def _contract(database: Database, intent: Mapping[str, Any]) -> Contract | None:
    named = intent.get("contract")
    row = await database.fetch_one(statement("contract-body"), digest=named["digest"]) if named else None
    return Contract.parse(row.name, row.body) if row else None


def _gold(citations: Sequence[Mapping[str, Any]]) -> tuple[Gold, ...]:
    """Any version that says the same will do."""
    return tuple(dict.fromkeys(Gold(each["external_id"], quote=each["quote"]) for each in citations))
