"""The measures of benchmarks/chunking.py on spans small enough to count by hand, and its splitters' places."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def chunking() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "chunking.py"
    spec = importlib.util.spec_from_file_location("bench_chunking", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_chunking"] = module
    spec.loader.exec_module(module)
    return module


def test_recall_precision_and_iou_are_over_characters(chunking: ModuleType) -> None:
    question = chunking.Question("?", "a", ((10, 20), (40, 50)))
    assert chunking.scores(question, [("a", 15, 35)]) == {"recall": 5 / 20, "precision": 5 / 20, "iou": 5 / (20 + 15)}


def test_another_text_costs_precision_only(chunking: ModuleType) -> None:
    question = chunking.Question("?", "a", ((10, 20),))
    found = chunking.scores(question, [("a", 10, 15), ("b", 10, 20)])
    assert found == {"recall": 5 / 10, "precision": 5 / 15, "iou": 5 / (15 + 5)}


def test_what_is_returned_twice_is_found_once_and_costs_twice(chunking: ModuleType) -> None:
    question = chunking.Question("?", "a", ((10, 20),))
    found = chunking.scores(question, [("a", 0, 15), ("a", 10, 20)])
    assert found == {"recall": 1, "precision": 10 / 25, "iou": 10 / 25}


def test_nothing_returned_scores_nothing(chunking: ModuleType) -> None:
    question = chunking.Question("?", "a", ((10, 20),))
    assert chunking.scores(question, []) == {"recall": 0, "precision": 0, "iou": 0}


def test_omega_is_the_precision_of_all_chunks_that_touch(chunking: ModuleType) -> None:
    question = chunking.Question("?", "a", ((10, 20),))
    chunks = [("a", 0, 15), ("a", 15, 40), ("a", 40, 60), ("b", 10, 20)]
    assert chunking.omega(question, chunks) == 10 / 40


def test_omega_counts_what_no_chunk_holds(chunking: ModuleType) -> None:
    question = chunking.Question("?", "a", ((10, 20),))
    assert chunking.omega(question, [("a", 15, 20)]) == 5 / 10


def test_means_and_standard_errors(chunking: ModuleType) -> None:
    question = chunking.Question("?", "a", ((0, 10),))
    row = chunking.measure("x", [question] * 2, [("a", 0, 10), ("a", 10, 40)], [[("a", 0, 10)], [("a", 10, 40)]])
    assert (row.chunks, row.characters, row.returned, row.passages) == (2, 20, 20, 1)
    assert row.means["recall"] == 0.5
    assert row.errors["recall"] == pytest.approx(0.5)


def test_pieces_without_places_are_found_in_order(chunking: ModuleType) -> None:
    assert chunking.locate("ab ab ab", ["ab", "ab", "b ab"]) == [(0, 2), (3, 5), (4, 8)]


def test_windows_overlap_and_reach_the_end(chunking: ModuleType) -> None:
    offsets = [(number, number + 1) for number in range(10)]
    assert chunking.windows(offsets, 4, 0) == [(0, 4), (4, 8), (8, 10)]
    assert chunking.windows(offsets, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert chunking.windows(offsets, 20, 0) == [(0, 10)]


def test_sentences_are_cut_after_full_stops(chunking: ModuleType) -> None:
    text = "One. Two 2.5 more? Three"
    assert [text[slice(*span)] for span in chunking.by_sentences(text, 1)] == ["One.", "Two 2.5 more?", "Three"]
    assert [text[slice(*span)] for span in chunking.by_sentences(text, 2)] == ["One. Two 2.5 more?", "Three"]


def test_clusters_are_cut_where_similarity_ends(chunking: ModuleType) -> None:
    groups = np.array([0, 0, 0, 1, 1, 2, 2])
    similarity = (groups[:, None] == groups[None, :]).astype(float)
    assert chunking.cluster_cuts(similarity, 4) == [2, 4]


async def test_search_fuses_cosine_and_bm25(chunking: ModuleType) -> None:
    async def embed(texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        return np.array([[1.0, 0.0] if "zebra" in text else [0.0, 1.0] for text in texts])

    index = chunking.Index(["zebra", "lion", "lion zebra lion lion lion"])
    question = chunking.Question("zebra", "a", ((0, 1),))
    order, fused, cosine, bm25 = (await index.search([question], embed, 0.5))[0]
    assert order == [0, 2, 1]
    assert fused[0] == 1
    assert cosine.tolist() == [1, 0, 1]
    assert bm25[1] == 0 < bm25[2] < bm25[0]


def test_a_reference_that_is_not_at_its_place_is_refused(chunking: ModuleType, tmp_path: Path) -> None:
    reference = {"content": "text", "start_index": 0, "end_index": 4}
    line = {"question": "?", "corpus": "a", "references": [reference]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line))
    (tmp_path / "a.md").write_text("a text")
    with pytest.raises(SystemExit, match="not at its place"):
        chunking.load(tmp_path)


def test_a_folder_without_questions_is_refused(chunking: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no questions\.jsonl"):
        chunking.load(tmp_path)
