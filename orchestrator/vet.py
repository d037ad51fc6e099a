"""Keeps away from the decoder what could hang or kill it: a JSON Schema in, the keyword that is refused out. Pure.

Rules are an allow-list, and each is a condition for two things at once: that xgrammar compiles the schema in bounded time and
memory (measured: benchmarks in docs/design.md), and that it means there what it means to the check afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

MAX_CHARS = 64_000  # of a whole schema or grammar
MAX_DEPTH = 16  # xgrammar 0.2.8: 64 levels take 0.1 s, 256 take 3.6 s
MAX_PARTS = 400  # subschemas, references followed: anyOf in anyOf doubles with each level
MAX_PROPERTIES = 64
MAX_BRANCHES = 16
MAX_VALUES = 1000  # of all enums together; 10,000 take 0.9 s and 36 MB
MAX_COUNT = {"maxLength": 20_000, "minLength": 2_000, "maxItems": 200, "minItems": 200}
MAX_NUMBER = 10**15
MAX_LENGTHS = (
    4  # different pairs of minLength and maxLength: xgrammar spends up to 1.5 s on each, and shares equal ones
)
MAX_PATTERN = 120
MAX_REPEATS = 64  # of all repetitions of a pattern together; [^a]{1,99} eleven times over took minutes
MAX_CHOICES = 6  # repetitions of a pattern that leave open how often: each multiplies the ways to match
MAX_ALL_REPEATS = 256  # of all patterns of a schema

_KEYWORDS = frozenset(
    {
        "type", "properties", "required", "additionalProperties", "items", "enum", "const", "minItems", "maxItems",
        "minLength", "maxLength", "minimum", "maximum", "pattern", "anyOf", "$ref", "$defs",
    }
)  # fmt: skip
_NOTES = frozenset({"$schema", "$comment", "title", "description", "x-orchestrator"})
_INSTEAD = {
    "format": "use pattern: a format is not checked afterwards",
    "oneOf": "use anyOf",
    "allOf": "write the parts as one schema: xgrammar lets anything pass where there are two",
    "definitions": "use $defs",
    "multipleOf": "xgrammar ignores it",
    "uniqueItems": "xgrammar ignores it",
    "patternProperties": "name the properties",
    "propertyNames": "name the properties",
    "$dynamicRef": "use $ref without recursion",
    "$recursiveRef": "use $ref without recursion",
}
_ATOM = re.compile(r"\\[dws.^$*+?()\[\]{}|/\\-]|\[\^?(?:\\[dws^\]\[\\-]|[^\[\]\\\n])+\]|[^\\\[\](){}*+?|^$\n]")
_OPENS = re.compile(r"\||\((?:\?:)?")
_REPEAT = re.compile(r"[*+?]|\{(\d{1,3})(,(\d{0,3}))?\}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is refused: the keyword, the place as a JSON pointer, and why in half a sentence."""

    keyword: str
    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.keyword!r} at {self.path or '/'}: {self.why}"


@dataclass(slots=True)
class _Walk:
    root: Mapping[str, Any]
    parts: int = 0
    values: int = 0
    lengths: set[tuple[int, int]] = field(default_factory=set)
    repeats: int = 0
    open_refs: list[str] = field(default_factory=list)


def schema_fault(schema: Any) -> Fault | None:
    """The first thing for which the schema is refused; None when the decoder may have it. Equal schemas are walked once."""
    try:
        body = json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        return Fault("schema", "", f"it is not JSON: {error}")
    return _body_fault(body)


def grammar_fault(grammar: str) -> Fault | None:
    """Grammars are made by orchestrator.report alone, from bounded numbers; only their length is left to check."""
    return Fault("grammar", "", f"it is longer than {MAX_CHARS} characters") if len(grammar) > MAX_CHARS else None


@lru_cache(maxsize=512)
def _body_fault(body: str) -> Fault | None:
    if len(body) > MAX_CHARS:
        return Fault("schema", "", f"it is longer than {MAX_CHARS} characters")
    schema = json.loads(body)
    return next(_faults(schema, "", 0, _Walk(schema)), None)


def _faults(schema: Any, path: str, depth: int, walk: _Walk) -> Iterator[Fault]:
    if not isinstance(schema, dict):
        yield Fault("schema", path, "a schema must be an object here")
        return
    walk.parts += 1
    if walk.parts > MAX_PARTS:
        yield Fault("schema", path, f"more than {MAX_PARTS} subschemas, references followed")
        return
    if depth > MAX_DEPTH:
        yield Fault("schema", path, f"more than {MAX_DEPTH} levels")
        return
    for keyword in schema:
        if keyword not in _KEYWORDS and keyword not in _NOTES:
            yield Fault(keyword, path, _INSTEAD.get(keyword, "the decoder and the check do not both keep it"))
    yield from _value_faults(schema, path, walk)
    yield from _reference_faults(schema, path, depth, walk)
    for keyword, place, part in _subschemas(schema, path):
        if keyword is None:
            yield from _faults(part, place, depth + 1, walk)
        else:
            yield Fault(keyword, path, str(part))


def _subschemas(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str | None, str, Any]]:
    """Each part with its place; a keyword in front when the part is a complaint."""
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        yield "properties", path, "must be an object"
    elif len(properties) > MAX_PROPERTIES:
        yield "properties", path, f"more than {MAX_PROPERTIES} of them"
    else:
        yield from ((None, f"{path}/properties/{_escape(name)}", part) for name, part in properties.items())
    if "items" in schema:
        yield None, f"{path}/items", schema["items"]
    if not path and isinstance(schema.get("$defs"), dict):
        yield from ((None, f"/$defs/{_escape(name)}", part) for name, part in schema["$defs"].items())
    branches = schema.get("anyOf", [{}])
    if not isinstance(branches, list) or not 0 < len(branches) <= MAX_BRANCHES:
        yield "anyOf", path, f"must be a list of 1 to {MAX_BRANCHES} schemas"
    elif "anyOf" in schema:
        if schema.keys() - _NOTES - {"anyOf", "$defs"}:
            yield "anyOf", path, "must stand alone: xgrammar ignores the keywords beside it"
        yield from ((None, f"{path}/anyOf/{at}", part) for at, part in enumerate(branches))


def _value_faults(schema: Mapping[str, Any], path: str, walk: _Walk) -> Iterator[Fault]:
    if schema.get("additionalProperties", False) is not False:
        yield Fault("additionalProperties", path, "must be false: what may stand in an answer is named")
    for keyword, most in MAX_COUNT.items():
        value = schema.get(keyword, 0)
        if type(value) is not int or not 0 <= value <= most:
            yield Fault(keyword, path, f"must be a whole number from 0 to {most}")
    for keyword in ("minimum", "maximum"):
        value = schema.get(keyword, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -MAX_NUMBER <= value <= MAX_NUMBER:
            yield Fault(keyword, path, f"must be a number between -{MAX_NUMBER} and {MAX_NUMBER}")
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    walk.values += len(values) if isinstance(values, list) else 0
    if not isinstance(values, list) or walk.values > MAX_VALUES:
        yield Fault("enum", path, f"must be a list; at most {MAX_VALUES} values in the whole schema")
    elif any(isinstance(value, dict | list) for value in values):
        yield Fault("enum" if "enum" in schema else "const", path, "must hold texts, numbers, true, false or null")
    yield from _text_faults(schema, path, walk)


def _text_faults(schema: Mapping[str, Any], path: str, walk: _Walk) -> Iterator[Fault]:
    if {"minLength", "maxLength"} & schema.keys():
        walk.lengths.add((schema.get("minLength", 0), schema.get("maxLength", 0)))
        if len(walk.lengths) > MAX_LENGTHS:
            yield Fault("maxLength", path, f"more than {MAX_LENGTHS} different lengths; let fields share them")
    if "pattern" not in schema:
        return
    if {"minLength", "maxLength"} & schema.keys():
        yield Fault("pattern", path, "xgrammar ignores a length beside it; write the length into the pattern")
    if why := pattern_fault(schema["pattern"]):
        yield Fault("pattern", path, why)
        return
    walk.repeats += sum(_counts(schema["pattern"]))
    if walk.repeats > MAX_ALL_REPEATS:
        yield Fault("pattern", path, f"more than {MAX_ALL_REPEATS} repetitions in all patterns together")


def _reference_faults(schema: Mapping[str, Any], path: str, depth: int, walk: _Walk) -> Iterator[Fault]:
    if "$defs" in schema and (path or not isinstance(schema["$defs"], dict)):
        yield Fault("$defs", path, "must be an object at the top of the schema")
    if "$ref" not in schema:
        return
    target = schema["$ref"]
    if schema.keys() - _NOTES - {"$ref", "$defs"}:
        yield Fault("$ref", path, "must stand alone: xgrammar ignores the keywords beside it")
    elif target in walk.open_refs:
        yield Fault("$ref", path, "refers to itself: an answer must end")
    elif (found := resolve_reference(walk.root, target)) is None:
        yield Fault("$ref", path, "must be #/$defs/NAME, and be there")
    else:
        walk.open_refs.append(target)
        yield from _faults(found, path, depth + 1, walk)
        walk.open_refs.pop()


def resolve_reference(root: Mapping[str, Any], target: Any) -> Mapping[str, Any] | None:
    """The subschema that ``#/$defs/NAME`` names; None for any other reference."""
    if not isinstance(target, str) or not target.startswith("#/$defs/"):
        return None
    definitions = root.get("$defs")
    found = definitions.get(target.removeprefix("#/$defs/")) if isinstance(definitions, dict) else None
    return found if isinstance(found, dict) else None


def pattern_fault(pattern: Any) -> str | None:
    """Why a regular expression is refused; None when it can be compiled and matched in a time that stays small.

    No group is repeated, so nothing is tried in exponentially many ways; what is repeated is counted.
    """
    if not isinstance(pattern, str) or not 2 < len(pattern) <= MAX_PATTERN:
        return f"must be a text of at most {MAX_PATTERN} characters"
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return "must begin with ^ and end with $: xgrammar compares the whole text"
    at, end, depth = 1, len(pattern) - 1, 0
    while at < end:
        if opened := _OPENS.match(pattern, at, end):
            depth, at = depth + (opened.group() != "|"), opened.end()
            continue
        closes = pattern[at] == ")"
        atom = None if closes else _ATOM.match(pattern, at, end)
        if not closes and not atom:
            return f"only characters, classes, groups and | are taken; see {pattern[at : at + 10]!r}"
        depth, at = depth - closes, atom.end() if atom else at + 1
        if repeat := _REPEAT.match(pattern, at, end):
            if closes and repeat.group() != "?":
                return "a group must not be repeated, as in (a+)+"
            at = repeat.end()
        if depth < 0:
            break
    counts = _counts(pattern)
    if depth:
        return "parentheses do not match"
    if len(counts) > MAX_CHOICES or sum(counts) > MAX_REPEATS:
        return f"more than {MAX_CHOICES} repetitions, or than {MAX_REPEATS} times in all"
    return None


def _counts(pattern: str) -> list[int]:
    """How often each repetition of a pattern repeats at most; one without end counts once, as it compiles to a loop."""
    bare = re.sub(r"\\.|\[\^?(?:\\.|[^\]\\])+\]", "a", pattern)
    return [int(found.group(3) or found.group(1) or 1) for found in _REPEAT.finditer(bare)]


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
