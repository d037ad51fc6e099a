"""The signal that the passages hold what is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.knowledge.sufficiency import REFUSE_BELOW, Features, features, probability, sufficiency
from orchestrator.types import Passage

SHARE = st.floats(0, 1)
FEATURES = st.builds(
    Features,
    covered=SHARE,
    grams=SHARE,
    words=st.integers(1, 200),
    cosine=SHARE,
    maxsim=st.none() | SHARE,
    familiarity=SHARE,
)
QUESTION = "When did Beyoncé leave Destiny's Child?"
ANSWERED = {"covered": 0.9, "grams": 0.8, "cosine": 0.7, "maxsim": 0.65, "familiarity": 1.0}
ELSEWHERE = {"covered": 0.2, "grams": 0.3, "cosine": 0.2, "maxsim": 0.35, "familiarity": 1.0}


def passage(**scores: float) -> Passage:
    return Passage(1, "d", "e", 1, "", "text", (0, 4), 0, 0.0, scores)


@given(FEATURES)
def test_it_is_a_probability(found: Features) -> None:
    assert 0 <= probability(found) <= 1


@given(FEATURES, SHARE)
def test_more_of_the_question_found_is_never_less_likely(found: Features, more: float) -> None:
    better = replace(found, covered=max(found.covered, more), grams=max(found.grams, more))

    assert probability(better) >= probability(found)


def test_an_answered_question_is_told_from_one_of_another_domain() -> None:
    assert sufficiency(QUESTION, [passage(**ANSWERED)]) > 0.8
    assert sufficiency(QUESTION, [passage(**ELSEWHERE)]) < REFUSE_BELOW


@pytest.mark.parametrize(
    ("question", "passages"), [(QUESTION, []), ("", [passage(**ANSWERED)]), ("?!", [passage(**ANSWERED)])]
)
def test_nothing_found_or_nothing_asked_does_not_suffice(question: str, passages: list[Passage]) -> None:
    assert sufficiency(question, passages) == 0


def test_without_token_vectors_words_decide() -> None:
    words = {"covered": 0.9, "grams": 0.8, "cosine": 0.0, "familiarity": 1.0}

    assert sufficiency(QUESTION, [passage(**words)]) > 0.8
    assert sufficiency(QUESTION, [passage(**words, rerank=0.0)]) == sufficiency(QUESTION, [passage(**words)])


def test_a_language_that_the_embedder_cannot_read_is_judged_by_words() -> None:
    read = {"covered": 0.9, "grams": 0.8, "cosine": 0.9, "maxsim": 0.2}

    assert sufficiency(QUESTION, [passage(**read, familiarity=0.0)]) > 0.8
    assert sufficiency(QUESTION, [passage(**read, familiarity=1.0)]) < 0.3


def test_only_the_first_passages_count() -> None:
    found = [passage(**ELSEWHERE)] * 5 + [passage(**ANSWERED)]

    assert sufficiency(QUESTION, found) == sufficiency(QUESTION, found[:5])


def test_a_long_question_need_not_be_covered_as_far() -> None:
    scores = {"covered": 0.5, "grams": 0.4, "cosine": 0.6, "maxsim": 0.5, "familiarity": 1.0}

    assert sufficiency(" ".join(f"word{n}" for n in range(50)), [passage(**scores)]) > sufficiency(
        "five words are a question", [passage(**scores)]
    )


def test_words_of_a_script_without_spaces_are_counted() -> None:
    found = features("黑豹队的防守丢了多少分？", [passage(covered=0.5)])

    assert found is not None
    assert found.words == 10
