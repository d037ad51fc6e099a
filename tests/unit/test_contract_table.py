"""The table of benchmarks/contract.py: how it reads, where it is written, when it is skipped."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from orchestrator.behaviour.examples import Branch
from orchestrator.behaviour.measure import Case, Configuration, Rate, Report
from orchestrator.testing import passage


@pytest.fixture
def contract() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "contract.py"
    spec = importlib.util.spec_from_file_location("bench_contract", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def result(contract: ModuleType) -> dict[str, Any]:
    cases = [Case((passage(1, "x"),), Branch("q", "?", "d", "answerable", (1,), ("x",)))]
    reports = [report(f"row {number}", 0.1 * number) for number in range(5)]
    described: dict[str, Any] = contract.describe(reports, cases, "cited-answer--0123456789ab")
    return described | {"seconds_per_answer": {each.configuration.name: 0.25 for each in reports}}


def report(name: str, value: float) -> Report:
    rate = Rate(value, value / 2, min(1.0, value * 2), 100)
    return Report(Configuration(name, "m"), rate, rate, rate, rate, rate, rate, Rate(0, 0, 0, 0), 400.0, 20.0)


def test_the_table_has_a_row_for_each_configuration_and_names_machine_and_date(
    contract: ModuleType, result: dict[str, Any]
) -> None:
    text = contract.table(result)

    assert [f"| row {number} |" in text for number in range(5)] == [True] * 5
    assert "30.0% (15–60)" in text
    assert text.count("| 100 | 0.25 |") == 5
    assert result["date"] in text
    assert result["machine"] in text
    assert "failed: " in text  # 30 % valid is below the gate


def test_the_table_replaces_the_one_before_and_nothing_else(
    contract: ModuleType, result: dict[str, Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{contract.BEGIN}\nstale\n{contract.END}\n\nAfter.\n")

    contract.write(page, contract.table(result))
    once = page.read_text()
    contract.write(page, contract.table(result))

    assert page.read_text() == once
    assert once.startswith("# Title\n\n<!--")
    assert once.endswith("-->\n\nAfter.\n")
    assert "stale" not in once


def test_measurements_are_recorded_in_the_measured_adapter_only(
    contract: ModuleType, result: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"digest": "0123456789abcdef", "measurements": {}}))

    contract.record(tmp_path, result)

    assert json.loads((tmp_path / "manifest.json").read_text())["measurements"]["questions"] == 1
    (tmp_path / "manifest.json").write_text(json.dumps({"digest": "f" * 64}))
    with pytest.raises(SystemExit, match="not the adapter"):
        contract.record(tmp_path, result)


def test_without_data_it_is_skipped_with_the_reason(
    contract: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["contract.py", "--data", str(tmp_path)])

    assert contract.main() == 0
    assert "skipped" in capsys.readouterr().err
