"""The decoder itself: xgrammar, in a child of bounded time and memory, takes what ships and is never hung by what does not."""

import json

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.contract import Contract
from orchestrator.decoder import try_contract
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder

pytest.importorskip("xgrammar")
CATALOGUE = load_catalogue(folder("prompts"))


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Runs ``contracts check`` with the shipped base model's tokenizer out of reach."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(main, ["contracts", "check", *arguments])


def wide(count):
    """A schema within the rules, with as much to compile as they allow."""
    part = {"type": "string", "pattern": "^" + "[^a]{1,10}" * 6 + "$"}
    properties = {f"f{at}": part for at in range(count)}
    body = {"type": "object", "properties": properties, "required": list(properties)}
    return Contract.parse("wide", json.dumps({**body, "x-orchestrator": {"answer": "f0"}}))


async def test_the_decoder_writes_every_report_that_the_reader_takes():
    contract = CATALOGUE.contract("brief")
    reports = [
        contract.refusal,
        '## Summary\nx [1]\n\n## Findings\n- 1. y, "z" \\ é 😀 [2] [5]\n- y [1]\n\n## Open questions\n- Why?',
    ]

    trial = await try_contract(contract, reports)

    assert all(contract.parse_output(report) for report in reports)
    assert (trial.verdict, trial.why, trial.examples) == ("accepted", "", 2)
    assert trial.decoder.startswith("xgrammar ")


async def test_what_the_decoder_would_never_write_is_said():
    trial = await try_contract(CATALOGUE.contract("cited_fields"), ['{"answerable":true}'])

    assert (trial.verdict, "example 1" in trial.why) == ("refused", True)


async def test_a_contract_that_takes_too_long_is_stopped():
    trial = await try_contract(wide(4), cpu_s=-1)

    assert (trial.verdict, trial.compile_ms) == ("too_slow", None)


async def test_a_contract_that_takes_too_much_memory_is_stopped():
    trial = await try_contract(wide(4), memory_bytes=1 << 12)

    assert trial.verdict in ("too_slow", "refused")
    assert trial.compile_ms is None


def test_the_command_accepts_what_ships(check):
    result = check("ticket_triage", "--json")

    said = json.loads(result.stdout)
    assert (result.exit_code, said["verdict"], said["examples"]) == (0, "accepted", 7)
    assert said["notes"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "(a+)+b"}}}, "'pattern' at /properties/a"),
        ({"properties": {"a": {"oneOf": []}}}, "'oneOf' at /properties/a"),
        ("no JSON", "neither"),
    ],
)
def test_the_command_refuses_with_the_keyword_and_its_place(check, tmp_path, body, said):
    whole = {"type": "object", "required": ["a"], "x-orchestrator": {"answer": "a"}}
    file = tmp_path / "mine.schema.json"
    file.write_text(body if isinstance(body, str) else json.dumps(whole | body))

    result = check(str(file), "--json")

    found = json.loads(result.stdout)
    assert (result.exit_code, found["verdict"]) == (1, "refused")
    assert said in found["why"]


def test_an_example_that_breaks_its_contract_is_named(check, tmp_path):
    (tmp_path / "contracts").mkdir()
    (tmp_path / "examples").mkdir()
    file = tmp_path / "contracts" / "brief.markdown.json"
    file.write_text(CATALOGUE.contract("brief").body)
    (tmp_path / "examples" / "brief.jsonl").write_text('{"input": "x", "output": "## Summary"}\n')

    result = check(str(file))

    assert result.exit_code == 1
    assert "brief.jsonl line 1" in result.stdout


def test_neither_a_file_nor_a_name_is_an_error(check):
    result = check("nothing")

    assert result.exit_code == 1
    assert "neither a file nor a contract" in result.output
