"""Row A6: what could hang the decoder is refused before it gets there, with the keyword and its place."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine import request_body
from orchestrator.errors import ContractError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.types import Generation, Message
from orchestrator.vet import _body_fault, grammar_fault, pattern_fault, schema_fault

TEXT = {"type": "string"}


def thing(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


def nested(levels, schema=TEXT):
    for _ in range(levels):
        schema = thing(a=schema)
    return schema


def doubled(levels):
    schema = TEXT
    for _ in range(levels):
        schema = {"anyOf": [thing(a=schema), thing(b=schema)]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        thing(a=TEXT, b={"type": "integer", "minimum": -5, "maximum": 7.5}, c={}, d={"type": "array"}),
        thing(a={"enum": ["x", 1, None, True]}, b={"const": "y"}, c={"anyOf": [TEXT, {"type": "null"}]}),
        thing(a={"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": 200, "minItems": 1}),
        {**thing(a={"$ref": "#/$defs/x"}, b={"$ref": "#/$defs/x"}), "$defs": {"x": nested(3)}},
        {**thing(a={"type": "string", "description": "noted"}), "additionalProperties": False, "title": "t"},
        thing(a={"type": "string", "pattern": r"^[A-Z]{2}-\d{4}(?:x|y)?$"}),
        nested(15),
        doubled(5),
    ],
)
def test_what_is_bounded_passes(schema):
    assert schema_fault(schema) is None


@pytest.mark.parametrize(
    ("schema", "keyword", "path"),
    [
        (thing(a={"type": "string", "format": "email"}), "format", "/properties/a"),
        (thing(a={"oneOf": [TEXT]}), "oneOf", "/properties/a"),
        ({"allOf": [thing(), thing()]}, "allOf", ""),
        (thing(a={"not": TEXT}), "not", "/properties/a"),
        (thing(a={"if": TEXT}), "if", "/properties/a"),
        (thing(**{"x/y~z": {"multipleOf": 2}}), "multipleOf", "/properties/x~1y~0z"),
        (thing(a={"type": "object", "patternProperties": {"(a+)+": TEXT}}), "patternProperties", "/properties/a"),
        ({**thing(), "additionalProperties": True}, "additionalProperties", ""),
        ({**thing(), "additionalProperties": TEXT}, "additionalProperties", ""),
        (thing(a={"type": "string", "maxLength": 10**9}), "maxLength", "/properties/a"),
        (thing(a={"type": "string", "minLength": True}), "minLength", "/properties/a"),
        (thing(a={"type": "array", "items": TEXT, "maxItems": 10**6}), "maxItems", "/properties/a"),
        (thing(a={"type": "array", "items": {"minItems": 201}}), "minItems", "/properties/a/items"),
        (thing(a={"type": "array", "items": [TEXT]}), "schema", "/properties/a/items"),
        (thing(a={"type": "array", "items": True}), "schema", "/properties/a/items"),
        (thing(a={"type": "integer", "maximum": 10**400}), "maximum", "/properties/a"),
        (thing(a={"enum": list(range(1001))}), "enum", "/properties/a"),
        (thing(a={"enum": list(range(600))}, b={"enum": list(range(600))}), "enum", "/properties/b"),
        (thing(a={"enum": [{"x": 1}]}), "enum", "/properties/a"),
        (thing(a={"const": ["x"]}), "const", "/properties/a"),
        (thing(**{f"f{at}": TEXT for at in range(65)}), "properties", ""),
        ({"properties": 5}, "properties", ""),
        (thing(a={"anyOf": [TEXT] * 17}), "anyOf", "/properties/a"),
        (thing(a={"anyOf": [TEXT], "maxLength": 5}), "anyOf", "/properties/a"),
        (thing(**{f"f{at}": {"type": "string", "maxLength": at + 9} for at in range(5)}), "maxLength", "/properties/f4"),
        (thing(a={"type": "string", "pattern": "(a+)+b"}), "pattern", "/properties/a"),
        (thing(a={"type": "string", "pattern": "^a$", "maxLength": 5}), "pattern", "/properties/a"),
        (
            thing(**{f"f{at}": {"type": "string", "pattern": "^[^a]{1,60}$"} for at in range(5)}),
            "pattern",
            "/properties/f4",
        ),
        ({**thing(a={"$ref": "#/$defs/x"}), "$defs": {"x": thing(a={"$ref": "#/$defs/x"})}}, "$ref", "/properties/a/properties/a"),
        ({**thing(), "$defs": {"unused": {"format": "email"}}}, "format", "/$defs/unused"),
        (thing(a={"$ref": "#"}), "$ref", "/properties/a"),
        (thing(a={"$ref": "http://127.0.0.1/x"}), "$ref", "/properties/a"),
        (thing(a={"$ref": "#/$defs/gone"}), "$ref", "/properties/a"),
        ({**thing(a={"$ref": "#/$defs/x", "maxLength": 5}), "$defs": {"x": TEXT}}, "$ref", "/properties/a"),
        (thing(a={**thing(), "$defs": {}}), "$defs", "/properties/a"),
        ("text", "schema", ""),
    ],
)  # fmt: skip
def test_what_is_not_bounded_is_named_with_its_place(schema, keyword, path):
    fault = schema_fault(schema)

    assert fault is not None
    assert (fault.keyword, fault.path) == (keyword, path)
    assert repr(keyword) in str(fault)


@pytest.mark.parametrize("schema", [nested(17), doubled(8), thing(a={"enum": ["x" * 70_000]}), {"a": {1, 2}}])
def test_size_and_depth_are_bounded(schema):
    assert schema_fault(schema).keyword == "schema"


def test_a_schema_too_deep_to_be_walked_is_refused():
    schema = {}
    for _ in range(5000):
        schema = {"items": schema}

    assert schema_fault(schema).keyword == "schema"


def test_references_are_counted_where_they_lead():
    definitions = {"x0": TEXT} | {
        f"x{at}": thing(a={"$ref": f"#/$defs/x{at - 1}"}, b={"$ref": f"#/$defs/x{at - 1}"}) for at in range(1, 8)
    }

    assert "400" in schema_fault({**thing(a={"$ref": "#/$defs/x7"}), "$defs": definitions}).why


@pytest.mark.parametrize(
    "pattern", ["^a$", r"^\d{4}-\d{2}$", "^(?:ab|c)?d*$", r"^[^\]\\-]{1,64}$", r"^\(x\)\.$", "^(a|b|)$"]
)
def test_a_plain_pattern_passes(pattern):
    assert pattern_fault(pattern) is None
    assert re.compile(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "^(a+)+$",
        "^(a|a)*$",
        "^(?:a{1,9}){9}$",
        "^(a?)?{9}$",
        "^a{1,65}$",
        "^" + "a?" * 7 + "$",
        "^" + "[^a]{1,20}" * 4 + "$",
        r"^(a)\1$",
        "^(?=a)b$",
        "^(?<x>a)$",
        "^(?i:a)$",
        r"^\p{L}$",
        "^a**$",
        "^a*?$",
        "^(a$",
        "^a)$",
        "^)a($",
        "^[a$",
        "^a{1,$",
        "abc",
        "^abc",
        "",
        "^" + "a" * 200 + "$",
        5,
        None,
    ],
)
def test_a_pattern_that_could_take_long_is_refused(pattern):
    assert pattern_fault(pattern)


@settings(max_examples=300)
@given(st.text("a(|)*+?{1,2}[^]$\\d.", max_size=20))
def test_every_pattern_that_passes_is_one(inner):
    pattern = f"^{inner}$"

    assert pattern_fault(pattern) or re.compile(pattern)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "anyOf", "$ref", "enum", "maxLength", "a"]), inner
        )
    ),
)


@settings(max_examples=300)
@given(JSON)
def test_no_json_breaks_the_rules_themselves(value):
    assert schema_fault(value) is None or schema_fault(value).keyword


def test_ten_thousand_schemas_leave_a_bounded_memory():
    for number in range(2000):
        assert schema_fault(thing(**{f"f{number}": TEXT})) is None

    assert _body_fault.cache_info().currsize <= 512


def test_the_engine_gets_no_schema_and_no_grammar_that_is_not_bounded():
    asked = Generation("m", (Message("user", "q"),), 10)
    bad = thing(a={"type": "string", "pattern": "(a+)+b"})

    with pytest.raises(ContractError, match="'pattern' at /properties/a"):
        request_body(Generation("m", asked.messages, 10, schema=bad))
    with pytest.raises(ContractError, match="grammar"):
        request_body(Generation("m", asked.messages, 10, grammar="root ::= " + "x" * 70_000))
    assert grammar_fault("root ::= x") is None


@pytest.mark.parametrize("shown", [1, 5, 50])
def test_every_shipped_contract_may_go_to_the_engine(shown):
    for contract in load_catalogue(folder("prompts")).contracts.values():
        schema, grammar = contract.engine_schema(shown), contract.engine_grammar(shown)

        assert (schema is None) != (grammar is None)
        body = request_body(Generation("m", (Message("user", "q"),), 10, schema=schema, grammar=grammar))
        assert json.dumps(body).count("x-orchestrator") == 0
        assert ("structured_outputs" in body) == (contract.form == "markdown")
