"""Looks up citations: passage numbers of a checked object become document, version, paragraph, span and quote."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from orchestrator.types import Citation, Passage

_SENTENCE = re.compile(r"[^\n.!?]*(?:[.!?](?![\s\"')\]])[^\n.!?]*)*(?:[.!?]+[\"')\]]*|\n|$)")
_WORD = re.compile(r"\w+", re.UNICODE)


def resolve_citations(
    numbers: Iterable[int], passages: Sequence[Passage], answer: str
) -> tuple[tuple[Citation, ...], tuple[int, ...]]:
    """Citations for the numbers that name a shown passage, once each, and the numbers that name none (row C5)."""
    found: list[Citation] = []
    forged: list[int] = []
    for number in dict.fromkeys(numbers):
        if 1 <= number <= len(passages):
            found.append(cite(number, passages[number - 1], answer))
        else:
            forged.append(number)
    return tuple(found), tuple(forged)


def cite(number: int, passage: Passage, answer: str) -> Citation:
    """The sentence of the passage that shares most of the answer's words, as an exact span of the version's text."""
    start, end = best_sentence(passage.text, answer)
    quote = passage.text[start:end]
    return Citation(
        number=number,
        document_id=passage.document_id,
        external_id=passage.external_id,
        version=passage.version,
        paragraph=passage.paragraph + len(re.findall(r"\n\s*\n", passage.text[:start])),
        span=(passage.span[0] + start, passage.span[0] + end),
        quote=quote,
        quote_sha256=hashlib.sha256(quote.encode()).hexdigest(),
        title=passage.title,
        page=passage.page,
    )


def best_sentence(text: str, answer: str) -> tuple[int, int]:
    """Span of the sentence that contains the answer, else of the one that shares the most words with it."""
    wanted = set(_words(answer))
    best, best_score = (0, len(text)), 0.0
    for found in _SENTENCE.finditer(text):
        sentence = found.group()
        stripped = sentence.strip()
        if not stripped:
            continue
        words = set(_words(sentence))
        score = len(wanted & words) / (1 + 0.01 * len(words))
        if answer.strip() and answer.strip().lower() in sentence.lower():
            score += len(wanted) + 1
        if score > best_score:
            start = found.start() + sentence.index(stripped)
            best, best_score = (start, start + len(stripped)), score
    return best


def is_supported(answer: str, passages: Iterable[Passage]) -> bool:
    """True when at least half of the answer's words, and all of its numbers, stand in the cited passages.

    A necessary condition for groundedness, not a sufficient one: it catches an answer that its citation cannot carry.
    """
    words = _words(answer)
    present = {word for passage in passages for word in _words(f"{passage.title} {passage.text}")}
    if not words:
        return True
    numbers = [word for word in words if word[0].isdigit()]
    return all(word in present for word in numbers) and sum(word in present for word in words) * 2 >= len(words)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
