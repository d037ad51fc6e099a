"""Public fakes for tests of applications and of ourselves: deterministic, fast, no network. A fake may import upward."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.behaviour.canary import Signs, Trial
from orchestrator.errors import AdapterUnavailableError, LedgerError
from orchestrator.ledger import Record
from orchestrator.pipeline import Served
from orchestrator.types import Adapter, Citation, Completion, Generation, Passage, SearchRequest, SearchResult, Usage

Script = Sequence[str | Exception | asyncio.Event | Completion]


class HashEmbedder:
    """Words hashed into dimensions: the same text gives the same unit vector, texts that share words are near."""

    def __init__(self, dimensions: int = 64) -> None:
        self._dimensions = dimensions
        self.texts: list[str] = []  # every text that was embedded, in order

    @property
    def space(self) -> str:
        """Names the number of dimensions: two sizes are two spaces."""
        return f"hash-{self._dimensions}"

    @property
    def dimensions(self) -> int:
        """Length of each vector."""
        return self._dimensions

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text, in order."""
        self.texts.extend(texts)
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * self._dimensions
        for word in re.findall(r"\w+", text.lower()) or [""]:
            digest = hashlib.sha256(word.encode("utf-8", "replace")).digest()
            vector[int.from_bytes(digest[:4]) % self._dimensions] += 1.0 if digest[4] % 4 else -0.5
        length = math.sqrt(sum(value * value for value in vector))
        if length == 0:
            vector[0], length = 1.0, 1.0
        return [value / length for value in vector]


class MemoryStore:
    """Passages in lists, one per collection; finds those that share most words with the question."""

    def __init__(
        self, collections: Mapping[str, Sequence[Passage]] | None = None, sufficiency: float | None = None
    ) -> None:
        self.collections = dict(collections or {})
        self.sufficiency = sufficiency

    async def search(self, request: SearchRequest, *, excerpts: bool = False) -> SearchResult:
        """The k passages valid at ``as_of`` that share most words with the text; equal ones in the order given."""
        moment = request.as_of or datetime.now(UTC)
        valid = [passage for passage in self.collections.get(request.collection, ()) if _is_valid(passage, moment)]
        wanted = set(re.findall(r"\w+", request.text.lower()))
        found = sorted(valid, key=lambda passage: -len(wanted & set(re.findall(r"\w+", passage.text.lower()))))
        return SearchResult(tuple(found[: request.k]), self.sufficiency)

    async def mark_changes(self, request: SearchRequest, citations: Sequence[Citation]) -> tuple[Citation, ...]:
        """The citations as they are: nothing here has a newer version."""
        return tuple(citations)


class ScriptedEngine:
    """Plays scripts instead of a model: each call takes the next one, the last is played again and again.

    A script is a list of text deltas; an exception in it is raised at its place, an ``asyncio.Event`` is waited for.
    A Completion is added at the end unless the script holds one or ``truncated`` is set.
    """

    def __init__(self, *scripts: Script, truncated: bool = False) -> None:
        self._scripts = list(scripts)
        self._truncated = truncated
        self.received: list[Generation] = []
        self.loaded: dict[str, str] = {}
        self.closed = 0  # streams that ended, whether read to their end or not
        self.cancelled = 0  # those of them that were left before their end

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """The next script's deltas, then a Completion with their joined text."""
        self.received.append(generation)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        finished = False
        try:
            async for piece in _play(script, generation.model, self._truncated):
                yield piece
            finished = True
        except Exception:
            finished = True
            raise
        finally:
            self.closed += 1
            self.cancelled += not finished

    async def count_tokens(self, messages: Sequence[Mapping[str, str]], model: str) -> int:
        """Words and marks of the messages, and four tokens for each message."""
        return sum(WordTokens().count(message["content"]) + 4 for message in messages)

    async def models(self) -> list[str]:
        """``base`` and the adapters that were loaded."""
        return ["base", *self.loaded]

    async def load_adapter(self, name: str, path: str) -> None:
        """Remembers the adapter."""
        self.loaded.setdefault(name, path)

    async def unload_adapter(self, name: str) -> None:
        """Forgets the adapter."""
        self.loaded.pop(name, None)

    async def is_ready(self) -> bool:
        """Always ready."""
        return True


class MemoryServing:
    """Serves a given set of adapters, by name, from one engine."""

    def __init__(self, engine: ScriptedEngine, adapters: Mapping[str, Adapter] | None = None) -> None:
        self._engine = engine
        self.adapters = dict(adapters or {})
        self.forgotten: list[str | None] = []
        self.observed: list[tuple[Trial | None, Signs]] = []

    async def resolve(self, adapter: str | None, key: str | None = None) -> Served:
        """Who answers, by plain or served name. Raises AdapterUnavailableError."""
        if adapter is None:
            return Served(self._engine, "base")
        found = next((each for name, each in self.adapters.items() if adapter in (name, each.served_name)), None)
        if found is None:
            raise AdapterUnavailableError(f"adapter {adapter!r} is not served; load it first")
        return Served(self._engine, found.served_name, found)

    def observe(self, trial: Trial | None, signs: Signs) -> None:
        """Remembers what an answer showed."""
        self.observed.append((trial, signs))

    def forget(self, adapter: str | None) -> None:
        """Remembers what was to be looked up again."""
        self.forgotten.append(adapter)


class MemoryLedger:
    """Keeps records in a list. ``fail_on``: the kind of record (``intent``, ``outcome``) that it refuses."""

    def __init__(self, fail_on: str | None = None) -> None:
        self.records: list[Record] = []
        self.fail_on = fail_on

    def put(self, record: Record) -> asyncio.Future[None]:
        """Keeps the record."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if record.kind == self.fail_on:
            future.set_exception(LedgerError("the record could not be written, so no answer is given"))
            future.exception()  # seen: a caller that does not wait is not warned
        else:
            self.records.append(record)
            future.set_result(None)
        return future

    async def write(self, record: Record) -> None:
        """Keeps the record. Raises LedgerError when told to."""
        await self.put(record)

    async def flush(self) -> None:
        """Everything is kept at once."""

    def payloads(self, kind: str) -> list[dict[str, Any]]:
        """The contents of all records of one kind, in order."""
        return [json.loads(record.payload) for record in self.records if record.kind == kind]


class WordTokens:
    """Counts words and marks: no tokenizer needed."""

    def count(self, text: str) -> int:
        """Words and single marks in ``text``."""
        return len(re.findall(r"\w+|[^\w\s]", text))


def passage(number: int, text: str, **fields: Any) -> Passage:
    """A passage for a test: chunk ``number`` of document ``doc-<number>``, its text at the start of version 1."""
    values: dict[str, Any] = {
        "chunk_id": number,
        "document_id": f"doc-{number}",
        "external_id": f"doc-{number}.md",
        "version": 1,
        "title": f"Document {number}",
        "text": text,
        "span": (0, len(text)),
        "paragraph": 0,
        "score": 1.0 / number,
    }
    return Passage(**{**values, **fields})


def _is_valid(passage: Passage, moment: datetime) -> bool:
    after_start = passage.valid_from is None or passage.valid_from <= moment
    return after_start and (passage.valid_to is None or moment < passage.valid_to)


async def _play(script: Script, model: str, truncated: bool) -> AsyncIterator[str | Completion]:
    text = ""
    for piece in script:
        await asyncio.sleep(0)
        if isinstance(piece, Exception):
            raise piece
        if isinstance(piece, asyncio.Event):
            await piece.wait()
            continue
        yield piece
        if isinstance(piece, Completion):
            return
        text += piece
    if not truncated:
        yield Completion(text, "stop", model, Usage(prompt_tokens=10, completion_tokens=len(script)))
