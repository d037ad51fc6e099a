"""Adapters through the HTTP door: whose may be named, what an engine's own paths answer here, what a missing one costs."""

from __future__ import annotations

import openai
import pytest

from orchestrator.errors import AdapterUnavailableError

from .conftest import ADAPTER, GROUNDED_TEXT, Start

# Row B10: an adapter of another tenant, the engine's own names, near-names, paths, digests.
NOT_MODELS = [
    "adapter-of-b", "adapter-of-b--abababababab", "base", "merged", "cited-answer ", " cited-answer", "Cited-Answer",
    "сited-answer", "cited‑answer", "cited-answer--abababababab", "cited-answer\u0000", "ab" * 32, "../cited-answer",
    "cited-answer/..", "/adapters/cited-answer", "orchestrator/cited-answer", "*", "%",
]  # fmt: skip

# Row D6: what vLLM serves besides answers (its security.md), none of it through our door.
CONTROL_PATHS = [
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/invocations", "/pause", "/resume", "/is_paused", "/sleep",
    "/wake_up", "/is_sleeping", "/update_weights", "/init_weight_transfer_engine", "/get_world_size", "/collective_rpc",
    "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/server_info", "/scale_elastic_ep",
    "/is_scaling_elastic_ep", "/abort_requests", "/tokenize", "/detokenize", "/tokenizer_info", "/v1/completions",
    "/inference/v1/generate", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/metrics", "/load", "/version",
    "/start_profile", "/stop_profile", "/ping",
]  # fmt: skip


async def test_only_what_is_listed_may_be_named_and_nobody_is_told_why_not(start: Start) -> None:
    world = await start()
    listed = {model.id for model in (await world.official.models.list()).data}

    refusals = [await world.refusal(model=name) for name in NOT_MODELS]

    assert listed.isdisjoint(NOT_MODELS)
    assert {(error.status_code, error.code) for error in refusals} == {(404, "model_not_found")}
    assert world.engine.received == []


@pytest.mark.parametrize("path", CONTROL_PATHS)
async def test_the_engines_control_plane_is_not_behind_our_door(start: Start, path: str) -> None:
    world = await start()

    for method in ("get", "post"):
        with pytest.raises(openai.NotFoundError):
            await getattr(world.official, method)(world.url + path, cast_to=object)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_adapter_that_is_missing_is_503_with_the_time_to_come_back(start: Start, stream: bool) -> None:
    """Row D7: asked for an adapter, the base never answers."""
    world = await start([AdapterUnavailableError("404")], [AdapterUnavailableError("404")])

    with pytest.raises(openai.InternalServerError) as caught:
        await world.ask(stream=stream)

    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert {generation.model for generation in world.engine.received} == {ADAPTER.served_name}


async def test_an_answer_names_the_digest_of_the_weights_that_wrote_it(start: Start) -> None:
    """Row D3: the served name is in the answer and in the ledger."""
    world = await start()

    answer = await world.ask()

    assert answer.choices[0].message.content == GROUNDED_TEXT
    assert answer.orchestrator["adapter"] == ADAPTER.served_name
    (intent,) = world.ledger.payloads("intent")
    assert intent["adapter"] == {"name": ADAPTER.served_name, "digest": ADAPTER.digest}


class TwoArms:
    """Remembers under which key each question came."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.keys: list[str | None] = []

    async def resolve(self, adapter: str | None, key: str | None = None) -> object:
        self.keys.append(key)
        return await self._inner.resolve(adapter, key)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


async def test_a_user_and_a_conversation_stay_together(start: Start) -> None:
    world = await start()
    arms = TwoArms(world.serving)
    object.__setattr__(world.orchestrator.pipeline, "serving", arms)
    turns = [{"role": "user", "content": "How many days of leave do I get?"}]
    later = [
        *turns,
        {"role": "assistant", "content": "25"},
        {"role": "user", "content": "How many days of leave a year?"},
    ]

    await world.ask(messages=turns)
    await world.ask(messages=later)
    await world.ask(messages=later, user="ann")
    await world.ask(messages=turns, safety_identifier="ann")

    assert arms.keys == [turns[0]["content"], turns[0]["content"], "ann", "ann"]
