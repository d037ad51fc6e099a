"""Child processes of ours and what they share: their environment, file locks, atomic writes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from orchestrator.errors import LaunchError, MissingExtraError

if TYPE_CHECKING:
    import psutil

SITE = Path(__file__).parent / "site"  # holds sitecustomize.py, see there


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child that imports torch, transformers or vLLM: offline, quiet, and able to find us."""
    ours = Path(__file__).resolve().parents[2]
    search = [str(SITE), str(ours), *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        os.environ
        | {
            "PYTHONPATH": os.pathsep.join(search),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        | extra
    )


def run_module(module: str, *arguments: str, what: str, extra: str) -> None:
    """Runs ``python -m module`` to its end. Raises LaunchError with its last lines; MissingExtraError on exit code 3."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment(), check=False)
    if done.returncode == 3:
        raise MissingExtraError(extra, what)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise LaunchError(f"{what} failed with exit code {done.returncode}. The last lines were:\n{tail}")


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` between processes; the kernel drops it when the holder dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces ``path`` so that a reader sees the old or the new content, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty when the file is missing or not JSON."""
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find(pid: int | None, since: float | None) -> psutil.Process | None:
    """The process with that pid and start time (seconds since 1970); None when it ended or its pid was given away."""
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("embedded", "Running services on this machine") from error
    try:
        process = psutil.Process(pid or 0)
        same = pid is not None and process.create_time() == since and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if same else None


def fsync(path: Path) -> None:
    """Makes a file or a folder's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
