"""Proves that a served adapter is the one that was trained: eight fixed prompts, greedy, compared with the training run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.compose import compose_messages
from orchestrator.errors import AdapterUnavailableError
from orchestrator.prompts import Prompt
from orchestrator.protocols import Engine
from orchestrator.types import Adapter, Completion, Generation, Message, Passage

PROBE_TOKENS = 48
NEEDED = 6  # of 8: bf16 kernels differ between batch sizes and machines, so a greedy text may part near a tie

_TEXTS = (
    (
        "Lighthouse",
        "The lighthouse on Gull Rock was built in 1874 by Mary Ellison. Its lamp is lit at dusk by the keeper.",
    ),
    (
        "Bakery",
        "The bakery in Mill Street opens at six. Rye bread costs 4 euros, and the walnut loaf is sold on Fridays only.",
    ),
    (
        "River ferry",
        "The ferry crosses the river every twenty minutes. Bicycles travel free of charge; cars pay nine euros.",
    ),
    (
        "Observatory",
        "The observatory stands on Mount Arvel at 2,310 metres. Its main telescope has a mirror of three metres.",
    ),
    ("Library", "Members of the library borrow eight books for four weeks. Late books cost twenty cents a day."),
)
_PROBES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("Who built the lighthouse on Gull Rock?", (0, 1, 2)),
    ("How much does rye bread cost?", (2, 1, 4)),
    ("How often does the ferry cross the river?", (4, 3, 2, 0)),
    ("How high is Mount Arvel?", (3,)),
    ("How many books may a member borrow?", (0, 1, 2, 3, 4)),
    ("When is the walnut loaf sold?", (1, 0)),
    ("Who designed the airport of the capital?", (0, 3, 4)),
    ("What do cars pay on the ferry?", (1, 3, 0, 2, 4)),
)


def probe_messages(prompt: Prompt, count: Callable[[str], int], budget_tokens: int) -> list[tuple[Message, ...]]:
    """The eight conversations, composed as serving composes them."""
    passages = [_passage(number, title, text) for number, (title, text) in enumerate(_TEXTS)]
    return [
        compose_messages(
            prompt, question, [passages[at] for at in shown], count=count, budget_tokens=budget_tokens
        ).messages
        for question, shown in _PROBES
    ]


async def prove_active(engine: Engine, adapter: Adapter, base_model: str | None = None) -> None:
    """Sends the manifest's probe prompts to the adapter, and to ``base_model`` when the engine serves it as well.

    Raises AdapterUnavailableError when the adapter answers like the base (its modules were not matched), or unlike the
    training run (row D4). Without ``base_model`` the base's answers of the training run stand for it.
    """
    probes = _read_probes(adapter.manifest)
    if not probes:
        raise AdapterUnavailableError(
            f"adapter {adapter.served_name} has no probe in its manifest, so nothing proves it active; train it again"
        )
    names = [adapter.served_name, *([base_model] if base_model else [])]
    texts = await asyncio.gather(*(_complete(engine, name, messages) for name in names for messages, _, _ in probes))
    written = texts[: len(probes)]
    plain = texts[len(probes) :] or [base for _, _, base in probes]
    equal = sum(text == trained for text, (_, trained, _) in zip(written, probes, strict=True))
    like_base = sum(text == base for text, base in zip(written, plain, strict=True))
    if like_base == len(probes):
        raise AdapterUnavailableError(
            f"adapter {adapter.served_name} answers exactly like the base: the engine ignores its weights; "
            "check that it was trained on the served base"
        )
    if equal < min(NEEDED, len(probes)):
        raise AdapterUnavailableError(
            f"adapter {adapter.served_name} gave {equal} of {len(probes)} trained probe answers, {NEEDED} are needed; "
            "it runs on another base or its files are not those that were trained"
        )


def _read_probes(manifest: Mapping[str, Any]) -> list[tuple[tuple[Message, ...], str, str]]:
    return [
        (
            tuple(Message(turn["role"], turn["content"]) for turn in item["messages"]),
            item["adapter"],
            item["base"],
        )
        for item in manifest.get("probe", ())
    ]


async def _complete(engine: Engine, model: str, messages: Sequence[Message]) -> str:
    generation = Generation(model=model, messages=tuple(messages), max_tokens=PROBE_TOKENS)
    async for event in engine.stream(generation):
        if isinstance(event, Completion):
            return event.text
    raise AdapterUnavailableError(f"{model} ended a probe without a completion; look at the engine's log")


def _passage(number: int, title: str, text: str) -> Passage:
    return Passage(
        chunk_id=number,
        document_id=f"probe-{number}",
        external_id=f"probe-{number}",
        version=1,
        title=title,
        text=text,
        span=(0, len(text)),
        paragraph=0,
        score=0.0,
    )
