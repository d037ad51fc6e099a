"""The benchmark of finding runs on a small set and reports what it says it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    "bees": "Bees dance to tell one another where flowers are.",
    "glass": "Glass is made of sand that is melted at 1,700 degrees.",
    "tides": "The moon pulls the sea, and so the tides come and go twice a day.",
    "yeast": "Yeast turns sugar into alcohol and makes dough rise.",
    "salt": "Salt keeps food from spoiling because it binds water.",
}
QUESTIONS = {
    "q1": ("What causes tides?", "tides"),
    "q2": ("Why does dough rise?", "yeast"),
    "q3": ("melted sand", "glass"),
}


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    rows = [{"_id": name, "title": "", "text": text} for name, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": name, "text": text} for name, (text, _) in QUESTIONS.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "qrels.tsv").write_text("".join(f"{name}\t{document}\t1\n" for name, (_, document) in QUESTIONS.items()))
    return folder


@pytest.fixture
def run(database_url, models_dir):
    def run(*arguments):
        environment = {**os.environ, "ORCHESTRATOR_MODELS_DIR": str(models_dir)}
        command = [sys.executable, str(ROOT / "benchmarks/retrieval.py"), *map(str, arguments)]
        done = subprocess.run(
            [*command, "--database", database_url],
            env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_measures_every_way_to_search(run, beir):
    result = json.loads(run(beir, "--json", "--timed", "3"))

    ways = ["BM25", "dense", "RRF of both", "hybrid", "re-ranked"]
    assert list(result["quality"]) == ways
    assert all(row["ndcg@10"]["value"] > 0.6 for row in result["quality"].values())
    assert result["quality"]["re-ranked"]["recall@100"] == {"value": 1.0, "error": 0.0}
    assert {(row["system"], row["against"]) for row in result["comparisons"]} >= {("re-ranked", "hybrid")}
    assert set(result["cost"]) == {"SELECT 1", "hand-written dense query", *ways} - {"RRF of both"}
    assert all(row["cpu_ms"] > 0 for row in result["cost"].values())
    assert result["cost"]["re-ranked"]["server_cpu_ms"] is None  # of a server that may be elsewhere nothing is known
    assert list(result["end_to_end"]["stages"]) == ["embedding", "search", "re-ranking"]
    assert sum(stage["client_cpu_ms"] for stage in result["end_to_end"]["stages"].values()) == pytest.approx(
        result["end_to_end"]["client_cpu_ms"]
    )
    assert result["throughput"]["SELECT 1"]["ratio_to_select_1"] == 1.0
    assert (result["ingest"]["documents"], result["ingest"]["chunks"]) == (5, 5)
    assert result["bytes"]["vectors"]["rows"] > 0


def test_a_second_run_says_that_nothing_was_indexed(run, beir):
    run(beir, "--timed", "1")

    text = run(beir, "--timed", "1")

    assert "## small: 5 documents (5 chunks), 3 of 3 questions" in text
    assert "ingest was not measured" in text
    assert "| re-ranking |" in text
