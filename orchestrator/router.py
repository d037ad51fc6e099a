"""Decides what a query needs: rules first, then the nearest examples with a margin. Pure: query and vector in, Plan out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.prompts import Catalogue, Route
from orchestrator.protocols import Embedder
from orchestrator.types import Plan, Query

_WORD = re.compile(r"\w+")
_ASKING = frozenset(
    (
        "how",
        "what",
        "which",
        "who",
        "when",
        "where",
        "why",
        "is",
        "are",
        "was",
        "do",
        "does",
        "did",
        "should",
        "must",
        "may",
    )
)
_KEYWORD_WINDOW = 4  # "Could you please rewrite ..." has its verb in fourth place


@dataclass(frozen=True, slots=True)
class Router:
    """Plans queries over a catalogue. ``examples``: route name to a matrix of unit vectors, one row per example."""

    catalogue: Catalogue
    examples: Mapping[str, np.ndarray]
    collection: str = "default"

    def plan(self, query: Query, vector: Sequence[float] | None = None) -> Plan:
        """The plan for one query; ``vector`` is its unit vector in the space of the examples (None: rules only).

        Raises UnknownNameError when the query pins a route that does not exist.
        """
        if query.route is not None:
            return self._fill(self.catalogue.route(query.route), query, "pinned by the caller", {})
        for route in self.catalogue.routes.values():
            rule = _match_rule(route, query.text)
            if rule:
                return self._fill(route, query, rule, {})
        scores = self._similarities(vector, query.text) if vector is not None else {}
        name, reason = self._nearest(scores)
        return self._fill(self.catalogue.route(name), query, reason, scores)

    def _similarities(self, vector: Sequence[float], text: str) -> dict[str, float]:
        point = np.asarray(vector, dtype=np.float32)
        carries_text = _carries_text(text)
        scores = {
            name: float(np.max(rows @ point))
            for name, rows in self.examples.items()
            if len(rows) and (carries_text or not self.catalogue.route(name).needs_text)
        }
        return dict(sorted(scores.items(), key=lambda pair: -pair[1]))

    def _nearest(self, scores: Mapping[str, float]) -> tuple[str, str]:
        fallback = self.catalogue.fallback
        if not scores:
            return fallback, "no examples to compare with: the fallback"
        (best, top), *others = scores.items()
        runner_up = others[0][1] if others else -1.0
        if top < self.catalogue.threshold:
            return fallback, f"unlike every example ({top:.2f} < {self.catalogue.threshold:.2f}): the fallback"
        if top - runner_up < self.catalogue.margin:
            return fallback, f"{best} leads by {top - runner_up:.2f} only: the fallback"
        return best, f"nearest example is of {best} ({top:.2f}, next {runner_up:.2f})"

    def _fill(self, route: Route, query: Query, reason: str, scores: Mapping[str, float]) -> Plan:
        if route.reply is not None:
            action = "refuse" if route.action == "refuse" else "clarify"
            return Plan(action=action, route=route.name, reason=reason, scores=scores)  # type: ignore[arg-type]
        collection = query.collection or (self.collection if route.collection == "default" else route.collection)
        return Plan(
            action="answer",
            route=route.name,
            reason=reason,
            prompt=route.prompt,
            contract=route.contract,
            collection=collection if route.k else None,
            adapter=query.adapter or route.adapter,
            k=(query.k or route.k) if route.k else 0,
            as_of=query.as_of,
            known_at=query.known_at,
            where=query.where,
            excerpts=route.excerpts,
            min_sufficiency=route.min_sufficiency,
            budget_tokens=route.budget_tokens,
            max_tokens=min(query.max_tokens or route.max_tokens, route.max_tokens),
            temperature=route.temperature if query.temperature is None else query.temperature,
            seed=query.seed or 0,
            degrade=route.degrade,
            scores=scores,
        )


async def open_router(catalogue: Catalogue, embedder: Embedder, collection: str = "default") -> Router:
    """Embeds the routes' examples once."""
    names = [route.name for route in catalogue.routes.values() for _ in route.examples]
    texts = [example for route in catalogue.routes.values() for example in route.examples]
    vectors = await embedder.embed(texts) if texts else []
    examples = {
        name: np.asarray([vector for owner, vector in zip(names, vectors, strict=True) if owner == name], np.float32)
        for name in dict.fromkeys(names)
    }
    return Router(catalogue, examples, collection)


def _match_rule(route: Route, text: str) -> str | None:
    text = text.strip()
    for pattern in route.patterns:
        if re.search(pattern, text[:2000]):
            return f"rule of {route.name}: matches {pattern}"
    opening = [word.lower() for word in _WORD.findall(text[:200])[:_KEYWORD_WINDOW]]
    for keyword in route.keywords:
        if keyword in opening and _sets_task(opening[: opening.index(keyword)]) and _carries_text(text):
            return f"rule of {route.name}: begins with {keyword!r} and carries its text"
    return None


def _sets_task(before: Sequence[str]) -> bool:
    """False when the words before the verb ask about it ("How do I classify ...")."""
    return not before or not (before[0] in _ASKING or {"i", "we"} & set(before))


def _carries_text(text: str) -> bool:
    """True when a task brings the text it is about: after a colon, in quotes or on further lines."""
    return bool(re.search(r":\s*\S|\n\s*\S|(?<!\w)[\"“«'‘].{3,}[\"”»'’](?!\w)", text))
