"""The HTTP surface over a real PostgreSQL with two tenants: a key is its tenant, and no vector leaves (rows A2, A3, B9, B12)."""

from __future__ import annotations

import base64
import json
import logging
import struct
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from orchestrator.api import create_app
from orchestrator.api.schema import completion_body, own_fields, parse_chat
from orchestrator.app import Orchestrator
from orchestrator.cli.answers import answer_fields, passage_fields
from orchestrator.cli.output import plain
from orchestrator.database import Database
from orchestrator.errors import DatabaseError
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.store import PgStore
from orchestrator.ledger import Ledger, canonical, intent_record, list_answers, outcome_record, show_answer
from orchestrator.pipeline import Pipeline
from orchestrator.router import open_router
from orchestrator.settings import Settings
from orchestrator.tenants import KEY_LIFETIME_S, Keys, add_tenant, create_key, revoke_key
from orchestrator.testing import HashEmbedder, MemoryServing, ScriptedEngine, WordTokens, passage
from orchestrator.types import Answer, Citation, Document, Generation, Message, Plan, Query, Usage
from tests.acceptance.conftest import ADAPTER, GROUNDED, QUESTION, Readiness, shipped_catalogue

CHAT = {"model": "orchestrator/grounded", "messages": [{"role": "user", "content": QUESTION}]}
INJECTIONS = [
    "x' OR (SELECT pg_sleep(8)) IS NOT NULL --",
    "ork_000000000000_' OR 1=1 --",
    "ork_' or true)--_x",
    "ork_000000000000_\\'; drop table api_keys; --",
    "%s", "%(id)s", "{x}", "${jndi:ldap://127.0.0.1/}", "ork_%_%", "ork_____________", "ork_000000000000_" + "x" * 90,
    "ork_00000000000a_" + "1" * 99, "null", "true", "[]", "ork", "_", "__", "ork__", "ork_000000000000", "Bearer",
]  # fmt: skip


@dataclass
class World:
    """A served system with a real database, and one key and one document for each of two tenants."""

    app: Starlette
    orchestrator: Orchestrator
    engine: ScriptedEngine
    keys: dict[str, str]
    documents: dict[str, str]
    clock: list[float]

    def client(self, who: str | None = None, app: Starlette | None = None) -> httpx.AsyncClient:
        """Calls as a tenant (or with whatever key), in process."""
        headers = {} if who is None else {"Authorization": f"Bearer {self.keys.get(who, who)}"}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app or self.app, raise_app_exceptions=False),
            base_url="http://api",
            headers=headers,
        )

    async def call(self, who: str | None, path: str, body: Any = None) -> httpx.Response:
        """One call, as a POST when there is a body."""
        async with self.client(who) as client:
            return await (client.get(path) if body is None else client.post(path, json=body))


def canary(tenant: str) -> str:
    return f"canaryof{tenant}zzz"


@pytest_asyncio.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """Tenants a and b, and the operator's own, with the key `operator` of the settings."""
    async with opened(database_url, api_keys=("operator",)) as made:
        yield made


@pytest_asyncio.fixture
async def unlocked(database_url: str) -> AsyncIterator[World]:
    """The same without keys in the settings; those of tenants are not made yet."""
    async with opened(database_url, with_keys=False) as made:
        yield made


@asynccontextmanager
async def opened(url: str, with_keys: bool = True, **options: Any) -> AsyncIterator[World]:
    """A World over a new database."""
    settings = Settings(database_url=url, **options).resolved()
    async with Database.open(url, 4) as database, Ledger.open(database) as ledger:
        embedder, documents, keys = HashEmbedder(), {}, {}
        for tenant in ("default", "a", "b"):
            await add_tenant(database, tenant)
            store = PgStore(database, tenant)
            for collection in ("default", f"only-{tenant}"):
                text = f"Every employee has 25 days of leave a year. The word is {canary(tenant)}."
                document = Document("handbook", "Handbook", text, canary(tenant), metadata={"m": canary(tenant)})
                await ingest_documents([document], store=store, embedder=embedder, collection=collection)
            documents[tenant] = (await store.list_documents("default"))[0].document_id
            if with_keys:
                keys[tenant] = (await create_key(database, tenant))[0]
        engine, catalogue, clock = ScriptedEngine(GROUNDED), shipped_catalogue(), [0.0]
        store = PgStore(database, settings.tenant, embedder.space)
        serving: Any = MemoryServing(engine, {"cited-answer": ADAPTER})
        router = await open_router(catalogue, embedder)
        pipeline = Pipeline(
            settings, catalogue, router, embedder, Retriever(store, embedder), serving, ledger, WordTokens()
        )
        registry: Any = _Registry()
        keyring = Keys(database, lambda: clock[0])
        ready: Any = Readiness()
        orchestrator = Orchestrator(settings, catalogue, pipeline, embedder, database, store, registry, ready, keyring)
        yield World(create_app(orchestrator), orchestrator, engine, keys, documents, clock)


class _Registry:
    async def list(self) -> list[Any]:
        return [ADAPTER]


# who is who


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_is_its_tenant(world: World, stream: bool) -> None:
    for tenant in ("a", "b", "default"):
        reply = await world.call(tenant, "/v1/chat/completions", {**CHAT, "stream": stream})
        prompt = world.engine.received[-1].messages[-1].content
        listed = await list_answers(world.orchestrator.database, tenant, 10)

        assert reply.status_code == 200
        assert [name for name in ("a", "b", "default") if canary(name) in prompt + reply.text] == [tenant]
        assert [one["id"] for one in listed] == [reply.headers["x-request-id"]]


async def test_a_key_of_the_settings_is_the_settings_tenants(world: World) -> None:
    reply = await world.call("operator", "/v1/chat/completions", CHAT)

    assert canary("default") in world.engine.received[-1].messages[-1].content
    assert reply.json()["orchestrator"]["passages"][0]["document_id"] == world.documents["default"]


async def test_a_tenant_reads_what_its_citations_name(world: World) -> None:
    for tenant in ("a", "b"):
        reply = await world.call(tenant, "/v1/chat/completions", CHAT)
        url = reply.json()["choices"][0]["message"]["annotations"][0]["url_citation"]["url"]
        document = await world.call(tenant, httpx.URL(url).raw_path.decode())
        assert (document.status_code, canary(tenant) in document.text) == (200, True)


async def test_ids_of_another_tenant_are_as_unknown_as_those_of_nobody(world: World) -> None:
    """Row B9: every place where an id or a name of b may stand, called as a."""
    nobody = str(uuid.uuid4())
    calls: list[tuple[str, str, Any]] = [
        ("/v1/documents/ID/versions/1", world.documents["b"], None),
        ("/v1/documents/ID/versions/2", world.documents["b"], None),
        ("/v1/models/ID", "adapter-of-b", None),
        ("/v1/chat/completions", "only-b", {**CHAT, "orchestrator": {"collection": "ID"}}),
        ("/v1/chat/completions", "only-b", {**CHAT, "stream": True, "orchestrator": {"collection": "ID"}}),
        ("/v1/chat/completions", "adapter-of-b", {**CHAT, "model": "ID"}),
        ("/v1/chat/completions", world.documents["b"], {**CHAT, "orchestrator": {"collection": "ID"}}),
    ]
    for path, theirs, body in calls:
        replies = []
        for name in (theirs, nobody):
            given = json.loads(json.dumps(body).replace("ID", name))
            reply = await world.call("a", path.replace("ID", name), given)
            error = reply.json()["error"]
            error.pop("orchestrator", None)  # the id of this very call
            replies.append(
                (
                    reply.status_code,
                    json.dumps(error).replace(name, "ID"),
                    sorted(set(reply.headers) - {"x-request-id"}),
                )
            )
        assert replies[0] == replies[1], (path, replies)
        assert replies[0][0] == 404, (path, replies)
        assert canary("b") not in replies[0][1]
    assert (await world.call("b", f"/v1/documents/{world.documents['b']}/versions/1")).status_code == 200


async def test_models_are_the_routes_and_their_adapters_for_everybody(world: World) -> None:
    lists = [(await world.call(tenant, "/v1/models")).json() for tenant in ("a", "b", "default")]

    assert lists[0] == lists[1] == lists[2]
    assert "cited-answer" in [model["id"] for model in lists[0]["data"]]


# who gets in


async def test_every_route_asks_for_a_key_but_the_probes(world: World) -> None:
    """Row A2: a route that is added is closed, or this list has to say that it is not."""
    await revoke_key(world.orchestrator.database, "b", world.keys["b"].split("_")[1])
    wrong = [None, "", "wrong", world.keys["a"][:-1], world.keys["a"].upper(), world.keys["b"], "operator "[:-2]]
    opened_by = {}
    for route in world.app.routes:
        assert isinstance(route, Route)
        for method in route.methods or ():
            for key in wrong:
                async with world.client(key) as client:
                    reply = await client.request(method, route.path, json={})
                if reply.status_code != 401:
                    opened_by.setdefault(route.path, []).append(key)
                else:
                    assert reply.headers["www-authenticate"] == "Bearer"
                    assert method == "HEAD" or reply.json()["error"]["code"] == "invalid_api_key"

    assert sorted(opened_by) == ["/healthz", "/readyz"]
    assert world.engine.received == []


async def test_every_endpoint_names_its_tenant(world: World) -> None:
    """Without the middleware no endpoint works: none of them can serve somebody that nobody asked for."""
    bare = Starlette(routes=list(world.app.routes))
    statuses = {}
    for route in world.app.routes:
        assert isinstance(route, Route)
        async with world.client(None, bare) as client:
            path = route.path.replace("{document_id:path}", "x").replace("{number}", "1").replace("{model:path}", "x")
            statuses[route.path] = (await client.request(next(iter(route.methods or ())), path, json=CHAT)).status_code

    assert {path for path, status in statuses.items() if status != 500} == {"/healthz", "/readyz"}


@pytest.mark.parametrize("where", ["authorization", "x-api-key", "x-request-id", "model"])
async def test_what_looks_like_sql_is_no_key_and_no_name(world: World, where: str) -> None:
    """Row A3."""
    for text in INJECTIONS:
        async with world.client("a" if where == "model" else None) as client:
            if where == "model":
                reply = await client.post("/v1/chat/completions", json={**CHAT, "model": text})
            else:
                reply = await client.get(
                    "/v1/models", headers={where: f"Bearer {text}" if where == "authorization" else text}
                )
        assert reply.status_code == (404 if where == "model" else 401), text
    assert (await world.call("a", "/v1/models")).status_code == 200


async def test_a_revoked_key_is_refused_after_its_lifetime(world: World) -> None:
    before = (await world.call("a", "/v1/models")).status_code
    await revoke_key(world.orchestrator.database, "a", world.keys["a"].split("_")[1])
    world.clock[0] += KEY_LIFETIME_S + 1

    assert (before, (await world.call("a", "/v1/models")).status_code) == (200, 401)
    assert (await world.call("b", "/v1/models")).status_code == 200


async def test_without_any_key_the_server_is_open_until_the_first_is_issued(unlocked: World) -> None:
    reply = await unlocked.call(None, "/v1/chat/completions", CHAT)
    prompt = unlocked.engine.received[-1].messages[-1].content
    key, _ = await create_key(unlocked.orchestrator.database, "a")

    assert (reply.status_code, canary("default") in prompt) == (200, True)
    assert (await unlocked.call(None, "/v1/models")).status_code == 401
    assert (await unlocked.call(key, "/v1/models")).status_code == 200


async def test_when_keys_cannot_be_read_nobody_gets_in_and_nothing_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def down(self: Keys, key: str) -> str | None:
        raise DatabaseError("the database at db.internal:5432/prod does not serve")

    monkeypatch.setattr(Keys, "tenant_of", down)
    reply = await world.call("a", "/v1/models")

    assert (reply.status_code, reply.headers["retry-after"], "db.internal" in reply.text) == (503, "5", False)
    assert "db.internal" in caplog.text
    assert (await world.call("operator", "/v1/models")).status_code == 200  # a key of the settings needs no database


async def test_mounted_elsewhere_a_key_is_still_its_tenant(world: World) -> None:
    host = Starlette(routes=[Mount("/ai", world.app)])
    async with world.client("a", host) as client:
        own = await client.get(f"/ai/v1/documents/{world.documents['a']}/versions/1")
        theirs = await client.get(f"/ai/v1/documents/{world.documents['b']}/versions/1")

    assert (own.status_code, theirs.status_code) == (200, 404)


async def test_a_tenant_that_is_gone_is_told_so_and_not_given_an_empty_answer(world: World) -> None:
    service = world.orchestrator.of("nobody")
    app = create_app(replace(service, keys=None, settings=replace(service.settings, api_keys=())))

    async with world.client(None, app) as client:
        replies = [
            await client.post("/v1/chat/completions", json={**CHAT, "stream": stream}) for stream in (False, True)
        ]

    assert [reply.status_code for reply in replies] == [404, 404]
    assert all("orchestrator tenants add" in reply.text for reply in replies)


# vectors stay inside (row B12)


def numbers(value: Any) -> Iterator[list[Any]]:
    """Every list of eight or more numbers in a JSON value; 384 of them tell a text nearly word for word."""
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list | tuple):
        if len(value) >= 8 and all(isinstance(part, int | float) for part in value):
            yield list(value)
        for part in value:
            yield from numbers(part)


def holds_vector(text: str, vectors: list[list[float]]) -> bool:
    """Whether a text holds one of these vectors in digits or packed, in any of the forms that a program would write."""
    for vector in vectors:
        packed = [struct.pack(f"{order}{len(vector)}{kind}", *vector) for order in "<>" for kind in "efd"]
        forms = [
            form(block) for block in packed for form in (bytes.hex, lambda one: base64.b64encode(one).decode()[:-4])
        ]
        digits = [
            comma.join(map(form, vector)) for comma in (", ", ",") for form in (repr, "{:.3g}".format, "{:.6g}".format)
        ]
        if any(form in text for form in (*forms, *digits)):
            return True
    return False


async def test_no_vector_leaves_but_those_of_the_callers_own_text(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [QUESTION, f"Handbook\n\nEvery employee has 25 days of leave a year. The word is {canary('a')}."]
    vectors = await HashEmbedder().embed(texts)
    calls: list[tuple[str, Any]] = [
        ("/healthz", None), ("/readyz", None), ("/v1/models", None), ("/v1/models/orchestrator", None),
        ("/v1/chat/completions", CHAT), ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", {**CHAT, "orchestrator": {"collection": "nope"}}), ("/v1/chat/completions", {}),
        (f"/v1/documents/{world.documents['a']}/versions/1", None), ("/v1/embeddings", {"model": "nope", "input": "x"}),
    ]  # fmt: skip
    bodies = [(await world.call("a", path, body)).text for path, body in calls]
    embedding = await world.call("a", "/v1/embeddings", {"model": "hash-64", "input": QUESTION})
    database = world.orchestrator.database
    records = [await show_answer(database, one["id"], "a") for one in await list_answers(database, "a", 10)]

    seen = [*bodies, caplog.text, json.dumps(records, default=str)]
    assert [text for text in seen if holds_vector(text, vectors)] == []
    values = [
        json.loads(line) for body in bodies for line in body.replace("data: ", "").split("\n") if line.startswith("{")
    ]
    assert [found for value in [*values, *records] for found in numbers(value)] == []
    assert len(values) > 10
    assert holds_vector(embedding.text, vectors)  # the probe sees one where there is one: a caller's own, asked for


def test_nothing_that_is_written_about_a_passage_holds_its_token_vectors() -> None:
    """Passages carry packed token vectors inside the process; every form in which one leaves names its fields."""
    secret = b"packed token vectors" * 8
    found = replace(passage(1, "25 days"), tokens=secret, metadata={"m": 1})
    plan = Plan(
        "answer",
        "grounded",
        "because",
        as_of=datetime(2025, 1, 1, tzinfo=UTC),
        known_at=datetime(2025, 1, 1, tzinfo=UTC),
    )
    citation = Citation(1, "doc-1", "doc-1", 1, 0, (0, 7), "25 days", "00")
    query = Query("how many", known_at=plan.known_at)
    answer = Answer(query.id, "25 days [1]", {"answer": "25 days"}, (citation,), plan, (found,))
    generation = Generation("base", (Message("user", "x"),), 10)
    chat = parse_chat(
        {"model": "orchestrator", "messages": [{"role": "user", "content": "x"}]}, shipped_catalogue(), "a"
    )

    written = {
        "completion": canonical(completion_body(answer, chat, 1, "http://x")),
        "own": canonical(own_fields(answer)),
        "ask": canonical(plain(answer_fields(answer))),
        "search": canonical(plain(passage_fields(found))),
        "intent": intent_record(query, plan, [found], None, None, generation).payload,
        "outcome": outcome_record(query, "complete", "{}", Usage(), {}, answer=answer).payload,
        "repr": repr(answer) + repr(found) + str(found),
    }

    forms = [secret.decode(), secret.hex(), base64.b64encode(secret).decode()[:-4]]
    assert {name for name, text in written.items() if any(form in text for form in forms)} == set()
    assert all("25 days" in text or name == "intent" for name, text in written.items())
