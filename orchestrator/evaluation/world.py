"""A made-up system with known faults of its own: documents, a search and a reader that answer by dice, to test the diagnosis on.

Nothing here asks a model. All dice are hashes of the seed, the question and what is shown, so that a replay of the same is the
same; only ``flicker`` changes from call to call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.evaluation.faults import UNCHANGED, Plant, instead
from orchestrator.evaluation.gold import Held, Piece
from orchestrator.evaluation.items import Change, Gold, Item, ItemSet, Outcome
from orchestrator.types import Passage, Usage

ADAPTER = "trained"
SHOWN = 5
DEPTH = 200  # paragraphs of other documents that a search can find
ROUTES = ("grounded", "direct", "clarify")
_THINGS = ("notice period", "hotel limit", "founder", "storage quota", "phone plan", "audit month", "badge colour")
_NAMES = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ivy", "Juniper", "Kapok", "Larch")


@dataclass(frozen=True, slots=True)
class Noise:
    """How often a healthy part fails, from 0 to 1. ``hard``: questions that only the stronger model reads."""

    misrouted: float = 0.005
    unfound: float = 0.005
    low: float = 0.015  # found, but too low to be shown
    distracted: float = 0.02
    hard: float = 0.01
    broken: float = 0.005  # contracts
    gated: float = 0.005
    flicker: float = 0.005
    moody: float = 0.1  # of what an untrained or misled model does: turns on what is shown, not on the question
    answers_anyway: float = 0.1  # what cannot be answered


@dataclass(slots=True)
class World:
    """An ``Asker`` and an ``Archive`` at once. ``prompt`` and ``contract`` are those of the route as it is served."""

    seed: int = 0
    size: int = 200
    noise: Noise = Noise()
    prompt: str = "good"
    contract: str = "cited"
    calls: int = 0
    shelf: dict[int, Passage] = field(default_factory=dict, repr=False)  # passages that were made already
    beside: dict[str, list[Passage]] = field(default_factory=dict, repr=False)  # by item: what is found with its own

    def set(self) -> ItemSet:
        """Questions with answers, quotes and routes, one in ten without an answer, frozen to the documents."""
        items = tuple(self._item(number) for number in range(self.size))
        return ItemSet("world", items, snapshot={f"doc-{number}": self._sha(number) for number in range(self.size)})

    async def versions(self, item: Item) -> tuple[Held, ...]:
        """The one version of each gold document; its paragraphs are its chunks."""
        return tuple(self.document(int(gold.external_id.removeprefix("doc-"))) for gold in item.gold)

    def document(self, number: int) -> Held:
        """A document of three paragraphs, the second of which answers the question of the same number."""
        parts = [f"About {self._name(number)}, file {number}.", self._fact(number), f"See also file {number + 1}."]
        text = "\n\n".join(parts)
        starts = [text.index(part) for part in parts]
        pieces = tuple(
            Piece(number * 10 + at, (start, start + len(part)), at)
            for at, (start, part) in enumerate(zip(starts, parts, strict=True))
        )
        return Held(f"doc-{number}", 1, text, document_id=f"d{number}", sha256=self._sha(number), pieces=pieces)

    async def search(self, item: Item, change: Change = UNCHANGED) -> tuple[Passage, ...]:
        """The gold passage at its rank among paragraphs of other documents; without a leg or re-ranking it stands lower."""
        number = int(item.id.removeprefix("q"))
        k = change.k or SHOWN
        ranked = self._others(item, number)[:k]
        rank = self._rank(item, change)
        if item.gold and rank < k:
            ranked.insert(min(rank, len(ranked)), self._passage(number))
        return tuple(ranked[:k])

    def _others(self, item: Item, number: int) -> list[Passage]:
        """Paragraphs of other documents, in an order of the question's own."""
        if item.id not in self.beside:
            numbers = ((number + self._dice(item.id, "other", str(at))) % self.size for at in range(DEPTH))
            self.beside[item.id] = [self._passage(each) for each in dict.fromkeys(numbers) if each != number]
        return self.beside[item.id]

    async def ask(self, item: Item, change: Change = UNCHANGED) -> Outcome:
        """What the route, the search and the reader make of the question, each by its dice."""
        self.calls += 1
        route = change.route or ("direct" if self._chance(item.id, "route") < self.noise.misrouted else "grounded")
        if route == "clarify":
            return Outcome(item.id, "Could you say what you would like to know?", route=route)
        usage = Usage(100, 10)
        if route == "direct":
            said = self._value(self._dice(item.id, "memory"))
            return Outcome(item.id, said, route=route, adapter=None, usage=usage)
        passages = change.passages
        if passages is None:
            passages = await self.search(item, change)
            gate = self.noise.gated if _reads(item, passages) else 0.3
            if change.min_sufficiency != 0.0 and self._chance(item.id, "gate") < gate:
                return Outcome(item.id, refused=True, route=route, flags=("passages_insufficient",))
        if not passages:
            return Outcome(item.id, refused=True, route=route, flags=("no_passages",))
        adapter = ADAPTER if change.adapter is None else change.adapter or None
        served = Outcome(item.id, passages=passages, route=route, adapter=adapter, usage=usage)
        return self._read(item, change, served)

    def _read(self, item: Item, change: Change, served: Outcome) -> Outcome:
        """The reader: first whether it keeps the form, then whether it sees the answer, then what it cites."""
        passages = served.passages
        shown = "|".join(f"{passage.chunk_id}:{passage.text}" for passage in passages)
        key = f"{shown} {served.adapter} {self._prompt(change)} {change.engine}"
        if self._form_breaks(item, change, served, key):
            return replace(served, passages=(), error="contract: the output is no JSON object")
        if self._wanders(item, change, served, key):
            told = self._chance(item.id, "wander", key)
            if told < 0.4:
                return replace(served, refused=True)
            return self._say(served, self._value(self._dice(item.id, "wander", key)), passages[0])
        gold = next((passage for passage in passages if _reads(item, [passage])), None)
        if gold is None:
            if self._chance(item.id, "empty", key) < 1 - self.noise.answers_anyway:
                return replace(served, refused=True)
            return self._say(served, self._value(self._dice(item.id, "empty", key)), passages[0])
        if not self._sees(item, change, len(passages)):
            other = next((passage for passage in passages if passage is not gold), gold)
            return self._say(served, self._value(self._dice(item.id, "other")), other)
        return self._say(served, self._value(int(item.id.removeprefix("q"))), gold)

    def _form_breaks(self, item: Item, change: Change, served: Outcome, key: str) -> bool:
        rate = self.noise.broken
        if self._prompt(change) != "good":
            rate = 0.5
        elif served.adapter is None and change.engine is None:
            rate = 0.4
        return change.constrained is not True and self._mood(item, "form", key) < rate

    def _wanders(self, item: Item, change: Change, served: Outcome, key: str) -> bool:
        """An untrained or misled model answers something else whatever it is shown."""
        rate = 0.0
        if self._prompt(change) != "good":
            rate = 0.6
        elif served.adapter is None and change.engine is None:
            rate = 0.35
        flickers = self._chance(item.id, "flicker", str(self.calls)) < self.noise.flicker
        return flickers or self._mood(item, "wanders", key) < rate

    def _mood(self, item: Item, of: str, key: str) -> float:
        """The dice of a misled model: mostly the question's own, else those of what is shown."""
        by_context = self._chance(item.id, of, "moody", key) < self.noise.moody
        return self._chance(item.id, of, key if by_context else "")

    def _sees(self, item: Item, change: Change, shown: int) -> bool:
        hard = self._chance(item.id, "hard") < self.noise.hard and change.engine is None
        distracted = self._chance(item.id, "distracted") < self.noise.distracted and shown > 1
        return not hard and not distracted

    def _say(self, served: Outcome, text: str, passage: Passage) -> Outcome:
        if self.contract != "cited":
            return replace(served, text=text, cited=())
        return replace(served, text=text, cited=((passage.external_id, passage.version, passage.text),))

    def _prompt(self, change: Change) -> str:
        return "good" if change.prompt == "shipped" else self.prompt

    def _rank(self, item: Item, change: Change) -> int:
        at = self._chance(item.id, "rank")
        if at < self.noise.unfound:
            return 1_000
        if at < self.noise.unfound + self.noise.low:
            return 5 + self._dice(item.id, "low") % 30
        rank = self._dice(item.id, "place") % 3
        weak = self._chance(item.id, "weak")
        if change.mode == "dense" and weak < 0.3:
            return 1_000 if weak < 0.1 else 8 + self._dice(item.id, "dense") % 40
        if change.rerank is False and weak > 0.7:
            return 5 + self._dice(item.id, "rerank") % 12
        return rank

    def _item(self, number: int) -> Item:
        name, question = f"q{number}", f"What is the {self._thing(number)} of {self._name(number)} {number}?"
        if self._chance(name, "unanswerable") < 0.1:
            return Item(name, question, answerable=False, route="grounded")
        gold = Gold(f"doc-{number}", 1, self._fact(number))
        return Item(name, question, (self._value(number),), gold=(gold,), route="grounded")

    def _passage(self, number: int) -> Passage:
        if number not in self.shelf:
            held = self.document(number)
            piece = held.pieces[1]
            self.shelf[number] = Passage(
                piece.chunk_id,
                held.document_id,
                held.external_id,
                1,
                "",
                held.text[slice(*piece.span)],
                piece.span,
                1,
                1.0,
            )
        return self.shelf[number]

    def _fact(self, number: int) -> str:
        return f"The {self._thing(number)} of {self._name(number)} {number} is {self._value(number)}, as agreed."

    def _value(self, number: int) -> str:
        return f"value {self._dice('value', str(number)) % 900_000 + 100_000}"

    def _thing(self, number: int) -> str:
        return _THINGS[number % len(_THINGS)]

    def _name(self, number: int) -> str:
        return _NAMES[number % len(_NAMES)]

    def _sha(self, number: int) -> str:
        return hashlib.sha256(self._fact(number).encode()).hexdigest()

    def _dice(self, *of: str) -> int:
        return int.from_bytes(hashlib.sha256("\0".join((str(self.seed), *of)).encode()).digest()[:6])

    def _chance(self, *of: str) -> float:
        return self._dice(*of) / 2**48


def own_faults(seed: int, size: int, noise: Noise = Noise()) -> tuple[Plant, ...]:
    """A prompt that misleads and a contract without citations, which another world shows."""
    broken, plain = World(seed, size, noise, prompt="broken"), World(seed, size, noise, contract="plain")
    return (
        instead("break-prompt", broken, lambda change: change.prompt == "shipped"),
        instead("switch-contract", plain),
    )


def _reads(item: Item, passages: Sequence[Passage]) -> bool:
    """Whether one passage says both what is asked about and the answer: the words of the fact stand there whole."""
    return any(gold.quote in passage.text for gold in item.gold for passage in passages)
