"""Distillation from a model over HTTP: resumed, checked, told its faults once, and every failure kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from orchestrator.behaviour.distill import Distilled, HttpTeacher, Task, distill
from orchestrator.behaviour.rows import Row, dump_row, read_rows
from orchestrator.errors import EngineError, EngineUnavailableError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import passage

CATALOGUE = load_catalogue(folder("prompts"))
CONTRACT = CATALOGUE.contract("text_answer")


class Endpoint:
    """An OpenAI-compatible server: ``reply`` says what it answers to the messages, or which status it gives."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[list[dict[str, str]]], str | int] = lambda messages: '{"answer": "fine"}'

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        said = self.reply(body["messages"])
        if isinstance(said, int):
            return web.json_response({"error": {"message": "no"}}, status=said, headers={"retry-after": "0.01"})
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": said}}]})


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    found = Endpoint()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", found.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield found
    await runner.cleanup()


def rows(count: int) -> list[Row]:
    return [Row(f"r{n}", f"Shorten text {n}", number=n + 1) for n in range(count)]


async def run(endpoint: Endpoint, given: list[Row], out: Path, **changes: Any) -> Distilled:
    contract, prompt = changes.pop("contract", CONTRACT), changes.pop("prompt", CATALOGUE.prompt("direct"))
    task = Task(contract, prompt, len, 4000, "big", endpoint.url)
    async with HttpTeacher.open(endpoint.url, "big", "secret") as teacher:
        return await distill(given, out, teacher, task, **changes)


async def test_every_row_gets_an_output_and_its_origin(endpoint: Endpoint, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []

    done = await run(endpoint, rows(5), tmp_path / "out.jsonl", progress=lambda *each: seen.append(each))

    made = read_rows(tmp_path / "out.jsonl")
    assert (done.written, done.kept, done.failed) == (5, 0, 0)
    assert seen[-1] == (5, 5, 0)
    assert sorted(row.id for row in made) == [f"r{n}" for n in range(5)]
    assert made[0].output == {"answer": "fine"}
    assert made[0].origin == {
        "source": "distilled",
        "model": "big",
        "endpoint": endpoint.url,
        "from": {"source": "file"},
    }
    assert set(endpoint.keys) == {"Bearer secret"}
    assert endpoint.bodies[0]["response_format"]["json_schema"]["schema"]["required"] == ["answer"]
    assert not done.failures.exists()


async def test_what_is_there_is_not_asked_again_and_a_torn_line_is_mended(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    await run(endpoint, rows(3), out)
    before = len(endpoint.bodies)
    out.write_text(out.read_text() + '{"id": "r3", "inp')

    done = await run(endpoint, rows(6), out)

    assert (done.written, done.kept) == (3, 3)
    assert len(endpoint.bodies) - before == 3
    assert sorted(row.id for row in read_rows(out)) == [f"r{n}" for n in range(6)]


async def test_a_stopped_run_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    half = asyncio.Event()

    task = asyncio.create_task(
        run(endpoint, rows(40), out, concurrency=1, progress=lambda done, *_: half.set() if done == 11 else None)
    )
    await half.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    there = len(read_rows(out))
    done = await run(endpoint, rows(40), out)

    assert 11 <= there < 40
    assert done.kept == there
    assert len(read_rows(out)) == 40


async def test_a_fault_is_said_back_once(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda messages: '{"answer": "fine"}' if len(messages) > 2 else "fine"

    done = await run(endpoint, rows(1), tmp_path / "out.jsonl")

    assert done.written == 1
    assert "is not JSON" in endpoint.bodies[-1]["messages"][-1]["content"]


async def test_failures_are_kept_counted_and_tried_again(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    endpoint.reply = lambda messages: '{"answer": "fine"}' if "text 1" in messages[1]["content"] else "no"

    done = await run(endpoint, rows(3), out)
    failed = [json.loads(line) for line in done.failures.read_text().splitlines()]
    endpoint.reply = lambda messages: "```json\n" + '{"answer": "late"}' + "\n```"
    again = await run(endpoint, rows(3), out)

    assert (done.written, done.failed) == (1, 2)
    assert sorted(row["id"] for row in failed) == ["r0", "r2"]
    assert all("is not JSON" in row["fault"] for row in failed)
    assert (again.written, again.kept, again.failed) == (2, 1, 0)
    assert not again.failures.exists()


async def test_citations_must_hold(endpoint: Endpoint, tmp_path: Path) -> None:
    contract, prompt = CATALOGUE.contract("cited_answer"), CATALOGUE.prompt("grounded")
    given = [Row("r", "How many days?", (passage(1, "Leave is 25 days."),))]
    whole = {"answerable": True, "citations": [2], "evidence": "Leave is 25 days.", "answer": "25 days"}
    endpoint.reply = lambda _: json.dumps({name: whole[name] for name in contract.schema["properties"]})

    wrong = await run(endpoint, given, tmp_path / "out.jsonl", contract=contract, prompt=prompt)
    whole["citations"] = [1]
    right = await run(endpoint, given, tmp_path / "out.jsonl", contract=contract, prompt=prompt)

    assert wrong.failed == 1
    assert right.written == 1
    assert "citation_dropped:2" in endpoint.bodies[1]["messages"][-1]["content"]


async def test_an_endpoint_without_schemas_is_asked_without(endpoint: Endpoint, tmp_path: Path) -> None:
    replies = iter([400])
    endpoint.reply = lambda _: next(replies, '{"answer": "fine"}')

    done = await run(endpoint, rows(3), tmp_path / "out.jsonl", concurrency=1)

    assert done.written == 3
    assert ["response_format" in body for body in endpoint.bodies] == [True, False, False, False]


async def test_a_busy_endpoint_is_waited_for(endpoint: Endpoint, tmp_path: Path) -> None:
    replies = iter([429, 503])
    endpoint.reply = lambda _: next(replies, '{"answer": "fine"}')

    assert (await run(endpoint, rows(1), tmp_path / "out.jsonl")).written == 1


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (401, EngineError, "--key-env"),
        (503, EngineUnavailableError, "goes on"),
        (404, EngineError, "gave no completion"),
    ],
)
async def test_an_endpoint_that_does_not_serve_ends_the_run(
    endpoint: Endpoint, tmp_path: Path, status: int, error: type[Exception], said: str
) -> None:
    endpoint.reply = lambda _: status

    with pytest.raises(error, match=said):
        await run(endpoint, rows(2), tmp_path / "out.jsonl", concurrency=1)


async def test_rows_that_are_too_long_are_no_use_to_anybody(endpoint: Endpoint, tmp_path: Path) -> None:
    long = [Row("r", "x" * 5000), Row("s", "x", (passage(1, "y" * 5000),))]

    done = await run(endpoint, long, tmp_path / "out.jsonl", prompt=CATALOGUE.prompt("grounded"))

    assert done.failed == 2
    assert endpoint.bodies == []


def test_dumped_rows_are_one_line_each() -> None:
    assert dump_row(Row("a", "x\ny")).count("\n") == 1
