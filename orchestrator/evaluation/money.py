"""What each way to better answers costs: a workload and prices in, bills, totals, break-evens and sensitivities out. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from orchestrator.evaluation.costs import CostSheet, Option, Prices, Range

Layer = Literal["retrieval", "adapter"]
By = Literal["queries_per_day", "changes_per_month"]

DAYS_PER_MONTH = 365.25 / 12
HOURS_PER_MONTH = 24 * DAYS_PER_MONTH
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a system. A change of knowledge is a day on which documents change, however many they are.

    ``prompt_tokens`` are of one query without passages; ``needs_source``: share of answers that must show where they come
    from; ``built``: layers that stand already and are paid for.
    """

    queries_per_day: float
    prompt_tokens: float = 300
    passage_tokens: float = 1200
    completion_tokens: float = 120
    documents: float = 0
    corpus_tokens: float = 0
    changes_per_month: float = 0
    documents_per_change: float = 1
    needs_source: float = 0
    built: tuple[Layer, ...] = ()

    @property
    def queries_per_month(self) -> float:
        """Queries of a month of average length."""
        return self.queries_per_day * DAYS_PER_MONTH

    @property
    def changed_tokens_per_month(self) -> float:
        """Tokens of documents that change in a month, each embedded once."""
        average = self.corpus_tokens / self.documents if self.documents else 0.0
        return self.changes_per_month * min(self.documents_per_change, self.documents) * average


@dataclass(frozen=True, slots=True)
class Line:
    """One part of a bill, in dollars."""

    what: str
    usd: float
    is_monthly: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an option costs over ``months``, in dollars. ``lines``: the bill at the likely figures."""

    option: Option
    months: float
    one_off: Range
    monthly: Range
    total: Range
    per_thousand: Range
    weeks: Range
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Where two options cost the same: values of ``by``, ascending; ``cheaper[i]`` is cheaper below ``at[i]``, the last above."""

    first: Option
    second: Option
    by: By
    at: tuple[float, ...]
    cheaper: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Swing:
    """What one input does to a total (or to a rival's lead) when it goes from its low to its high end, all else likely."""

    name: str
    low: float
    high: float
    usd_at_low: float
    usd_at_high: float

    @property
    def size(self) -> float:
        """How far the result moves."""
        return abs(self.usd_at_high - self.usd_at_low)

    @property
    def flips(self) -> bool:
        """True when the sign changes on the way: of a lead, that the other option becomes the cheaper one."""
        return self.usd_at_low * self.usd_at_high < 0


def layers_of(option: Option, workload: Workload) -> frozenset[Layer]:
    """The layers that an option has. A larger model keeps the retrieval, where there are documents to answer from."""
    found: dict[Option, tuple[Layer, ...]] = {
        "retrieval": ("retrieval",), "adapter": ("adapter",), "both": ("retrieval", "adapter"),
        "larger model": ("retrieval",) if workload.documents else (),
    }  # fmt: skip
    return frozenset(found.get(option, ()))


def bill(option: Option, workload: Workload, prices: Prices) -> tuple[Line, ...]:
    """Every part of what an option costs at one point of the sheet. Parts that are built already cost nothing once more."""
    layers = layers_of(option, workload)
    lines = [*_answering(option, workload, prices)]
    if "retrieval" in layers:
        lines += _retrieval(workload, prices)
    if option in ("adapter", "both"):
        lines += _adapter(workload, prices, keeps_facts=option == "adapter")
    elif option == "full fine-tuning":
        lines += _full(workload, prices)
    else:
        lines += _prompt(option, workload, prices)
    return tuple(line for line in lines if line.usd)


def estimate(option: Option, workload: Workload, sheet: CostSheet, months: float = 12) -> Estimate:
    """One-off, monthly and total cost with ranges: low is every input at its cheap end, high every one at its dear end."""
    points = [_sums(bill(option, workload, prices)) for prices in (sheet.cheap, sheet.likely, sheet.dear)]
    totals = [once + months * month for once, month in points]
    thousands = workload.queries_per_month * months / 1000
    return Estimate(
        option,
        months,
        Range(*(once for once, _ in points)),
        Range(*(month for _, month in points)),
        Range(*totals),
        Range(*(total / thousands if thousands else 0.0 for total in totals)),
        Range(*(_weeks(option, workload, prices) for prices in (sheet.low, sheet.likely, sheet.high))),
        bill(option, workload, sheet.likely),
    )


def total_usd(option: Option, workload: Workload, prices: Prices, months: float) -> float:
    """One-off cost and ``months`` of running cost."""
    once, month = _sums(bill(option, workload, prices))
    return once + months * month


def _sums(lines: tuple[Line, ...]) -> tuple[float, float]:
    return (
        math.fsum(line.usd for line in lines if not line.is_monthly),
        math.fsum(line.usd for line in lines if line.is_monthly),
    )


def _answering(option: Option, workload: Workload, prices: Prices) -> list[Line]:
    """Tokens of a hosted model, or GPUs of one's own for what is trained. A trained model needs no examples in its prompt."""
    if option in ("adapter", "both", "full fine-tuning"):
        usd = gpus(option, workload, prices) * HOURS_PER_MONTH * prices.gpu_hour_usd
        return [Line("GPUs", usd, True)]
    prompt = workload.prompt_tokens + prices.few_shot_tokens
    if "retrieval" in layers_of(option, workload):
        prompt += workload.passage_tokens
    if option == "long context":  # the same corpus stands first in every prompt
        prompt += workload.corpus_tokens * prices.cached_prompt_share_of_price
    is_large = option == "larger model"
    asked = prices.large_prompt_usd_per_million_tokens if is_large else prices.hosted_prompt_usd_per_million_tokens
    said = (
        prices.large_completion_usd_per_million_tokens if is_large else prices.hosted_completion_usd_per_million_tokens
    )
    per_query = (prompt * asked + workload.completion_tokens * said) / MILLION
    return [Line("tokens of the hosted model", workload.queries_per_month * per_query, True)]


def gpus(option: Option, workload: Workload, prices: Prices) -> float:
    """GPUs that answer the workload: what its tokens take at the use that is reached, and no fewer than it takes to serve."""
    load = workload.queries_per_day * _gpus_per_query(option, workload, prices)
    return max(load, prices.full_gpus_at_least if option == "full fine-tuning" else prices.gpus_at_least)


def _gpus_per_query(option: Option, workload: Workload, prices: Prices) -> float:
    prompt = workload.prompt_tokens + (workload.passage_tokens if option == "both" else 0)
    seconds = (
        prompt / prices.gpu_prompt_tokens_per_second
        + workload.completion_tokens / prices.gpu_completion_tokens_per_second
    )
    times = prices.full_gpu_times if option == "full fine-tuning" else 1.0
    return seconds * times / (86_400 * prices.gpu_use_share)


def _retrieval(workload: Workload, prices: Prices) -> list[Line]:
    embed = prices.embedding_usd_per_million_tokens / MILLION
    lines = [
        Line("upkeep of retrieval", prices.retrieval_upkeep_hours_per_month * prices.engineer_hour_usd, True),
        Line("database", prices.database_usd_per_month, True),
        Line("embedding of what changes", workload.changed_tokens_per_month * embed, True),
    ]
    if "retrieval" not in workload.built:
        lines.append(Line("building retrieval", prices.retrieval_build_usd))
        lines.append(Line("embedding of the corpus", workload.corpus_tokens * embed))
    return lines


def _adapter(workload: Workload, prices: Prices, *, keeps_facts: bool) -> list[Line]:
    run = prices.lora_run_usd + prices.retraining_hours * prices.engineer_hour_usd
    lines = [
        Line("upkeep of the adapter", prices.adapter_upkeep_hours_per_month * prices.engineer_hour_usd, True),
        Line("training again for form", prices.retrainings_per_month * run, True),
    ]
    if keeps_facts:
        lines.append(Line("training again for each change of knowledge", workload.changes_per_month * run, True))
    if "adapter" not in workload.built:
        lines.append(Line("training examples", prices.training_examples_hours * prices.engineer_hour_usd))
        lines.append(Line("training runs", prices.lora_runs_to_production * prices.lora_run_usd))
    return lines


def _full(workload: Workload, prices: Prices) -> list[Line]:
    labour = prices.retraining_hours * prices.engineer_hour_usd
    return [
        Line("training examples", prices.training_examples_hours * prices.engineer_hour_usd),
        Line("training run", prices.full_run_usd),
        Line("training runs for each change of knowledge", workload.changes_per_month * prices.full_run_usd, True),
        Line("labour of these runs", workload.changes_per_month * labour, True),
        Line("upkeep of the model", prices.adapter_upkeep_hours_per_month * prices.engineer_hour_usd, True),
    ]


def _prompt(option: Option, workload: Workload, prices: Prices) -> list[Line]:
    lines = [Line("upkeep of the prompt", prices.prompt_upkeep_hours_per_month * prices.engineer_hour_usd, True)]
    if not workload.built:
        lines.append(Line("writing the prompt", prices.prompt_build_hours * prices.engineer_hour_usd))
    if option == "prompt only" and workload.documents:  # facts stand in the prompt, or nowhere
        usd = workload.changes_per_month * prices.change_by_hand_hours * prices.engineer_hour_usd
        lines.append(Line("changes by hand", usd, True))
    return lines


def _weeks(option: Option, workload: Workload, prices: Prices) -> float:
    if option == "full fine-tuning":
        return prices.full_weeks
    missing = layers_of(option, workload) - set(workload.built)
    weeks = {"retrieval": prices.retrieval_weeks, "adapter": prices.adapter_weeks}
    return math.fsum(weeks[layer] for layer in missing) or prices.prompt_weeks


def break_even(
    first: Option, second: Option, workload: Workload, prices: Prices, months: float, by: By = "queries_per_day"
) -> BreakEven:
    """Where the two cost the same as ``by`` grows from 0, in closed form: totals are straight lines between few corners."""

    def lead(value: float) -> float:
        moved = replace(workload, **{by: value})  # type: ignore[arg-type]
        return total_usd(second, moved, prices, months) - total_usd(first, moved, prices, months)

    # The corners: loads at which the least number of GPUs is full. Behind the last one the lead is straight for ever.
    corners = {0.0}
    if by == "queries_per_day":
        for option in (first, second):
            if option in ("adapter", "both", "full fine-tuning"):
                idle = gpus(option, replace(workload, queries_per_day=0), prices)
                per_query = _gpus_per_query(option, workload, prices)
                corners |= {idle / per_query} if per_query else set()
    at: list[float] = []
    knots = sorted(corners)
    for start, end in zip(knots, [*knots[1:], math.inf], strict=True):
        crossing = _crossing(lead, start, end)
        if crossing is not None:
            at.append(crossing)
    probes = [a + (b - a) / 2 for a, b in zip([0.0, *at], at, strict=False)] + [at[-1] * 2 + 1 if at else 1.0]
    return BreakEven(first, second, by, tuple(at), tuple(first if lead(probe) >= 0 else second for probe in probes))


def _crossing(lead: Callable[[float], float], start: float, end: float) -> float | None:
    """Where a straight line is zero between two corners; None when it is not."""
    stop = end if math.isfinite(end) else start + max(start, 1000.0)
    left, right = lead(start), lead(stop)
    if math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-6):  # a slope made of rounding alone would cross far away
        return None
    found = start - left * (stop - start) / (right - left)
    return found if start < found <= end else None


def sensitivity(
    option: Option,
    workload: Workload,
    sheet: CostSheet,
    months: float,
    *,
    rival: Option | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> tuple[Swing, ...]:
    """What each input does alone, the one that matters most first; ``ranges`` are of the workload's inputs.

    With a rival the result is how much cheaper than the rival the option is, without one its total.
    """

    def result(work: Workload, prices: Prices) -> float:
        own = total_usd(option, work, prices, months)
        return own if rival is None else total_usd(rival, work, prices, months) - own

    swings = []
    for name in (field.name for field in fields(Prices)):
        ends = sheet.range(name)
        at = [result(workload, replace(sheet.likely, **{name: end})) for end in (ends.low, ends.high)]
        swings.append(Swing(name, ends.low, ends.high, *at))
    for name, ends in (ranges or {}).items():
        at = [
            result(replace(workload, **{name: end}), sheet.likely)  # type: ignore[arg-type]
            for end in (ends.low, ends.high)
        ]
        swings.append(Swing(name, ends.low, ends.high, *at))
    # Twice the GPU's price and half its speed are the same swing: which stands first is not left to the last bit.
    return tuple(
        sorted(
            (swing for swing in swings if swing.size > 0), key=lambda swing: (-float(f"{swing.size:.9g}"), swing.name)
        )
    )
