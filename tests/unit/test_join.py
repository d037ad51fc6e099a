"""Joining: what is kept, what is joined, exact spans, bounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.knowledge.join import LONGEST, NEAR, Stretch, join_passages, question_terms
from orchestrator.knowledge.split import split
from orchestrator.testing import passage
from orchestrator.types import Document, Passage

FILLER = "Nothing in this sentence bears on anything that was asked. "


def found(text: str, document: str = "d", score: float = 1.0, media_type: str = "text/plain") -> list[Passage]:
    """All chunks of a text as if a search had found them alike."""
    return [
        passage(
            chunk.ordinal + 1,
            chunk.text,
            document_id=document,
            span=chunk.span,
            paragraph=chunk.paragraph,
            heading_path=chunk.heading_path,
            score=score,
        )
        for chunk in split(Document(document, "", text, "test", media_type))
    ]


def texts(stretches: list[Stretch], text: str) -> list[str]:
    return [text[slice(*stretch.span)] for stretch in stretches]


def test_a_sentence_that_answers_comes_without_its_chunk() -> None:
    text = f"{FILLER * 6}The zebra eats green grass all day long. {FILLER * 6}".strip()
    stretches = join_passages("What does the zebra eat?", found(text), 5, margin=0.05)
    assert texts(stretches, text) == ["The zebra eats green grass all day long."]


def test_close_sentences_are_one_passage_across_chunks_and_far_ones_are_not() -> None:
    near = f"The zebra eats grass of many kinds.\n\n{FILLER * 3}\n\nThe zebra eats leaves of many kinds."
    text = f"{near}\n\n{FILLER * (NEAR // len(FILLER) + 2)}\n\nThe zebra eats roots of many kinds."
    stretches = join_passages("What does the zebra eat?", found(text), 5, margin=0.05)
    assert sorted(texts(stretches, text)) == [near, "The zebra eats roots of many kinds."]


def test_documents_and_versions_are_not_joined() -> None:
    text = "The zebra eats grass of many kinds."
    passages = [
        passage(1, text, document_id="a"),
        passage(2, text, document_id="b", score=1.0),
        passage(3, text, document_id="a", version=2, score=1.0),
    ]
    places = [(stretch.lead.document_id, stretch.lead.version) for stretch in join_passages("zebra", passages, 5)]
    assert sorted(places) == [("a", 1), ("a", 2), ("b", 1)]


def test_no_more_than_k_and_the_best_first() -> None:
    passages = [
        passage(number, f"The zebra eats grass{'.' * number}", score=1 - number / 100) for number in range(1, 9)
    ]
    stretches = join_passages("zebra", passages, 3)
    assert [stretch.lead.chunk_id for stretch in stretches] == [1, 2, 3]
    scores = [stretch.score for stretch in stretches]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= min(scores) <= max(scores) <= 1


def test_what_is_far_below_the_best_is_left_out() -> None:
    passages = [
        passage(1, "The zebra eats grass of many kinds.", score=1.0),
        passage(2, "Stock prices fell.", score=0.4),
    ]
    assert [stretch.lead.chunk_id for stretch in join_passages("What do zebras eat?", passages, 5)] == [1]


def test_a_learnt_weight_or_a_reranker_orders_but_does_not_widen() -> None:
    raw = {"cosine": 0.6, "bm25": 9.0}, {"cosine": 0.1, "bm25": 0.5}
    passages = [
        passage(1, "The zebra eats grass of many kinds.", score=0.5, scores=raw[0]),
        passage(2, "Stock prices fell.", score=0.9, scores=raw[1]),
    ]
    assert [stretch.lead.chunk_id for stretch in join_passages("What do zebras eat?", passages, 5)] == [1]


def test_a_passage_is_bounded() -> None:
    text = "The zebra eats grass of many kinds. " * (3 * LONGEST // 20)
    stretches = join_passages("What does the zebra eat?", found(text), 100)
    assert all(stretch.span[1] - stretch.span[0] <= LONGEST for stretch in stretches)
    assert len(stretches) >= 3


def test_the_paragraph_and_the_headings_are_those_of_the_span() -> None:
    text = f"# Animals\n\n{FILLER * 3}\n\n## Zebras\n\n{FILLER}\n\nThe zebra eats grass of many kinds."
    stretch = join_passages("What does the zebra eat?", found(text, media_type="text/markdown"), 1, margin=0.05)[0]
    assert texts([stretch], text) == ["The zebra eats grass of many kinds."]
    assert stretch.paragraph == 4
    assert stretch.heading_path == ("Animals", "Zebras")


def test_the_passage_of_a_stretch_keeps_its_chunk_and_says_what_it_scored() -> None:
    chunk = passage(7, f"{FILLER}The zebra eats grass of many kinds.", scores={"cosine": 0.5})
    stretch = join_passages("zebra", [chunk], 1, margin=0.05)[0]
    shown = stretch.passage("The zebra eats grass of many kinds.")
    assert (shown.chunk_id, shown.text, shown.span) == (7, "The zebra eats grass of many kinds.", stretch.span)
    assert shown.scores == {"cosine": 0.5, "sentence": stretch.score}
    assert shown.score == stretch.score


@pytest.mark.parametrize(
    "whole",
    [
        "| animal | food |\n|---|---|\n| lion | meat |\n| zebra | grass |\n| owl | mice |",
        "```\nprepare()\n\nfeed(zebra)\n\nrest()\n```",
    ],
)
def test_tables_and_code_are_not_torn(whole: str) -> None:
    text = f"{FILLER * 3}\n\n{whole}\n\n{FILLER * 3}"
    stretches = join_passages("What does the zebra eat?", found(text, media_type="text/markdown"), 1, margin=0.01)
    assert texts(stretches, text) == [whole]


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ("斑马吃什么？", "狮子每天都吃很多肉。斑马吃草和树叶。猫头鹰晚上吃老鼠。", "斑马吃草和树叶。"),
        (
            "Fressen Zebras Blätter?",
            f"{FILLER}Das Zebra frisst Gras und Blätter. {FILLER}",
            "Das Zebra frisst Gras und Blätter.",
        ),
        (
            "What is max_connections?",
            f"{FILLER}Set max_connections to 100 or higher. {FILLER}",
            "Set max_connections to 100 or higher.",
        ),
        (
            "ZEBRA İstanbul",
            f"İİİ {FILLER}The zebra eats grass of many kinds. {FILLER}",
            "The zebra eats grass of many kinds.",
        ),
    ],
)
def test_words_of_many_scripts(question: str, text: str, answer: str) -> None:
    assert texts(join_passages(question, found(text), 1, margin=0.05), text) == [answer]


def test_terms_are_stems_and_pairs_of_letters() -> None:
    assert question_terms("Zebras, zebra; 长城在 a_b") == ["zebra", "a", "b", "长城", "城在"]


@pytest.mark.parametrize("question", ["", "?!", "the", "%(x)s {y} \\1 [a-"])
def test_any_question_finds_something(question: str) -> None:
    assert len(join_passages(question, found(FILLER * 3), 2)) == 1


def test_nothing_found_joins_to_nothing() -> None:
    assert join_passages("zebra", [], 5) == []


PIECES = st.sampled_from(
    ["zebra ", "End. ", "\n", "\n\n", "- x\n", "| a |\n", "```\n", "斑马。", "İ", "word " * 90, " = = "]
)


@given(st.lists(PIECES, max_size=60).map("".join), st.integers(1, 4), st.floats(0, 2), st.data())
@settings(max_examples=120, deadline=None)
def test_stretches_are_exact_disjoint_and_of_what_was_found(
    text: str, k: int, margin: float, data: st.DataObject
) -> None:
    chunks = found(text, media_type="text/markdown")
    some = data.draw(st.lists(st.sampled_from(chunks), unique_by=lambda chunk: chunk.chunk_id)) if chunks else []
    stretches = join_passages("zebra 斑马 end", some, k, margin)
    spans = sorted(stretch.span for stretch in stretches)
    assert len(spans) <= k
    assert bool(spans) == bool(some)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    for start, end in spans:
        assert text[start:end].strip() == text[start:end] != ""
        assert any(chunk.span[0] <= start < chunk.span[1] for chunk in some)
        assert any(chunk.span[0] < end <= chunk.span[1] for chunk in some)
