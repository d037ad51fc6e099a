"""Reads what a system is used for: traffic and sources from the ledger, changes from the history; and says what is not known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from orchestrator.database import Database, statement
from orchestrator.evaluation.costs import Range
from orchestrator.evaluation.metrics import Z95, wilson
from orchestrator.evaluation.money import DAYS_PER_MONTH, Layer, Workload

Source = Literal["measured", "given", "assumed"]

TRAFFIC_DAYS = 30
HISTORY_MONTHS = 24
SAMPLE = 1000  # answers whose tokens and citations are looked at, the latest
CHARACTERS_PER_TOKEN = 4  # English; other languages have fewer
MIN_SHARE = 0.05  # a layer that fewer answers use, and sources that fewer answers show, decide nothing
MIN_ANSWERS = 20  # with fewer, the share of answers that show a source is not called measured


@dataclass(frozen=True, slots=True)
class Traffic:
    """Answers of one tenant. ``by_day``: every day of the window up to today; means are over ``sample`` complete answers."""

    by_day: tuple[int, ...] = ()
    sample: int = 0
    cited: int = 0
    retrieved: int = 0
    adapted: int = 0
    prompt_tokens: float = 0.0  # with passages
    passage_tokens: float = 0.0
    completion_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class _Served:
    """What one answer says of the workload."""

    is_cited: bool
    is_retrieved: bool
    is_adapted: bool
    prompt_tokens: float
    passage_tokens: float
    completion_tokens: float


@dataclass(frozen=True, slots=True)
class History:
    """A collection's documents and their changes. ``changes``: days on which any changed; ``changed``: documents, summed."""

    documents: int = 0
    characters: int = 0
    months: float = 0.0  # that could be looked at
    changes: int = 0
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Given:
    """What a person says in place of a measurement."""

    queries_per_day: float | None = None
    changes_per_month: float | None = None
    needs_source: bool | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """One input: its range, whether it was measured, and from what; ``flag`` is the option that gives it."""

    name: str
    range: Range
    source: Source
    note: str
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The workload at its likely values, and how each of them is known. ``is_seen``: answers say which layers stand already."""

    workload: Workload
    known: tuple[Known, ...]
    is_seen: bool = False

    def of(self, name: str) -> Known:
        """How one input is known. Raises KeyError."""
        return {each.name: each for each in self.known}[name]

    @property
    def missing(self) -> tuple[Known, ...]:
        """Inputs that a person or a measurement has to give and has not."""
        return tuple(each for each in self.known if each.source == "assumed" and each.flag)

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Inputs that are not exact."""
        return {each.name: each.range for each in self.known if each.range.low < each.range.high}


async def read_traffic(database: Database, tenant: str, now: datetime, days: int = TRAFFIC_DAYS) -> Traffic:
    """What the ledger says of the last days. Raises DatabaseError."""
    database, since = database.of(tenant), now - timedelta(days=days)
    values = {"tenant": tenant, "since": since}
    counts = {row.day.date(): row.answers for row in await database.fetch(statement("traffic-by-day"), **values)}
    rows = await database.fetch(statement("traffic-sample"), **values, limit=SAMPLE)
    served = [each for each in (_served(json.loads(row.intent), json.loads(row.outcome)) for row in rows) if each]
    span = (now.date() - min(counts)).days + 1 if counts else 0
    by_day = tuple(counts.get(now.date() - timedelta(days=back), 0) for back in reversed(range(span)))
    return _traffic(by_day, served)


async def read_asked(database: Database, tenant: str, sha256: str, collection: str) -> Traffic:
    """What the latest run over a set says of the system that it asked; of traffic it says nothing. Raises DatabaseError."""
    values = {"sha256": sha256, "collection": collection, "limit": SAMPLE}
    rows = await database.of(tenant).fetch(statement("outcomes-of-latest-run"), **values)
    return _traffic((), [each for each in (_asked(json.loads(row.outcome)) for row in rows) if each])


async def read_history(
    database: Database, tenant: str, collection: str, now: datetime, months: int = HISTORY_MONTHS
) -> History:
    """How large a collection is and how often its documents changed. Raises DatabaseError."""
    database = database.of(tenant)
    size = await database.fetch_one(statement("corpus-size"), collection=collection, now=now)
    if size is None or size.since is None:
        return History()
    since = max(size.since, now - timedelta(days=months * DAYS_PER_MONTH))
    rows = await database.fetch(statement("changes-by-day"), collection=collection, since=since, now=now)
    return History(
        size.documents,
        size.characters,
        (now - since) / timedelta(days=DAYS_PER_MONTH),
        len(rows),
        sum(row.documents for row in rows),
    )


def gather(traffic: Traffic, history: History, given: Given = Given(), asked: Traffic = Traffic()) -> Evidence:
    """The workload: what was given, else what was measured, else an assumption that says so.

    ``asked``: what an evaluation showed of the system; where there is no traffic, it says what stands and how long prompts are.
    """
    queries = _queries(traffic, given)
    seen = traffic if traffic.sample else asked
    built, documents = _built(seen), _documents(seen, history)
    changes, source = _changes(seen, history, given, documents), _needs_source(traffic, given, documents)
    passages = seen.passage_tokens * seen.sample / seen.retrieved if seen.retrieved else None
    start = Workload(queries.range.likely, built=built)
    workload = replace(
        start,
        prompt_tokens=max(1.0, seen.prompt_tokens - seen.passage_tokens) if seen.sample else start.prompt_tokens,
        passage_tokens=start.passage_tokens if passages is None else passages,
        completion_tokens=seen.completion_tokens if seen.sample else start.completion_tokens,
        documents=documents,
        corpus_tokens=history.characters / CHARACTERS_PER_TOKEN if documents else 0,
        changes_per_month=changes.range.likely,
        documents_per_change=history.changed / history.changes if history.changes else 1.0,
        needs_source=source.range.likely,
    )
    tokens = _tokens(workload, seen, "answers" if traffic.sample else "answers of an evaluation")
    return Evidence(workload, (queries, changes, source, *tokens), seen.sample > 0)


def _queries(traffic: Traffic, given: Given) -> Known:
    name, flag = "queries_per_day", "--queries-per-day"
    if given.queries_per_day is not None:
        return Known(name, _exactly(given.queries_per_day), "given", f"given by {flag}", flag)
    count, days = sum(traffic.by_day), len(traffic.by_day)
    if not count:
        note = f"the ledger has no answer of the last {TRAFFIC_DAYS} days; give {flag}"
        return Known(name, Range(100, 1000, 10_000), "assumed", note, flag)
    rate = count / days
    note = f"{count:,} answers in {days} day{'s' if days > 1 else ''}"
    if days < 2:
        return Known(name, poisson(count, 1.0), "measured", note, flag)
    spread = math.sqrt(math.fsum((each - rate) ** 2 for each in traffic.by_day) / (days - 1) / days)
    return Known(name, Range(max(0.0, rate - Z95 * spread), rate, rate + Z95 * spread), "measured", note, flag)


def _changes(traffic: Traffic, history: History, given: Given, documents: float) -> Known:
    name, flag = "changes_per_month", "--changes-per-month"
    if given.changes_per_month is not None:
        return Known(name, _exactly(given.changes_per_month), "given", f"given by {flag}", flag)
    if not documents and not history.documents and not _is_enough(traffic):
        return Known(
            name, _exactly(0.0), "assumed", "the collection has no document; ingest them, or name --collection", flag
        )
    if not documents:
        note = f"{traffic.retrieved:,} of the latest {traffic.sample:,} answers looked anything up"
        return Known(name, _exactly(0.0), "measured", note, flag)
    if history.months < 1 and not history.changes:
        note = f"the documents are known for {history.months * DAYS_PER_MONTH:.0f} days only; give {flag}"
        return Known(name, Range(0.0, 1.0, 4.0), "assumed", note, flag)
    months = max(history.months, 1.0)
    note = (
        f"documents changed on {history.changes} day{'s' if history.changes != 1 else ''} "
        f"in {months:.1f} months ({history.changed:,} changes)"
    )
    return Known(name, poisson(history.changes, months), "measured", note, flag)


def _needs_source(traffic: Traffic, given: Given, documents: float) -> Known:
    name, flag = "needs_source", "--needs-source"
    if given.needs_source is not None:
        return Known(name, _exactly(float(given.needs_source)), "given", f"given by {flag}", flag)
    if _is_enough(traffic):
        share = wilson(traffic.cited, traffic.sample)
        note = f"{traffic.cited:,} of the latest {traffic.sample:,} answers carry a citation"
        return Known(name, Range(share.low, share.value, share.high), "measured", note, flag)
    seen = f"the ledger has {traffic.sample} answers, {MIN_ANSWERS} are needed; give {flag}"
    return Known(name, Range(0.0, 1.0 if documents else 0.0, 1.0 if documents else 0.0), "assumed", seen, flag)


def _tokens(workload: Workload, seen: Traffic, what: str) -> list[Known]:
    source: Source = "measured" if seen.sample else "assumed"
    note = f"mean of the latest {seen.sample:,} {what}" if seen.sample else "the ledger has no answer to count them in"
    names = ("prompt_tokens", "passage_tokens", "completion_tokens")
    return [Known(name, _exactly(getattr(workload, name)), source, note) for name in names]


def _built(traffic: Traffic) -> tuple[Layer, ...]:
    shares: tuple[tuple[Layer, int], ...] = (("retrieval", traffic.retrieved), ("adapter", traffic.adapted))
    return tuple(layer for layer, count in shares if traffic.sample and count / traffic.sample >= MIN_SHARE)


def _documents(traffic: Traffic, history: History) -> int:
    """Documents that answers rest on: none when the answers that were given looked nothing up."""
    is_used = not _is_enough(traffic) or traffic.retrieved / traffic.sample >= MIN_SHARE
    return history.documents if is_used else 0


def _is_enough(traffic: Traffic) -> bool:
    return traffic.sample >= MIN_ANSWERS


def poisson(count: int, time: float) -> Range:
    """A rate with its 95 % interval from a count of events (Byar's approximation; Breslow & Day 1987)."""
    low = count * (1 - 1 / (9 * count) - Z95 / (3 * math.sqrt(count))) ** 3 if count else 0.0
    more = count + 1
    high = more * (1 - 1 / (9 * more) + Z95 / (3 * math.sqrt(more))) ** 3
    return Range(max(0.0, low) / time, count / time, high / time)


def _served(intent: Mapping[str, Any], outcome: Mapping[str, Any]) -> _Served | None:
    """One answer; None when no model was asked or it did not come to an end."""
    plan, usage = intent["plan"], outcome["usage"]
    if outcome["outcome"] != "complete" or plan["action"] != "answer":
        return None
    characters = sum(passage["span"][1] - passage["span"][0] for passage in intent["passages"])
    return _Served(
        bool((outcome.get("answer") or {}).get("citations")),
        plan["collection"] is not None and plan["k"] > 0,
        intent["adapter"] is not None,
        usage["prompt_tokens"],
        min(characters / CHARACTERS_PER_TOKEN, usage["prompt_tokens"]),
        usage["completion_tokens"],
    )


def _asked(outcome: Mapping[str, Any]) -> _Served | None:
    """One answer of an evaluation; None when it failed or no model was asked."""
    usage = outcome["usage"]
    if outcome["error"] or not usage["prompt_tokens"]:
        return None
    characters = sum(passage["span"][1] - passage["span"][0] for passage in outcome["passages"])
    return _Served(
        bool(outcome["cited"]),
        bool(outcome["passages"]),
        outcome["adapter"] is not None,
        usage["prompt_tokens"],
        min(characters / CHARACTERS_PER_TOKEN, usage["prompt_tokens"]),
        usage["completion_tokens"],
    )


def _traffic(by_day: tuple[int, ...], served: Sequence[_Served]) -> Traffic:
    return Traffic(
        by_day,
        len(served),
        cited=sum(each.is_cited for each in served),
        retrieved=sum(each.is_retrieved for each in served),
        adapted=sum(each.is_adapted for each in served),
        prompt_tokens=_mean([each.prompt_tokens for each in served]),
        passage_tokens=_mean([each.passage_tokens for each in served]),
        completion_tokens=_mean([each.completion_tokens for each in served]),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _exactly(value: float) -> Range:
    return Range(value, value, value)
