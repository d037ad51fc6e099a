"""Mixing the stages, MaxSim, the latency budget, and the answers of re-ranking servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import EngineError
from orchestrator.knowledge import fuse
from orchestrator.knowledge.embed import pack_signs
from orchestrator.knowledge.rerank import POOL, MaxSim, Ranker, _read_ranks, max_sim
from orchestrator.protocols import Reranker, TokenEmbedder
from orchestrator.testing import HashEmbedder
from orchestrator.types import ChunkVectors, Passage, QuestionVectors

DIMENSIONS = 64
SCORES = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


class WordEmbedder(HashEmbedder):
    """A token is a word; `letters_per_piece` says whether the model is at home in the texts."""

    letters_per_piece = (0.0, 0.1)

    async def embed_tokens(self, texts: Sequence[str]) -> list[ChunkVectors]:
        vectors = await self.embed(texts)
        return [ChunkVectors(v, pack_signs(rows(text))) for v, text in zip(vectors, texts, strict=True)]

    async def embed_question(self, text: str) -> QuestionVectors:
        ((vector,), words) = (await self.embed([text]), rows(text))
        return QuestionVectors(vector, words.tobytes(), (1.0,) * len(words))


class Scripted:
    """Scores as given; waits, or raises, when told to."""

    def __init__(self, scores: list[float], wait_s: float = 0, error: Exception | None = None) -> None:
        self.scores, self.wait_s, self.error = scores, wait_s, error
        self.seen = 0

    async def rerank(self, query: str, passages: Sequence[Passage]) -> list[float]:
        self.seen = len(passages)
        await asyncio.sleep(self.wait_s)
        if self.error:
            raise self.error
        return self.scores[: len(passages)]


def rows(text: str) -> np.ndarray:
    """A unit vector of random signs for each word, the same for the same word."""
    found = [np.random.default_rng(sum(map(ord, word))).choice([-1.0, 1.0], DIMENSIONS) for word in text.split()]
    return np.array(found, np.float32).reshape(-1, DIMENSIONS) / 8


def passage(number: int, text: str = "", **scores: float) -> Passage:
    return Passage(number, "d", "e", 1, "", text, (0, len(text)), 0, scores.get("fused", 0.0), scores)


def candidates(*norms: tuple[float, float]) -> list[Passage]:
    return [passage(n, cosine_norm=c, bm25_norm=b, fused=c / 2 + b / 2) for n, (c, b) in enumerate(norms)]


def ids(passages: Sequence[Passage]) -> list[int]:
    return [found.chunk_id for found in passages]


@given(SCORES)
def test_scaled_scores_are_from_0_to_1(scores: list[float]) -> None:
    found = fuse.scaled(scores)

    assert all(0 <= value <= 1 for value in found)
    assert found.max() == pytest.approx(1) or max(scores) <= 1e-6


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=8), st.floats(0, 1))
def test_a_passage_that_is_best_twice_stays_first(pairs: list[tuple[float, float]], weight: float) -> None:
    first, second = [1.0, *(a * 0.9 for a, _ in pairs)], [1.0, *(b * 0.9 for _, b in pairs)]

    mixed = fuse.interpolate(first, second, weight)

    assert mixed.index(max(mixed)) == 0


def test_the_ends_of_the_weight_are_the_two_stages() -> None:
    assert fuse.interpolate([1, 2], [4, 2], 0) == [0.5, 1]
    assert fuse.interpolate([1, 2], [4, 2], 1) == [1, 0.5]


def test_weights_go_from_foreign_to_familiar() -> None:
    assert fuse.weights_for(0) == fuse.FOREIGN
    assert fuse.weights_for(1) == fuse.FAMILIAR
    assert fuse.FOREIGN.dense < fuse.weights_for(0.5).dense < fuse.FAMILIAR.dense


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("abcd" * 10, 10, 1.0),
        ("ab" * 10, 10, 0.0),
        ("abc" * 10, 10, pytest.approx(1 / 3)),
        ("ก" * 40, 2, 0.0),
        ("", 0, 0.0),
    ],
)
def test_familiarity_is_read_from_the_length_of_the_pieces(text: str, pieces: int, expected: float) -> None:
    assert fuse.familiarity([text], pieces, (2.8, 3.4)) == expected


def test_grams_find_inflected_and_compound_words() -> None:
    found = fuse.gram_coverage(
        "Wie hoch ist die Geschwindigkeitsbegrenzung?",
        ["Geschwindigkeitsbegrenzungen gelten überall.", "Die Begrenzung der Höhe.", "Über das Wetter."],
    )

    assert found[0] > found[1] > found[2]


def test_grams_of_chinese_are_pairs_of_characters() -> None:
    found = fuse.gram_coverage("黑豹队的防守", ["防守组的黑豹", "联盟中排名第六"])

    assert found[0] > 0  # two of its pairs, but none of its fours
    assert found[1] == 0


def test_what_all_passages_hold_counts_little() -> None:
    found = fuse.gram_coverage("common rare", ["common rare", "common", "common", "common"])

    assert found[0] == pytest.approx(1)
    assert found[1] < 0.3


@pytest.mark.parametrize(
    ("question", "texts"), [("", ["text"]), ("?!", ["text"]), ("question", [""]), ("question", [])]
)
def test_grams_of_nothing_cover_nothing(question: str, texts: list[str]) -> None:
    assert fuse.gram_coverage(question, texts) == [0.0] * len(texts)


LETTERS = st.text("abcde C-_.\u00e9\u00df\u0130\u0301\u00bd\ufb01\u5357\u6d77\u3002\U00020000\U0001d4b3\ud800\x00")


@given(LETTERS, st.lists(LETTERS, min_size=1, max_size=5))
def test_grams_are_those_that_stand_in_the_text(question: str, texts: list[str]) -> None:
    asked, *normal = [fuse._normal(text) for text in (question, *texts)]
    size = 2 if sum("\u3000" < letter < "\ua000" or letter > "\U0001ffff" for letter in asked) * 4 > len(asked) else 4
    grams = {asked[i : i + size] for i in range(len(asked) - size + 1)}
    counts = {gram: n for gram in grams if (n := sum(gram in text for text in normal))}
    idf = {gram: np.log1p((len(texts) - n + 0.5) / (n + 0.5)) for gram, n in counts.items()}
    expected = [sum(idf[gram] for gram in idf if gram in text) / max(sum(idf.values()), 1e-9) for text in normal]

    assert fuse.gram_coverage(question, texts) == pytest.approx(expected)


@given(LETTERS)
def test_letters_and_digits_of_any_script_make_a_text_familiar(text: str) -> None:
    assert fuse.familiarity([text], 4, (0.0, 2.0)) == min(1.0, sum(map(str.isalnum, text)) / 8) * (
        sum(map(str.isalnum, text)) / 4 <= fuse.UNREAD
    )


def test_maxsim_finds_the_passage_that_holds_the_words() -> None:
    texts = ["alpha beta gamma", "alpha beta delta", "epsilon zeta"]
    words = rows("beta delta")

    found = max_sim(QuestionVectors((), words.tobytes(), (1.0, 1.0)), [pack_signs(rows(t)) for t in texts], DIMENSIONS)

    assert found[1] == pytest.approx(1, abs=1e-5)
    assert found[1] > found[0] > found[2]


def test_maxsim_passes_over_what_all_passages_match() -> None:
    words = rows("the rare")
    packed = [pack_signs(rows(text)) for text in ("the rare", "the other")]

    found = max_sim(QuestionVectors((), words.tobytes(), (1.0, 1.0)), packed, DIMENSIONS)

    assert found[0] - found[1] > 0.5  # a plain mean over both words would halve the difference


def test_maxsim_is_the_product_with_the_signs() -> None:
    texts = ["alpha beta gamma", "delta", "epsilon alpha beta zeta"]
    vectors = np.random.default_rng(1).standard_normal((3, DIMENSIONS)).astype(np.float32)

    found = max_sim(
        QuestionVectors((), vectors.tobytes(), (1.0,) * 3), [pack_signs(rows(t)) for t in texts], DIMENSIONS
    )

    best = np.array([(np.sign(rows(text)) @ vectors.T).max(axis=0) for text in texts]) / 8
    weights = best.max(axis=0) - best.mean(axis=0)
    assert found == pytest.approx(np.maximum(best @ weights / weights.sum(), 0), abs=1e-5)


def test_maxsim_looks_for_the_rarest_tokens_of_a_long_question() -> None:
    words = rows(" ".join(["common"] * 60 + ["rare"]))
    packed = [pack_signs(rows(text)) for text in ("common", "rare")]

    found = max_sim(QuestionVectors((), words.tobytes(), (0.1,) * 60 + (1.0,)), packed, DIMENSIONS)
    equal = max_sim(QuestionVectors((), words.tobytes(), (0.1,) * 61), packed, DIMENSIONS)

    assert found[1] > equal[1] == pytest.approx(0, abs=0.3)


def test_maxsim_without_vectors_is_nought() -> None:
    words = rows("word")

    assert max_sim(QuestionVectors((), b"", ()), [pack_signs(words), b""], DIMENSIONS) == [0.0, 0.0]
    assert max_sim(QuestionVectors((), words.tobytes(), (1.0,)), [b"", pack_signs(words)], DIMENSIONS)[0] == 0


def test_a_token_is_packed_into_a_bit_per_dimension() -> None:
    assert len(pack_signs(rows("three small words"))) == 3 * DIMENSIONS // 8
    assert pack_signs(np.array([[1, -1, 0, 2, 3, -4, 5, -0.1]], np.float32)) == bytes([0b10011010])


async def test_the_re_ranker_reorders_and_every_stage_is_told() -> None:
    reranker = Scripted([0.1, 0.9])

    found = await Ranker(HashEmbedder(), reranker).rank("words", candidates((0.8, 0.8), (0.75, 0.75)), 2)

    assert ids(found) == [1, 0]
    assert {"cosine_norm", "bm25_norm", "fused", "grams", "familiarity", "rerank"} <= set(found[0].scores)
    assert found[0].scores["rerank"] == 0.9
    assert found[0].score > found[1].score


async def test_a_late_re_ranker_leaves_the_first_stages_order() -> None:
    reranker = Scripted([0.1, 0.9], wait_s=5)

    found = await Ranker(HashEmbedder(), reranker, budget_s=0.01).rank("words", candidates((0.8, 0.8), (0.75, 0.75)), 2)

    assert ids(found) == [0, 1]
    assert found[0].scores["rerank_skipped"] == 1
    assert "rerank" not in found[0].scores


async def test_late_token_vectors_of_the_question_leave_the_first_stages_order() -> None:
    class Slow(WordEmbedder):
        async def embed_question(self, text: str) -> QuestionVectors:
            await asyncio.sleep(5)
            return await super().embed_question(text)

    found = [replace(each, tokens=bytes(DIMENSIONS // 8)) for each in candidates((0.8, 0.8), (0.75, 0.75))]

    ranked = await Ranker(HashEmbedder(), MaxSim(Slow(DIMENSIONS)), budget_s=0.01).rank("words", found, 2)

    assert ids(ranked) == [0, 1]
    assert ranked[0].scores["rerank_skipped"] == 1
    assert "maxsim" not in ranked[0].scores


async def test_a_weight_of_nought_spares_the_re_ranker() -> None:
    reranker = Scripted([0.1, 0.9])

    found = await Ranker(HashEmbedder(), reranker).rank(
        "words", candidates((0.8, 0.8), (0.75, 0.75)), 2, fuse.Weights(0.7, 0.1, 0.0)
    )

    assert reranker.seen == 0
    assert not {"rerank", "rerank_skipped"} & set(found[0].scores)


async def test_fewer_passages_are_the_first_of_more() -> None:
    many = candidates(*[(1 - n / 100, 1 - n / 100) for n in range(POOL + 5)])
    ranker = Ranker(HashEmbedder(), Scripted([n / 100 for n in range(POOL)]))

    assert await ranker.rank("words", many, 3) == (await ranker.rank("words", many, POOL + 2))[:3]


async def test_a_re_ranker_that_fails_leaves_the_first_stages_order() -> None:
    reranker = Scripted([], error=EngineError("down"))

    found = await Ranker(HashEmbedder(), reranker).rank("words", candidates((0.8, 0.8), (0.75, 0.75)), 2)

    assert ids(found) == [0, 1]
    assert found[0].scores["rerank_skipped"] == 1


async def test_our_own_mistakes_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        await Ranker(HashEmbedder(), Scripted([], error=ZeroDivisionError())).rank("words", candidates((1, 1)), 1)


async def test_what_was_typed_exactly_stays_first() -> None:
    exact, other = candidates((0.1, 0.1), (1, 1))
    exact = replace(exact, scores={**exact.scores, "exact": 1.0})

    found = await Ranker(HashEmbedder(), Scripted([0.1, 0.9])).rank("ERR-4012", [exact, other], 2)

    assert ids(found) == [0, 1]


async def test_only_the_pool_is_ordered_anew_and_the_rest_follows() -> None:
    many = candidates(*[(1 - n / 100, 1 - n / 100) for n in range(POOL + 5)])
    reranker = Scripted([n / 100 for n in range(POOL)])

    found = await Ranker(HashEmbedder(), reranker).rank("words", many, POOL + 5, fuse.Weights(0.7, 0.1, 0.9))

    assert reranker.seen == POOL
    assert ids(found)[0] == POOL - 1
    assert ids(found)[POOL:] == list(range(POOL, POOL + 5))
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


async def test_no_candidates_are_no_passages() -> None:
    assert await Ranker(HashEmbedder(), Scripted([])).rank("words", [], 5) == []


async def test_token_vectors_do_not_leave() -> None:
    embedder = WordEmbedder(DIMENSIONS)
    texts = ["alpha beta", "beta delta"]
    vectors = await embedder.embed_tokens(texts)
    found = [
        replace(passage(n, text, cosine_norm=0.9, bm25_norm=0.9), tokens=vector.packed)
        for n, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]

    ranked = await Ranker(embedder, MaxSim(embedder)).rank("delta", found, 2)

    assert ids(ranked) == [1, 0]
    assert all(p.tokens is None for p in ranked)
    assert ranked[0].scores["maxsim"] > ranked[1].scores["maxsim"]


async def test_an_embedder_that_cannot_read_the_language_weighs_little() -> None:
    embedder = WordEmbedder(DIMENSIONS)
    embedder.letters_per_piece = (20.0, 30.0)

    assert await Ranker(embedder, MaxSim(embedder)).weights("short words") == fuse.FOREIGN
    assert await Ranker(HashEmbedder()).weights("short words") == fuse.FAMILIAR


async def test_passages_tell_the_language_where_the_question_is_too_short() -> None:
    embedder = WordEmbedder(DIMENSIONS)
    embedder.letters_per_piece = (3.0, 4.0)
    text = "longer words everywhere"
    found = replace(passage(1, text), tokens=pack_signs(rows(text)))

    alone = await Ranker(embedder).weights("a b")
    together = await Ranker(embedder).weights("a b", [found] * 5)

    assert alone == fuse.FOREIGN
    assert together == fuse.FAMILIAR


def test_the_seams_are_kept() -> None:
    assert isinstance(WordEmbedder(), TokenEmbedder)
    assert not isinstance(HashEmbedder(), TokenEmbedder)
    assert isinstance(MaxSim(WordEmbedder()), Reranker)
    assert isinstance(Scripted([]), Reranker)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"results":[{"index":1,"relevance_score":0.2},{"index":0,"relevance_score":0.7}]}', [0.7, 0.2]),
        (b'[{"index":0,"score":0.7},{"index":1,"score":0.2}]', [0.7, 0.2]),
        (b'[{"index":0,"score":0},{"index":1,"score":800}]', [0.5, 1.0]),  # logits
    ],
)
def test_a_servers_scores_are_put_in_order(body: bytes, expected: list[float]) -> None:
    assert _read_ranks(body, 2) == pytest.approx(expected)


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"{}",
        b'{"results":[{"index":0}]}',
        b'[{"index":0,"score":0.7}]',
        b'[{"index":0,"score":0.7},{"index":7,"score":0.2}]',
        b'[{"index":0,"score":0.7},{"index":1,"score":1e999}]',
        b'[{"index":0,"score":0.7},{"index":1,"score":null}]',
        b'["a", "b"]',
    ],
)
def test_a_servers_broken_answer_is_refused(body: bytes) -> None:
    with pytest.raises(EngineError):
        _read_ranks(body, 2)
