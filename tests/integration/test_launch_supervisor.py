"""The supervisor with stand-ins for vLLM: one of it, its children restarted with their adapters, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import LaunchError
from orchestrator.launch import children, supervisor
from orchestrator.launch.service import Service
from orchestrator.launch.vllm import PORT, Child

FAKE = Path(__file__).parent / "fake_vllm.py"
DEADLINE_S = 60


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of its own, and no process of it afterwards."""
    yield tmp_path
    supervisor.down(tmp_path)
    assert processes(tmp_path) == []


def child(
    *flags: object, name: str = "engine", model: str = "base", adapters: tuple[tuple[str, str], ...] = ()
) -> Child:
    command = (sys.executable, str(FAKE), "--port", PORT, "--model", model, *map(str, flags))
    return Child(name, model, (command,), {}, adapters)


def processes(home: Path) -> list[psutil.Process]:
    """The supervisor, the children and their children: all work in ``home``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def until(check: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def supervisor_pid(home: Path) -> int:
    return int(children.read_json(home / "run" / "state.json")["pid"])


def ready(home: Path, name: str = "engine") -> Service | None:
    return next((s for s in supervisor.status(home) if s.name == name and s.state == "ready"), None)


def served(service: Service | None) -> list[str]:
    import asyncio

    from orchestrator.engine import VllmEngine

    async def ask(url: str) -> list[str]:
        engine = VllmEngine(url)
        try:
            return await engine.models()
        finally:
            await engine.aclose()

    assert service is not None
    assert service.url is not None
    return asyncio.run(ask(service.url))


def test_a_second_call_finds_the_engine_running(home: Path) -> None:
    first = supervisor.ensure(home, [child()])

    assert supervisor.ensure(home, [child()]) == first
    assert [(s.name, s.state, s.model) for s in first] == [("engine", "ready", "base")]


def test_many_at_once_start_one_supervisor(home: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: supervisor.ensure(home, [child()]), range(4)))

    assert len({services[0].pid for services in found}) == 1
    assert len(processes(home)) == 3  # supervisor, engine, the engine's worker


def test_down_leaves_no_process_and_is_told_by_status(home: Path) -> None:
    supervisor.ensure(home, [child(), child(name="merged", model="a--1")])

    supervisor.down(home)

    assert processes(home) == []
    assert [s.state for s in supervisor.status(home)] == ["stopped"]


def test_a_killed_engine_has_its_adapters_back_before_it_is_ready(home: Path) -> None:
    service = supervisor.ensure(home, [child(adapters=(("a--1", str(home)), ("b--2", str(home))))])[0]
    assert service.pid is not None

    psutil.Process(service.pid).kill()
    until(lambda: (found := ready(home)) and found.pid != service.pid)

    assert served(ready(home)) == ["base", "a--1", "b--2"]
    assert ready(home).restarts == 1  # type: ignore[union-attr]
    assert ready(home).url == service.url  # type: ignore[union-attr]
    assert len(processes(home)) == 3  # the killed engine's worker is gone


def test_ten_adapters_are_back_before_a_killed_engine_is_ready(home: Path) -> None:
    """Row D7: from the first moment at which it is ready, every one of the desired set answers."""
    names = [f"form-{number}--{number:012x}" for number in range(10)]
    service = supervisor.ensure(home, [child(adapters=tuple((name, str(home)) for name in names))])[0]
    assert service.pid is not None

    psutil.Process(service.pid).kill()
    until(lambda: (found := ready(home)) and found.pid != service.pid)

    assert served(ready(home)) == ["base", *names]


def test_a_refused_adapter_does_not_stop_the_others(home: Path) -> None:
    service = supervisor.ensure(home, [child(adapters=(("bad--1", "/nowhere"), ("good--2", str(home))))])[0]

    assert served(service) == ["base", "good--2"]
    assert "bad--1" in service.detail


def test_after_kill_of_the_supervisor_nothing_old_runs_on(home: Path) -> None:
    supervisor.ensure(home, [child()])
    before = {process.pid for process in processes(home)}
    psutil.Process(supervisor_pid(home)).kill()
    until(lambda: supervisor.status(home)[0].state == "failed")

    supervisor.ensure(home, [child()])

    assert ready(home)
    assert len(processes(home)) == 3
    assert before & {process.pid for process in processes(home)} == set()


def test_down_after_kill_of_the_supervisor_leaves_nothing(home: Path) -> None:
    supervisor.ensure(home, [child()])
    psutil.Process(supervisor_pid(home)).kill()

    supervisor.down(home)

    assert processes(home) == []


def test_the_next_command_is_tried_when_the_first_fails(home: Path) -> None:
    good = child()
    wanted = Child("engine", "base", (child("--needs", home / "nothing").commands[0], good.commands[0]), {})

    assert supervisor.ensure(home, [wanted])[0].state == "ready"


def test_an_engine_that_never_starts_is_told_with_its_last_lines(home: Path) -> None:
    with pytest.raises(LaunchError, match="the fake needs nothing"):
        supervisor.ensure(home, [child("--needs", home / "nothing")])

    assert supervisor.status(home)[0].state == "failed"
    assert "orchestrator up" in supervisor.status(home)[0].remedy


def test_one_that_failed_is_tried_again_by_up(home: Path) -> None:
    late = home / "late"
    with pytest.raises(LaunchError):
        supervisor.ensure(home, [child("--needs", late)])

    late.touch()

    assert supervisor.ensure(home, [child("--needs", late)])[0].state == "ready"


def test_a_replaced_engine_answers_until_its_successor_is_ready_and_it_has_answered_all(home: Path) -> None:
    gate, busy = home / "gate", home / "busy"
    busy.touch()
    old = supervisor.ensure(home, [child(), child("--busy", busy, name="merged", model="a--1")])[1]
    assert old.pid is not None

    supervisor.ensure(home, [child(), child("--gate", gate, name="merged", model="a--2")], wait=False)
    until(lambda: [s.model for s in supervisor.status(home)] == ["base", "a--2"])
    assert psutil.pid_exists(old.pid)  # the new one is not ready
    gate.touch()
    until(lambda: ready(home, "merged"))
    assert psutil.pid_exists(old.pid)  # a request still runs
    busy.unlink()

    until(lambda: not psutil.pid_exists(old.pid or 0))
    assert served(ready(home, "merged")) == ["a--2"]


def test_a_new_adapter_is_loaded_without_a_restart(home: Path) -> None:
    before = supervisor.ensure(home, [child()])[0]

    after = supervisor.ensure(home, [child(adapters=(("a--1", str(home)),))])[0]

    assert after.pid == before.pid
    assert served(after) == ["base", "a--1"]


def test_a_recycled_pid_is_not_taken_for_the_supervisor(home: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        state = f'{{"pid": {other.pid}, "born": "long ago", "desired": "", "children": []}}'
        children.write_atomic(home / "run" / "state.json", state.encode())

        supervisor.down(home)

        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.touch()

    with pytest.raises(LaunchError, match="ORCHESTRATOR_HOME"):
        supervisor.ensure(occupied, [child()])


def test_children_do_not_get_our_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_API_KEYS", "secret")

    service = supervisor.ensure(home, [child()])[0]

    environment = psutil.Process(service.pid).environ()
    assert "ORCHESTRATOR_API_KEYS" not in environment
    assert os.environ["ORCHESTRATOR_API_KEYS"] == "secret"


def test_a_program_that_is_not_there_is_told(home: Path) -> None:
    with pytest.raises(LaunchError, match="could not be started"):
        supervisor.ensure(home, [Child("engine", "base", (("/nowhere/python",),), {})])
