"""The values of the store: a collection, what is known of a document, what was written, and the lines of its lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from orchestrator.knowledge.compare import Difference
from orchestrator.knowledge.versions import Version

Status = Literal["added", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of documents whose vectors are of one space. ``chunk_count``: chunks that are found at some time."""

    id: int
    name: str
    space: str
    dimensions: int
    language: str | None
    dense_weight: float | None
    chunk_count: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the store has of a document: versions that count, hashes of chunks with a vector, the database's clock."""

    versions: tuple[Version, ...]
    held: frozenset[str]
    title: str
    source: str
    metadata: Mapping[str, Any]
    now: datetime


@dataclass(frozen=True, slots=True)
class Written:
    """What became of one document. ``missing``: nothing was written, these chunks' vectors are needed first."""

    status: Status
    version: int | None = None
    chunks_new: int = 0
    chunks_shared: int = 0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a document's time: the version that begins at ``valid_from`` now, and those that do not count any more."""

    external_id: str
    version: int | None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    withdrawn: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """One line of a list of documents; ``version`` is the one that holds, ``retired_at`` when there was none any more."""

    document_id: str
    external_id: str
    title: str
    source: str
    metadata: Mapping[str, Any]
    deleted_at: datetime | None
    version: int | None
    valid_from: datetime | None
    valid_to: datetime | None
    versions: int
    retired_at: datetime | None


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One line of a document's history. ``superseded_at``: when it was corrected or deleted; ``is_end``: it was retired."""

    number: int
    sha256: str
    title: str
    source: str
    media_type: str
    notes: tuple[str, ...]
    valid_from: datetime | None
    valid_to: datetime | None
    recorded_at: datetime
    superseded_at: datetime | None
    characters: int
    chunks: int
    is_end: bool


@dataclass(frozen=True, slots=True)
class VersionText:
    """The stored original of one version, which all spans point into."""

    document_id: str
    external_id: str
    number: int
    title: str
    media_type: str
    source: str
    text: str
    valid_from: datetime | None
    valid_to: datetime | None
    superseded_at: datetime | None


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What differs between two versions of a document, in order of the paragraphs of the one after."""

    external_id: str
    before: int
    after: int
    title_before: str
    title_after: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """Sizes of a collection. ``version_count``: versions that count; ``distinct_terms``: of the BM25 postings."""

    name: str
    embedding_space: str
    dimensions: int
    language: str | None
    languages: tuple[str, ...]
    dense_weight: float | None
    chunk_count: int
    document_count: int
    version_count: int
    distinct_terms: int
