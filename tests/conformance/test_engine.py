"""What every Engine does alike (the real client against a server that speaks vLLM's protocol, and the public fake),
then what the client makes of a server that refuses, errs, stalls or dies."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from orchestrator.engine import VllmEngine
from orchestrator.errors import AdapterUnavailableError, EngineError, EngineUnavailableError, StreamBrokenError
from orchestrator.protocols import Engine
from orchestrator.testing import ScriptedEngine
from orchestrator.types import Completion, Generation, Message

GENERATION = Generation("base", (Message("system", "Be brief."), Message("user", "Hello?")), max_tokens=20)

Step = (
    bytes | float | str
)  # bytes to send, seconds to wait, or "reset": break the connection, "hang": until the client goes


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str) -> bytes:
    """An event with a stretch of the answer."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def finish(reason: str = "stop", prompt: int = 7, completion: int = 3) -> bytes:
    """The events after the last delta, as vLLM sends them."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    last = event({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": reason}]})
    return last + event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


@dataclass
class Stub:
    """What the server will do, and what it saw."""

    steps: Sequence[Step] = ()
    status: int = 200
    refusal: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    adapters_allowed: bool = True
    open: int = 0  # streams that run
    gone: int = 0  # streams whose client went away before their end

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status != 200:
            return web.json_response(self.refusal, status=self.status, headers={"location": f"{self.url}/elsewhere"})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        self.open += 1
        try:
            for step in self.steps:
                await self._play(step, request, response)
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            raise
        finally:
            self.open -= 1
        return response

    async def _play(self, step: Step, request: web.Request, response: web.StreamResponse) -> None:
        if step == "reset":
            assert request.transport is not None
            request.transport.abort()
        elif step == "hang":
            await asyncio.Event().wait()
        elif isinstance(step, bytes):
            await response.write(step)
        else:
            await asyncio.sleep(float(step))

    async def tokenize(self, request: web.Request) -> web.Response:
        messages = (await request.json())["messages"]
        return web.json_response({"count": sum(len(message["content"].split()) + 4 for message in messages)})

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in ("base", *self.adapters)]})

    async def load(self, request: web.Request) -> web.Response:
        if not self.adapters_allowed:
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        name = body["lora_name"]
        if name in self.adapters:
            message = f"The lora adapter '{name}' has already been loaded."
            return web.json_response({"error": {"message": message, "code": 400}}, status=400)
        if body["lora_path"] == "/nowhere":
            message = f"Loading lora {name} failed: No adapter found for /nowhere"
            return web.json_response({"error": {"message": message, "code": 404}}, status=404)
        self.adapters[name] = body["lora_path"]
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        if self.adapters.pop((await request.json())["lora_name"], None) is None:
            return web.json_response({"error": {"message": "cannot be found", "code": 404}}, status=404)
        return web.Response(text="Success")

    async def elsewhere(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        return web.Response()

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status)


@asynccontextmanager
async def serve(stub: Stub) -> AsyncIterator[Stub]:
    """The stub on a free port of loopback."""
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/chat/completions", stub.chat),
            web.post("/tokenize", stub.tokenize),
            web.get("/v1/models", stub.models),
            web.post("/v1/load_lora_adapter", stub.load),
            web.post("/v1/unload_lora_adapter", stub.unload),
            web.get("/health", stub.health),
            web.post("/elsewhere", stub.elsewhere),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stub
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Case:
    """An engine that plays one script, and how to see that a stream of it was left."""

    engine: Engine
    left_streams: Callable[[], int]


Open = Callable[..., Any]


@asynccontextmanager
async def vllm(deltas: Sequence[str], *, reason: str = "stop", broken: bool = False, hangs: bool = False):
    steps = [delta(text) for text in deltas]
    steps += ["hang"] if hangs else [] if broken else [finish(reason)]
    async with serve(Stub(steps)) as stub:
        engine = VllmEngine(stub.url)
        try:
            yield Case(engine, lambda: stub.gone)
        finally:
            await engine.aclose()


@asynccontextmanager
async def scripted(deltas: Sequence[str], *, reason: str = "stop", broken: bool = False, hangs: bool = False):
    end: list[Any] = [asyncio.Event()] if hangs else []
    end += [StreamBrokenError("broken")] if broken else [Completion("".join(deltas), reason, "base")]
    engine = ScriptedEngine([*deltas, *end])
    yield Case(engine, lambda: engine.cancelled)


@pytest.fixture(params=[vllm, scripted], ids=["VllmEngine", "ScriptedEngine"])
def opened(request: pytest.FixtureRequest) -> Open:
    return request.param  # type: ignore[no-any-return]


async def collect(stream: AsyncIterator[str | Completion]) -> list[str | Completion]:
    return [piece async for piece in stream]


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_is_an_engine(opened: Open) -> None:
    async with opened(["a"]) as case:
        assert isinstance(case.engine, Engine)


async def test_deltas_join_to_the_text_of_one_completion_at_the_end(opened: Open) -> None:
    async with opened(["Hél", "lo ", "🌍"]) as case:
        pieces = await collect(case.engine.stream(GENERATION))

    assert pieces[:-1] == ["Hél", "lo ", "🌍"]
    assert isinstance(pieces[-1], Completion)
    assert (pieces[-1].text, pieces[-1].model) == ("Héllo 🌍", "base")


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_the_finish_reason_is_told(opened: Open, reason: str) -> None:
    async with opened(["a"], reason=reason) as case:
        assert (await collect(case.engine.stream(GENERATION)))[-1].finish_reason == reason  # type: ignore[union-attr]


async def test_an_answer_without_text_is_an_answer(opened: Open) -> None:
    async with opened([]) as case:
        pieces = await collect(case.engine.stream(GENERATION))

    assert [piece.text for piece in pieces if isinstance(piece, Completion)] == [""]


async def test_a_stream_that_ends_early_raises_after_what_arrived(opened: Open) -> None:
    arrived: list[str | Completion] = []
    async with opened(["one", "two"], broken=True) as case:
        with pytest.raises(StreamBrokenError):  # noqa: PT012
            async for piece in case.engine.stream(GENERATION):
                arrived.append(piece)

    assert arrived == ["one", "two"]


async def test_closing_a_stream_ends_its_generation(opened: Open) -> None:
    async with opened(["one"], hangs=True) as case:
        async with aclosing(case.engine.stream(GENERATION)) as stream:
            assert await anext(stream) == "one"
        await eventually(lambda: case.left_streams() == 1)


async def test_cancelling_a_stream_ends_its_generation(opened: Open) -> None:
    async with opened(["one"], hangs=True) as case:
        arrived = asyncio.Event()

        async def read() -> None:
            async with aclosing(case.engine.stream(GENERATION)) as stream:
                async for _ in stream:
                    arrived.set()

        reading = asyncio.create_task(read())
        await arrived.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await eventually(lambda: case.left_streams() == 1)


async def test_two_streams_do_not_mix(opened: Open) -> None:
    async with opened(["a", "b"]) as case:
        both = await asyncio.gather(*(collect(case.engine.stream(GENERATION)) for _ in range(2)))

    assert [pieces[:-1] for pieces in both] == [["a", "b"], ["a", "b"]]


async def test_tokens_grow_with_the_text(opened: Open) -> None:
    async with opened([]) as case:
        count: Callable[[str], Awaitable[int]] = lambda text: case.engine.count_tokens(  # noqa: E731
            [{"role": "user", "content": text}], "base"
        )
        assert 0 < await count("one") < await count("one two three")


async def test_an_adapter_is_loaded_once_and_unloaded(opened: Open) -> None:
    async with opened([]) as case:
        await case.engine.load_adapter("a--1", "/some/where")
        await case.engine.load_adapter("a--1", "/some/where")
        assert await case.engine.models() == ["base", "a--1"]

        await case.engine.unload_adapter("a--1")
        await case.engine.unload_adapter("a--1")
        assert await case.engine.models() == ["base"]


async def test_it_is_ready(opened: Open) -> None:
    async with opened([]) as case:
        assert await case.engine.is_ready()


# What the client makes of a server that is not well


@asynccontextmanager
async def against(stub: Stub, **options: Any) -> AsyncIterator[VllmEngine]:
    """A client of that server."""
    async with serve(stub):
        engine = VllmEngine(stub.url, **options)
        try:
            yield engine
        finally:
            await engine.aclose()


async def broken(engine: VllmEngine) -> tuple[list[str], str]:
    """The deltas that came before the stream broke, and what was said about it."""
    arrived: list[str] = []
    with pytest.raises(StreamBrokenError) as caught:  # noqa: PT012
        async for piece in engine.stream(GENERATION):
            assert isinstance(piece, str)
            arrived.append(piece)
    return arrived, caught.value.message


async def test_the_body_holds_what_the_generation_says_and_nothing_else() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    asked = Generation("base", GENERATION.messages, 9, 0.5, 3, schema=schema, stop=("x",), cache_salt="ab12")
    stub = Stub([finish()])

    async with against(stub, api_key="secret") as engine:
        await collect(engine.stream(asked))

    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert stub.bodies == [
        {
            "model": "base",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
            "max_tokens": 9,
            "temperature": 0.5,
            "seed": 3,
            "stop": ["x"],
            "cache_salt": "ab12",
            "stream": True,
            "stream_options": {"include_usage": True},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "contract", "schema": schema, "strict": True},
            },
            **neutral,
        }
    ]
    assert stub.headers[0]["authorization"] == "Bearer secret"


async def test_what_was_not_asked_for_is_not_sent() -> None:
    stub = Stub([finish()])

    async with against(stub) as engine:
        await collect(engine.stream(GENERATION))

    assert {"response_format", "stop", "cache_salt"} & stub.bodies[0].keys() == set()
    assert "authorization" not in stub.headers[0]


async def test_tokens_are_as_the_server_counted_them() -> None:
    async with against(Stub([delta("a"), finish(prompt=11, completion=5)])) as engine:
        completion = (await collect(engine.stream(GENERATION)))[-1]

    assert isinstance(completion, Completion)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (11, 5)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_bytes_may_arrive_in_any_pieces(size: int) -> None:
    whole = b": comment\r\n\r\n" + delta("Grüße, 世界 🌍").replace(b"\n", b"\r\n") + delta("!") + finish()
    pieces: list[Step] = []
    for start in range(0, len(whole), size):
        pieces += [whole[start : start + size], 0.0]

    async with against(Stub(pieces)) as engine:
        found = await collect(engine.stream(GENERATION))

    assert found[:-1] == ["Grüße, 世界 🌍", "!"]


async def test_an_error_inside_the_stream_breaks_it() -> None:
    error = event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})

    async with against(Stub([delta("a"), error, b"data: [DONE]\n\n"])) as engine:
        arrived, message = await broken(engine)

    assert arrived == ["a"]
    assert "EngineCore died" in message


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_an_end_without_done_is_no_answer(count: int) -> None:
    async with against(Stub([delta("a")] * count)) as engine:
        arrived, _ = await broken(engine)

    assert arrived == ["a"] * count


async def test_an_end_after_the_finish_reason_but_without_done_is_no_answer() -> None:
    async with against(Stub([delta("a"), finish().replace(b"data: [DONE]\n\n", b"")])) as engine:
        assert (await broken(engine))[0] == ["a"]


@pytest.mark.parametrize("reason", ["abort", "error", "tool_calls"])
async def test_an_answer_that_the_model_did_not_end_is_broken(reason: str) -> None:
    async with against(Stub([delta("a"), finish(reason)])) as engine:
        assert reason in (await broken(engine))[1]


async def test_done_without_a_finish_reason_is_broken() -> None:
    async with against(Stub([delta("a"), b"data: [DONE]\n\n"])) as engine:
        assert (await broken(engine))[0] == ["a"]


async def test_a_reset_connection_is_broken() -> None:
    async with against(Stub([delta("a"), 0.05, "reset"])) as engine:
        assert (await broken(engine))[0] == ["a"]


@pytest.mark.parametrize("junk", [b"data: {half\n\n", b"data: [1]\n\n", b"data: \xff\n\n"])
async def test_an_event_that_is_no_object_is_broken(junk: bytes) -> None:
    async with against(Stub([delta("a"), junk, finish()])) as engine:
        assert (await broken(engine))[0] == ["a"]


@pytest.mark.parametrize("before", [[], [delta("a")]], ids=["before the first token", "between two tokens"])
async def test_silence_breaks_the_stream_and_ends_the_generation(before: list[Step]) -> None:
    stub = Stub([*before, "hang"])

    async with against(stub, token_timeout_s=0.05) as engine:
        _, message = await broken(engine)
        await eventually(lambda: stub.gone == 1)

    assert "ORCHESTRATOR_TOKEN_TIMEOUT_S" in message


async def test_a_stream_that_drips_forever_ends_with_the_request() -> None:
    async with against(Stub([delta("a"), 0.02] * 1000), request_timeout_s=0.2) as engine:
        arrived, message = await broken(engine)

    assert arrived
    assert "ORCHESTRATOR_REQUEST_TIMEOUT_S" in message


async def test_two_hundred_clients_that_go_away_stop_two_hundred_generations() -> None:
    stub = Stub([delta("a"), "hang"])

    async def leave(engine: VllmEngine) -> None:
        with pytest.raises(TimeoutError):  # noqa: PT012
            async with asyncio.timeout(0.5), aclosing(engine.stream(GENERATION)) as stream:
                async for _ in stream:
                    pass

    async with against(stub) as engine:
        await asyncio.gather(*(leave(engine) for _ in range(200)))
        await eventually(lambda: stub.open == 0)
        stub.steps = [delta("a"), finish()]
        assert len(await collect(engine.stream(GENERATION))) == 2


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        engine = VllmEngine(f"http://127.0.0.1:{free.getsockname()[1]}")
        try:
            with pytest.raises(EngineUnavailableError, match="orchestrator up"):
                await collect(engine.stream(GENERATION))
            with pytest.raises(EngineUnavailableError):
                await engine.models()
            assert not await engine.is_ready()
        finally:
            await engine.aclose()


@pytest.mark.parametrize(
    ("status", "model", "error"),
    [
        (400, "base", EngineError),
        (401, "base", EngineError),
        (404, "base", EngineError),
        (404, "a--123", AdapterUnavailableError),
        (429, "base", EngineUnavailableError),
        (500, "base", EngineError),
        (503, "base", EngineUnavailableError),
    ],
)
async def test_a_refusal_has_its_error(status: int, model: str, error: type[EngineError]) -> None:
    stub = Stub(status=status, refusal={"error": {"message": "because", "code": status}})

    async with against(stub) as engine:
        with pytest.raises(EngineError) as caught:
            await collect(engine.stream(Generation(model, GENERATION.messages, 5)))

    assert type(caught.value) is error
    assert status == 401 or "because" in caught.value.message


async def test_a_refusal_leaves_the_connection_usable() -> None:
    stub = Stub(status=400, refusal={"error": {"message": "too long"}})

    async with against(stub) as engine:
        with pytest.raises(EngineError, match="too long"):
            await collect(engine.stream(GENERATION))
        stub.status, stub.steps = 200, [finish()]
        assert len(await collect(engine.stream(GENERATION))) == 1


async def test_a_redirect_is_not_followed() -> None:
    stub = Stub(status=307, refusal={})

    async with against(stub) as engine:
        with pytest.raises(EngineError):
            await collect(engine.stream(GENERATION))

    assert len(stub.bodies) == 1


async def test_an_adapter_that_the_server_cannot_load_is_named() -> None:
    async with against(Stub()) as engine:
        with pytest.raises(AdapterUnavailableError, match="a--1"):
            await engine.load_adapter("a--1", "/nowhere")


async def test_a_server_without_run_time_adapters_is_told() -> None:
    async with against(Stub(adapters_allowed=False)) as engine:
        with pytest.raises(EngineError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await engine.load_adapter("a--1", "/some/where")


async def test_a_sick_server_is_not_ready() -> None:
    async with against(Stub(status=503)) as engine:
        assert not await engine.is_ready()
