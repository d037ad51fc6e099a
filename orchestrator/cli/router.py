"""Commands for the learnt part of the router: router fit, router try, router eval, router show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.app import Orchestrator, open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError, TrainingError
from orchestrator.evaluation.ask import PipelineAsker
from orchestrator.evaluation.fit_router import Fitted, Wanted, fit_router, measure_routes
from orchestrator.evaluation.items import Change
from orchestrator.evaluation.labelled import answering_routes, rows_of_documents, rows_of_runs, searching_route
from orchestrator.evaluation.read import read_items, sample
from orchestrator.evaluation.routing import Judged, Labelled, Vectors, judge_router, read_labelled
from orchestrator.evaluation.runs import Run, Runs, describe_system
from orchestrator.knowledge.embed import open_embedder
from orchestrator.knowledge.store import PgStore
from orchestrator.learnt import Learnt
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.protocols import Embedder
from orchestrator.resources import folder
from orchestrator.router import Router, find_learnt, open_router
from orchestrator.settings import Settings

DOCUMENTS = 2000  # of a collection, whose titles and headings are looked at
AT_ONCE = 64  # messages embedded between two steps of the bar
optional_data_argument = click.argument(
    "data", metavar="[DATA]", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
data_argument = click.argument("data", metavar="DATA", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def router() -> None:
    """What decides the route of a question: fit it on labelled messages, measure it, look at it."""


@router.command("fit")
@optional_data_argument
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("router.json"), show_default=True,
    help="File to write; ORCHESTRATOR_ROUTER_FILE puts it into service.",
)  # fmt: skip
@click.option(
    "--precision", type=click.FloatRange(0.5, 1), default=0.95, show_default=True,
    help="Share of right ones among the messages that it decides; it abstains from the rest.",
)  # fmt: skip
@click.option("--abstain", metavar="R", default="", help="Route of what it abstains from; the fallback of routes.toml.")
@click.option(
    "--skipped", type=click.FloatRange(0, 0.5), default=0.01, show_default=True,
    help="Share of searches that may be skipped wrongly; the less, the more is searched in vain.",
)  # fmt: skip
@click.option(
    "--from-run", "runs", multiple=True, metavar="RUN",
    help="A run of `orchestrator router try`; one for each route. What they cost and gave goes into the file.",
)  # fmt: skip
@click.option(
    "--collection", "collections", multiple=True, metavar="C",
    help="Learn from titles and headings of this collection what questions over it look like; may be given more than once.",
)  # fmt: skip
@command
async def router_fit(
    output: Output,
    settings: Settings,
    data: Path | None,
    out: Path,
    precision: float,
    abstain: str,
    skipped: float,
    runs: tuple[str, ...],
    collections: tuple[str, ...],
) -> None:
    """Fit a router on the messages of DATA and write it, unless the router without it is as good on those held out."""
    if data is None and not runs:
        raise InputError(
            "give labelled messages (DATA), or runs in which every route was tried (--from-run)", param="data"
        )
    catalogue = load_catalogue(settings.prompts_dir or folder("prompts"))
    rows = read_labelled(data) if data else []
    if runs or collections:
        rows += await _stored_rows(settings, runs, collections, catalogue)
    embedder = await asyncio.to_thread(open_embedder, settings, output.say)
    try:
        base = await open_router(catalogue, embedder)
        vectors = await _embed(output, embedder, rows)
        wanted = Wanted(embedder.space, precision, abstain, skipped=skipped)
        found = await asyncio.to_thread(fit_router, rows, vectors, base, wanted)
    finally:
        await _close(embedder)
    if not found.may_serve:
        raise TrainingError(
            f"the fitted router is no gain over the one without it: {found.gain.value:+.3f} right decisions "
            f"({found.gain.low:+.3f} to {found.gain.high:+.3f}) on {found.held_out} held-out messages, "
            f"searches skipped wrongly {found.ours.skipped.value:.1%} against {found.before.skipped.value:.1%}; "
            "nothing was written. Label more messages"
        )
    out.write_bytes(found.raw)
    result = {
        "file": out, "fitted": found.fitted, "held_out": found.held_out, "gain": found.gain,
        "learnt": _fields(found.ours), "before": _fields(found.before),
    }  # fmt: skip
    output.emit(result, lambda console: _print_fit(console, found, out))


@router.command("try")
@click.argument("set_path", metavar="SET", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--route", "routes", multiple=True, metavar="R", help="Route to try; those with examples when none is given."
)
@click.option("--collection", metavar="C", help="Collection; the configured one when not given.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), help="Ask this many, always the same; all when not given."
)
@command
async def router_try(
    output: Output,
    settings: Settings,
    set_path: Path,
    routes: tuple[str, ...],
    collection: str | None,
    limit: int | None,
) -> None:
    """Ask every question of a set by every route, and keep a run for each: what `router fit --from-run` learns from."""
    wanted = read_items(set_path)
    wanted = sample(wanted, limit) if limit else wanted
    collection = collection or settings.collection
    done: list[Run] = []
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        kept, catalogue = Runs(orchestrator.database, settings.tenant), orchestrator.pipeline.catalogue
        names = [catalogue.route(name).name for name in routes] or answering_routes(catalogue)
        frozen = await kept.freeze(wanted, collection)
        in_service = {a.name: a.digest for a in await orchestrator.registry.list() if a.state in ("active", "canary")}
        asker = PipelineAsker(orchestrator.pipeline, collection=collection)
        await orchestrator.serving.start()
        for name in names:
            change = Change(f"by {name}", route=name)
            system = describe_system(orchestrator.pipeline, in_service, change)
            with output.bar(f"asking by {name}") as update:
                done.append(
                    await kept.run(
                        frozen,
                        asker,
                        system,
                        change=change,
                        name=f"{wanted.name} by {name}",
                        progress=_counting(update),
                    )
                )
    table = measure_routes(rows_of_runs(done))
    result = {"runs": {name: run.info.id for name, run in zip(names, done, strict=True)}, "measured": table}
    output.emit(result, lambda console: _print_tried(console, result))


@router.command("eval")
@data_argument
@command
async def router_eval(output: Output, settings: Settings, data: Path) -> None:
    """Measure the router that serves on the messages of DATA: accuracy, confusions and what they cost, calibration."""
    rows = read_labelled(data)
    serving, vectors = await _serving(output, settings, rows)
    judged = judge_router(serving, rows, vectors)
    output.emit(
        {"digest": serving.learnt and serving.learnt.digest, **_fields(judged)},
        lambda console: _print_judged(console, judged),
    )


@router.command("show")
@command
async def router_show(output: Output, settings: Settings) -> None:
    """Show the fitted router that serves: its routes, its threshold, what was measured."""
    serving, _ = await _serving(output, settings, ())
    if serving.learnt is None:
        raise InputError("no fitted router serves; fit one: `orchestrator router fit DATA`")
    learnt = serving.learnt
    data = {
        "digest": learnt.digest, "routes": learnt.routes, "space": learnt.space, "threshold": learnt.threshold,
        "precision": learnt.precision, "abstain": learnt.abstain, "temperature": learnt.temperature,
        "measured": {name: asdict(row) for name, row in learnt.measured.items()}, "evidence": dict(learnt.evidence),
    }  # fmt: skip
    output.emit(data, lambda console: _print_learnt(console, learnt))


async def _serving(output: Output, settings: Settings, rows: tuple[()] | list[Labelled]) -> tuple[Router, Vectors]:
    """The router as `ask` opens it, and the vectors of the rows."""
    prompts = settings.prompts_dir or folder("prompts")
    catalogue = load_catalogue(prompts)
    embedder = await asyncio.to_thread(open_embedder, settings, output.say)
    try:
        learnt = find_learnt(catalogue, prompts, settings.router_file, embedder.space)
        return await open_router(catalogue, embedder, settings.collection, learnt), await _embed(output, embedder, rows)
    finally:
        await _close(embedder)


def _counting(update: Callable[[int, int, str], None]) -> Callable[[int, int], None]:
    return lambda done, total: update(done, total, f"{done} of {total}")


async def _stored_rows(
    settings: Settings, runs: tuple[str, ...], collections: tuple[str, ...], catalogue: Catalogue
) -> list[Labelled]:
    """Rows of the runs, and of the documents in the collections."""
    rows: list[Labelled] = []
    async with open_database(settings) as database:
        kept = Runs(database, settings.tenant)
        if runs:
            rows += rows_of_runs([await kept.show(name) for name in runs])
        store = PgStore(database, settings.tenant)
        for name in collections:
            route = searching_route(catalogue, name, settings.collection)
            documents = await store.list_documents(name, limit=DOCUMENTS)
            texts = {
                row.external_id: row.text for row in await store.current_texts(name, [d.external_id for d in documents])
            }
            rows += rows_of_documents(((d.title, texts.get(d.external_id, "")) for d in documents), route)
    known: set[str] = set()
    return [row for row in rows if not (row.text in known or known.add(row.text))]  # type: ignore[func-returns-value]


async def _embed(output: Output, embedder: Embedder, rows: tuple[()] | list[Labelled]) -> Vectors:
    texts = list(dict.fromkeys(row.text for row in rows))
    vectors: dict[str, Any] = {}
    with output.bar("embedding") as update:
        for first in range(0, len(texts), AT_ONCE):
            some = texts[first : first + AT_ONCE]
            vectors.update(zip(some, await embedder.embed(some), strict=True))
            update(len(vectors), len(texts), f"{len(vectors)} of {len(texts)}")
    return vectors


async def _close(embedder: Embedder) -> None:
    if (close := getattr(embedder, "aclose", None)) is not None:
        await close()


def _fields(judged: Judged) -> dict[str, Any]:
    fields = asdict(judged)
    del fields["right"]
    return fields


def _print_fit(console: Console, found: Fitted, out: Path) -> None:
    _print_judged(console, found.ours)
    gain = found.gain
    console.print(
        f"without it {found.before.accuracy}; gain {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}, "
        f"p = {gain.p:.4f}) on {found.held_out} held-out messages; fitted on {found.fitted}. Written: {out}",
        markup=False,
    )


def _print_judged(console: Console, judged: Judged) -> None:
    names = sorted({name for counts in judged.confusion.values() for name in counts} | judged.confusion.keys())
    grid = Table("should be", *names, "cost")
    for label, counts in judged.confusion.items():
        cells = (str(counts.get(name, "")) for name in names)
        grid.add_row(*literal(label, *cells, f"{sum(judged.cost_of[label].values()):g}"))
    console.print(grid)
    lines = [
        f"right: {judged.accuracy} of {judged.n}; where it decided {judged.decided}",
        f"search skipped wrongly: {judged.skipped}; abstained: {judged.abstained}",
        f"cost of a message {judged.cost.value:.3f}, regret {judged.regret.value:.3f}",
    ]
    if judged.ece is not None:
        bins = ", ".join(f"{each.confidence:.2f}: {each.accuracy:.2f} of {each.n}" for each in judged.bins)
        lines.append(f"calibration error {judged.ece:.3f} (said: was; {bins})")
    console.print("\n".join(lines), markup=False)


def _print_tried(console: Console, result: dict[str, Any]) -> None:
    grid = Table("route", "run", "cost", "ms", "quality by kind of question", "n")
    for name, run in result["runs"].items():
        row = result["measured"][name]
        qualities = ", ".join(f"{kind} {quality:.2f}" for kind, quality in row["quality"].items())
        grid.add_row(*literal(name, run, f"{row['cost']:g}", f"{row['ms']:.0f}", qualities, str(row["n"])))
    console.print(grid)
    options = " ".join(f"--from-run {run}" for run in result["runs"].values())
    console.print(f"next: orchestrator router fit messages.jsonl {options}", markup=False)


def _print_learnt(console: Console, learnt: Learnt) -> None:
    console.print(
        f"router {learnt.digest[:12]}: {', '.join(learnt.routes)}; reads {learnt.space}; below {learnt.threshold:.2f} "
        f"it abstains to {learnt.abstain} (for a precision of {learnt.precision:.0%})",
        markup=False,
    )
    if learnt.measured:
        grid = Table("route", "cost", "ms", "quality by kind of question", "n")
        for name, row in learnt.measured.items():
            qualities = ", ".join(f"{kind} {quality:.2f}" for kind, quality in row.quality.items())
            grid.add_row(*literal(name, f"{row.cost:g}", f"{row.ms:.0f}", qualities, str(row.n)))
        console.print(grid)
    for name, value in learnt.evidence.items():
        console.print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}", markup=False)
