"""What a diagnosis found: causes by question, bars by cause, and the waterfall from today's accuracy to each layer's ceiling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from orchestrator.errors import InputError
from orchestrator.evaluation.metrics import Interval as Interval  # the type of its figures
from orchestrator.evaluation.metrics import wilson

Cause = Literal[
    "knowledge_missing", "stale", "chunked_apart", "not_retrieved", "ranked_out", "ignored_in_context", "contract_broken",
    "wrong_citation", "false_refusal", "missed_refusal", "routed_wrong", "beyond_the_model", "bad_label",
]  # fmt: skip
Layer = Literal["knowledge", "retrieval", "behaviour", "router", "model", "label"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
LAYERS: tuple[Layer, ...] = get_args(Layer)  # the order in which the waterfall makes them perfect

LAYER_OF: Mapping[Cause, Layer] = {
    "knowledge_missing": "knowledge",
    "stale": "knowledge",
    "chunked_apart": "retrieval",
    "not_retrieved": "retrieval",
    "ranked_out": "retrieval",
    "ignored_in_context": "behaviour",
    "contract_broken": "behaviour",
    "wrong_citation": "behaviour",
    "false_refusal": "behaviour",
    "missed_refusal": "behaviour",
    "routed_wrong": "router",
    "beyond_the_model": "model",
    "bad_label": "label",
}
# Each cause in plain words.
MEANINGS: Mapping[Cause, str] = {
    "knowledge_missing": "the documents do not say it",
    "stale": "only a version says it that does not hold at that time",
    "chunked_apart": "the passage was cut apart",
    "not_retrieved": "the search did not find the passage",
    "ranked_out": "found, but ranked too low to be shown",
    "ignored_in_context": "shown to the model, and not used",
    "contract_broken": "the answer broke its form",
    "wrong_citation": "a right answer with a wrong source",
    "false_refusal": "refused though it can be answered",
    "missed_refusal": "answered though it cannot be answered",
    "routed_wrong": "sent down the wrong route",
    "beyond_the_model": "more than this model can do",
    "bad_label": "the question or its expected answer is at fault",
}
# What addresses each cause. Capitals are for the reader to fill in; SET and COLLECTION are filled in where they are known.
COMMANDS: Mapping[Cause, str] = {
    "knowledge_missing": "orchestrator ingest PATH --collection COLLECTION",
    "stale": "orchestrator documents history DOCUMENT_ID --collection COLLECTION",
    "chunked_apart": "orchestrator search QUESTION --collection COLLECTION --explain",
    "not_retrieved": "orchestrator eval tune SET --collection COLLECTION --apply",
    "ranked_out": "orchestrator eval tune SET --collection COLLECTION --apply",
    "ignored_in_context": "orchestrator train --data FILE --name NAME --collection COLLECTION",
    "contract_broken": "orchestrator contracts check CONTRACT",
    "wrong_citation": "orchestrator train --data FILE --name NAME --collection COLLECTION",
    "false_refusal": "orchestrator search QUESTION --collection COLLECTION --explain",
    "missed_refusal": "orchestrator train --data FILE --name NAME --collection COLLECTION",
    "routed_wrong": "orchestrator plan QUESTION",
    "beyond_the_model": "orchestrator diagnose SET --strong-url URL --strong-model MODEL",
    "bad_label": "orchestrator ask QUESTION --explain",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One cause. ``n``: failed questions that have it, alone or with another; ``share`` of all questions asked.

    ``gain``: accuracy won if this cause alone went away, which mends the questions that have no other.
    """

    layer: Layer
    cause: Cause
    n: int
    share: Interval
    gain: Interval
    items: tuple[str, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A step of the waterfall: accuracy when this layer and those before it are perfect, and what this step adds."""

    layer: Layer
    accuracy: Interval
    gain: Interval
    n: int  # questions that this step mends


@dataclass(frozen=True, slots=True)
class Step:
    """A replay of one question: what was changed, whether that mended it, and what was said."""

    change: str
    mended: bool
    said: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why the questions of a run failed. ``accuracy``: share that is right, with a right source where the item names one.

    ``causes``: by question, in the order in which they must be mended; two where one change did not mend it.
    ``unsteady``: right when asked again unchanged, so nothing is blamed. ``notes``: by question, what the verdict rests on.
    ``calls``: of the model, by this diagnosis; ``run_calls``: by the run that it explains. ``trails``: what was tried.
    """

    set: str
    sha256: str
    n: int
    accuracy: Interval
    bars: tuple[Bar, ...]
    ceilings: tuple[Ceiling, ...] = ()
    causes: Mapping[str, tuple[Cause, ...]] = field(default_factory=dict)
    unsteady: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    calls: int = 0
    run_calls: int = 0
    trails: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)

    def layers(self, item: str) -> tuple[Layer, ...]:
        """The layers that a failed question accuses, each once."""
        return tuple(dict.fromkeys(LAYER_OF[cause] for cause in self.causes.get(item, ())))

    def to_json(self) -> str:
        """One JSON object; ``from_json`` reads it back."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """Raises InputError when the text is no diagnosis."""
        try:
            row = json.loads(text)
            row |= {
                "accuracy": Interval(**row["accuracy"]),
                "bars": tuple(_bar(each) for each in row["bars"]),
                "ceilings": tuple(_ceiling(each) for each in row["ceilings"]),
                "causes": {item: tuple(_known(cause) for cause in each) for item, each in row["causes"].items()},
                "unsteady": tuple(row["unsteady"]),
                "trails": {item: tuple(Step(**step) for step in each) for item, each in row.get("trails", {}).items()},
            }
            return cls(**row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"this is no diagnosis ({type(error).__name__} {error}); write one with `orchestrator diagnose SET --write FILE`",
                param="diagnosis",
            ) from error


def draw_bars(
    causes: Mapping[str, Sequence[Cause]], n: int, *, set: str = "SET", collection: str = "COLLECTION"
) -> tuple[Bar, ...]:
    """A bar for each cause that some question has, the longest first. ``n``: questions asked, not only those that failed."""
    bars = []
    for cause in CAUSES:
        items = tuple(item for item, each in causes.items() if cause in each)
        alone = sum(tuple(each) == (cause,) for each in causes.values())
        command = COMMANDS[cause].replace("COLLECTION", collection).replace("SET", set)
        if items:
            bars.append(
                Bar(LAYER_OF[cause], cause, len(items), share_of(len(items), n), share_of(alone, n), items, command)
            )
    return tuple(sorted(bars, key=lambda bar: (-bar.n, CAUSES.index(bar.cause))))


def draw_ceilings(causes: Mapping[str, Sequence[Cause]], right: int, n: int) -> tuple[Ceiling, ...]:
    """The waterfall, layer after layer in the order of ``LAYERS``.

    A question is won at the step that makes the last of its layers perfect. Nobody loses by a step, so the paired
    difference of two steps is a share of questions, and its interval is a share's.
    """
    steps = []
    perfect: set[Layer] = set()
    for layer in LAYERS:
        perfect.add(layer)
        mended = [{LAYER_OF[cause] for cause in each} for each in causes.values() if each]
        added = sum(layer in each and each <= perfect for each in mended)
        total = right + sum(each <= perfect for each in mended)
        steps.append(Ceiling(layer, share_of(total, n), share_of(added, n), added))
    return tuple(steps)


def share_of(count: int, n: int) -> Interval:
    """The share with Wilson's interval; of nothing, 0 with the interval from 0 to 1."""
    return wilson(count, n)


def _known(cause: str) -> Cause:
    if cause not in LAYER_OF:
        raise ValueError(f"there is no cause {cause!r}")
    return cast(Cause, cause)


def _bar(row: Mapping[str, Any]) -> Bar:
    spans = {name: Interval(**row[name]) for name in ("share", "gain")}
    return Bar(**{**row, "cause": _known(row["cause"]), **spans, "items": tuple(row["items"])})


def _ceiling(row: Mapping[str, Any]) -> Ceiling:
    return Ceiling(**{**row, **{name: Interval(**row[name]) for name in ("accuracy", "gain")}})
