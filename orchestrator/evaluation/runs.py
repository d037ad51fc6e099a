"""Keeps evaluations: sets frozen to a corpus, runs that go on where they stopped, results found again by all that entered them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from orchestrator import __version__
from orchestrator.database import Database, Row, statement
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.evaluation.items import Asker, Change, Fault, Item, ItemSet, Outcome, Score
from orchestrator.evaluation.read import item_row, parse_item
from orchestrator.evaluation.score import score_outcome
from orchestrator.feedback import passages_of
from orchestrator.knowledge.store import PgStore
from orchestrator.ledger import canonical, passage_fields
from orchestrator.pipeline import Pipeline
from orchestrator.types import Passage, Usage, new_id

# What of the settings can change an answer. Addresses count: another server may hold another model under the same name.
MATTERS = (
    "engine_url", "engine_model", "engine_max_len", "embedder", "embedder_url", "embedder_dimensions", "reranker", "reranker_url",
    "max_question_chars",
)  # fmt: skip
# An error of these is the answer's own: it will be so again. All others are the day's.
LASTING = ("contract", "too_large", "invalid_request", "not_found")
AS_SERVED = Change()
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A collection at one moment. ``digest``: of every version that counts and of how it is searched."""

    collection: str
    digest: str
    holds: Mapping[str, str]  # document to the sha256 of the text that holds now


@dataclass(frozen=True, slots=True)
class Frozen:
    """A set with the corpus it is asked on."""

    id: int
    set: ItemSet
    collection: str
    corpus: str


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One line of the list of runs. ``asked``: items that have an outcome."""

    id: str
    name: str
    set_id: int
    set: str
    sha256: str
    collection: str
    corpus: str
    stamp: str
    system: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime | None
    asked: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run with everything in it. ``reused``: outcomes that were found under their key; passages come without their text."""

    info: RunInfo
    set: ItemSet
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    reused: int = 0


async def read_corpus(database: Database, collection: str, tenant: str) -> Corpus:
    """What the collection holds now. Raises UnknownNameError."""
    store = PgStore(database, tenant)
    found = await store.collection(collection)
    rows = await database.of(tenant).fetch(statement("corpus-of-collection"), collection_id=found.id)
    learned = await store.learned(tenant, collection)
    searched = [found.space, found.language, found.chunk_count, *learned]
    lines = [
        [row.external_id, row.number, row.sha256, row.title, row.valid_from, row.valid_to, row.is_end, row.metadata]
        for row in rows
    ]
    return Corpus(collection, _hash([searched, lines]), {row.external_id: row.sha256 for row in rows if row.holds})


def describe_system(pipeline: Pipeline, adapters: Mapping[str, str], change: Change) -> dict[str, Any]:
    """All that enters an answer beside the question and the corpus. ``adapters``: name in service to the digest of its files."""
    catalogue = pipeline.catalogue
    return {
        "version": __version__,
        "routes": catalogue.digest,
        "router": learnt.digest if (learnt := pipeline.router.learnt) else None,
        "prompts": {name: prompt.digest for name, prompt in sorted(catalogue.prompts.items())},
        "contracts": {name: contract.digest for name, contract in sorted(catalogue.contracts.items())},
        "adapters": dict(sorted(adapters.items())),
        "settings": {name: getattr(pipeline.settings, name) for name in MATTERS},
        "embedder": pipeline.embedder.space,
        "change": json.loads(canonical_of(change)),
    }


def canonical_of(value: Any) -> str:
    """Any of our values as JSON with sorted keys."""
    return canonical(json.loads(json.dumps(asdict(value), default=str)))


class Runs:
    """The evaluations of one tenant."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database.of(tenant)
        self._tenant = tenant

    async def freeze(self, found: ItemSet, collection: str) -> Frozen:
        """The set with the collection's documents as they are now; the same set on the same corpus is kept once."""
        corpus = await read_corpus(self._database, collection, self._tenant)
        found = replace(found, snapshot=corpus.holds)
        named = {"sha256": found.sha256, "collection": collection, "corpus": corpus.digest}
        values = {
            "name": found.name,
            "items": "".join(canonical(item_row(item)) + "\n" for item in found.items),
            "faults": canonical([asdict(fault) for fault in found.faults]),
            "snapshot": canonical(dict(corpus.holds)),
        }
        await self._write("freeze-set", **named, **values)
        row: Row = await self._database.fetch_one(statement("find-set"), **named)
        return Frozen(row.id, found, collection, corpus.digest)

    async def run(
        self,
        frozen: Frozen,
        asker: Asker,
        system: Mapping[str, Any],
        *,
        change: Change = AS_SERVED,
        name: str = "",
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> Run:
        """Asks what is not answered yet and keeps each outcome as it comes; stopped at any moment, the same call goes on.

        What any run found with the same question, corpus and system is taken from there; ``fresh`` asks everything anew.
        """
        stamp = _hash([frozen.corpus, frozen.collection, system])
        run_id = await self._open(frozen, stamp, system, name or change.name, fresh)
        keys = {item.id: _hash([stamp, item_row(item)]) for item in frozen.set.items}
        if not fresh:
            values = {"run_id": run_id, "item_ids": list(keys), "keys": list(keys.values())}
            await self._write("copy-known-results", **values)
        rows = await self._database.fetch(statement("results-of-run"), run_id=run_id)
        known = {row.item_id for row in rows if row.reusable and row.key == keys.get(row.item_id)}
        before = len(known)
        wanted = [item for item in frozen.set.items if item.id not in known]
        if progress:
            progress(before, len(keys))

        async def ask(item: Item) -> None:
            outcome = await asker.ask(item, change)
            await self._keep(run_id, keys[item.id], item, outcome)

        await _all(ask, wanted, lambda done: progress(before + done, len(keys)) if progress else None)
        await self._write("finish-run", id=run_id)
        return replace(await self.show(run_id), reused=before)

    async def latest(self, limit: int = 20) -> list[RunInfo]:
        """The latest runs, newest first."""
        rows = await self._database.fetch(statement("find-runs"), name=None, limit=limit)
        return [_info(row) for row in rows]

    async def show(self, name: str) -> Run:
        """A run by its id, or the latest of its name. Raises UnknownNameError."""
        rows = await self._database.fetch(statement("find-runs"), name=name, limit=1)
        if not rows:
            raise UnknownNameError(f"there is no run {name[:80]!r}; `orchestrator eval list` shows them", param="run")
        info = _info(rows[0])
        found = await self._database.fetch(statement("results-of-run"), run_id=info.id)
        kept = await self.read_set(info.set_id)
        return Run(
            info,
            kept,
            {row.item_id: load_outcome(row.outcome) for row in found},
            {row.item_id: Score(**json.loads(row.score)) for row in found},
        )

    async def read_set(self, set_id: int) -> ItemSet:
        """A set as it was frozen. Raises UnknownNameError."""
        row = await self._database.fetch_one(statement("read-set"), id=set_id)
        if row is None:
            raise UnknownNameError(
                f"there is no set {set_id}; `orchestrator eval list` shows runs with theirs", param="set"
            )
        items = tuple(parse_item(json.loads(line), at) for at, line in enumerate(row.items.split("\n"), 1) if line)
        faults = tuple(Fault(**each) for each in json.loads(row.faults))
        return ItemSet(row.name, items, faults, json.loads(row.snapshot))

    async def passages(self, outcome: Outcome) -> list[Passage]:
        """The passages of a kept outcome as they are stored now; those of erased documents are missing."""
        shown = [passage_fields(number, each) for number, each in enumerate(outcome.passages, 1)]
        return await passages_of(self._database, {"intent": {"passages": shown}}, self._tenant)

    async def remove(self, run_id: str) -> None:
        """Removes a run with its results. Raises UnknownNameError."""
        if await self._database.fetch_one(statement("remove-run"), id=run_id) is None:
            raise UnknownNameError(f"there is no run {run_id[:80]!r}; `orchestrator eval list` shows them", param="run")

    async def _open(self, frozen: Frozen, stamp: str, system: Mapping[str, Any], name: str, fresh: bool) -> str:
        """The run of this set, system and name, begun or gone on with."""
        if not fresh:
            values = {"set_id": frozen.id, "stamp": stamp, "name": name}
            row = await self._database.fetch_one(statement("run-of-stamp"), **values)
            if row is not None:
                return str(row.id)
        run_id = new_id("run")
        values = {"id": run_id, "set_id": frozen.id, "name": name, "stamp": stamp, "system": canonical(dict(system))}
        await self._write("insert-run", **values)
        return run_id

    async def _keep(self, run_id: str, key: str, item: Item, outcome: Outcome) -> None:
        score = score_outcome(item, outcome)
        await self._write(
            "keep-result",
            run_id=run_id,
            item_id=item.id,
            key=key,
            outcome=dump_outcome(outcome),
            score=canonical(asdict(score)),
            reusable=not outcome.error or outcome.error.partition(":")[0] in LASTING,
        )

    async def _write(self, query: str, /, **values: Any) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(statement(query), values)


def dump_outcome(outcome: Outcome) -> str:
    """The outcome as JSON; passages as where they stand, without their text."""
    values = asdict(replace(outcome, passages=()))
    values["passages"] = [
        {**passage_fields(number, passage), "paragraph": passage.paragraph, "title": passage.title}
        for number, passage in enumerate(outcome.passages, 1)
    ]
    return canonical(values)


def load_outcome(text: str) -> Outcome:
    """The outcome that was kept; its passages have no text."""
    values = json.loads(text)
    passages = [
        Passage(
            each["chunk_id"], each["document_id"], each["external_id"], each["version"], each["title"], "",
            (each["span"][0], each["span"][1]), each["paragraph"], each["score"], each["scores"],
        )
        for each in values["passages"]
    ]  # fmt: skip
    return Outcome(
        **{
            **values,
            "cited": tuple((each[0], each[1], each[2]) for each in values["cited"]),
            "flags": tuple(values["flags"]),
            "usage": Usage(**values["usage"]),
            "passages": tuple(passages),
        }
    )


def changed_documents(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, int]:
    """How many documents of a frozen set's corpus are new, gone, or say something else."""
    return {
        "added": len(now.keys() - then.keys()),
        "removed": len(then.keys() - now.keys()),
        "changed": sum(now[name] != then[name] for name in now.keys() & then.keys()),
    }


async def _all(ask: Callable[[Item], Any], wanted: Sequence[Item], told: Callable[[int], None]) -> None:
    """Asks every item; the asker bounds how many at once. The first failure to keep an outcome ends the rest."""
    running = [asyncio.create_task(ask(item)) for item in wanted]
    try:
        for done, each in enumerate(asyncio.as_completed(running), 1):
            await each
            told(done)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _info(row: Row) -> RunInfo:
    return RunInfo(
        row.id, row.name, row.set_id, row.set_name, row.sha256, row.collection, row.corpus, row.stamp, json.loads(row.system),
        row.started_at, row.finished_at, row.asked,
    )  # fmt: skip


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(json.loads(json.dumps(value, default=str))).encode()).hexdigest()


def refuse_other_sets(one: Run, other: Run) -> None:
    """Raises InputError when two runs are not about the same questions."""
    if one.info.sha256 != other.info.sha256:
        raise InputError(
            f"{one.info.id} asked {one.set.name!r} and {other.info.id} asked {other.set.name!r} (or another state of it): "
            "their questions differ. Run one of the sets again",
            param="run",
        )
