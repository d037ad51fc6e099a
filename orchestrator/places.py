"""The places of an answer that cite: which object holds a text, its passage numbers and its evidence. Schema in, Places out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.vet import resolve_reference

MARK = "x-orchestrator"
EACH = "*"  # in a path: every item of an array
_NUMBER_MARK = re.compile(r" ?\[\d{1,3}\]")
_NOTES = frozenset({"$schema", "$comment", "title", "description", MARK})


@dataclass(frozen=True, slots=True)
class Place:
    """Where objects that cite stand in the answer, and what their fields mean. The answer itself has the path ()."""

    path: tuple[str, ...]
    answer: str
    citations: str
    evidence: str | None = None


def find_places(schema: Mapping[str, Any]) -> tuple[Place, ...]:
    """Every object of the schema that is marked as citing, in the order of its fields. Raises ValueError for a bad mark."""
    return tuple(_places(schema, schema, ()))


def find_parts(
    data: Any, places: Mapping[tuple[str, ...], Place], path: tuple[str, ...] = (), name: tuple[str, ...] = ()
) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Every object in the data that cites, in the order of the data, under a name such as ``claims.2``."""
    if isinstance(data, dict):
        if path in places:
            yield ".".join(name), places[path], data
        for key, part in data.items():
            yield from find_parts(part, places, (*path, key), (*name, key))
    elif isinstance(data, list):
        for at, part in enumerate(data):
            yield from find_parts(part, places, (*path, EACH), (*name, str(at)))


def unmarked(text: str) -> str:
    """The text without ``[n]``: a number that the model writes into its own words was never checked."""
    return _NUMBER_MARK.sub("", text)


def shown_schema(schema: Mapping[str, Any], places: tuple[Place, ...], passages: int) -> dict[str, Any]:
    """The schema as the decoder gets it: notes gone, and the numbers of every place bounded by what was shown."""
    return _rebuild(schema, schema, (), {place.path: place.citations for place in places}, passages)


def _places(schema: Mapping[str, Any], root: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Place]:
    if "$ref" in schema:
        schema = resolve_reference(root, schema["$ref"]) or {}
    mark = schema.get(MARK)
    if mark is not None:
        if path:  # the answer's own roles are Contract.parse's to check
            _check_mark(mark, schema, path)
        if "citations" in mark:
            yield Place(path, mark["answer"], mark["citations"], mark.get("evidence"))
    for name, part in schema.get("properties", {}).items():
        yield from _places(part, root, (*path, name))
    if isinstance(schema.get("items"), dict):
        yield from _places(schema["items"], root, (*path, EACH))
    if any(True for branch in schema.get("anyOf", ()) for _ in _places(branch, root, path)):
        raise ValueError(f"/{'/'.join(path)}: what cites must not stand in an anyOf")


def _check_mark(mark: Any, schema: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """Raises ValueError unless the mark names required properties of the right kinds."""
    where = f"{MARK} at /{'/'.join(path)}"
    if not isinstance(mark, dict) or not {"answer", "citations"} <= mark.keys() <= {"answer", "citations", "evidence"}:
        raise ValueError(f"{where} must name answer and citations, and may name evidence")
    kinds = {"answer": "string", "citations": "array", "evidence": "string"}
    for role, name in mark.items():
        part = schema.get("properties", {}).get(name, {})
        if name not in schema.get("required", ()) or part.get("type") != kinds[role]:
            raise ValueError(f"{where}: {role} must be a required {kinds[role]}, {name!r} is none")


def _rebuild(
    schema: Any, root: Mapping[str, Any], path: tuple[str, ...], numbers: Mapping[tuple[str, ...], str], passages: int
) -> dict[str, Any]:
    if "$ref" in schema:  # written out: one definition may stand at places with and without citations
        schema = resolve_reference(root, schema["$ref"]) or {}
    built = {key: value for key, value in schema.items() if key not in _NOTES and key != "$defs"}
    if "properties" in schema:
        built["properties"] = {
            name: _bounded(part, passages)
            if numbers.get(path) == name
            else _rebuild(part, root, (*path, name), numbers, passages)
            for name, part in schema["properties"].items()
        }
    if "items" in schema:
        built["items"] = _rebuild(schema["items"], root, (*path, EACH), numbers, passages)
    if "anyOf" in schema:
        built["anyOf"] = [_rebuild(part, root, path, numbers, passages) for part in schema["anyOf"]]
    return built


def _bounded(numbers: Mapping[str, Any], passages: int) -> dict[str, Any]:
    if not passages:
        return {"type": "array", "maxItems": 0}
    kept = {key: value for key, value in numbers.items() if key not in _NOTES}
    most = min(numbers.get("maxItems", passages), passages)
    return {**kept, "items": {"type": "integer", "enum": list(range(1, passages + 1))}, "maxItems": most}
