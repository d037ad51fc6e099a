"""Embeds the texts of a batch: what the embedder cannot do or does badly is set apart by halving, its neighbours are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import EngineError, EngineUnavailableError, InputError, OrchestratorError
from orchestrator.knowledge.store import pack_vector
from orchestrator.knowledge.write import Packed
from orchestrator.protocols import Embedder, TokenEmbedder

log = logging.getLogger(__name__)

EMBED_TEXTS = 256  # of one call: progress shows and memory is bounded for documents of tens of megabytes
PROBE = "Is anybody there?"


@dataclass(slots=True)
class Vectors:
    """An embedder for one ingest. ``refused``: hash of each text that has no vector, and why."""

    embedder: Embedder
    dimensions: int
    refused: dict[str, str] = field(default_factory=dict)

    async def embed(
        self, texts: Mapping[str, str], tell: Callable[[int], None] = lambda done: None
    ) -> dict[str, Packed]:
        """Packed vectors by hash; ``tell`` gets the number done so far. Raises EngineUnavailableError for a dead embedder."""
        names = [name for name in texts if name not in self.refused]
        packed: dict[str, Packed] = {}
        for first in range(0, len(names), EMBED_TEXTS):
            packed.update(await self._part(names[first : first + EMBED_TEXTS], texts))
            tell(len(packed))
        return packed

    async def _part(self, names: Sequence[str], texts: Mapping[str, str]) -> dict[str, Packed]:
        try:
            packed = await self._run([texts[name] for name in names])
            return dict(zip(names, packed, strict=True))
        except Exception as error:
            if not isinstance(error, OrchestratorError) or isinstance(error, EngineUnavailableError):
                await self._probe(error)
            if len(names) == 1:
                self.refused[names[0]] = _said(error)
                return {}
        half = len(names) // 2
        return {**await self._part(names[:half], texts), **await self._part(names[half:], texts)}

    async def _run(self, texts: list[str]) -> list[Packed]:
        """One call of the model gives vectors and, when it can, token vectors."""
        tokens: list[bytes | None] = [None] * len(texts)
        if isinstance(self.embedder, TokenEmbedder):
            found = await self.embedder.embed_tokens(texts)
            vectors = [one.vector for one in found]
            tokens = [one.packed for one in found]
        else:
            vectors = list(await self.embedder.embed(texts))
        if len(vectors) != len(texts) or any(len(vector) != self.dimensions for vector in vectors):
            raise InputError("the embedder gave vectors of another number or length than it says")
        return [Packed(pack_vector(vector), own) for vector, own in zip(vectors, tokens, strict=True)]

    async def _probe(self, error: Exception) -> None:
        """Raises when the embedder does not even do one word: it is down, and every other text would fail as well."""
        log.warning("a batch of texts was not embedded: %s", _said(error))
        try:
            await self.embedder.embed([PROBE])
        except EngineUnavailableError:
            raise
        except Exception as again:
            raise EngineError(f"the embedder does not work: {_said(again)}") from again


def _said(error: Exception) -> str:
    return error.message if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
