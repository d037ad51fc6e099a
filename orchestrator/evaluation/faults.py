"""Plants known faults in a system, alone and in pairs, and counts how often the diagnosis names the layer they are in.

A fault wraps what asks and what is stored, so that it is planted in a made-up system and in a real one alike, and nothing has
to be ingested again. What counts as planted: questions that were right before, and are wrong with the fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from orchestrator.citations import find_quote
from orchestrator.evaluation.archive import Archive
from orchestrator.evaluation.causes import LAYER_OF, Cause, Diagnosis, Interval, Layer, share_of
from orchestrator.evaluation.diagnose import Judge, Remedies, Scorer, diagnose, is_right
from orchestrator.evaluation.gold import Held, Piece, stands_in
from orchestrator.evaluation.items import Asker, Change, Item, ItemSet, Outcome
from orchestrator.types import Passage

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
MARGIN = 20  # passages that are searched beyond those shown, because some are taken away
Say = Callable[[str], None]
UNCHANGED = Change()
NOTHING_MORE = Remedies()


@dataclass(frozen=True, slots=True)
class System:
    """What is asked, who answers, and what is stored."""

    asked: ItemSet
    asker: Asker
    archive: Archive
    shown: int = 5


@dataclass(frozen=True, slots=True)
class Plant:
    """A fault to plant: its name, the layer that is broken by it, and the system with it."""

    name: str
    layer: Layer
    into: Callable[[System], System]
    is_inner: bool = False  # it stands in for what asks, so it is planted before one that wraps it


@dataclass(frozen=True, slots=True)
class Row:
    """What was named where one fault or a pair was planted. ``named``: layers joined by + to questions.

    ``right``: exactly the layers that are broken for the question were named; ``first``: the first of them is broken.
    """

    planted: str
    n: int
    named: Mapping[str, int]
    right: Interval
    first: Interval
    wrong: tuple[str, ...] = ()
    calls: float = 0.0  # of the diagnosis, for each call of the run


@dataclass(frozen=True, slots=True)
class Matrix:
    """The confusion of planted faults with named layers. ``healthy``: what the diagnosis says where nothing was planted."""

    healthy: Diagnosis
    singles: tuple[Row, ...]
    pairs: tuple[Row, ...] = ()

    def share(self, rows: Sequence[Row]) -> Interval:
        """Of all questions of these rows, the share that is right."""
        return share_of(sum(round(row.right.value * row.n) for row in rows), sum(row.n for row in rows))


# what a fault does to those who ask


@dataclass(frozen=True, slots=True)
class Forced:
    """An ``Asker`` whose every change is changed."""

    asker: Asker
    force: Callable[[Item, Change], Change]

    async def ask(self, item: Item, change: Change = UNCHANGED) -> Outcome:
        """The outcome of the changed change."""
        return await self.asker.ask(item, self.force(item, change))

    async def search(self, item: Item, change: Change = UNCHANGED) -> tuple[Passage, ...]:
        """The passages of the changed change."""
        return await self.asker.search(item, self.force(item, change))


@dataclass(frozen=True, slots=True)
class Sifted:
    """An ``Asker`` whose search gives other passages; ``sift`` gets the item and the passages, best first."""

    asker: Asker
    sift: Callable[[Item, tuple[Passage, ...]], tuple[Passage, ...]]
    touches: Callable[[Item], bool]
    shown: int = 5
    deep: int = 0  # searched at least so deep

    async def ask(self, item: Item, change: Change = UNCHANGED) -> Outcome:
        """Asks with the sifted passages in place of a search."""
        if change.passages is None and self.touches(item):
            change = replace(change, passages=await self.search(item, change))
        return await self.asker.ask(item, change)

    async def search(self, item: Item, change: Change = UNCHANGED) -> tuple[Passage, ...]:
        """The sifted passages, as many as wanted."""
        k = change.k or self.shown
        if not self.touches(item):
            return await self.asker.search(item, replace(change, k=k))
        found = await self.asker.search(item, replace(change, k=max(k + MARGIN, self.deep)))
        return self.sift(item, found)[:k]


@dataclass(frozen=True, slots=True)
class Instead:
    """An ``Asker`` that is another one, with a fault in it, except where the change takes the fault away."""

    asker: Asker
    faulty: Asker
    mended: Callable[[Change], bool]

    async def ask(self, item: Item, change: Change = UNCHANGED) -> Outcome:
        """Asks the faulty one."""
        return await (self.asker if self.mended(change) else self.faulty).ask(item, change)

    async def search(self, item: Item, change: Change = UNCHANGED) -> tuple[Passage, ...]:
        """Searches as ever."""
        return await self.asker.search(item, change)


@dataclass(frozen=True, slots=True)
class Altered:
    """An ``Archive`` whose versions are others."""

    archive: Archive
    alter: Callable[[Held], Held]

    async def versions(self, item: Item) -> tuple[Held, ...]:
        """The altered versions."""
        return tuple(self.alter(held) for held in await self.archive.versions(item))


# the faults


def delete(share: float = 0.3) -> Plant:
    """Some gold documents are deleted."""

    def into(system: System) -> System:
        chosen = _documents(system, "delete", share)
        return _stored(system, chosen, _without(chosen), lambda held: replace(held, counts=False, holds=False))

    return Plant("delete", "knowledge", into)


def corrupt(share: float = 0.3) -> Plant:
    """In some gold documents the words that answer are unreadable."""

    def into(system: System) -> System:
        chosen = _documents(system, "corrupt", share)
        secrets = _secrets(system, chosen)

        def sift(item: Item, found: tuple[Passage, ...]) -> tuple[Passage, ...]:
            return tuple(replace(each, text=_blacked(each.text, secrets.get(each.external_id, ()))) for each in found)

        def alter(held: Held) -> Held:
            return replace(held, text=_blacked(held.text, secrets[held.external_id]), sha256="")

        return _stored(system, chosen, sift, alter)

    return Plant("corrupt", "knowledge", into)


def future_date(share: float = 0.3) -> Plant:
    """Some gold documents hold from 2100 on only."""

    def into(system: System) -> System:
        chosen = _documents(system, "future", share)
        return _stored(system, chosen, _without(chosen), lambda held: replace(held, holds=False, valid_from=FUTURE))

    return Plant("future-date", "knowledge", into)


def cut(share: float = 0.3) -> Plant:
    """In some gold documents the border of two chunks goes through the words that answer."""

    def into(system: System) -> System:
        chosen = _documents(system, "cut", share)
        secrets = _secrets(system, chosen)

        def sift(item: Item, found: tuple[Passage, ...]) -> tuple[Passage, ...]:
            halves = [_halves(each, secrets.get(each.external_id, ())) for each in found]
            return tuple([pair[0] for pair in halves[:3]] + [half for pair in halves[3:] for half in pair]
                         + [half for pair in halves[:3] for half in pair[1:]])  # fmt: skip

        def alter(held: Held) -> Held:
            return replace(held, pieces=_split(held, secrets[held.external_id]))

        return _stored(system, chosen, sift, alter)

    return Plant("cut", "retrieval", into)


def drop_lexical() -> Plant:
    """Words are not searched for, only vectors."""
    return _forcing("drop-lexical", "retrieval", lambda item, change: replace(change, mode=change.mode or "dense"))


def zero_reranker() -> Plant:
    """Nothing is re-ranked."""

    def force(item: Item, change: Change) -> Change:
        return replace(change, rerank=False if change.rerank is None else change.rerank)

    return _forcing("zero-reranker", "retrieval", force)


def shuffle(share: float = 0.5, deep: int = 100) -> Plant:
    """The first hundred passages of some questions come in any order."""

    def into(system: System) -> System:
        def sift(item: Item, found: tuple[Passage, ...]) -> tuple[Passage, ...]:
            return tuple(sorted(found, key=lambda passage: _chance("shuffle", item.id, str(passage.chunk_id))))

        def touches(item: Item) -> bool:
            return bool(item.gold) and _chance("shuffled", item.id) < share

        return replace(system, asker=Sifted(system.asker, sift, touches, system.shown, deep))

    return Plant("shuffle", "retrieval", into)


def swap_adapter(adapter: str = "") -> Plant:
    """Another adapter answers, the base when none is named."""

    def force(item: Item, change: Change) -> Change:
        return replace(change, adapter=adapter if change.adapter is None else change.adapter)

    return _forcing("swap-adapter", "behaviour", force)


def unconstrain() -> Plant:
    """The engine is not told the contract."""

    def force(item: Item, change: Change) -> Change:
        return replace(change, constrained=False if change.constrained is None else change.constrained)

    return _forcing("unconstrain", "behaviour", force)


def misroute(share: float = 0.2, route: str = "direct") -> Plant:
    """A share of the questions takes another route."""

    def force(item: Item, change: Change) -> Change:
        touched = change.route is None and _chance("misroute", item.id) < share and item.route != route
        return replace(change, route=route) if touched else change

    return _forcing("misroute", "router", force)


def poison(share: float = 0.2) -> Plant:
    """A share of the labels are the answers of another question."""

    def into(system: System) -> System:
        answered = [item for item in system.asked.items if item.answers]

        def wrong(item: Item) -> Item:
            if not item.answers or _chance("poison", item.id) >= share:
                return item
            at = int(_chance("whose", item.id) * len(answered))
            order = [*answered[at:], *answered[:at]]
            other = next((each for each in order if not _same_answer(each, item)), None)
            return replace(item, answers=other.answers, contains=()) if other else item

        return replace(system, asked=replace(system.asked, items=tuple(wrong(item) for item in system.asked.items)))

    return Plant("poison", "label", into)


def instead(name: str, faulty: Asker, mended: Callable[[Change], bool] = lambda change: False) -> Plant:
    """A fault in how the model is asked, which only another system shows: a broken prompt, another contract."""
    return Plant(
        name, "behaviour", lambda system: replace(system, asker=Instead(system.asker, faulty, mended)), is_inner=True
    )


def shared_faults() -> tuple[Plant, ...]:
    """The faults that can be planted in any system; ``swap_adapter`` and ``instead`` need to know what it runs on."""
    return (
        delete(), corrupt(), future_date(), cut(), drop_lexical(), zero_reranker(), shuffle(), misroute(), poison(),
    )  # fmt: skip


# the count


async def confuse(
    system: System,
    plants: Sequence[Plant],
    score: Scorer,
    *,
    remedies: Remedies = NOTHING_MORE,
    judge: Judge | None = None,
    with_pairs: bool = True,
    say: Say | None = None,
) -> Matrix:
    """Diagnoses the system as it is, with each fault, and with each pair of them."""
    say = say or (lambda _: None)
    trial = _Trial(score, remedies, judge)
    healthy, outcomes = await trial.run(system)
    trial.sound = {item.id for item in system.asked.items if is_right(score(item, outcomes[item.id]))}
    singles, failing = [], {}
    for plant in plants:
        row, failing[plant.name] = await trial.single(system, plant)
        singles.append(row)
        say(describe(row))
    pairs = []
    for one, other in combinations(plants, 2) if with_pairs else ():
        pairs.append(await trial.pair(system, (one, other), failing))
        say(describe(pairs[-1]))
    return Matrix(healthy, tuple(singles), tuple(pairs))


@dataclass(slots=True)
class _Trial:
    score: Scorer
    remedies: Remedies
    judge: Judge | None
    sound: set[str] = field(default_factory=set)  # questions that are right without a fault

    async def run(self, system: System) -> tuple[Diagnosis, dict[str, Outcome]]:
        asked = await _all(system.asker.ask(item) for item in system.asked.items)
        outcomes = {outcome.item: outcome for outcome in asked}
        found = await diagnose(
            system.asked, outcomes, system.asker, system.archive, self.score, remedies=self.remedies, judge=self.judge
        )
        return found, outcomes

    async def single(self, system: System, plant: Plant) -> tuple[Row, set[str]]:
        planted = plant.into(system)
        found, outcomes = await self.run(planted)
        failing = await self._failing(planted, outcomes)
        return self._row(plant.name, found, {item: [{plant.layer}] for item in failing}), set(failing)

    async def pair(self, system: System, plants: tuple[Plant, Plant], failing: Mapping[str, set[str]]) -> Row:
        """Which of the two a question fails by is known from the faults alone: by either, by both, or only by both at once."""
        one, other = sorted(plants, key=lambda plant: not plant.is_inner)
        planted = other.into(one.into(system))
        found, outcomes = await self.run(planted)
        truth: dict[str, list[set[Layer]]] = {}
        for item in await self._failing(planted, outcomes):
            broken = {plant.layer for plant in plants if item in failing[plant.name]} or {one.layer, other.layer}
            truth[item] = [broken]
            # Nobody can see how a document would be ranked that is not there.
            truth[item] += [{"knowledge"}] if broken == {"knowledge", "retrieval"} else []
        return self._row(f"{one.name} + {other.name}", found, truth)

    async def _failing(self, system: System, outcomes: Mapping[str, Outcome]) -> list[str]:
        failing = []
        for item in system.asked.items:
            if item.id in self.sound and not is_right(self.score(item, outcomes[item.id])):
                failing.append(item)
        again = await _all(system.asker.ask(item, Change("again")) for item in failing)
        pairs = zip(failing, again, strict=True)
        return [item.id for item, outcome in pairs if not is_right(self.score(item, outcome))]

    def _row(self, name: str, found: Diagnosis, truth: Mapping[str, Sequence[set[Layer]]]) -> Row:
        named = {item: found.layers(item) for item in truth}
        right = [item for item in truth if set(named[item]) in truth[item]]
        first = [item for item in truth if named[item] and any(named[item][0] in each for each in truth[item])]
        counted = Counter("+".join(named[item]) or "nobody" for item in truth)
        n = len(truth)
        wrong = tuple(item for item in truth if item not in right)
        return Row(
            name, n, dict(counted.most_common()), share_of(len(right), n), share_of(len(first), n), wrong,
            found.calls / found.run_calls if found.run_calls else 0.0,
        )  # fmt: skip


async def _all(asked: Iterable[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """All outcomes, in order; how many are asked at once is the asker's affair."""
    return list(await asyncio.gather(*asked))


def describe(row: Row) -> str:
    """One line of the confusion matrix."""
    named = ", ".join(f"{name} {count}" for name, count in row.named.items()) or "-"
    return (
        f"{row.planted:<28} {row.n:4}  right {row.right.value:6.1%} ({row.right.low:.1%} to {row.right.high:.1%})  "
        f"first {row.first.value:6.1%}  {row.calls:.2f} calls  {named}"
    )


def causes_of(found: Diagnosis) -> dict[Cause, int]:
    """How many questions each cause accuses."""
    return {bar.cause: bar.n for bar in found.bars if bar.cause in LAYER_OF}


def _forcing(name: str, layer: Layer, force: Callable[[Item, Change], Change]) -> Plant:
    return Plant(name, layer, lambda system: replace(system, asker=Forced(system.asker, force)))


def _stored(
    system: System,
    chosen: set[str],
    sift: Callable[[Item, tuple[Passage, ...]], tuple[Passage, ...]],
    alter: Callable[[Held], Held],
) -> System:
    """The system with some documents changed, in what is found and in what is stored."""

    def touches(item: Item) -> bool:
        return bool(item.gold)

    def altered(held: Held) -> Held:
        return alter(held) if held.external_id in chosen else held

    return replace(
        system, asker=Sifted(system.asker, sift, touches, system.shown), archive=Altered(system.archive, altered)
    )


def _documents(system: System, fault: str, share: float) -> set[str]:
    names = {gold.external_id for item in system.asked.items for gold in item.gold}
    return {name for name in names if _chance(fault, name) < share}


def _without(chosen: set[str]) -> Callable[[Item, tuple[Passage, ...]], tuple[Passage, ...]]:
    return lambda item, found: tuple(passage for passage in found if passage.external_id not in chosen)


def _secrets(system: System, chosen: set[str]) -> dict[str, tuple[str, ...]]:
    """The words of each chosen document that answer something: quotes, else answers."""
    found: dict[str, list[str]] = {name: [] for name in chosen}
    for item in system.asked.items:
        for gold in item.gold:
            if gold.external_id in chosen:
                found[gold.external_id] += [gold.quote] if gold.quote else list(item.answers)
    return {name: tuple(dict.fromkeys(words)) for name, words in found.items()}


def _spans(text: str, secrets: Sequence[str]) -> list[tuple[int, int]]:
    spans = []
    for secret in secrets:
        if span := find_quote(text, secret):
            spans.append(span)
        else:
            spans += [match.span() for match in re.finditer(re.escape(secret), text, re.IGNORECASE)]
    return spans


def _blacked(text: str, secrets: Sequence[str]) -> str:
    """The text with the secrets made unreadable, every other character where it was."""
    for start, end in _spans(text, secrets):
        text = text[:start] + re.sub(r"\w", "x", text[start:end]) + text[end:]
    return text


def _halves(passage: Passage, secrets: Sequence[str]) -> list[Passage]:
    middles = [(start + end) // 2 for start, end in _spans(passage.text, secrets)]
    if not middles:
        return [passage]
    first, at = passage.span[0], middles[0]
    return [
        replace(passage, text=passage.text[:at], span=(first, first + at)),
        replace(passage, chunk_id=-passage.chunk_id, text=passage.text[at:], span=(first + at, passage.span[1])),
    ]


def _split(held: Held, secrets: Sequence[str]) -> tuple[Piece, ...]:
    pieces = list(held.pieces)
    for start, end in _spans(held.text, secrets):
        middle = (start + end) // 2
        for piece in [each for each in pieces if each.span[0] < middle < each.span[1]]:
            at = pieces.index(piece)
            pieces[at : at + 1] = [
                replace(piece, span=(piece.span[0], middle)),
                replace(piece, chunk_id=-piece.chunk_id, span=(middle, piece.span[1])),
            ]
    return tuple(pieces)


def _same_answer(one: Item, other: Item) -> bool:
    return any(stands_in(a, b) or stands_in(b, a) for a in one.answers for b in other.answers)


def _chance(*of: str) -> float:
    return int.from_bytes(hashlib.sha256("\0".join(of).encode()).digest()[:6]) / 2**48
