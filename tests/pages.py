"""Runs as a report shows them, made in memory: a handbook's questions, good and bad answers, a diagnosis that fits."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from orchestrator.evaluation.causes import CAUSES, Cause, Diagnosis, draw_bars, draw_ceilings, share_of
from orchestrator.evaluation.diagnose import is_right
from orchestrator.evaluation.items import Fault, Gold, Item, ItemSet, Outcome
from orchestrator.evaluation.runs import Run, RunInfo
from orchestrator.evaluation.score import score_outcome
from orchestrator.types import Passage, Usage

TOPICS = ("leave", "travel", "parking", "remote work", "pensions")
BEGAN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def passage(number: int, text: str = "", *, document: str = "", score: float = 0.8) -> Passage:
    """A passage of document ``number``; its text is empty, as in a run that is kept."""
    name = document or f"{TOPICS[number % len(TOPICS)].replace(' ', '-')}.md"
    scores = {"bm25": score / 2, "dense": score}
    return Passage(
        number, f"00000000-0000-0000-0000-{number:012d}", name, 1 + number % 3, name.removesuffix(".md").title(), text,
        (0, len(text)), 0, score, scores,
    )  # fmt: skip


def item(number: int) -> Item:
    """One of six questions cannot be answered; all name their route."""
    topic = TOPICS[number % len(TOPICS)]
    answerable = number % 6 != 5
    gold = (Gold(passage(number).external_id, quote=f"Rule {number} of {topic}"),) if answerable else ()
    return Item(
        f"q{number:04d}",
        f"How many days does rule {number} of {topic} give to an employee who joined last year?",
        (f"{10 + number} days",) if answerable else (),
        answerable,
        gold,
        route="grounded" if number % 7 else "chat",
        tags=(topic, "injected") if number % 11 == 0 else (topic,),
        synthetic=number % 4 == 0,
    )


def outcome(asked: Item, number: int, chance: random.Random, skill: float) -> Outcome:
    """Right with probability ``skill``; else another answer, a refusal, or a failure."""
    found = chance.random() < 0.4 + skill / 2
    said = asked.answers[0] if asked.answers else ""
    text = f"Rule {number} of {asked.tags[0]} gives {said or 'nothing'} of paid time to every employee."
    passages = tuple(
        passage(number + shift, text if shift == 0 and found else f"Clause {number + shift}: see the appendix. " * 4,
                score=0.9 - shift / 10)
        for shift in range(4)
    )  # fmt: skip
    right = chance.random() < skill
    done = Outcome(
        asked.id,
        f"{said} of leave. [1]" if right else "30 weeks of leave. [2]",
        cited=((passages[0].external_id, passages[0].version, text),),
        passages=passages,
        route=asked.route or "" if chance.random() < 0.93 else "chat",
        adapter="cited-answer",
        sufficiency=min(0.99, max(0.01, chance.gauss(0.75 if found else 0.35, 0.18))),
        usage=Usage(400 + number % 50, 20),
        timings_ms={
            "embed": 6 + chance.random(), "search": 12 + 9 * chance.random(),
            "generate": 300 + 500 * chance.random() * (2 - skill), "total": 700 + 400 * chance.random(),
        },
    )  # fmt: skip
    if right != asked.answerable or (not right and number % 9 == 0):
        return replace(done, text="The documents do not say this.", refused=True, cited=())
    if not right and number % 13 == 0:
        return Outcome(asked.id, error="engine_timeout: the engine took longer than 60 s; ask again", route="grounded")
    return done


def make_run(n: int = 60, *, skill: float = 0.7, name: str = "tuesday", seed: int = 1, faults: int = 1) -> Run:
    """A run over ``n`` questions and some rows that could not be read; the same arguments give the same run."""
    chance = random.Random(seed)
    items = tuple(item(number) for number in range(n))
    asked = ItemSet(
        "handbook", items, tuple(Fault(n + 1 + at, "no JSON") for at in range(faults)), {"leave.md": "a" * 64}
    )
    outcomes = {each.id: outcome(each, number, chance, skill) for number, each in enumerate(items)}
    return as_run(asked, outcomes, name=name)


def as_run(asked: ItemSet, outcomes: dict[str, Outcome], *, name: str = "tuesday") -> Run:
    """A kept run of these outcomes, judged."""
    scores = {each.id: score_outcome(each, outcomes[each.id]) for each in asked.items if each.id in outcomes}
    system = {"version": "1", "adapters": {"cited-answer": f"{name}-digest"}, "settings": {"engine_model": "base"}}
    info = RunInfo(
        f"run_{name}", name, 1, asked.name, asked.sha256, "handbook", "c" * 64, "d" * 64, system, BEGAN,
        BEGAN + timedelta(minutes=7), len(outcomes),
    )  # fmt: skip
    return Run(info, asked, outcomes, scores)


def make_diagnosis(run: Run) -> Diagnosis:
    """Blames something for each failed question of the run; every tenth has two causes."""
    failed = [each.id for each in run.set.items if each.id in run.outcomes and not is_right(run.scores[each.id])]
    causes: dict[str, tuple[Cause, ...]] = {}
    for at, name in enumerate(failed):
        first = CAUSES[(at * at) % 11]
        causes[name] = (first, "beyond_the_model") if at % 10 == 9 and first != "beyond_the_model" else (first,)
    causes |= {f"row {fault.number}": ("bad_label",) for fault in run.set.faults}
    n = len(run.outcomes) + len(run.set.faults)
    right = n - len(causes)
    notes = {name: "route grounded mends it" for name in failed[:3]}
    return Diagnosis(
        run.set.name, run.set.sha256, n, share_of(right, n),
        draw_bars(causes, n, set="handbook.jsonl", collection="handbook"), draw_ceilings(causes, right, n), causes,
        (), notes, 200, n,
    )  # fmt: skip
