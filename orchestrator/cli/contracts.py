"""Commands for contracts: ``contracts list|show|check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.cli.output import Output, command, literal
from orchestrator.contract import Contract
from orchestrator.decoder import Trial, try_contract
from orchestrator.errors import ContractError, InputError, SettingsError
from orchestrator.launch import weights
from orchestrator.prompts import Catalogue, contract_name, load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.vet import MAX_CHARS


@click.group()
def contracts() -> None:
    """What answers look like: the contracts of the prompts folder."""


@contracts.command("list")
@command
async def contracts_list(output: Output, settings: Settings) -> None:
    """List contracts with their routes, and their adapter or why they have none."""
    catalogue = load_catalogue(_prompts(settings))
    rows = [_fields(contract, catalogue) for contract in catalogue.contracts.values()]

    def table(console: Console) -> None:
        grid = Table("contract", "form", "digest", "cites", "routes", "adapter")
        for row in rows:
            adapter = ", ".join(row["adapters"]) or (f"none: {row['no_adapter']}" if row["no_adapter"] else "none")
            cites = ", ".join(place or "the answer" for place in row["cites"])
            grid.add_row(
                *literal(row["name"], row["form"], row["digest"][:12], cites, ", ".join(row["routes"]), adapter)
            )
        console.print(grid)

    output.emit({"contracts": rows}, table)


@contracts.command("show")
@click.argument("name")
@command
async def contracts_show(output: Output, settings: Settings, name: str) -> None:
    """Print a contract's file, and its first example as the model writes it and as a person reads it."""
    source = _prompts(settings)
    catalogue = load_catalogue(source)
    contract = catalogue.contract(name)
    examples = _examples(contract, source / "examples" / f"{name}.jsonl")
    first = examples[0] if examples else None
    shown = first and {"input": first[0], "output": first[1], "text": contract.render(contract.parse_output(first[1]))}

    def text(console: Console) -> None:
        console.print(contract.body, markup=False)
        if shown:
            for title, words in shown.items():
                console.print(f"── {title} of its first example", style="dim")
                console.print(words, markup=False)

    output.emit({**_fields(contract, catalogue), "body": contract.body, "example": shown}, text)


@contracts.command("check")
@click.argument("contract")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the model's tokenizer; that of the embedded base model when unset.",
)
@command
async def contracts_check(output: Output, settings: Settings, contract: str, tokenizer: Path | None) -> None:
    """Try CONTRACT, a file or a name, on the decoder in use: accepted, refused with the keyword, or too slow."""
    try:
        found, examples = _read(contract, _prompts(settings))
    except (SettingsError, ContractError) as error:
        _verdict(output, {"verdict": "refused", "why": error.message, "decoder": None})
        return
    tokenizer = tokenizer or _embedded(settings)
    trial: Trial = await try_contract(found, [text for _, text in examples], tokenizer)
    notes = [] if tokenizer or trial.decoder is None else ["compiled for single bytes; name the model's --tokenizer"]
    fields = {name: getattr(trial, name) for name in Trial.__dataclass_fields__}
    _verdict(output, {"contract": found.name, "digest": found.digest, "form": found.form, **fields, "notes": notes})


def _verdict(output: Output, fields: dict[str, Any]) -> None:
    words = [fields["verdict"].replace("_", " ")]
    if fields.get("compile_ms") is not None:
        words.append(f"{fields['decoder']} compiles it in {fields['compile_ms']:.0f} ms, {fields['memory_kb']} kB")
    if fields.get("examples"):
        words.append(f"{fields['examples']} examples keep it")
    words += [part for part in (fields["why"], *fields.get("notes", ())) if part]
    output.emit(fields, f"{words[0]}: {'; '.join(words[1:])}" if words[1:] else words[0])
    if fields["verdict"] != "accepted":
        sys.exit(1)


def _read(named: str, source: Path) -> tuple[Contract, list[tuple[str, str]]]:
    """The contract of a file, or of a name in the prompts folder, and its examples. Raises SettingsError, ContractError."""
    file = Path(named)
    if not file.is_file():
        found = next((path for path in (source / "contracts").glob("*.json") if contract_name(path) == named), None)
        if found is None:
            raise InputError(f"{named} is neither a file nor a contract in {source / 'contracts'}")
        file = found
    if file.stat().st_size > 4 * MAX_CHARS:
        raise SettingsError(f"{file.name} is longer than {MAX_CHARS} characters")
    name = contract_name(file) or file.stem
    try:
        contract = Contract.parse(name, file.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file.name} is not UTF-8: {error}") from error
    return contract, _examples(contract, file.parent.parent / "examples" / f"{name}.jsonl")


def _examples(contract: Contract, file: Path) -> list[tuple[str, str]]:
    """Input and output of the examples beside a contract. Raises ContractError for one that breaks it."""
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            output = row["output"] if isinstance(row["output"], str) else contract.dump(row["output"])
            contract.parse_output(output)
        except (ValueError, KeyError, TypeError, ContractError) as error:
            raise ContractError(f"examples/{file.name} line {number}: {error}") from error
        found.append((str(row.get("input", "")), output))
    return found


def _fields(contract: Contract, catalogue: Catalogue) -> dict[str, Any]:
    routes = [route for route in catalogue.routes.values() if route.contract == contract.name]
    return {
        "name": contract.name,
        "form": contract.form,
        "digest": contract.digest,
        "cites": [".".join(place.path) for place in contract.places],
        "refusal": contract.refusal,
        "routes": [route.name for route in routes],
        "adapters": sorted({route.adapter for route in routes if route.adapter}),
        "no_adapter": contract.no_adapter,
    }


def _prompts(settings: Settings) -> Path:
    return settings.prompts_dir or folder("prompts")


def _embedded(settings: Settings) -> Path | None:
    """The base model's tokenizer when the engine is ours and its weights are unpacked."""
    target = settings.models / weights.SMOLLM2.folder
    return target if settings.engine_url is None and (target / "tokenizer.json").is_file() else None
