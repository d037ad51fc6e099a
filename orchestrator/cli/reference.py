"""``orchestrator reference``: prints docs/reference.md from the code, so that the page cannot say anything else."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal

import click

from orchestrator import errors
from orchestrator.contract import Contract
from orchestrator.knowledge.sources.kinds import MEDIA_TYPES
from orchestrator.prompts import VARIABLES, Route
from orchestrator.report import Section
from orchestrator.settings import PREFIX, Settings, variables

REMEDIES = {
    "OrchestratorError": "A mistake of ours. Report it with the log of the server.",
    "SettingsError": "Mend the variable or the file that the message names.",
    "MissingExtraError": "Run the `pip install` that the message names.",
    "InputError": "Change the input that the message names.",
    "OtherSpaceError": "Set ORCHESTRATOR_EMBEDDER to the embedder of the collection, or ORCHESTRATOR_NEXT_EMBEDDER.",
    "ConflictError": "Take another key, or send the request again as it was.",
    "UnknownNameError": "Take one of the names that the message lists.",
    "TooLargeError": "Send less, or raise the limit that the message names.",
    "LoadError": "Mend or leave out the file that is named; the others are indexed.",
    "ContractError": "Ask again; if it stays, raise `max_tokens` of the route or train the adapter on more examples.",
    "DatabaseError": "`orchestrator doctor`, then `orchestrator up`, or mend `ORCHESTRATOR_DATABASE_URL`.",
    "StorageFullError": "Free space on the disk of PostgreSQL, then run the same command again.",
    "MigrationError": "Install the version of this package that the database belongs to, or put the edited file back.",
    "EngineError": "`orchestrator doctor`; the log of the model server says more.",
    "EngineUnavailableError": "Wait and ask again; `orchestrator status` shows whether the model server starts.",
    "AdapterUnavailableError": "`orchestrator adapters list`, then `orchestrator adapters promote NAME`.",
    "StreamBrokenError": "Ask again.",
    "LedgerError": "Mend the database; `orchestrator audit verify` names the rows that do not verify.",
    "LaunchError": "Do what the message says; `orchestrator doctor` checks it.",
    "TrainingError": "Mend the data or the option that the message names and run the same command again.",
}
ROUTER_KEYS = {
    "fallback": ("text", "Route of a question that is like no example. Must be one of the routes."),
    "threshold": ("number", "Cosine: a question that is less like every example goes to the fallback."),
    "margin": ("number", "Cosine: a route whose lead over the next is smaller gives way to the fallback."),
}
ROUTE_KEYS = {
    "description": "What the route is for; for people.",
    "action": "`answer`, or `clarify` or `refuse`, which reply without a model.",
    "prompt": "Name of a prompt: `NAME.md`.",
    "contract": "Name of a contract: `contracts/NAME.schema.json` or `contracts/NAME.markdown.json`.",
    "collection": "Collection to search; `default` means `ORCHESTRATOR_COLLECTION`.",
    "adapter": "Name of the adapter that answers; the base model when unset.",
    "k": "Passages to retrieve; 0 retrieves nothing.",
    "excerpts": "Give the model only the sentences that bear on the question, joined where they stand close together.",
    "min_sufficiency": "Refuse without asking the model when the passages hold the answer with less than this probability.",
    "budget_tokens": "Longest prompt in tokens: passages that do not fit are left out, worst first.",
    "max_tokens": "Longest answer in tokens; a caller may ask for less.",
    "temperature": "Sampling temperature; 0 always takes the likeliest token.",
    "history_turns": "Earlier messages of the conversation that the model sees.",
    "needs_text": "Chosen only for a message that brings its text: after a colon, in quotes or on further lines.",
    "degrade": "When the adapter is missing: answer with the base model and say so, instead of failing.",
    "reply": "The text of a route that clarifies or refuses.",
    "keywords": "A message takes the route when it carries text and one of these is among its first four words.",
    "patterns": "Regular expressions; a message that matches takes the route.",
    "examples": "Messages that belong to the route; the nearest example of all routes decides.",
}
ROLE_KEYS = {
    "answer": "Name of the field that holds the answer's text. Needed without `show`.",
    "citations": "Name of the field with the numbers of the passages that the answer rests on.",
    "answerable": "Name of the boolean field that says whether the passages answer.",
    "evidence": "Name of the field with the words of a cited passage that carry the answer; checked word for word.",
    "refusal": "The text that a reader sees when they do not; needed with `citations` or `answerable`.",
    "show": "In place of `answer`: an object of fields and their labels, which a reader sees as a list in the schema's order.",
    "quoted": "List of fields whose texts must stand word for word in the message; others are left out and flagged.",
    "no_adapter": "Why there is no adapter for it; for people.",
}
SECTION_KEYS = {
    "heading": "The line that it begins with, after `## `.",
    "kind": "One line of text, or a list.",
    "lines": "Most lines of a list, up to 20.",
    "words": "Most words of a line, up to 100.",
    "citations": "Most passages that a line names, up to 5, and at least one; 0: its lines cite nothing.",
}
MODEL_NAMES = {
    "orchestrator": "The router decides.",
    "orchestrator/ROUTE": "Pins the route.",
    "ADAPTER": "Pins the adapter, and the route that names it.",
}
OWN_KEYS = {
    "route": "Pins the route; as `model: orchestrator/ROUTE` does.",
    "collection": "Collection to search.",
    "as_of": "ISO date or time: answer from what was valid then.",
    "known_at": "ISO date or time: as it was known then.",
    "where": "Filter on the documents' metadata, as `--where`.",
    "k": "Passages to retrieve, 1 to 50.",
    "max_cost": "Take the cheapest measured route, and none whose answers cost more than this.",
    "min_quality": "Take the cheapest measured route that is expected to be this good on the question, 0 to 1.",
    "deadline_ms": "Take the cheapest measured route that answers 19 of 20 questions within this time.",
}
FIELDS = {
    "id": "Name of the document, unique in its collection. A file without one is named by its path in the folder.",
    "title": "Title; else the first heading, else the file's name.",
    "text": "The text itself (JSONL only; needed).",
    "valid_from": "Since when this version is true (ISO 8601).",
    "metadata": "An object that is kept with the document (JSONL). Further keys of a line or of front matter join it.",
}
ROW_FIELDS = {
    "input": "The user's message (needed).",
    "output": "The right answer: the contract's object, or its text. Rows to be distilled have none.",
    "passages": "List of passages that it is to be answered from: texts, or objects with `text`, `title` and `id`.",
    "id": "Name of the row; else its line.",
    "kind": "A tag of your own, by which rows are counted.",
    "origin": "Where it came from: an object whose `source` is `file`, `chat`, `eval`, `ledger`, `distilled` or `builder`.",
    "messages": "In place of all others: a conversation of one question and one answer, as OpenAI or LangChain write it.",
}
QUESTION_FIELDS = {
    "id": "Name of the question.",
    "question": "The question.",
    "document_id": "The `id` of the document that it is about; the collection must hold it.",
    "answerable": "`true` or `false`: whether that document answers.",
    "answers": "List of right answers, word for word as in the document; empty when it does not answer.",
}
CONTRACTS = (
    "`NAME.schema.json` is a JSON Schema of an object; its key `x-orchestrator` says what its fields mean. An object inside it "
    "that cites has an `x-orchestrator` of its own, with `answer`, `citations` and perhaps `evidence`. Taken are `type`, "
    "`properties`, `required`, `additionalProperties` (false), `items`, `enum`, `const`, `anyOf`, `$ref` to `$defs`, `pattern`, "
    "and the limits of length, number and size; `contracts check` names what is not."
)
SETTINGS = (
    "Environment variables; an unknown `ORCHESTRATOR_*` is refused. `Orchestrator.open(...)` takes them as arguments, "
    "in lower case and without the prefix."
)
HTTP = (
    "OpenAI's shapes. With `ORCHESTRATOR_API_KEYS` set, all but the first two ask for `Authorization: Bearer KEY`. "
    "OpenAI's parameters that have no meaning here are accepted with their neutral value and refused with another. "
    "System messages are not obeyed, as a prompt belongs to its adapter; `orchestrator.ignored` names them."
)
TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "tuple": "list",
    "Path": "path",
}
MADE = "Made from the code by `orchestrator reference > docs/reference.md`; do not edit it by hand."
EXIT_CODES = {"0": "Done.", "1": "It failed; the message says why.", "2": "Wrong usage.", "130": "Stopped with Ctrl-C."}


@click.command(hidden=True)
def reference() -> None:
    """Print docs/reference.md."""
    from orchestrator.cli import main

    click.echo(render(main), nl=False)


def render(main: click.Group) -> str:
    """The page as Markdown. Raises KeyError when a key or an error has no text here."""
    lines = ["# Reference", "", MADE, "", *_commands(main), *_files(), *_prompts(), *_http(), *_errors()]
    return "\n".join(lines).rstrip("\n") + "\n"


def walk(group: click.Group, path: str = "orchestrator") -> Iterator[tuple[str, click.Command]]:
    """Every visible command below ``group`` with its full name, in the order of the help page."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from walk(command, f"{path} {name}")


def error_classes() -> list[type[errors.OrchestratorError]]:
    """Every error, in the order of the file."""
    found = [thing for thing in vars(errors).values() if isinstance(thing, type)]
    return [thing for thing in found if issubclass(thing, errors.OrchestratorError)]


def _commands(main: click.Group) -> Iterator[str]:
    yield from [
        "## Commands",
        "",
        "Every command takes `--help`, and `--json` to print one JSON value. Exit codes:",
        "",
    ]
    yield from _table(["code", "meaning"], EXIT_CODES.items())
    for path, command in walk(main):
        yield from _command(command, path)
    yield from ["## Settings", "", SETTINGS, ""]
    yield from _settings()


def _files() -> Iterator[str]:
    suffixes = " ".join(f"`{suffix}`" for suffix in MEDIA_TYPES)
    yield from ["## Files", "", f"`ingest` reads {suffixes}.", ""]
    yield from ["Fields of a JSONL line, or of the front matter of a Markdown file:", ""]
    yield from _table(["field", "meaning"], FIELDS.items())
    yield from ["Fields of a row, which `train` and `data` read:", ""]
    yield from _table(["field", "meaning"], ROW_FIELDS.items())
    yield from ["Fields of a line of the questions that `train` builds examples from:", ""]
    yield from _table(["field", "meaning"], QUESTION_FIELDS.items())


def _prompts() -> Iterator[str]:
    names = " and ".join(f"`{name}`" for name in sorted(VARIABLES))
    yield from ["## routes.toml", "", "`[router]`", ""]
    yield from _table(["key", "type", "meaning"], ([key, *texts] for key, texts in ROUTER_KEYS.items()))
    yield from ["`[routes.NAME]`", ""]
    yield from _table(["key", "type", "default", "meaning"], _route_keys())
    yield from [
        f"A prompt (`NAME.md`) may use {names}, written `{{{{name}}}}` and declared as `variables` at its top.",
        "",
    ]
    yield from [
        "## Contracts",
        "",
        CONTRACTS,
        "",
    ]
    yield from _table(["key", "meaning"], ([role, ROLE_KEYS[role]] for role in _roles()))
    yield from ["`NAME.markdown.json` has `form` (`markdown`), `refusal`, `no_adapter` and `sections`, a list of:", ""]
    yield from _table(["key", "type", "default", "meaning"], _section_keys())


def _http() -> Iterator[str]:
    yield from ["## HTTP", "", HTTP, ""]
    yield from _table(["method", "path", "answer"], _endpoints())
    yield from ["Models of `/v1/chat/completions`:", ""]
    yield from _table(["model", "meaning"], MODEL_NAMES.items())
    yield from ["Keys of the object `orchestrator` in its request:", ""]
    yield from _table(["key", "meaning"], OWN_KEYS.items())


def _errors() -> Iterator[str]:
    yield from ["## Errors", "", "Programs read the code; the command line ends with 1 for each of them.", ""]
    rows = (
        [f"`{one.__name__}`", f"`{one.code}`", str(one.http_status), _sentence(one.__doc__), REMEDIES[one.__name__]]
        for one in error_classes()
    )
    yield from _table(["error", "code", "HTTP", "what happened", "what to do"], rows)


def _command(command: click.Command, path: str) -> Iterator[str]:
    arguments = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
    yield from ["### " + path, "", f"`{' '.join([path, *arguments])}`", "", command.help or "", ""]
    options = [p for p in command.params if isinstance(p, click.Option) and "--json" not in p.opts]
    if options:
        yield from _table(["option", "value", "default", "meaning"], map(_option, options))


def _option(option: click.Option) -> Sequence[str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else option.metavar or _kind(option.type)
    default = "needed" if option.required else "" if option.is_flag or not _stated(option) else f"`{option.default}`"
    return [names, value, default, option.help or ""]


def _stated(option: click.Option) -> bool:
    return isinstance(option.default, str | int | float)


def _kind(kind: Any) -> str:
    if isinstance(kind, click.Choice):
        return " or ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange):
        return f"{kind.min} to {kind.max}" if kind.max is not None else f"from {kind.min}"
    return {"integer": "number"}.get(str(kind.name), str(kind.name))


def _settings() -> Iterator[str]:
    kinds = typing.get_type_hints(Settings)
    helps = variables()
    rows = []
    for f in fields(Settings):
        default = "" if f.default in (None, ()) else f"`{f.default}`"
        rows.append([f"`{PREFIX}{f.name.upper()}`", _type_name(kinds[f.name]), default, helps[PREFIX + f.name.upper()]])
    return _table(["variable", "type", "default", "meaning"], rows)


def _route_keys() -> Iterator[Sequence[str]]:
    kinds = typing.get_type_hints(Route)
    for f in fields(Route):
        if f.name == "name":
            continue
        default = "" if f.default in (None, (), "", MISSING) else f"`{str(f.default).lower()}`"
        yield [f.name, _type_name(kinds[f.name]), default, ROUTE_KEYS[f.name]]


def _roles() -> Iterator[str]:
    own = ("name", "digest", "body", "schema", "form", "sections", "places")
    return (f.name for f in fields(Contract) if f.name not in own and not f.name.startswith("_"))


def _section_keys() -> Iterator[Sequence[str]]:
    kinds = typing.get_type_hints(Section)
    for f in fields(Section):
        yield [
            f.name,
            _type_name(kinds[f.name]),
            "" if f.default is MISSING else f"`{f.default}`",
            SECTION_KEYS[f.name],
        ]


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(kind))
    name: str = (typing.get_origin(kind) or kind).__name__
    return TYPES[name]


def _endpoints() -> Iterator[Sequence[str]]:
    from orchestrator.api.routes import Api

    for route in Api(typing.cast(Any, None), "").routes():
        methods = ", ".join(sorted((route.methods or set()) - {"HEAD"}))
        yield [methods, f"`{route.path.replace(':path', '')}`", _sentence(route.endpoint.__doc__)]


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""
