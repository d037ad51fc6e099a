"""Finds the folders that ship with the package (``prompts``, ``migrations``), installed or in a checkout; names the machine."""

from __future__ import annotations

import platform
from pathlib import Path

from orchestrator.errors import SettingsError


def folder(name: str) -> Path:
    """The folder ``name``: ``orchestrator/_name`` in an installed wheel, ``name`` beside the package in a checkout.

    Raises SettingsError when neither exists.
    """
    package = Path(__file__).resolve().parent
    # The wheel's own copy goes first: beside an installed package lies site-packages, where `prompts` is another's.
    for candidate in (package / f"_{name}", package.parent / name, package.parent / "examples" / name):
        if candidate.is_dir():
            return candidate
    raise SettingsError(
        f"the folder {name!r} is missing from this installation. Install again: "
        "pip install --force-reinstall hybrid-orchestrator"
    )


def processor() -> str:
    """The processor's name, as a measurement or a manifest gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
