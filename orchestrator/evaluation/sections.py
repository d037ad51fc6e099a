"""The sections of a report page: a report's figures in, markup out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from orchestrator import __version__
from orchestrator.evaluation.causes import MEANINGS, Diagnosis
from orchestrator.evaluation.drilldown import Place
from orchestrator.evaluation.figures import Comparison, refusals, reliability, routes
from orchestrator.evaluation.markup import Html, element, join, table
from orchestrator.evaluation.metrics import Difference, Interval
from orchestrator.evaluation.plots import (
    Row,
    Stage,
    plot_latency,
    plot_matrix,
    plot_measures,
    plot_reliability,
    plot_waterfall,
)
from orchestrator.evaluation.runs import Run, changed_documents
from orchestrator.evaluation.summary import Summary

# What is measured, and what a reader should take from it.
MEASURES = {
    "correct": ("Correct", "the right answer, or the refusal of what cannot be answered"),
    "exact": ("Exact match", "word for word an accepted answer"),
    "f1": ("F1 of words", "words shared with the accepted answer"),
    "gold_found": ("Gold was shown", "a passage that holds the answer was shown to the model"),
    "citation_precision": ("Citation precision", "citations that name the right source"),
    "citation_recall": ("Citation recall", "right sources that are cited"),
    "supported": ("Citation supports", "citations whose words carry the answer"),
    "contract_kept": ("Form kept", "the output kept its contract"),
    "refusal_right": ("Refusal right", "refused when, and only when, it should be"),
    "refusal_precision": ("Refusal precision", "refusals that were right"),
    "refusal_recall": ("Refusal recall", "what cannot be answered, and was refused"),
    "route_right": ("Route right", "took the route that the question names"),
}
Plot = tuple[str, str, Html]  # title, caption, drawing; without a drawing, the caption says what is missing


@dataclass(frozen=True, slots=True)
class Report:
    """All that a page says. ``before``: the earlier run, over the same questions; ``texts``: of the passages shown."""

    run: Run
    summary: Summary
    texts: Mapping[Place, str] = field(default_factory=dict)
    before: Run | None = None
    earlier: Summary | None = None
    comparison: Comparison | None = None
    diagnosis: Diagnosis | None = None


# the top of the page


def top(report: Report) -> Iterator[str]:
    """What stands at the head of the page, from the headline to the cards, piece by piece."""
    info, correct = report.run.info, report.summary.measures["correct"]
    yield element("p", f"Evaluation of {info.set}", class_="eyebrow")
    yield element("h1", f"{correct.value:.1%} of {report.summary.n:,} questions are answered correctly")
    asked = f"Run {info.name!r}, {_day(info.started_at)}, on the documents of {info.collection!r}."
    yield element("p", f"95% interval: {correct.low:.1%} to {correct.high:.1%}. {asked}", class_="lead")
    if report.comparison and report.before:
        tone = {"gain": "good", "loss": "bad"}.get(report.comparison.verdict, "even")
        yield element("p", _verdict(report.comparison, report.before.info.name), class_=f"verdict {tone}", id="verdict")
    if report.diagnosis and report.diagnosis.bars:
        bar = report.diagnosis.bars[0]
        said = f"Most common cause of failure: {MEANINGS[bar.cause]} ({bar.n} questions, {bar.share} of all)."
        yield element("p", said, class_="verdict even")
    for note in report.summary.notes:
        yield element("p", note, class_="note", role="note")
    yield element("dl", *_cards(report), class_="cards")


def _verdict(found: Comparison, name: str) -> str:
    each = found.correct
    size = f"{_signed(each.value)} points (95%: {_signed_ends(each)}, p = {each.p:.4f})"
    moved = f"{len(found.moved('gained'))} questions gained, {len(found.moved('lost'))} lost, of the same {each.n:,}."
    if found.verdict == "no significant difference":
        least = f"these runs would show one of {100 * found.detectable:.1f} points"
        return f"No significant difference from {name!r}: {size}; {least}. {moved}"
    return f"{'Better' if found.verdict == 'gain' else 'Worse'} than {name!r}: {size}. {moved}"


def _cards(report: Report) -> Iterator[Html]:
    summary, found = report.summary, report.summary.measures
    yield _card("Correct", f"{found['correct'].value:.1%}", _ends(found["correct"]))
    if report.comparison:
        each = report.comparison.correct
        yield _card("Change", _signed(each.value), f"points, {_signed_ends(each)}")
    if "gold_found" in found:
        yield _card("Gold was shown", f"{found['gold_found'].value:.1%}", _ends(found["gold_found"]))
    if "citation_precision" in found:
        yield _card("Citations right", f"{found['citation_precision'].value:.1%}", _ends(found["citation_precision"]))
    if summary.refusal_recall.n:
        yield _card("Unanswerable, refused", f"{summary.refusal_recall.value:.1%}", _ends(summary.refusal_recall))
    if total := summary.timings_ms.get("total"):
        yield _card("Median time", _time(total.p50), f"95% within {_time(total.p95)}")
    if summary.cost is not None and summary.asked:
        yield _card("Cost a question", f"{summary.cost / summary.asked:.4g}", f"{summary.cost:.4g} in all")
    elif summary.asked and (tokens := summary.prompt_tokens + summary.completion_tokens):
        yield _card("Tokens a question", f"{tokens / summary.asked:,.0f}", f"{tokens:,} in all")


def _card(name: str, value: str, more: str) -> Html:
    return element("div", element("dt", name), element("dd", element("strong", value), element("span", more)))


# tables


def measured(report: Report) -> Iterator[tuple[str, Interval, Interval | None]]:
    """Each measure of the run, and of the earlier one."""
    now, then = (_all_measures(each) if each else {} for each in (report.summary, report.earlier))
    for name in MEASURES:
        if name in now:
            yield name, now[name], then.get(name)


def _all_measures(summary: Summary) -> dict[str, Interval]:
    more = {"refusal_precision": summary.refusal_precision, "refusal_recall": summary.refusal_recall}
    return {**summary.measures, **{name: each for name, each in more.items() if each.n}}


def measures_table(report: Report) -> Html:
    """Every measure with its 95 % interval."""
    heads = ["Measure", "", "This run", "95%", "Questions"]
    heads += ["Before", "Difference in points", "95%", "p"] if report.comparison else []
    rows = []
    for name, now, then in measured(report):
        label, meaning = MEASURES[name]
        row = [join([label, element("small", meaning)]), _strip(now), f"{now.value:.1%}", _ends(now), f"{now.n:,}"]
        if report.comparison:
            each = report.comparison.measures.get(name)  # type: ignore[call-overload]
            row += [f"{then.value:.1%}" if then else "–"]
            row += [_signed(each.value), _signed_ends(each), f"{each.p:.4f}"] if each else ["–"] * 3
        rows.append(row)
    return table("Measures with their 95% intervals", heads, rows, numbers=2)


def slices_table(report: Report) -> Html:
    """Accuracy by tag and kind of question."""
    earlier = report.earlier.slices if report.earlier else {}
    heads = ["Questions", "", "Correct", "95%", "Questions"] + (["Before", "95%"] if report.earlier else [])
    rows = []
    for name, now in report.summary.slices.items():
        row = [_picks(name, "slice", name), _strip(now), f"{now.value:.1%}", _ends(now), f"{now.n:,}"]
        if report.earlier:
            then = earlier.get(name)
            row += [f"{then.value:.1%}", _ends(then)] if then else ["–"] * 2
        rows.append(row)
    return table("Share of correct answers by what the questions are about", heads, rows, numbers=2)


def causes_table(found: Diagnosis | None) -> Html:
    """What the diagnosis names, with the commands that address it."""
    if found is None:
        return element(
            "p", "No diagnosis was given: `orchestrator diagnose RUN --write FILE` writes one.", class_="quiet"
        )
    rows = [
        [_picks(MEANINGS[bar.cause], "cause", bar.cause), bar.layer, element("code", bar.command), str(bar.n),
         str(bar.share), str(bar.gain)]
        for bar in found.bars
    ]  # fmt: skip
    heads = ["Cause", "Layer", "What addresses it", "Questions", "Share of all", "Alone worth"]
    unsteady = f" {len(found.unsteady)} came right when asked again, and accuse nobody." if found.unsteady else ""
    said = (
        f"Right here is {found.accuracy}: the answer and, where the set names it, the source. A question with two causes "
        f"stands under both; a ceiling is an upper bound.{unsteady}"
    )
    return join([element("p", said, class_="quiet"), table("Failures by cause", heads, rows, numbers=3)])


def reasons_table(summary: Summary) -> Html:
    """Why answers were judged wrong, most frequent first."""
    rows = [[reason, f"{count:,}"] for reason, count in [*summary.reasons.items(), *summary.fault_reasons.items()]]
    if not rows:
        return element("p", "Nothing was wrong.", class_="quiet")
    return table("Why answers count as wrong", ["Reason", "Questions"], rows, numbers=1)


def provenance_tables(report: Report) -> Html:
    """What was asked, of which documents, by which system, and what differs between the two runs."""
    runs = [report.run, *([report.before] if report.before else [])]
    facts: dict[str, list[str]] = {
        "Run": [each.info.id for each in runs],
        "Asked": [f"{len(each.outcomes):,} of {len(each.set.items):,} questions" for each in runs],
        "Began (UTC)": [_moment(each.info.started_at) for each in runs],
        "Ended (UTC)": [_moment(each.info.finished_at) for each in runs],
        "Set": [each.info.set for each in runs],
        "Set's SHA-256": [element("code", each.info.sha256) for each in runs],
        "Collection": [f"{each.info.collection} ({len(each.set.snapshot):,} documents)" for each in runs],
        "Snapshot of documents": [element("code", each.info.corpus) for each in runs],
        "Stamp of the system": [element("code", each.info.stamp) for each in runs],
    }
    heads = ["", "This run", "Before"][: len(runs) + 1]
    parts = [table("What was measured", heads, [[name, *values] for name, values in facts.items()])]
    if report.before:
        old, new = _flat(report.before.info.system), _flat(report.run.info.system)
        differ = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        rows = [[name, new.get(name, "–"), old.get(name, "–")] for name in differ]
        none = element("p", "The two systems are described alike.", class_="quiet")
        parts.append(table("What differs between the systems", heads, rows) if rows else none)
        moved = changed_documents(report.before.set.snapshot, report.run.set.snapshot)
        if any(moved.values()):
            said = ", ".join(f"{count:,} {name}" for name, count in moved.items())
            parts.append(element("p", f"Documents since the earlier run: {said}.", class_="quiet"))
    return join([*parts, element("p", f"Written by orchestrator {__version__}.", class_="quiet")])


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """The leaves of a description by their path."""
    if isinstance(value, Mapping):
        return {
            name: leaf
            for key, each in value.items()
            for name, leaf in _flat(each, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: str(value)}


# plots


def plots_block(plots: Mapping[str, Plot]) -> Html:
    """The plots with their captions; one that there is nothing to draw for says why."""
    drawn = []
    for name, (title, about, svg) in plots.items():
        head = element("h3", title, id=f"title-{name}")
        body = element("div", svg, class_="scroll") if svg else element("p", "Not shown.", class_="quiet")
        drawn.append(element("figure", head, body, element("figcaption", about), aria_labelledby=f"title-{name}"))
    return join(drawn)


def draw_plots(report: Report) -> dict[str, Plot]:
    """What is drawn, in the order of the page."""
    return {
        "measures": _measures(report),
        "reliability": _calibration(report),
        "waterfall": _waterfall(report.diagnosis),
        "latency": _latency(report),
        "refusals": _refusals(report.run),
        "routes": _routes(report.run),
    }


def _measures(report: Report) -> Plot:
    rows: list[Row] = [(MEASURES[name][0], now, then) for name, now, then in measured(report)]
    title, more = ("Before and after", " Grey: the earlier run.") if report.before else ("Measures", "")
    return title, f"Bars are 95% intervals.{more}", plot_measures(rows)


def _waterfall(found: Diagnosis | None) -> Plot:
    title = "Failures by layer, and what mending each is worth"
    if found is None or not found.ceilings:
        return title, "No diagnosis was given.", Html()
    about = (
        "From today's accuracy to each layer's ceiling, in points: every step makes one more layer perfect. "
        "Whiskers are 95% intervals."
    )
    return title, about, plot_waterfall(found)


def _refusals(run: Run) -> Plot:
    title = "Answered or refused"
    drawn = plot_matrix("refusals", title, refusals(run), "what the system did")
    return title, "Counts of questions; beneath, the share of the row.", drawn


def _routes(run: Run) -> Plot:
    found, title = routes(run), "Routes"
    if found is None:
        return title, "No question of this set names a route.", Html()
    about = "The route a question names (rows) against the route taken."
    return title, about, plot_matrix("routes", title, found, "route taken")


def _calibration(report: Report) -> Plot:
    found = reliability(report.run)
    title = "Does the search know when it found the answer?"
    if found is None:
        return title, "No outcome carries an estimate of the search.", Html()
    unseen = f" Left out: {found.unseen:,} refused before the model was shown anything." if found.unseen else ""
    about = (
        f"On the dashed line the estimate is a true probability; it is off by {100 * found.error:.1f} points on average "
        f"(Brier score {found.brier:.3f}) over {found.n:,} questions. Numbers count questions.{unseen}"
    )
    return title, about, plot_reliability(found)


def _latency(report: Report) -> Plot:
    then = report.earlier.timings_ms if report.earlier else {}
    stages: list[Stage] = [(name, now, then.get(name)) for name, now in report.summary.timings_ms.items()]
    if not stages:
        return "Time by stage", "No outcome carries a time.", Html()
    about = "Bar: median; line: to the 95th percentile." + (" Grey: the earlier run." if report.before else "")
    return "Time by stage", about, plot_latency(stages)


# words and numbers


def _picks(text: str, kind: str, value: str) -> Html:
    """A name that filters the questions below."""
    return element("button", text, type="button", class_="pick", data_kind=kind, data_value=value)


def _strip(found: Interval) -> Html:
    """The interval on a line from 0 to 100%."""
    low, high, at = (round(100 * end, 1) for end in (found.low, found.high, found.value))
    marks = (
        f'<line class="axis" x1="0" x2="100" y1="7" y2="7"/><line class="span" x1="{low}" x2="{high}" y1="7" y2="7"/>'
        f'<circle cx="{at}" cy="7" r="4"/>'
    )
    return element("svg", Html(marks), class_="strip", viewBox="-5 0 110 14", aria_hidden="true")


def _ends(found: Interval) -> str:
    return f"{found.low:.1%} to {found.high:.1%}"


def _signed(share: float) -> str:
    """A difference of shares in points."""
    return f"{100 * share:+.1f}"


def _signed_ends(found: Difference) -> str:
    return f"{_signed(found.low)} to {_signed(found.high)}"


def _time(millis: float) -> str:
    return f"{millis / 1000:.1f} s" if millis >= 1000 else f"{millis:.0f} ms"


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


def _moment(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if moment else "stopped before its end"
