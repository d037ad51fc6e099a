"""Contracts: the schema that is read, the schema that is sent, the object that is taken and the text that is shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract import Contract
from orchestrator.errors import ContractError, SettingsError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder

CATALOGUE = load_catalogue(folder("prompts"))
CITED = Contract.parse(
    "cited",
    json.dumps(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "cited",
            "type": "object",
            "properties": {
                "answerable": {"type": "boolean"},
                "citations": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 5},
                "answer": {"type": "string", "maxLength": 800},
            },
            "required": ["answerable", "citations", "answer"],
            "additionalProperties": False,
            "x-orchestrator": {
                "answer": "answer",
                "citations": "citations",
                "answerable": "answerable",
                "refusal": "The documents do not answer this question.",
            },
        }
    ),
)
TEXT = CATALOGUE.contract("text_answer")
GOOD = {"answerable": True, "citations": [1], "answer": "Paris"}


def contract_with(roles, **schema):
    body = {
        "type": "object",
        "properties": {"answer": {"type": "string"}, "sources": {"type": "array"}, "known": {"type": "boolean"}},
        "required": ["answer", "sources", "known"],
        "x-orchestrator": roles,
    }
    return Contract.parse("mine", json.dumps({**body, **schema}))


@pytest.mark.parametrize("passages", range(6))
def test_the_decoder_gets_the_fields_in_order_and_only_numbers_that_were_shown(passages):
    schema = CITED.engine_schema(passages)

    assert list(schema["properties"]) == ["answerable", "citations", "answer"]
    assert schema["properties"]["citations"]["maxItems"] == passages
    assert schema["properties"]["citations"].get("items", {}).get("enum", []) == list(range(1, passages + 1))
    assert not {"title", "description", "$schema", "x-orchestrator"} & schema.keys()


def test_the_schema_that_is_sent_is_not_the_one_that_is_kept():
    before = json.dumps(CITED.schema)

    CITED.engine_schema(2)["properties"]["citations"]["items"] = {}

    assert json.dumps(CITED.schema) == before


def test_a_contract_without_citations_sends_its_schema_as_it_is():
    assert TEXT.engine_schema(3)["properties"] == TEXT.schema["properties"]


def test_the_digest_is_of_the_content_not_of_its_spaces():
    assert Contract.parse("x", json.dumps(json.loads(CITED.body), indent=7)).digest == CITED.digest
    assert Contract.parse("x", CITED.body.replace("800", "801")).digest != CITED.digest


def test_roles_name_fields_of_any_name():
    contract = contract_with({"answer": "answer", "citations": "sources", "answerable": "known", "refusal": "No."})

    assert (contract.citations, contract.answerable, contract.refusal) == ("sources", "known", "No.")


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({}, "answer"),
        ({"answer": "nowhere"}, "answer"),
        ({"answer": "answer", "citation": "sources"}, "citation"),
        ({"answer": "answer", "citations": "nowhere", "refusal": "No."}, "citations"),
        ({"answer": "answer", "answerable": "known"}, "refusal text"),
        ({"answer": "answer", "citations": "sources", "refusal": ""}, "refusal text"),
        ({"answer": "answer", "evidence": "answer"}, "evidence"),
        ({"answer": "answer", "citations": "sources", "evidence": "known", "refusal": "No."}, "evidence"),
        ({"answer": ["answer"]}, "mine"),
        (["answer"], "mine"),
        (5, "mine"),
    ],
)
def test_wrong_roles_are_refused(roles, said):
    with pytest.raises(SettingsError, match=said):
        contract_with(roles)


def test_a_role_of_an_optional_field_is_refused():
    with pytest.raises(SettingsError, match="required"):
        contract_with({"answer": "answer", "answerable": "known", "refusal": "No."}, required=["answer"])


@pytest.mark.parametrize("body", ["", "[]", "5", "{", '{"type": "object"}', '{"properties": 5, "required": []}'])
def test_a_text_that_is_no_contract_is_refused(body):
    with pytest.raises(SettingsError, match="'mine'"):
        Contract.parse("mine", body)


def test_a_schema_that_is_no_schema_is_refused():
    with pytest.raises(SettingsError, match="'mine'"):
        contract_with({"answer": "answer"}, type="poem")


@given(st.booleans(), st.lists(st.integers(1, 5), max_size=5), st.text(max_size=200))
def test_what_is_dumped_is_read_back(answerable, citations, answer):
    data = {"answer": answer, "citations": citations, "answerable": answerable}

    assert CITED.parse_output(CITED.dump(data)) == data
    assert list(json.loads(CITED.dump(data))) == ["answerable", "citations", "answer"]


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Paris",
        "null",
        "[]",
        '{"answerable": true, "citations": [1], "answer": "Pa',
        '{"answerable": true, "citations": [1]}',
        '{"answerable": true, "citations": [1], "answer": "a", "more": 1}',
        '{"answerable": "true", "citations": [1], "answer": "a"}',
        '{"answerable": true, "citations": [true], "answer": "a"}',
        '{"answerable": true, "citations": [1.5], "answer": "a"}',
        '{"answerable": true, "citations": [0], "answer": "a"}',
        '{"answerable": true, "citations": [-1], "answer": "a"}',
        '{"answerable": true, "citations": ["1"], "answer": "a"}',
        '{"answerable": true, "citations": [NaN], "answer": "a"}',
        '{"answerable": true, "citations": [1e999], "answer": "a"}',
        '{"answerable": true, "citations": [1,2,3,4,5,6], "answer": "a"}',
        '{"answerable": true, "citations": [' + "9" * 5000 + '], "answer": "a"}',
        '{"answerable": true, "citations": [1], "answer": null}',
        '{"answerable": true, "citations": [1], "answer": "a", "answer": "b"}',
        '{"answerable": true, "citations": [1], "answerable": false, "answer": "b"}',
        '{"answerable": true, "citations": [1], "answer": "\\ud800"}',
        '{"answerable": true, "citations": [1], "answer": "a"} and more',
        "[" * 100_000,
        '{"answerable": true, "citations": [1], "answer": "' + "a" * 801 + '"}',
    ],
)
def test_output_that_breaks_the_contract_is_refused(output):
    with pytest.raises(ContractError, match="model's output"):
        CITED.parse_output(output)


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_a_character():
    assert TEXT.parse_output(r'{"answer": "\ud83d\ude00"}') == {"answer": "😀"}
    with pytest.raises(ContractError):
        TEXT.parse_output(r'{"answer": "\ude00\ud83d"}')


def test_an_answer_reads_with_its_passage_numbers():
    assert CITED.render({**GOOD, "citations": [2, 1]}) == "Paris [2] [1]"
    assert TEXT.render({"answer": " billing\n"}) == "billing"


def test_a_refusal_reads_as_the_contract_says():
    assert CITED.render({**GOOD, "answerable": False}) == "The documents do not answer this question."
    assert CITED.is_refusal({**GOOD, "answerable": False})
    assert not CITED.is_refusal(GOOD)
    assert not TEXT.is_refusal({"answer": "no"})


def test_the_digest_tells_contracts_apart_that_differ_in_the_order_of_fields_only() -> None:
    body = (folder("prompts") / "contracts" / "cited_answer.schema.json").read_text("utf-8")
    schema = json.loads(body)
    turned = {**schema, "properties": dict(reversed(schema["properties"].items()))}
    assert Contract.parse("a", body).digest == Contract.parse("a", json.dumps(schema)).digest
    assert Contract.parse("a", body).digest != Contract.parse("a", json.dumps(turned)).digest


FIELD = {
    "type": "object",
    "properties": {"value": {"type": "string"}, "from": {"type": "array", "items": {"type": "integer"}}},
    "required": ["value", "from"],
    "x-orchestrator": {"answer": "value", "citations": "from"},
}


def fields_with(part=FIELD, **roles):
    body = {
        "type": "object",
        "properties": {"known": {"type": "boolean"}, "rule": part},
        "required": ["known", "rule"],
        "x-orchestrator": {"answerable": "known", "refusal": "No.", "show": {"rule": "Rule"}, **roles},
    }
    return Contract.parse("mine", json.dumps(body))


def test_the_numbers_of_every_field_are_bounded_by_what_was_shown():
    listed = {"type": "array", "items": FIELD}

    alone = fields_with().engine_schema(2)["properties"]["rule"]
    many = fields_with(listed).engine_schema(0)["properties"]["rule"]["items"]

    assert alone["properties"]["from"] == {"type": "array", "items": {"type": "integer", "enum": [1, 2]}, "maxItems": 2}
    assert many["properties"]["from"] == {"type": "array", "maxItems": 0}
    assert "x-orchestrator" not in json.dumps([alone, many])


def test_fields_read_as_a_list_in_the_schemas_order():
    contract = fields_with()

    assert contract.render({"known": True, "rule": {"value": " 25\ndays", "from": [2, 1]}}) == "- Rule: 25 days [2] [1]"
    assert contract.render({"known": True, "rule": {"value": "25", "from": []}}) == "- Rule: 25 [no source]"
    assert contract.render({"known": False, "rule": {"value": "25", "from": [1]}}) == "No."
    assert contract.refused() == {"known": False, "rule": {"value": "", "from": []}}


@pytest.mark.parametrize(
    ("part", "roles", "said"),
    [
        ({**FIELD, "x-orchestrator": {"answer": "value"}}, {}, "must name answer and citations"),
        ({**FIELD, "x-orchestrator": {"answer": "value", "citations": "value"}}, {}, "required array"),
        ({**FIELD, "x-orchestrator": {"answer": "gone", "citations": "from"}}, {}, "required string"),
        ({**FIELD, "x-orchestrator": {"answer": "value", "citations": "from", "more": "x"}}, {}, "evidence"),
        ({**FIELD, "required": ["value"]}, {}, "required array"),
        ({"anyOf": [FIELD, {"type": "null"}]}, {}, "anyOf"),
        (FIELD, {"refusal": ""}, "refusal text"),
        (FIELD, {"show": {"known": "Known"}}, "show 'rule'"),
        (FIELD, {"show": {"gone": "Gone"}}, "show"),
        (FIELD, {"show": {}}, "show"),
        (FIELD, {"show": {"rule": "a\nb"}}, "show"),
        (FIELD, {"quoted": ["gone"]}, "quoted"),
        (FIELD, {"citations": "rule"}, "those of an answer"),
        ({"type": "string", "minLength": 3}, {"quoted": ["rule"]}, "an empty answer"),
        ({"type": "string", "format": "email"}, {}, "'format' at /properties/rule"),
    ],
)
def test_wrong_marks_are_refused(part, roles, said):
    with pytest.raises(SettingsError, match=said):
        fields_with(part, **roles)
