"""The compiler of metadata filters: what it refuses, what it quotes, and that it stays within its limits."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.knowledge.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, compile_filter

HOSTILE = [
    "')::text IS NOT NULL OR pg_sleep(1) IS NOT NULL --", 'a"b', "a\\", '")) || 1 == 1 || ($."', "$", "@", "größe", "年", "a.b",
    "", "*", "%s %(filter)s {x}",
]  # fmt: skip
LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"')


def nested(depth: int, key: str = "and") -> dict[str, Any]:
    where: dict[str, Any] = {"a": 1}
    for _ in range(depth - 1):
        where = {key: [where] if key != "not" else where}
    return where


@pytest.mark.parametrize("where", [None, {}, {"and": []}, {"and": [{}]}, {"a": {}}])
def test_a_filter_without_conditions_restricts_nothing(where: Any) -> None:
    assert compile_filter(where) is None


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_key_or_value_holds_stands_in_a_literal_only(name: str) -> None:
    plain = compile_filter({"a": "b"})
    text = compile_filter({name: name})
    assert text is not None
    assert plain is not None
    assert LITERAL.sub("?", text) == LITERAL.sub("?", plain)
    assert [json.loads(literal) for literal in LITERAL.findall(text)] == [name, name]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_any_text_is_one_literal(name: str) -> None:
    text = compile_filter({"key": {"in": [name, "x"]}})
    assert text is not None
    assert text.isascii()
    assert [json.loads(literal) for literal in LITERAL.findall(text)] == ["key", name, "key", "x"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"a": {"regex": ".*"}}, "there is no operator 'regex'"),
        ({"a": {"$eq": 1}}, "there is no operator"),
        ({"a": {1: 1}}, "there is no operator"),
        ({"$or": [{"a": 1}]}, "write 'or' in place of '\\$or'"),
        ({"a": [1, 2]}, r"write \{'in'"),
        ({"a": {"eq": {"b": 1}}}, "not an object"),
        ({"a": {"in": "abc"}}, "'in' takes a list"),
        ({"a": {"in": [[1]]}}, "a list"),
        ({"a": {"lt": None}}, "a number or a text, not null"),
        ({"a": {"gte": True}}, "a number or a text"),
        ({"a": {"exists": 1}}, "true or false"),
        ({"or": {"a": 1}}, "takes a list of filters"),
        ({"or": "abc"}, "takes a list of filters"),
        ({"and": [1]}, "a filter is an object"),
        ({"not": [{"a": 1}]}, "a filter is an object"),
        ([1], "a filter is an object"),
        ("a", "a filter is an object"),
        ({1: 1}, "a key is text"),
        ({"a": math.nan}, "finite"),
        ({"a": -math.inf}, "finite"),
        ({"a": 1 << 5000}, "finite"),
        ({"a": object()}, "type object"),
        ({"a": "x\0"}, "NUL"),
        ({"x\0": 1}, "NUL"),
        ({"a": "\ud800"}, "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({"a" * 20_000: 1}, "longer than"),
        (nested(MAX_DEPTH + 1), "nested deeper"),
        (nested(10_000), "nested deeper"),
        (nested(10_000, "not"), "nested deeper"),
        ({"or": [{"a": 1}] * MAX_CONDITIONS}, "conditions"),
        ({f"k{number}": 1 for number in range(10_000)}, "conditions"),
        ({"a": {"in": list(range(MAX_VALUES + MAX_CONDITIONS + 1))}}, "values"),
    ],
)
def test_what_cannot_be_compiled_is_refused(where: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        compile_filter(where)
    assert caught.value.http_status == 400
    assert len(caught.value.message) < 400


def test_what_is_within_the_limits_is_compiled() -> None:
    assert compile_filter(nested(MAX_DEPTH))
    assert compile_filter({"a": {"in": list(range(MAX_VALUES))}})
    assert compile_filter({f"k{number}": {"eq": 1} for number in range(MAX_CONDITIONS // 2)})
