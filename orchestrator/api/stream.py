"""An answer as server-sent events, and work that ends when its client goes away: events in, bytes out, no buffer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from orchestrator.api.schema import (
    ChatRequest,
    Json,
    Service,
    answer_content,
    chunk_body,
    error_body,
    finish_reason,
    own_fields,
    url_citations,
    usage_fields,
)
from orchestrator.errors import EngineUnavailableError, OrchestratorError
from orchestrator.types import Answer, Delta

T = TypeVar("T")
WRITE_TIMEOUT_S = 30.0  # a reader that takes nothing for so long has gone (row A10)
logger = logging.getLogger(__name__)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled when the client goes first. Raises ClientDisconnect then (row F5)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(slots=True)
class EventStream:
    """One streamed answer, as an ASGI response.

    Headers leave with the first text: an error before it has a status of its own, an error after it is an ``error``
    event without ``[DONE]``, at which the official client raises (row F6).
    """

    service: Service
    request: ChatRequest
    base_url: str
    created: int = field(default_factory=lambda: int(time.time()))
    started: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer. Raises ClientDisconnect, and OrchestratorError while no byte has been sent."""
        try:
            await while_connected(receive, self._run(send))
        except ClientDisconnect:
            if not self.started:
                raise

    async def _run(self, send: Send) -> None:
        try:
            await self._send_answer(send)
        except asyncio.CancelledError:  # the client has gone, or the server stops: then it is told
            if self.started:
                with suppress(ClientDisconnect, OSError):
                    await self._fail(send, EngineUnavailableError("the server is stopping; ask again"))
            raise
        except ClientDisconnect:
            raise
        except OrchestratorError as error:
            if not self.started:
                raise
            await self._fail(send, error)
        except Exception:
            if not self.started:
                raise
            logger.exception("answer %s broke", self.request.query.id)
            await self._fail(send, OrchestratorError("the server made a mistake; its log says which"))

    async def _send_answer(self, send: Send) -> None:
        async with aclosing(self.service.stream(self.request.query)) as events:
            async for event in events:
                if isinstance(event, Delta) and not self.request.as_json:
                    await self._send(send, self._chunk({"content": event.text}))
                elif isinstance(event, Answer):
                    await self._send(send, self._last(event))
        await self._write(send, b"data: [DONE]\n\n", more=False)

    def _chunk(self, delta: Json) -> bytes:
        return _event(chunk_body(self.request, self.created, delta))

    def _last(self, answer: Answer) -> bytes:
        """The chunk that ends the answer, and the one with the usage."""
        content = answer_content(answer, self.request)
        head = self._chunk({"content": content}) if self.request.as_json else b""
        delta = {"annotations": url_citations(answer, content, self.base_url)}
        last = chunk_body(self.request, self.created, delta, finish_reason(answer))
        last["orchestrator"] = own_fields(answer, self.request.ignored)
        if not self.request.include_usage:
            return head + _event(last)
        usage = {**chunk_body(self.request, self.created, None), "usage": usage_fields(answer.usage)}
        return head + _event(last) + _event(usage)

    async def _send(self, send: Send, data: bytes) -> None:
        if not self.started:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
                (b"x-request-id", self.request.query.id.encode()),
            ]
            self.started = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            data = self._chunk({"role": "assistant", "content": "", "refusal": None}) + data
        await self._write(send, data)

    async def _fail(self, send: Send, error: OrchestratorError) -> None:
        error.answer_id = error.answer_id or self.request.query.id
        await self._write(send, _event(error_body(error)), more=False)

    async def _write(self, send: Send, data: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError as error:
            logger.warning("answer %s: its reader took nothing for %.0f s", self.request.query.id, WRITE_TIMEOUT_S)
            raise ClientDisconnect from error


def _event(body: Json) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
