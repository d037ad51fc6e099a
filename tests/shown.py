"""The shipped contracts, a small one made here, and two passages: what tests of answers begin with."""

import json

from orchestrator.contract import Contract
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import passage

CATALOGUE = load_catalogue(folder("prompts"))
TEXT = CATALOGUE.contract("text_answer")
CARD = CATALOGUE.contract("cited_fields")
EXTRACT = CATALOGUE.contract("extract")
TRIAGE = CATALOGUE.contract("ticket_triage")
BRIEF = CATALOGUE.contract("brief")
SHOWN = [passage(1, "Every employee has 25 days of leave."), passage(2, "Parking is free for visitors.")]
PLAIN = {
    "answerable": {"type": "boolean"},
    "citations": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 5},
    "answer": {"type": "string"},
}


def made(properties, **roles):
    named = {"answer": "answer", **roles}
    body = {"type": "object", "properties": properties, "required": list(properties), "x-orchestrator": named}
    return Contract.parse("made", json.dumps(body))


CITED = made(PLAIN, citations="citations", answerable="answerable", refusal="The documents do not answer this.")
