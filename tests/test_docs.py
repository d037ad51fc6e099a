"""The documentation is true: the reference equals the code, everything has a help text, links resolve, snippets run.

The rule for snippets, by the first line of their fence:

``bash``           run by bash as a whole; a block that begins with ``orchestrator serve`` runs until the page ends
``python``         run as a script of its own
``bash engine``    the same, but needs the model: run in the tests marked ``vllm`` only (a renderer ignores the word)
``python engine``
``sh``             not run: it needs the network, a GPU or a server of your own
``text toml json`` not run: output, or a part of a file

The blocks of a page run in order, in one empty folder that has the repository's ``examples``, with the variables that
earlier blocks exported, and under a tenant of their own, so that pages do not see each other's documents.
``127.0.0.1:8080`` in a page stands for the server that the page itself started.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from orchestrator import errors
from orchestrator.api.schema import parse_chat
from orchestrator.cli import main
from orchestrator.cli.reference import OWN_KEYS, error_classes, render, walk
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import variables

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
KINDS = {"bash", "python", "sh", "text", "toml", "json", "markdown"}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PLACEHOLDER_ADDRESS = "127.0.0.1:8080"
CITED = {  # what the model's answers on a page must cite
    "README.md": ("[1] leave.md v1, paragraph 2",),
    "docs/tutorial.md": ("[1] travel v1, paragraph 2", "[1] travel v2, paragraph 2"),
    "docs/howto/langchain.md": ("Citation(number=1",),
}
START_TIMEOUT_S = 120
SNIPPET_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block of a page."""

    kind: str
    needs_engine: bool
    text: str


def read_snippets(page: Path) -> list[Snippet]:
    """Every block of a page, in order."""
    found = FENCE.findall(page.read_text("utf-8"))
    return [Snippet(info.split()[0] if info.split() else "", info.endswith(" engine"), text) for info, text in found]


def prose_of(page: Path) -> str:
    """The page without its blocks and inline code, in which nothing is a link."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text("utf-8")))


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


RUNNABLE = [page for page in PAGES if any(snippet.kind in ("bash", "python") for snippet in read_snippets(page))]
PLAIN = [
    page for page in RUNNABLE if any(s.kind in ("bash", "python") and not s.needs_engine for s in read_snippets(page))
]
WITH_ENGINE = [page for page in RUNNABLE if any(snippet.needs_engine for snippet in read_snippets(page))]


# the reference


def test_reference_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert written == render(main), "docs/reference.md is out of date: run `orchestrator reference > docs/reference.md`"


@pytest.mark.parametrize(
    ("path", "command"), list(walk(main)), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_option_has_a_help_text(path: str, command: click.Command) -> None:
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not (p.help or "").strip()]
    assert (command.help or "").strip(), f"{path} has no docstring"
    assert not silent, f"{path}: options without help: {silent}"


def test_every_setting_has_a_help_text() -> None:
    assert not [name for name, text in variables().items() if not text.strip().endswith(".")]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_error_is_described_and_drawn_in_the_tree(error: type[errors.OrchestratorError]) -> None:
    assert (error.__doc__ or "").strip().endswith(".")
    assert error.__name__ in (errors.__doc__ or "")


def test_documented_keys_of_a_request_are_those_that_are_accepted() -> None:
    catalogue = load_catalogue(folder("prompts"))
    moment = "2025-03-01"
    values = {"route": "grounded", "collection": "c", "as_of": moment, "known_at": moment, "where": {"a": 1}, "k": 3}
    values |= {"max_cost": 1.5, "min_quality": 0.5, "deadline_ms": 900}
    body = {"model": "orchestrator", "messages": [{"role": "user", "content": "x"}]}
    assert values.keys() == OWN_KEYS.keys()
    parse_chat({**body, "orchestrator": values}, catalogue, "default")
    with pytest.raises(errors.InputError):
        parse_chat({**body, "orchestrator": {**values, "other": 1}}, catalogue, "default")


# the pages


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(prose_of(page)) if not link.startswith(("http:", "https:", "mailto:"))]
    broken = [link for link in targets if not _resolves(page, link)]
    assert not broken, f"{name_of(page)} links to nothing: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_they_are(page: Path) -> None:
    unknown = [snippet.text[:60] for snippet in read_snippets(page) if snippet.kind not in KINDS]
    assert not unknown, f"{name_of(page)}: fences must be one of {sorted(KINDS)}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_named_in_a_page_exist(page: Path) -> None:
    named = set(re.findall(r"\bORCHESTRATOR_[A-Z_]*[A-Z]\b", page.read_text("utf-8")))
    assert named <= variables().keys()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_named_in_a_page_exist(page: Path) -> None:
    known = {path for path, _ in walk(main)}
    text = page.read_text("utf-8")
    named = re.findall(
        r"(?:^|`|&& )orchestrator ([a-z]+)(?: (list|show|history|delete|verify|promote|rollback|retire)\b)?", text, re.M
    )
    missing = [" ".join(["orchestrator", *filter(None, parts)]) for parts in named]
    assert not [name for name in missing if name not in known | {"orchestrator reference"}]


def _resolves(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in _anchors(target)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# the snippets


@pytest.fixture(scope="session")
def home(models_dir: Path) -> Iterator[dict[str, str]]:
    """Environment with an embedded PostgreSQL and no engine."""
    directory = Path(tempfile.mkdtemp(prefix="orch-docs-"))
    directory.chmod(0o755)  # run as root, PostgreSQL's own user must reach its data
    environment = {**os.environ, "ORCHESTRATOR_HOME": str(directory), "ORCHESTRATOR_MODELS_DIR": str(models_dir)}
    try:
        yield environment
    finally:
        down = [sys.executable, "-m", "orchestrator", "down"]
        subprocess.run(down, env=environment, capture_output=True, timeout=120, check=False)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("page", PLAIN, ids=name_of)
def test_snippets_without_an_engine_run(page: Path, home: dict[str, str], tmp_path: Path) -> None:
    run_page([snippet for snippet in read_snippets(page) if not snippet.needs_engine], page, home, tmp_path)


@pytest.mark.vllm
@pytest.mark.parametrize("page", WITH_ENGINE, ids=name_of)
def test_snippets_with_an_engine_run(page: Path, stack: dict[str, str], tmp_path: Path) -> None:
    shown = run_page(read_snippets(page), page, stack, tmp_path)
    missing = [text for text in CITED.get(name_of(page), ()) if text not in shown]
    assert not missing, f"{name_of(page)}: no answer shows {missing}:\n{shown}"


@dataclass(slots=True)
class Page:
    """A page while its snippets run."""

    name: str
    directory: Path
    environment: dict[str, str]
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def run(self, snippet: Snippet) -> None:
        """Runs one block; fails with what it printed."""
        text = snippet.text.replace(PLACEHOLDER_ADDRESS, f"127.0.0.1:{self.environment['ORCHESTRATOR_PORT']}")
        if snippet.kind == "bash" and text.startswith("orchestrator serve"):
            self._serve(text)
            return
        variables_file = self.directory / ".variables"
        script = f"set -euo pipefail\n{text}\nenv -0 >'{variables_file}'\n"
        command = ["bash", "-c", script] if snippet.kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SNIPPET_TIMEOUT_S,
            check=False,
        )
        shown = done.stdout.decode(errors="replace")
        self.shown.append(shown)
        assert done.returncode == 0, f"a snippet of {self.name} ended with {done.returncode}:\n{snippet.text}\n{shown}"
        if variables_file.exists():
            pairs = (line.partition("=") for line in variables_file.read_text().split("\0") if line)
            self.environment = {name: value for name, _, value in pairs}

    def _serve(self, text: str) -> None:
        log = (self.directory / ".serve.log").open("wb")
        server = subprocess.Popen(
            ["bash", "-c", f"exec {text}"], cwd=self.directory, env=self.environment, stdout=log, stderr=log
        )
        log.close()
        self.servers.append(server)
        url = f"http://127.0.0.1:{self.environment['ORCHESTRATOR_PORT']}/healthz"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            shown = (self.directory / ".serve.log").read_text(errors="replace")
            assert server.poll() is None, f"the server of {self.name} ended: {shown}"
            assert time.monotonic() < deadline, f"the server of {self.name} did not answer: {shown}"
            time.sleep(0.2)

    def close(self) -> None:
        """Stops the page's servers."""
        for server in self.servers:
            server.terminate()
            server.wait(60)


def run_page(snippets: list[Snippet], page: Path, environment: dict[str, str], directory: Path) -> str:
    """Runs the blocks of one page in order, in ``directory``; gives what they printed."""
    (directory / "examples").symlink_to(ROOT / "examples")
    programs = f"{_program(directory)}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"ORCHESTRATOR_TENANT": name_of(page), "ORCHESTRATOR_PORT": str(_free_port()), "PATH": programs}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    running = Page(name_of(page), directory, {**environment, **own})
    try:
        running.run(Snippet("bash", False, 'orchestrator tenants add "$ORCHESTRATOR_TENANT"'))
        for snippet in snippets:
            if snippet.kind in ("bash", "python"):
                running.run(snippet)
    finally:
        running.close()
    return "".join(running.shown)


def _program(directory: Path) -> Path:
    """A folder with the command ``orchestrator``, whether or not this checkout is installed."""
    folder = directory / ".bin"
    folder.mkdir()
    program = folder / "orchestrator"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator "$@"\n')
    program.chmod(0o755)
    return folder


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
