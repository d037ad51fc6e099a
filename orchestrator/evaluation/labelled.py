"""Makes labelled messages of what a system already has: runs in which routes were tried, and the documents of a collection."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from orchestrator.errors import InputError
from orchestrator.evaluation.items import Outcome
from orchestrator.evaluation.routing import Labelled, Tried
from orchestrator.evaluation.runs import Run
from orchestrator.prompts import Catalogue

MOST = 400  # rows of one collection: more of one kind outweigh what people wrote
_HEADING = re.compile(r"^#{1,6}\s+(.{3,80}?)\s*#*$", re.MULTILINE)


def rows_of_runs(runs: Sequence[Run]) -> list[Labelled]:
    """One row for each question that every run asked, with what each route gave: `orchestrator router try` makes such runs.

    The label is the route that the set names, else the best one, the cheapest of equally good ones. An answer that failed has
    the quality 0. Costs are those of the price list, tokens where not every answer was priced. Raises InputError when a run
    had no route pinned, when two had the same, or when their questions differ.
    """
    routes = [_route_of(run) for run in runs]
    if len(set(routes)) != len(routes):
        raise InputError(f"two of the runs tried the same route: {sorted(routes)}; name one run for each", param="run")
    if len({run.info.sha256 for run in runs}) != 1:
        raise InputError(
            "the runs asked different sets; try every route on one: `orchestrator router try`", param="run"
        )
    priced = all(outcome.cost is not None for run in runs for outcome in run.outcomes.values())
    rows = []
    for item in runs[0].set.items:
        if not all(item.id in run.outcomes and item.id in run.scores for run in runs):
            continue
        tried = {
            route: _tried(run.outcomes[item.id], run.scores[item.id].correct, priced)
            for route, run in zip(routes, runs, strict=True)
        }
        best = min(tried, key=lambda name: (-tried[name].quality, tried[name].cost))
        rows.append(Labelled(item.question, item.route or best, tried=tried, tags=item.tags))
    if not rows:
        raise InputError(
            "no question was asked in all of the runs; let them finish: `orchestrator router try`", param="run"
        )
    return rows


def rows_of_documents(documents: Iterable[tuple[str, str]], route: str) -> list[Labelled]:
    """What questions over these documents may look like, from ``(title, text)``: titles and headings, bare and in a question.

    They are practice and never held out; at most MOST, chosen by a hash.
    """
    wishes: dict[str, None] = {}
    for title, text in documents:
        for words in (title.strip(), *(found.strip() for found in _HEADING.findall(text))):
            if len(words.split()) > 1:
                wishes[words.lower()] = None
            if words:
                wishes[f"What applies to {words}?"] = None
                wishes[f"Tell me about {words}"] = None
    chosen = sorted(wishes, key=lambda wish: hashlib.sha256(wish.encode()).hexdigest())[:MOST]
    return [Labelled(wish, route, practice=True, tags=("collection",)) for wish in chosen]


def answering_routes(catalogue: Catalogue) -> list[str]:
    """The routes that the router can choose and that answer."""
    chosen = [name for name, route in catalogue.routes.items() if route.reply is None]
    return [name for name in chosen if catalogue.route(name).examples or name == catalogue.fallback]


def searching_route(catalogue: Catalogue, collection: str, default: str) -> str:
    """The route that searches this collection, the fallback first. Raises InputError when none does."""
    names = [catalogue.fallback, *answering_routes(catalogue)]
    for name in names:
        route = catalogue.routes.get(name)
        if route is not None and route.k and collection in (route.collection, default):
            return name
    raise InputError(f"no route searches the collection {collection!r}; name it in routes.toml", param="collection")


def _route_of(run: Run) -> str:
    route = (run.info.system.get("change") or {}).get("route")
    if not route:
        raise InputError(
            f"run {run.info.name or run.info.id} took the routes that the router chose, so it says nothing of the others; "
            "`orchestrator router try SET` asks every route",
            param="run",
        )
    return str(route)


def _tried(outcome: Outcome, correct: float, priced: bool) -> Tried:
    tokens = outcome.usage.prompt_tokens + outcome.usage.completion_tokens
    cost = outcome.cost if priced and outcome.cost is not None else float(tokens)
    return Tried(0.0 if outcome.error else correct, cost, float(outcome.timings_ms.get("total", 0.0)))
