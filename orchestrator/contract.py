"""Output contracts: a JSON Schema, which fields mean what, how refusal looks, and how the object reads to a person."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

from orchestrator.errors import ContractError, SettingsError

_ROLES = frozenset({"answer", "citations", "answerable", "refusal"})


@dataclass(frozen=True, slots=True)
class Contract:
    """What an answer must look like. ``digest`` is the sha256 of the file's JSON without its layout; the order of fields counts."""

    name: str
    digest: str
    body: str
    schema: Mapping[str, Any]
    answer: str
    citations: str | None = None
    answerable: str | None = None
    refusal: str = ""
    _validator: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, name: str, body: str) -> Contract:
        """Reads a ``*.schema.json`` text. Raises SettingsError when it is no schema or its roles name no field."""
        try:
            whole = json.loads(body)
            roles = dict(whole.pop("x-orchestrator", {}))
            properties, required = dict(whole["properties"]), set(whole["required"])
            validator = jsonschema_rs.validator_for(whole)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise SettingsError(
                f"contract {name!r} is not a JSON Schema object with properties and required: {error!r}"
            ) from error
        named = {name for name in properties if name in required}
        wrong = sorted(roles.keys() - _ROLES) or sorted(
            role
            for role, value in roles.items()
            if not isinstance(value, str) or (role != "refusal" and value not in named)
        )
        if wrong or "answer" not in roles:
            raise SettingsError(
                f"contract {name!r}: x-orchestrator must name an answer field, may name citations and answerable "
                f"(all of them required properties) and a refusal text; wrong: {wrong or ['answer']}"
            )
        if roles.keys() & {"citations", "answerable"} and not roles.get("refusal"):
            raise SettingsError(f"contract {name!r}: x-orchestrator needs a refusal text, for when nothing answers")
        digest = hashlib.sha256(json.dumps(json.loads(body)).encode()).hexdigest()
        return cls(name, digest, body, whole, _validator=validator, **roles)

    def engine_schema(self, passages: int) -> dict[str, Any]:
        """The schema as it goes to the decoder: annotations gone, passage numbers bounded by what was shown."""
        schema = {key: value for key, value in self.schema.items() if key not in ("$schema", "title", "description")}
        if self.citations is None:
            return schema
        properties = dict(schema["properties"])
        numbers = dict(properties[self.citations])
        numbers["items"] = {"type": "integer", "enum": list(range(1, passages + 1))}
        numbers["maxItems"] = min(numbers.get("maxItems", passages), passages)
        if not passages:
            numbers = {"type": "array", "maxItems": 0}
        schema["properties"] = {**properties, self.citations: numbers}
        return schema

    def parse_output(self, text: str) -> dict[str, Any]:
        """The object in the model's text. Raises ContractError when it is not JSON or does not keep the schema."""
        try:
            data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair could not be sent to anyone
        except (ValueError, RecursionError) as error:
            raise ContractError(f"the model's output is not JSON: {error}") from error
        problem = next(self._validator.iter_errors(data), None)
        if problem is not None:
            raise ContractError(f"the model's output breaks contract {self.name!r}: {problem.message}")
        return dict(data)

    def dump(self, data: Mapping[str, Any]) -> str:
        """The object as the model is trained to write it: fields in the schema's order, without blanks.

        The same bytes as vLLM's xgrammar backend writes with ``disable_any_whitespace``: constrained or not, one form.
        """
        ordered = {name: data[name] for name in self.schema["properties"] if name in data}
        return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))

    def is_refusal(self, data: Mapping[str, Any]) -> bool:
        """True when the object says that the passages do not answer."""
        return self.answerable is not None and data[self.answerable] is False

    def render(self, data: Mapping[str, Any]) -> str:
        """The object as a person reads it: the answer with its passage numbers, or the refusal."""
        if self.is_refusal(data):
            return self.refusal
        numbers = data[self.citations] if self.citations else ()
        return str(data[self.answer]).strip() + "".join(f" [{number}]" for number in numbers)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a field stands there twice")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
