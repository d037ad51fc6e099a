"""Compiles a metadata filter to one jsonpath that is passed as one parameter: keys and values are literals, the SQL never changes.

    {"department": "HR", "year": {"gte": 2020, "lt": 2024}, "tags": {"in": ["a", "b"]}, "not": {"state": "draft"}}

What matches is defined in docs/howto/filters.md and tested against a second implementation in Python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.errors import InputError

MAX_DEPTH = 20
MAX_CONDITIONS = 200
MAX_VALUES = 1_000  # of all `in` together
MAX_CHARACTERS = 10_000  # of one key or value

COMPARISONS = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
OPERATORS = ("eq", "ne", "in", *COMPARISONS, "exists")
CONNECTIVES = ("and", "or", "not")

_ALL = "1 == 1"
_NONE = "1 == 0"


def compile_filter(where: Mapping[str, Any] | None) -> str | None:
    """The filter as a jsonpath predicate over a document's metadata; None when it does not restrict anything.

    Raises InputError for an unknown operator, a value that JSON metadata cannot hold, and a filter over the limits.
    """
    if where is None:
        return None
    text = _Compiler().mapping(where, 1)
    return None if text == _ALL else text


class _Compiler:
    """Counts what one filter may hold. Every method gives a predicate that is true or not: `unknown` counts as not."""

    def __init__(self) -> None:
        self._conditions = 0
        self._values = 0

    def mapping(self, where: Any, depth: int) -> str:
        if not isinstance(where, Mapping):
            raise _refused(f"a filter is an object of keys and conditions, not {_kind(where)}")
        if depth > MAX_DEPTH:
            raise _refused(f"it is nested deeper than {MAX_DEPTH}")
        return _join(" && ", [self._entry(key, value, depth) for key, value in where.items()], _ALL)

    def _entry(self, key: Any, value: Any, depth: int) -> str:
        self._count()
        if not isinstance(key, str):
            raise _refused(f"a key is text, not {_kind(key)}")
        if key == "not":
            return _negated(self.mapping(value, depth + 1))
        if key in CONNECTIVES:
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                raise _refused(f"{key!r} takes a list of filters, not {_kind(value)}")
            parts = [self.mapping(part, depth + 1) for part in value]
            return _join(" && ", parts, _ALL) if key == "and" else _join(" || ", parts, _NONE)
        if key[:1] == "$" and key[1:] in (*CONNECTIVES, *OPERATORS):
            raise _refused(f"write {key[1:]!r} in place of {key!r}")
        if isinstance(value, Mapping):
            return _join(" && ", [self._condition(key, name, operand) for name, operand in value.items()], _ALL)
        return self._condition(key, "eq", value)

    def _condition(self, key: str, operator: Any, operand: Any) -> str:
        self._count()
        field = "$." + _text(key)
        if operator == "exists":
            if not isinstance(operand, bool):
                raise _refused(f"'exists' takes true or false, not {_kind(operand)}")
            return f"exists({field})" if operand else f"!(exists({field}))"
        if operator == "eq":
            return f"({field} == {self._literal(operand)})"
        if operator == "ne":
            return _negated(f"({field} == {self._literal(operand)})")
        if operator == "in":
            if not isinstance(operand, Iterable) or isinstance(operand, str | bytes | Mapping):
                raise _refused(f"'in' takes a list of values, not {_kind(operand)}")
            return _join(" || ", [f"({field} == {self._literal(value)})" for value in operand], _NONE)
        if operator in COMPARISONS:
            if isinstance(operand, bool) or not isinstance(operand, str | int | float):
                raise _refused(f"{operator!r} takes a number or a text, not {_kind(operand)}")
            return f"({field} {COMPARISONS[operator]} {self._literal(operand)})"
        raise _refused(f"there is no operator {_shown(operator)}. Operators: {', '.join((*OPERATORS, *CONNECTIVES))}")

    def _literal(self, value: Any) -> str:
        self._values += 1
        if self._values > MAX_VALUES + MAX_CONDITIONS:
            raise _refused(f"it holds more than {MAX_VALUES} values")
        if value is None or isinstance(value, bool):
            return json.dumps(value)
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, int) and value.bit_length() <= 1024:
            return str(int(value))
        if isinstance(value, float) and math.isfinite(value):
            return repr(float(value))
        hint = ". To match one of several values, write {'in': [...]}" if isinstance(value, list | tuple) else ""
        raise _refused(f"a value is a text, a finite number, true, false or null, not {_kind(value)}{hint}")

    def _count(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise _refused(f"it holds more than {MAX_CONDITIONS} conditions")


def _join(connective: str, parts: Sequence[str], empty: str) -> str:
    if len(parts) < 2:
        return parts[0] if parts else empty
    return "(" + connective.join(parts) + ")"


def _negated(predicate: str) -> str:
    # jsonpath says `unknown` where types differ, and not-unknown is unknown; a path filter knows only true and not true.
    return f"!(exists($ ? ({predicate})))"


def _text(value: str) -> str:
    if len(value) > MAX_CHARACTERS:
        raise _refused(f"a key or value is longer than {MAX_CHARACTERS} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise _refused("a key or value holds a character that PostgreSQL cannot store (NUL or half a surrogate pair)")
    return json.dumps(value)


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "str": "a text", "dict": "an object", "list": "a list", "bool": "true or false"}
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")


def _shown(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else _kind(value)


def _refused(reason: str) -> InputError:
    return InputError(f"the filter cannot be used: {reason}. The syntax is in docs/howto/filters.md.", param="where")
