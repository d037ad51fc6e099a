"""The command line: ``orchestrator COMMAND``, each with --json; exit codes 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import importlib
from typing import Any

import click

import orchestrator

_COMMANDS = {
    "demo": "demo",
    "up": "services",
    "status": "services",
    "down": "services",
    "doctor": "services",
    "serve": "services",
    "ingest": "knowledge",
    "documents": "knowledge",
    "collections": "collections",
    "jobs": "jobs",
    "search": "answers",
    "ask": "answers",
    "plan": "answers",
    "audit": "answers",
    "eval": "evaluate",
    "diagnose": "diagnose",
    "advise": "advise",
    "improve": "improve",
    "router": "router",
    "tenants": "tenants",
    "keys": "tenants",
    "migrate": "tenants",
    "feedback": "data",
    "data": "data",
    "train": "train",
    "adapters": "behaviour",
    "contracts": "contracts",
    "reference": "reference",
}


class LazyGroup(click.Group):
    """Loads a command's module when it is asked for, so that ``--version`` stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of a first day."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"orchestrator.cli.{_COMMANDS[cmd_name]}")
        found: Any = getattr(module, cmd_name)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(orchestrator.__version__, prog_name="orchestrator")
def main() -> None:
    """Answers questions from documents (PostgreSQL + pgvector) in a trained format (vLLM + LoRA)."""
