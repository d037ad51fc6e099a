"""Drafted questions: kept when the text they were made from answers them again, dropped with a reason otherwise."""

import json

import pytest

from orchestrator.errors import EngineUnavailableError
from orchestrator.evaluation.draft import Source, draft, pick_sources
from orchestrator.evaluation.items import Gold

TEXT = "Leave is granted by the head of the team.  Every employee has 25 days of leave in a year, and five more after ten years."
SOURCE = Source("leave.md", "Leave", TEXT)
MADE = {
    "question": "How much leave is there?",
    "answer": "25 days",
    "quote": "Every employee has 25 days of leave in a year",
}


class Teacher:
    """Writes one question, and answers it as told."""

    def __init__(self, made=MADE, again="25 days"):
        self.made, self.again = made, again
        self.calls = 0

    async def complete(self, messages, schema):
        self.calls += 1
        if isinstance(self.made, Exception):
            raise self.made
        if "question" in json.loads(messages[-1]["content"]):
            return json.dumps({"answer": self.again})
        return self.made if isinstance(self.made, str) else json.dumps(self.made)


async def test_a_question_that_holds_is_kept_and_marked():
    found = await draft([SOURCE], Teacher(), 5)

    (item,) = found.items
    assert (item.question, item.answers, item.synthetic, item.tags) == (
        MADE["question"],
        ("25 days",),
        True,
        ("synthetic",),
    )
    assert item.gold == (Gold("leave.md", quote=MADE["quote"]),)
    assert found.dropped == {}


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        (Teacher("no JSON"), "the model did not reply as asked"),
        (Teacher('{"question": 1, "answer": "x", "quote": "y"}'), "the model did not reply as asked"),
        (Teacher({**MADE, "quote": "Everybody has 25 days"}), "its quote does not stand in the text"),
        (Teacher({**MADE, "question": " "}), "its quote does not stand in the text"),
        (Teacher({**MADE, "answer": "30 days"}), "its answer does not stand in its quote"),
        (Teacher({**MADE, "question": "Are 25 days right?"}), "its question gives the answer away"),
        (Teacher(again="ten years"), "asked again, the model answers otherwise"),
        (Teacher(again=""), "asked again, the model answers otherwise"),
    ],
)
async def test_a_question_that_does_not_hold_is_dropped(teacher, reason):
    found = await draft([SOURCE], teacher, 5)

    assert (found.items, found.dropped) == ((), {reason: 1})


async def test_no_more_is_asked_than_is_wanted():
    teacher, told = Teacher(), []
    sources = [Source(f"d{number}", "Leave", TEXT) for number in range(20)]

    found = await draft(sources, teacher, 3, concurrency=1, progress=lambda *each: told.append(each))

    assert (len(found.items), teacher.calls, told[-1]) == (3, 6, (3, 3))


async def test_a_model_that_is_gone_ends_it():
    with pytest.raises(EngineUnavailableError):
        await draft([SOURCE], Teacher(EngineUnavailableError("gone")), 5)


def test_each_document_has_its_turn_before_any_has_a_second():
    long = "\n\n".join(f"{number} {'word ' * 40}" for number in range(10))
    texts = {name: (name, long) for name in ("a", "b", "c")} | {"short": ("short", "too short")}

    first = pick_sources(texts, 3)

    assert sorted(source.external_id for source in first) == ["a", "b", "c"]
    assert pick_sources(texts, 6)[:3] == first
    assert len(pick_sources(texts, 99)) == 30
