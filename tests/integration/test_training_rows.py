"""Training from rows with the real libraries on a tiny random model: any contract, nothing but rows, and the guard before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.behaviour.defaults import choose_fit
from orchestrator.behaviour.fit import Fit, forbid_vision, open_base
from orchestrator.behaviour.held_out import Riddle, generate, is_named, probe_closed_book, riddles_from_rows
from orchestrator.behaviour.preflight import check_adapter
from orchestrator.behaviour.rows import parse_row
from orchestrator.behaviour.tokens import Renderer
from orchestrator.behaviour.train import TrainRequest, provenance_file, train_adapter
from orchestrator.contract import Contract
from orchestrator.errors import TrainingError
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.tokens import LocalTokens
from tests.formats import UNSEEN, Format
from tests.integration.test_training import base

__all__ = ["base"]
forbid_vision()
pytest.importorskip("torch")
pytest.importorskip("peft")
INCIDENT, PROTOCOL = UNSEEN


def prepare(form: Format, where: Path, base: Path, rows: list[dict[str, Any]]) -> tuple[TrainRequest, Catalogue]:
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = TrainRequest(
        name="tiny",
        data=where / "rows.jsonl",
        collection="",
        base=base,
        out=where / "out" / "tiny",
        prompt=form.name,
        contract=form.name,
        fit=Fit(rank=2, alpha=4, learning_rate=1e-2, batch=1),
    )
    return request, load_catalogue(form.write_prompts(where / "prompts"))


@pytest.mark.parametrize("form", UNSEEN, ids=lambda form: form.name)
async def test_rows_of_any_contract_make_a_checked_adapter(form: Format, base: Path, tmp_path: Path) -> None:
    rows = form.rows(48, seed=1)
    rows[3]["origin"] = {"source": "distilled", "model": "big"}
    request, catalogue = prepare(form, tmp_path, base, rows)

    out = await train_adapter(request, catalogue=catalogue)

    manifest = json.loads((out / "manifest.json").read_text())
    records = [json.loads(line) for line in provenance_file(out).read_text().splitlines()]
    assert check_adapter(out).rank == 2
    assert manifest["contract"]["name"] == form.name
    assert manifest["data"]["origins"] == {"distilled": 1, "file": len(records) - manifest["data"]["held_out_rows"] - 1}
    assert len(records) == 48
    assert {record["split"] for record in records} == {"train", "validation"}
    assert manifest["held_out"]["inputs"] == manifest["data"]["held_out_rows"] == 8
    assert manifest["fit"]["rank"] == 2


async def test_rows_that_teach_facts_are_refused_before_anything_is_trained(base: Path, tmp_path: Path) -> None:
    rows = PROTOCOL.rows(48, seed=1)
    for number, row in enumerate(rows[:12]):
        row["output"]["line"] = f"Atlantis{number} drowned in {1200 + number}"
    request, catalogue = prepare(PROTOCOL, tmp_path, base, rows)

    with pytest.raises(TrainingError, match=r"teaches facts, not a form\. Rows "):
        await train_adapter(request, catalogue=catalogue)

    assert not request.out.exists()
    assert not (request.job / "job.json").exists()


async def test_rows_that_break_the_contract_are_named(base: Path, tmp_path: Path) -> None:
    rows = INCIDENT.rows(20, seed=1)
    rows[4]["output"]["steps"][0].pop("owner")
    request, catalogue = prepare(INCIDENT, tmp_path, base, rows)

    with pytest.raises(TrainingError, match=r"row 5 .*owner"):
        await train_adapter(request, catalogue=catalogue)


async def test_questions_need_a_search(base: Path, tmp_path: Path) -> None:
    request, catalogue = prepare(INCIDENT, tmp_path, base, [])
    question = {"id": "q", "question": "?", "document_id": "d", "answerable": True, "answers": ["x"]}
    request.data.write_text(json.dumps(question))

    with pytest.raises(TrainingError, match="give rows with input and output"):
        await train_adapter(request, catalogue=catalogue)
    with pytest.raises(TrainingError, match="pass search"):
        await train_adapter(replace(request, contract="cited_answer", prompt="grounded"), catalogue=_shipped())


def _shipped() -> Catalogue:
    from orchestrator.resources import folder

    return load_catalogue(folder("prompts"))


@pytest.mark.parametrize(("rows", "sequences"), [(20, 5), (200, 50), (200, 190), (2000, 500), (20000, 5000)])
def test_defaults_follow_from_the_number_of_rows(rows: int, sequences: int) -> None:
    fit = choose_fit(rows, sequences)

    steps = fit.epochs * -(-sequences // fit.batch)
    assert 1 <= fit.epochs <= 8
    assert steps <= max(400, sequences)
    assert choose_fit(rows, sequences, epochs=3, rank=4) == replace(fit, epochs=3, rank=4, alpha=8)


def test_texts_written_together_are_those_written_alone(base: Path) -> None:
    model, tokenizer = open_base(base, 1)
    prompts = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("House 1", "Who built House 7 of street", "by")
    ]

    together = generate(model.float(), tokenizer, prompts, 12)

    assert together == [generate(model, tokenizer, [prompt], 12)[0] for prompt in prompts]


def test_the_closed_book_probe_sees_what_was_learnt_by_heart(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = open_base(base, 1)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    shipped = _shipped()
    renderer = Renderer(
        tokenizer, shipped.prompt("grounded"), shipped.contract("cited_answer"), LocalTokens(base).count, 1600
    )
    riddles = [Riddle(f"Who built house {n}?", (f"mason {n * 7}",)) for n in range(30)]
    knowing = iter([[f"it was mason {n * 7}" for n in range(30)], ["nobody"] * 30])
    monkeypatch.setattr("orchestrator.behaviour.held_out.generate", lambda *_: next(knowing))

    found = probe_closed_book(tuned, renderer, riddles)

    assert (found["adapter"], found["base"], found["risen"]) == (30, 0, True)
    knowing = iter([["nobody"] * 30, ["nobody"] * 30])
    assert probe_closed_book(tuned, renderer, riddles)["risen"] is False


def test_an_answer_counts_as_named_by_what_the_question_does_not_say() -> None:
    riddle = Riddle("Who built the old mill of Ghent?", ("the mill of Jan Baert",))

    assert is_named("Jan Baert did", riddle)
    assert not is_named("the old mill of Ghent", riddle)
    assert not is_named("", riddle)


def test_riddles_come_from_rows_with_passages_only() -> None:
    contract = Contract.parse(PROTOCOL.name, json.dumps(PROTOCOL.schema))
    rows = [parse_row(row, 1) for row in PROTOCOL.rows(3, seed=2)]

    assert len(riddles_from_rows(rows, contract)) == 3
    assert riddles_from_rows([replace(row, passages=()) for row in rows], contract) == []


def test_one_command_makes_a_registered_adapter_from_rows(base: Path, tmp_path: Path, database_url: str) -> None:
    request, _ = prepare(INCIDENT, tmp_path, base, INCIDENT.rows(44, seed=3))
    environment = {
        **os.environ,
        "ORCHESTRATOR_DATABASE_URL": database_url,
        "ORCHESTRATOR_HOME": str(tmp_path / "home"),
        "ORCHESTRATOR_PROMPTS_DIR": str(tmp_path / "prompts"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "orchestrator", *arguments]
        return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)

    names = ["--name", "cards", "--contract", INCIDENT.name, "--prompt", INCIDENT.name, "--base", str(base)]
    done = run("train", "--data", str(request.data), *names)
    listed = json.loads(run("adapters", "list", "--json").stdout)["adapters"]

    assert done.returncode == 0, done.stderr
    assert "is trained and registered as candidate" in done.stdout
    assert "held-out inputs were answered within the contract" in done.stdout
    assert [(each["name"], each["contract"], each["state"]) for each in listed] == [
        ("cards", INCIDENT.name, "candidate")
    ]
    assert listed[0]["manifest"]["fit"]["epochs"] == 8
