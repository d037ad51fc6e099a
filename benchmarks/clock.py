"""What a block of a benchmark costs: wall seconds, and CPU seconds of this process, its children and the embedded PostgreSQL.

CPU seconds hold on a busy machine, wall seconds do not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Spent:
    """Seconds of one block; ``server_cpu``: of PostgreSQL."""

    wall: float = 0.0
    client_cpu: float = 0.0
    server_cpu: float = 0.0


@contextmanager
def measured(home: Path | None = None) -> Iterator[Spent]:
    """Counts until the block ends; ``home``: where the embedded PostgreSQL is, without it the server counts nothing."""
    spent = Spent()
    began, client, server = time.perf_counter(), client_seconds(), server_seconds(home) if home else 0.0
    yield spent
    spent.wall, spent.client_cpu = time.perf_counter() - began, client_seconds() - client
    spent.server_cpu = server_seconds(home) - server if home else 0.0


def client_seconds() -> float:
    """CPU seconds of this process and of its children that embed or read."""
    children = (child for child in psutil.Process().children() if "postgres" not in child.name())
    return time.process_time() + sum(_own(child) for child in children)


def server_seconds(home: Path) -> float:
    """CPU seconds of the server and of what it started; a backend that has ended counts as the postmaster's child."""
    pid = int((home / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    postmaster = psutil.Process(pid)
    times = postmaster.cpu_times()
    ended = times.children_user + times.children_system
    return float(_own(postmaster) + ended + sum(_own(child) for child in postmaster.children(recursive=True)))


def _own(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
