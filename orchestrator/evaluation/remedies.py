"""What a diagnosis may try on a failed question: adapters, routes, prompts and a stronger model of one system. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evaluation.items import Change
from orchestrator.prompts import Catalogue
from orchestrator.types import Adapter

TIMES = 4.0  # calls of the model, at most, for each call of the run
DEEP = 100
ADAPTERS = 2  # beside the one in service that are tried, the newest first


@dataclass(frozen=True, slots=True)
class Remedies:
    """What there is to try. ``adapters``: others than the one in service ("" is the base); ``routes``: that answer.

    ``shown``: passages that a route shows; ``prompt``: whether the shipped prompt is to be tried.
    """

    adapters: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()  # of the routes, those that look nothing up
    prompt: bool = False
    strong: bool = False
    shown: int = 5
    deep: int = DEEP
    times: float = TIMES
    concurrency: int = 16

    def behaviour(self, *, is_broken: bool) -> list[Change]:
        """The changes of how the model is asked; constrained decoding for a contract that was broken."""
        changes = [Change("constrained", constrained=True)] * is_broken
        changes += [Change(f"adapter {name}" if name else "the base", adapter=name) for name in self.adapters]
        return changes + [Change("as shipped", prompt="shipped")] * self.prompt


def remedies_of(
    catalogue: Catalogue, adapters: Sequence[Adapter], *, shipped: Catalogue | None = None, strong: bool = False
) -> Remedies:
    """What there is to try in a system: adapters of its routes that are not in service, the base, and other routes.

    ``shipped``: the package's own catalogue; what it asks with is tried where a route of the same name asks otherwise.
    A route that the router never chooses by itself (no keywords, patterns or examples) is no route that a question missed.
    """
    routes = [route for route in catalogue.routes.values() if route.action == "answer"]
    forms = {(route.prompt, route.contract) for route in routes if route.collection}
    served = {route.adapter for route in routes} - {None}
    others = [
        each.served_name
        for each in adapters
        if (each.prompt, each.contract) in forms
        and each.state != "retired"
        and not (each.state == "active" and each.name in served)
    ]
    base = ("",) if any(each.state == "active" and each.name in served for each in adapters) else ()
    shown = max((route.k for route in routes if route.collection), default=5)
    names = tuple(
        each.name
        for each in routes
        if each.keywords or each.patterns or each.examples or each.name == catalogue.fallback
    )
    edited = shipped is not None and any(_differs(each.name, catalogue, shipped) for each in routes)
    closed = tuple(name for name in names if not catalogue.routes[name].collection)
    return Remedies((*others[:ADAPTERS], *base), names, closed, edited, strong, shown or 5)


def _differs(name: str, catalogue: Catalogue, shipped: Catalogue) -> bool:
    """Whether the route of that name asks with another prompt, contract or adapter than the package's."""
    if name not in shipped.routes:
        return False
    one, other = _form(name, catalogue), _form(name, shipped)
    return one != other


def _form(name: str, catalogue: Catalogue) -> tuple[str | None, ...]:
    route = catalogue.routes[name]
    prompt, contract = catalogue.prompts.get(route.prompt or ""), catalogue.contracts.get(route.contract or "")
    return prompt.digest if prompt else None, contract.digest if contract else None, route.adapter
