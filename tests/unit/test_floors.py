"""Known-bad versions (row D11): neither what we ask for nor what is locked may lie below the version that mended it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "starlette": "1.0.1",  # CVE-2026-48710: a Host header decides which path a check sees
    "vllm": "0.33",  # CVE-2026-55574, GHSA-hf3c, GHSA-69j4: one request ends the engine
    "torch": "2.6",  # CVE-2025-32434: weights_only=True runs code
    "pypdf": "6.16.1",
}
# LiteLLM 1.82.7/8 shipped a stealer; a package that we do not have cannot be poisoned.
BANNED = {"litellm"}


def asked_for() -> list[Requirement]:
    """Every requirement of the project, its extras and its tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lists = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    return [Requirement(line) for each in lists for line in each]


def locked() -> dict[str, Version]:
    """What `make setup` installs."""
    lines = (ROOT / "requirements" / "cpu.txt").read_text("utf-8").splitlines()
    pinned = [re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", line) for line in lines]
    return {found[1].lower().replace("_", "-"): Version(found[2]) for found in pinned if found}


def lowest(requirement: Requirement) -> Version:
    """The lowest version that a requirement lets in."""
    bounds = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==", "~=")]
    return max(bounds, default=Version("0"))


@pytest.mark.parametrize("name", FLOORS)
def test_nothing_below_a_floor_is_asked_for(name: str) -> None:
    found = [each for each in asked_for() if each.name == name]

    assert found
    assert all(lowest(each) >= Version(FLOORS[name]) for each in found)


def test_nothing_below_a_floor_is_locked() -> None:
    versions = locked()

    assert len(versions) > 100
    assert {name for name, floor in FLOORS.items() if name in versions and versions[name] < Version(floor)} == set()


def test_what_was_poisoned_is_not_there() -> None:
    assert BANNED.isdisjoint(locked())
    assert BANNED.isdisjoint(each.name for each in asked_for())
