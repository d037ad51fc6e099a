"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ("tests.postgres_fixtures",)

hypothesis.settings.register_profile("ours", deadline=None)  # tests assert behaviour, never wall-clock time
hypothesis.settings.load_profile("ours")

# `ORCHESTRATOR_*` of the developer's shell must not leak into tests; the cache of weights may be shared.
_MODELS = os.environ.get("ORCHESTRATOR_MODELS_DIR")
for _name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
    del os.environ[_name]

PROGRAM = [sys.executable, "-m", "orchestrator"]


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The cache of model weights that this user has anyway; filled when a test first needs it."""
    from orchestrator.settings import Settings

    return Path(_MODELS) if _MODELS else Settings.from_env({}).models


@pytest.fixture(scope="session")
def stack(models_dir: Path) -> Iterator[dict[str, str]]:
    """Environment of a running embedded stack: PostgreSQL, vLLM and the shipped adapter, proven. One per session."""
    home = Path(tempfile.mkdtemp(prefix="orch-stack-"))
    home.chmod(0o755)  # run as root, PostgreSQL's own user must reach its data
    environment = {**os.environ, "ORCHESTRATOR_HOME": str(home), "ORCHESTRATOR_MODELS_DIR": str(models_dir)}
    try:
        up = subprocess.run([*PROGRAM, "up"], env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert up.returncode == 0, f"orchestrator up failed:\n{up.stdout}\n{up.stderr}\n{_logs(home)}"
        yield environment
    finally:
        subprocess.run([*PROGRAM, "down"], env=environment, capture_output=True, timeout=120, check=False)
        shutil.rmtree(home, ignore_errors=True)


def _logs(home: Path) -> str:
    return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in (home / "logs").glob("*"))
