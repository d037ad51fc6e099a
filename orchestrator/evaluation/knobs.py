"""What can be turned without training anything: remedies and the causes they address, the knobs, and which values are tried."""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from orchestrator.errors import InputError
from orchestrator.evaluation.causes import Cause, Diagnosis, Interval, share_of
from orchestrator.evaluation.items import Item, ItemSet, Outcome, Score

Name = Literal["search weights", "depth", "excerpts", "threshold", "routing"]
Cost = Literal["free", "re-index", "trains", "deletes"]
COSTS: tuple[Cost, ...] = ("free", "re-index", "trains", "deletes")  # the cheapest first
MAX_K = 20  # passages: more are never read by a small model
NEAREST = (0.0, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)  # cosine below which a message is unlike every example
MARGINS = (0.0, 0.02, 0.03, 0.05, 0.1)  # by which the best route must lead
THRESHOLDS = 8  # that are tried, spread over what the search said of the questions


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to turn. ``asks``: whether it shows only in answers, and not in what is found."""

    name: Name
    cost: Cost
    causes: frozenset[Cause]
    asks: bool = False


REMEDIES: tuple[Remedy, ...] = (
    Remedy("search weights", "free", frozenset({"not_retrieved", "ranked_out"})),
    Remedy("depth", "free", frozenset({"ranked_out", "ignored_in_context"})),
    # Sentences of neighbouring chunks are joined into one passage: what was cut apart is shown whole, without re-indexing.
    Remedy("excerpts", "free", frozenset({"chunked_apart", "ignored_in_context"})),
    Remedy("threshold", "free", frozenset({"false_refusal", "missed_refusal"}), asks=True),
    Remedy("routing", "free", frozenset({"routed_wrong"}), asks=True),
)


@dataclass(frozen=True, slots=True)
class Knobs:
    """How the system is set. ``dense``, ``second``: as ``tune.Setting``; others None: as routes.toml has them."""

    dense: float | None = None
    second: float | None = None
    route: str = ""
    k: int | None = None
    min_sufficiency: float | None = None
    excerpts: bool | None = None
    threshold: float | None = None
    margin: float | None = None


# Keys of routes.toml: of one route, and of the router.
OF_ROUTE = ("k", "min_sufficiency", "excerpts")
OF_ROUTER = ("threshold", "margin")


@dataclass(frozen=True, slots=True)
class Prospect:
    """A remedy and the most that it can bring: the share of questions whose causes it addresses, all of them."""

    remedy: Remedy
    gain: Interval
    items: tuple[str, ...]


def rank_remedies(
    found: Diagnosis, *, worth: float, search_only: bool = False, left: Sequence[Remedy] = REMEDIES
) -> list[Prospect]:
    """The remedies that are worth a trial: the cheapest first, of equal cost the one with the highest ceiling."""
    prospects = []
    for remedy in left:
        items = tuple(name for name, causes in found.causes.items() if causes and remedy.causes.issuperset(causes))
        if items and len(items) >= worth * found.n and not (remedy.asks and search_only):
            prospects.append(Prospect(remedy, share_of(len(items), found.n), items))
    return sorted(prospects, key=lambda each: (COSTS.index(each.remedy.cost), -each.gain.value))


def halve(asked: ItemSet) -> tuple[ItemSet, ItemSet]:
    """The half on which a remedy is chosen, and the half that decides; rows that could not be read go with the first.

    By a hash of the id, as in ``tune.split_questions``: where rows have ids, what `eval tune` has learnt from is never in the
    half that decides, and a sample of a set is split as the set is. A question that stands in the set twice is in one half.
    """
    first: dict[str, str] = {}
    for item in sorted(asked.items, key=lambda item: item.id):
        first.setdefault(_plain(item), item.id)
    halves: tuple[list[Item], list[Item]] = ([], [])
    for item in asked.items:
        halves[hashlib.sha256(first[_plain(item)].encode()).digest()[0] % 2].append(item)
    return replace(asked, items=tuple(halves[0])), replace(asked, items=tuple(halves[1]), faults=())


def depths(k: int) -> list[int]:
    """What is tried in place of ``k`` passages: half as many again, twice as many, half."""
    return [each for each in dict.fromkeys((math.ceil(1.5 * k), 2 * k, k // 2)) if 0 < each <= MAX_K and each != k]


def thresholds(
    items: Sequence[Item], opened: Mapping[str, Outcome], scores: Mapping[str, Score], current: float
) -> list[float]:
    """The threshold of sufficiency under which most questions come out right, when another one does better than ``current``.

    ``opened``, ``scores``: of every question asked without a threshold. A question below it is refused, which is right for
    one that cannot be answered.
    """
    told = [
        (sufficiency, scores[item.id].correct, float(not item.answerable))
        for item in items
        if item.id in opened and (sufficiency := opened[item.id].sufficiency) is not None
    ]
    if not told:
        return [0.0] if current else []
    values = sorted(value for value, _, _ in told)
    spread = (values[min(len(values) - 1, at * len(values) // THRESHOLDS)] for at in range(1, THRESHOLDS))
    tried = list(dict.fromkeys([current, 0.0, *(round(value, 3) for value in spread)]))
    right = {each: sum(asked if value >= each else refused for value, asked, refused in told) for each in tried}
    # Of equals the first, which is what is set.
    best = max(tried, key=lambda each: right[each])
    return [] if best == current else [best]


def edit_routes(text: str, table: str, key: str, value: float | bool) -> str:
    """routes.toml with one value of a table (``router``, or ``routes.`` and a route's name) changed and every other byte as it was.

    Raises InputError when the file is laid out so that this cannot be done safely.
    """
    lines = text.split("\n")
    stands = written(value)
    top, _, name = table.partition(".")
    inner = rf"""\s*\.\s*(["']?){re.escape(name)}\1""" if name else ""
    header = re.compile(rf"\s*\[\s*{top}{inner}\s*\]\s*(#.*)?$")
    stated = re.compile(rf"(\s*{re.escape(key)}\s*=\s*)[-+.\w]+(\s*(?:#.*)?)$")
    start = next((at for at, line in enumerate(lines) if header.match(line)), None)
    if start is not None:
        end = next((at for at in range(start + 1, len(lines)) if re.match(r"\s*\[", lines[at])), len(lines))
        at = next((at for at in range(start + 1, end) if stated.match(lines[at])), None)
        if at is None:
            lines.insert(start + 1, f"{key} = {stands}" + "\r" * lines[start].endswith("\r"))
        else:
            lines[at] = stated.sub(lambda found: f"{found[1]}{stands}{found[2]}", lines[at])
    edited = "\n".join(lines)
    if start is None or _table(edited) != _with(_table(text), table, key, value):
        raise InputError(
            f"routes.toml is laid out so that {key} of [{table}] cannot be changed safely; set it to {stands} by hand",
            param="routes.toml",
        )
    return edited


def written(value: float | bool) -> str:
    """A value as TOML has it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _table(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _with(values: dict[str, Any] | None, table: str, key: str, value: float | bool) -> dict[str, Any]:
    """The parsed file as it should read afterwards."""
    top, _, name = table.partition(".")
    held: dict[str, Any] = (values or {}).get(top, {})
    changed = {**held, name: {**held.get(name, {}), key: value}} if name else {**held, key: value}
    return {**(values or {}), top: changed}


def _plain(item: Item) -> str:
    return " ".join(item.question.casefold().split())
