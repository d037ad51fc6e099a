"""Reads the prompts folder: routes, prompts and contracts as frozen values; unknown keys and missing variables are refused."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from orchestrator.contract import Contract
from orchestrator.errors import SettingsError, UnknownNameError
from orchestrator.types import Action, Message, Role

PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
VARIABLES = frozenset({"passages", "question"})
CONTRACT_FILES = (".schema.json", ".markdown.json")  # answers in JSON, answers in Markdown
T = TypeVar("T")
_SECTION = re.compile(r"^# (system|user|assistant)[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation with placeholders. ``digest`` is the sha256 of the file, so an old answer can be rebuilt."""

    name: str
    turns: tuple[tuple[Role, str], ...]
    variables: tuple[str, ...]
    digest: str
    body: str

    def render(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """Messages with every placeholder replaced in one pass: what a value contains is never read as a template."""
        missing = set(self.variables) - values.keys()
        if missing:
            raise SettingsError(f"prompt {self.name!r} needs {sorted(missing)}; pass these variables")
        return tuple(
            Message(role, PLACEHOLDER.sub(lambda found: values[found.group(1)], text)) for role, text in self.turns
        )


@dataclass(frozen=True, slots=True)
class Route:
    """What one kind of query gets. A route with ``reply`` is answered without a model."""

    name: str
    description: str = ""
    action: str = "answer"
    prompt: str | None = None
    contract: str | None = None
    collection: str | None = None
    adapter: str | None = None
    k: int = 0
    excerpts: bool = False
    min_sufficiency: float = 0.0
    budget_tokens: int = 1600
    max_tokens: int = 200
    temperature: float = 0.0
    history_turns: int = 0
    needs_text: bool = False
    degrade: bool = False
    reply: str | None = None
    keywords: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything in the prompts folder."""

    routes: Mapping[str, Route]
    prompts: Mapping[str, Prompt]
    contracts: Mapping[str, Contract]
    fallback: str
    threshold: float = 0.0
    margin: float = 0.0
    digest: str = field(default="")

    def route(self, name: str) -> Route:
        """The route of that name. Raises UnknownNameError."""
        return _pick(self.routes, name, "route")

    def prompt(self, name: str) -> Prompt:
        """The prompt of that name. Raises UnknownNameError."""
        return _pick(self.prompts, name, "prompt")

    def contract(self, name: str) -> Contract:
        """The contract of that name. Raises UnknownNameError."""
        return _pick(self.contracts, name, "contract")


def load_catalogue(folder: Path) -> Catalogue:
    """Reads ``routes.toml``, ``*.md`` and ``contracts/*.{schema,markdown}.json``. Raises SettingsError that names file and key."""
    routes_file = folder / "routes.toml"
    if not routes_file.is_file():
        raise SettingsError(f"{routes_file} does not exist; set ORCHESTRATOR_PROMPTS_DIR to a folder with routes.toml")
    prompts = {path.stem: parse_prompt(path.stem, path.read_text("utf-8")) for path in sorted(folder.glob("*.md"))}
    contracts = _load_contracts(folder / "contracts")
    text = routes_file.read_text("utf-8")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"routes.toml: {error}") from error
    _refuse_unknown("routes.toml", table, {"router", "routes"})
    router = table.get("router", {})
    _refuse_unknown("routes.toml [router]", router, {"fallback", "threshold", "margin"})
    routes = {name: _parse_route(name, keys) for name, keys in table.get("routes", {}).items()}
    catalogue = Catalogue(
        routes=routes,
        prompts=prompts,
        contracts=contracts,
        fallback=router.get("fallback", ""),
        threshold=float(router.get("threshold", 0.0)),
        margin=float(router.get("margin", 0.0)),
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )
    _check_references(catalogue)
    return catalogue


def contract_name(file: Path) -> str | None:
    """The name that a contract's file gives it; None for a file of another kind."""
    return next((file.name.removesuffix(end) for end in CONTRACT_FILES if file.name.endswith(end)), None)


def _load_contracts(folder: Path) -> dict[str, Contract]:
    contracts: dict[str, Contract] = {}
    for path in sorted(folder.glob("*.json")):
        name = contract_name(path)
        if name is None:
            raise SettingsError(
                f"contracts/{path.name}: the name of a contract's file ends with one of {CONTRACT_FILES}"
            )
        if name in contracts:
            raise SettingsError(f"contracts/{path.name}: there is another contract {name!r}; give it another name")
        contracts[name] = Contract.parse(name, path.read_text("utf-8"))
    return contracts


def parse_prompt(name: str, body: str) -> Prompt:
    """Reads one prompt file: front matter with ``variables``, then ``# system`` and ``# user`` sections."""
    front, separator, rest = body.removeprefix("---\n").partition("\n---\n")
    if not body.startswith("---\n") or not separator:
        raise SettingsError(f"prompt {name!r} must begin with front matter between two lines of ---")
    try:
        head = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"prompt {name!r}: its front matter is not YAML: {error}") from error
    if not isinstance(head, dict) or not isinstance(head.get("variables", []), list):
        raise SettingsError(f"prompt {name!r}: its front matter must be `key: value` lines, variables a list")
    _refuse_unknown(f"prompt {name!r}", head, {"description", "variables"})
    variables = tuple(head.get("variables", ()))
    parts = _SECTION.split(rest)
    turns: tuple[tuple[Any, str], ...] = tuple(
        (role, text.strip()) for role, text in zip(parts[1::2], parts[2::2], strict=True)
    )
    used = {name for _, text in turns for name in PLACEHOLDER.findall(text)}
    if parts[0].strip():
        raise SettingsError(f"prompt {name!r}: text before the first # system or # user line would never be sent")
    if not turns or used != set(variables) or not used <= VARIABLES:
        raise SettingsError(
            f"prompt {name!r}: declared variables {sorted(variables)}, used {sorted(used)}, "
            f"known {sorted(VARIABLES)}; the three must agree, and a # system or # user section is needed"
        )
    return Prompt(name, turns, variables, hashlib.sha256(body.encode()).hexdigest(), body)


def _parse_route(name: str, keys: Mapping[str, Any]) -> Route:
    _refuse_unknown(f"routes.toml [routes.{name}]", keys, {f.name for f in fields(Route)} - {"name"})
    defaults = {f.name: f.default for f in fields(Route) if f.default is not MISSING}
    values: dict[str, Any] = {}
    for key, value in keys.items():
        kind = str if defaults[key] is None else type(defaults[key])
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = tuple(value)
        elif kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            wanted = {tuple: "a list of strings", int: "a whole number, 0 or more"}.get(kind, kind.__name__)
            raise SettingsError(f"routes.toml [routes.{name}] {key} must be {wanted}")
        values[key] = value
    if values.get("action", "answer") not in get_args(Action) or (values.get("reply") is None) != (
        values.get("action", "answer") == "answer"
    ):
        raise SettingsError(
            f"routes.toml [routes.{name}]: action must be one of {get_args(Action)}; clarify and refuse have a reply"
        )
    for pattern in values.get("patterns", ()):
        try:
            re.compile(pattern)
        except re.error as error:
            raise SettingsError(f"routes.toml [routes.{name}] pattern {pattern!r}: {error}") from error
    return Route(name=name, **values)


def _check_references(catalogue: Catalogue) -> None:
    if catalogue.fallback not in catalogue.routes:
        raise SettingsError(f"routes.toml [router] fallback {catalogue.fallback!r} is not one of its routes")
    for route in catalogue.routes.values():
        if route.reply is not None:
            continue
        if route.prompt not in catalogue.prompts or route.contract not in catalogue.contracts:
            raise SettingsError(
                f"routes.toml [routes.{route.name}] needs a reply, or a prompt of {sorted(catalogue.prompts)} "
                f"and a contract of {sorted(catalogue.contracts)}"
            )
        if route.k and not catalogue.contract(route.contract or "").refusal:
            raise SettingsError(
                f"routes.toml [routes.{route.name}] retrieves (k = {route.k}); contract {route.contract!r} needs a refusal "
                "text in x-orchestrator, for when nothing is found"
            )


def _refuse_unknown(where: str, keys: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(keys.keys() - known)
    if unknown:
        raise SettingsError(f"{where}: unknown keys {unknown}; known are {sorted(known)}")


def _pick(things: Mapping[str, T], name: str, kind: str) -> T:
    if name not in things:
        raise UnknownNameError(f"{kind} {name!r} does not exist; there are {sorted(things)}", param=kind)
    return things[name]
