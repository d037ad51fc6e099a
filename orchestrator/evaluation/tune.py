"""Learns how much each stage of a search weighs in one collection, from questions whose answers are known.

Chosen on one half of the questions, judged on the other by a paired test: what is no significant gain is not proposed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import InputError
from orchestrator.evaluation.metrics import Difference, Mean, compare, mean, ndcg, rank_documents
from orchestrator.evaluation.run import Progress
from orchestrator.evaluation.sets import EvalSet, Question
from orchestrator.knowledge import fuse
from orchestrator.knowledge.rerank import POOL, Ranker
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.types import Passage, SearchRequest

K = 10  # nDCG@10 is what is raised
NO_HURRY_S = 60.0  # a re-ranker that is late would be learnt as one that says nothing
MIN_HELD_OUT = 20  # questions: with fewer no realistic gain is significant
DENSE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SECOND = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Setting:
    """Weight of the dense side and of the re-ranker; None: as the code decides for each question."""

    dense: float | None = None
    second: float | None = None

    def applied_to(self, weights: fuse.Weights) -> fuse.Weights:
        """The weights of one question under this setting."""
        return replace(
            weights,
            dense=weights.dense if self.dense is None else self.dense,
            second=weights.second if self.second is None else self.second,
        )

    def __str__(self) -> str:
        """As a person reads it."""
        parts = (("dense", self.dense), ("re-ranker", self.second))
        return ", ".join(f"{name} {'by question' if value is None else f'{value:g}'}" for name, value in parts)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was tried and found. ``gain``: of ``best`` over ``before`` on held-out questions, in nDCG@10."""

    set: str
    sha256: str
    collection: str
    before: Setting
    best: Setting
    train: tuple[Mean, Mean]  # before, best
    held_out: tuple[Mean, Mean]
    gain: Difference

    @property
    def is_gain(self) -> bool:
        """True when the held-out half shows a significant gain."""
        return self.best != self.before and self.gain.is_gain

    def verdict(self, applied: bool) -> str:
        """One sentence that says what was found, and what was done with it."""
        size = f"{self.gain.value:+.4f} nDCG@{K} (95 % {self.gain.low:+.4f} to {self.gain.high:+.4f})"
        if self.is_gain:
            return f"gain {size}: " + ("applied" if applied else "not applied; --apply does")
        kept = "the default" if self.before == Setting() else "what was learnt before"
        if self.best == self.before:
            return f"no setting is better than this one, keeping {kept}"
        return f"no significant gain, keeping {kept}: {size} on {self.gain.n} held-out questions"

    def record(self) -> dict[str, Any]:
        """What the collection keeps of where its weights come from."""
        return {
            "set": self.set,
            "sha256": self.sha256,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "questions": {"train": self.train[0].n, "held_out": self.held_out[0].n},
            "ndcg_at_10": {"before": self.held_out[0].value, "after": self.held_out[1].value},
            "gain": {"value": self.gain.value, "low": self.gain.low, "high": self.gain.high, "p": self.gain.p},
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the stages said of one candidate. ``grams`` and ``second`` depend on the candidates beside it."""

    document: str
    cosine: float
    bm25: float
    grams: float
    second: float | None
    exact: float


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of one question under one weight of the dense side, and the weights that the code would take."""

    head: tuple[Candidate, ...]
    rest: tuple[str, ...]  # documents of what is not re-ranked, in order
    weights: fuse.Weights


class Trial:
    """Searches each question once for every dense weight, then mixes the scores of the stages without the database."""

    def __init__(self, retriever: Retriever, collection: str, tenant: str) -> None:
        self._retriever = retriever
        self._ranker = Ranker(retriever.embedder, retriever.reranker, NO_HURRY_S)
        self._collection = collection
        self._tenant = tenant
        self._pools: dict[tuple[str, float | None], Pool] = {}

    async def score(self, question: Question, setting: Setting) -> float:
        """nDCG@10 of the question under the setting."""
        pool = await self.pool(question, setting.dense)
        return ndcg(rank_pool(pool, setting), question.relevant, K)

    async def pool(self, question: Question, dense: float | None) -> Pool:
        """The candidates under this dense weight, from memory when they were searched before."""
        key = (question.id, dense)
        if key not in self._pools:
            self._pools[key] = await self._search(question, dense)
        return self._pools[key]

    async def _search(self, question: Question, dense: float | None) -> Pool:
        [vector] = await self._retriever.embedder.embed([question.text])
        weights = Setting(dense).applied_to(await self._ranker.weights(question.text))
        request = SearchRequest(
            question.text, vector, self._collection, k=POOL, tenant=self._tenant, as_of=question.as_of,
            dense_weight=weights.dense, with_tokens=self._ranker.needs_tokens,
        )  # fmt: skip
        found = await self._retriever.store.search(request)
        weights = await self._ranker.weights(question.text, found)
        # Any weight above 0 asks the re-ranker; what it says does not depend on it.
        ranked = await self._ranker.rank(question.text, found, POOL, replace(weights, second=0.5))
        stages = {passage.chunk_id: passage.scores for passage in ranked if "grams" in passage.scores}
        head = tuple(_candidate(passage, stages[passage.chunk_id]) for passage in found if passage.chunk_id in stages)
        rest = tuple(passage.external_id for passage in found if passage.chunk_id not in stages)
        return Pool(head, rest, weights)


def _candidate(passage: Passage, stages: Mapping[str, float]) -> Candidate:
    return Candidate(
        passage.external_id,
        stages.get("cosine_norm", 0.0),
        stages.get("bm25_norm", 0.0),
        stages["grams"],
        stages.get("maxsim", stages.get("rerank")),
        stages.get("exact", 0.0),
    )


def rank_pool(pool: Pool, setting: Setting) -> list[str]:
    """Documents in the order that ``Ranker.rank`` gives under the setting."""
    weights, head = setting.applied_to(pool.weights), pool.head
    if not head:
        return []
    fused = [weights.dense * each.cosine + (1 - weights.dense) * each.bm25 for each in head]
    scores = fuse.interpolate(fused, [each.grams for each in head], weights.grams)
    second = [each.second for each in head if each.second is not None]
    if len(second) == len(head) and weights.second > 0:
        scores = fuse.interpolate(scores, second, weights.second)
    scores = [score + each.exact for score, each in zip(scores, head, strict=True)]
    order = sorted(range(len(head)), key=lambda place: (-scores[place], place))
    return rank_documents([*(head[place].document for place in order), *pool.rest])


async def tune(
    wanted: EvalSet, retriever: Retriever, *, collection: str, tenant: str, progress: Progress | None = None
) -> Tuning:
    """The best weights on one half of the questions, and what they gain on the other. Nothing is changed.

    The same set on the same collection gives the same result. Raises InputError for too few questions.
    """
    train, held_out = split_questions(wanted.questions)
    if min(len(train), len(held_out)) < MIN_HELD_OUT:
        raise InputError(
            f"{wanted.name} has {len(wanted.questions)} questions that can be judged; at least {3 * MIN_HELD_OUT} are needed "
            "to learn from one half and to judge on the other",
            param="set",
        )
    trial = Trial(retriever, collection, tenant)
    before = Setting(*await retriever.store.learned(tenant, collection))
    settings = choices(before, with_second=retriever.reranker is not None)
    total = len(train) * len({setting.dense for setting in settings}) + 2 * len(held_out)
    told = _Told(progress, total)
    scores = await _score_all(trial, train, settings, told)
    # The nearest to what is there among equals: max() takes the first, which is `before`.
    best = max(settings, key=lambda setting: round(math.fsum(scores[setting]), 9))
    judged = await _score_all(trial, held_out, [before, best], told)
    return Tuning(
        wanted.name,
        wanted.sha256,
        collection,
        before,
        best,
        (mean(scores[before]), mean(scores[best])),
        (mean(judged[before]), mean(judged[best])),
        compare(judged[best], judged[before]),
    )


def split_questions(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Two halves by a hash of the question's id: the same question is on the same side in every run and every sample."""
    halves: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        halves[hashlib.sha256(question.id.encode()).digest()[0] % 2].append(question)
    return halves


def choices(before: Setting, *, with_second: bool) -> list[Setting]:
    """What is tried: what is there first, then the default, then the grid."""
    seconds = (None, *SECOND) if with_second else (None,)
    grid = [Setting(dense, second) for dense in (None, *DENSE) for second in seconds]
    return list(dict.fromkeys([before, Setting(), *grid]))


@dataclass(slots=True)
class _Told:
    """Counts searches for the progress bar."""

    progress: Progress | None
    total: int
    done: int = 0

    def one(self) -> None:
        self.done = min(self.done + 1, self.total)
        if self.progress:
            self.progress(self.done, self.total)


async def _score_all(
    trial: Trial, questions: Sequence[Question], settings: Sequence[Setting], told: _Told
) -> dict[Setting, list[float]]:
    scores: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for question in questions:
        dense: set[float | None] = set()
        for setting in scores:
            scores[setting].append(await trial.score(question, setting))
            if setting.dense not in dense:
                dense.add(setting.dense)
                told.one()
    return scores
