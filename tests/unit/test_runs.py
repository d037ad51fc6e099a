"""What enters an answer enters its key: nothing that can change an outcome may find an old one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.evaluation.items import Change
from orchestrator.evaluation.runs import MATTERS, describe_system
from orchestrator.learnt import FEATURES, Learnt
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.router import Router
from orchestrator.settings import Settings
from orchestrator.testing import HashEmbedder, MemoryServing, ScriptedEngine, WordTokens, passage

CATALOGUE = load_catalogue(folder("prompts"))
SETTINGS = Settings()
EMBEDDER = HashEmbedder()
PIPELINE = Pipeline(
    SETTINGS, CATALOGUE, Router(CATALOGUE, {}), EMBEDDER, None, MemoryServing(ScriptedEngine([])), None, WordTokens()  # type: ignore[arg-type]
)  # fmt: skip
LEARNT = Learnt(("grounded",), "hash-64", np.zeros((1, 64 + len(FEATURES))), np.zeros(1), 1.0, 0.5, 0.9, "clarify",
                np.zeros((1, 1)), "", {}, {}, "d1")  # fmt: skip


def described(pipeline: Pipeline = PIPELINE, adapters: dict[str, str] | None = None, change: Change = Change()) -> Any:  # noqa: B008
    return describe_system(pipeline, {"cited-answer": "a" * 64} if adapters is None else adapters, change)


def with_catalogue(**changes: Any) -> Pipeline:
    return replace(PIPELINE, catalogue=replace(CATALOGUE, **changes))


def edited(values: dict[str, Any]) -> dict[str, Any]:
    """The same prompts or contracts, one of them with another text."""
    name = next(iter(values))
    return {**values, name: replace(values[name], digest="another")}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(described(with_catalogue(digest="another")), id="routes.toml"),
        pytest.param(described(with_catalogue(prompts=edited(dict(CATALOGUE.prompts)))), id="a prompt"),
        pytest.param(described(with_catalogue(contracts=edited(dict(CATALOGUE.contracts)))), id="a contract"),
        pytest.param(
            described(replace(PIPELINE, router=Router(CATALOGUE, {}, "default", LEARNT))), id="a learnt router"
        ),
        pytest.param(described(replace(PIPELINE, embedder=HashEmbedder(128))), id="the embedder"),
        pytest.param(described(adapters={"cited-answer": "b" * 64}), id="the weights of an adapter"),
        pytest.param(described(adapters={}), id="no adapter"),
        pytest.param(described(change=Change(route="direct")), id="a route"),
        pytest.param(described(change=Change(engine="strong")), id="a model"),
        pytest.param(described(change=Change(passages=())), id="no passages"),
        pytest.param(described(change=Change(passages=(passage(1, "x"),))), id="passages"),
        pytest.param(described(change=Change(passages=(passage(1, "y"),))), id="other passages"),
    ],
)
def test_another_part_is_another_system(other: Any) -> None:
    assert other != described()
    assert other["version"] == described()["version"] != ""


def test_a_learnt_router_counts_by_its_weights() -> None:
    one, two = (
        replace(PIPELINE, router=Router(CATALOGUE, {}, "default", replace(LEARNT, digest=name))) for name in "ab"
    )

    assert described(one) != described(two)
    assert described() == described()


@pytest.mark.parametrize("name", MATTERS)
def test_each_setting_that_can_change_an_answer_counts(name: str) -> None:
    value = 7 if isinstance(getattr(SETTINGS, name), int) else "another"

    assert described(replace(PIPELINE, settings=replace(SETTINGS, **{name: value}))) != described()


def test_settings_that_change_no_answer_do_not_make_another_system() -> None:
    elsewhere = replace(
        SETTINGS, port=1, pool_size=3, log_level="DEBUG", api_keys=("k",), database_url="postgresql://x/y"
    )

    assert described(replace(PIPELINE, settings=elsewhere)) == described()


def test_what_is_lasting_depends_on_what_counts() -> None:
    # A question that was too long is not asked again: then the limits that made it so must be part of the key.
    assert {"engine_max_len", "max_question_chars"} <= set(MATTERS)
