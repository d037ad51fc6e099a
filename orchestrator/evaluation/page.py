"""One self-contained HTML page that reports a run: for those who decide on top, for those who mend below. Runs in, a file out.

The page asks nothing of any network: its policy lets run one script and one style sheet, each by its hash. All text of
documents, users and models is data: escaped here, set as text by the script.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.diagnose import is_right
from orchestrator.evaluation.drilldown import Place, read_texts, write_questions
from orchestrator.evaluation.figures import compare_with
from orchestrator.evaluation.markup import Html, join
from orchestrator.evaluation.runs import Run, Runs
from orchestrator.evaluation.sections import (
    Report,
    causes_table,
    draw_plots,
    measured,
    measures_table,
    plots_block,
    provenance_tables,
    reasons_table,
    slices_table,
    top,
)
from orchestrator.evaluation.summary import summarise

_MARK = re.compile(r"%%(\w+)%%")


async def read_report(runs: Runs, name: str, *, against: str = "", diagnosis: Diagnosis | None = None) -> Report:
    """A kept run with the texts of its passages. Raises UnknownNameError, and InputError as ``make_report`` does."""
    run = await runs.show(name)
    before = await runs.show(against) if against else None
    report = make_report(run, before=before, diagnosis=diagnosis)  # refuses before texts are read
    return replace(report, texts=await read_texts(runs, run, *([before] if before else [])))


def make_report(
    run: Run,
    texts: Mapping[Place, str] | None = None,
    *,
    before: Run | None = None,
    diagnosis: Diagnosis | None = None,
) -> Report:
    """The figures of a run. Raises InputError for a run without an answer, runs over other questions, a foreign diagnosis."""
    for each in [run, before] if before else [run]:
        if not each.outcomes:
            raise InputError(
                f"{each.info.id} has no answer yet: nothing can be reported. `orchestrator eval run` on its set goes on",
                param="run",
            )
    if diagnosis is not None:
        _refuse_foreign(diagnosis, run)
    summary = summarise(run.set.items, run.outcomes, run.scores, run.set.faults)
    comparison = compare_with(run, before) if before else None
    earlier = summarise(before.set.items, before.outcomes, before.scores, before.set.faults) if before else None
    return Report(run, summary, texts or {}, before, earlier, comparison, diagnosis)


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it is written. ``plots``: the names of those that are drawn."""

    html: str
    plots: tuple[str, ...]


def render(report: Report) -> Page:
    """The page. The same report gives the same bytes."""
    style, script = _read("page.css"), _read("page.js")
    plots = draw_plots(report)
    values = {
        "policy": _policy(style, script),
        "title": join([f"Evaluation of {report.run.info.set}"]),
        "style": style,
        "script": script,
        "top": join(top(report)),
        "plots": plots_block(plots),
        "measures": measures_table(report),
        "causes": causes_table(report.diagnosis),
        "slices": slices_table(report),
        "reasons": reasons_table(report.summary),
        "provenance": provenance_tables(report),
        "questions": write_questions(report.run, report.texts, report.before, report.comparison, report.diagnosis),
    }
    # In one pass: what is put in is not read again.
    html = _MARK.sub(lambda found: values[found[1]], _read("page.html"))
    return Page(html, tuple(name for name, (_, _, svg) in plots.items() if svg))


def write_page(report: Report, path: Path) -> dict[str, Any]:
    """Writes the page whole or not at all; gives where it is and its figures. Raises InputError when it cannot."""
    page = render(report)
    content = page.html.encode()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror}; give another place with --out", param="out"
        ) from error
    return {"file": path, "bytes": len(content), "plots": page.plots, **figures_of(report)}


def figures_of(report: Report) -> dict[str, Any]:
    """The figures of the page's top and of its measures, for a script."""
    info, summary, found = report.run.info, report.summary, report.comparison
    figures: dict[str, Any] = {
        "run": info.id, "set": info.set, "sha256": info.sha256, "questions": summary.n, "asked": summary.asked,
        "faults": summary.faults, "accuracy": summary.measures["correct"],
        "measures": {name: each for name, each, _ in measured(report)},
    }  # fmt: skip
    if found and report.before:
        figures |= {
            "against": report.before.info.id, "verdict": found.verdict, "difference": found.correct,
            "detectable": found.detectable, "gained": found.moved("gained"), "lost": found.moved("lost"),
        }  # fmt: skip
    if report.diagnosis:
        figures["diagnosis"] = {"accuracy": report.diagnosis.accuracy, "causes": len(report.diagnosis.causes)}
    return figures


def _refuse_foreign(diagnosis: Diagnosis, run: Run) -> None:
    """A waterfall of another run would be believed."""
    failed = {item.id for item in run.set.items if item.id in run.outcomes and not is_right(run.scores[item.id])} | {
        f"row {fault.number}" for fault in run.set.faults
    }
    if diagnosis.sha256 != run.info.sha256 or {*diagnosis.causes, *diagnosis.unsteady} != failed:
        raise InputError(
            f"this diagnosis is of another run: its failed questions are not those of {run.info.id}. "
            f"Write one with `orchestrator diagnose {run.info.id} --write FILE`",
            param="diagnosis",
        )


def _read(name: str) -> Html:
    return Html(files("orchestrator.evaluation").joinpath(name).read_text("utf-8"))


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and of what stands in the page only our two texts count; no string becomes markup in the browser."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
