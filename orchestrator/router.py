"""Decides what a query needs: rules first, then the learnt model or the nearest examples. Pure: query and vector in, Plan out."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.errors import SettingsError
from orchestrator.learnt import Learnt, Limits, carries_text, choose_cheapest, load_learnt, read_features, start_of_text
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
_SECOND_WISH = re.compile(
    r"\b(?:and|then|first|afterwards|after that|before)\b[^.:?!]{0,12}"
    r"\b(?:tell|say|show|print|reveal|drop|send|forget|ignore|list|output)\b",
    re.IGNORECASE,
)
_SOURCES = re.compile(
    r"\b(?:according to|help of|our|the)\b[^.:?!]{0,20}"
    r"\b(?:policy|policies|guidelines?|handbook|manual|terms|price list|style guide|firm)\b",
    re.IGNORECASE,
)
_KEYWORD_WINDOW = 4  # "Could you please rewrite ..." has its verb in fourth place
LEARNT_FILE = "router.json"  # beside routes.toml
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Router:
    """Plans queries over a catalogue. ``examples``: route name to a matrix of unit vectors, one row per example.

    ``learnt``: decides in place of the examples what no rule decides.
    """

    catalogue: Catalogue
    examples: Mapping[str, np.ndarray]
    collection: str = "default"
    learnt: Learnt | None = None

    def plan(self, query: Query, vector: Sequence[float] | None = None) -> Plan:
        """The plan for one query; ``vector`` is its unit vector in the space of the examples (None: rules only).

        Raises UnknownNameError when the query pins a route that does not exist, InputError when no route meets its limits.
        """
        name, reason, scores = self._decide(query, vector)
        limits = Limits(query.max_cost, query.min_quality, query.deadline_ms)
        is_final = vector is not None or reason.startswith(("rule", "pinned"))
        if limits and is_final and self.catalogue.route(name).reply is None:
            name, why = self._meet(limits, name, scores, query)
            reason = f"{reason}; {why}"
        return self._fill(self.catalogue.route(name), query, reason, scores)

    def second_look(self, query: Query, plan: Plan) -> Plan | None:
        """The plan that searches, to try before a refusal that is only probable; None where nothing is to be tried.

        Of the handbook's questions 66 in 100 find passages that suffice, of what is to be refused 7: so most questions that
        only sound harmful are answered, from documents, and the search is not done again.
        """
        fallback = self.catalogue.route(self.catalogue.fallback)
        is_probable = plan.action == "refuse" and bool(plan.scores)  # a rule and a pin leave no scores
        is_limited = bool(Limits(query.max_cost, query.min_quality, query.deadline_ms))  # a refusal meets every limit
        if self.learnt is None or not is_probable or is_limited or not fallback.k or not fallback.min_sufficiency:
            return None
        return self._fill(fallback, query, f"{plan.reason}, but the documents suffice", plan.scores)

    def settle(self, plan: Plan, look: Plan | None, sufficiency: float | None) -> Plan:
        """The plan that stands once it is known how far the passages of the second look suffice."""
        suffices = look is not None and sufficiency is not None and sufficiency >= look.min_sufficiency
        return look if look is not None and suffices else plan

    def _decide(self, query: Query, vector: Sequence[float] | None) -> tuple[str, str, Mapping[str, float]]:
        """Route, reason and scores."""
        if query.route is not None:
            return self.catalogue.route(query.route).name, "pinned by the caller", {}
        for route in self.catalogue.routes.values():
            rule = _match_rule(route, query.text)
            if rule:
                return route.name, rule, {}
        if vector is None:
            return (*self._nearest({}), {})
        if self.learnt is not None:
            return self._learnt(self.learnt, query.text, vector)
        scores = self._similarities(vector, query.text)
        return (*self._nearest(scores), scores)

    def _learnt(self, learnt: Learnt, text: str, vector: Sequence[float]) -> tuple[str, str, Mapping[str, float]]:
        scores = learnt.probabilities(read_features(text, vector))
        if not carries_text(text):
            possible = {name: share for name, share in scores.items() if not self.catalogue.route(name).needs_text}
            scores = {name: share / sum(possible.values()) for name, share in possible.items()}
        best, top = next(iter(scores.items()))
        by = f"router {learnt.digest[:12]}"
        if top < learnt.threshold:
            return learnt.abstain, f"{by}: {best} has {top:.2f} only, below {learnt.threshold:.2f}", scores
        chosen = learnt.cheapest(scores)
        if chosen != best:
            reason = f"{by}: {chosen} with probability {scores[chosen]:.2f} costs less than to be wrong with {best} ({top:.2f})"
            return chosen, reason, scores
        return best, f"{by}: {best} with probability {top:.2f}", scores

    def _meet(self, limits: Limits, decided: str, scores: Mapping[str, float], query: Query) -> tuple[str, str]:
        """The cheapest route that meets the limits; a pinned one must meet them itself."""
        measured = self.learnt.measured if self.learnt else {}
        pinned = query.route is not None
        allowed = [decided] if pinned else [name for name, row in self.catalogue.routes.items() if row.reply is None]
        if not pinned and not carries_text(query.text):
            allowed = [name for name in allowed if not self.catalogue.route(name).needs_text]
        if not scores or not self.learnt:  # decided by a rule or a pin: the question is of that kind
            scores = {decided: 1.0}
        return choose_cheapest(measured, scores, limits, allowed)

    def _similarities(self, vector: Sequence[float], text: str) -> dict[str, float]:
        point = np.asarray(vector, dtype=np.float32)
        brings_text = carries_text(text)
        scores = {
            name: float(np.max(rows @ point))
            for name, rows in self.examples.items()
            if len(rows) and (brings_text or not self.catalogue.route(name).needs_text)
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


def find_learnt(catalogue: Catalogue, folder: Path, named: Path | None, space: str) -> Learnt | None:
    """The model that the settings name, else the one beside routes.toml, when it fits routes and embedder.

    Raises SettingsError when a file that is named does not fit; one that lies there and does not is left aside.
    """
    path = named or folder / LEARNT_FILE
    if named is None and not path.is_file():
        return None
    learnt = load_learnt(path)
    fault = misfit(learnt, catalogue, space)
    if named is None and learnt.catalogue != digest_routes(catalogue):
        fault = fault or "it was fitted for other routes than those of routes.toml"
    if fault is None:
        return learnt
    if named is not None:
        raise SettingsError(f"{path}: {fault}; write it anew: `orchestrator router fit`")
    logger.info("%s is left aside: %s", path, fault)
    return None


def misfit(learnt: Learnt, catalogue: Catalogue, space: str) -> str | None:
    """Why the model cannot decide for these routes and vectors; None when it can."""
    if learnt.space != space:
        return f"it reads vectors of {learnt.space}, the embedder's are {space}"
    missing = sorted({*learnt.routes, learnt.abstain} - catalogue.routes.keys())
    if missing:
        return f"it knows routes that routes.toml has not: {missing}"
    unknown = sorted(name for name, route in catalogue.routes.items() if route.examples and name not in learnt.routes)
    return f"it was fitted without the routes {unknown}, which have examples" if unknown else None


def digest_routes(catalogue: Catalogue) -> str:
    """Names what decides in routes.toml: each route's rules and examples, and whether it searches or what it replies."""
    rows = [
        [name, route.k > 0, route.action, route.needs_text, route.keywords, route.patterns, route.examples]
        for name, route in sorted(catalogue.routes.items())
    ]
    return hashlib.sha256(json.dumps([catalogue.fallback, rows]).encode()).hexdigest()


async def open_router(
    catalogue: Catalogue, embedder: Embedder, collection: str = "default", learnt: Learnt | None = None
) -> Router:
    """Embeds the routes' examples once; with a learnt model nothing is compared with them."""
    if learnt is not None:
        return Router(catalogue, {}, collection, learnt)
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
    for keyword in () if _wants_more(text) else route.keywords:
        if keyword in opening and _sets_task(opening[: opening.index(keyword)]) and carries_text(text):
            return f"rule of {route.name}: begins with {keyword!r} and carries its text"
    return None


def _sets_task(before: Sequence[str]) -> bool:
    """False when the words before the verb ask about it ("How do I classify ...")."""
    return not before or not (before[0] in _ASKING or {"i", "we"} & set(before))


def _wants_more(text: str) -> bool:
    """True when a second wish stands beside the task, or the task names sources: which of them counts is no rule's to say."""
    head = text[: start_of_text(text)]
    return _SECOND_WISH.search(text[:2000]) is not None or _SOURCES.search(head) is not None
