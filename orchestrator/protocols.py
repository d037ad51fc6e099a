"""The seams: what the middle of the system asks of the world. Each has one real class, one fake and one conformance suite."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from orchestrator.types import ChunkVectors, Completion, Generation, Passage, QuestionVectors, SearchRequest


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors of one space."""

    @property
    def space(self) -> str:
        """Name and digest of the model: vectors of two spaces are never compared."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of each vector."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text, in order."""
        ...


@runtime_checkable
class TokenEmbedder(Embedder, Protocol):
    """An embedder that can also give a vector for each token of a text."""

    @property
    def letters_per_piece(self) -> tuple[float, float]:
        """Letters to a piece of the tokenizer: below the first a text is foreign to the model, above the second it is not."""
        ...

    async def embed_tokens(self, texts: Sequence[str]) -> list[ChunkVectors]:
        """Unit vector and packed token vectors of each text, in order, for storing."""
        ...

    async def embed_question(self, text: str) -> QuestionVectors:
        """Unit vector and token vectors of a question; asked again soon, or after ``embed([text])``, no model runs."""
        ...


@runtime_checkable
class Reranker(Protocol):
    """Orders passages anew for one query."""

    async def rerank(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """One score per passage, in order; higher is better."""
        ...


@runtime_checkable
class Store(Protocol):
    """Finds passages."""

    async def search(self, request: SearchRequest) -> Sequence[Passage]:
        """The k best passages that were valid at ``as_of`` (now when None), as known at ``known_at``, best first."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A model server."""

    def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """Text deltas as they come, then one Completion. Raises EngineError; StreamBrokenError when it ends early."""
        ...

    async def count_tokens(self, messages: Sequence[Mapping[str, str]], model: str) -> int:
        """Tokens of the rendered conversation under the served model's own tokenizer and chat template."""
        ...

    async def models(self) -> list[str]:
        """Names that are served now."""
        ...

    async def load_adapter(self, name: str, path: str) -> None:
        """Makes a LoRA adapter answer under ``name``; a name that is loaded already is left alone."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Stops serving ``name``."""
        ...

    async def is_ready(self) -> bool:
        """True when the server answers."""
        ...


class Tokens(Protocol):
    """Counts tokens without I/O (a local tokenizer)."""

    def count(self, text: str) -> int:
        """Tokens of ``text`` with special tokens read as plain text."""
        ...


Json = Mapping[str, Any]
