"""Reads documents in a child process that may die: limits on memory, time and reply, one retry, then given up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import BinaryIO

from orchestrator.errors import LoadError
from orchestrator.knowledge.sources import frames, parse, sandbox
from orchestrator.knowledge.sources.frames import Parsed, Trouble

log = logging.getLogger(__name__)

WALL_S = 60.0  # for one file, its retry included; time spent waiting for a processor does not count
MAX_STARVED_S = 540.0  # more of it, at most, on a machine that has too much to do
MAX_FILES = 500  # that one child reads: what libraries leak is bounded
BLOCK = 1 << 20


class Worker:
    """A child that reads files, started when it is first needed and replaced when it died or is worn."""

    def __init__(self, wall_s: float = WALL_S, cpu_s: int = sandbox.CPU_S) -> None:
        self._wall_s = wall_s
        self._cpu_s = cpu_s
        self._child: subprocess.Popen[bytes] | None = None
        self._served = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def parse(self, kind: str, stream: BinaryIO, size: int, hint: str = "") -> list[Parsed | Trouble]:
        """What is in a file of ``size`` bytes; a Trouble that is poisoned when it broke its reader twice.

        A reader that dies of something else than time is given a second chance in a new child: what broke it may have
        been left there by the file before.
        """
        deadline = time.monotonic() + self._wall_s
        begin = stream.tell()
        for attempt in (1, 2):
            was_used = self._served > 0
            found, is_final = self._attempt(kind, stream, size, hint, deadline)
            broken = [one for one in found if isinstance(one, Trouble) and one.poisoned]
            if not broken:
                return found
            self.close()
            log.warning("reading a %s of %d bytes failed (attempt %d): %s", kind, size, attempt, broken[0].reason)
            if (is_final and not was_used) or time.monotonic() > deadline:
                break
            stream.seek(begin)
        return [broken[0]]

    def close(self) -> None:
        """Ends the child."""
        child, self._child, self._served = self._child, None, 0
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):  # what could not be written to it
                pipe.close()  # type: ignore[union-attr]
        child.wait()

    def _attempt(
        self, kind: str, stream: BinaryIO, size: int, hint: str, deadline: float
    ) -> tuple[list[Parsed | Trouble], bool]:
        """One reply, and whether a second attempt would be the same; a poisoned Trouble when there was no reply."""
        child = self._ready_child()
        self._served += 1
        watch = _Watch(child, deadline)
        watch.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it died: how, says more
                request = {"kind": kind, "size": size, "hint": hint[:1_000], "cpu_s": self._cpu_s}
                _send(child, json.dumps(request), stream, size)
            return frames.receive(_reply(child)), False
        except EOFError:
            status = child.wait()
        except LoadError as error:
            return [Trouble(error.message, poisoned=True)], True
        finally:
            watch.stop()
        if watch.was_late:
            return [Trouble(f"reading the file took more than {self._wall_s:.0f} s", poisoned=True)], True
        if status == -getattr(signal, "SIGXCPU", 0):
            return [Trouble(f"reading the file took more than {self._cpu_s} s of processor time", poisoned=True)], True
        return [Trouble(f"the file broke its reader ({_name_of(status)})", poisoned=True)], False

    def _ready_child(self) -> subprocess.Popen[bytes]:
        """A child that waits for a file. Raises LoadError when none can be started, which is no file's fault."""
        if self._child is not None and (self._child.poll() is not None or self._served >= MAX_FILES):
            self.close()
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-B", parse.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=os.sep,
                env=bare_environment(),
            )
            try:
                frames.receive(_reply(self._child))
            except EOFError:
                status = self._child.wait()
                self.close()
                raise LoadError(
                    f"the process that reads documents does not start (exit {status}); see what it says: "
                    f"{sys.executable} -P {parse.__file__}"
                ) from None
        return self._child


class _Watch(threading.Thread):
    """Kills a child at the deadline, which is put off by the time that the child was ready and got no processor.

    On a machine with too much to do, 7 s of work took 60 s: that is nothing a file did.
    """

    def __init__(self, child: subprocess.Popen[bytes], deadline: float) -> None:
        super().__init__(name="document-watch", daemon=True)
        self.was_late = False
        self._child, self._deadline = child, deadline
        self._latest = deadline + MAX_STARVED_S
        self._ended = threading.Event()
        self._waited_before = _waited_s(child.pid)

    def run(self) -> None:
        """Waits until the file is read, or for too long."""
        end = self._deadline
        while not self._ended.wait(max(end - time.monotonic(), 0.05)):
            waited = _waited_s(self._child.pid) - self._waited_before
            end = min(self._deadline + waited, self._latest)
            if time.monotonic() >= end:
                self.was_late = True
                self._child.kill()
                return

    def stop(self) -> None:
        """The file is read."""
        self._ended.set()
        self.join()


def _waited_s(pid: int) -> float:
    """Seconds that a process was ready to run and did not; 0 where the kernel does not say."""
    try:
        with open(f"/proc/{pid}/schedstat") as stats:
            return int(stats.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def bare_environment() -> dict[str, str]:
    """Enough for Python to start; no database URL, no keys."""
    kept = ("PATH", "PYTHONHOME", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    if os.environ.get("PYTHONPATH"):
        folders = os.environ["PYTHONPATH"].split(os.pathsep)
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(folder) for folder in folders if folder)
    return found


def _send(child: subprocess.Popen[bytes], request: str, stream: BinaryIO, size: int) -> None:
    pipe = child.stdin
    assert pipe is not None
    pipe.write(request.encode("ascii") + b"\n")
    left = size
    while left > 0 and (block := stream.read(min(BLOCK, left))):
        pipe.write(block)
        left -= len(block)
    while left > 0:  # the file was cut while it was read: the child waits for what was promised
        pipe.write(bytes(min(BLOCK, left)))
        left -= BLOCK
    pipe.flush()


def _reply(child: subprocess.Popen[bytes]) -> BinaryIO:
    assert child.stdout is not None
    return child.stdout  # type: ignore[return-value]


def _name_of(status: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name if status < 0 else f"exit {status}"
    return f"exit {status}"
