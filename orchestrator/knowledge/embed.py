"""Turns texts into unit vectors: MiniLM on onnxruntime in this process, or any OpenAI-compatible embeddings server.

A vector that is missing, of the wrong length, not finite or zero is refused by name (``texts[17]``), never passed on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from orchestrator.errors import EngineError, EngineUnavailableError, InputError, MissingExtraError
from orchestrator.launch import weights
from orchestrator.protocols import Embedder
from orchestrator.settings import Settings
from orchestrator.types import ChunkVectors, QuestionVectors

if TYPE_CHECKING:
    import aiohttp
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]

T = TypeVar("T")
Batch = list[list[int]]

MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained with; longer texts are cut
BATCH_TOKENS = 768  # padded tokens of one run; measured on 2 cores: 512-1024 in cache 80 texts/s, 4096 60, 16384 46
DIMENSIONS = 384
QUESTIONS = 64  # whose token vectors are kept: 25 kB each
VOCABULARY, FIRST_WORD = 30_522, 1_996  # 1996 is "the"; before it stand special tokens and single characters
SINGLE_CHARACTER = 0.5  # rarity of a letter, digit or Chinese character; of punctuation it is 0
REFUSED = (400, 413, 422)  # the server says that a text is at fault


def open_embedder(settings: Settings, progress: weights.Progress | None = None) -> Embedder:
    """The embedder that the settings name. May download and convert weights: call it in a thread."""
    if settings.embedder_url:
        return HttpEmbedder(
            settings.embedder_url, settings.embedder, settings.embedder_dimensions, settings.embedder_api_key
        )
    if settings.embedder != "minilm":
        raise InputError(
            f"The embedder {settings.embedder!r} is not embedded. Set ORCHESTRATOR_EMBEDDER_URL to the server "
            "that has it, or ORCHESTRATOR_EMBEDDER=minilm."
        )
    return MiniLM(weights.ensure_minilm(settings.models, progress))


def open_next_embedder(settings: Settings, progress: weights.Progress | None = None) -> Embedder | None:
    """The embedder that collections are being moved to; None when the settings name none."""
    if settings.next_embedder is None:
        return None
    return open_embedder(
        replace(
            settings,
            embedder=settings.next_embedder,
            embedder_url=settings.next_embedder_url,
            embedder_api_key=settings.next_embedder_api_key,
            embedder_dimensions=settings.next_embedder_dimensions,
        ),
        progress,
    )


def open_onnx(folder: Path, threads: int, max_tokens: int, what: str) -> tuple[Any, Any]:
    """The model and the tokenizer in a folder; ``threads``: 0 takes one per core, at most 4. Raises MissingExtraError."""
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("embedded", what) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(4, os.cpu_count() or 1)
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a core
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return session, tokenizer


class MiniLM:
    """all-MiniLM-L6-v2: mean of the last hidden states over the text's tokens, scaled to unit length."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """``threads``: for one run; 0 takes one per core, at most 4. Raises MissingExtraError without onnxruntime."""
        self._session, self._tokenizer = open_onnx(folder, threads, MAX_TOKENS, "The embedded embedder")
        self._questions: dict[str, QuestionVectors] = {}
        self.space = f"minilm-l6-v2/{weights.digest(weights.MINILM)[:12]}"
        self.dimensions = DIMENSIONS
        # Measured on chunks: English 3.4 to 5.6; German, Spanish, Romanian 2.2 to 3.2; Chinese 1.
        self.letters_per_piece = (2.8, 3.4)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, in order; texts of like length share a run. Cancelling stops after this run."""
        if len(texts) == 1:  # a question, as a rule: whoever re-ranks its passages finds its token vectors
            return [list((await self.embed_question(texts[0])).vector)]
        return await self._in_batches(texts, self._vectors)

    async def embed_tokens(self, texts: Sequence[str]) -> list[ChunkVectors]:
        """Unit vector and packed token vectors of each text, in order; one run of the model gives both."""
        return await self._in_batches(texts, self._chunk_vectors)

    async def embed_question(self, text: str) -> QuestionVectors:
        """Unit vector and token vectors of a question; the last ``QUESTIONS`` texts are not run again."""
        if (known := self._questions.get(text)) is None:
            known = await asyncio.to_thread(self._read_question, text)  # one thread: each change takes 0.1 ms
            self._questions[text] = known
            while len(self._questions) > QUESTIONS:
                del self._questions[next(iter(self._questions))]
        return known

    async def aclose(self) -> None:
        """Nothing to close; present so that embedders are alike."""

    async def _in_batches(self, texts: Sequence[str], read: Callable[[Batch], list[T]]) -> list[T]:
        if not texts:
            return []
        encoded = await asyncio.to_thread(self._tokenize, texts)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        found: dict[int, T] = {}
        start = 0
        while start < len(order):
            end = _batch_end(encoded, order, start)
            values = await asyncio.to_thread(read, [encoded[i] for i in order[start:end]])
            found.update(zip(order[start:end], values, strict=True))
            start = end
        return [found[i] for i in range(len(texts))]

    def _tokenize(self, texts: Sequence[str]) -> Batch:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def _vectors(self, batch: Batch) -> list[list[float]]:
        vectors: list[list[float]] = self._run(batch)[0].tolist()
        return vectors

    def _chunk_vectors(self, batch: Batch) -> list[ChunkVectors]:
        rows, hidden = self._run(batch)
        return [
            ChunkVectors(row, pack_signs(states[1 : len(tokens) - 1]))
            for row, states, tokens in zip(rows.tolist(), hidden, batch, strict=True)
        ]

    def _read_question(self, text: str) -> QuestionVectors:
        (tokens,) = self._tokenize([text])
        (row,), (states,) = self._run([tokens])
        words = tokens[1:-1]  # without [CLS] and [SEP]
        vectors = unit_rows(states[1:-1], DIMENSIONS) if words else states[:0]
        return QuestionVectors(row.tolist(), vectors.tobytes(), self._rarity(words))

    def _rarity(self, tokens: Sequence[int]) -> tuple[float, ...]:
        """BERT's vocabulary lists whole words by falling frequency: the logarithm of the rank stands in for an idf."""
        import numpy as np

        rank = np.maximum(np.array(tokens, np.int64) - FIRST_WORD, 0)
        rarity = np.sqrt(np.log1p(rank / 10) / np.log1p(VOCABULARY / 10))
        single = np.array([SINGLE_CHARACTER if self._is_letter(token) else 0.0 for token in tokens])
        return tuple(np.where(np.array(tokens) < FIRST_WORD, single, rarity).tolist())

    def _is_letter(self, token: int) -> bool:
        piece: str | None = self._tokenizer.id_to_token(token) if token < FIRST_WORD else None
        return piece is not None and piece.isalnum()

    def _run(self, batch: Batch) -> tuple[Rows, Rows]:
        """Unit vectors [texts, 384] and the last hidden states [texts, tokens, 384]."""
        import numpy as np

        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self._session.run(None, feed)[0]
        pooled = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32))
        return unit_rows(pooled / mask.sum(axis=1, keepdims=True), DIMENSIONS), hidden


class HttpEmbedder:
    """A model behind ``POST {url}/v1/embeddings`` (vLLM, TEI, OpenAI...)."""

    def __init__(
        self, url: str, model: str, dimensions: int, api_key: str | None = None, timeout_s: float = 60, batch: int = 64
    ) -> None:
        self._url = url.rstrip("/") + "/v1/embeddings"
        self._model = model
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._batch = batch
        self._session: aiohttp.ClientSession | None = None
        self.space = f"{model}/{dimensions}"
        self.dimensions = dimensions

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, in order. Raises InputError for a text that the server refuses, else EngineError."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), self._batch):
            vectors += await self._embed_batch(list(texts[start : start + self._batch]), start)
        return vectors

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def _embed_batch(self, texts: list[str], start: int) -> list[list[float]]:
        """A batch that the server refuses is halved until the text at fault is found (row E11)."""
        status, body = await self._post(texts)
        if status in REFUSED and len(texts) > 1:
            middle = len(texts) // 2
            left = await self._embed_batch(texts[:middle], start)
            return left + await self._embed_batch(texts[middle:], start + middle)
        if status in REFUSED:
            raise InputError(f"The embeddings server refused text {start}: {_reason(body)}", param=f"texts[{start}]")
        if status in (401, 403):
            raise EngineError(f"The embeddings server answered {status}. Check ORCHESTRATOR_EMBEDDER_API_KEY.")
        if status >= 500:
            raise EngineUnavailableError(f"The embeddings server answered {status}: {_reason(body)}. Look at its log.")
        if status != 200:
            raise EngineError(
                f"The embeddings server answered {status} for the model {self._model!r}: {_reason(body)}. "
                "Check ORCHESTRATOR_EMBEDDER and ORCHESTRATOR_EMBEDDER_URL (without /v1)."
            )
        return self._read(body, len(texts), start)

    async def _post(self, texts: list[str]) -> tuple[int, bytes]:
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        body = orjson.dumps({"model": self._model, "input": texts, "encoding_format": "float"})
        try:
            async with self._session.post(
                self._url, data=body, headers={"content-type": "application/json"}, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = f"within {self._timeout_s:g} s" if isinstance(error, TimeoutError) else f"({error})"
            raise EngineUnavailableError(
                f"The embeddings server at {self._url} did not answer {what}. "
                "Check that it runs, and ORCHESTRATOR_EMBEDDER_URL."
            ) from error

    def _read(self, body: bytes, count: int, start: int) -> list[list[float]]:
        import numpy as np

        try:
            data = sorted(orjson.loads(body)["data"], key=lambda row: row["index"])
            found = [row["embedding"] for row in data]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"The embeddings server's answer is not the OpenAI form: {body[:200]!r}") from error
        if [row["index"] for row in data] != list(range(count)):
            raise EngineError(f"The embeddings server gave {len(found)} vectors for {count} texts. Nothing was kept.")
        for place, row in enumerate(found):
            if len(row) != self.dimensions:
                raise _bad_row(start + place, f"has {len(row)} numbers, not {self.dimensions}")
        try:
            rows = np.array(found, dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise EngineError(f"The embeddings server sent something that is not a number: {error}") from error
        vectors: list[list[float]] = unit_rows(rows, self.dimensions, start).tolist()
        return vectors


def unit_rows(rows: Rows, dimensions: int, start: int = 0) -> Rows:
    """``rows`` scaled to unit length. Raises EngineError naming the first that is not finite, zero, or too long."""
    import numpy as np

    if rows.shape[1] != dimensions:
        raise _bad_row(start, f"has {rows.shape[1]} numbers, not {dimensions}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if bad.size:
        what = "is all zeros" if lengths[bad[0], 0] == 0 else "holds NaN or infinity"
        raise _bad_row(start + int(bad[0]), what)
    scaled: Rows = rows / lengths
    return scaled


def pack_signs(rows: Rows) -> bytes:
    """One bit per number: whether it is positive. 48 bytes for a token of 384 dimensions in place of 1,536."""
    import numpy as np

    return np.packbits(rows > 0, axis=1).tobytes()


def _bad_row(index: int, what: str) -> EngineError:
    return EngineError(
        f"The embedder's vector for text {index} {what}. Nothing of this batch was kept: check the embedder.",
        param=f"texts[{index}]",
    )


def _batch_end(encoded: Sequence[Sequence[int]], order: Sequence[int], start: int) -> int:
    end = start + 1
    while end < len(order) and (end + 1 - start) * len(encoded[order[end]]) <= BATCH_TOKENS:
        end += 1
    return end


def _reason(body: bytes) -> str:
    try:
        answer: Any = orjson.loads(body)
        return str(answer["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:300].decode("utf-8", "replace")
