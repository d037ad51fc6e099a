"""Compares two texts by paragraphs: what was added, removed and changed, and what a paragraph says in another text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

Kind = Literal["added", "removed", "changed"]

SAME_PARAGRAPH = 0.4  # share of common words from which two paragraphs are versions of one
MAX_PAIRS = 40_000  # comparisons of one replaced stretch; beyond it nothing is paired


@dataclass(frozen=True, slots=True)
class Difference:
    """One paragraph that is not the same in both texts, with its ordinal (0-based) in each; None where it is not."""

    kind: Kind
    before: str
    after: str
    paragraph_before: int | None
    paragraph_after: int | None


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text: runs of lines between blank ones."""
    lines = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return ["\n".join(run) for is_text, run in lines if is_text]


def normalised(paragraph: str) -> str:
    """The paragraph on one line: wrapping lines anew is no change."""
    return " ".join(paragraph.split())


def differences(before: str, after: str) -> list[Difference]:
    """Every paragraph that differs, in order of the text after."""
    old, new = paragraphs(before), paragraphs(after)
    old_keys, new_keys = [normalised(one) for one in old], [normalised(one) for one in new]
    # autojunk would take paragraphs that come often for noise; it only pays for very long texts.
    matcher = SequenceMatcher(None, old_keys, new_keys, autojunk=len(new) > 5_000)
    found: list[Difference] = []
    for tag, first, last, start, end in matcher.get_opcodes():
        if tag != "equal":
            found += _stretch(old, new, range(first, last), range(start, end))
    return found


def closest(paragraph: str, candidates: Sequence[str]) -> str:
    """The candidate that is likeliest the same paragraph in another wording; empty when none is."""
    words = _words(paragraph)
    best = max(candidates, key=lambda one: _likeness(words, _words(one)), default="")
    return best if _likeness(words, _words(best)) >= SAME_PARAGRAPH else ""


def unified(found: Sequence[Difference]) -> Iterator[str]:
    """The differences as lines for a terminal: ``-`` what was, ``+`` what is."""
    for one in found:
        places = (one.paragraph_before, one.paragraph_after)
        yield "@@ paragraph " + " -> ".join("none" if place is None else str(place + 1) for place in places) + " @@"
        yield from (f"-{line}" for line in one.before.splitlines())
        yield from (f"+{line}" for line in one.after.splitlines())


def _stretch(old: Sequence[str], new: Sequence[str], was: range, now: range) -> Iterator[Difference]:
    """A stretch that was replaced: paragraphs that are alike are paired in order, the others were removed or added."""
    left = list(was)
    words = {place: _words(old[place]) for place in was} if len(was) * len(now) <= MAX_PAIRS else {}
    for place in now:
        mine = _words(new[place]) if words else Counter[str]()
        partner = next((p for p in left if words and _likeness(words[p], mine) >= SAME_PARAGRAPH), None)
        if partner is None:
            yield Difference("added", "", new[place], None, place)
            continue
        while left[0] != partner:
            gone = left.pop(0)
            yield Difference("removed", old[gone], "", gone, None)
        left.pop(0)
        yield Difference("changed", old[partner], new[place], partner, place)
    for gone in left:
        yield Difference("removed", old[gone], "", gone, None)


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def _likeness(left: Counter[str], right: Counter[str]) -> float:
    """Dice's coefficient of two bags of words."""
    size = left.total() + right.total()
    return 2 * (left & right).total() / size if size else 0.0
