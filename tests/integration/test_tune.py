"""What a collection learns from an evaluation set: a gain that is there, none where there is none, and that it is served."""

import hashlib
import json
import random
from dataclasses import replace

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.evaluation.run import keep_known, run_set
from orchestrator.evaluation.sets import EvalSet, Question
from orchestrator.evaluation.tune import Setting, Trial, choices, rank_pool, split_questions, tune
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.types import Document, SearchRequest

WORDS = [f"{a}{b}{c}" for a in "bdkmst" for b in "aeiou" for c in ("lin", "rox", "vep", "zud", "jaf")]


class NoiseEmbedder:
    """Vectors that say nothing: each text has its own random direction."""

    space, dimensions = "noise-32", 32

    async def embed(self, texts):
        return [self._vector(text) for text in texts]

    def _vector(self, text):
        chance = random.Random(hashlib.sha256(text.encode()).digest())
        numbers = [chance.gauss(0, 1) for _ in range(32)]
        length = sum(number * number for number in numbers) ** 0.5
        return [number / length for number in numbers]


class LastFirst:
    """A re-ranker that knows nothing either: it scores by a hash of the passage."""

    async def rerank(self, query, passages):
        return [hashlib.sha256((query + passage.text).encode()).digest()[0] / 255 for passage in passages]


def made_set(name="made", count=90):
    """Documents of ten words each, and for each a question of four of them."""
    chance = random.Random(name)
    documents, questions = [], []
    for number in range(count):
        words = chance.sample(WORDS, 10)
        documents.append(Document(f"d{number:03d}", "", " ".join(words), "made"))
        questions.append(Question(f"q{number:03d}", " ".join(chance.sample(words, 4)), {f"d{number:03d}": 1.0}))
    return EvalSet(name, tuple(documents), tuple(questions))


@pytest.fixture
async def indexed(store):
    """A set whose documents are in the collection "made", and a retriever whose dense side is noise."""
    wanted = made_set()
    embedder = NoiseEmbedder()
    await ingest_documents(wanted.documents, store=store, embedder=embedder, collection="made", language="simple")
    return wanted, Retriever(store, embedder)


async def test_where_the_dense_side_is_noise_the_words_are_learnt(indexed):
    wanted, retriever = indexed

    found = await tune(wanted, retriever, collection="made", tenant="default")

    assert found.is_gain
    assert found.gain.low > 0.02
    assert found.best.dense <= 0.3
    assert found.held_out[1].value > found.held_out[0].value
    assert found.train[0].n + found.held_out[0].n == len(wanted.questions)
    assert found.verdict(applied=False).startswith("gain +")


async def test_where_the_labels_are_random_the_default_is_kept(indexed):
    wanted, retriever = indexed
    names = [document.external_id for document in wanted.documents]
    chance = random.Random(5)
    shuffled = tuple(replace(question, relevant={chance.choice(names): 1.0}) for question in wanted.questions)

    found = await tune(replace(wanted, questions=shuffled), retriever, collection="made", tenant="default")

    assert not found.is_gain
    assert found.verdict(applied=False).startswith(
        ("no significant gain, keeping the default", "no setting is better than this one, keeping the default")
    )


async def test_tuning_changes_nothing_and_gives_the_same_twice(indexed, store):
    wanted, retriever = indexed
    wanted = wanted.sample(70)

    first = await tune(wanted, retriever, collection="made", tenant="default")
    second = await tune(wanted, retriever, collection="made", tenant="default")

    assert first == second
    assert await store.learned("default", "made") == (None, None)


@pytest.mark.parametrize("setting", [Setting(), Setting(0.0, 0.0), Setting(0.4, 0.75), Setting(1.0, None)], ids=str)
@pytest.mark.parametrize("reranker", [None, LastFirst()], ids=["two stages", "re-ranked"])
async def test_what_was_judged_is_what_is_served(indexed, store, setting, reranker):
    wanted, retriever = indexed
    trial = Trial(replace(retriever, reranker=reranker), "made", "default")
    await store.learn("made", setting.dense, setting.second, {})
    serving = Retriever(store, retriever.embedder, reranker)

    for question in wanted.questions[:20]:
        judged = rank_pool(await trial.pool(question, setting.dense), setting)
        served = await serving.search(SearchRequest(question.text, (), "made", k=30))
        assert [passage.external_id for passage in served] == judged


async def test_what_was_learnt_is_kept_with_its_source(indexed, store, database):
    wanted, retriever = indexed
    found = await tune(wanted, retriever, collection="made", tenant="default")

    await store.learn("made", found.best.dense, found.best.second, found.record())

    row = await database.fetch_one("select dense_weight, rerank_weight, learned from collections where name = 'made'")
    assert row.dense_weight == pytest.approx(found.best.dense)
    assert row.rerank_weight is None
    assert row.learned["sha256"] == wanted.sha256
    assert row.learned["questions"] == {"train": found.train[0].n, "held_out": found.held_out[0].n}
    assert row.learned["gain"]["low"] > 0


async def test_after_it_is_applied_nothing_more_is_gained(indexed, store):
    wanted, retriever = indexed
    first = await tune(wanted, retriever, collection="made", tenant="default")
    await store.learn("made", first.best.dense, first.best.second, first.record())

    again = await tune(wanted, retriever, collection="made", tenant="default")

    assert again.before == Setting(pytest.approx(first.best.dense), first.best.second)
    assert not again.is_gain
    assert "keeping what was learnt before" in again.verdict(applied=False)


async def test_learning_needs_a_collection(store):
    with pytest.raises(UnknownNameError):
        await store.learn("none", 0.5, None, {})


async def test_few_questions_teach_nothing(indexed):
    wanted, retriever = indexed

    with pytest.raises(InputError, match="at least 60 are needed"):
        await tune(replace(wanted, questions=wanted.questions[:30]), retriever, collection="made", tenant="default")


async def test_progress_reaches_its_end(indexed):
    wanted, retriever = indexed
    told = []

    await tune(
        wanted, retriever, collection="made", tenant="default", progress=lambda done, total: told.append((done, total))
    )

    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] <= told[-1][1]
    assert told[-1][0] > 0.9 * told[-1][1]


def test_a_question_stays_on_its_side_in_every_sample():
    questions = made_set().questions
    train, held_out = ([question.id for question in half] for half in split_questions(questions))
    fewer, _ = ([question.id for question in half] for half in split_questions(questions[::2]))
    sampled = {question.id for question in questions[::2]}

    assert sorted([*train, *held_out]) == [question.id for question in questions]
    assert [name for name in train if name in sampled] == fewer
    assert 0.35 < len(train) / len(questions) < 0.65


def test_without_a_re_ranker_its_weight_is_not_tried():
    assert {setting.second for setting in choices(Setting(), with_second=False)} == {None}
    assert choices(Setting(0.33, 0.5), with_second=True)[:2] == [Setting(0.33, 0.5), Setting()]


async def test_a_set_of_other_documents_is_refused(indexed, store):
    wanted, _ = indexed
    other = replace(wanted, questions=(Question("q", "?", {"elsewhere": 1.0}),))

    with pytest.raises(InputError, match="none of the 1 documents"):
        await keep_known(other, store, "made")


async def test_judgements_of_documents_that_are_gone_are_left_out(indexed, store):
    wanted, _ = indexed
    await store.delete("made", "d000")

    kept = await keep_known(wanted, store, "made")

    assert len(kept.questions) == len(wanted.questions) - 1
    assert (kept.skipped, kept.missing) == (1, 1)


async def test_a_run_measures_each_side_and_both(indexed):
    wanted, retriever = indexed

    rows = {row.way: row for row in await run_set(wanted.sample(30), retriever, collection="made", tenant="default")}

    assert list(rows) == ["as configured", "BM25 alone", "dense alone"]
    assert rows["BM25 alone"].ndcg.value > rows["as configured"].ndcg.value > rows["dense alone"].ndcg.value
    assert rows["BM25 alone"].mrr.value > 0.9
    assert rows["dense alone"].recall.value < 0.3
    assert rows["BM25 alone"].precision.value <= 0.1


@pytest.fixture
def run(database_url, models_dir, monkeypatch, tmp_path):
    """Runs one command against a fresh database and gives its result."""
    for name, value in (("DATABASE_URL", database_url), ("MODELS_DIR", models_dir), ("HOME", tmp_path)):
        monkeypatch.setenv(f"ORCHESTRATOR_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


@pytest.fixture
def written(tmp_path):
    """The made set as files: a corpus to ingest and questions about it."""
    wanted = made_set(count=70)
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"id": d.external_id, "text": d.text}) + "\n" for d in wanted.documents)
    )
    (tmp_path / "questions.jsonl").write_text(
        "".join(
            json.dumps({"id": q.id, "question": q.text, "document_id": next(iter(q.relevant))}) + "\n"
            for q in wanted.questions
        )
    )
    return wanted


def test_the_commands_measure_and_learn(run, written):
    ingested = run("ingest", "corpus.jsonl")
    assert ingested.exit_code == 0, ingested.output

    measured = run("eval", "search", "questions.jsonl", "--questions", "20", "--json")
    assert measured.exit_code == 0, measured.output
    result = json.loads(measured.stdout)
    assert result["set"]["questions"] == 20
    assert {row["way"] for row in result["rows"]} == {"as configured", "BM25 alone", "dense alone"}
    assert all(0 <= row["ndcg"]["value"] <= 1 for row in result["rows"])

    learnt = run("eval", "tune", "questions.jsonl", "--apply", "--json")
    assert learnt.exit_code == 0, learnt.output
    result = json.loads(learnt.stdout)
    assert result["applied"] == result["is_gain"]
    assert result["before"] == {"dense": None, "second": None}
    shown = run("eval", "tune", "questions.jsonl", "--reset")
    assert shown.exit_code == 0, shown.output
    assert "held out" in shown.stdout
    assert ("not applied" in shown.stdout) == result["is_gain"]


def test_a_set_without_its_documents_says_so(run, written):
    ingested = run("ingest", "corpus.jsonl", "--collection", "other")
    assert ingested.exit_code == 0, ingested.output

    result = run("eval", "search", "questions.jsonl")

    assert result.exit_code == 1
    assert "there is no collection 'default'" in result.stderr
