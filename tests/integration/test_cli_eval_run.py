"""`eval run` from the command to the answer: PostgreSQL, search, contract and HTTP are real, only the model replies by rule."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.database import Database
from orchestrator.evaluation.runs import Runs
from orchestrator.knowledge.embed import HttpEmbedder
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.resources import folder
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document

Run = Callable[..., Awaitable[Any]]
EMBEDDER = HashEmbedder()
ROOMS = [
    Document(f"room-{n}", f"Room {n}", f"The meeting room number {n} is on floor {n + 40}.", "rooms") for n in range(12)
]


class Engine:
    """An OpenAI-compatible server: embeds by hash, and answers with what the first passage says of a floor."""

    def __init__(self) -> None:
        self.url = ""
        self.questions: list[str] = []
        self.fails_on: Callable[[str], bool] = lambda question: False

    async def embed(self, request: web.Request) -> web.Response:
        vectors = await EMBEDDER.embed((await request.json())["input"])
        data = [{"index": at, "embedding": list(vector)} for at, vector in enumerate(vectors)]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 1}})

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": len(str((await request.json())["messages"]).split())})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        shown = (await request.json())["messages"][-1]["content"]
        number = re.findall(r"room number (\d+)\?", shown)[-1]
        self.questions.append(number)
        if self.fails_on(number):
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        said = {"answerable": True, "citations": [1], "evidence": "", "answer": f"floor {int(number) + 40}"}
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for delta, reason in (({"content": json.dumps(said)}, None), ({}, "stop")):
            event = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[Engine]:
    found = Engine()
    app = web.Application()
    app.router.add_post("/v1/embeddings", found.embed)
    app.router.add_post("/tokenize", found.tokenize)
    app.router.add_post("/v1/chat/completions", found.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest_asyncio.fixture
async def run(
    engine: Engine, database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """One command, in a thread of its own: the engine answers in this one. The rooms are ingested."""
    prompts = tmp_path / "prompts"
    _copy_prompts(prompts)
    values = {
        "DATABASE_URL": database_url, "HOME": str(tmp_path / "home"), "PROMPTS_DIR": str(prompts), "ENGINE_URL": engine.url,
        "EMBEDDER": "hash", "EMBEDDER_URL": engine.url, "EMBEDDER_DIMENSIONS": str(EMBEDDER.dimensions), "RERANKER": "none",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"ORCHESTRATOR_{name}", value)
    monkeypatch.chdir(tmp_path)
    await ingest(engine, database, *ROOMS)
    return lambda *arguments: asyncio.to_thread(CliRunner().invoke, main, list(arguments))


async def ingest(engine: Engine, database: Database, *documents: Document) -> None:
    embedder = HttpEmbedder(engine.url, "hash", EMBEDDER.dimensions)
    try:
        store = PgStore(database, space=embedder.space)
        await ingest_documents(documents, store=store, embedder=embedder, collection="default")
    finally:
        await embedder.aclose()


def _copy_prompts(target: Path) -> None:
    """The shipped prompts; questions of documents go to the base, whatever their sufficiency."""
    shipped = folder("prompts")
    for file in shipped.rglob("*"):
        if file.is_file() and file.suffix in (".md", ".toml", ".json") and file.name != "router.json":
            copy = target / file.relative_to(shipped)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    routes = (target / "routes.toml").read_text("utf-8").replace('adapter = "cited-answer"\n', "")
    (target / "routes.toml").write_text(re.sub(r"min_sufficiency = [\d.]+", "min_sufficiency = 0.0", routes), "utf-8")


def row(number: int) -> str:
    return json.dumps({
        "id": f"room-{number}", "question": f"On which floor is the meeting room number {number}?",
        "answers": [f"floor {number + 40}"], "document_id": f"room-{number}",
    })  # fmt: skip


# Ten kinds of what people and exports leave in such files; not one of them is a question with something to judge it by.
JUNK = (
    "{", "not json at all", '{"question": ""}', '{"question": "On which floor?"}', "[1, 2]", "null", '{"answers": ["floor 40"]}',
    '{"question": "x", "answers": [{"text": "y"}]}', '{"question": "x", "pattern": "(?=x)"}',
    '{"question": "\\ud800", "answers": ["x"]}',
)  # fmt: skip


def written(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


async def test_planted_junk_lowers_the_score_by_its_share_and_is_named(
    run: Run, engine: Engine, tmp_path: Path
) -> None:
    good = [row(number) for number in range(10)]
    clean = written(tmp_path / "clean.jsonl", good)
    junk = [JUNK[number % len(JUNK)] for number in range(90)]
    # One good row behind every nine of junk.
    mixed = [line for at, each in enumerate(good) for line in (*junk[at * 9 : at * 9 + 9], each)]
    planted = written(tmp_path / "planted.jsonl", mixed)

    of_clean = await run("eval", "run", str(clean), "--json")
    of_junk = await run("eval", "run", str(planted), "--json")
    read = await run("eval", "show", "as served", "--failed")

    assert (of_clean.exit_code, of_junk.exit_code) == (0, 0), of_clean.output + of_junk.output
    before, after = (json.loads(done.stdout)["summary"] for done in (of_clean, of_junk))
    assert (before["n"], before["faults"], before["measures"]["correct"]["value"]) == (10, 0, 1.0)
    assert (after["n"], after["faults"], after["asked"], after["measures"]["correct"]["value"]) == (100, 90, 10, 0.1)
    assert after["measures"]["correct"]["high"] < 0.2 < before["measures"]["correct"]["low"]
    # Every measure of the clean set falls to a tenth of itself: none is computed without the junk.
    for name, found in before["measures"].items():
        assert after["measures"][name]["value"] == pytest.approx(found["value"] / 10), name
        assert after["measures"][name]["n"] == found["n"] + 90, name
    assert sum(after["fault_reasons"].values()) == 90
    assert after["fault_reasons"]["no JSON"] == 18
    said = "90 of 100 rows (90%) could not be read and count as wrong; most often (18): no JSON"
    assert after["notes"][0] == said
    assert "10.0% of 100 questions of planted are right" in read.stdout
    assert said in read.stdout
    assert sorted(engine.questions, key=int) == [
        str(number) for number in range(10)
    ]  # the second run found the answers


async def test_failed_calls_stay_in_the_denominator_and_are_asked_again(
    run: Run, engine: Engine, tmp_path: Path
) -> None:
    wanted = written(tmp_path / "set.jsonl", [row(number) for number in range(10)])
    engine.fails_on = lambda number: int(number) % 2 == 0

    failing = await run("eval", "run", str(wanted), "--json", "--name", "x")
    engine.fails_on = lambda number: False
    engine.questions.clear()
    mended = await run("eval", "run", str(wanted), "--json", "--name", "x")

    assert failing.exit_code == 0, failing.output
    first, second = (json.loads(done.stdout) for done in (failing, mended))
    assert (first["summary"]["errors"], first["summary"]["measures"]["correct"]["value"]) == (5, 0.5)
    assert first["summary"]["measures"]["correct"]["n"] == 10
    assert first["summary"]["reasons"] == {"failed: engine_error": 5}
    assert (second["run"]["id"], second["reused"]) == (first["run"]["id"], 5)
    assert second["summary"]["measures"]["correct"]["value"] == 1.0
    assert sorted(engine.questions) == ["0", "2", "4", "6", "8"]


async def test_a_set_of_junk_alone_is_zero_and_starts_no_engine(run: Run, engine: Engine, tmp_path: Path) -> None:
    wanted = written(tmp_path / "junk.jsonl", JUNK)

    done = await run("eval", "run", str(wanted))

    assert done.exit_code == 0, done.output
    assert "0.0% of 10 questions of junk are right" in done.stdout
    assert "10 of 10 rows (100%) could not be read" in done.stdout
    compared = await run("eval", "compare", "as served", "as served")
    assert (compared.exit_code, "nothing to compare" in compared.stderr) == (1, True)
    assert engine.questions == []


async def test_an_outcome_is_not_taken_from_another_corpus(
    run: Run, engine: Engine, database: Database, tmp_path: Path
) -> None:
    wanted = written(tmp_path / "set.jsonl", [row(1)])

    await run("eval", "run", str(wanted))
    moved = Document("room-1", "Room 1", "The meeting room number 1 is on floor 99.", "rooms")
    await ingest(engine, database, moved)
    await run("eval", "run", str(wanted))

    assert engine.questions == ["1", "1"]
    assert [each.asked for each in await Runs(database, "default").latest()] == [1, 1]


async def test_each_option_does_what_it_says(run: Run, engine: Engine, database: Database, tmp_path: Path) -> None:
    wanted = written(tmp_path / "set.jsonl", [*(row(number) for number in range(8)), "junk"])

    async def asks(*options: str) -> list[str]:
        engine.questions.clear()
        done = await run("eval", "run", str(wanted), *options)
        assert done.exit_code == 0, done.output
        return sorted(engine.questions)

    few = await asks("--limit", "3", "--out", "few.jsonl", "--name", "few")
    more = await asks("--limit", "5", "--out", "trec", "--format", "trec", "--concurrency", "1")
    again = await asks("--limit", "5", "--fresh", "--name", "anew")
    elsewhere = await run("eval", "run", str(wanted), "--collection", "elsewhere")

    assert (len(few), len(more), sorted([*few, *more]), len(again)) == (3, 2, again, 5)  # five hold the three
    rows = [json.loads(line) for line in (tmp_path / "few.jsonl").read_text().splitlines()]
    assert [each["correct"] for each in rows] == [1, 1, 1, 0]  # a sample keeps the junk
    assert "floor" in rows[0]["retrieved_contexts"][0]
    assert len((tmp_path / "trec" / "qrels.txt").read_text().splitlines()) == 5
    found = await Runs(database, "default").latest()
    assert [each.name for each in found] == ["anew", "as served", "few"]
    assert "cited-answer" in found[0].system["adapters"]
    assert (elsewhere.exit_code, "elsewhere" in elsewhere.stderr) == (1, True)
