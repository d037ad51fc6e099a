"""What is asked in an evaluation and what came of it: items, changes of the system, outcomes, runs. Values only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from orchestrator.types import Passage, Usage

Judgement = Literal["right", "wrong", "unsure"]


@dataclass(frozen=True, slots=True)
class Gold:
    """Where an answer stands. ``quote``: the words that give it, when known; ``version``: any when None."""

    external_id: str
    version: int | None = None
    quote: str = ""
    grade: float = 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """One question of an evaluation set. Without answers and with ``answerable`` false, a refusal is right.

    ``answers``: any of them is right. ``contains``: each must stand in the answer. ``pattern``: a regular expression that the
    answer must match. ``route``: the route that should serve it. ``synthetic``: made by a model, never mixed silently.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    answerable: bool = True
    gold: tuple[Gold, ...] = ()
    contains: tuple[str, ...] = ()
    pattern: str = ""
    route: str | None = None
    as_of: datetime | None = None
    tags: tuple[str, ...] = ()
    synthetic: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of a set that could not be read. It counts as a failed question: junk must lower a score, not vanish."""

    number: int  # line, from 1
    reason: str


@dataclass(frozen=True, slots=True)
class ItemSet:
    """A named set of items. ``snapshot``: external id to sha256 of the version that counted when the set was frozen."""

    name: str
    items: tuple[Item, ...]
    faults: tuple[Fault, ...] = ()
    snapshot: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of all that is asked and judged."""
        rows = sorted(json.dumps(asdict(item), sort_keys=True, default=str) for item in self.items)
        return hashlib.sha256(json.dumps([rows, len(self.faults)]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Change:
    """One thing made different, all else as served; what is None stays as it is. The empty change is the system itself.

    ``passages``: shown in place of a search (an oracle's gold). ``replies``: the model's text in place of asking it.
    ``engine``: "strong" asks the stronger model that the settings name.
    """

    name: str = "as served"
    route: str | None = None
    k: int | None = None
    mode: Literal["hybrid", "lexical", "dense"] | None = None
    rerank: bool | None = None
    passages: tuple[Passage, ...] | None = None
    min_sufficiency: float | None = None
    constrained: bool | None = None
    adapter: str | None = None  # "" asks the base
    prompt: Literal["shipped"] | None = None  # the package's own prompt, contract and adapter of the route
    as_of: datetime | None = None
    engine: Literal["strong"] | None = None
    anew: bool = False  # the model is asked, whatever it said before


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the system did with one item. ``error``: the message of a failure; then there is no answer.

    ``cited``: (external id, version, quote) of each citation. ``cost``: in the cost sheet's currency, None when not priced.
    """

    item: str
    text: str = ""
    data: Mapping[str, Any] | None = None
    refused: bool = False
    cited: tuple[tuple[str, int, str], ...] = ()
    passages: tuple[Passage, ...] = ()
    route: str = ""
    adapter: str | None = None
    flags: tuple[str, ...] = ()
    error: str = ""
    sufficiency: float | None = None
    usage: Usage = field(default_factory=Usage)
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How one outcome is judged; every number from 0 to 1, None where the item says nothing of it.

    ``correct`` is the one that accuracy is the mean of: the right answer, or the refusal of what cannot be answered.
    """

    correct: float
    exact: float | None = None
    f1: float | None = None
    contract_kept: float | None = None
    citation_precision: float | None = None
    citation_recall: float | None = None
    supported: float | None = None  # share of citations whose quote holds words of the answer
    gold_found: float | None = None  # a passage shown to the model holds the answer
    refusal_right: float | None = None
    route_right: float | None = None
    reason: str = ""  # why it is not correct, in a few words


class Asker(Protocol):
    """Asks the system one item, with one thing changed. The real one is ``evaluation.ask.PipelineAsker``."""

    async def ask(self, item: Item, change: Change = Change()) -> Outcome:
        """Never raises for a failed answer: its outcome says so."""
        ...

    async def search(self, item: Item, change: Change = Change()) -> tuple[Passage, ...]:
        """What the search finds, without asking a model; ``change.k`` may be deeper than what is shown."""
        ...
