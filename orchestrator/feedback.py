"""What people say of answers: kept beside the ledger, append-only, and read back as examples to train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from orchestrator.contract import Contract
from orchestrator.database import Database, Row, statement
from orchestrator.errors import ContractError, InputError
from orchestrator.ledger import show_answer
from orchestrator.types import Passage

FeedbackVerdict = Literal["good", "bad", "fix"]
VERDICTS = ("good", "bad", "fix")
MAX_NOTE = 4000


@dataclass(frozen=True, slots=True)
class Feedback:
    """One verdict on one answer. ``fix``: with verdict ``fix``, the output as it should have been, as the contract writes it."""

    id: int
    answer_id: str
    verdict: str
    fix: str | None
    note: str
    at: datetime


async def give_feedback(
    database: Database,
    answer_id: str,
    verdict: str,
    *,
    fix: Mapping[str, Any] | str | None = None,
    note: str = "",
    tenant: str = "default",
) -> Feedback:
    """Records a verdict; the last one on an answer counts. A fix must keep the contract that the answer was made under.

    Raises UnknownNameError without such an answer, InputError for a fix that breaks its contract.
    """
    if verdict not in VERDICTS:
        raise InputError(f"the verdict is good, bad or fix, not {verdict!r}", param="verdict")
    if (verdict == "fix") != (fix is not None):
        raise InputError("a fix, and nothing else, comes with the output as it should have been", param="output")
    if len(note) > MAX_NOTE:
        raise InputError(f"the note has {len(note)} characters; {MAX_NOTE} are kept", param="note")
    record = await show_answer(database, answer_id, tenant)
    text = await _checked(database, record, fix) if fix is not None else None
    values = {"tenant": tenant, "answer_id": answer_id, "verdict": verdict, "fix": text, "note": note}
    async with database.of(tenant).transaction() as connection:
        row: Row = await (await connection.execute(statement("insert-feedback"), values)).fetchone()
    return Feedback(row.id, answer_id, verdict, text, note, row.at)


async def list_feedback(database: Database, answer_id: str, tenant: str = "default") -> list[Feedback]:
    """Everything that was said of an answer, oldest first."""
    rows = await database.of(tenant).fetch(statement("list-feedback"), tenant=tenant, answer_id=answer_id)
    return [Feedback(*row) for row in rows]


async def latest_feedback(
    database: Database, tenant: str = "default", verdicts: Sequence[str] = ("good", "fix")
) -> list[Feedback]:
    """The last word on each answer, where it is one of these verdicts."""
    rows = await database.of(tenant).fetch(statement("latest-feedback"), tenant=tenant, verdicts=list(verdicts))
    return [Feedback(*row) for row in rows]


async def passages_of(database: Database, record: Mapping[str, Any], tenant: str = "default") -> list[Passage]:
    """The passages of a recorded answer as they are stored now; those of erased or deleted documents are missing."""
    shown = record["intent"]["passages"] if record.get("intent") else []
    values = {
        "document_ids": [passage["document_id"] for passage in shown],
        "numbers": [passage["version"] for passage in shown],
        "chunk_ids": [passage["chunk_id"] for passage in shown],
        "starts": [passage["span"][0] for passage in shown],
        "ends": [passage["span"][1] for passage in shown],
    }
    rows = await database.of(tenant).fetch(statement("passages-of-answer"), **values) if shown else []
    return [
        Passage(
            chunk_id=row.chunk_id or 0,
            document_id=row.document_id,
            external_id=row.external_id,
            version=row.version,
            title=row.title,
            text=row.text,
            span=(0, len(row.text)),
            paragraph=0,
            score=0.0,
            heading_path=tuple(row.heading_path or ()),
        )
        for row in {row.place: row for row in rows}.values()
    ]


async def _checked(database: Database, record: Mapping[str, Any], fix: Mapping[str, Any] | str) -> str:
    """The fix as the contract writes it."""
    named = (record["intent"] or {}).get("contract")
    row = await database.fetch_one(statement("contract-body"), digest=named["digest"]) if named else None
    if row is None:
        raise InputError(f"{record['id']} was answered without a model: there is no output to correct", param="output")
    contract = Contract.parse(row.name, row.body)
    try:
        data = contract.parse_output(fix if isinstance(fix, str) else json.dumps(fix, ensure_ascii=False))
    except ContractError as error:
        message = error.message.replace("the model's output", "the correction", 1)
        raise InputError(
            f"{message}; `orchestrator audit show {record['id']}` shows the output", param="output"
        ) from error
    return contract.dump(data)
