"""Says how likely the passages of one search hold what is asked: a logistic over a few features, not a raw score.

The features mean the same in every collection: shares of the question, and similarities of the embedder that the
coefficients were fitted with. How they were fitted, and how well they hold elsewhere, is in docs/retrieval.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.knowledge.lexical import segment
from orchestrator.types import Passage

TOP = 5  # passages that are looked at
REFUSE_BELOW = 0.2  # refuses 1 to 4 in 100 questions that the passages answer, 80 to 100 in 100 of another domain
SHORTEST, LONGEST = 6, 60  # words; beyond these no question was fitted on

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Features:
    """What one search shows of its own success; every value is from 0 to 1, but ``words``."""

    covered: float  # share of the question's idf mass that the best passage's terms carry
    grams: float  # the largest share of the question's character grams that a passage holds
    words: int  # different ones of the question
    cosine: float = 0.0
    maxsim: float | None = None  # None: the passages have no token vectors
    familiarity: float = 0.0  # how far the embedder reads this language


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of one logistic regression."""

    covered: float
    grams: float
    words: float
    cosine: float
    maxsim: float
    constant: float


# Fitted on wiki, XQuAD en, de, es, zh, Cranfield and CISI, a part of each held out; half of the questions are answered by
# the passages, half are not. FULL holds for all-MiniLM-L6-v2 and text that it reads; LEXICAL for the rest.
FULL = Coefficients(covered=2.0, grams=1.0, words=1.4, cosine=2.4, maxsim=15.8, constant=-14.2)
LEXICAL = Coefficients(covered=6.6, grams=4.8, words=1.7, cosine=0.0, maxsim=0.0, constant=-9.3)


def sufficiency(question: str, passages: Sequence[Passage]) -> float:
    """The probability that the ranked passages hold what is asked; 0 when there are none."""
    found = features(question, passages)
    return probability(found) if found is not None else 0.0


def features(question: str, passages: Sequence[Passage]) -> Features | None:
    """The features of one search's ranked passages; None when there is nothing to go by."""
    words = len(set(_WORD.findall(segment(question).casefold())))
    if not passages or not words:
        return None
    top = [passage.scores for passage in passages[:TOP]]
    maxsim = [scores["maxsim"] for scores in top if "maxsim" in scores]
    return Features(
        covered=top[0].get("covered", 0.0),
        grams=max(scores.get("grams", 0.0) for scores in top),
        words=words,
        cosine=max(scores.get("cosine", 0.0) for scores in top),
        maxsim=max(maxsim, default=None),
        familiarity=top[0].get("familiarity", 0.0),
    )


def probability(found: Features) -> float:
    """The logistic of the features: the full one as far as the embedder reads the language, else the lexical one."""
    share = 0.0 if found.maxsim is None else found.familiarity
    value = share * _logit(found, FULL) + (1 - share) * _logit(found, LEXICAL)
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))


def _logit(found: Features, by: Coefficients) -> float:
    length = math.log(min(LONGEST, max(SHORTEST, found.words)))
    return (
        by.covered * found.covered
        + by.grams * found.grams
        + by.words * length
        + by.cosine * found.cosine
        + by.maxsim * (found.maxsim or 0.0)
        + by.constant
    )
