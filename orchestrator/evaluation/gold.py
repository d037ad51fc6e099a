"""Where the words of an answer stand: versions and chunks of the gold documents in, what they hold of an item out. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.citations import find_quote
from orchestrator.evaluation.items import Item
from orchestrator.types import Passage

LONGEST_QUOTE = 300  # characters: a longer one is where to look, and a chunk need not hold it whole
ROUND = 240  # characters to each side of words that no chunk holds whole, when they are shown as one passage
DOCUMENTS = 3  # gold documents that are shown at once: a question over several needs a passage of each
PIECES = 5  # chunks of a document that are shown when its words cannot be looked for
_TOKEN = re.compile(r"\w+(?:[.,]\d+)*")
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of a version: ``text`` is the version's at ``span``."""

    chunk_id: int
    span: tuple[int, int]
    paragraph: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """One version of a gold document. ``counts``: neither deleted nor corrected; ``holds``: true at the item's time."""

    external_id: str
    number: int
    text: str
    counts: bool = True
    holds: bool = True
    document_id: str = ""
    title: str = ""
    sha256: str = ""
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the knowledge layer holds of one item. ``passages``: what a perfect search would show, () when nothing has it.

    ``ever``: a version that counts holds the words; ``now``: the one that is true at the item's time does; ``whole``: one of
    its chunks does. ``verbatim``: a version says them word for word; else the document as a whole stands for them.
    ``document``: what a good search would show of the gold document alone.
    ``agrees``: the gold document says what the label says (None: it cannot be told). ``told``: what the set was frozen to is
    what holds (None: it is not frozen). ``pieces``: the chunks as they are stored that hold a part of the words.
    """

    ever: bool = False
    now: bool = False
    whole: bool = False
    verbatim: bool = False
    agrees: bool | None = None
    told: bool | None = None
    passages: tuple[Passage, ...] = ()
    pieces: tuple[Passage, ...] = ()
    document: tuple[Passage, ...] = ()
    since: datetime | None = None  # when the version that holds the words begins or began


def words(text: str) -> list[str]:
    """Words and numbers in small letters, without articles: as answers are compared."""
    return [token for token in _TOKEN.findall(text.casefold()) if token not in _ARTICLES]


def stands_in(part: str, text: str) -> bool:
    """True when the words of ``part``, of which there is one at least, stand in a row in the text."""
    wanted = " ".join(words(part))
    return bool(wanted) and f" {wanted} " in f" {' '.join(words(text))} "


def says(text: str, item: Item) -> bool:
    """True when the text holds what the item wants to hear: an answer word for word, and all of ``contains``."""
    stated = [answer for answer in item.answers if words(answer)]
    if stated and not any(stands_in(answer, text) for answer in stated):
        return False
    return bool(stated or item.contains) and all(stands_in(part, text) for part in item.contains)


def is_gold(passage: Passage, item: Item, evidence: Evidence) -> bool:
    """True when a passage that was found gives the answer: it holds a quote, or is of a gold document and says the answer."""
    if not item.gold:
        return says(passage.text, item)
    quotes = [gold.quote for gold in item.gold if gold.quote]
    if any(find_quote(passage.text, quote) for quote in quotes):
        return True
    if passage.external_id not in {gold.external_id for gold in item.gold}:
        return False
    if quotes and not any(_overlap(passage, other) for other in evidence.passages):
        return False
    return says(passage.text, item) or (not evidence.verbatim and evidence.now)


def weigh(item: Item, versions: Sequence[Held], snapshot: Mapping[str, str] | None = None) -> Evidence:
    """What the versions of an item's gold documents hold of it. ``snapshot``: as ``ItemSet.snapshot``."""
    told = _told(item, versions, snapshot or {})
    agrees = _agrees(item, versions, told)
    having = [each for each in versions if _spots(each, item)]
    if not having:
        return _unspoken(item, versions, agrees, told)
    best = sorted(having, key=lambda each: (each.holds and each.counts, each.counts, each.number), reverse=True)
    firsts = {each.external_id: each for each in reversed(best)}
    chosen = best[0]
    whole, pieces = _cut(chosen, item)
    shown = tuple(_shown(firsts[name], item) for name in list(dict.fromkeys(e.external_id for e in best))[:DOCUMENTS])
    return Evidence(
        ever=chosen.counts,
        now=chosen.counts and chosen.holds,
        whole=bool(whole) or not chosen.pieces,
        verbatim=True,
        agrees=agrees,
        told=told,
        passages=shown,
        pieces=pieces,
        document=_nearest(chosen, item, shown),
        since=chosen.valid_from,
    )


def _unspoken(item: Item, versions: Sequence[Held], agrees: bool | None, told: bool | None) -> Evidence:
    """No version says the answer in so many words. Quoted words, or a document that was changed since, are gone;
    of others ("Yes", a sum) the whole gold document is what there is to show.
    """
    counted = [each for each in versions if each.counts]
    quoted = any(gold.quote for gold in item.gold)
    if (quoted and not told) or told is False or not counted:
        return Evidence(verbatim=True, agrees=agrees, told=told, passages=_from_quotes(item))
    current = [each for each in counted if each.holds]
    shown = tuple(_passage(each, piece) for each in current or counted[-1:] for piece in each.pieces[:PIECES])
    return Evidence(True, bool(current), True, False, agrees, told, shown, shown, (), counted[-1].valid_from)


def _agrees(item: Item, versions: Sequence[Held], told: bool | None) -> bool | None:
    """False when the quoted words stand in a gold document and do not say the label, or stand not in one that is unchanged."""
    quotes = [gold.quote for gold in item.gold if gold.quote]
    if any(says(quote, item) for quote in quotes):
        return not told or any(find_quote(each.text, quote) for each in versions for quote in quotes)
    if quotes and (item.answers or item.contains):
        stands = any(find_quote(each.text, quote) for each in versions for quote in quotes)
        return False if stands or told else None
    return True if any(says(each.text, item) for each in versions) else None


def _told(item: Item, versions: Iterable[Held], snapshot: Mapping[str, str]) -> bool | None:
    """Whether a gold document that the set was frozen with is still what holds."""
    wanted = {gold.external_id: snapshot[gold.external_id] for gold in item.gold if gold.external_id in snapshot}
    there = {(each.external_id, each.sha256) for each in versions if each.counts and each.holds}
    return any(pair in there for pair in wanted.items()) if wanted else None


def _spots(version: Held, item: Item) -> list[tuple[int, int]]:
    """Spans of the words that give the answer: the quotes where there are any, else every place that says an answer."""
    golds = [gold for gold in item.gold if gold.external_id == version.external_id]
    quotes = [gold.quote for gold in golds if gold.quote]
    found = [span for quote in quotes if (span := find_quote(version.text, quote)) is not None]
    if quotes:
        return [_narrowed(version.text, span, item) for span in found]
    if not says(version.text, item):
        return []
    return [span for answer in item.answers for span in _places(version.text, answer)] or [(0, len(version.text))]


def _narrowed(text: str, span: tuple[int, int], item: Item) -> tuple[int, int]:
    """A long quote says where to look: what must stand together is the answer in it."""
    if span[1] - span[0] <= LONGEST_QUOTE:
        return span
    inner = [place for answer in item.answers for place in _places(text[slice(*span)], answer)]
    return (span[0] + inner[0][0], span[0] + inner[0][1]) if inner else span


def _places(text: str, answer: str) -> list[tuple[int, int]]:
    """Spans at which the words of the answer stand in a row."""
    wanted = words(answer)
    found = [match for match in _TOKEN.finditer(text) if match.group().casefold() not in _ARTICLES]
    heard = [match.group().casefold() for match in found]
    width = len(wanted)
    starts = (at for at in range(len(heard) - width + 1) if width and heard[at : at + width] == wanted)
    return [(found[at].start(), found[at + width - 1].end()) for at in starts]


def _cut(version: Held, item: Item) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """The chunks that hold one of the places whole, and all that hold a part of one.

    Without a quote the answer's words may stand in many places: first comes the chunk that says most of the question's words.
    """
    whole, parts = [], []
    for start, end in _spots(version, item):
        for piece in version.pieces:
            if piece.span[0] <= start and end <= piece.span[1]:
                whole.append(piece)
            elif piece.span[0] < end and start < piece.span[1]:
                parts.append(piece)
    if not any(gold.quote for gold in item.gold):
        whole.sort(key=lambda piece: -_shares(version, piece, item))
    every = dict.fromkeys([*whole, *parts])
    return tuple(_passage(version, each) for each in dict.fromkeys(whole)), tuple(_passage(version, e) for e in every)


def _shares(version: Held, piece: Piece, item: Item) -> int:
    """Words of the question that the chunk says."""
    return len(set(words(item.question)) & set(words(version.text[slice(*piece.span)])))


def _nearest(version: Held, item: Item, shown: Sequence[Passage]) -> tuple[Passage, ...]:
    """What is shown, and the chunks of the same document that say most of the question's words."""
    around = sorted(version.pieces, key=lambda piece: -_shares(version, piece, item))
    rest = [_passage(version, piece) for piece in around]
    return (*shown, *(each for each in rest if not any(_overlap(each, other) for other in shown)))[:PIECES]


def _shown(version: Held, item: Item) -> Passage:
    """What a perfect search shows of one document: the first chunk that holds the words, else the words across the cut."""
    whole, _ = _cut(version, item)
    if whole:
        return whole[0]
    start, end = _spots(version, item)[0]
    touched = [piece.span for piece in version.pieces if piece.span[0] < end and start < piece.span[1]]
    first = min([start, *(span[0] for span in touched)]) if touched else max(0, start - ROUND)
    last = max([end, *(span[1] for span in touched)]) if touched else min(len(version.text), end + ROUND)
    return _passage(version, Piece(0, (first, last)))


def _passage(version: Held, piece: Piece) -> Passage:
    return Passage(
        piece.chunk_id, version.document_id, version.external_id, version.number, version.title,
        version.text[slice(*piece.span)], piece.span, piece.paragraph, 1.0,
        valid_from=version.valid_from, valid_to=version.valid_to,
    )  # fmt: skip


def _from_quotes(item: Item) -> tuple[Passage, ...]:
    """The quotes as the set keeps them: what to show when no version holds them any more."""
    return tuple(
        Passage(-number, "", gold.external_id, gold.version or 1, "", gold.quote, (0, len(gold.quote)), 0, 1.0)
        for number, gold in enumerate(item.gold, 1)
        if gold.quote
    )


def _overlap(one: Passage, other: Passage) -> bool:
    same = (one.external_id, one.version) == (other.external_id, other.version)
    return same and one.span[0] < other.span[1] and other.span[0] < one.span[1]
