"""Orders the candidates of one search anew: MaxSim over stored token vectors, a cross-encoder, or a server's model.

A Ranker mixes the re-ranker's scores with those of the first stage, within a latency budget; ``Passage.scores`` says what
each stage did. A re-ranker that is late or fails leaves the first stage's order, and ``rerank_skipped`` says so.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from orchestrator.errors import EngineError, EngineUnavailableError, InputError, MissingExtraError, OrchestratorError
from orchestrator.knowledge import fuse
from orchestrator.knowledge.embed import open_onnx
from orchestrator.launch import weights
from orchestrator.protocols import Embedder, Reranker, TokenEmbedder
from orchestrator.settings import Settings
from orchestrator.types import Passage, QuestionVectors

if TYPE_CHECKING:
    import aiohttp
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]

POOL = 30  # candidates that are ordered anew; with 50 no set moves by more than .003 nDCG, at 1.6 times the CPU
BUDGET_S = 0.25
CUT_OFF = 254  # tokens of a chunk that the embedder cut off: its letters say nothing about the tokenizer
MAX_TERMS = 24  # tokens of a question that MaxSim looks for; a question of 70 words ranks no worse by its 24 rarest
PAIRS = 8  # of one run of a cross-encoder; between two runs it can be stopped
MAX_PAIR_TOKENS = 512
BLOCK = 96  # rows of one matrix product

_log = logging.getLogger(__name__)


def open_reranker(settings: Settings, embedder: Embedder, progress: weights.Progress | None = None) -> Reranker | None:
    """The re-ranker that the settings name; None for none. May download weights: call it in a thread."""
    if settings.reranker_url:
        return HttpReranker(settings.reranker_url, settings.reranker, settings.reranker_api_key)
    if settings.reranker == "none":
        return None
    if settings.reranker == "maxsim":
        return MaxSim(embedder) if isinstance(embedder, TokenEmbedder) else None
    if settings.reranker == "cross-encoder":
        return CrossEncoder(weights.ensure_reranker(settings.models, progress))
    return SentenceTransformersReranker(settings.reranker)


class Ranker:
    """Turns the candidates of a search into its result. Without a re-ranker, or when it is late, two stages are left."""

    def __init__(self, embedder: Embedder, reranker: Reranker | None = None, budget_s: float = BUDGET_S) -> None:
        self._embedder = embedder if isinstance(embedder, TokenEmbedder) else None
        self._reranker = reranker
        self._budget_s = budget_s

    @property
    def needs_tokens(self) -> bool:
        """True when the passages must carry their token vectors."""
        return isinstance(self._reranker, MaxSim)

    async def weights(self, question: str, passages: Sequence[Passage] = ()) -> fuse.Weights:
        """What the stages weigh for this question; passages that carry token vectors tell it more surely."""
        if self._embedder is None:
            return fuse.FAMILIAR
        size = self._embedder.dimensions // 8
        asked = await self._embedder.embed_question(question)
        read = [(question, len(asked.weights))]
        for passage in passages[:10]:
            pieces = len(passage.tokens or b"") // size
            if 0 < pieces < CUT_OFF:
                read.append((f"{passage.context}\n{passage.text}", pieces))
        texts = [text for text, _ in read]
        known = fuse.familiarity(texts, sum(pieces for _, pieces in read), self._embedder.letters_per_piece)
        return fuse.weights_for(known)

    async def rank(
        self, question: str, passages: Sequence[Passage], k: int, weights: fuse.Weights | None = None
    ) -> list[Passage]:
        """The k best, best first, with the score of each stage. ``weights``: in place of those of ``weights()``."""
        head, rest = list(passages[:POOL]), passages[POOL:]
        if not head:
            return []
        weights = weights or await self.weights(question, head)
        grams, second = await self._read(question, head, weights)
        notes = {"grams": grams, "familiarity": [weights.familiarity] * len(head)}
        scores = fuse.interpolate([_fused(passage, weights.dense) for passage in head], grams, weights.grams)
        if second is not None:
            scores = fuse.interpolate(scores, second, weights.second)
            notes["maxsim" if self.needs_tokens else "rerank"] = second
        elif self._reranks(weights):
            notes["rerank_skipped"] = [1.0] * len(head)
        scores = [score + passage.scores.get("exact", 0.0) for score, passage in zip(scores, head, strict=True)]
        order = sorted(range(len(head)), key=lambda i: (-scores[i], i))[:k]
        ranked = [
            replace(
                head[i],
                score=scores[i],
                scores={**head[i].scores, **{name: values[i] for name, values in notes.items()}},
                tokens=None,
            )
            for i in order
        ]
        floor = min(scores)
        return ranked + [replace(p, score=min(p.score, floor), tokens=None) for p in rest[: k - len(ranked)]]

    def _reranks(self, weights: fuse.Weights) -> bool:
        return self._reranker is not None and weights.second > 0

    async def _read(
        self, question: str, passages: Sequence[Passage], weights: fuse.Weights
    ) -> tuple[list[float], list[float] | None]:
        """Shares of the question's grams, and the re-ranker's scores: None without one, or when it was late or failed."""
        texts = [f"{passage.context}\n{passage.text}" for passage in passages]
        second = None
        if self._reranker is not None and self._reranks(weights):
            try:
                async with asyncio.timeout(self._budget_s):
                    if isinstance(self._reranker, MaxSim):
                        # One thread for both: to change it takes as long as to count the grams.
                        score = await self._reranker.prepare(question, passages)
                        return await asyncio.to_thread(lambda: (fuse.gram_coverage(question, texts), score()))
                    second = await self._reranker.rerank(question, passages)
            except TimeoutError:
                _log.warning("re-ranking took over %g s: the order of the first stage is kept", self._budget_s)
            except OrchestratorError as error:
                _log.warning("re-ranking failed: the order of the first stage is kept: %s", error)
        return await asyncio.to_thread(fuse.gram_coverage, question, texts), second


class MaxSim:
    """Sum over the question's tokens of the best match among a passage's tokens (Khattab & Zaharia 2020, "ColBERT").

    The vectors are the embedder's own, stored as one bit per dimension. A token weighs by its rarity and by how far the
    best of the passages stands out from their mean: one that all of them match tells none from another.
    """

    def __init__(self, embedder: TokenEmbedder) -> None:
        self._embedder = embedder

    async def rerank(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """One score from 0 to 1 per passage; 0 for one without token vectors."""
        return await asyncio.to_thread(await self.prepare(query, passages))

    async def prepare(self, query: str, passages: Sequence[Passage]) -> Callable[[], list[float]]:
        """What gives the scores and takes the CPU: for a thread."""
        question = await self._embedder.embed_question(query)
        packed = [passage.tokens or b"" for passage in passages]
        return partial(max_sim, question, packed, self._embedder.dimensions)


def max_sim(question: QuestionVectors, packed: Sequence[bytes], dimensions: int) -> list[float]:
    """The score of MaxSim for each packed passage; 30 passages of 130 tokens take 1.5 ms of CPU.

    A byte holds eight signs, so each product is looked up (Jégou, Douze & Schmid 2011, "Product Quantization for Nearest
    Neighbor Search"). A matrix product would start the threads of BLAS, which then spin: 11 ms.
    """
    import numpy as np

    scores = [0.0] * len(packed)
    held = [i for i, tokens in enumerate(packed) if tokens]
    asked, weights = _rarest(question, dimensions)
    if not held or not len(asked):
        return scores
    rows = np.frombuffer(b"".join(packed[i] for i in held), np.uint8).reshape(-1, dimensions // 8).T
    tables = np.matmul(_signs(), np.ascontiguousarray(asked.T).reshape(-1, 8, len(asked)))  # [bytes, 256, tokens]
    matches = tables[0].take(rows[0], axis=0)
    for table, column in zip(tables[1:], rows[1:], strict=True):
        matches += table.take(column, axis=0)
    sizes = [len(packed[i]) * 8 // dimensions for i in held]
    best = np.maximum.reduceat(matches, np.cumsum([0, *sizes[:-1]]), axis=0) / math.sqrt(dimensions)
    if len(held) > 1:
        weights = weights * (best.max(axis=0) - best.mean(axis=0))
    if weights.sum() <= 0:
        weights = np.ones_like(weights)
    for i, score in zip(held, (best @ weights / weights.sum()).tolist(), strict=True):
        scores[i] = max(0.0, score)
    return scores


def _rarest(question: QuestionVectors, dimensions: int) -> tuple[Rows, Rows]:
    """Vectors and weights of the question's tokens, of the rarest when there are many."""
    import numpy as np

    vectors = np.frombuffer(question.tokens, np.float32).reshape(-1, dimensions)
    weights = np.array(question.weights, np.float32)
    if len(weights) > MAX_TERMS:
        kept = np.sort(np.argsort(-weights, kind="stable")[:MAX_TERMS])
        vectors, weights = vectors[kept], weights[kept]
    return vectors, weights


@lru_cache(maxsize=1)
def _signs() -> Rows:
    """-1 or 1 for each bit of each byte: [256, 8]."""
    import numpy as np

    signs: Rows = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1
    return signs


class CrossEncoder:
    """A BERT-mini that reads question and passage together (int8 ONNX, English): weak on long passages, off by default."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """``folder``: of ``weights.ensure_reranker``. Raises MissingExtraError without onnxruntime."""
        self._session, self._tokenizer = open_onnx(folder, threads, MAX_PAIR_TOKENS, "The embedded re-ranker")
        self._inputs = {given.name for given in self._session.get_inputs()}

    async def rerank(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """The probability that each passage answers the question; cancelling stops after this run of 8."""
        scores: list[float] = []
        for start in range(0, len(passages), PAIRS):
            texts = [f"Query: {query}\nSentence: {passage.text}" for passage in passages[start : start + PAIRS]]
            scores += await asyncio.to_thread(self._run, texts)
        return scores

    def _run(self, texts: list[str]) -> list[float]:
        import numpy as np

        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        ids = np.zeros((len(encoded), max(map(len, encoded))), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        logits = self._session.run(None, {name: feed[name] for name in self._inputs})[0]
        return [_sigmoid(float(row[1] - row[0])) for row in logits]


class SentenceTransformersReranker:
    """Any cross-encoder that sentence-transformers loads: a name on the hub, or a folder."""

    def __init__(self, model: str) -> None:
        """Raises MissingExtraError without sentence-transformers."""
        try:
            from sentence_transformers import CrossEncoder as Model
        except ImportError as error:
            raise MissingExtraError("rerank", "A re-ranker of sentence-transformers") from error
        self._model: Any = Model(model)

    async def rerank(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """What the model says of each passage, from 0 to 1; cancelling stops after this run of 8."""
        scores: list[float] = []
        for start in range(0, len(passages), PAIRS):
            pairs = [(query, passage.text) for passage in passages[start : start + PAIRS]]
            scores += [float(value) for value in await asyncio.to_thread(self._model.predict, pairs)]
        return scores if all(0 <= score <= 1 for score in scores) else [_sigmoid(score) for score in scores]


class HttpReranker:
    """A model behind ``POST {url}/v1/rerank`` (vLLM, Cohere, Jina) or ``POST {url}/rerank`` (TEI)."""

    def __init__(self, url: str, model: str, api_key: str | None = None, timeout_s: float = 10) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._path = "/v1/rerank"
        self._session: aiohttp.ClientSession | None = None

    async def rerank(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """The server's score of each passage, in order. Raises EngineError, EngineUnavailableError or InputError."""
        if not passages:
            return []
        texts = [passage.text for passage in passages]
        status, body = await self._post(query, texts)
        if status in (404, 405) and self._path == "/v1/rerank":
            self._path = "/rerank"
            status, body = await self._post(query, texts)
        if status in (400, 413, 422):
            raise InputError(f"The re-ranking server refused the passages: {body[:300].decode('utf-8', 'replace')}")
        if status >= 500:
            raise EngineUnavailableError(f"The re-ranking server answered {status}. Look at its log.")
        if status != 200:
            raise EngineError(f"The re-ranking server answered {status}. Check its address, its model and the key.")
        return _read_ranks(body, len(texts))

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, query: str, texts: list[str]) -> tuple[int, bytes]:
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        asked = {"model": self._model, "documents": texts} if self._path == "/v1/rerank" else {"texts": texts}
        body = orjson.dumps({"query": query, **asked})
        try:
            async with self._session.post(
                self._url + self._path, data=body, headers={"content-type": "application/json"}, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnavailableError(
                f"The re-ranking server at {self._url} did not answer ({error}). Check that it runs, and its address."
            ) from error


def _read_ranks(body: bytes, count: int) -> list[float]:
    """The scores by place; servers send them best first."""
    try:
        found = orjson.loads(body)
        rows = found["results"] if isinstance(found, dict) else found
        scores = {int(row["index"]): float(row.get("relevance_score", row.get("score"))) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"The re-ranking server's answer is not of a known form: {body[:200]!r}") from error
    if sorted(scores) != list(range(count)) or not all(map(math.isfinite, scores.values())):
        raise EngineError(f"The re-ranking server did not score each of the {count} passages. Its scores are not used.")
    values = [scores[i] for i in range(count)]
    return values if all(0 <= value <= 1 for value in values) else [_sigmoid(value) for value in values]


def _fused(passage: Passage, dense: float) -> float:
    """The first stage's score under these weights; its own when it was searched by one side only."""
    scores = passage.scores
    if "cosine_norm" not in scores or "bm25_norm" not in scores:
        return passage.score
    return dense * scores["cosine_norm"] + (1 - dense) * scores["bm25_norm"]


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))
