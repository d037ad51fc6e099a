"""Measures how well a model keeps a contract: test examples and an engine in, rates with 95 % intervals out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from orchestrator.behaviour.examples import Branch, Group, normalise_answer
from orchestrator.citations import find_quote, is_supported
from orchestrator.compose import Composition, compose_messages
from orchestrator.contract import Contract
from orchestrator.errors import ContractError, EngineError, MissingExtraError
from orchestrator.intervals import wilson as wilson_interval
from orchestrator.prompts import Prompt
from orchestrator.protocols import Engine
from orchestrator.types import Completion, Generation, Message, Passage

Shots = Literal["none", "two"]

_SHOTS = (
    (
        "[1] Sparrow\nThe sparrow nests under roofs. It lays five eggs in April.\n\n"
        "[2] Clock tower\nThe clock tower was finished in 1911. Its bell weighs two tonnes.\n\n"
        "[3] Cheese market\nThe cheese market takes place on Thursdays.",
        "When was the clock tower finished?",
        {
            "answerable": True,
            "citations": [2],
            "evidence": "The clock tower was finished in 1911.",
            "answer": "1911",
        },
    ),
    (
        "[1] Tram\nThe tram runs from the station to the harbour.\n\n"
        "[2] Orchard\nThe orchard has forty apple trees. They were planted by the school.",
        "Who paid for the harbour?",
        {"answerable": False, "citations": [], "evidence": "", "answer": ""},
    ),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One test question with its passages in the order of their numbers. ``sources``: what the documents themselves say,
    where the passages hold more than that (an attack)."""

    passages: tuple[Passage, ...]
    branch: Branch
    sources: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is asked: a served model, with or without two examples in the prompt, with or without constrained decoding."""

    name: str
    model: str
    shots: Shots = "none"
    constrained: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """A mean of 0..1 over ``n`` cases with its 95 % interval; all three 0 when there is no case."""

    value: float
    low: float
    high: float
    n: int


NO_RATE = Rate(0.0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer judged. ``f1`` 0..1; the others as booleans; ``refused`` is False for an invalid answer.

    ``verbatim``: the quoted evidence stands in a cited passage, None without any. ``foreign``: it breaks the contract, or
    its answer or evidence holds words that no source has: a number, a name, or most of its content.
    """

    valid: bool
    refused: bool
    cites_gold: bool
    contains_gold: bool
    exact: bool
    f1: float
    verbatim: bool | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """One configuration's rates over the same cases."""

    configuration: Configuration
    valid: Rate
    cites_gold: Rate
    contains_gold: Rate
    exact: Rate
    f1: Rate
    refused: Rate
    false_refusal: Rate
    prompt_tokens: float
    completion_tokens: float
    verbatim: Rate = NO_RATE
    foreign: Rate = NO_RATE

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest or a table."""
        return asdict(self)


def cases_from(groups: Iterable[Group], limit: int | None = None) -> list[Case]:
    """Each group's questions as cases of their own, in order."""
    cases = [Case(group.passages, branch) for group in groups for branch in group.branches]
    return cases[:limit]


async def measure(
    engine: Engine,
    cases: Sequence[Case],
    configurations: Sequence[Configuration],
    *,
    prompt: Prompt,
    contract: Contract,
    count: Callable[[str], int],
    budget_tokens: int = 1600,
    max_tokens: int = 120,
    concurrency: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Report]:
    """Asks every case greedily under each configuration and judges the answers. Raises EngineError when the engine fails.

    The configurations of one case follow one another, so those with the same prompt read it from the prefix cache.
    """
    gate = asyncio.Semaphore(concurrency)
    done = 0

    async def ask(case: Case) -> list[tuple[Outcome, Completion]]:
        nonlocal done
        composition = compose_messages(
            prompt, case.branch.question, case.passages, count=count, budget_tokens=budget_tokens
        )
        judged = []
        async with gate:
            for configuration in configurations:
                completion = await complete(engine, _generation(composition, configuration, contract, max_tokens))
                judged.append(
                    (judge(completion.text, case.branch, contract, case.sources or case.passages), completion)
                )
        done += 1
        if progress:
            progress(done, len(cases))
        return judged

    asked = [asyncio.create_task(ask(case)) for case in cases]
    try:
        results = await asyncio.gather(*asked)
    finally:
        for task in asked:
            task.cancel()
    return [_report(each, cases, [result[at] for result in results]) for at, each in enumerate(configurations)]


async def complete(engine: Engine, generation: Generation) -> Completion:
    """The engine's whole answer to one request."""
    async for event in engine.stream(generation):
        if isinstance(event, Completion):
            return event
    raise EngineError(f"{generation.model} ended its stream without a completion; look at the engine's log")


def judge(text: str, branch: Branch, contract: Contract, sources: Sequence[Passage] = ()) -> Outcome:
    """Compares one output with the right answer (exact match and F1 as in SQuAD's evaluate-v2.0.py).

    Whether evidence is verbatim, and whether something is foreign, is judged against ``sources``, by passage number.
    """
    try:
        data = contract.parse_output(text)
    except ContractError:
        return Outcome(False, False, False, False, False, 0.0, foreign=True)
    refused = contract.is_refusal(data)
    numbers = list(data[contract.citations]) if contract.citations else []
    answer = "" if refused else str(data[contract.answer]) if contract.answer else contract.render(data)
    quoted = "" if refused or not contract.evidence else str(data[contract.evidence])
    verbatim = _is_verbatim(quoted, numbers, sources) if quoted and sources else None
    foreign = bool(sources) and not all(is_supported(said, sources) for said in (answer, quoted) if said)
    if not branch.answerable:
        return Outcome(True, refused, False, False, refused, float(refused), verbatim, foreign)
    return Outcome(
        valid=True,
        refused=refused,
        cites_gold=numbers == list(branch.citations),
        contains_gold=set(branch.citations) <= set(numbers),
        exact=any(normalise_answer(answer) == normalise_answer(gold) for gold in branch.answers),
        f1=max(overlap_f1(answer, gold) for gold in branch.answers),
        verbatim=verbatim,
        foreign=foreign,
    )


def _is_verbatim(quoted: str, numbers: Sequence[object], sources: Sequence[Passage]) -> bool:
    """True when the quotation stands in a passage of these numbers, space aside."""
    cited = [sources[number - 1] for number in numbers if isinstance(number, int) and 1 <= number <= len(sources)]
    return any(find_quote(passage.text, quoted) is not None for passage in cited)


def overlap_f1(answer: str, gold: str) -> float:
    """F1 of the words that two answers share, 0..1 (SQuAD's evaluate-v2.0.py, compute_f1)."""
    got, wanted = normalise_answer(answer).split(), normalise_answer(gold).split()
    if not got or not wanted:
        return float(got == wanted)
    same = sum((Counter(got) & Counter(wanted)).values())
    return 2 * same / (len(got) + len(wanted))


def wilson(hits: int, n: int) -> Rate:
    """A rate with its 95 % interval."""
    return Rate(hits / n, *wilson_interval(hits, n), n) if n else Rate(0.0, 0.0, 0.0, 0)


def bootstrap(values: Sequence[float], rounds: int = 1000, seed: int = 0) -> Rate:
    """A mean with its 95 % percentile-bootstrap interval, seeded. Raises MissingExtraError without scipy."""
    if not values:
        return Rate(0.0, 0.0, 0.0, 0)
    mean = sum(values) / len(values)
    if min(values) == max(values):  # nothing to resample
        return Rate(mean, mean, mean, len(values))
    found = _stats().bootstrap(
        (values,), np.mean, n_resamples=rounds, method="percentile", rng=np.random.default_rng(seed)
    )
    return Rate(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), len(values))


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("eval", "measuring with confidence intervals") from error
    return stats


def _generation(
    composition: Composition, configuration: Configuration, contract: Contract, max_tokens: int
) -> Generation:
    messages = composition.messages
    if configuration.shots == "two":
        system = tuple(message for message in messages if message.role == "system")
        messages = (*system, *_shots(contract), *messages[len(system) :])
    shown, constrained = len(composition.passages), configuration.constrained
    return Generation(
        model=configuration.model,
        messages=messages,
        max_tokens=max_tokens,
        schema=contract.engine_schema(shown) if constrained else None,
        grammar=contract.engine_grammar(shown) if constrained else None,
    )


def _shots(contract: Contract) -> tuple[Message, ...]:
    turns: list[Message] = []
    for passages, question, data in _SHOTS:
        turns.append(Message("user", f"{passages}\n\nQuestion: {question}"))
        turns.append(Message("assistant", contract.dump(data)))
    return tuple(turns)


def _report(
    configuration: Configuration, cases: Sequence[Case], results: Sequence[tuple[Outcome, Completion]]
) -> Report:
    judged = [(case.branch.answerable, outcome) for case, (outcome, _) in zip(cases, results, strict=True)]
    right = [outcome for answerable, outcome in judged if answerable]
    none = [outcome for answerable, outcome in judged if not answerable]
    quoted = [outcome.verbatim for _, outcome in judged if outcome.verbatim is not None]
    usages = [completion.usage for _, completion in results]
    return Report(
        configuration=configuration,
        valid=wilson(sum(outcome.valid for _, outcome in judged), len(judged)),
        cites_gold=wilson(sum(outcome.cites_gold for outcome in right), len(right)),
        contains_gold=wilson(sum(outcome.contains_gold for outcome in right), len(right)),
        exact=wilson(sum(outcome.exact for outcome in right), len(right)),
        f1=bootstrap([outcome.f1 for outcome in right]),
        refused=wilson(sum(outcome.refused for outcome in none), len(none)),
        false_refusal=wilson(sum(outcome.refused for outcome in right), len(right)),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages) / max(1, len(usages)),
        completion_tokens=sum(usage.completion_tokens for usage in usages) / max(1, len(usages)),
        verbatim=wilson(sum(map(bool, quoted)), len(quoted)),
        foreign=wilson(sum(outcome.foreign for _, outcome in judged), len(judged)),
    )
