"""Every question of a run as a report shows it: what was asked, expected, said, cited and shown, and why it is wrong. Pure."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.evaluation.causes import MEANINGS, Diagnosis
from orchestrator.evaluation.figures import Comparison
from orchestrator.evaluation.items import Item, Outcome, Score
from orchestrator.evaluation.markup import Html, shown
from orchestrator.evaluation.runs import Run, Runs
from orchestrator.evaluation.score import holds_gold, same_place
from orchestrator.evaluation.summary import slice_names
from orchestrator.types import Passage

AT_ONCE = 500  # passages whose text is read by one statement
Place = tuple[str, int, int, int, int]  # document id, version, chunk id, span
Texts = Mapping[Place, str]


def place_of(passage: Passage) -> Place:
    """Where a passage stands; its text is read by this."""
    return passage.document_id, passage.version, passage.chunk_id, passage.span[0], passage.span[1]


async def read_texts(runs: Runs, *shown_by: Run) -> dict[Place, str]:
    """The texts of all passages that these runs showed, as they are stored now; those of erased documents are missing."""
    wanted = {
        place_of(passage): passage
        for run in shown_by
        for outcome in run.outcomes.values()
        for passage in outcome.passages
    }
    found: dict[Place, str] = {}
    places = list(wanted)
    for first in range(0, len(places), AT_ONCE):
        part = places[first : first + AT_ONCE]
        rows = await runs.passages(Outcome("", passages=tuple(wanted[place] for place in part)))
        # In the order of the places: a version that is stored gives all of its places, an erased one none.
        stored = {(row.document_id, row.version) for row in rows}
        kept = [place for place in part if place[:2] in stored]
        found |= {place: row.text for place, row in zip(kept, rows, strict=True)}
    return found


def write_questions(
    run: Run, texts: Texts, before: Run | None, comparison: Comparison | None, diagnosis: Diagnosis | None
) -> Html:
    """The questions as one JSON value that may stand in a script element: no text of it can end the element or begin another."""
    shelf = _Shelf(texts)
    rows = [_question(item, run, before, comparison, diagnosis, shelf) for item in run.set.items]
    for fault in run.set.faults:
        causes = list(diagnosis.causes.get(f"row {fault.number}", ())) if diagnosis else []
        rows.append(
            {"id": f"row {fault.number}", "question": f"(row {fault.number} of the set could not be read)", "slices": [],
             "now": {"state": "unreadable", "reason": fault.reason}, "causes": causes}
        )  # fmt: skip
    block = {
        "questions": rows,
        "passages": shelf.rows,
        "causes": MEANINGS,
        "commands": {bar.cause: bar.command for bar in diagnosis.bars} if diagnosis else {},
        "names": [run.info.name, before.info.name] if before else [run.info.name],
    }
    text = json.dumps(_visible(block), ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(text)


@dataclass(slots=True)
class _Shelf:
    """Each passage once, however many questions were shown it."""

    texts: Texts
    rows: list[dict[str, Any]] = field(default_factory=list)
    at: dict[Place, int] = field(default_factory=dict)

    def put(self, passage: Passage) -> int:
        place = place_of(passage)
        if place not in self.at:
            self.at[place] = len(self.rows)
            text = passage.text or self.texts.get(place)
            self.rows.append(
                {"document": passage.external_id, "version": passage.version, "title": passage.title, "text": text}
            )
        return self.at[place]


def _question(
    item: Item,
    run: Run,
    before: Run | None,
    comparison: Comparison | None,
    diagnosis: Diagnosis | None,
    shelf: _Shelf,
) -> dict[str, Any]:
    outcome = run.outcomes.get(item.id)
    row: dict[str, Any] = {
        "id": item.id,
        "question": item.question,
        "slices": slice_names(item, outcome),
        "expected": _expected(item),
        "now": _seen(item, outcome, run.scores.get(item.id), shelf),
        "as_of": item.as_of.isoformat() if item.as_of else "",
    }
    if before is not None and comparison is not None:
        row["before"] = _seen(item, before.outcomes.get(item.id), before.scores.get(item.id), shelf)
        row["move"] = comparison.moves.get(item.id, "")
    if diagnosis is not None:
        row["causes"] = list(diagnosis.causes.get(item.id, ()))
        row["note"] = diagnosis.notes.get(item.id, "")
        row["commands"] = list(dict.fromkeys(_commands(item, row["causes"], diagnosis)))
    return row


def _expected(item: Item) -> dict[str, Any]:
    return {
        "answerable": item.answerable,
        "answers": list(item.answers),
        "contains": list(item.contains),
        "pattern": item.pattern,
        "route": item.route or "",
        "gold": [{"document": gold.external_id, "version": gold.version, "quote": gold.quote} for gold in item.gold],
    }


def _seen(item: Item, outcome: Outcome | None, score: Score | None, shelf: _Shelf) -> dict[str, Any]:
    """What one run did with a question."""
    if outcome is None or score is None:
        return {"state": "not asked", "reason": "it was not asked; the command that began the run goes on"}
    state = "right" if score.correct >= 0.5 else "failed" if outcome.error else "wrong"
    return {
        "state": state,
        "reason": score.reason,
        "text": outcome.text,
        "refused": outcome.refused,
        "error": outcome.error,
        "route": outcome.route,
        "adapter": outcome.adapter or "",
        "flags": list(outcome.flags),
        "sufficiency": outcome.sufficiency,
        "cited": [_citation(item, *cited) for cited in outcome.cited],
        "passages": [_passage(item, passage, shelf) for passage in outcome.passages],
        "timings": {name: round(value, 2) for name, value in outcome.timings_ms.items()},
        "tokens": [outcome.usage.prompt_tokens, outcome.usage.completion_tokens],
        "cost": outcome.cost,
    }


def _citation(item: Item, document: str, version: int, quote: str) -> dict[str, Any]:
    gold = any(same_place(each, document, version, quote) for each in item.gold) if item.gold else None
    return {"document": document, "version": version, "quote": quote, "gold": gold}


def _passage(item: Item, passage: Passage, shelf: _Shelf) -> dict[str, Any]:
    at = shelf.put(passage)
    whole = replace(passage, text=shelf.rows[at]["text"] or "")
    return {
        "at": at,
        "score": round(passage.score, 4),
        "scores": {name: round(value, 4) for name, value in passage.scores.items() if isinstance(value, int | float)},
        "holds": item.answerable and holds_gold(item, [whole]),
    }


def _commands(item: Item, causes: Sequence[str], diagnosis: Diagnosis) -> Iterator[str]:
    """What addresses a question's causes, with the question filled in as a shell reads it."""
    commands: dict[str, str] = {bar.cause: bar.command for bar in diagnosis.bars}
    for cause in causes:
        if cause in commands:
            yield commands[cause].replace("QUESTION", shlex.quote(" ".join(shown(item.question).split())))


def _visible(value: Any) -> Any:
    """The value as JSON can hold it, with the hidden characters of every text made visible."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {shown(str(key)): _visible(each) for key, each in value.items()}
    return [_visible(each) for each in value] if isinstance(value, list | tuple) else value
