"""Starts, shows and stops the embedded vLLM; a detached process (launch/watch) keeps it running.

run/desired.json   what should run, written here      run/state.json   what runs, written by the supervisor
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import LaunchError
from orchestrator.launch import children, vllm
from orchestrator.launch.service import Service
from orchestrator.launch.vllm import Child, Progress
from orchestrator.launch.watch import MARKER, STOP_TIMEOUT_S
from orchestrator.settings import Settings
from orchestrator.types import Adapter

UP_TIMEOUT_S = 1200
SUPERVISOR_TIMEOUT_S = 30
POLL_S = 0.1


def up(
    settings: Settings,
    *,
    adapters: Sequence[Adapter] = (),
    merged: Adapter | None = None,
    wait: bool = True,
    progress: Progress | None = None,
) -> list[Service]:
    """The engines, running with these adapters; found running, it returns at once. Raises LaunchError, MissingExtraError.

    An engine of the merged adapter that fails is told in its Service; the base engine has the adapter as well.
    """
    wanted = vllm.plan(settings, adapters, merged)
    home = settings.home_dir.absolute()
    if not _is_current(home, wanted) or any(service.state != "ready" for service in status(home)):
        vllm.prepare(settings, merged, progress)
    return ensure(home, wanted, wait=wait, progress=progress)


def ensure(
    home: Path, wanted: Sequence[Child], *, wait: bool = True, progress: Progress | None = None
) -> list[Service]:
    """These children, running under the one supervisor of ``home``. Raises LaunchError when the first cannot run."""
    orders = 0
    try:
        if not (_is_current(home, wanted) and all(service.state == "ready" for service in status(home))):
            with children.file_lock(home / "run" / "up.lock"):
                orders = _order(home, wanted)
    except OSError as error:
        what = "Free space or fix permissions, or set ORCHESTRATOR_HOME."
        raise LaunchError(f"Cannot write to {home}: {error}. {what}") from error
    return _wait(home, orders, progress) if wait else status(home)


def down(home: Path) -> None:
    """Stops the engines and the supervisor and leaves no process behind, whoever was killed before."""
    home = home.absolute()
    if not (home / "run").exists():
        return
    with children.file_lock(home / "run" / "up.lock"):
        state = children.read_json(home / "run" / "state.json")
        if supervisor := children.find(state.get("pid"), state.get("born")):
            supervisor.terminate()
            children.wait_gone([supervisor], STOP_TIMEOUT_S + 10)
        _sweep(home, state)
        for name in ("state.json", "desired.json"):
            (home / "run" / name).unlink(missing_ok=True)


def status(home: Path) -> list[Service]:
    """Every embedded engine as it is now; one that is being replaced is left out."""
    home = home.absolute()
    state = children.read_json(home / "run" / "state.json")
    if not state:
        return [Service("engine", "stopped", remedy="orchestrator up")]
    alive = children.find(state.get("pid"), state.get("born")) is not None
    entries = [entry for entry in state["children"] if not entry["retiring"]]
    if not alive:
        services = [
            Service(
                entry["name"],
                "failed",
                detail="its supervisor was killed",
                remedy="orchestrator up",
                model=entry["model"],
            )
            for entry in entries
        ]
        return services or [Service("engine", "stopped", remedy="orchestrator up")]
    return [_service(home, entry) for entry in entries] or [Service("engine", "starting", detail="supervisor started")]


def _service(home: Path, entry: dict[str, Any]) -> Service:
    process = children.find(entry["pid"], entry["born"])
    state, detail = entry["state"], entry["error"].strip()
    if state == "ready" and process is None:
        state, detail = "starting", "it died and is being started again"
    log = home / "logs" / f"{entry['name']}.log"
    return Service(
        entry["name"],
        state,
        pid=process.pid if process else None,
        url=entry["url"] if state == "ready" else None,
        since=children.since(process.pid) if process else None,
        restarts=entry["restarts"],
        detail=detail,
        remedy=f"read {log}, then: orchestrator down && orchestrator up" if state == "failed" else "",
        model=entry["model"],
    )


def _is_current(home: Path, wanted: Sequence[Child]) -> bool:
    """True when the living supervisor has taken in exactly these orders."""
    state = children.read_json(home / "run" / "state.json")
    same = state.get("desired") == children.bytes_digest(vllm.desired_json(wanted))
    return same and children.find(state.get("pid"), state.get("born")) is not None


def _order(home: Path, wanted: Sequence[Child]) -> int:
    """Under the lock: writes the orders, then tells the supervisor, or clears what a dead one left and starts one.

    Returns the count of orders at which the supervisor has read these.
    """
    (home / "logs").mkdir(parents=True, exist_ok=True)
    children.write_atomic(home / "run" / "desired.json", vllm.desired_json(wanted))
    state = children.read_json(home / "run" / "state.json")
    if supervisor := children.find(state.get("pid"), state.get("born")):
        supervisor.send_signal(signal.SIGHUP)
        return int(state["orders"]) + 1
    _sweep(home, state)
    (home / "run" / "state.json").unlink(missing_ok=True)
    with (home / "logs" / "supervisor.log").open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.launch.watch", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=children.environment(),
            cwd=home,
            check=False,
        )
    end = time.monotonic() + SUPERVISOR_TIMEOUT_S
    while done.returncode == 0 and time.monotonic() < end:
        if children.read_json(home / "run" / "state.json"):
            return 1
        time.sleep(POLL_S)
    raise LaunchError(f"The supervisor did not start:\n{children.tail(home / 'logs' / 'supervisor.log', 8)}")


def _wait(home: Path, orders: int, progress: Progress | None) -> list[Service]:
    said: set[str] = set()
    end = time.monotonic() + UP_TIMEOUT_S
    while time.monotonic() < end:
        taken_in = children.read_json(home / "run" / "state.json").get("orders", orders) >= orders
        services = status(home)
        for service in services:
            line = f"{service.name} ({service.model}): {service.state}"
            if progress and taken_in and line not in said:
                said.add(line)
                progress(line)
        first = services[0]
        if taken_in and first.state in ("failed", "stopped"):
            raise LaunchError(f"{first.name} did not start: {first.detail or 'it was stopped'}\n{first.remedy}")
        if taken_in and all(service.state in ("ready", "failed") for service in services):
            return services
        time.sleep(POLL_S)
    raise LaunchError(f"The engine was not ready after {UP_TIMEOUT_S} s. Read {home / 'logs' / 'engine.log'}.")


def _sweep(home: Path, state: dict[str, Any]) -> None:
    """Ends children whose supervisor was killed: by recorded session, then by the marker in their environment."""
    for entry in state.get("children", ()):
        if entry["pid"]:
            children.end_session(entry["pid"], entry["born"], STOP_TIMEOUT_S)
    for process in children.marked(MARKER, str(home)):
        if process.pid != os.getpid():
            children.end_session(process.pid, children.birth(process.pid), STOP_TIMEOUT_S)
