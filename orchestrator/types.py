"""The values that travel through the system: one frozen dataclass per arrow of docs/design.md."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Literal, overload

Role = Literal["system", "user", "assistant"]
Action = Literal["answer", "clarify", "refuse"]
AdapterState = Literal["candidate", "canary", "active", "retired"]
Outcome = Literal["complete", "partial", "failed", "cancelled"]
SearchMode = Literal["hybrid", "lexical", "dense"]

NO_MAPPING: Mapping[str, Any] = {}


def new_id(prefix: str) -> str:
    """A new time-ordered identifier such as ``ans_0192f3...``; ours, never the caller's (row A7)."""
    millis = int(datetime.now(UTC).timestamp() * 1000)
    return f"{prefix}_{millis:012x}{uuid.uuid4().hex[:20]}"


def end_of(moment: date | datetime | str | None) -> datetime | None:
    """The instant that an ``as of`` names: a plain date means the end of that day in UTC.

    Raises ValueError when the text is neither an ISO date nor an ISO time.
    """
    if isinstance(moment, str):
        moment = date.fromisoformat(moment) if len(moment) == 10 else datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.combine(moment, time.max, UTC) if moment else None


def start_of(moment: date | datetime | str | None) -> datetime | None:
    """The instant at which a ``valid from`` begins: a plain date means 00:00 of that day in UTC."""
    if isinstance(moment, str):
        moment = date.fromisoformat(moment) if len(moment) == 10 else datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.combine(moment, time.min, UTC) if moment else None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as the engine gets it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Query:
    """What one caller asks, with what he pins; everything else is the router's to decide."""

    text: str
    id: str = field(default_factory=lambda: new_id("ans"))
    history: tuple[Message, ...] = ()
    route: str | None = None
    collection: str | None = None
    adapter: str | None = None
    as_of: datetime | None = None  # what was true then
    known_at: datetime | None = None  # as it was known then
    where: Mapping[str, Any] | None = None  # filter on the documents' metadata, see knowledge/filters.py
    k: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    tenant: str = "default"
    user: str | None = None  # one conversation or user, as the caller tells them apart; a canary keeps it on one arm
    max_cost: float | None = None  # of the answer, in the currency in which the router's routes were measured
    min_quality: float | None = None  # that the route is expected to reach on this question, 0 to 1
    deadline_ms: float | None = None  # within which the route answers 19 of 20 questions


@dataclass(frozen=True, slots=True)
class Plan:
    """What the router decided for one query, and why. ``scores``: route name to similarity, or probability when learnt."""

    action: Action
    route: str
    reason: str
    prompt: str | None = None
    contract: str | None = None
    collection: str | None = None
    adapter: str | None = None
    k: int = 0
    as_of: datetime | None = None
    known_at: datetime | None = None
    where: Mapping[str, Any] | None = None
    excerpts: bool = False
    min_sufficiency: float = 0.0
    budget_tokens: int = 0
    max_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0
    degrade: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def retrieves(self) -> bool:
        """True when passages are to be found before the model is asked."""
        return self.collection is not None and self.k > 0


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document's text with one heading path, and the page it starts on (1-based; None without pages)."""

    span: tuple[int, int]
    heading_path: tuple[str, ...] = ()
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One loaded document version before it is stored. ``text`` is the stored original that all spans point into."""

    external_id: str
    title: str
    text: str
    source: str
    media_type: str = "text/plain"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    valid_from: datetime | None = None
    pages: tuple[int, ...] = ()  # character offset at which each page starts; empty when there are no pages
    notes: tuple[str, ...] = ()  # what loading had to change (NUL removed, encoding guessed): provenance


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: ``document.text[span[0]:span[1]] == text``; ``indexed`` is what is embedded and searched."""

    ordinal: int
    text: str
    span: tuple[int, int]
    paragraph: int  # ordinal of the first paragraph it holds (0-based, blank-line separated) within the version
    heading_path: tuple[str, ...]
    page: int | None
    context: str  # title and headings: searched with the text, never inside the citable span
    sha256: str  # of ``indexed``: equal chunks of two versions share one row

    @property
    def indexed(self) -> str:
        """What is embedded and searched."""
        return f"{self.context}\n\n{self.text}" if self.context else self.text


@dataclass(frozen=True, slots=True)
class ChunkVectors:
    """A text as it is stored: its unit vector, and one bit per dimension and token (``packed``), see knowledge/rerank.py."""

    vector: Sequence[float]
    packed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class QuestionVectors:
    """A question as it is searched with: its unit vector, and the unit vectors of its tokens (float32, row by row).

    ``weights``: how much each token says before any passage is seen, from 0 to 1.
    """

    vector: Sequence[float]
    tokens: bytes = field(repr=False)
    weights: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What a store is asked for. ``vector``: the question's unit vector; ``with_tokens``: passages carry token vectors."""

    text: str
    vector: Sequence[float]
    collection: str
    k: int = 10
    tenant: str = "default"
    as_of: datetime | None = None
    known_at: datetime | None = None
    where: Mapping[str, Any] | None = None
    mode: SearchMode = "hybrid"
    dense_weight: float | None = None  # in place of what the collection has learnt
    with_tokens: bool = False
    space: str | None = None  # that the vector is of; the store's own embedder's when None


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found. ``span`` holds character offsets into the text of ``version``."""

    chunk_id: int
    document_id: str
    external_id: str
    version: int
    title: str
    text: str
    span: tuple[int, int]
    paragraph: int
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)
    heading_path: tuple[str, ...] = ()
    page: int | None = None
    source: str = ""
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    context: str = ""  # title and headings that were searched with the text
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tokens: bytes | None = field(
        default=None, repr=False
    )  # packed token vectors, when asked for; never leave the process


@dataclass(frozen=True, slots=True)
class SearchResult(Sequence[Passage]):
    """The passages of one search, best first. ``sufficiency``: how likely they hold what is asked, from 0 to 1."""

    passages: tuple[Passage, ...]
    sufficiency: float | None = None

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Passage, ...]: ...
    def __getitem__(self, index: int | slice) -> Passage | tuple[Passage, ...]:
        return self.passages[index]

    def __len__(self) -> int:
        return len(self.passages)


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that an answer rests on, looked up and never guessed: ``version text[span] == quote``."""

    number: int
    document_id: str
    external_id: str
    version: int
    paragraph: int
    span: tuple[int, int]
    quote: str
    quote_sha256: str
    title: str = ""
    page: int | None = None
    changed_in: int | None = None  # the version since which its paragraph is no longer so, when asked as of a past time
    now: str | None = (
        None  # what the paragraph says today; empty when it is gone, None when it stands or was not looked up
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to the engine, built by us from an allow-list (rows A5, A6)."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    schema: Mapping[str, Any] | None = None
    grammar: str | None = None  # EBNF, in place of a schema
    stop: tuple[str, ...] = ()
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine gave back. ``finish_reason`` is ``stop`` or ``length``; a broken stream raises instead."""

    text: str
    finish_reason: str
    model: str
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A registered LoRA adapter; ``served_name`` is the only name under which an engine may load it."""

    name: str
    digest: str  # sha256 of the adapter's files, hex
    path: Path
    base: str
    rank: int
    prompt: str
    prompt_digest: str
    contract: str
    contract_digest: str
    state: AdapterState = "candidate"
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def served_name(self) -> str:
        """``name--digest12``: a new content is a new name, so no cache of old weights can answer (row D3)."""
        return f"{self.name}--{self.digest[:12]}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked answer. ``data`` is the contract's JSON object; ``flags`` name what the check had to correct."""

    id: str
    text: str
    data: Mapping[str, Any] | None
    citations: tuple[Citation, ...]
    plan: Plan
    passages: tuple[Passage, ...] = ()
    adapter: str | None = None
    model: str = ""
    degraded: str | None = None
    flags: tuple[str, ...] = ()
    finish_reason: str = "stop"
    usage: Usage = Usage()
    sufficiency: float | None = None  # of the passages, as the search estimated it
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def route(self) -> str:
        """The route that answered."""
        return self.plan.route


@dataclass(frozen=True, slots=True)
class Delta:
    """A stretch of answer text as it is generated; the deltas of one answer join to ``Answer.text``."""

    text: str


Event = Delta | Answer | Plan
