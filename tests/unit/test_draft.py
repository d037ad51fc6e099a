"""Drafted questions: kept when the text they were made from answers them again, dropped with a reason otherwise."""

import json

import pytest

from orchestrator.errors import EngineUnavailableError
from orchestrator.evaluation.draft import Quota, Source, draft, pick_sources
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
    found = await draft([SOURCE], Teacher(), Quota(5))

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
    found = await draft([SOURCE], teacher, Quota(5))

    assert (found.items, found.dropped) == ((), {reason: 1})


async def test_no_more_is_asked_than_is_wanted():
    teacher, told = Teacher(), []
    sources = [Source(f"d{number}", "Leave", TEXT) for number in range(20)]

    found = await draft(sources, teacher, Quota(3), concurrency=1, progress=lambda *each: told.append(each))

    assert (len(found.items), teacher.calls, told[-1]) == (3, 6, (3, 3))


async def test_a_model_that_is_gone_ends_it():
    with pytest.raises(EngineUnavailableError):
        await draft([SOURCE], Teacher(EngineUnavailableError("gone")), Quota(5))


def test_each_document_has_its_turn_before_any_has_a_second():
    long = "\n\n".join(f"{number} {'word ' * 40}" for number in range(10))
    texts = {name: (name, long) for name in ("a", "b", "c")} | {"short": ("short", "too short")}

    first = pick_sources(texts, 3)

    assert sorted(source.external_id for source in first) == ["a", "b", "c"]
    assert pick_sources(texts, 6)[:3] == first
    assert len(pick_sources(texts, 99)) == 30


# Questions that nothing answers


class Writer:
    """Writes both kinds of question; ``knows`` answers one from a text."""

    def __init__(self, near="How many days of leave are there in France?", knows=lambda question, text: ""):
        self.near, self.knows = near, knows
        self.asked = []

    async def complete(self, messages, schema):
        shown = json.loads(messages[-1]["content"])
        if "question" in shown:
            self.asked.append((shown["question"], shown["text"]))
            if shown["question"] == MADE["question"]:
                return json.dumps({"answer": "25 days"})
            return json.dumps({"answer": self.knows(shown["question"], shown["text"])})
        return json.dumps(MADE if "quote" in schema["properties"] else {"question": self.near})


async def test_a_question_that_no_text_answers_is_unanswerable_and_marked():
    writer = Writer()

    async def nearest(question):
        assert question == writer.near
        return ["Paris is the capital.", TEXT[:40]]  # a piece of the text itself is not asked twice

    found = await draft([SOURCE], writer, Quota(1, 1), nearest=nearest)

    near = next(item for item in found.items if not item.answerable)
    assert (near.question, near.answers, near.gold) == (writer.near, (), ())
    assert (near.synthetic, near.tags) == (True, ("synthetic", "near"))
    assert [text for question, text in writer.asked if question == near.question] == [TEXT, "Paris is the capital."]
    assert len(found.items) == 2
    assert len({item.id for item in found.items}) == 2


@pytest.mark.parametrize(
    ("writer", "texts", "reason"),
    [
        (Writer(knows=lambda question, text: "25 days" if text == TEXT else ""), (), "a text answers it"),
        (Writer(knows=lambda question, text: "30 days" if "France" in text else ""), ("30 in France.",), "a text answers it"),
        (Writer("Who painted the Mona Lisa?"), (), "it is about something else"),
        (Writer(" "), (), "the model did not reply as asked"),
        (Writer(5), (), "the model did not reply as asked"),
        (Writer(knows=lambda question, text: 5), (), "the model did not reply as asked"),
    ],
)  # fmt: skip
async def test_a_question_that_some_text_answers_is_not_unanswerable(writer, texts, reason):
    async def nearest(question):
        return texts

    found = await draft([SOURCE], writer, Quota(1, 1), nearest=nearest)

    assert [item.answerable for item in found.items] == [True]
    assert found.dropped == {f"unanswerable: {reason}": 1}


async def test_a_model_that_cannot_read_a_text_does_not_say_what_it_leaves_out():
    refusing = Teacher(again="")

    found = await draft([SOURCE], refusing, Quota(1, 1))

    assert (found.items, refusing.calls) == ((), 2)


async def test_each_kind_comes_in_the_number_that_was_wanted():
    sources = [Source(f"d{number}", "Leave", TEXT) for number in range(20)]
    told = []

    more = await draft(sources, Writer(), Quota(2, 5), concurrency=1, progress=lambda *each: told.append(each))
    none = await draft(sources, Writer(), Quota(3), concurrency=1)

    assert [sum(item.answerable is kind for item in more.items) for kind in (True, False)] == [2, 5]
    assert told[-1] == (7, 7)
    assert [item.answerable for item in none.items] == [True] * 3
