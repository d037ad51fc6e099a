"""Finds the folders that ship with the package (``prompts``, ``migrations``), installed or in a checkout."""

from __future__ import annotations

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
