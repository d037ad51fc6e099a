"""Every class of error through the unmodified official client, before the first byte and after it (rows A5, A6, F2, F6)."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from orchestrator.errors import DatabaseError, EngineUnavailableError, StorageFullError, StreamBrokenError
from orchestrator.testing import MemoryLedger
from tests.acceptance.conftest import GROUNDED, QUESTION, Start

PIECES = [
    '{"answerable": true, "citations": [1], "answer": "25',
    " days",
    " of",
    " leave",
    ' a year"',
    ', "evidence": ""}',
]
REFUSED_PARAMETERS: list[dict[str, Any]] = [
    {"api_base": "http://127.0.0.1:1"},
    {"base_url": "http://127.0.0.1:1"},
    {"user_config": {"model_list": []}},
    {"extra_body": {"a": {"b": {"base_url": "http://127.0.0.1:1"}}}},
    {"structured_outputs": {"regex": "(a+)+b"}},
    {"guided_regex": "(a+)+b"},
    {"n": 16384},
    {"n": True},
    {"best_of": 2},
    {"logprobs": True},
    {"top_logprobs": 20},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"prompt_embeds": "AA=="},
    {"media_io_kwargs": {}},
    {"cache_salt": "mine"},
    {"kv_transfer_params": {}},
    {"priority": 1},
    {"stop": ["\n"]},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tool_choice": "required"},
    {"logit_bias": {"1": 100}},
    {"top_p": 0.5},
    {"presence_penalty": 1},
    {"temperature": 3},
    {"temperature": "hot"},
    {"max_tokens": 0},
    {"max_tokens": True},
    {"seed": 1.5},
    {"seed": 2**63},
    {"stream": "yes"},
    {"stream_options": {"chunk_size": 1}},
    {"user": 1},
    {"metadata": {"a": {"lc": 1}}},
    {"modalities": ["text", "audio"]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
    {"response_format": {"type": "regex"}},
    {"orchestrator": "grounded"},
    {"orchestrator": {"tenant": "other"}},
    {"orchestrator": {"route": ""}},
    {"orchestrator": {"collection": "a\u0000b"}},
    {"orchestrator": {"k": 0}},
    {"orchestrator": {"k": 10**6}},
    {"orchestrator": {"as_of": "yesterday"}},
    {"orchestrator": {"as_of": 2025}},
]
REFUSED_MESSAGES: list[Any] = [
    [],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "   "}],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": 5}],
    [{"role": "system", "content": "only"}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "prefill"}],
    [{"role": "tool", "content": "x", "tool_call_id": "1"}],
    [{"role": "user", "content": "x", "base_url": "http://127.0.0.1:1"}],
    [{"role": "assistant", "content": "x", "tool_calls": [{}]}, {"role": "user", "content": "x"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    [{"role": "user", "content": [{"type": "text", "text": "x", "url": "http://127.0.0.1:1"}]}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    ["x"],
    "x",
]


async def test_parameters_that_we_do_not_have_are_refused_by_name(start: Start) -> None:
    world = await start()

    refusals = [(next(iter(body)), await world.refusal(extra_body=body)) for body in REFUSED_PARAMETERS]

    assert {error.status_code for _, error in refusals} == {400}
    assert [error.param.partition(".")[0] for _, error in refusals] == [key for key, _ in refusals]
    assert all(key in error.message for key, error in refusals)
    assert {error.type for _, error in refusals} == {"invalid_request_error"}
    assert {error.response.headers["x-should-retry"] for _, error in refusals} == {"false"}
    assert (world.engine.received, world.ledger.records) == ([], [])


async def test_messages_that_cannot_be_used_are_refused(start: Start) -> None:
    world = await start()

    refusals = [await world.refusal(messages=messages) for messages in REFUSED_MESSAGES]

    assert {error.status_code for error in refusals} == {400}
    assert {error.param.partition("[")[0] for error in refusals} == {"messages"}


async def test_unknown_models_are_not_found(start: Start) -> None:
    world = await start()
    names = ["gpt-4o", "orchestrator/none", "orchestrator/", "base", "", "cited-answer--abababababab"]

    refusals = [await world.refusal(model=name) for name in names]

    assert {(error.status_code, error.code, error.param) for error in refusals} == {(404, "model_not_found", "model")}


async def test_unknown_route_is_not_found(start: Start) -> None:
    world = await start()

    with pytest.raises(openai.NotFoundError) as caught:
        await world.ask(extra_body={"orchestrator": {"route": "none"}})

    assert "grounded" in caught.value.message


async def test_model_and_route_that_differ_are_refused(start: Start) -> None:
    world = await start()

    with pytest.raises(openai.BadRequestError, match="pins route"):
        await world.ask(model="orchestrator/direct", extra_body={"orchestrator": {"route": "grounded"}})


async def test_too_long_a_question_is_refused_with_the_limit(start: Start) -> None:
    world = await start()

    with pytest.raises(openai.APIStatusError) as caught:
        await world.ask("a" * 100_000)

    assert caught.value.status_code == 413
    assert "16000" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_too_large_a_body_is_refused_and_the_connection_goes_on(start: Start) -> None:
    world = await start()

    with pytest.raises(openai.APIStatusError) as caught:
        await world.ask("a" * 3_000_000)

    assert caught.value.status_code == 413
    assert (await world.ask()).id


async def test_wrong_key_is_an_authentication_error(start: Start) -> None:
    world = await start(api_keys=("right",))

    async with world.client(api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()

    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_right_key_is_let_in(start: Start) -> None:
    world = await start(api_keys=("other", "right"))

    async with world.client(api_key="right") as client:
        assert (await client.models.list()).data


@pytest.mark.parametrize("stream", [False, True])
async def test_engine_that_is_down_is_503_with_retry_after(start: Start, stream: bool) -> None:
    world = await start([EngineUnavailableError("the model server cannot be reached")])

    with pytest.raises(openai.InternalServerError) as caught:
        await world.ask(stream=stream)

    assert caught.value.status_code == 503
    assert caught.value.code == "engine_unavailable"
    assert int(caught.value.response.headers["retry-after"]) == 10
    assert caught.value.body["orchestrator"]["answer_id"] == world.ledger.records[0].answer_id
    assert world.ledger.payloads("outcome")[0]["outcome"] == "failed"


async def test_adapter_that_is_not_served_is_503_and_never_the_base(start: Start) -> None:
    world = await start()
    world.serving.adapters.clear()

    with pytest.raises(openai.InternalServerError) as caught:
        await world.ask()

    assert (caught.value.status_code, caught.value.code) == (503, "adapter_unavailable")
    assert world.engine.received == []


async def test_record_that_cannot_be_written_means_no_answer(start: Start) -> None:
    world = await start(ledger=MemoryLedger(fail_on="intent"))

    with pytest.raises(openai.InternalServerError) as caught:
        await world.ask()

    assert (caught.value.status_code, caught.value.code) == (503, "ledger")
    assert world.engine.received == []


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [(DatabaseError("down"), 503, "retry-after"), (StorageFullError("full"), 507, "retry-after")],
)
async def test_database_errors_keep_their_status(start: Start, error: Exception, status: int, header: str) -> None:
    world = await start([error])

    with pytest.raises(openai.InternalServerError) as caught:
        await world.ask()

    assert caught.value.status_code == status
    assert header in caught.value.response.headers


async def test_answer_that_breaks_its_contract_is_not_retried(start: Start) -> None:
    world = await start(("no json",))

    with pytest.raises(openai.InternalServerError) as caught:
        await world.ask()

    assert caught.value.code == "contract"
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_mistake_of_ours_is_told_without_its_inside(
    start: Start, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = await start([RuntimeError("secret-detail")])

    with pytest.raises(openai.InternalServerError) as caught:
        await world.ask(stream=stream)

    assert (caught.value.status_code, caught.value.code) == (500, "internal_error")
    assert "secret-detail" not in caught.value.response.text
    assert "secret-detail" in caplog.text


@pytest.mark.parametrize("delivered", range(len(PIECES) + 1))
async def test_stream_that_breaks_after_k_tokens_raises_in_the_client(start: Start, delivered: int) -> None:
    world = await start([*PIECES[:delivered], StreamBrokenError("the connection to the engine was lost")])
    seen: list[Any] = []

    with pytest.raises(openai.APIError) as caught:
        await world.read(into=seen)

    assert caught.value.code == "stream_broken"
    assert all(chunk.choices[0].finish_reason is None for chunk in seen)
    (outcome,) = world.ledger.payloads("outcome")
    assert outcome["outcome"] == ("partial" if delivered else "failed")
    assert outcome["output"] == "".join(PIECES[:delivered])
    assert "".join(chunk.choices[0].delta.content for chunk in seen) in "25 days of leave a year"


@pytest.mark.parametrize("delivered", range(len(PIECES) + 1))
async def test_stream_that_just_ends_raises_in_the_client(start: Start, delivered: int) -> None:
    world = await start(PIECES[:delivered], truncated=True)

    with pytest.raises(openai.APIError) as caught:
        await world.read(into=[])

    assert caught.value.code == "stream_broken"


@pytest.mark.parametrize("delivered", range(1, len(PIECES) + 1))
async def test_mistake_in_mid_stream_raises_in_the_client(start: Start, delivered: int) -> None:
    world = await start([*PIECES[:delivered], RuntimeError("secret-detail")])

    with pytest.raises(openai.APIError) as caught:
        await world.read(into=[])

    assert "secret-detail" not in str(caught.value.body)


async def test_unknown_path_and_method_have_the_same_shape(start: Start) -> None:
    world = await start()

    with pytest.raises(openai.NotFoundError) as missing:
        await world.official.post("/nothing", cast_to=object)
    with pytest.raises(openai.APIStatusError) as wrong:
        await world.official.get("/chat/completions", cast_to=object)

    assert missing.value.code == "not_found"
    assert (wrong.value.status_code, wrong.value.code) == (405, "method_not_allowed")
    assert wrong.value.response.headers["allow"] == "POST"


async def test_the_next_answer_is_right_after_a_broken_one(start: Start) -> None:
    world = await start([*PIECES[:2], StreamBrokenError("lost")], GROUNDED)

    with pytest.raises(openai.InternalServerError):
        await world.ask()

    assert (await world.ask(QUESTION)).choices[0].finish_reason == "stop"
