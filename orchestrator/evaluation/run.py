"""Asks a collection the questions of a set: rankings of documents, and their measures with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.errors import InputError
from orchestrator.evaluation.metrics import Mean, mean, ndcg, precision, rank_documents, recall, reciprocal_rank
from orchestrator.evaluation.sets import EvalSet, Question
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.store import PgStore
from orchestrator.types import SearchMode, SearchRequest

PASSAGES = 4  # for each document that is wanted: several passages may be of one document
MAX_PASSAGES = 1_000
MODES: Mapping[str, SearchMode] = {"as configured": "hybrid", "BM25 alone": "lexical", "dense alone": "dense"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """Measures of one way to search, each at ``k`` documents; ``ndcg`` also question by question, in the set's order."""

    way: str
    ndcg: Mean
    mrr: Mean
    recall: Mean
    precision: Mean
    ndcg_of_each: tuple[float, ...]


async def run_set(
    wanted: EvalSet,
    retriever: Retriever,
    *,
    collection: str,
    tenant: str,
    k: int = 10,
    progress: Progress | None = None,
) -> list[Row]:
    """One row as the collection is configured, one for BM25 and one for dense vectors alone. Raises UnknownNameError."""
    rows = []
    total, done = len(MODES) * len(wanted.questions), 0
    count = min(PASSAGES * k, MAX_PASSAGES)
    for way, mode in MODES.items():
        rankings = []
        for question in wanted.questions:
            request = SearchRequest(
                question.text, (), collection, k=count, tenant=tenant, as_of=question.as_of, mode=mode
            )
            found = await retriever.search(request)
            rankings.append(rank_documents(passage.external_id for passage in found))
            done += 1
            if progress:
                progress(done, total)
        rows.append(measure_rankings(way, wanted.questions, rankings, k))
    return rows


def measure_rankings(way: str, questions: Sequence[Question], rankings: Sequence[Sequence[str]], k: int) -> Row:
    """The measures of rankings that are given in the order of the questions."""
    pairs = [(ranking, question.relevant) for ranking, question in zip(rankings, questions, strict=True)]
    gains = tuple(ndcg(ranking, grades, k) for ranking, grades in pairs)
    return Row(
        way,
        mean(gains),
        mean([reciprocal_rank(ranking, grades, k) for ranking, grades in pairs]),
        mean([recall(ranking, grades, k) for ranking, grades in pairs]),
        mean([precision(ranking, grades, k) for ranking, grades in pairs]),
        gains,
    )


async def keep_known(wanted: EvalSet, store: PgStore, collection: str) -> EvalSet:
    """The set without judgements of documents that the collection has not; their number is added to ``missing``.

    Raises InputError when none is left: the set is about other documents.
    """
    target = await store.collection(collection)
    names = sorted({name for question in wanted.questions for name in question.relevant})
    known = await store.known(target, names)
    there = {name for name, document in known.items() if document.versions}
    kept = [replace(q, relevant={i: g for i, g in q.relevant.items() if i in there}) for q in wanted.questions]
    questions = tuple(question for question in kept if question.relevant)
    if not questions:
        raise InputError(
            f"none of the {len(names)} documents that {wanted.name} judges is in the collection {collection!r}. Ingest them "
            "under these ids (`--id-from`), or name another collection.",
            param="collection",
        )
    skipped = wanted.skipped + len(kept) - len(questions)
    return replace(wanted, questions=questions, skipped=skipped, missing=wanted.missing + len(names) - len(there))
