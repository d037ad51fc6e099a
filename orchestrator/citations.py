"""Looks up citations: passage numbers of a checked object become document, version, paragraph, span and quote."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from orchestrator.types import Citation, Passage

# A sentence ends at a mark before a space, but not after an initial or one of these; and where a new block begins.
_ABBREVIATIONS = frozenset("approx art bzw ca cf dr e.g ed eg etc fig i.e ie inc jr ltd mr mrs ms no nr p pp prof sr st vs z.b".split())
_BREAK = re.compile(r"\n(?=[^\S\n]*(?:\n|[-*+•#>|]|\d{1,3}[.)] ))|(?<=\|)\n|(?<=:)\n|[.!?]+[\"'”’)\]]*(?=\s)|[。！？]")
_CJK = "\u2e80-\u9fff\uac00-\ud7a3"  # scripts without spaces: each character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_NUMBER = re.compile(r"(?<!\d)\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)|\d+(?:[.,]\d+)*")
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90"}
# Words that carry no fact of their own: an answer of nothing else ("Yes") is not asked to share words with its source.
_EMPTY_WORDS = frozenset(
    "a an the and or but nor so if then than that this these those it its they them their he she his her him we our us you "
    "your i my me is are was were be been being am do does did done has have had having can could may might must shall should "
    "will would not no yes true false of in on at by for from to with without into onto about as per via there here "
    "when where which who whom whose what why how also only just very".split()
)
_ENDINGS = ("ments", "ment", "ings", "ing", "ies", "ied", "ers", "es", "ed", "er", "en", "ly", "s", "e", "y", "n")
_SHARE = 4  # an answer must share every fourth of its content words with what it cites, and at least one


def resolve_citations(
    numbers: Iterable[object], passages: Sequence[Passage], answer: str
) -> tuple[tuple[Citation, ...], tuple[object, ...]]:
    """Citations for the numbers of shown passages that can carry the answer, once each, and the other numbers (row C5)."""
    found: list[Citation] = []
    dropped: list[object] = []
    for number in dict.fromkeys(numbers):
        whole = type(number) is int or (isinstance(number, float) and number.is_integer())
        if whole and 1 <= number <= len(passages) and shares_words(answer, passages[int(number) - 1]):  # type: ignore[operator, call-overload]
            found.append(cite(int(number), passages[int(number) - 1], answer))  # type: ignore[call-overload]
        else:
            dropped.append(number)
    return tuple(found), tuple(dropped)


def cite(number: int, passage: Passage, answer: str) -> Citation:
    """The sentence of the passage that shares most of the answer's words, as an exact span of the version's text."""
    start, end = best_sentence(passage.text, answer)
    quote = passage.text[start:end]
    return Citation(
        number=number,
        document_id=passage.document_id,
        external_id=passage.external_id,
        version=passage.version,
        paragraph=passage.paragraph + len(re.findall(r"\n[^\S\n]*(?=\n)(?<!\n\n)", passage.text[:start])),
        span=(passage.span[0] + start, passage.span[0] + end),
        quote=quote,
        quote_sha256=hashlib.sha256(quote.encode()).hexdigest(),
        title=passage.title,
        page=passage.page,
    )
