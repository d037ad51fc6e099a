"""Speaks to a vLLM server over HTTP: a Generation goes in, text deltas and then one Completion come out.

This is the only door to the model. What is sent is built from the Generation alone; closing or cancelling a stream
closes its connection at once, which makes vLLM stop generating.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from orchestrator.errors import (
    AdapterUnavailableError,
    ContractError,
    EngineError,
    EngineUnavailableError,
    OrchestratorError,
    StreamBrokenError,
)
from orchestrator.types import Completion, Generation, Usage
from orchestrator.vet import grammar_fault, schema_fault

CONTROL_TIMEOUT_S = 60  # loading an adapter on a busy machine
READY_TIMEOUT_S = 2
KEEP_ALIVE_S = 4  # vLLM's server drops an idle connection after 5 s; we drop it first
FIRST_TOKEN_PATIENCE = 4  # times token_timeout_s: behind other requests a long prompt takes over 30 s on a CPU
MAX_EVENT_BYTES = 4_000_000


class VllmEngine:
    """A vLLM server at ``url`` (without /v1)."""

    def __init__(
        self, url: str, api_key: str | None = None, token_timeout_s: float = 30, request_timeout_s: float = 120
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._token_timeout_s = token_timeout_s
        self._request_timeout_s = request_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """Text deltas, then one Completion. Raises EngineUnavailableError or EngineError before the first delta;
        StreamBrokenError when the stream errs, stalls or ends without ``[DONE]``."""
        deadline = asyncio.get_running_loop().time() + self._request_timeout_s
        response = await self._open(generation, deadline)
        try:
            reading = _Reading(generation.model)
            async with contextlib.aclosing(self._events(response, deadline)) as events:
                async for event in events:
                    if text := reading.take(event):
                        yield text
            yield reading.completion()
        finally:
            response.close()  # not release: an unread rest must not keep the connection, and so the generation, alive

    async def count_tokens(self, messages: Sequence[Mapping[str, str]], model: str) -> int:
        """Tokens of the conversation as vLLM renders it for an answer, generation prompt included."""
        body = {"model": model, "messages": [dict(message) for message in messages], "add_generation_prompt": True}
        status, answer = await self._call("POST", "/tokenize", body)
        if status != 200:
            raise self._refusal(status, answer, model)
        return int(answer["count"])

    async def models(self) -> list[str]:
        """Names that are served now: the base model and every loaded adapter."""
        status, answer = await self._call("GET", "/v1/models")
        if status != 200:
            raise self._refusal(status, answer, "")
        return [str(model["id"]) for model in answer["data"]]

    async def load_adapter(self, name: str, path: str) -> None:
        """Makes the adapter in the folder ``path`` (as the server sees it) answer under ``name``."""
        status, answer = await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if status == 200 or name in await self.models():
            return
        if status == 404 and "lora" not in _message(answer).lower():
            raise EngineError(
                f"The engine at {self.url} cannot load adapters. Start vLLM with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or preload the adapter with --lora-modules."
            )
        raise AdapterUnavailableError(f"The engine refused the adapter {name}: {_message(answer)}")

    async def unload_adapter(self, name: str) -> None:
        """Stops serving ``name``; a name that is not loaded is fine."""
        status, answer = await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if status not in (200, 404):
            raise EngineError(f"The engine did not unload the adapter {name}: {_message(answer)}")

    async def is_ready(self) -> bool:
        """True when the server answers its health check within 2 s."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S), self._http().get(f"{self.url}/health") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
            return False

    async def aclose(self) -> None:
        """Closes every connection; streams that still run are broken, and nothing is sent from then on."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _http(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise EngineUnavailableError("the connections to the engine are closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session

    async def _open(self, generation: Generation, deadline: float) -> aiohttp.ClientResponse:
        """The response with status 200, its body unread."""
        path, body = "/v1/chat/completions", orjson.dumps(request_body(generation))
        try:
            async with asyncio.timeout_at(self._patience(deadline, FIRST_TOKEN_PATIENCE)):
                response = await self._http().post(
                    self.url + path, data=body, headers={"content-type": "application/json"}, allow_redirects=False
                )
                if response.status == 200:
                    return response
                with contextlib.closing(response):
                    raise self._refusal(response.status, _json(await response.read()), generation.model)
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    async def _events(self, response: aiohttp.ClientResponse, deadline: float) -> AsyncGenerator[dict[str, Any]]:
        """Each ``data:`` event up to ``[DONE]``. Lines are cut in bytes: a character split over two reads survives."""
        buffer, patience = b"", FIRST_TOKEN_PATIENCE
        while True:
            try:
                async with asyncio.timeout_at(self._patience(deadline, patience)):
                    piece = await response.content.readany()
            except TimeoutError as error:
                raise StreamBrokenError(
                    f"The engine was silent for too long (ORCHESTRATOR_TOKEN_TIMEOUT_S={self._token_timeout_s:g}, "
                    f"ORCHESTRATOR_REQUEST_TIMEOUT_S={self._request_timeout_s:g}); the answer is incomplete. Ask again."
                ) from error
            except (aiohttp.ClientError, OSError) as error:
                raise StreamBrokenError(f"The engine's connection broke; the answer is incomplete: {error}") from error
            if not piece:
                raise StreamBrokenError("The engine's stream ended before [DONE]; the answer is incomplete. Ask again.")
            *lines, buffer = (buffer + piece).split(b"\n")
            if len(buffer) > MAX_EVENT_BYTES:
                raise StreamBrokenError("The engine sent an event without end; the answer is incomplete.")
            for line in lines:
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    patience = 1
                    yield _event(data)

    def _patience(self, deadline: float, factor: int) -> float:
        return min(deadline, asyncio.get_running_loop().time() + factor * self._token_timeout_s)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        data = None if body is None else orjson.dumps(body)
        headers = {"content-type": "application/json"} if data else {}
        try:
            async with (
                asyncio.timeout(CONTROL_TIMEOUT_S),
                self._http().request(
                    method, self.url + path, data=data, headers=headers, allow_redirects=False
                ) as response,
            ):
                return response.status, _json(await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> EngineUnavailableError:
        why = "does not answer in time" if isinstance(error, TimeoutError) else f"cannot be reached ({error})"
        return EngineUnavailableError(
            f"The engine at {self.url} {why}. "
            "Run `orchestrator status`, then `orchestrator up`, or check ORCHESTRATOR_ENGINE_URL."
        )

    def _refusal(self, status: int, answer: Mapping[str, Any], model: str) -> OrchestratorError:
        message = _message(answer)
        if status == 404 and "--" in model:
            return AdapterUnavailableError(f"The engine does not serve the adapter {model}: {message}")
        if status == 404:
            return EngineError(
                f"The engine at {self.url} has no model {model!r}: {message} "
                "Set ORCHESTRATOR_ENGINE_MODEL to a name it serves, and ORCHESTRATOR_ENGINE_URL without /v1."
            )
        if status in (401, 403):
            return EngineError(f"The engine answered {status}. Check ORCHESTRATOR_ENGINE_API_KEY.")
        if status in (429, 503):
            return EngineUnavailableError(f"The engine is busy or starting ({status}): {message}")
        return EngineError(f"The engine refused the request ({status}): {message}")


def request_body(generation: Generation) -> dict[str, Any]:
    """The body of ``/v1/chat/completions``. Sampling is spelt out: a model's generation_config.json changes defaults.

    Raises ContractError for a schema or a grammar that could hang the engine (row A6): this is the last door before it.
    """
    fault = generation.schema is not None and schema_fault(generation.schema)
    fault = fault or (generation.grammar is not None and grammar_fault(generation.grammar))
    if fault:
        raise ContractError(f"the contract is refused for the decoder: {fault}; run `orchestrator contracts check`")
    body: dict[str, Any] = {
        "model": generation.model,
        "messages": [{"role": message.role, "content": message.content} for message in generation.messages],
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": generation.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if generation.schema is not None:
        schema = {"name": "contract", "schema": dict(generation.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif generation.grammar is not None:
        body["structured_outputs"] = {"grammar": generation.grammar}
    if generation.stop:
        body["stop"] = list(generation.stop)
    if generation.cache_salt:
        body["cache_salt"] = generation.cache_salt
    return body


class _Reading:
    """What one stream has said so far."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.parts: list[str] = []
        self.finish: str | None = None
        self.usage = Usage()

    def take(self, event: Mapping[str, Any]) -> str:
        """The event's text, empty when it has none. Raises StreamBrokenError for an error event."""
        if "error" in event or event.get("object") == "error":
            raise StreamBrokenError(f"The engine failed while it answered: {_message(event)}")
        if usage := event.get("usage"):
            self.usage = Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        text = ""
        for choice in event.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
        if text:
            self.parts.append(text)
        return text

    def completion(self) -> Completion:
        """The whole answer. Raises StreamBrokenError unless the model itself ended it or the token limit did."""
        if self.finish not in ("stop", "length"):
            raise StreamBrokenError(f"The engine ended the answer early (finish_reason {self.finish}). Ask again.")
        return Completion("".join(self.parts), self.finish, self.model, self.usage)


def _event(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except ValueError as error:
        raise StreamBrokenError(f"The engine sent an event that is not JSON: {data[:100]!r}") from error
    if not isinstance(found, dict):
        raise StreamBrokenError(f"The engine sent an event that is not an object: {data[:100]!r}")
    return found


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except ValueError:
        found = {"message": body[:500].decode("utf-8", "replace")}
    return found if isinstance(found, dict) else {"message": str(found)[:500]}


def _message(answer: Mapping[str, Any]) -> str:
    error = answer.get("error", answer)
    if isinstance(error, Mapping):
        error = error.get("message") or answer.get("detail") or "no reason given"
    return str(error)[:500]
