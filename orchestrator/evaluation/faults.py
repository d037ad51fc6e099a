"""Plants known faults in a system, alone and in pairs, and counts how often the diagnosis names the layer they are in.

A fault wraps what asks and what is stored, so that it is planted in a made-up system and in a real one alike, and nothing has
to be ingested again. What counts as planted: questions that were right before, are wrong with the fault, and that the fault
struck: their document is gone, their passage no longer shown, their label another. A question that the fault did not strike, and
whose answer tipped over because something else was shown beside its passage, is counted apart (``Row.tipped``).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations, pairwise
from typing import Any

from orchestrator.citations import find_quote
from orchestrator.evaluation.archive import Archive
from orchestrator.evaluation.causes import LAYER_OF, Cause, Diagnosis, Interval, Layer, share_of
from orchestrator.evaluation.diagnose import Judge, Remedies, Scorer, diagnose, is_right
from orchestrator.evaluation.gold import Held, Piece, stands_in
from orchestrator.evaluation.items import Asker, Change, Item, ItemSet, Outcome
from orchestrator.evaluation.score import holds_gold
from orchestrator.types import Passage

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
MARGIN = 20  # passages that are searched beyond those shown, because some are taken away
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
    strikes: Callable[[System, Item], bool] | None = (
        None  # which questions it is meant for; None: see ``_Trial.struck``
    )


@dataclass(frozen=True, slots=True)
class Row:
    """What was named where one fault or a pair was planted. ``named``: layers joined by + to questions.

    ``right``: exactly the layers that are broken for the question were named; ``first``: the first of them is broken.
    ``wrong``: the other questions, with what was named and tried. ``tipped``: layers named of questions that it did not strike.
    """

    planted: str
    n: int
    named: Mapping[str, int]
    right: Interval
    first: Interval
    wrong: Mapping[str, str] = field(default_factory=dict)
    calls: float = 0.0  # of the diagnosis, for each call of the run
    tipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Matrix:
    """The confusion of planted faults with named layers. ``healthy``: what the diagnosis says where nothing was planted.

    ``nothing``: questions that were right, and wrong when all was asked once more with nothing planted; nobody is to blame.
    ``again``: what the diagnosis says of that second run.
    """

    healthy: Diagnosis
    singles: tuple[Row, ...]
    pairs: tuple[Row, ...] = ()
    nothing: Row | None = None
    again: Diagnosis | None = None

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

    return Plant("delete", "knowledge", into, strikes=_of_documents("delete", share))


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

    return Plant("corrupt", "knowledge", into, strikes=_of_documents("corrupt", share))


def future_date(share: float = 0.3) -> Plant:
    """Some gold documents hold from 2100 on only."""

    def into(system: System) -> System:
        chosen = _documents(system, "future", share)
        return _stored(system, chosen, _without(chosen), lambda held: replace(held, holds=False, valid_from=FUTURE))

    return Plant("future-date", "knowledge", into, strikes=_of_documents("future", share))


def cut(share: float = 0.3) -> Plant:
    """In some gold documents the border of two chunks goes through the words that answer."""

    def into(system: System) -> System:
        chosen = _documents(system, "cut", share)
        secrets = _secrets(system, chosen)

        def sift(item: Item, found: tuple[Passage, ...]) -> tuple[Passage, ...]:
            parts = [_parts(each, secrets.get(each.external_id, ())) for each in found]
            return tuple([each[0] for each in parts[:3]] + [part for each in parts[3:] for part in each]
                         + [part for each in parts[:3] for part in each[1:]])  # fmt: skip

        def alter(held: Held) -> Held:
            return replace(held, pieces=_split(held, secrets[held.external_id]))

        return _stored(system, chosen, sift, alter)

    return Plant("cut", "retrieval", into, strikes=_of_documents("cut", share))


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
    pairs: Collection[frozenset[str]] = (),
    twice: Asker | None = None,
    say: Callable[[Row], None] = lambda row: None,
) -> Matrix:
    """Diagnoses the system as it is, with each fault, and with each pair of them; with ``pairs`` of names, with those only.

    ``twice``: the same system, asked anew each time: once more with nothing planted, to see what chance alone accuses.
    """
    trial = _Trial(score, remedies, judge)
    healthy, outcomes = await trial.run(system)
    trial.sound = {item.id for item in system.asked.items if is_right(score(item, outcomes[item.id]))}
    nothing, again = await trial.nothing(replace(system, asker=twice)) if twice else (None, None)
    if nothing:
        say(nothing)
    singles, failing = [], {}
    for plant in plants:
        row, failing[plant.name] = await trial.single(system, plant)
        singles.append(row)
        say(row)
    doubles = []
    for one, other in combinations(plants, 2) if with_pairs else ():
        if not pairs or frozenset((one.name, other.name)) in pairs:
            doubles.append(await trial.pair(system, (one, other), failing))
            say(doubles[-1])
    return Matrix(healthy, tuple(singles), tuple(doubles), nothing, again)


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

    async def nothing(self, system: System) -> tuple[Row, Diagnosis]:
        """The system as it is, once more: what is wrong now and was right before failed by chance."""
        found, outcomes = await self.run(system)
        failing = [item.id for item in system.asked.items if item.id in self.sound]
        failing = [name for name in failing if not is_right(self.score(_item(system, name), outcomes[name]))]
        return self._row("nothing", found, {name: [set()] for name in failing}), found

    async def single(self, system: System, plant: Plant) -> tuple[Row, set[str]]:
        planted = plant.into(system)
        found, outcomes = await self.run(planted)
        failing = await self._failing(planted, outcomes)
        struck = [item for item in failing if await self.struck(system, plant, item)]
        tipped = [item for item in failing if item not in struck]
        return self._row(plant.name, found, {item: [{plant.layer}] for item in struck}, tipped), set(struck)

    async def struck(self, system: System, plant: Plant, name: str) -> bool:
        """Whether the fault did to the question what it is for; a search that finds other passages must lose the gold one."""
        item = _item(system, name)
        if plant.strikes is not None:
            return plant.strikes(system, item)
        if plant.layer != "retrieval":
            return True
        before, after = await system.asker.search(item), await plant.into(system).asker.search(item)
        return holds_gold(item, before[: system.shown]) and not holds_gold(item, after[: system.shown])

    async def pair(self, system: System, plants: tuple[Plant, Plant], failing: Mapping[str, set[str]]) -> Row:
        """Which of the two a question fails by is known from the faults alone: by either, by both, or only by both at once."""
        one, other = sorted(plants, key=lambda plant: not plant.is_inner)
        planted = other.into(one.into(system))
        found, outcomes = await self.run(planted)
        truth: dict[str, list[set[Layer]]] = {}
        failed = await self._failing(planted, outcomes)
        for item in failed:
            broken = {plant.layer for plant in plants if item in failing[plant.name]}
            broken = broken or {plant.layer for plant in plants if await self.struck(system, plant, item)}
            if not broken:
                continue
            truth[item] = [broken]
            # Nobody can see how a document would be ranked that is not there.
            truth[item] += [{"knowledge"}] if broken == {"knowledge", "retrieval"} else []
        return self._row(f"{one.name} + {other.name}", found, truth, [item for item in failed if item not in truth])

    async def _failing(self, system: System, outcomes: Mapping[str, Outcome]) -> list[str]:
        failing = []
        for item in system.asked.items:
            if item.id in self.sound and not is_right(self.score(item, outcomes[item.id])):
                failing.append(item)
        again = await _all(system.asker.ask(item, Change("again", anew=True)) for item in failing)
        pairs = zip(failing, again, strict=True)
        return [item.id for item, outcome in pairs if not is_right(self.score(item, outcome))]

    def _row(
        self, name: str, found: Diagnosis, truth: Mapping[str, Sequence[set[Layer]]], tipped: Iterable[str] = ()
    ) -> Row:
        named = {item: found.layers(item) for item in truth}
        right = [item for item in truth if set(named[item]) in truth[item]]
        first = [item for item in truth if any(each.issuperset(named[item][:1]) for each in truth[item])]
        first = [item for item in first if named[item] or item in right]
        counted = Counter("+".join(named[item]) or "nobody" for item in truth)
        n = len(truth)
        wrong = {item: _tried(found, item) for item in truth if item not in right}
        return Row(
            name, n, dict(counted.most_common()), share_of(len(right), n), share_of(len(first), n), wrong,
            found.calls / found.run_calls if found.run_calls else 0.0,
            dict(Counter("+".join(found.layers(item)) or "nobody" for item in tipped).most_common()),
        )  # fmt: skip


def _tried(found: Diagnosis, item: str) -> str:
    steps = (
        f"{step.change}: {'mended' if step.mended else 'wrong'}, {step.said!r}" for step in found.trails.get(item, ())
    )
    return "; ".join((" + ".join(found.causes.get(item, ("nobody",))), found.notes.get(item, ""), *steps))


def _item(system: System, name: str) -> Item:
    return next(item for item in system.asked.items if item.id == name)


async def _all(asked: Iterable[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """All outcomes, in order; how many are asked at once is the asker's affair."""
    return list(await asyncio.gather(*asked))


def describe(row: Row) -> str:
    """One line of the confusion matrix."""
    named = _listed("", row.named) or "-"
    return (
        f"{row.planted:<28} {row.n:4}  right {row.right.value:6.1%} ({row.right.low:.1%} to {row.right.high:.1%})  "
        f"first {row.first.value:6.1%}  {row.calls:.2f} calls  {named}{_listed('; not struck: ', row.tipped)}"
    )


def _listed(before: str, counts: Mapping[str, int]) -> str:
    return before + ", ".join(f"{name} {count}" for name, count in counts.items()) if counts else ""


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


def _of_documents(fault: str, share: float) -> Callable[[System, Item], bool]:
    return lambda system, item: bool({gold.external_id for gold in item.gold} & _documents(system, fault, share))


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


def _spans(text: str, secrets: Sequence[str]) -> set[tuple[int, int]]:
    """Every place of the secrets."""
    spans = {span for secret in secrets if (span := find_quote(text, secret))}
    for secret in secrets:
        spread = r"\s+".join(re.escape(word) for word in secret.split())  # a line may break between two words
        spans |= {match.span() for match in re.finditer(spread, text, re.IGNORECASE)}
    return spans


def _blacked(text: str, secrets: Sequence[str]) -> str:
    """The text with the secrets made unreadable, every other character where it was."""
    for start, end in _spans(text, secrets):
        text = text[:start] + re.sub(r"\w", "x", text[start:end]) + text[end:]
    return text


def _middles(text: str, secrets: Sequence[str]) -> list[int]:
    """A place in the middle of each secret; of one within another the shorter is cut, or it would stay whole."""
    kept: list[tuple[int, int]] = []
    for start, end in sorted(_spans(text, secrets), key=lambda span: (span[1] - span[0], span)):
        if all(end <= other[0] or other[1] <= start for other in kept):
            kept.append((start, end))
    return sorted((start + end) // 2 for start, end in kept)


def _parts(passage: Passage, secrets: Sequence[str]) -> list[Passage]:
    """The passage as it is found when its chunk was cut in the middle of each secret."""
    piece = Piece(passage.chunk_id, (0, len(passage.text)), passage.paragraph)
    first = passage.span[0]
    return [
        replace(passage, chunk_id=part.chunk_id, text=passage.text[start:end], span=(first + start, first + end))
        for part in _cut_at(piece, _middles(passage.text, secrets))
        for start, end in (part.span,)
    ]


def _split(held: Held, secrets: Sequence[str]) -> tuple[Piece, ...]:
    middles = _middles(held.text, secrets)
    return tuple(part for piece in held.pieces for part in _cut_at(piece, middles))


def _cut_at(piece: Piece, places: Sequence[int]) -> list[Piece]:
    """The first part keeps the chunk's id; the others get ids that no chunk has."""
    start, end = piece.span
    borders = [start, *(place for place in places if start < place < end), end]
    ids = [piece.chunk_id, *(-(piece.chunk_id * 1000 + number) for number in range(1, len(borders) - 1))]
    return [replace(piece, chunk_id=id, span=span) for id, span in zip(ids, pairwise(borders), strict=True)]


def _same_answer(one: Item, other: Item) -> bool:
    return any(stands_in(a, b) or stands_in(b, a) for a in one.answers for b in other.answers)


def _chance(*of: str) -> float:
    return int.from_bytes(hashlib.sha256("\0".join(of).encode()).digest()[:6]) / 2**48
