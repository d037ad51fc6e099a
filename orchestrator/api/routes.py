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
from collections.abc import Callable, Generator
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

from orchestrator.api.feedback import feedback_body, parse_feedback
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
from orchestrator.errors import (
    DatabaseError,
    InputError,
    LaunchError,
    OrchestratorError,
    TooLargeError,
    UnknownNameError,
)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
MAX_BODY_BYTES = 2_000_000
BODY_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 2.0
DRAIN_S = 30
TENANT = "orchestrator.tenant"  # where the scope says for whom a request works
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
        middleware=[Middleware(RequireKey, service=service)],
        exception_handlers={
            OrchestratorError: _answer_error,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_mistake,
        },
    )


class RequireKey:
    """Finds the tenant of a request's key, or refuses it; decided from the path that is routed, never from a Host header.

    A key of the settings is the settings' tenant's. Where there are neither such keys nor any of a tenant, everybody
    is that tenant. ``/healthz`` and ``/readyz`` are always open (rows A1, A2, B9).
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._tenant = service.settings.tenant
        self._keys = service.keys
        self._digests = [hashlib.sha256(key.encode()).digest() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass, with its tenant."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"].removeprefix(scope.get("root_path", "")) in OPEN_PATHS:
            await self.app(scope, receive, send)
        else:
            try:
                scope[TENANT] = await self._find_tenant(scope)
            except OrchestratorError as error:
                challenge = {"www-authenticate": "Bearer"} if error.http_status == 401 else {}
                refusal = _json(error_body(error), error.http_status, {**error_headers(error), **challenge})
                await refusal(scope, receive, send)
                return
            await self.app(scope, receive, send)

    async def _find_tenant(self, scope: Scope) -> str:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        key = key.strip() if scheme.lower() == b"bearer" else b""
        digest = hashlib.sha256(key).digest()
        if any([hmac.compare_digest(digest, known) for known in self._digests]):
            return self._tenant
        tenant = None
        try:
            if self._keys is not None and key.isascii():
                tenant = await self._keys.tenant_of(key.decode())
            is_open = not self._digests and (self._keys is None or not await self._keys.are_issued())
        except DatabaseError as error:  # its message names the database's host, which is nothing for a stranger
            logger.error("a key could not be checked: %s", error.message)
            raise DatabaseError("keys cannot be checked now; try again") from error
        if tenant is None and not is_open:
            refused = InputError("this server asks for a key: send it as Authorization: Bearer KEY")
            refused.code, refused.http_status = "invalid_api_key", 401
            raise refused
        return tenant or self._tenant


class Api:
    """The endpoints."""

    def __init__(self, service: Service, base_url: str) -> None:
        self._service = service
        self._base_url = base_url
        self._created = int(time.time())
        self._tenants: dict[str, Service] = {}

    def routes(self) -> list[Route]:
        """Every path there is."""
        return [
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/answers/{answer_id}/feedback", self.feedback, methods=["POST"]),
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
        return _json(models_body(await self._names(request), self._created))

    async def model(self, request: Request) -> Response:
        """One model."""
        name = request.path_params["model"]
        if name not in await self._names(request):
            error = UnknownNameError(f"The model {name[:80]!r} does not exist", param="model")
            error.code = "model_not_found"
            raise error
        return _json(model_body(name, self._created))

    async def embeddings(self, request: Request) -> Response:
        """Vectors of the caller's own texts; the one place where vectors leave (row B12)."""
        service = self._for(request)
        body = parse_json(await _read_body(request))
        wanted = parse_embedding(body, service.embedding_model, service.settings.max_question_chars)
        vectors = await while_connected(request.receive, service.embed(list(wanted.texts)))
        return _json(embeddings_body(wanted, vectors))

    async def chat(self, request: Request) -> Any:
        """An answer, at once or streamed; it is in the ledger before the last byte leaves."""
        service = self._for(request)
        body = parse_json(await _read_body(request))
        chat = parse_chat(body, service.catalogue, service.settings.tenant)
        if chat.stream:
            return EventStream(service, chat, self._base_url)
        answer = await while_connected(request.receive, service.answer(chat.query))
        return _json(
            completion_body(answer, chat, int(time.time()), self._base_url), headers={"x-request-id": answer.id}
        )

    async def feedback(self, request: Request) -> Response:
        """Records `verdict` (`good`, `bad`, or `fix` with `output`) and an optional `note` on an answer."""
        service = self._for(request)
        wanted = parse_feedback(parse_json(await _read_body(request)))
        given = await service.feedback(
            request.path_params["answer_id"], wanted.verdict, fix=wanted.output, note=wanted.note
        )
        return _json(feedback_body(given), 201)

    async def document(self, request: Request) -> Response:
        """The text that a citation's link names; its ``#char=a,b`` counts this text's characters (RFC 5147)."""
        document_id, number = request.path_params["document_id"], request.path_params["number"]
        if not document_id.isprintable() or not number.isascii() or not number.isdigit() or len(number) > 9:
            raise UnknownNameError("there is no document version of that name", param="document_id")
        version = await self._for(request).document_version(document_id, int(number))
        safe = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; sandbox"}
        return Response(version.text, headers=safe, media_type="text/plain")

    def _for(self, request: Request) -> Service:
        """The service of the request's tenant. Without one there is none: no endpoint can forget to ask for whom."""
        tenant: str = request.scope[TENANT]
        if tenant == self._service.settings.tenant:
            return self._service
        if tenant not in self._tenants:
            self._tenants[tenant] = self._service.of(tenant)
        return self._tenants[tenant]

    async def _names(self, request: Request) -> list[str]:
        service = self._for(request)
        return [*await service.model_names(), service.embedding_model]


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
