"""The probe: an adapter serves only when it answers as it did when it was trained."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.behaviour.probe import probe_messages, prove_active
from orchestrator.errors import AdapterUnavailableError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import ScriptedEngine, WordTokens
from orchestrator.types import Adapter, Completion, Generation

PROMPT = load_catalogue(folder("prompts")).prompt("grounded")
ADAPTER = Adapter(
    name="tiny",
    digest="ab" * 32,
    path=Path("x"),
    base="b",
    rank=2,
    prompt="grounded",
    prompt_digest="",
    contract="cited_answer",
    contract_digest="",
    manifest={
        "probe": [
            {
                "messages": [{"role": "user", "content": f"question {number}"}],
                "adapter": f"trained {number}",
                "base": "plain",
            }
            for number in range(8)
        ]
    },
)


class Answers(ScriptedEngine):
    """Answers by model and question."""

    def __init__(self, answers: Mapping[str, str], models: Mapping[str, str]) -> None:
        super().__init__([])
        self._answers, self._models = answers, models

    async def stream(self, generation: Generation) -> AsyncGenerator[str | Completion]:
        """The answer of the model's kind."""
        self.received.append(generation)
        question = generation.messages[-1].content
        text = self._answers[question] if self._models[generation.model] == "adapter" else "plain"
        yield text
        yield Completion(text, "stop", generation.model)


def engine(right: int = 8, serves: str = "adapter") -> Answers:
    answers = {f"question {number}": f"trained {number}" if number < right else "odd" for number in range(8)}
    return Answers(answers, {ADAPTER.served_name: serves, "base": "base"})


async def test_an_active_adapter_is_proven_greedily() -> None:
    served = engine()

    await prove_active(served, ADAPTER, "base")

    assert {generation.temperature for generation in served.received} == {0.0}
    assert {generation.model for generation in served.received} == {ADAPTER.served_name, "base"}


async def test_two_of_eight_may_part_by_rounding_three_may_not() -> None:
    await prove_active(engine(right=6), ADAPTER)

    with pytest.raises(AdapterUnavailableError, match="5 of 8"):
        await prove_active(engine(right=5), ADAPTER)


@pytest.mark.parametrize("base", ["base", None])
async def test_an_adapter_that_answers_like_the_base_is_refused(base: str | None) -> None:
    with pytest.raises(AdapterUnavailableError, match="exactly like the base"):
        await prove_active(engine(serves="base"), ADAPTER, base)


async def test_without_a_probe_nothing_is_proven() -> None:
    with pytest.raises(AdapterUnavailableError, match="no probe"):
        await prove_active(engine(), replace(ADAPTER, manifest={}))


def test_the_probe_is_eight_different_conversations_composed_like_any_other() -> None:
    conversations = probe_messages(PROMPT, WordTokens().count, 1600)

    assert len(set(conversations)) == 8
    assert all([message.role for message in each] == ["system", "user"] for each in conversations)
    assert all("[1] " in each[1].content and "Question: " in each[1].content for each in conversations)
