"""Output contracts: what an answer must look like, which fields mean what, how refusal looks, and how it reads to a person."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jsonschema_rs

from orchestrator.errors import ContractError, SettingsError
from orchestrator.places import EACH, Place, find_places, shown_schema, unmarked
from orchestrator.report import Section, parse_sections, read_report, report_grammar, report_schema, write_report
from orchestrator.vet import MAX_CHARS, grammar_fault, resolve_reference, schema_fault

NO_SOURCE = " [no source]"
MAX_SHOWN = 100  # passages that a grammar may be made for

_FIELD_ROLES = frozenset({"answer", "citations", "answerable", "evidence"})
_ROLES = _FIELD_ROLES | {"refusal", "show", "quoted", "no_adapter"}
_REPORT_KEYS = frozenset({"form", "title", "description", "sections", "refusal", "no_adapter"})


@dataclass(frozen=True, slots=True)
class Contract:
    """What an answer must look like. ``digest`` is the sha256 of the file's JSON without its layout; the order of fields counts.

    ``form``: the model writes a JSON object, or Markdown that is read into one. Either way ``schema`` is the object's.
    """

    name: str
    digest: str
    body: str
    schema: Mapping[str, Any]
    answer: str | None = None
    citations: str | None = None
    answerable: str | None = None
    evidence: str | None = None
    refusal: str = ""
    show: Mapping[str, str] = field(default_factory=dict)
    quoted: tuple[str, ...] = ()
    no_adapter: str = ""
    form: Literal["json", "markdown"] = "json"
    sections: tuple[Section, ...] = ()
    places: tuple[Place, ...] = ()
    _validator: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, name: str, body: str) -> Contract:
        """Reads a contract file. Raises SettingsError when it is none, or is one that the decoder must not get."""
        try:
            if len(body) > MAX_CHARS:
                raise ValueError(f"it is longer than {MAX_CHARS} characters")
            whole = json.loads(body)
            digest = hashlib.sha256(json.dumps(whole).encode()).hexdigest()
            values = _report(whole) if whole.get("form") == "markdown" else _object(name, whole)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            raise SettingsError(
                f"contract {name!r} is neither a JSON Schema object with properties and required nor a report: {error!r}"
            ) from error
        contract = cls(name, digest, body, **values)
        contract._check_refusal()
        return contract

    def engine_schema(self, passages: int) -> dict[str, Any] | None:
        """The schema as it goes to the decoder: notes gone, passage numbers bounded by what was shown; None for Markdown."""
        return shown_schema(self.schema, self.places, passages) if self.form == "json" else None

    def engine_grammar(self, passages: int) -> str | None:
        """The EBNF that goes to the decoder in place of a schema; None for JSON."""
        return report_grammar(self.sections, self.refusal, passages) if self.form == "markdown" else None

    def parse_output(self, text: str) -> dict[str, Any]:
        """The object in the model's text. Raises ContractError when the text does not keep the contract."""
        try:
            if self.form == "markdown":
                data = read_report(text, self.sections, self.refusal)
            else:
                data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair could not be sent to anyone
        except (ValueError, RecursionError) as error:
            kind = "JSON" if self.form == "json" else f"a report of contract {self.name!r}"
            raise ContractError(f"the model's output is not {kind}: {error}") from error
        if problem := self._problem(data):
            raise ContractError(f"the model's output breaks contract {self.name!r}: {problem}")
        return dict(data)

    def dump(self, data: Mapping[str, Any]) -> str:
        """The object as the model is trained to write it: fields in the schema's order, without blanks.

        In JSON the same bytes as vLLM's xgrammar backend writes with ``disable_any_whitespace``: constrained or not, one
        form. Raises ContractError for an object that is no report of a Markdown contract.
        """
        if self.form == "markdown":
            if problem := self._problem(data):
                raise ContractError(f"the object is no report of contract {self.name!r}: {problem}")
            return write_report(data, self.sections, self.refusal)
        return json.dumps(_ordered(data, self.schema, self.schema), ensure_ascii=False, separators=(",", ":"))

    def is_refusal(self, data: Mapping[str, Any]) -> bool:
        """True when the object says that the passages do not answer, or without a field for it says nothing at all."""
        if self.answerable is not None:
            return data[self.answerable] is False
        return bool(self.refusal) and not self._said(data)

    def refused(self, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The object of a refusal: verdict false, nothing said and nothing cited; other fields as in ``data``, or empty."""
        said: dict[str, Any] = {**_empty(self.schema, self.schema), **(data or {})}
        if self.answerable:
            said[self.answerable] = False
        for path in {place.path[0] for place in self.places if place.path} | set(self.quoted):
            said[path] = _empty(self.schema["properties"][path], self.schema)
        for name, nothing in ((self.answer, ""), (self.evidence, ""), (self.citations, [])):
            if name:
                said[name] = nothing
        return {name: said[name] for name in self.schema["properties"] if name in said}

    def render(self, data: Mapping[str, Any]) -> str:
        """The object as a person reads it: the text with its passage numbers, or the refusal.

        Whatever needs a source and cites none says so.
        """
        return self.refusal if self.is_refusal(data) else self._said(data)

    def line(self, name: str, value: Any) -> str:
        """The line of one field that is shown; empty when there is nothing to show."""
        if name not in self.show:
            return ""
        places = {place.path[1:]: place for place in self.places if place.path[:1] == (name,)}
        words = _words(value, (), places, bool(self.places))
        label = self.show[name]
        return f"- {label}: {words}" if words and label else f"- {words}" if words else ""

    def keeps(self, name: str, value: Any) -> bool:
        """Whether one field by itself keeps the schema."""
        part = self.schema["properties"].get(name, {})
        definitions = {key: self.schema[key] for key in ("$defs",) if key in self.schema}
        return bool(jsonschema_rs.validator_for({**part, **definitions}).is_valid(value))

    def _said(self, data: Mapping[str, Any]) -> str:
        if self.form == "markdown":
            return write_report(data, self.sections, self.refusal, NO_SOURCE)
        if self.show:
            return "\n".join(line for name in self.schema["properties"] if (line := self.line(name, data.get(name))))
        said = str(data[self.answer or ""]).strip()
        return said + _marks(data[self.citations]) if said and self.citations else said

    def _check_refusal(self) -> None:
        if self.refusal and (problem := self._problem(self.refused())):
            raise SettingsError(f"contract {self.name!r}: an empty answer, as a refusal is, would break it: {problem}")

    def _problem(self, data: Any) -> str | None:
        problem = next(self._validator.iter_errors(data), None)
        return None if problem is None else str(problem.message)


def _object(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    """The values of a contract whose answers are JSON."""
    schema = {key: value for key, value in whole.items() if key != "x-orchestrator"}
    roles = dict(whole.get("x-orchestrator", {}))
    if fault := schema_fault(schema):
        raise ValueError(f"refused for the decoder: {fault}")
    properties, required = dict(schema["properties"]), set(schema["required"])
    _check_roles(name, roles, {each for each in properties if each in required}, properties)
    places = find_places({**schema, "x-orchestrator": roles} if "citations" in roles else schema)
    hidden = [place.path for place in places if place.path and place.path[0] not in roles.get("show", {})]
    if hidden or (places and not roles.get("refusal")):
        raise SettingsError(
            f"contract {name!r}: x-orchestrator must "
            + (f"show {hidden[0][0]!r}, which cites" if hidden else "have a refusal text, for when nothing answers")
        )
    values = {key: value for key, value in roles.items() if key in _FIELD_ROLES | {"refusal", "no_adapter", "show"}}
    validator = jsonschema_rs.validator_for(schema)
    return {
        **values, "quoted": tuple(roles.get("quoted", ())), "schema": schema, "places": places, "_validator": validator
    }  # fmt: skip


def _report(whole: dict[str, Any]) -> dict[str, Any]:
    """The values of a contract whose answers are Markdown."""
    if unknown := sorted(whole.keys() - _REPORT_KEYS):
        raise ValueError(f"unknown keys {unknown}; known are {sorted(_REPORT_KEYS)}")
    sections = parse_sections(whole["sections"])
    refusal, no_adapter = whole.get("refusal", ""), whole.get("no_adapter", "")
    if not isinstance(refusal, str) or not isinstance(no_adapter, str) or "\n" in refusal or refusal.startswith("#"):
        raise ValueError("refusal must be one line of text and no heading, no_adapter a text")
    if not refusal and any(section.citations for section in sections):
        raise ValueError("refusal is needed, for when nothing answers")
    if fault := grammar_fault(report_grammar(sections, refusal, MAX_SHOWN)):
        raise ValueError(f"refused for the decoder: {fault}")
    schema = report_schema(sections)
    return {
        "schema": schema, "answerable": "answerable", "refusal": refusal, "no_adapter": no_adapter, "form": "markdown",
        "sections": sections, "places": find_places(schema), "_validator": jsonschema_rs.validator_for(schema),
    }  # fmt: skip


def _check_roles(name: str, roles: Mapping[str, Any], named: set[str], properties: Mapping[str, Any]) -> None:
    wrong = sorted(roles.keys() - _ROLES) or sorted(
        role
        for role, value in roles.items()
        if (role in _FIELD_ROLES and (not isinstance(value, str) or value not in named))
        or (role in ("refusal", "no_adapter") and not isinstance(value, str))
        or (role == "show" and not _is_show(value, properties))
        or (role == "quoted" and not (isinstance(value, list) and all(each in named for each in value)))
    )
    if wrong or not ("answer" in roles or "show" in roles):
        raise SettingsError(
            f"contract {name!r}: x-orchestrator must name an answer field or the fields to show, may name citations, "
            "answerable, evidence and quoted ones (required properties, all of them), a refusal text and a reason for "
            f"no_adapter; wrong: {wrong or ['answer']}"
        )
    if "citations" in roles and ("answer" not in roles or "show" in roles):
        raise SettingsError(
            f"contract {name!r}: citations are those of an answer; with show, mark the fields that cite"
        )
    if roles.keys() & {"citations", "answerable"} and not roles.get("refusal"):
        raise SettingsError(f"contract {name!r}: x-orchestrator needs a refusal text, for when nothing answers")
    if "evidence" in roles and ("citations" not in roles or properties[roles["evidence"]].get("type") != "string"):
        raise SettingsError(f"contract {name!r}: evidence must be a string, and needs citations that it is quoted from")


def _is_show(value: Any, properties: Mapping[str, Any]) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(key in properties and isinstance(label, str) and "\n" not in label for key, label in value.items())
    )


def _marks(numbers: Any) -> str:
    return "".join(f" [{number}]" for number in numbers) or NO_SOURCE


def _words(value: Any, path: tuple[str, ...], places: Mapping[tuple[str, ...], Place], cites: bool) -> str:
    """A value as words on one line: lists and objects with semicolons, what cites with its passage numbers.

    Where anything cites, a number that stands in other words is left out: it would read as a citation.
    """
    if place := places.get(path):
        said = " ".join(str(value[place.answer]).split())
        return said + _marks(value[place.citations]) if said else ""
    if isinstance(value, dict):
        parts = ((key, _words(part, (*path, key), places, cites)) for key, part in value.items())
        return "; ".join(f"{key}: {words}" for key, words in parts if words)
    if isinstance(value, list):
        return "; ".join(words for part in value if (words := _words(part, (*path, EACH), places, cites)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    said = "" if value is None else str(value)
    return " ".join((unmarked(said) if cites else said).split())


def _ordered(data: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The data with the fields of its objects in the schema's order."""
    if "$ref" in schema:
        schema = resolve_reference(root, schema["$ref"]) or {}
    if isinstance(data, Mapping) and "properties" in schema:
        properties: Mapping[str, Any] = schema["properties"]
        return {name: _ordered(data[name], part, root) for name, part in properties.items() if name in data}
    if isinstance(data, list) and "items" in schema:
        return [_ordered(part, schema["items"], root) for part in data]
    return data


def _empty(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The value that says least."""
    if "$ref" in schema:
        schema = resolve_reference(root, schema["$ref"]) or {}
    if "anyOf" in schema:
        return _empty(schema["anyOf"][0], root)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _empty(part, root) for name, part in properties.items() if name in schema.get("required", ())}
    numbers: dict[str, Any] = {"integer": schema.get("minimum", 0), "number": schema.get("minimum", 0)}
    return {"array": [], "string": "", "boolean": False, "null": None, **numbers}.get(kind, "")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a field stands there twice")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
