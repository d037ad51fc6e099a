"""A walk on a real PostgreSQL: weights that were set badly are mended, taken back byte for byte, and survive being killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.database import Database
from orchestrator.errors import EngineUnavailableError, InputError, UnknownNameError
from orchestrator.evaluation.causes import share_of
from orchestrator.evaluation.diagnose import Remedies
from orchestrator.evaluation.improve import Measured, Try, Walk, decide, improve
from orchestrator.evaluation.items import Gold, Item, ItemSet, Score
from orchestrator.evaluation.journal import Edit
from orchestrator.evaluation.knobs import REMEDIES, Knobs, Name, Prospect, halve
from orchestrator.evaluation.live import LiveSystem, Weighed
from orchestrator.evaluation.read import write_items
from orchestrator.evaluation.runs import Runs
from orchestrator.evaluation.tune import Setting
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.split import split
from orchestrator.knowledge.store import PgStore
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.router import Router, open_router
from orchestrator.settings import Settings
from orchestrator.testing import HashEmbedder, MemoryServing, ScriptedEngine, WordTokens
from orchestrator.types import Completion, Document, Generation, SearchRequest, Usage

from .test_eval_runs import ADAPTER
from .test_tune import WORDS, NoiseEmbedder, made_set

COUNT = 80
KEPT = "select dense_weight::text, rerank_weight::text, learned::text from collections where name = 'made'"
FAILPOINTS = ["improve-intent", "improve-applied", "improve-kept"]


def questions(shuffled: bool = False) -> ItemSet:
    """Four words of a document each; ``shuffled``: the document that is said to answer is any."""
    made = made_set(count=COUNT)
    names = [document.external_id for document in made.documents]
    chance = random.Random(3)
    texts = {document.external_id: document.text for document in made.documents}
    gold = {q.id: chance.choice(names) if shuffled else next(iter(q.relevant)) for q in made.questions}
    items = (
        Item(q.id, q.text, (texts[gold[q.id]],), gold=(Gold(gold[q.id], quote=texts[gold[q.id]]),))
        for q in made.questions
    )
    return ItemSet("made", tuple(items))


class Reader(ScriptedEngine):
    """Reads: quotes the first passage that holds every word of the question, or says that none does."""

    def __init__(self) -> None:
        super().__init__(["{}"])

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        shown, _, question = generation.messages[-1].content.rpartition("Question: ")
        texts = re.findall(r"^\[\d+\].*\n(.+)$", shown, re.MULTILINE)
        seen = next((at for at, text in enumerate(texts, 1) if set(question.split()) <= set(text.split())), 0)
        said = texts[seen - 1] if seen else ""
        row = {"answerable": bool(seen), "citations": [seen] if seen else [], "answer": said, "evidence": said}
        text = json.dumps(row)
        yield text
        yield Completion(text, "stop", generation.model, Usage(50, 10))


def build(
    database: Database, prompts: Path | None = None, kind: type[LiveSystem] = LiveSystem, **options: Any
) -> LiveSystem:
    """A system whose dense leg is noise; without an engine, unless the options say otherwise."""
    embedder = NoiseEmbedder()
    settings = Settings(collection="made", prompts_dir=prompts)
    catalogue = load_catalogue(prompts or folder("prompts"))
    pipeline = Pipeline(
        settings, catalogue, Router(catalogue, {}, "made"), embedder, Retriever(PgStore(database), embedder),
        MemoryServing(Reader(), {"cited-answer": ADAPTER}), None, WordTokens(),  # type: ignore[arg-type]
    )  # fmt: skip
    return kind(pipeline, database, settings, "made", Remedies(), **{"search_only": True, **options})


async def fill(database: Database) -> None:
    """The documents, searched by noise alone; what taught it is a sentence of its own."""
    documents = made_set(count=COUNT).documents
    store = PgStore(database)
    await ingest_documents(documents, store=store, embedder=NoiseEmbedder(), collection="made", language="simple")
    await store.learn("made", 1.0, None, {"set": "badly", "at": "2020"})


async def kept(database: Database) -> tuple[str, ...]:
    return tuple(await database.fetch_one(KEPT))  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def badly(database: Database) -> AsyncIterator[Database]:
    """A collection whose weights were set badly."""
    await fill(database)
    yield database


async def walk(system: LiveSystem, asked: ItemSet | None = None, **options: Any) -> Walk:
    return await improve(asked or questions(), system, **options)


async def test_weights_that_were_set_badly_are_noticed_mended_kept_and_taken_back(badly: Database) -> None:
    was, system = await kept(badly), build(badly)
    held = {item.id for item in halve(questions())[1].items}

    found = await walk(system)

    (attempt,) = found.attempts
    assert (attempt.remedy, attempt.state) == ("search weights", "kept"), attempt
    assert attempt.decision is not None
    assert attempt.decision.difference.low > 0.3
    assert attempt.decision.difference.n == len(held)
    assert attempt.after is not None
    dense, second, learned = await kept(badly)
    assert (float(dense), second) == (attempt.after.dense, None)
    assert json.loads(learned)["by"] == "improve"
    assert [row.action for row in await system.journal.rows()] == ["improve kept", "improve intent"]

    again = await walk(build(badly))
    assert [each.state for each in again.attempts if each.decision] == []
    await system.journal.revert(attempt.id)
    assert await kept(badly) == was
    with pytest.raises(UnknownNameError, match="no change"):
        await system.journal.revert()


async def test_what_was_judged_is_what_is_served_after_it(badly: Database) -> None:
    system = build(badly)
    (attempt,) = (await walk(system)).attempts
    assert attempt.after is not None
    embedder = NoiseEmbedder()
    trial = Retriever(Weighed(PgStore(badly), Setting(attempt.after.dense, attempt.after.second)), embedder)

    for item in questions().items[:20]:
        request = SearchRequest(item.question, (), "made", k=10)
        judged = [passage.chunk_id for passage in await trial.search(request)]
        served = [passage.chunk_id for passage in await Retriever(PgStore(badly), embedder).search(request)]
        assert served == judged


async def test_what_brings_nothing_leaves_every_byte_as_it_was(badly: Database) -> None:
    was, system = await kept(badly), build(badly)

    found = await walk(system, questions(shuffled=True), steps=3)

    assert all(each.state in ("not chosen", "declined") for each in found.attempts)
    assert found.attempts
    assert await kept(badly) == was
    assert {row.action for row in await system.journal.rows()} <= {"improve declined"}


async def test_nothing_that_serves_is_touched_before_the_decision(badly: Database) -> None:
    was, seen = await kept(badly), list[tuple[str, tuple[str, ...]]]()

    class Watched(LiveSystem):
        async def measure(self, half: ItemSet, knobs: Knobs, title: str) -> Measured:
            done = await LiveSystem.measure(self, half, knobs, title)
            seen.append((title, await kept(badly)))
            return done

    await walk(build(badly, None, Watched))

    assert {state for _, state in seen} == {was}
    assert seen[-1][0] == "deciding: as it would be"
    assert await kept(badly) != was


async def test_a_walk_that_was_stopped_asks_only_what_is_left(badly: Database) -> None:
    first = await walk(build(badly), dry_run=True)
    second = await walk(build(badly), dry_run=True)
    (run,) = [each for each in await Runs(badly, "default").latest() if each.name == "improve"]

    assert first.diagnosis.causes == second.diagnosis.causes
    assert run.asked == first.chosen


# with answers


async def test_answers_decide_when_a_model_is_asked(badly: Database) -> None:
    (attempt,) = (await walk(build(badly, search_only=False))).attempts

    assert (attempt.remedy, attempt.state) == ("search weights", "kept")
    assert attempt.decision is not None
    assert attempt.decision.after.value == 1.0


async def test_a_threshold_that_refuses_all_is_taken_down(badly: Database, prompts: Path) -> None:
    await PgStore(badly).learn("made", 0.0, None, {})
    file = prompts / "routes.toml"
    text = file.read_text("utf-8").replace("k = 1 # too few", "k = 5")
    file.write_text(text.replace("min_sufficiency = 0.2 ", "min_sufficiency = 1.0 ", 1), "utf-8")
    was = file.read_bytes()
    system = build(badly, prompts, search_only=False, may_write=lambda _: True)

    found = await walk(system)

    (attempt,) = found.attempts
    assert (attempt.remedy, attempt.state) == ("threshold", "kept"), attempt
    assert attempt.after is not None
    assert (attempt.after.route, attempt.after.min_sufficiency) == ("grounded", 0.0)
    assert load_catalogue(prompts).route("grounded").min_sufficiency == 0.0
    await system.journal.revert()
    assert file.read_bytes() == was


# being killed

PROGRAM = """
import asyncio, sys
from tests.integration import test_improve
asyncio.run(test_improve.killed(*sys.argv[1:]))
"""


async def killed(url: str, what: str) -> None:
    """A walk, or its change alone, in a process that may die."""
    async with Database.open(url, 2) as opened:
        system = build(opened.of("default"))
        if what == "walk":
            await walk(system)
            return
        await system.keep(tried("search weights", await system.knobs(), Knobs(dense=0.25)))


def tried(remedy: Name, before: Knobs, after: Knobs) -> Try:
    """A remedy that was decided for."""
    right, wrong = ({"q": Score(value)} for value in (1.0, 0.0))
    decision = decide((Item("q", "?", ("x",)),), Measured({}, wrong), Measured({}, right), 1)
    return Try(remedy, "made", "h", "s", before, after, decision)


async def dies(url: str, failpoint: str, what: str) -> int:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path[1:]]), "FAILPOINT": failpoint}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, url, what, env=environment)
    return await process.wait()


@pytest.mark.parametrize("failpoint", FAILPOINTS)
@pytest.mark.parametrize("end", ["resume", "revert"])
async def test_a_killed_walk_is_finished_or_taken_back(
    badly: Database, database_url: str, failpoint: str, end: str
) -> None:
    was = await kept(badly)
    assert await dies(database_url, failpoint, "change") == -9
    now, system = await kept(badly), build(badly)
    assert (now == was) is (failpoint == "improve-intent")
    begun = failpoint != "improve-kept"
    assert (await system.journal.pending() is not None) is begun
    if begun:
        with pytest.raises(InputError, match="was begun and not finished"):
            await walk(system)
        await getattr(system.journal, end)()
        assert await system.journal.pending() is None

    if end == "revert" and begun:
        assert await kept(badly) == was
    else:
        assert (await kept(badly))[0] == "0.25"
        await system.journal.revert()
        assert await kept(badly) == was


async def test_a_walk_killed_while_it_decides_has_changed_nothing(badly: Database, database_url: str) -> None:
    was = await kept(badly)

    assert await dies(database_url, "improve-deciding", "walk") == -9

    assert await kept(badly) == was
    assert await build(badly).journal.rows() == []
    found = await walk(build(badly))
    assert [each.state for each in found.attempts] == ["kept"]


# what others do meanwhile


async def test_what_somebody_set_meanwhile_is_not_overruled(badly: Database) -> None:
    system = build(badly)
    (attempt,) = (await walk(system)).attempts
    await PgStore(badly).learn("made", 0.25, None, {"set": "other"})
    others = await kept(badly)

    with pytest.raises(InputError, match="somebody set them"):
        await system.journal.revert(attempt.id)

    assert await kept(badly) == others


async def test_one_change_at_a_time(badly: Database) -> None:
    journal = build(badly).journal
    await journal.put("intent", "imp_a", {"remedy": "search weights"})

    with pytest.raises(InputError, match="begun and not finished"):
        await journal.put("intent", "imp_b", {"remedy": "search weights"})
    with pytest.raises(UnknownNameError, match="no change 'imp_c'"):
        await journal.revert("imp_c")


# routes.toml


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A prompts folder of one's own, whose grounded route shows one passage."""
    shutil.copytree(folder("prompts"), tmp_path / "prompts")
    file = tmp_path / "prompts" / "routes.toml"
    file.write_text(file.read_text("utf-8").replace("k = 5", "k = 1 # too few", 1), "utf-8")
    return tmp_path / "prompts"


class Shallow(LiveSystem):
    """A system whose search has no better weights."""

    async def _weights(self, half: ItemSet, knobs: Knobs) -> tuple[Knobs, ...]:
        return ()


async def shallow(database: Database) -> None:
    """Good weights but one: noise has a say, so that one passage is too few and two are better."""
    await PgStore(database).learn("made", 0.55, None, {})


async def test_routes_toml_is_changed_when_its_owner_says_so_and_changed_back(badly: Database, prompts: Path) -> None:
    await shallow(badly)
    file = prompts / "routes.toml"
    was, shown = file.read_bytes(), list[str]()

    def may_write(diff: str) -> bool:
        shown.append(diff)
        return True

    system = build(badly, prompts, Shallow, may_write=may_write)

    found = await walk(system)

    (attempt,) = (each for each in found.attempts if each.decision)
    assert (attempt.remedy, attempt.state) == ("depth", "kept"), attempt
    assert "-k = 1 # too few\n+k = 2 # too few" in shown[0]
    assert load_catalogue(prompts).route("grounded").k == 2
    assert [copy.read_bytes() for copy in prompts.glob("*.bak")] == [was]
    await system.journal.revert()
    assert file.read_bytes() == was


async def test_without_leave_the_change_is_shown_and_nothing_is_written(badly: Database, prompts: Path) -> None:
    await shallow(badly)
    was = (prompts / "routes.toml").read_bytes()
    system = build(badly, prompts, Shallow)

    found = await walk(system)

    (attempt,) = (each for each in found.attempts if each.decision)
    assert (attempt.state, "+k = 2" in attempt.edit) == ("proposed", True)
    assert (prompts / "routes.toml").read_bytes() == was
    assert [each.name for each in prompts.glob("*.bak")] == []
    assert [row.action for row in await system.journal.rows()] == ["improve proposed"]


async def test_a_file_that_was_edited_since_is_left_alone(badly: Database, prompts: Path) -> None:
    file = prompts / "routes.toml"
    text = file.read_text("utf-8")
    journal = build(badly, prompts).journal
    edit = Edit("file", str(file), text, text.replace("k = 1 #", "k = 2 #"))
    await journal.put(
        "intent",
        "imp_a",
        {"remedy": "depth", "edit": {"kind": "file", "target": str(file), "before": text, "after": edit.after}},
    )
    file.write_text(text + "# mine\n", "utf-8")

    for end in (journal.resume, journal.revert):
        with pytest.raises(InputError, match="somebody edited it"):
            await end()

    assert file.read_text("utf-8") == text + "# mine\n"


async def test_what_was_cut_apart_is_shown_whole(database: Database, prompts: Path) -> None:
    """Answers of two sentences, between which the chunker cuts."""
    file = prompts / "routes.toml"
    file.write_text(file.read_text("utf-8").replace("k = 1 # too few", "k = 5"), "utf-8")
    documents, items = zip(*(cut_document(number) for number in range(COUNT)), strict=True)
    await ingest_documents(
        documents, store=PgStore(database), embedder=NoiseEmbedder(), collection="made", language="simple"
    )
    await PgStore(database).learn("made", 0.0, None, {})
    system = build(database, prompts, Shallow, may_write=lambda _: True)

    found = await walk(system, ItemSet("cut", items))

    assert {cause for causes in found.diagnosis.causes.values() for cause in causes} == {"chunked_apart"}
    (attempt,) = found.attempts
    assert (attempt.remedy, attempt.state) == ("excerpts", "kept"), attempt
    assert load_catalogue(prompts).route("grounded").excerpts is True


def is_cut(text: str, at: int) -> bool:
    return at in {chunk.span[0] for chunk in split(Document("x", "", text, "made"))}


def cut_document(number: int) -> tuple[Document, Item]:
    """A long paragraph with two sentences of a name in its middle, and the question about both."""
    chance = random.Random(number)
    name = f"{WORDS[number]}{WORDS[-number - 1]}"
    fill = [" ".join(chance.sample(WORDS, 9)).capitalize() + "." for _ in range(34)]
    pair = [f"The {name} was founded by {chance.choice(WORDS)}.", f"The {name} was closed by {chance.choice(WORDS)}."]
    texts = (" ".join([*fill[:at], *pair, *fill[at:]]) for at in range(len(fill)))
    text = next(text for text in texts if is_cut(text, text.index(pair[1])))
    quote = " ".join(pair)
    gold = (Gold(f"d{number}", quote=quote),)
    item = Item(f"q{number}", f"Who founded and who closed the {name}?", (quote,), gold=gold)
    return Document(f"d{number}", "", text, "made"), item


async def test_routing_is_learnt_from_labels_and_written_into_the_routers_table(badly: Database, prompts: Path) -> None:
    file = prompts / "routes.toml"
    was = file.read_text("utf-8")
    file.write_text(
        was.replace("threshold = 0.45", "threshold = 0.99").replace('fallback = "grounded"', 'fallback = "refuse"')
    )
    labelled = [
        Item(f"q{number}", f"How many days of leave do I get in year {number}?", ("x",), route="grounded")
        for number in range(20)
    ]
    system = build(badly, prompts, search_only=False, may_write=lambda _: True)
    embedder, catalogue = HashEmbedder(), system.pipeline.catalogue
    system.pipeline = replace(system.pipeline, embedder=embedder, router=await open_router(catalogue, embedder, "made"))
    prospect = Prospect(REMEDIES[-1], share_of(20, 20), tuple(item.id for item in labelled))

    (knobs,) = await system.propose(prospect, ItemSet("made", tuple(labelled)), Measured({}, {}), await system.knobs())
    state, edit, _ = await system.keep(tried("routing", await system.knobs(), knobs))

    assert (state, knobs.threshold is not None and knobs.threshold < 0.99) == ("kept", True)
    assert f"+threshold = {knobs.threshold:g} " in edit
    assert load_catalogue(prompts).threshold == knobs.threshold


async def test_an_engine_that_is_away_decides_nothing(badly: Database) -> None:
    system = build(badly, search_only=False)
    await PgStore(badly).learn("made", 0.0, None, {})
    away = ScriptedEngine([EngineUnavailableError("the engine is down")])
    system.pipeline = replace(system.pipeline, serving=MemoryServing(away, {"cited-answer": ADAPTER}))

    with pytest.raises(EngineUnavailableError, match="could not be asked"):
        await walk(system)

    assert await system.journal.rows() == []


async def test_weights_that_somebody_set_during_the_walk_are_left_alone(badly: Database) -> None:
    system = build(badly)
    before = await system.knobs()
    await PgStore(badly).learn("made", 0.25, None, {})
    others = await kept(badly)

    with pytest.raises(InputError, match="changed while this walk"):
        await system.keep(tried("search weights", before, Knobs(dense=0.5)))

    assert await kept(badly) == others
    assert await system.journal.rows() == []


# the command

Run = Callable[..., Any]


@pytest.fixture
def run(database_url: str, models_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """One command against a database and a home of its own; the embedder gives noise."""
    monkeypatch.setattr("orchestrator.app.open_embedder", lambda *_: NoiseEmbedder())
    own = {"DATABASE_URL": database_url, "MODELS_DIR": models_dir, "HOME": tmp_path, "COLLECTION": "made"}
    for name, value in own.items():
        monkeypatch.setenv(f"ORCHESTRATOR_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["improve", *arguments])


@pytest.fixture
def written(database_url: str, run: Run, tmp_path: Path) -> Path:
    """The questions as a file, and the collection with bad weights."""

    async def prepare() -> None:
        async with Database.open(database_url, 1) as opened:
            await fill(opened.of("default"))

    asyncio.run(prepare())
    write_items(questions().items, tmp_path / "questions.jsonl")
    return tmp_path / "questions.jsonl"


@pytest.mark.usefixtures("written")
def test_the_command_walks_writes_down_and_takes_back(run: Run) -> None:
    planned = run("questions.jsonl", "--search-only", "--dry-run")
    walked = run("questions.jsonl", "--search-only", "--json")
    history = run("--history")
    back = run("--revert", "--json")
    again = run("--revert")

    assert (planned.exit_code, walked.exit_code, history.exit_code, back.exit_code) == (0, 0, 0, 0), walked.output
    assert "would try search weights" in planned.stdout
    (attempt,) = (each for each in json.loads(walked.stdout)["attempts"] if each["decision"])
    assert (attempt["state"], attempt["before"]["dense"]) == ("kept", 1.0)
    assert "kept" in history.stdout
    assert json.loads(back.stdout) == {"id": attempt["id"], "remedy": "search weights", "did": "taken back"}
    assert (again.exit_code, "no change of 'made'" in again.stderr) == (1, True)


@pytest.mark.usefixtures("written")
def test_a_person_reads_what_was_wrong_tried_and_kept(run: Run) -> None:
    shown = run("questions.jsonl", "--search-only").stdout

    for part in ("made perfect", "search weights", "a gain of", "collection made: dense 1", "improve --revert imp_"):
        assert part in shown, part


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Give a SET"),
        (("--resume", "--history"), 2, "Give a SET"),
        (("none.jsonl",), 2, "does not exist"),
        (("--resume",), 1, "no change of 'made' waits"),
        (("--revert", "imp_none"), 1, "no change 'imp_none'"),
    ],
)
def test_a_wrong_call_says_what_to_do(run: Run, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run(*arguments)

    assert (done.exit_code, said in done.stderr) == (code, True), done.output
