"""Narrows what was found to what bears on the question: its best sentences, joined where they stand close together.

In go the best chunks of a search, out come at most k stretches of documents. A short answer comes back short and a long
one long, which no size of chunk can do: measured in docs/chunking.md. Pure: the caller reads the text of each stretch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.knowledge.sections import sentence_spans
from orchestrator.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

CANDIDATES = 20  # chunks to search for: 30 give no more recall and cost a third more
NEAR = 1_200  # characters between two sentences that are joined
LONGEST = 2_000  # characters of a stretch: five must fit in a prompt; without a bound the longest had 12,000
MARGIN = 0.38  # a sentence stays when its score is at most this far below the best one's

DENSE = 0.7  # weight of the cosine in a chunk's fused score
SENTENCE, WINDOW = 1 / 8, 3 / 16  # weights of the lexical scores beside it; all scores go from 0 to 1
AROUND = 2  # sentences on each side that belong to a sentence's window
K1, B = 1.2, 0.75

_STEM = 5  # letters of a word that count: a stemmer for every language that inflects at the end
_SPACED = r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_WORD = re.compile(_SPACED + r"+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True)
class Stretch:
    """A span of one document version that is to be read. ``lead``: the chunk in which its best sentence was found."""

    lead: Passage
    span: tuple[int, int]
    paragraph: int
    heading_path: tuple[str, ...]
    page: int | None
    score: float

    def passage(self, text: str) -> Passage:
        """The passage of this stretch; ``text`` is the version's text from ``span[0]`` to ``span[1]``."""
        return replace(
            self.lead,
            text=text,
            span=self.span,
            paragraph=self.paragraph,
            heading_path=self.heading_path,
            page=self.page,
            score=self.score,
            scores={**self.lead.scores, "sentence": self.score},
            tokens=None,
        )


@dataclass(frozen=True, slots=True)
class _Sentence:
    chunk: int  # index of its passage
    start: int  # in the version's text
    end: int
    counts: dict[int, int]  # how often each term of the question stands in it


def join_passages(question: str, passages: Sequence[Passage], k: int, margin: float = MARGIN) -> list[Stretch]:
    """At most k stretches, best first, of sentences that score within ``margin`` of the best; close ones are joined.

    ``passages``: the best chunks of one search, about ``CANDIDATES``. Fewer than k come out when fewer bear on the
    question. Empty when there are no passages.
    """
    terms = question_terms(question)
    sentences = list(_sentences(terms, passages))
    if not sentences:
        return []
    lexical = _lexical(sentences, passages, len(terms))
    chunks = [sentence.chunk for sentence in sentences]
    fused = _fused(passages)[chunks] + lexical
    scores = (np.array([passage.score for passage in passages])[chunks] + lexical) / (1 + SENTENCE + WINDOW)
    kept = np.flatnonzero(fused >= fused.max() - margin).tolist()
    stretches = [_stretch(sentences, passages, scores, run) for run in _runs(sentences, passages, kept)]
    return sorted(stretches, key=lambda stretch: -stretch.score)[:k]


def _fused(passages: Sequence[Passage]) -> Array:
    """The chunks' scores at one fixed weight, which the margin was measured with: a learnt weight or a re-ranker moves it."""
    cosine = np.array([passage.scores.get("cosine", math.nan) for passage in passages])
    bm25 = np.array([passage.scores.get("bm25", math.nan) for passage in passages])
    if np.isnan(cosine).any() or np.isnan(bm25).any():
        return np.array([passage.score for passage in passages])
    return DENSE * _share(np.maximum(cosine, 0)) + (1 - DENSE) * _share(bm25)


def question_terms(question: str) -> list[str]:
    """The stems of a question's words and, of scripts written without spaces, its pairs of letters; each once."""
    lower = question.lower()
    terms = [word[:_STEM] for word in _WORD.findall(lower)]
    for run in _UNSPACED.findall(lower):
        terms += [left + right for left, right in pairwise(run)] or [run]
    return list(dict.fromkeys(terms))


def _sentences(terms: Sequence[str], passages: Sequence[Passage]) -> Iterator[_Sentence]:
    """The sentences of all passages, those of one document version in the order of its text."""
    pattern = _pattern(terms)
    numbers = {term: number for number, term in enumerate(terms)}
    order = sorted(range(len(passages)), key=lambda index: (_version(passages[index]), passages[index].span))
    for index in order:
        passage = passages[index]
        lower = _lower(passage.text)
        for start, end in sentence_spans(passage.text):
            counts: dict[int, int] = {}
            for match in pattern.finditer(lower, start, end) if pattern else ():
                number = numbers[match[1]]
                counts[number] = counts.get(number, 0) + 1
            yield _Sentence(index, passage.span[0] + start, passage.span[0] + end, counts)


def _pattern(terms: Sequence[str]) -> re.Pattern[str] | None:
    """Finds each term where it begins a word, the short ones as whole words; pairs of letters may overlap."""
    spaced = [re.escape(term) + ("" if len(term) == _STEM else r"(?![^\W_])") for term in terms if _WORD.match(term)]
    unspaced = [re.escape(term) for term in terms if not _WORD.match(term)]
    if not unspaced:
        return re.compile(rf"(?<![^\W_])({'|'.join(spaced)})") if spaced else None
    words = [rf"(?<!{_SPACED}){word}" for word in spaced]
    return re.compile(f"(?=({'|'.join(words + unspaced)}))")


def _lexical(sentences: Sequence[_Sentence], passages: Sequence[Passage], terms: int) -> Array:
    """What the words of each sentence and of its window add to its score; rare terms are those of few passages."""
    counts = np.zeros((len(sentences), terms))
    held = np.zeros((len(passages), terms), bool)
    for row, sentence in enumerate(sentences):
        for number, count in sentence.counts.items():
            counts[row, number] = count
            held[sentence.chunk, number] = True
    frequency = held.sum(axis=0)
    weights = np.log(1 + (len(passages) - frequency + 0.5) / (frequency + 0.5)) * (frequency > 0)
    lengths = np.array([sentence.end - sentence.start for sentence in sentences], float)
    groups = _places(sentences, passages)
    added = SENTENCE * _share(_bm25(counts, lengths, weights))
    return added + WINDOW * _share(_bm25(_around(counts, groups), _around(lengths[:, None], groups)[:, 0], weights))


def _bm25(counts: Array, lengths: Array, weights: Array) -> Array:
    norm = K1 * (1 - B + B * lengths / lengths.mean())
    scores: Array = (counts * (K1 + 1) / (counts + norm[:, None])) @ weights
    return scores


def _share(scores: Array) -> Array:
    best = scores.max()
    return scores / best if best > 0 else scores


def _around(values: Array, groups: npt.NDArray[np.int64]) -> Array:
    """Sums over each row and its neighbours of one group."""
    total = values.copy()
    for distance in range(1, AROUND + 1):
        same = (groups[distance:] == groups[:-distance])[:, None]
        total[distance:] += values[:-distance] * same
        total[:-distance] += values[distance:] * same
    return total


def _places(sentences: Sequence[_Sentence], passages: Sequence[Passage]) -> npt.NDArray[np.int64]:
    """A number for each sentence; it changes where the next sentence is of another document or far away."""
    breaks = [False]
    for left, right in pairwise(sentences):
        same = _version(passages[left.chunk]) == _version(passages[right.chunk])
        breaks.append(not same or right.start - left.end > AROUND * 8)
    return np.cumsum(breaks)


def _runs(sentences: Sequence[_Sentence], passages: Sequence[Passage], kept: Sequence[int]) -> Iterator[list[int]]:
    """The kept sentences, grouped: those of one run are of one document version, each near the one before."""
    for _, same in groupby(kept, key=lambda index: _version(passages[sentences[index].chunk])):
        run: list[int] = []
        for index in same:
            right = sentences[index]
            if run and (right.start - sentences[run[-1]].end > NEAR or right.end - sentences[run[0]].start > LONGEST):
                yield run
                run = []
            run.append(index)
        yield run


def _stretch(sentences: Sequence[_Sentence], passages: Sequence[Passage], scores: Array, run: Sequence[int]) -> Stretch:
    best = max(run, key=lambda index: scores[index])
    first = sentences[run[0]]
    chunk = passages[first.chunk]
    paths = [passages[sentences[index].chunk].heading_path for index in run]
    size = 0
    while all(len(path) > size and path[size] == paths[0][size] for path in paths):
        size += 1
    before = chunk.text[: first.start - chunk.span[0]]
    return Stretch(
        lead=passages[sentences[best].chunk],
        span=(first.start, max(sentences[index].end for index in run)),
        paragraph=chunk.paragraph + len(_BLANK_LINE.findall(before)),
        heading_path=paths[0][:size],
        page=chunk.page,
        score=float(scores[best]),
    )


_BLANK_LINE = re.compile(r"\n(?:[^\S\n]*\n)+")  # between two paragraphs


def _version(passage: Passage) -> tuple[str, int]:
    return passage.document_id, passage.version


def _lower(text: str) -> str:
    """Lower case of the same length, so that offsets hold."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(low if len(low := c.lower()) == 1 else c for c in text)
