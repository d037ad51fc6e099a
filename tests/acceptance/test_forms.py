"""Every form of answer through the official client: text for people in `content`, the checked object under `orchestrator`."""

import json

import pytest

from tests.acceptance.conftest import LEAVE, Start

EMPTY = {"citations": [], "value": ""}
CARD = {
    "answerable": True,
    "rule": {"citations": [1], "value": "Employees have leave"},
    "applies_to": {"citations": [1, 3], "value": "Every employee"},
    "limit": {"citations": [1], "value": "26 days"},
    "deadline": EMPTY,
    "approval": EMPTY,
}
CARD_TEXT = "- Rule: Employees have leave [1]\n- Applies to: Every employee [1]\n- Limit: 26 days [no source]"
BRIEF = "## Summary\nEmployees have 25 days. [1]\n\n## Findings\n- Parking is free. [2]\n\n## Open questions\n- Why?"
TICKET = {"quote": "charged twice", "reason": "An error.", "category": "billing", "priority": "normal"}
TICKET_TEXT = "- From the message: charged twice\n- Why: An error.\n- Category: billing\n- Priority: normal"
FOUND = {"people": ["Ann", "Eve"], "organisations": [], "places": [], "dates": ["1 May"], "amounts": [], "contacts": []}
FORMS = [
    ("card", "What about leave and parking?", json.dumps(CARD), CARD_TEXT, [1, 1]),
    ("brief", "Sum up leave and parking.", BRIEF, BRIEF, [1, 2]),
    ("triage", "I was charged twice.", json.dumps(TICKET), TICKET_TEXT, []),
    ("extract", "Ann came on 1 May.", json.dumps(FOUND), "- People: Ann\n- Dates: 1 May", []),
]
pytestmark = pytest.mark.parametrize(
    ("route", "message", "output", "text", "numbers"), FORMS, ids=[f[0] for f in FORMS]
)


def pieces(output: str, size: int = 7) -> list[str]:
    return [output[at : at + size] for at in range(0, len(output), size)]


async def test_people_read_text_and_programs_the_object(
    start: Start, route: str, message: str, output: str, text: str, numbers: list[int]
) -> None:
    world = await start(pieces(output))

    reply = await world.ask(message, model=f"orchestrator/{route}")

    said = reply.choices[0].message
    own = reply.model_extra["orchestrator"]
    assert said.content == text
    assert [citation["number"] for citation in own["citations"]] == numbers
    assert [text[a.url_citation.start_index : a.url_citation.end_index] for a in said.annotations] == [
        f"[{number}]" for number in numbers
    ]
    assert [a.url_citation.start_index for a in said.annotations] == sorted(
        a.url_citation.start_index for a in said.annotations
    )
    assert (own["route"], own["adapter"], own["degraded"]) == (route, None, None)
    contract = world.orchestrator.catalogue.contract(own["plan"]["contract"])
    assert all(contract.keeps(name, value) for name, value in own["data"].items())


async def test_the_stream_joins_to_the_text_and_comes_in_parts(
    start: Start, route: str, message: str, output: str, text: str, numbers: list[int]
) -> None:
    world = await start(pieces(output + "\n"))

    chunks = [chunk async for chunk in await world.ask(message, model=f"orchestrator/{route}", stream=True)]

    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(deltas) == text
    assert len(deltas) >= len(text.splitlines()) - text.count("\n\n") - 1
    assert len(chunks[-1].model_extra["orchestrator"]["citations"]) == len(numbers)


async def test_json_object_gives_the_object_of_every_form(
    start: Start, route: str, message: str, output: str, text: str, numbers: list[int]
) -> None:
    world = await start(pieces(output))

    reply = await world.ask(message, model=f"orchestrator/{route}", response_format={"type": "json_object"})

    assert json.loads(reply.choices[0].message.content) == reply.model_extra["orchestrator"]["data"]


async def test_the_engine_gets_a_schema_or_a_grammar_and_never_the_callers(
    start: Start, route: str, message: str, output: str, text: str, numbers: list[int]
) -> None:
    world = await start(pieces(output))
    bomb = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(a+)+b"}}}

    refused = await world.refusal(message, model=f"orchestrator/{route}", response_format=bomb)
    await world.ask(message, model=f"orchestrator/{route}")

    (sent,) = world.engine.received
    assert (refused.status_code, refused.param) == (400, "response_format")
    assert (sent.schema is None) == (route == "brief") == (sent.grammar is not None)
    assert LEAVE in sent.messages[-1].content or not numbers
