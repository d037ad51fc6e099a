"""Shows that a few hundred examples of a new format make an adapter that keeps it: rows in, rates with intervals out.

``python benchmarks/new_format.py --base MODELFOLDER --out FOLDER`` trains one adapter per format by the same code as
``orchestrator train --data rows.jsonl`` with its defaults, and lets it write greedily, unconstrained, for inputs that no
training row had. The two formats of ``tests/formats.py`` were never tuned on; ``--tuning`` runs the two that defaults were
chosen with, ``--epochs``, ``--rank`` and ``--rate`` try others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator.behaviour.defaults import choose_fit
from orchestrator.behaviour.fit import Fit, Progress, forbid_vision, open_base
from orchestrator.behaviour.held_out import contract_fault, generate
from orchestrator.behaviour.rows import parse_row, to_groups
from orchestrator.behaviour.tokens import Renderer
from orchestrator.behaviour.train import TrainRequest, train_adapter
from orchestrator.intervals import wilson
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.tokens import LocalTokens
from tests.formats import UNSEEN, Format, listed, record, text

_NAMES = [
    "Ada",
    "Boris",
    "Carla",
    "Dieter",
    "Elif",
    "Fatou",
    "Goran",
    "Helga",
    "Ivo",
    "Jana",
    "Karim",
    "Lena",
    "Milo",
    "Nora",
    "Otto",
    "Pilar",
]
_TASKS = [
    "order chairs",
    "call the landlord",
    "test the backup",
    "draft the letter",
    "book the train",
    "count the stock",
]
_TOPICS = ["the move", "the budget", "the summer party", "the new till", "the audit", "the roof"]
_GOODS = ["flour", "rye", "yeast", "salt", "sugar", "butter", "oats", "seeds"]
_TOWNS = ["Lund", "Porto", "Graz", "Cork", "Bergen", "Toledo", "Varna", "Split"]


def _minutes(chance: random.Random) -> dict[str, Any]:
    there, topic = chance.sample(_NAMES, chance.randint(2, 4)), chance.choice(_TOPICS)
    tasks = [
        (chance.choice(there), task, f"{chance.randint(1, 28)} May")
        for task in chance.sample(_TASKS, chance.randint(1, 3))
    ]
    told = " ".join(f"{who} is to {task} by {due}." for who, task, due in tasks)
    output = {
        "topic": topic,
        "present": there,
        "tasks": [{"who": who, "what": task, "due": due} for who, task, due in tasks],
        "summary": f"{len(tasks)} tasks about {topic}",
    }
    return {"input": f"{', '.join(there)} met about {topic}. {told}", "output": output, "kind": topic}


def _order(chance: random.Random) -> dict[str, Any]:
    who, town, soon = chance.choice(_NAMES), chance.choice(_TOWNS), chance.random() < 0.5
    goods = [
        (good, chance.randint(1, 90), chance.choice(["kg", "bags"]))
        for good in chance.sample(_GOODS, chance.randint(1, 4))
    ]
    told = ", ".join(f"{count} {unit} of {good}" for good, count, unit in goods)
    output = {
        "customer": {"name": who, "town": town},
        "items": [{"good": good, "count": count, "unit": unit} for good, count, unit in goods],
        "urgent": soon,
        "reply": f"{len(goods)} items for {who} in {town}",
    }
    return {
        "input": f"{who} from {town} here, please send {told}{' today' if soon else ''}.",
        "output": output,
        "kind": str(soon),
    }


_PROMPT = (
    "---\ndescription: X.\nvariables: [question]\n---\n# system\nWrite JSON: {fields}.\n\n# user\n{{{{question}}}}\n"
)
TUNING = (
    Format(
        "minutes",
        record(
            topic=text(),
            present=listed(text(30), 1, 6),
            tasks=listed(
                record(who=text(30), what=text(80), due={"type": "string", "pattern": r"^\d{1,2} May$"}), 1, 5
            ),
            summary=text(),
        )
        | {"x-orchestrator": {"answer": "summary"}},
        _PROMPT.replace("{fields}", "topic, present, tasks, summary").replace("{{{{", "{{").replace("}}}}", "}}"),
        _minutes,
    ),
    Format(
        "order",
        record(
            customer=record(name=text(30), town=text(30)),
            items=listed(
                record(
                    good=text(30),
                    count={"type": "integer", "minimum": 1},
                    unit={"type": "string", "enum": ["kg", "bags"]},
                ),
                1,
                6,
            ),
            urgent={"type": "boolean"},
            reply=text(),
        )
        | {"x-orchestrator": {"answer": "reply"}},
        _PROMPT.replace("{fields}", "customer, items, urgent, reply").replace("{{{{", "{{").replace("}}}}", "}}"),
        _order,
    ),
)


async def train_format(form: Format, arguments: argparse.Namespace, fit: Fit | None) -> dict[str, Any]:
    """Trains on so many rows and judges what the adapter writes for as many other inputs as asked."""
    where = arguments.out / form.name
    catalogue = load_catalogue(form.write_prompts(where / "prompts"))
    rows = form.rows(arguments.rows + arguments.inputs, seed=arguments.seed)
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[: arguments.rows]))
    request = TrainRequest(
        name=form.name.replace("_", "-"),
        data=where / "rows.jsonl",
        collection="",
        base=arguments.base,
        out=where / "adapter",
        prompt=form.name,
        contract=form.name,
        threads=arguments.threads,
        fit=fit,
    )
    began = time.monotonic()
    folder = await train_adapter(request, catalogue=catalogue, progress=_show)
    wall = time.monotonic() - began
    manifest = json.loads((folder / "manifest.json").read_text())
    judged = judge(form, catalogue, request, folder, rows[arguments.rows :])
    return {
        "format": form.name,
        "rows": arguments.rows,
        "fit": manifest["fit"],
        "training": manifest["training"],
        "wall_s": round(wall, 1),
        "held_out_at_training": manifest["held_out"],
        **judged,
    }


def judge(
    form: Format, catalogue: Catalogue, request: TrainRequest, folder: Path, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Greedy, unconstrained, with transformers: contract kept, and the same object as the row's."""
    forbid_vision()
    from peft import PeftModel

    model, tokenizer = open_base(request.base, request.threads)
    tuned = PeftModel.from_pretrained(model, folder)
    contract = catalogue.contract(form.name)
    count = LocalTokens(request.base).count
    renderer = Renderer(tokenizer, catalogue.prompt(form.name), contract, count, request.budget_tokens)
    groups = to_groups([parse_row(row, number) for number, row in enumerate(rows, 1)], contract, "test")
    rendered = [each for group in groups for each in renderer.group(group)]
    written = generate(tuned, tokenizer, [each.prompt for each in rendered], 400)
    faults = [(text, fault) for text in written if (fault := contract_fault(text, contract))]
    wanted = [branch.output for group in groups for branch in group.branches]
    kept = len(written) - len(faults)
    return {
        "inputs": len(written),
        "contract_kept": kept,
        "interval": wilson(kept, len(written)),
        "exactly_right": sum(one == other for one, other in zip(written, wanted, strict=True)),
        "faults": faults[:3],
    }


def _show(progress: Progress) -> None:
    if progress.done % 25 == 0:
        print(progress, file=sys.stderr)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--format")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--rate", type=float)
    arguments = parser.parse_args()
    fit = None
    if arguments.epochs or arguments.rank or arguments.rate:
        fit = choose_fit(arguments.rows, arguments.rows // 4, epochs=arguments.epochs, rank=arguments.rank)
        fit = replace(fit, learning_rate=arguments.rate or fit.learning_rate)
    forms = [form for form in (TUNING if arguments.tuning else UNSEEN) if arguments.format in (None, form.name)]
    results = []
    for form in forms:
        results.append(asyncio.run(train_format(form, arguments, fit)))
        print(json.dumps(results[-1]), file=sys.stderr)  # a run that is cut off later has said this much
    print(json.dumps({"machine": platform.processor() or platform.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
