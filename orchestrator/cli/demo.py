"""``orchestrator demo``: the main job on the embedded default, end to end; fails when any step did not happen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console

from orchestrator.app import Orchestrator
from orchestrator.cli.answers import answer_fields, print_answer
from orchestrator.cli.output import Output, command
from orchestrator.compose import compose_messages
from orchestrator.errors import OrchestratorError
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.types import Answer, Completion, Generation

COLLECTION = "handbook"
CITED = "How many days of annual leave do full-time employees get per year?"
EARLIER = "2024-06-01"
UNANSWERABLE = "In which year was Quillmere founded?"
DIRECT = 'Extract the name of the person from this text: "Yesterday Olaf Mertens called and asked for a copy."'


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the demo shows, and whether it happened."""

    name: str
    happened: bool
    shown: Any
    why_not: str = ""


@click.command()
@command
async def demo(output: Output, settings: Settings) -> None:
    """Show everything on the example handbook: index, answer, as-of, refusal, direct task, base against adapter, audit."""
    started = time.monotonic()
    steps: list[Step] = []
    async with Orchestrator.open(settings, progress=output.say) as orchestrator:
        show = _Shown(output, orchestrator, steps)
        await show.indexing()
        await orchestrator.start()
        now = await show.answer("A cited answer", CITED, lambda a: bool(a.citations))
        await show.answer(
            f"The same question, as of {EARLIER}",
            CITED,
            lambda a: bool(a.citations) and now is not None and a.data != now.data and _other_version(a, now),
            as_of=EARLIER,
        )
        await show.answer(
            "A question that the documents do not answer",
            UNANSWERABLE,
            lambda a: not a.citations and a.data is not None and a.data.get("answerable") is False,
        )
        await show.answer(
            "A narrow task, without retrieval", DIRECT, lambda a: a.route == "direct" and "Olaf Mertens" in a.text
        )
        if now:
            await show.base_against_adapter(now)
    failed = [step for step in steps if not step.happened]
    _close(output, steps, failed, now, time.monotonic() - started)
    if failed:
        raise SystemExit(1)


@dataclass(slots=True)
class _Shown:
    output: Output
    orchestrator: Orchestrator
    steps: list[Step]

    def _title(self, title: str) -> None:
        if not self.output.as_json:
            self.output.console.print(f"── {title}", style="bold blue", markup=False)

    def _text(self, text: str, style: str = "") -> None:
        if not self.output.as_json:
            self.output.console.print(text, style=style, markup=False)

    async def indexing(self) -> None:
        """Step 1: documents into PostgreSQL."""
        self._title("Indexing examples/handbook into PostgreSQL + pgvector")
        with self.output.bar("indexing") as update:
            report = await self.orchestrator.ingest(
                folder("handbook"),
                collection=COLLECTION,
                progress=lambda event: update(event.read_bytes, event.total_bytes, event.name),
            )
        stats = await self.orchestrator.store.stats(COLLECTION)
        self._text(
            f"{stats.document_count} documents in {stats.version_count} versions, {stats.chunk_count} chunks; this run: "
            f"{report.added} added, {report.updated} updated, {report.unchanged} unchanged, "
            f"{report.chunks_new} chunks embedded, {report.chunks_shared} shared with an earlier version"
        )
        happened = stats.chunk_count > 0 and not report.failures
        self.steps.append(Step("indexing", happened, stats, "the handbook was not indexed without failures"))

    async def answer(self, title: str, question: str, happened: Any, **options: Any) -> Answer | None:
        """One question, checked."""
        self._title(title)
        self._text(f"? {question}")
        try:
            answer = await self.orchestrator.ask(question, collection=COLLECTION, **options)
        except OrchestratorError as error:
            self._text(f"error: {error.message}", "red")
            self.steps.append(Step(title, False, None, error.message))
            return None
        if not self.output.as_json:
            print_answer(self.output.console, answer, explain=False)
        spent = answer.timings_ms.get("total", 0) / 1000
        self._text(f"  route {answer.route}: {answer.plan.reason}; {answer.model or 'no model'}, {spent:.1f} s", "dim")
        self.steps.append(Step(title, bool(happened(answer)), answer_fields(answer), f"unexpected: {answer.text!r}"))
        return answer

    async def base_against_adapter(self, answer: Answer) -> None:
        """The very same prompt to the base and to the adapter, neither of them constrained by a schema."""
        self._title("The same prompt, unconstrained: base model against adapter")
        pipeline, catalogue = self.orchestrator.pipeline, self.orchestrator.catalogue
        assert pipeline.tokens is not None or answer.passages
        count = pipeline.tokens.count if pipeline.tokens else (lambda text: len(text) // 3)
        composition = compose_messages(
            catalogue.prompt(answer.plan.prompt or ""),
            CITED,
            answer.passages,
            count=count,
            budget_tokens=answer.plan.budget_tokens,
        )
        contract = catalogue.contract(answer.plan.contract or "")
        kept: dict[str, bool] = {}
        for name in (None, answer.plan.adapter):
            served = await pipeline.serving.resolve(name)
            generation = Generation(served.model, composition.messages, max_tokens=80)
            text = ""
            async for piece in served.engine.stream(generation):
                text = piece.text if isinstance(piece, Completion) else text
            try:
                contract.parse_output(text)
                kept[served.model] = True
            except OrchestratorError:
                kept[served.model] = False
            verdict = "keeps the contract" if kept[served.model] else "breaks the contract"
            self._text(f"{served.model} ({verdict}):", "cyan")
            self._text("  " + " ".join(text.split())[:240])
        happened = list(kept.values())[-1] and len(kept) == 2
        self.steps.append(Step("base against adapter", happened, kept, "the adapter did not keep the contract"))


def _other_version(one: Answer, other: Answer) -> bool:
    versions = [{(c.external_id, c.version) for c in answer.citations} for answer in (one, other)]
    return versions[0] != versions[1]


def _close(output: Output, steps: list[Step], failed: list[Step], now: Answer | None, seconds: float) -> None:
    def text(console: Console) -> None:
        console.print("── Done" if not failed else "── Not all of it happened", style="bold blue")
        for step in failed:
            console.print(f"did not happen: {step.name}: {step.why_not}", style="bold red", markup=False)
        if now:
            console.print(f"How the first answer came about:  orchestrator audit show {now.id}", markup=False)
        console.print("Your own documents:               orchestrator ingest FOLDER && orchestrator ask '...'")
        console.print("As a server for OpenAI clients:   orchestrator serve")
        console.print(f"The services keep running; stop them with: orchestrator down   ({seconds:.0f} s)")

    output.emit({"ok": not failed, "seconds": seconds, "steps": steps, "answer_id": now.id if now else None}, text)
