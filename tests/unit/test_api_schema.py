"""The pure part of the HTTP surface: where citations stand in an answer, and that any JSON is a request or an InputError."""

from __future__ import annotations

from contextlib import suppress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.schema import ChatRequest, citation_url, error_headers, marker_places, parse_chat, parse_json
from orchestrator.errors import ContractError, EngineUnavailableError, InputError, MigrationError, StreamBrokenError
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.resources import folder
from orchestrator.types import Citation

CATALOGUE: Catalogue = load_catalogue(folder("prompts"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["messages", "max_tokens", "temperature", "seed", "stream", "stream_options", "response_format", "user", "n"]


def cited(number: int, document_id: str = "d") -> Citation:
    return Citation(number, document_id, "d.md", 3, 0, (5, 9), "quote", "0" * 64)


@pytest.mark.parametrize(
    ("content", "numbers", "places"),
    [
        ("25 days [1]", [1], [(8, 11)]),
        ("a [1] [2]", [1, 2], [(2, 5), (6, 9)]),
        ("a [2] [1]", [2, 1], [(2, 5), (6, 9)]),
        ("see [1] there [1]", [1], [(14, 17)]),
        ("a [12] [1]", [12, 1], [(2, 6), (7, 10)]),
        ('{"answer": "a"}', [1], [(0, 15)]),
        ("", [1], [(0, 0)]),
        ("a", [], []),
    ],
)
def test_markers_are_found_from_the_end(content: str, numbers: list[int], places: list[tuple[int, int]]) -> None:
    assert marker_places(content, [cited(number) for number in numbers]) == places


def test_link_names_version_and_span_and_cannot_leave_its_path() -> None:
    assert citation_url("http://a", cited(1, "../x?y#z")) == "http://a/v1/documents/..%2Fx%3Fy%23z/versions/3#char=5,9"


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_an_input_error(raw: bytes) -> None:
    with suppress(InputError):
        assert isinstance(parse_json(raw), dict)


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4), JSON, JSON)
def test_any_body_is_a_request_or_an_input_error(body: dict[str, object], messages: object, own: object) -> None:
    whole = {"model": "orchestrator", "messages": messages, "orchestrator": own, **body}
    with suppress(InputError):
        assert isinstance(parse_chat(orjson.loads(orjson.dumps(whole)), CATALOGUE, "default"), ChatRequest)


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (InputError("x"), {"x-should-retry": "false"}),
        (ContractError("x"), {"x-should-retry": "false"}),
        (MigrationError("x"), {"x-should-retry": "false"}),
        (EngineUnavailableError("x"), {"retry-after": "10"}),
        (StreamBrokenError("x"), {}),
        (StreamBrokenError("x", answer_id="ans_1"), {"x-request-id": "ans_1"}),
    ],
    ids=lambda value: str(value),
)
def test_headers_say_whether_a_retry_is_of_use(error: InputError, headers: dict[str, str]) -> None:
    assert error_headers(error) == headers
