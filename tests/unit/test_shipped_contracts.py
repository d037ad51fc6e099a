"""The contracts that ship: each has examples that keep it, citations that carry, and an adapter or a reason for none."""

import json

import pytest

from orchestrator.check import check_output
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.reveal import open_reveal
from orchestrator.testing import passage

PROMPTS = folder("prompts")
CATALOGUE = load_catalogue(PROMPTS)
WITH_EXAMPLES = ["brief", "cited_fields", "extract", "ticket_triage"]
EXAMPLES = [
    (name, json.loads(line))
    for name in WITH_EXAMPLES
    for line in (PROMPTS / "examples" / f"{name}.jsonl").read_text("utf-8").splitlines()
]


def test_every_contract_has_an_adapter_or_says_why_not():
    served = {route.contract for route in CATALOGUE.routes.values() if route.adapter}

    for name, contract in CATALOGUE.contracts.items():
        assert (name in served) != bool(contract.no_adapter), name


def test_every_file_of_examples_belongs_to_a_contract():
    assert sorted(path.stem for path in (PROMPTS / "examples").iterdir()) == WITH_EXAMPLES


@pytest.mark.parametrize("name", ["card", "brief", "triage", "extract"])
def test_the_routes_of_the_other_forms_are_reached_by_name_only(name):
    route = CATALOGUE.route(name)

    assert (route.keywords, route.patterns, route.examples) == ((), (), ())


@pytest.mark.parametrize(("name", "row"), EXAMPLES, ids=[row["id"] for _, row in EXAMPLES])
def test_an_example_keeps_its_contract_and_needs_no_correction(name, row):
    contract = CATALOGUE.contract(name)
    shown = [passage(at, each["text"], title=each["title"]) for at, each in enumerate(row["passages"], 1)]
    written = row["output"] if isinstance(row["output"], str) else contract.dump(row["output"])

    checked = check_output(contract, written, shown, row["input"])

    assert contract.dump(contract.parse_output(written)) == written
    assert checked.flags == ()
    assert "[no source]" not in checked.text
    assert bool(checked.citations) == (bool(shown) and row["kind"] != "unanswerable")
    assert contract.parse_output(contract.dump(checked.data)) == checked.data


@pytest.mark.parametrize(("name", "row"), EXAMPLES, ids=[row["id"] for _, row in EXAMPLES])
def test_an_example_is_streamed_to_its_end(name, row):
    contract = CATALOGUE.contract(name)
    shown = [passage(at, each["text"], title=each["title"]) for at, each in enumerate(row["passages"], 1)]
    written = row["output"] if isinstance(row["output"], str) else contract.dump(row["output"])
    reveal = open_reveal(contract, shown, row["input"])

    said = "".join(reveal.feed(letter) for letter in written + "\n")

    text = check_output(contract, written, shown, row["input"]).text
    assert said == ("" if text == contract.refusal else text)
