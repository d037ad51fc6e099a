"""Lint: every fault of rows is found with its row numbers, and nothing is found where nothing is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.behaviour.lint import Finding, LintReport, Rule, lint_file, personal_data
from orchestrator.errors import TrainingError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder

CATALOGUE = load_catalogue(folder("prompts"))
CITED = CATALOGUE.contract("cited_answer")
TOWNS = ("Lisbon", "Porto", "Bergen", "Malmo", "Ghent", "Krakow", "Varna", "Izmir", "Cadiz", "Turin", "Basel", "Linz")


def words(text: str) -> int:
    return len(text.split())


RULE = Rule(CITED, CATALOGUE.prompt("grounded"), words, budget_tokens=200)


def cited(answer: str, evidence: str, numbers: tuple[int, ...] = (1,)) -> dict[str, Any]:
    whole = {"answerable": bool(answer), "citations": list(numbers), "evidence": evidence, "answer": answer}
    return {name: whole[name] for name in CITED.schema["properties"]}


def good(number: int) -> dict[str, Any]:
    town = TOWNS[number % 12]
    told = f"{town} has {number * 731} lamps and a {'green' if number % 2 else 'blue'} tram number {number * 977}."
    return {
        "id": f"r{number}",
        "input": f"How many lamps has {town}, and tram {number * 977}?",
        "passages": [{"text": told, "title": town, "id": f"d{number}"}],
        "output": cited(str(number * 731), told),
        "kind": "answer",
    }


def lint(where: Path, *rows: Any, against: list[Any] | None = None) -> LintReport:
    file, other = where / "rows.jsonl", where / "other.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    other.write_text("\n".join(json.dumps(row) for row in against or []))
    return lint_file(file, RULE, other if against else None)


def found(report: LintReport) -> dict[str, tuple[int, ...]]:
    return {finding.check: finding.rows for finding in report.findings}


def test_good_rows_are_clean(tmp_path: Path) -> None:
    report = lint(tmp_path, *(good(n) for n in range(1, 13)))

    assert report.findings == ()
    assert report.is_clean
    assert (report.rows, report.kinds, report.origins) == (12, {"answer": 12}, {"file": 12})


def test_duplicates_are_found(tmp_path: Path) -> None:
    report = lint(
        tmp_path,
        good(1),
        good(2),
        {**good(1), "id": "again"},
        {**good(2), "id": "near", "input": good(2)["input"] + "!"},
    )

    assert found(report) == {"duplicate": (3,), "near_duplicate": (2, 4)}
    assert report.is_clean


def test_a_contradiction_names_both_rows(tmp_path: Path) -> None:
    other = {**good(1), "id": "other", "output": cited("", "", ())}

    report = lint(tmp_path, good(1), good(2), other)

    assert found(report) == {"contradiction": (1, 3)}
    assert not report.is_clean


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"output": {"answerable": True}}, "contract"),
        ({"output": None}, "contract"),
        ({"output": cited("731", good(1)["passages"][0]["text"], (2,))}, "citation_dropped"),
        ({"output": cited("731", good(1)["passages"][0]["text"], ())}, "no_source"),
        ({"output": cited("", "", (1,))}, "citation_dropped"),
        ({"output": cited("731 crimson elephants danced in Paris", good(1)["passages"][0]["text"])}, "unsupported"),
        ({"input": "word " * 300}, "length"),
        ({"passages": [*good(1)["passages"], {"text": "word " * 300}]}, "length"),
        ({"input": "Ask ann@example.org"}, "personal_data"),
    ],
)
def test_each_fault_is_found_in_its_row(tmp_path: Path, changes: dict[str, Any], check: str) -> None:
    report = lint(tmp_path, good(2), {**good(1), **changes}, good(3))

    assert found(report)[check] == (2,)


@pytest.mark.skipif(CITED.evidence is None, reason="the shipped contract has no evidence")
def test_evidence_must_be_verbatim(tmp_path: Path) -> None:
    report = lint(tmp_path, {**good(1), "output": cited("731", "Lisbon has many lamps.")})

    assert found(report)["evidence_not_verbatim"] == (1,)


def test_lines_that_are_no_rows_are_named(tmp_path: Path) -> None:
    report = lint(tmp_path, good(1), "{", '{"id": 3}')

    assert [finding.rows for finding in report.findings if finding.check == "unreadable"] == [(2,), (3,)]
    assert not report.is_clean


def test_a_rare_kind_and_a_constant_output_are_told(tmp_path: Path) -> None:
    refusals = [{**good(n), "output": cited("", "", ()), "kind": "refusal"} for n in range(1, 40)]

    report = lint(tmp_path, *refusals, {**good(40), "kind": "odd"})

    kinds = [finding.rows for finding in report.findings if finding.check == "kinds"]
    assert kinds == [(40,), tuple(range(1, 40))]
    assert report.kinds == {"refusal": 39, "odd": 1}


def test_a_leak_into_another_file_is_found(tmp_path: Path) -> None:
    copy = {**good(2), "passages": [{**good(2)["passages"][0], "id": "renamed"}]}

    report = lint(
        tmp_path, good(1), good(2), good(3), against=[copy, {**good(9), "passages": [{"text": "else", "id": "d3"}]}]
    )

    leaks = [finding for finding in report.findings if finding.check == "leak"]
    assert [finding.rows for finding in leaks] == [(3,), (2,)]
    assert isinstance(leaks[0], Finding)
    assert not report.is_clean


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot read"):
        lint_file(tmp_path / "none.jsonl", RULE)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("write to ann.lee+x@mail.example.org now", ["an e-mail address"]),
        ("IBAN DE89 3704 0044 0532 0130 00", ["an IBAN"]),
        ("GB82WEST12345698765432", ["an IBAN"]),
        ("card 4111 1111 1111 1111", ["a card number"]),
        ("5500-0055-5555-5559", ["a card number"]),
        ("call +49 30 1234 5678", ["a phone number"]),
        ("call (030) 1234 567", ["a phone number"]),
        ("+4930123456789", ["a phone number"]),
        ("GB82WEST12345698765431", []),
        ("on 2024-03-01 at 12:30", []),
        ("sha 0000000000000000", []),
        ("version 3.14.15 of 1911-1915, page 12-14", []),
        ("6,022 of 1,234,567", []),
    ],
)
def test_personal_data_is_told_by_form_and_checksum(text: str, what: list[str]) -> None:
    assert personal_data(text) == what
