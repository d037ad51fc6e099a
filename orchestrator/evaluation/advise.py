"""Says what to do next and what it brings and costs: evidence, a diagnosis and a cost sheet in, a verdict with its numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

from orchestrator.evaluation import causes
from orchestrator.evaluation.causes import LAYER_OF, Diagnosis
from orchestrator.evaluation.costs import OPTIONS, CostSheet, Option, Range
from orchestrator.evaluation.evidence import MIN_SHARE, Evidence, Known, Source
from orchestrator.evaluation.metrics import Z95, Interval, wilson
from orchestrator.evaluation.money import (
    BreakEven,
    By,
    Estimate,
    Swing,
    Workload,
    break_even,
    estimate,
    layers_of,
    sensitivity,
)  # fmt: skip

Finding = Literal["yes", "no", "unknown"]
Remedy = Literal["retrieval", "behaviour", "model", "router", "label"]

SAME = 0.05  # accuracies closer than this do not decide; money does
WORTH = 0.02  # a gain that cannot be larger than this is no reason to do anything
ENOUGH = math.ceil((Z95 / 2 / SAME) ** 2)  # questions after which any share is known within 5 points
SWINGS = 3
# What a layer's failures are mended by. Documents that are missing or stale are mended where retrieval is kept.
REMEDY_OF: Mapping[causes.Layer, Remedy] = {
    "knowledge": "retrieval", "retrieval": "retrieval", "behaviour": "behaviour", "router": "router",
    "model": "model", "label": "label",
}  # fmt: skip
MENDED: Mapping[Option, tuple[Remedy, ...]] = {
    "prompt only": (), "retrieval": ("retrieval",), "adapter": ("behaviour",), "both": ("retrieval", "behaviour"),
    "larger model": ("model",), "long context": ("retrieval",), "full fine-tuning": ("behaviour",),
}  # fmt: skip
REMEDIES: tuple[Remedy, ...] = ("retrieval", "behaviour", "model", "router")
GIVE: Mapping[str, str] = {
    "queries_per_day": "--queries-per-day N", "changes_per_month": "--changes-per-month N", "needs_source": "--needs-source yes",
}  # fmt: skip
NAMED: Mapping[str, str] = {
    "queries_per_day": "how many questions come in a day", "changes_per_month": "how often the documents change",
    "needs_source": "whether an answer must show its source",
}  # fmt: skip
DOES: Mapping[Remedy, str] = {
    "retrieval": "mending retrieval",
    "behaviour": "an adapter",
    "model": "a larger model",
    "router": "a better router",
    "label": "mending the set",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One of the two questions that decide, answered by measurement where there is one."""

    question: str
    answer: Finding
    known: Known


@dataclass(frozen=True, slots=True)
class Share:
    """One remedy: the share of failed questions that need it, and the accuracy it can win alone at the most."""

    remedy: Remedy
    n: int
    share: Interval
    gain: Interval


@dataclass(frozen=True, slots=True)
class Choice:
    """One option. ``accuracy``: with a diagnosis its ceiling, else the sheet's assumption; ``excluded``: why it cannot be."""

    option: Option
    accuracy: Range
    source: Source
    estimate: Estimate
    excluded: str = ""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is not settled: ``option`` costs more than ``rival``; ``lead``: how much more accurate it can be."""

    option: Option
    rival: Option
    lead: Interval
    more_questions: int


@dataclass(frozen=True, slots=True)
class Gap:
    """What has to be known before anything is advised: inputs that nobody measured or gave, and questions with known answers.

    ``turns``: what would be advised at the ends of what is assumed, where these differ.
    """

    missing: tuple[str, ...]
    more_questions: int
    turns: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do. ``rival``: the next cheapest that is as good, or the next best; ``today``: accuracy as it was diagnosed.

    ``gap``: evidence that is too thin for the verdict to be more than a list of what to find out first.
    """

    verdict: str
    option: Option
    rival: Option | None
    questions: tuple[Question, ...]
    shares: tuple[Share, ...]
    choices: tuple[Choice, ...]
    break_evens: tuple[BreakEven, ...]
    swings: tuple[Swing, ...]
    commands: tuple[str, ...]
    known: tuple[Known, ...]
    workload: Workload
    months: float
    today: Interval | None = None
    doubt: Doubt | None = None
    gap: Gap | None = None

    def choice(self, option: Option) -> Choice:
        """The row of one option."""
        return next(choice for choice in self.choices if choice.option == option)


def advise(evidence: Evidence, sheet: CostSheet, diagnosis: Diagnosis | None = None, months: float = 12) -> Advice:
    """The cheapest option that is as accurate as the best one (within 5 points) and is not ruled out.

    Accuracies are ceilings: what an option can reach if it mends every failure that experiments laid at its door.
    """
    work = _standing(evidence, diagnosis)
    choices = tuple(_choice(option, work, sheet, diagnosis, months) for option in OPTIONS)
    option, rival = choose(choices)
    shares = _shares(diagnosis) if diagnosis else ()
    unsettled = doubt(choices, option, diagnosis) if diagnosis else None
    crossings = _crossings(option, rival, contenders(choices), work, sheet, months)
    swings = sensitivity(option, work, sheet, months, rival=rival, ranges=evidence.ranges)[:SWINGS]
    found = Advice(
        "", option, rival, _questions(evidence), shares, choices, crossings, swings, (), evidence.known, work, months,
        _today(diagnosis), unsettled, _gap(evidence, work, sheet, diagnosis, months),
    )  # fmt: skip
    found = replace(found, commands=_commands(found, diagnosis))
    return replace(found, verdict=_verdict(found, evidence))


def contenders(choices: tuple[Choice, ...]) -> list[Choice]:
    """What may be chosen and is as accurate as the best of it, the cheapest first. Where some were measured, only these."""
    allowed = [each for each in choices if not each.excluded]
    possible = [each for each in allowed if each.source == "measured"] or allowed
    best = max(each.accuracy.likely for each in possible)
    good = [each for each in possible if each.accuracy.likely >= best - SAME - 1e-9]
    return sorted(good, key=lambda each: (each.estimate.total.likely, -each.accuracy.likely))


def _crossings(
    option: Option, rival: Option | None, good: list[Choice], work: Workload, sheet: CostSheet, months: float
) -> tuple[BreakEven, ...]:
    """Where the rival costs the same, and where any other that is as good does: there the verdict turns."""
    # Without documents there is no knowledge that changes.
    pairs: tuple[By, ...] = ("queries_per_day", "changes_per_month") if work.documents else ("queries_per_day",)
    others = dict.fromkeys([rival, *(each.option for each in good)])
    found = [
        break_even(option, other, work, sheet.likely, months, by)
        for other in others
        for by in pairs
        if other is not None and other != option
    ]
    return tuple(each for each in found if each.second == rival or each.at)


def _standing(evidence: Evidence, diagnosis: Diagnosis | None) -> Workload:
    """The workload. A system that was diagnosed stands, though no answer tells of its layers: it answers from its documents."""
    work = evidence.workload
    is_unknown = diagnosis is not None and not evidence.is_seen and not work.built
    return replace(work, built=("retrieval",)) if is_unknown and work.documents else work


def _gap(
    evidence: Evidence, work: Workload, sheet: CostSheet, diagnosis: Diagnosis | None, months: float
) -> Gap | None:
    """What is missing. Without a diagnosis any input is; with one, those on which the choice turns within what is assumed."""
    names = tuple(each.name for each in evidence.missing)
    if diagnosis is None:
        return Gap(names, ENOUGH) if names or work.built else None

    def chosen(ends: tuple[float, ...]) -> Option:
        moved = replace(work, **dict(zip(names, ends, strict=True)))  # type: ignore[arg-type]
        return choose(tuple(_choice(option, moved, sheet, diagnosis, months) for option in OPTIONS))[0]

    spans = ((each.range.low, each.range.likely, each.range.high) for each in evidence.missing)
    turns = {chosen(ends) for ends in product(*spans)}
    if len(turns) > 1:
        return Gap(names, 0, tuple(option for option in OPTIONS if option in turns))
    best = max((_gain(diagnosis, {remedy}) for remedy in REMEDIES), key=lambda each: each.value)
    more = _more_questions(best) if best.value < WORTH else 0
    return Gap((), more) if more else None


def _more_questions(gain: Interval) -> int:
    """How many more questions show, at the same share, that no more than 5 points can be won."""
    n = gain.n
    while wilson(gain.value * n, n).high > SAME:
        n += 1 + n // 50
    return n - gain.n


def choose(choices: tuple[Choice, ...]) -> tuple[Option, Option | None]:
    """The cheapest of those that are as accurate as the best, and what it is to be compared with: the next of them, else
    the next best."""
    good = contenders(choices)
    if len(good) > 1:
        return good[0].option, good[1].option
    allowed = [each for each in choices if not each.excluded and each.option != good[0].option]
    others = [each for each in allowed if each.source == good[0].source]
    next_best = max(others, key=lambda each: each.accuracy.likely, default=None)
    return good[0].option, next_best.option if next_best else None


def _choice(option: Option, work: Workload, sheet: CostSheet, diagnosis: Diagnosis | None, months: float) -> Choice:
    accuracy = _ceiling(option, work, diagnosis) if diagnosis else None
    assumed = sheet.accuracy_documents if work.documents else sheet.accuracy_task
    return Choice(
        option,
        accuracy or assumed[option],
        "measured" if accuracy else "assumed",
        estimate(option, work, sheet, months),
        _excluded(option, work, sheet),
    )


def _excluded(option: Option, work: Workload, sheet: CostSheet) -> str:
    """Why an option cannot be, whatever it costs."""
    if option == "full fine-tuning":
        prices = sheet.likely
        return f"for comparison: ${prices.full_run_usd:,.0f} a run, where a LoRA run costs ${prices.lora_run_usd:,.0f}"
    if option in ("retrieval", "both", "long context") and not work.documents:
        return "answers rest on no document"
    if option == "long context" and work.corpus_tokens > sheet.likely.long_context_tokens:
        return f"the documents have {work.corpus_tokens:,.0f} tokens, {sheet.likely.long_context_tokens:,.0f} fit"
    shows_source = "retrieval" in layers_of(option, work) or option == "long context"
    if work.documents and work.needs_source >= MIN_SHARE and not shows_source:
        return "cannot show where an answer came from"
    return ""


def _ceiling(option: Option, work: Workload, diagnosis: Diagnosis) -> Range | None:
    """Accuracy when all that the option can mend is mended; None for what leaves a layer out that was measured with it."""
    served, own = set(work.built), layers_of(option, work)
    keeps = own >= served or option == "larger model" or (option == "long context" and served == {"retrieval"})
    if option == "full fine-tuning" or not keeps:
        return None
    gain = _gain(diagnosis, {*MENDED[option]})
    reached = wilson(min(1.0, diagnosis.accuracy.value + gain.value) * diagnosis.n, diagnosis.n)
    return Range(reached.low, reached.value, reached.high)


def _gain(diagnosis: Diagnosis, remedies: set[Remedy]) -> Interval:
    """What these remedies win together: the questions that need no other. A share of questions, as nobody loses by them."""
    needs = [{REMEDY_OF[LAYER_OF[cause]] for cause in each} for each in diagnosis.causes.values() if each]
    if needs:
        return wilson(sum(each <= remedies for each in needs), diagnosis.n)
    won = math.fsum(bar.gain.value for bar in diagnosis.bars if REMEDY_OF[bar.layer] in remedies)
    return wilson(min(1.0, won) * diagnosis.n, diagnosis.n)


def _today(diagnosis: Diagnosis | None) -> Interval | None:
    """The accuracy that was diagnosed."""
    if diagnosis is None:
        return None
    found = diagnosis.accuracy
    return Interval(found.value, found.low, found.high, diagnosis.n)


def _shares(diagnosis: Diagnosis) -> tuple[Share, ...]:
    failed = {item for bar in diagnosis.bars for item in bar.items}
    shares = []
    for remedy in get_args(Remedy):
        items = {item for bar in diagnosis.bars if REMEDY_OF[bar.layer] == remedy for item in bar.items}
        if items:
            shares.append(Share(remedy, len(items), wilson(len(items), len(failed)), _gain(diagnosis, {remedy})))
    return tuple(sorted(shares, key=lambda each: (-each.n, each.remedy)))


def doubt(choices: tuple[Choice, ...], option: Option, diagnosis: Diagnosis) -> Doubt | None:
    """What the questions asked do not settle: whether a lead in accuracy is more than the 5 points that money may outweigh.

    None when all is settled. Of several doubts, the one that takes the most questions.
    """
    measured = [each for each in choices if not each.excluded and each.source == "measured"]
    chosen = next((each for each in measured if each.option == option), None)
    if chosen is None:
        return None
    doubts = []
    for other in measured:
        dear, cheap = sorted((chosen, other), key=lambda each: -each.estimate.total.likely)
        lead = _lead(diagnosis, MENDED[dear.option], MENDED[cheap.option])
        if other is not chosen and lead.low < SAME < lead.high:
            missing = diagnosis.n * (_half(lead) / max(abs(lead.value - SAME), WORTH / 2)) ** 2 - diagnosis.n
            doubts.append(Doubt(dear.option, cheap.option, lead, max(1, math.ceil(missing))))
    return max(doubts, key=lambda each: each.more_questions, default=None)


def _lead(diagnosis: Diagnosis, ours: tuple[Remedy, ...], theirs: tuple[Remedy, ...]) -> Interval:
    """Paired difference of two ceilings with its 95 % interval (Bonett & Price 2012: holds for few questions too)."""
    needs = [{REMEDY_OF[LAYER_OF[cause]] for cause in each} for each in diagnosis.causes.values() if each]
    won = sum(each <= {*ours} and not each <= {*theirs} for each in needs)
    lost = sum(each <= {*theirs} and not each <= {*ours} for each in needs)
    n = diagnosis.n + 2
    more, less = (won + 1) / n, (lost + 1) / n
    half = Z95 * math.sqrt((more + less - (more - less) ** 2) / n)
    return Interval((won - lost) / diagnosis.n, more - less - half, more - less + half, diagnosis.n)


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def _questions(evidence: Evidence) -> tuple[Question, ...]:
    changes, source = evidence.of("changes_per_month"), evidence.of("needs_source")
    is_short = (
        changes.source == "measured" and not changes.range.likely and changes.range.high > 0.3
    )  # under a year of silence
    changing: Finding = (
        "unknown" if changes.source == "assumed" or is_short else "yes" if changes.range.likely > 0 else "no"
    )
    showing: Finding = "unknown" if source.source == "assumed" else "yes" if source.range.likely >= MIN_SHARE else "no"
    return (
        Question("Do the documents change?", changing, changes),
        Question("Must an answer show where it came from?", showing, source),
    )


def _commands(found: Advice, diagnosis: Diagnosis | None) -> tuple[str, ...]:
    """What to type next: the commands of the bars, the largest gain first, or those that lead to a diagnosis."""
    missing = found.gap.missing if found.gap else ()
    told = "".join(f" {GIVE[name]}" for name in missing)
    if diagnosis is None:
        return (
            "orchestrator eval init SET --from URL --model MODEL",
            "orchestrator diagnose SET --write diagnosis.json",
            f"orchestrator advise --diagnosis diagnosis.json{told}",
        )
    again = f"orchestrator diagnose {diagnosis.set} --write diagnosis.json"
    if missing:
        return f"orchestrator advise --diagnosis FILE{told}", again
    allowed = {*MENDED[found.option], "router", "label"}
    bars = sorted(diagnosis.bars, key=lambda bar: (-bar.gain.value, -bar.n))
    commands = [bar.command for bar in bars if REMEDY_OF[bar.layer] in allowed and bar.command]
    return tuple(dict.fromkeys([*commands, again]))


def _verdict(found: Advice, evidence: Evidence) -> str:
    """The sentence that is said first."""
    today, shares = found.today, found.shares
    if today is None:
        said = f"{_headline(found.option, found.workload)}: {_because(found, evidence)}"
        return f"{_thin(found.gap, found.workload)} On assumptions alone: {said}" if found.gap else said
    label = next((each for each in shares if each.remedy == "label"), None)
    if label and label.share.value > 0.5:
        return (
            f"Mend the set first: {label.share.value:.0%} of the failures are questions or labels that no change mends."
        )
    gains = sorted((each for each in shares if each.remedy != "label"), key=lambda each: -each.gain.value)
    if found.gap:
        return _thin(found.gap, found.workload) if found.gap.turns else _too_few(found.gap, today, gains)
    if found.doubt:
        return _undecided(found.doubt, gains, found.workload)
    if not gains or gains[0].gain.value < WORTH:
        most = (
            f"no single change can win more than {gains[0].gain.high * 100:.0f} points" if gains else "nothing failed"
        )
        return f"Leave it as it is: {_percent(today)} of {today.n:,} questions are right, and {most}."
    if gains[0].remedy == "router":
        lead, headline = gains[0], "Fit the router first"
    else:
        lead = next((each for each in gains if each.remedy in MENDED[found.option]), gains[0])
        headline = _headline(found.option, found.workload)
    return f"{headline}: {lead.share.value:.0%} of the failures are {_named(lead.remedy)}; {_worths(gains)}."


def _too_few(gap: Gap, today: Interval, gains: list[Share]) -> str:
    """Hardly anything failed, and hardly anything was asked."""
    most = gains[0].gain.high if gains else wilson(0, today.n).high
    return (
        f"Evidence is too thin to leave it: {_percent(today)} of {today.n:,} questions are right, and still up to "
        f"{most * 100:.0f} points may be won; about {gap.more_questions:,} more questions settle it."
    )


def _thin(gap: Gap, work: Workload) -> str:
    """What has to be found out first."""
    missing = [f"{NAMED[name]} ({GIVE[name]})" for name in gap.missing]
    unknown = f"nobody has measured or said {_listed(missing)}" if missing else ""
    if gap.turns:
        options = " or ".join(_article(option) for option in gap.turns)
        return f"Evidence is too thin to advise: {unknown}, and on that it turns whether {options} is the choice."
    judged = (
        f"no answer of the system that runs was judged: ask it about {gap.more_questions:,} questions with known answers"
        if work.built
        else f"no answer was judged: {gap.more_questions:,} questions with known answers would tell"
    )
    return f"Evidence is too thin to advise: {'; '.join(part for part in (unknown, judged) if part)}."


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _undecided(unsettled: Doubt, gains: list[Share], work: Workload) -> str:
    trains = "adapter" in layers_of(unsettled.option, work) and "adapter" not in work.built
    headline = "Do not train on this evidence" if trains else "Too early to choose"
    said = (
        f"{headline}: after {unsettled.lead.n:,} questions {_article(unsettled.option)} can win {_points(unsettled.lead)} over "
        f"{_article(unsettled.rival)}, and {SAME * 100:.0f} would be worth it; about {unsettled.more_questions:,} more questions "
        "settle it"
    )
    now = next((each for each in gains if each.remedy == "retrieval" and each.gain.low >= WORTH), None)
    return f"{said}. Mending retrieval need not wait: it is worth at most {_points(now.gain)}." if now else f"{said}."


def _headline(option: Option, work: Workload) -> str:
    if "adapter" in layers_of(option, work) and "adapter" not in work.built:
        is_new = option == "both" and "retrieval" not in work.built
        return "Build retrieval and train an adapter" if is_new else "Train an adapter"
    does = {
        "prompt only": "a prompt is enough",
        "retrieval": "work on retrieval" if "retrieval" in work.built else "build retrieval",
        "adapter": "keep the adapter", "both": "keep both layers",
        "larger model": "use a larger model", "long context": "put the documents into the prompt",
    }  # fmt: skip
    return f"{'Do not train again' if 'adapter' in work.built else 'Do not fine-tune'} yet, {does[option]}"


def _because(found: Advice, evidence: Evidence) -> str:
    """Why, when nothing was diagnosed: the two deciding questions, and money."""
    work, chosen = found.workload, found.choice(found.option)
    bill = chosen.estimate
    cost = f"{bill.months:g} months cost {_usd(bill.total.likely)} ({_usd(bill.total.low)} to {_usd(bill.total.high)})"
    if found.rival:
        cost += f" against {_usd(found.choice(found.rival).estimate.total.likely)} for {_article(found.rival)}"
    cost += f" at {work.queries_per_day:,.0f} questions a day"
    if work.documents and work.changes_per_month and "adapter" not in layers_of(found.option, work):
        cost += f"; full fine-tuning, {_usd(found.choice('full fine-tuning').estimate.total.likely)}"
    reasons = [*_deciding(work, evidence), cost]
    accuracy = (
        f"Accuracy ({chosen.accuracy.low:.0%} to {chosen.accuracy.high:.0%}) is assumed, not measured: before the money is "
        f"spent, try it on {ENOUGH} questions with known answers and run a diagnosis."
    )
    return f"{'; '.join(reasons)}. {accuracy}"


def _deciding(work: Workload, evidence: Evidence) -> list[str]:
    changes, source = evidence.of("changes_per_month"), evidence.of("needs_source")
    if not work.documents:
        return ["no document is known" if changes.source == "assumed" else "answers rest on no document"]
    how = " (assumed)" if changes.source == "assumed" else ""
    rate = f"change {_rate(work.changes_per_month)}" if work.changes_per_month else "do not change"
    share = "answers" if source.source == "given" else f"{work.needs_source:.0%} of the answers"
    shows = f"{share} must show a source" if work.needs_source >= MIN_SHARE else "no source has to be shown"
    return [f"the documents {rate}{how}", f"{shows}{' (assumed)' if source.source == 'assumed' else ''}"]


def _worths(gains: list[Share]) -> str:
    said = [f"{DOES[each.remedy]} is worth at most {_points(each.gain)}" for each in gains[:2]]
    if len(gains) == 1 and gains[0].remedy != "behaviour":
        said.append("an adapter would mend none of them")
    return ", ".join(said)


def _named(remedy: Remedy) -> str:
    return {"label": "questions or labels", "router": "the router's", "model": "beyond the model"}.get(remedy, remedy)


def _points(gain: Interval) -> str:
    return f"{gain.value * 100:+.0f} ±{max(1, round(_half(gain) * 100))} points"


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def _rate(per_month: float) -> str:
    return f"{per_month:.3g} times a month" if per_month >= 1 else f"every {1 / per_month:.2g} months"


def _usd(value: float) -> str:
    return f"${value:,.0f}"


def _article(option: Option) -> str:
    said: Mapping[Option, str] = {
        "adapter": "an adapter", "larger model": "a larger model", "both": "retrieval with an adapter",
        "prompt only": "a prompt alone", "retrieval": "retrieval alone",
    }  # fmt: skip
    return said.get(option, option)
