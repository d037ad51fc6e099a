"""Raw sockets against the server: no header, path or body trick passes the key check or breaks it (rows A1, A2, A3, A8)."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

import orchestrator.api.routes as routes
from orchestrator.api import create_app
from tests.acceptance.conftest import GROUNDED, QUESTION, Start, World

HOSTS = [
    ["a"],
    ["a/?x="],
    ["h/#"],
    ["h/?"],
    ["h/health?"],
    ["@h"],
    ["/healthz"],
    ["a/healthz?"],
    ["healthz"],
    ["a", "b"],
    ["h" * 8192],
    [],
]
PATHS = [
    "/v1/models",
    "/v1/models/orchestrator",
    "/v1/chat/completions",
    "/v1/embeddings",
    "//v1/models",
    "/v1//models",
    "/v1/../v1/models",
    "/healthz/../v1/models",
    "/healthz/%2e%2e/v1/models",
    "/healthz%2f..%2fv1/models",
    "/%2e/v1/models",
    "/v1/models;x",
    "/v1/models;/healthz",
    "/v1/models/",
    "/v1/models?/healthz",
    "/v1/models#/healthz",
    "/v1/models%00/healthz",
    "/V1/models",
    "/healthz/",
    "/healthz;x",
    "/readyz/x",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/",
    "*",
    "http://localhost/healthz/../v1/models",
    "http://healthz/v1/models",
]
BAD_KEYS = [
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    "Bearer right right",
    "Bearer right,wrong",
    "Basic right",
    "right",
    "Bearer x' OR (SELECT pg_sleep(8)) IS NOT NULL --",
    "Bearer \xff\xfe",
    "Bearer " + "a" * 10_000,
    "Bearer right\x00",
    "Bearer " + "%72ight",
]
BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": NaN}',
    b'{"seed": ' + b"1" * 5000 + b"}",
    b'{"model": "\\ud800"}',
    b'{"model": "\xff"}',
    b"\xef\xbb\xbf{}",
    b"{" + b",".join(b'"%d":1' % number for number in range(150_000)) + b"}",
    b'{"model":"orchestrator","messages":[{"role":"user","content":"\\u0000"}],"' + b"x" * 100_000 + b'":1}',
]


async def test_no_host_and_no_path_gets_in_without_a_key(start: Start) -> None:
    world = await start(api_keys=("right",))
    statuses = {}

    for method, path, hosts in itertools.product(("GET", "POST"), PATHS, HOSTS):
        head = [f"{method} {path} HTTP/1.1", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
        statuses[method, path, *hosts] = (await _raw(world, "\r\n".join(head).encode("latin-1")))[0]

    assert {call: status for call, status in statuses.items() if status not in (400, 401)} == {}
    assert world.engine.received == []


async def test_no_other_key_gets_in(start: Start) -> None:
    world = await start(api_keys=("right",))

    statuses = {key: (await _raw(world, _request("GET", "/v1/models", authorization=key)))[0] for key in BAD_KEYS}

    assert {key: status for key, status in statuses.items() if status not in (400, 401)} == {}


async def test_two_authorization_headers_do_not_get_in(start: Start) -> None:
    world = await start(api_keys=("right",))
    head = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wrong\r\nAuthorization: Bearer right\r\n\r\n"

    assert (await _raw(world, head))[0] == 401


async def test_the_key_gets_in(start: Start) -> None:
    world = await start(api_keys=("right",))

    assert (await _raw(world, _request("GET", "/v1/models", authorization="Bearer right")))[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/%68ealthz"])
async def test_probes_are_open(start: Start, path: str) -> None:
    world = await start(api_keys=("right",))

    assert (await _raw(world, _request("GET", path)))[0] == 200


async def test_every_route_is_closed_but_the_probes(start: Start) -> None:
    world = await start(api_keys=("right",))
    app = create_app(world.orchestrator)
    closed = {
        route.path
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if (await _raw(world, _request(method, route.path)))[0] == 401
    }

    assert all(isinstance(route, Route) for route in app.routes)
    assert {route.path for route in app.routes} - closed == {"/healthz", "/readyz"}


async def test_mounted_in_another_application_it_asks_for_its_key(start: Start) -> None:
    world = await start(api_keys=("right",))
    host = Starlette(routes=[Mount("/ai", create_app(world.orchestrator))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(host), base_url="http://host") as client:
        statuses = {
            path: (await client.get(path)).status_code
            for path in ("/ai/healthz", "/ai/v1/models", "/ai//v1/models", "/ai/healthz/", "/ai/x/healthz", "/ai/")
        }
        allowed = await client.get("/ai/v1/models", headers={"Authorization": "Bearer right"})

    assert statuses.pop("/ai/healthz") == 200
    assert set(statuses.values()) == {401}
    assert allowed.status_code == 200


def test_keys_are_compared_as_digests_in_constant_time_from_the_path_alone() -> None:
    source = Path(routes.__file__).read_text()

    assert "hmac.compare_digest" in source
    assert not re.search(r"\.url\b|\.base_url\b|\bURL\(", source)


async def test_bodies_that_are_no_request_are_clear_400s(start: Start) -> None:
    world = await start()

    replies = [await _raw(world, _request("POST", "/v1/chat/completions", body)) for body in BAD_BODIES]

    assert [status for status, _, _ in replies] == [400] * len(BAD_BODIES)
    assert {json.loads(reply)["error"]["type"] for _, _, reply in replies} == {"invalid_request_error"}
    assert max(len(reply) for _, _, reply in replies) < 1000


async def test_endless_chunked_body_is_refused_at_the_limit(start: Start) -> None:
    world = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    head = _request("POST", "/v1/chat/completions", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    writer.write(head)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

    async def pour() -> None:
        while True:
            writer.write(chunk)
            await writer.drain()

    pouring = asyncio.create_task(pour())
    line = await asyncio.wait_for(reader.readline(), 20)
    pouring.cancel()
    writer.close()

    assert b" 413 " in line


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "text/plain"}, {"Content-Type": ""}, {"Content-Type": "application/x-www-form-urlencoded"}],
    ids=str,
)
async def test_a_form_of_another_site_cannot_ask(start: Start, headers: dict[str, str]) -> None:
    world = await start()

    status, _, reply = await _raw(world, _request("POST", "/v1/chat/completions", _question(), **headers))

    assert (status, b"application/json" in reply) == (400, True)


async def test_a_compressed_body_is_refused(start: Start) -> None:
    world = await start()

    status, _, _ = await _raw(
        world, _request("POST", "/v1/chat/completions", _question(), **{"Content-Encoding": "gzip"})
    )

    assert status == 400


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "0x10", "5, 6"])
async def test_a_forged_content_length_is_refused(start: Start, length: str) -> None:
    world = await start()
    head = _request("POST", "/v1/chat/completions", b"").replace(
        b"Content-Length: 0", f"Content-Length: {length}".encode()
    )

    status, _, _ = await _raw(world, head)

    assert status in (400, 413)


async def test_braces_of_a_caller_are_only_text(start: Start) -> None:
    world = await start(GROUNDED)
    marks = "{{7*7}} {x.__class__} %(a)s {{question}} {{passages}} leave days"

    reply = await world.ask(f"{QUESTION} {marks}")

    assert marks in world.engine.received[0].messages[-1].content
    assert reply.choices[0].finish_reason == "stop"


async def test_a_request_that_claims_a_request_id_does_not_choose_ours(start: Start) -> None:
    world = await start()

    _, headers, reply = await _raw(
        world, _request("POST", "/v1/chat/completions", _question(), **{"X-Request-Id": "x@127.0.0.1:1"})
    )

    assert json.loads(reply)["id"].startswith("ans_")
    assert headers["x-request-id"] == json.loads(reply)["id"]


def _question() -> bytes:
    return json.dumps({"model": "orchestrator", "messages": [{"role": "user", "content": QUESTION}]}).encode()


def _request(method: str, path: str, body: bytes = b"", authorization: str | None = None, **headers: str) -> bytes:
    lines = {"Host": "a", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    if authorization is not None:
        lines["Authorization"] = authorization
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + body


async def _raw(world: World, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the first response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    try:
        writer.write(data)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode("latin-1")
        status, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = b"" if data.startswith(b"HEAD ") else await reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, body
    finally:
        writer.close()
