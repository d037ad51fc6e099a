"""The supervisor's own process, detached from whoever started it: ``python -m orchestrator.launch.watch HOME``.

It reads run/desired.json (again on SIGHUP), keeps those vLLM children running, writes run/state.json whenever something
changes, and on SIGTERM stops them all. A child that is replaced goes on answering until its successor is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from orchestrator.engine import VllmEngine
from orchestrator.errors import EngineError
from orchestrator.launch import children
from orchestrator.launch.vllm import PORT, Child

logger = logging.getLogger(__name__)

MARKER = "ORCH_HOME"  # in the environment of every child, so that leftovers can be found
READY_TIMEOUT_S = 600
READY_POLL_S = 0.2
HEALTH_POLL_S = 5
SICK_POLLS = 24  # a busy machine answers late: only two minutes without an answer count as dead
DRAIN_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15
LONGEST_PAUSE_S = 30
FAILURES_BEFORE_GIVING_UP = 3
LOG_LIMIT_BYTES = 20_000_000
PR_SET_PDEATHSIG = 1


class Supervisor:
    """Keeps the children of one home running."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._running: dict[str, _Running] = {}
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._desired = ""
        self._orders = 0  # how often desired.json was read
        self._born = children.birth(os.getpid())

    async def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._changed.set)
        self.write_state()  # from now on SIGHUP is understood
        self._changed.set()
        stopped = asyncio.create_task(self._stopping.wait())
        while not stopped.done():
            changed = asyncio.create_task(self._changed.wait())
            await asyncio.wait({stopped, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if self._changed.is_set() and not stopped.done():
                self._changed.clear()
                self._reconcile()
        await asyncio.gather(*(running.stop() for running in self._running.values()))
        (self.home / "run" / "state.json").unlink(missing_ok=True)

    def write_state(self) -> None:
        """What ``status`` reads: ours first, then each child."""
        state = {
            "pid": os.getpid(),
            "born": self._born,
            "desired": self._desired,
            "orders": self._orders,
            "children": [running.as_json() for running in self._running.values()],
        }
        try:
            children.write_atomic(self.home / "run" / "state.json", orjson.dumps(state, option=orjson.OPT_INDENT_2))
        except OSError as error:  # a full disk must not end the supervisor
            logger.error("cannot write the state: %s", error)

    def _reconcile(self) -> None:
        path = self.home / "run" / "desired.json"
        self._orders += 1
        self._desired = children.file_digest(path)
        wanted = {child.key: child for child in map(Child.read, orjson.loads(path.read_bytes()))}
        for key, child in wanted.items():
            if key in self._running and not self._running[key].retiring:
                self._running[key].adjust(child)
            elif key not in self._running:
                self._running[key] = _Running(child, self)
        for key, running in self._running.items():
            if key not in wanted and not running.retiring:
                running.retire()
        self.write_state()
        for running in [running for running in self._running.values() if running.retiring]:
            running.begin_retirement(self._successor(running))

    def _successor(self, old: _Running) -> _Running | None:
        names = (r for r in self._running.values() if not r.retiring and r.child.name == old.child.name)
        return next(names, None)

    def forget(self, running: _Running) -> None:
        """A child that was replaced is gone."""
        self._running.pop(running.child.key, None)
        self.write_state()


class _Running:
    """One child: its process, and what it takes to have it ready."""

    def __init__(self, child: Child, supervisor: Supervisor) -> None:
        self.child = child
        self.retiring = False
        self._supervisor = supervisor
        self._state = "starting"
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0
        self._born: str | None = None
        self._restarts = 0
        self._error = ""
        self._attempt = 0
        self._settled = asyncio.Event()  # ready or failed for now
        self._again = asyncio.Event()
        self._retirement: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._keep())

    def as_json(self) -> dict[str, Any]:
        """One entry of state.json."""
        return {
            "key": self.child.key,
            "name": self.child.name,
            "model": self.child.model,
            "state": self._state,
            "retiring": self.retiring,
            "pid": self._process.pid if self._process else None,
            "born": self._born,
            "url": self.url,
            "restarts": self._restarts,
            "error": self._error,
        }

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def adjust(self, child: Child) -> None:
        """The same process, perhaps with more adapters; one that had given up tries again."""
        fresh = set(child.adapters) - set(self.child.adapters)
        self.child = child
        self._again.set()
        if self._state == "failed":
            self._state = "starting"
        if fresh and self._state == "ready":
            self._state = "starting"
            self._task_of_adapters = asyncio.create_task(self._load_adapters())

    def retire(self) -> None:
        """It is not wanted any more, but answers until its successor is ready."""
        self.retiring = True

    def begin_retirement(self, successor: _Running | None) -> None:
        """Waits for the successor and for its own last answer, then stops."""
        if self._retirement is None:
            self._retirement = asyncio.create_task(self._retire(successor))

    async def stop(self) -> None:
        """Ends the process and all that it started."""
        self._task.cancel()
        if self._retirement and self._retirement is not asyncio.current_task():
            self._retirement.cancel()
        await asyncio.wait({self._task})
        if self._process:
            await asyncio.to_thread(children.end_session, self._process.pid, self._born, STOP_TIMEOUT_S)

    async def _retire(self, successor: _Running | None) -> None:
        if successor:
            await successor._settled.wait()
        self._supervisor.write_state()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while self._state == "ready" and await _is_busy(self.url):  # noqa: ASYNC110
                    await asyncio.sleep(READY_POLL_S)
        await self.stop()
        self._supervisor.forget(self)

    async def _keep(self) -> None:
        failures = 0
        while True:
            self._become("starting", self._error)
            began = time.monotonic()
            if problem := await self._spawn() or await self._wait_ready():
                failures += 1
                self._attempt = min(self._attempt + 1, len(self.child.commands) - 1)
            else:
                failures = 0
                problem = await self._wait_dead()
            self._restarts += 1
            logger.warning("%s: %s", self.child.name, problem)
            await self._clear()
            if failures >= max(FAILURES_BEFORE_GIVING_UP, len(self.child.commands)):
                self._become("failed", f"{problem}\n{children.tail(self._log, 8)}")
                self._again.clear()
                await self._again.wait()
                failures = self._attempt = 0
                continue
            self._become("starting", problem)
            if failures or time.monotonic() - began < LONGEST_PAUSE_S:
                await asyncio.sleep(min(2 ** max(0, failures - 1), LONGEST_PAUSE_S))

    async def _spawn(self) -> str:
        """Starts the process; what went wrong, or nothing."""
        self._process = None
        self._port = _free_port(self._port)
        command = [word.replace(PORT, str(self._port)) for word in self.child.commands[self._attempt]]
        try:
            self._process = await self._start(command)
        except OSError as error:
            return f"could not be started: {error}"
        self._born = children.birth(self._process.pid)
        self._supervisor.write_state()
        return ""

    async def _start(self, command: list[str]) -> asyncio.subprocess.Process:
        if self._log.exists() and self._log.stat().st_size > LOG_LIMIT_BYTES:
            self._log.rename(self._log.with_suffix(".log.1"))
        inherited = {n: v for n, v in children.environment().items() if not n.startswith("ORCHESTRATOR_")}
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=inherited | dict(self.child.env) | {MARKER: str(self._supervisor.home)},
                cwd=self._supervisor.home,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    async def _wait_ready(self) -> str:
        """What went wrong; empty when it is ready, adapters included."""
        assert self._process is not None
        engine = VllmEngine(self.url)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await engine.is_ready():
                    if self._process.returncode is not None:
                        return f"ended with exit code {self._process.returncode} before it was ready"
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError:
            return f"was not ready after {READY_TIMEOUT_S} s"
        finally:
            await engine.aclose()
        await self._load_adapters()
        return ""

    async def _load_adapters(self) -> None:
        """A refused adapter is told and does not stop the others (row D5)."""
        engine, refused = VllmEngine(self.url), []
        try:
            served = await engine.models()
            for name, path in self.child.adapters:
                if name not in served:
                    try:
                        await engine.load_adapter(name, path)
                    except EngineError as error:
                        refused.append(error.message)
        except EngineError as error:
            refused.append(error.message)
        finally:
            await engine.aclose()
        self._become("ready", "; ".join(refused))

    async def _wait_dead(self) -> str:
        """Returns why the child must be started again."""
        assert self._process is not None
        ended = asyncio.create_task(self._process.wait())
        engine, sick = VllmEngine(self.url), 0
        try:
            while sick < SICK_POLLS:
                done, _ = await asyncio.wait({ended}, timeout=HEALTH_POLL_S)
                if done:
                    return f"ended with exit code {ended.result()}"
                sick = 0 if await engine.is_ready() else sick + 1
            return "did not answer its health check for two minutes"
        finally:
            ended.cancel()
            await engine.aclose()

    async def _clear(self) -> None:
        if self._process:
            await asyncio.to_thread(children.end_session, self._process.pid, self._born, 0)
            await self._process.wait()

    def _become(self, state: str, error: str) -> None:
        self._state, self._error = state, error
        if state == "starting":
            self._settled.clear()
        else:
            self._settled.set()
        logger.info("%s is %s", self.child.name, state)
        self._supervisor.write_state()

    @property
    def _log(self) -> Path:
        return self._supervisor.home / "logs" / f"{self.child.name}.log"


async def _is_busy(url: str) -> bool:
    import aiohttp

    try:
        async with asyncio.timeout(2), aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
            lines = (await response.text()).splitlines()
    except (aiohttp.ClientError, OSError):
        return False
    counts = (line for line in lines if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{")))
    return any(float(line.rsplit(" ", 1)[1]) > 0 for line in counts)


def _free_port(wanted: int) -> int:
    """The port it had, so that callers need not look again, or any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise EngineError("No TCP port is free on 127.0.0.1.")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Detaches, takes the lock of the home, runs. A second supervisor for one home ends at once."""
    home = Path(sys.argv[1]).absolute()
    if os.fork():
        os._exit(0)
    os.setsid()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with children.file_lock(home / "run" / "supervisor.lock", wait=False) as alone:
        if alone:
            asyncio.run(_run(home))


async def _run(home: Path) -> None:
    await Supervisor(home).run()


if __name__ == "__main__":
    main()
