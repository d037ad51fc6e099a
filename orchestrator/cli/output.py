"""How every command speaks: results on standard output (text or one JSON value), progress and errors on standard error."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from orchestrator.errors import OrchestratorError
from orchestrator.settings import Settings

QUIET_S = 10.0
PIPE_COLUMNS = 1000
F = TypeVar("F", bound=Callable[..., Any])


class Output:
    """Where one command writes."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _console(stderr=False)
        self.notes = _console(stderr=True)

    def emit(self, data: Any, text: Callable[[Console], None] | str | None = None) -> None:
        """The command's result: ``data`` as JSON, or ``text`` for a person."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(data), ensure_ascii=False) + "\n")
        elif callable(text):
            text(self.console)
        elif text is not None:
            self.console.print(text, markup=False)

    def say(self, text: str) -> None:
        """One line of progress."""
        if not self.as_json or self.notes.is_terminal:
            self.notes.print(text, style="dim", markup=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[Callable[[float, float | None, str], None]]:
        """A progress bar on a terminal, a line every ten seconds elsewhere; call it with (done, total, note)."""
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.notes, transient=True, disable=not self.notes.is_terminal) as progress:
            task = progress.add_task(title, total=None, note="")
            said = time.monotonic()

            def update(done: float, total: float | None = None, note: str = "") -> None:
                nonlocal said
                progress.update(task, completed=done, total=total, note=escape(note))
                if not self.notes.is_terminal and time.monotonic() - said > QUIET_S:
                    said = time.monotonic()
                    self.say(f"{title}: {f'{done / total:.0%}, ' if total else ''}{note}")

            yield update


def _console(stderr: bool) -> Console:
    """A terminal as wide as it is; a file or a pipe wide enough for every table."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def literal(*cells: str) -> tuple[Text, ...]:
    """Cells of a table as they are: text of documents and users is never read as markup."""
    return tuple(Text(cell) for cell in cells)


def plain(value: Any) -> Any:
    """Any of our values as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(part) for name, part in asdict(value).items()}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value


def command(function: F) -> Any:
    """Adds ``--json`` to an async command, runs it, and turns our errors into a message and exit code 1."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
    @functools.wraps(function)
    def run(*arguments: Any, as_json: bool, **options: Any) -> None:
        output = Output(as_json)
        try:
            settings = Settings.from_env()
            logging.basicConfig(
                level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
            )
            asyncio.run(function(output, settings, *arguments, **options))
        except OrchestratorError as error:
            fail(output, error)
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader has gone; say nothing more
            sys.exit(1)
        except KeyboardInterrupt:
            output.notes.print("stopped; nothing that was reported done is lost", style="yellow")
            sys.exit(130)

    return run


def fail(output: Output, error: OrchestratorError) -> None:
    """Prints the error and ends with exit code 1."""
    if output.as_json:
        output.emit({"error": {"code": error.code, "message": error.message, "answer_id": error.answer_id}})
    else:
        output.notes.print("error: ", style="bold red", end="")
        output.notes.print(error.message, markup=False)
    sys.exit(1)
