"""The HTTP server: an open Orchestrator in, an ASGI application out; keys, limits and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.schema import (
    Json,
    Service,
    completion_body,
    embeddings_body,
    error_body,
    error_headers,
    model_body,
    models_body,
    parse_chat,
    parse_embedding,
    parse_json,
)
from orchestrator.api.stream import EventStream, while_connected
from orchestrator.errors import InputError, LaunchError, OrchestratorError, TooLargeError, UnknownNameError

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
MAX_BODY_BYTES = 2_000_000
BODY_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 2.0
DRAIN_S = 30
logger = logging.getLogger(__name__)


def create_app(service: Service, *, base_url: str | None = None) -> Starlette:
    """The application over an open Orchestrator; mount it in another one, or run it with ``serve``.

    ``base_url`` is what links to documents begin with; without it they begin with the address in the settings.
    """
    settings = service.settings
    base = (base_url or _url(settings.host, settings.port)).rstrip("/")
    api = Api(service, base)
    return Starlette(
        routes=api.routes(),
        middleware=[Middleware(RequireKey, keys=settings.api_keys)],
        exception_handlers={
            OrchestratorError: _answer_error,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_mistake,
        },
    )


class RequireKey:
    """Refuses every request without a key, decided from the path that is routed, never from a Host header (row A1).

    Without keys everything is open. ``/healthz`` and ``/readyz`` always are.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._may_pass(scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            error = InputError("this server asks for a key: send it as Authorization: Bearer KEY")
            error.code, error.http_status = "invalid_api_key", 401
            await _json(error_body(error), 401, {**error_headers(error), "www-authenticate": "Bearer"})(
                scope, receive, send
            )
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _may_pass(self, scope: Scope) -> bool:
        if not self._digests:
            return True
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


class Api:
    """The endpoints."""

    def __init__(self, service: Service, base_url: str) -> None:
        self._service = service
        self._base_url = base_url
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """Every path there is."""
        return [
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/documents/{document_id:path}/versions/{number}", self.document, methods=["GET"]),
        ]

    async def healthz(self, request: Request) -> Response:
        """The event loop runs."""
        return _json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """A question could be answered now; else 503 with the reasons."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                reasons = await self._service.readiness()
        except TimeoutError:
            reasons = [f"the checks took more than {READY_TIMEOUT_S:.0f} s"]
        if not reasons:
            return _json({"status": "ready"})
        return _json({"status": "not ready", "reasons": reasons}, 503, {"retry-after": "5"})

    async def models(self, request: Request) -> Response:
        """What a client may name as model."""
        return _json(models_body(await self._names(), self._created))

    async def model(self, request: Request) -> Response:
        """One model."""
        name = request.path_params["model"]
        if name not in await self._names():
            error = UnknownNameError(f"The model {name[:80]!r} does not exist", param="model")
            error.code = "model_not_found"
            raise error
        return _json(model_body(name, self._created))

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts."""
        body = parse_json(await _read_body(request))
        wanted = parse_embedding(body, self._service.embedding_model, self._service.settings.max_question_chars)
        vectors = await while_connected(request.receive, self._service.embed(list(wanted.texts)))
        return _json(embeddings_body(wanted, vectors))

    async def chat(self, request: Request) -> Any:
        """An answer, at once or streamed; it is in the ledger before the last byte leaves."""
        body = parse_json(await _read_body(request))
        chat = parse_chat(body, self._service.catalogue, self._service.settings.tenant)
        if chat.stream:
            return EventStream(self._service, chat, self._base_url)
        answer = await while_connected(request.receive, self._service.answer(chat.query))
        return _json(
            completion_body(answer, chat, int(time.time()), self._base_url), headers={"x-request-id": answer.id}
        )

    async def document(self, request: Request) -> Response:
        """The text that a citation's link names; its ``#char=a,b`` counts this text's characters (RFC 5147)."""
        document_id, number = request.path_params["document_id"], request.path_params["number"]
        if not document_id.isprintable() or not number.isascii() or not number.isdigit() or len(number) > 9:
            raise UnknownNameError("there is no document version of that name", param="document_id")
        version = await self._service.document_version(document_id, int(number))
        safe = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; sandbox"}
        return Response(version.text, headers=safe, media_type="text/plain")

    async def _names(self) -> list[str]:
        return [*await self._service.model_names(), self._service.embedding_model]


async def serve(
    service: Service, host: str, port: int, *, base_url: str | None = None, ready: Callable[[str], None] | None = None
) -> None:
    """Serves until SIGINT or SIGTERM, then lets running answers end (30 s; a second signal or a cancel cuts them off).

    ``ready`` is called with the server's URL; port 0 takes a free one. Raises LaunchError when the address is taken.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    url = _url(host, listener.getsockname()[1])
    config = uvicorn.Config(
        create_app(service, base_url=base_url or url),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = _Server(config)
    if ready:
        ready(url)
    try:
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        server.force_exit = True
        await server.shutdown(sockets=[listener])
        raise
    finally:
        listener.close()
        await _end(server.server_state.tasks)


class _Server(uvicorn.Server):
    """uvicorn that returns after a signal; its own raises the signal again, and the process would not end with 0."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Ends the answers that outlasted the drain; each sends its client an error event."""
    left = set(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=5)


async def _read_body(request: Request) -> bytes:
    """The body. Raises TooLargeError over 2 MB, InputError when it is no JSON upload or comes too slowly."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site can send a form to an open server, but not this type
        raise InputError("send the body as Content-Type: application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InputError("send the body without Content-Encoding")
    length = request.headers.get("content-length", "0")
    parts: list[bytes] = []
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if size <= MAX_BODY_BYTES:
                size = 0
                async for part in request.stream():
                    size += len(part)
                    if size > MAX_BODY_BYTES:
                        break
                    parts.append(part)
    except TimeoutError as error:
        slow = InputError(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s")
        slow.code, slow.http_status = "request_timeout", 408
        raise slow from error
    if size > MAX_BODY_BYTES:
        raise TooLargeError(f"the body is larger than {MAX_BODY_BYTES} bytes")
    return b"".join(parts)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OrchestratorError)
    if error.http_status >= 500:
        logger.error("%s %s: %s", error.code, error.answer_id or "", error.message)
    return _json(error_body(error), error.http_status, error_headers(error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        wrong = InputError(f"{request.method} is not allowed here")
        wrong.code = "method_not_allowed"
    else:
        wrong = InputError(f"{request.method} {request.scope['path'][:80]!r} does not exist")
        wrong.code = "not_found"
    wrong.http_status = error.status_code
    return _json(error_body(wrong), error.status_code, {**error_headers(wrong), **(error.headers or {})})


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _answer_mistake(request: Request, error: Exception) -> Response:
    mistake = OrchestratorError("the server made a mistake; its log says which")
    return _json(error_body(mistake), 500, error_headers(mistake))


def _json(body: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
