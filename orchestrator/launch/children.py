"""Child processes of ours and what they share: their environment, file locks, atomic writes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from orchestrator.errors import LaunchError, MissingExtraError

if TYPE_CHECKING:
    import psutil

KILL_TIMEOUT_S = 10
GONE_POLL_S = 0.02
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
    """Runs ``python -m module`` to its end. Raises LaunchError with its last lines, MissingExtraError on exit code 3."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment(), check=False)
    if done.returncode == 3:
        raise MissingExtraError(extra, what)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise LaunchError(f"{what} failed with exit code {done.returncode}. The last lines were:\n{tail}")


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock on ``path`` between processes, and says whether it was got; it dies with its holder."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces ``path`` so that a reader sees the old or the new content, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty when the file cannot be read or is not JSON."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find(pid: int | None, born: str | None) -> psutil.Process | None:
    """The process with that pid and birth; None when it ended or its pid was given away."""
    if pid is None or born is None or birth(pid) != born:
        return None
    try:
        return _psutil().Process(pid)
    except _psutil().Error:
        return None


def birth(pid: int) -> str | None:
    """Tells a process from a later one with its pid; None when it does not run (a zombie does not).

    Not its start time: that moves when the clock is set, and a living supervisor would be taken for dead (row F14).
    """
    try:
        process = _psutil().Process(pid)
        if process.status() == _psutil().STATUS_ZOMBIE:
            return None
        if sys.platform != "linux":
            return str(process.create_time())
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"
    except (_psutil().Error, OSError):
        return None


def since(pid: int) -> datetime | None:
    """When the process started, for people to read."""
    try:
        return datetime.fromtimestamp(_psutil().Process(pid).create_time(), UTC)
    except _psutil().Error:
        return None


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Session leaders of ours whose environment holds ``variable=value``."""
    found = []
    for process in _psutil().process_iter():
        try:
            if process.environ().get(variable) == value and os.getsid(process.pid) == process.pid:
                found.append(process)
        except (_psutil().Error, OSError):
            continue
    return found


def end_session(leader: int, born: str | None, patience_s: float) -> None:
    """Ends every process of the session of ``leader``: that one by SIGTERM, after ``patience_s`` all by SIGKILL.

    vLLM renames its processes, which overwrites their environment; their session stays. A living leader with another
    birth means that the number was given away, which happens only once the whole session is gone.
    """
    leaders = [process for process in _session(leader, born) if process.pid == leader]
    if patience_s and leaders:  # it ends its own children; what it leaves is killed
        _signal(leaders, signal.SIGTERM)
        _wait(leaders, patience_s)
    wait_gone(_session(leader, born), 0)


def wait_gone(processes: Sequence[psutil.Process], patience_s: float) -> None:
    """Waits until they ended; what is left after ``patience_s`` is killed."""
    alive = _wait(processes, patience_s)
    _signal(alive, signal.SIGKILL)
    _wait(alive, KILL_TIMEOUT_S)


def _wait(processes: Sequence[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """Those that still run after ``patience_s``. A zombie has ended: in a container nobody may ever reap it."""
    end = time.monotonic() + patience_s
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < end:
        time.sleep(GONE_POLL_S)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != _psutil().STATUS_ZOMBIE)
    except _psutil().Error:
        return False


def _session(leader: int, born: str | None) -> list[psutil.Process]:
    if birth(leader) not in (None, born):
        return []
    members = []
    for process in _psutil().process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != _psutil().STATUS_ZOMBIE:
                members.append(process)
        except (_psutil().Error, OSError):
            continue
    return members


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(_psutil().NoSuchProcess):
            process.send_signal(number)


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("embedded", "Running services on this machine") from error
    return psutil


def digest(value: Any) -> str:
    """Names a JSON value by its content."""
    return bytes_digest(orjson.dumps(value))


def bytes_digest(content: bytes) -> str:
    """Names bytes by their content."""
    return hashlib.sha256(content).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The same of a file; empty when there is none."""
    try:
        return bytes_digest(path.read_bytes())
    except FileNotFoundError:
        return ""


def tail(log: Path, lines: int) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            return "\n".join(file.read().decode("utf-8", "replace").strip().splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def fsync(path: Path) -> None:
    """Makes a file or a folder's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
