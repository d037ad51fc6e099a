"""Commands that answer and account for it: ask, search, plan, audit."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator import ledger
from orchestrator.app import Orchestrator, open_database
from orchestrator.cli.output import Output, command, literal
from orchestrator.errors import InputError, LedgerError
from orchestrator.settings import Settings
from orchestrator.types import Answer, Delta, Passage

as_of_option = click.option("--as-of", metavar="DATE", help="Answer as of this date or time (ISO 8601).")
known_at_option = click.option("--known-at", metavar="TIME", help="As it was known at this date or time (ISO 8601).")
where_option = click.option(
    "--where", metavar="JSON", help='Filter on metadata: \'{"department": "HR", "year": {"gte": 2020}}\'.'
)
collection_option = click.option("--collection", metavar="C", help="Collection; the configured one when not given.")


@click.command()
@click.argument("question")
@click.option("--route", metavar="R", help="Pin the route instead of letting the router decide.")
@click.option("--adapter", metavar="A", help="Pin the adapter: a name or name--digest12.")
@as_of_option
@known_at_option
@where_option
@collection_option
@click.option("-k", type=click.IntRange(1, 100), help="Passages to retrieve.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--max-cost", type=click.FloatRange(0), help="Take a route whose answers cost no more than this.")
@click.option("--min-quality", type=click.FloatRange(0, 1), help="Take a route that is expected to be this good.")
@click.option("--deadline-ms", type=click.FloatRange(0), help="Take a route that answers within this time.")
@click.option("--stream", is_flag=True, help="Print the answer as it is generated.")
@click.option("--explain", is_flag=True, help="Show plan, passages with their scores, and timings.")
@command
async def ask(output: Output, settings: Settings, question: str, stream: bool, explain: bool, **options: Any) -> None:
    """Answer QUESTION from the documents, with citations."""
    options = {name: value for name, value in options.items() if value is not None}
    options["where"] = read_filter(options.get("where"))
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        if (await orchestrator.plan(question, **options)).action == "answer":
            await orchestrator.serving.resolve(
                None
            )  # the engine's first start does not count against the question's time
        if not stream or output.as_json:
            answer = await orchestrator.ask(question, **options)
            output.emit(answer_fields(answer), lambda console: print_answer(console, answer, explain))
            return
        async for event in orchestrator.stream(question, **options):
            if isinstance(event, Delta):
                output.console.print(event.text, end="", markup=False)
            elif isinstance(event, Answer):
                output.console.print()
                print_answer(output.console, event, explain, with_text=False)


@click.command()
@click.argument("text")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 100), help="Passages to find.")
@as_of_option
@known_at_option
@where_option
@collection_option
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "lexical", "dense"]),
    default="hybrid",
    show_default=True,
    help="Which side finds.",
)
@click.option("--excerpts", is_flag=True, help="Only the sentences that bear on TEXT, joined where they stand close.")
@click.option("--explain", is_flag=True, help="Show the score of every stage.")
@command
async def search(
    output: Output, settings: Settings, text: str, where: str | None, explain: bool, **options: Any
) -> None:
    """Find passages for TEXT without asking a model."""
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        found = await orchestrator.search(text, where=read_filter(where), **options)
    output.emit(
        {"passages": [passage_fields(passage) for passage in found], "sufficiency": found.sufficiency},
        lambda console: print_passages(console, found, explain),
    )


def read_filter(text: str | None) -> dict[str, Any] | None:
    """The filter of ``--where``. Raises InputError when it is not a JSON object."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--where is not JSON: {error}", param="where") from error
    if not isinstance(found, dict):
        raise InputError('--where must be a JSON object such as {"department": "HR"}', param="where")
    return found


@click.command()
@click.argument("question")
@click.option("--route", metavar="R", help="Pin the route.")
@command
async def plan(output: Output, settings: Settings, question: str, route: str | None) -> None:
    """Say what would be done with QUESTION, and why, without doing it."""
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        planned = await orchestrator.plan(question, route=route)
    output.emit(ledger.plan_fields(planned), f"{planned.action} by {planned.route}: {planned.reason}")


@click.group()
def audit() -> None:
    """How answers came about, and whether the record is whole."""


@audit.command("show")
@click.argument("answer_id")
@command
async def audit_show(output: Output, settings: Settings, answer_id: str) -> None:
    """Print the record of one answer."""
    async with open_database(settings) as database:
        record = await ledger.show_answer(database, answer_id, settings.tenant)
    output.emit(record, lambda console: console.print_json(data=record))


@audit.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Answers to list.")
@command
async def audit_list(output: Output, settings: Settings, limit: int) -> None:
    """List the latest answers."""
    async with open_database(settings) as database:
        rows = await ledger.list_answers(database, settings.tenant, limit)

    def table(console: Console) -> None:
        grid = Table("id", "at", "route", "outcome", "question")
        for row in rows:
            grid.add_row(*literal(row["id"], row["at"][:19], row["route"], row["outcome"], row["question"][:60]))
        console.print(grid)

    output.emit({"answers": rows}, table)


@audit.command("verify")
@command
async def audit_verify(output: Output, settings: Settings) -> None:
    """Check the hash chain: any edited, removed or inserted row is named."""
    async with open_database(settings) as database:
        faults = await ledger.verify_ledger(database, settings.tenant)
    if faults:
        raise LedgerError(f"the ledger does not verify: {'; '.join(faults[:20])}")
    output.emit({"ok": True, "faults": []}, "the ledger verifies: no row was edited, removed or inserted")


def answer_fields(answer: Answer) -> dict[str, Any]:
    """An answer as ``ask --json`` prints it."""
    return {
        "id": answer.id,
        "text": answer.text,
        "data": answer.data,
        "citations": answer.citations,
        "route": answer.route,
        "plan": ledger.plan_fields(answer.plan),
        "adapter": answer.adapter,
        "model": answer.model,
        "degraded": answer.degraded,
        "flags": answer.flags,
        "sufficiency": answer.sufficiency,
        "finish_reason": answer.finish_reason,
        "passages": [passage_fields(passage) for passage in answer.passages],
        "usage": answer.usage,
        "timings_ms": answer.timings_ms,
    }


def passage_fields(passage: Passage) -> dict[str, Any]:
    """A passage as ``search --json`` prints it."""
    names = ("document_id", "external_id", "version", "chunk_id", "text", "score", "scores", "span", "title")
    more = ("paragraph", "heading_path", "page", "source", "valid_from", "valid_to", "context", "metadata")
    return {name: getattr(passage, name) for name in (*names, *more)}


def print_answer(console: Console, answer: Answer, explain: bool, with_text: bool = True) -> None:
    """An answer for a person: text, citations, and with ``explain`` how it came about."""
    if with_text:
        console.print(answer.text, style="bold", markup=False)
    for citation in answer.citations:
        where = f"  [{citation.number}] {citation.external_id} v{citation.version}, paragraph {citation.paragraph + 1}"
        console.print(f"{where}: “{citation.quote}”", style="cyan", markup=False)
        if citation.changed_in is not None:
            now = f"now “{citation.now}”" if citation.now else "gone now"
            console.print(f"      changed in version {citation.changed_in}: {now}", style="yellow", markup=False)
    if answer.degraded:
        console.print(f"  degraded: {answer.degraded}", style="yellow", markup=False)
    if answer.flags:
        console.print(f"  corrected: {', '.join(answer.flags)}", style="yellow", markup=False)
    if not explain:
        return
    console.print(f"  route {answer.route}: {answer.plan.reason}", style="dim", markup=False)
    timings = ", ".join(f"{stage} {spent:.0f}" for stage, spent in answer.timings_ms.items())
    if answer.sufficiency is not None:
        console.print(f"  passages suffice with probability {answer.sufficiency:.2f}", style="dim", markup=False)
    console.print(f"  model {answer.model or 'none'}; ms: {timings}", style="dim", markup=False)
    console.print(f"  audit record: orchestrator audit show {answer.id}", style="dim", markup=False)
    print_passages(console, answer.passages, explain=True)


def print_passages(console: Console, passages: Any, explain: bool) -> None:
    """Passages for a person, best first."""
    if not passages:
        console.print("nothing found")
    elif explain and getattr(passages, "sufficiency", None) is not None:
        console.print(f"the passages hold what is asked with probability {passages.sufficiency:.2f}", style="dim")
    for number, passage in enumerate(passages, 1):
        where = f"{passage.external_id} v{passage.version} [{passage.span[0]}:{passage.span[1]}]"
        console.print(f"{number:2}. {passage.score:.3f} {where} {passage.title}", style="cyan", markup=False)
        if explain:
            scores = ", ".join(f"{name} {score:.3f}" for name, score in passage.scores.items())
            console.print(f"    {scores}", style="dim", markup=False)
        console.print("    " + " ".join(passage.text.split())[:240], markup=False)
