"""Chat completions through the unmodified official client: content, citations, streams and what a caller may choose."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from orchestrator.testing import MemoryLedger
from orchestrator.types import Completion, Usage
from tests.acceptance.conftest import ADAPTER, DIRECT, GROUNDED, GROUNDED_TEXT, LEAVE, QUESTION, Start


async def test_answer_carries_text_usage_and_the_recorded_id(start: Start) -> None:
    world = await start()

    reply = await world.ask()

    assert reply.choices[0].message.content == GROUNDED_TEXT
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.model_dump() == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15} | {
        key: value for key, value in reply.usage.model_dump().items() if value is None
    }
    assert {record.answer_id for record in world.ledger.records} == {reply.id} == {reply._request_id}
    assert [record.kind for record in world.ledger.records] == ["intent", "outcome"]


async def test_citation_is_an_annotation_that_points_at_its_marker(start: Start) -> None:
    world = await start()

    message = (await world.ask()).choices[0].message

    (annotation,) = message.annotations
    cited = annotation.url_citation
    assert message.content[cited.start_index : cited.end_index] == "[1]"
    assert cited.title == "Document 1"
    assert cited.url == f"{world.url}/v1/documents/doc-1/versions/1#char=0,{len(LEAVE)}"


async def test_own_fields_stand_under_one_key(start: Start) -> None:
    world = await start()

    own = (await world.ask()).orchestrator

    assert own["route"] == "grounded"
    assert own["data"] == {"answerable": True, "citations": [1], "answer": "25 days of leave", "evidence": LEAVE}
    assert own["citations"][0]["quote"] == LEAVE
    assert len(own["citations"][0]["quote_sha256"]) == 64
    assert own["passages"][0]["external_id"] == "doc-1.md"
    assert own["adapter"] == ADAPTER.served_name
    assert own["plan"]["reason"]


async def test_stream_brings_the_same_text_and_annotations(start: Start) -> None:
    world = await start()

    chunks = [chunk async for chunk in await world.ask(stream=True, stream_options={"include_usage": True})]

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == GROUNDED_TEXT
    assert len([text for text in texts if text]) > 2
    assert chunks[0].choices[0].delta.role == "assistant"
    last, usage = chunks[-2:]
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.annotations[0]["url_citation"]["start_index"] == GROUNDED_TEXT.index("[1]")
    assert last.orchestrator["route"] == "grounded"
    assert usage.choices == []
    assert usage.usage.total_tokens == 15
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("question", [QUESTION, "Help", "nothing in common"])
async def test_bodies_keep_the_official_types_strictly(start: Start, question: str) -> None:
    world = await start()
    body = {"model": "orchestrator", "messages": [{"role": "user", "content": question}]}
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}

    async with httpx.AsyncClient(base_url=f"{world.url}/v1") as client:
        whole = await client.post("/chat/completions", json=body)
        lines = [line async for line in (await client.post("/chat/completions", json=streamed)).aiter_lines() if line]
        models = await client.get("/models")
        vectors = await client.post("/embeddings", json={"model": "hash-64", "input": "x"})

    ChatCompletion.model_validate_json(whole.content, strict=True)
    chunks = [ChatCompletionChunk.model_validate_json(line.removeprefix("data: "), strict=True) for line in lines[:-1]]
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    CreateEmbeddingResponse.model_validate_json(vectors.content, strict=True)
    assert [Model.model_validate(entry, strict=True).object for entry in models.json()["data"]].count("model") == 11


async def test_stream_helper_of_the_client_accumulates_the_answer(start: Start) -> None:
    world = await start()
    async with (
        world.client() as client,
        client.chat.completions.stream(
            model="orchestrator", messages=[{"role": "user", "content": QUESTION}]
        ) as stream,
    ):
        async for _ in stream:
            pass
        reply = await stream.get_final_completion()

    assert reply.choices[0].message.content == GROUNDED_TEXT


async def test_outcome_is_recorded_before_done_is_sent(start: Start) -> None:
    world = await start()
    body = {"model": "orchestrator", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}

    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{world.url}/v1/chat/completions", json=body) as reply,
    ):
        lines: list[str] = []
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                recorded_at_done = len(world.ledger.payloads("outcome"))
            lines += [line] if line else []

    assert lines[-1] == "data: [DONE]"
    assert lines.count("data: [DONE]") == 1
    assert recorded_at_done == 1
    assert reply.headers["content-type"].startswith("text/event-stream")


async def test_a_refused_outcome_record_leaves_no_done(start: Start) -> None:
    world = await start(ledger=MemoryLedger(fail_on="outcome"))
    body = {"model": "orchestrator", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}

    async with httpx.AsyncClient() as client:
        text = (await client.post(f"{world.url}/v1/chat/completions", json=body)).text

    assert "[DONE]" not in text
    assert '"code":"ledger"' in text
    assert '"finish_reason":"stop"' not in text


async def test_model_name_pins_a_route(start: Start) -> None:
    world = await start(DIRECT)

    reply = await world.ask(model="orchestrator/direct")

    assert reply.model == "orchestrator/direct"
    assert reply.choices[0].message.content == "Good morning"
    assert reply.orchestrator["plan"]["reason"] == "pinned by the caller"
    assert reply.choices[0].message.annotations == []


async def test_model_name_pins_an_adapter_and_its_route(start: Start) -> None:
    world = await start()

    reply = await world.ask("Rewrite: hello", model="cited-answer")

    assert (reply.orchestrator["route"], reply.orchestrator["adapter"]) == ("grounded", ADAPTER.served_name)


async def test_own_options_reach_the_plan(start: Start) -> None:
    world = await start()

    reply = await world.ask(
        seed=7,
        max_tokens=50,
        temperature=0.5,
        extra_body={"orchestrator": {"route": "grounded", "as_of": "2025-03-01", "k": 2}},
    )

    plan = reply.orchestrator["plan"]
    assert plan["as_of"].startswith("2025-03-01T23:59:59")
    assert (plan["k"], plan["seed"], plan["max_tokens"], plan["temperature"]) == (2, 7, 50, 0.5)
    assert len(reply.orchestrator["passages"]) == 2


async def test_unknown_collection_finds_nothing_and_says_so(start: Start) -> None:
    world = await start()

    reply = await world.ask(extra_body={"orchestrator": {"collection": "empty", "route": "grounded"}})

    assert reply.choices[0].message.content == "The documents do not answer this question."
    assert reply.orchestrator["flags"] == ["no_passages"]
    assert world.engine.received == []


async def test_system_messages_are_not_obeyed_and_named(start: Start) -> None:
    world = await start(DIRECT)

    reply = await world.ask(
        model="orchestrator/direct",
        messages=[
            {"role": "system", "content": "PIRATE"},
            {"role": "user", "content": "earlier"},
            {"role": "assistant", "content": "before"},
            {"role": "developer", "content": "PIRATE"},
            {"role": "user", "content": [{"type": "text", "text": "Rewrite:"}, {"type": "text", "text": "hello"}]},
        ],
    )

    sent = [(message.role, message.content) for message in world.engine.received[0].messages]
    assert sent[-3:] == [("user", "earlier"), ("assistant", "before"), ("user", "Rewrite:\nhello")]
    assert "PIRATE" not in str(sent)
    assert reply.orchestrator["ignored"] == ["messages[0] (system)", "messages[3] (developer)"]


async def test_a_reply_of_ours_can_be_sent_back_as_history(start: Start) -> None:
    world = await start(DIRECT)
    first = await world.ask(model="orchestrator/direct")

    second = await world.ask(
        model="orchestrator/direct",
        messages=[
            {"role": "user", "content": "Rewrite: hello"},
            first.choices[0].message.model_dump(),
            {"role": "user", "content": "Shorter: hello"},
        ],
    )

    assert second.choices[0].message.content == "Good morning"


@pytest.mark.parametrize("stream", [False, True])
async def test_json_object_gives_the_contracts_object(start: Start, stream: bool) -> None:
    world = await start()

    reply = await world.ask(response_format={"type": "json_object"}, stream=stream)
    if stream:
        content = "".join([chunk.choices[0].delta.content or "" async for chunk in reply])
    else:
        content = reply.choices[0].message.content

    said = {"answerable": True, "citations": [1], "answer": "25 days of leave", "evidence": LEAVE}
    assert json.loads(content) == said


async def test_json_object_of_a_route_without_a_model_is_json_too(start: Start) -> None:
    world = await start()

    reply = await world.ask("Help", response_format={"type": "json_object"})

    assert "full question" in json.loads(reply.choices[0].message.content)["reply"]


async def test_an_answer_that_was_cut_off_is_not_called_stopped(start: Start) -> None:
    whole = "".join(GROUNDED)
    world = await start([whole, Completion(whole, "length", "base", Usage(10, 5))])

    reply = await world.ask()
    chunks = [chunk async for chunk in await world.ask(stream=True)]

    assert reply.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"


async def test_only_allow_listed_keys_reach_the_engine(start: Start) -> None:
    world = await start()

    await world.ask(user="someone", metadata={"a": "b"}, n=1, top_p=1, logit_bias={}, frequency_penalty=0, store=False)

    (sent,) = world.engine.received
    assert sent.cache_salt is None
    assert "someone" not in repr(sent)


async def test_a_link_never_begins_with_the_host_header(start: Start) -> None:
    world = await start()
    async with AsyncOpenAI(
        base_url=f"{world.url}/v1", api_key="any", max_retries=0, default_headers={"Host": "evil.example"}
    ) as client:
        reply = await client.chat.completions.create(
            model="orchestrator", messages=[{"role": "user", "content": QUESTION}]
        )

    assert reply.choices[0].message.annotations[0].url_citation.url.startswith(world.url)


async def test_two_hundred_answers_at_once_are_not_mixed(start: Start) -> None:
    world = await start(GROUNDED)
    async with world.client(default_headers={"X-Request-Id": "same", "Idempotency-Key": "same"}) as client:
        replies = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="orchestrator", messages=[{"role": "user", "content": f"{QUESTION} {number}"}]
                )
                for number in range(200)
            )
        )

    assert len({reply.id for reply in replies}) == 200
    asked = {record.answer_id: json.loads(record.payload) for record in world.ledger.records if record.kind == "intent"}
    assert [asked[reply.id]["question"] for reply in replies] == [f"{QUESTION} {number}" for number in range(200)]
