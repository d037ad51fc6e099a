"""Confines this process before it reads what others made: memory, time, no writing, no network, no other programs.

Two walls. The kernel's (rlimits; Landlock and a network namespace where Linux grants them) holds against native code.
The audit hook holds against Python code wherever Python runs, and remembers what was tried.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 512 << 20
CPU_S = 30  # of one file
LIFE_CPU_S = 600  # of the process
REFUSED = (
    "socket.", "subprocess.", "ctypes.", "ftplib.", "smtplib.", "urllib.", "http.", "imaplib.", "poplib.", "nntplib.",
    "telnetlib.", "sqlite3.", "webbrowser.", "shutil.", "fcntl.", "syslog.", "winreg.", "msvcrt.", "pty.", "pickle.",
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.kill", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.chflags", "os.truncate",
    "os.utime", "os.setxattr", "os.removexattr", "os.add_dll", "os.lockf", "os.chdir", "os.fchdir",
    "signal.pthread_kill", "resource.prlimit", "tempfile.", "cpython.run_",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LANDLOCK = 0x7FF3  # execute, write, remove, make, refer, truncate: all of ABI 3 but reading


def confine() -> Callable[[], list[str]]:
    """Confines this process for good; gives a function that lists, and forgets, what has been tried since."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; Ctrl-C reaches the whole group
    _limit_resources()
    _ask_the_kernel()
    return _refuse_by_audit()


def allow_cpu(seconds: int = CPU_S) -> None:
    """Lets this process use so many seconds of CPU from now on; past them it is killed."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))
    except (ImportError, ValueError, OSError):
        return


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: LIFE_CPU_S,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,  # not a byte into any file, from native code either
        resource.RLIMIT_NOFILE: 64,
    }
    for kind, value in limits.items():
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue


def _ask_the_kernel() -> tuple[bool, bool]:
    """Whether Linux took away the network, and the right to change files and start programs; what it refuses stays."""
    if not sys.platform.startswith("linux"):
        return False, False
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # CLONE_NEWNET, an empty network, needs root, or CLONE_NEWUSER with it.
        is_alone = libc.unshare(0x40000000) == 0 or libc.unshare(0x40000000 | 0x10000000) == 0
        version = libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))  # landlock_create_ruleset
        if version < 1:
            return is_alone, False
        files = _LANDLOCK & (0x1FFF if version < 2 else 0x3FFF if version < 3 else 0x7FFF)
        handled = (ctypes.c_uint64 * 2)(files, 3 if version >= 4 else 0)  # 3: TCP bind and connect
        size = ctypes.c_size_t(16 if version >= 4 else 8)
        ruleset = libc.syscall(444, handled, size, ctypes.c_uint32(0))
        if ruleset < 0:
            return is_alone, False
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        is_bound = libc.syscall(446, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0  # landlock_restrict_self
        os.close(ruleset)
        return is_alone, is_bound
    except (OSError, AttributeError):
        return False, False


def _refuse_by_audit() -> Callable[[], list[str]]:
    tried: list[str] = []
    roots = tuple({os.path.realpath(path) + os.sep for path in (sys.prefix, sys.base_prefix, *sys.path) if path})

    def is_allowed_to_open(path: Any, mode: Any, flags: Any) -> bool:
        if isinstance(flags, int) and flags & _WRITING:
            return False
        if isinstance(mode, str) and set(mode) & set("wax+"):
            return False
        if isinstance(path, int):
            return True
        return os.path.realpath(os.fsdecode(path)).startswith(roots)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_open = event == "open"
        if (is_open and not is_allowed_to_open(*arguments)) or (not is_open and event.startswith(REFUSED)):
            tried.append(f"{event} {ascii(arguments[0])[:100]}" if arguments else event)
            raise PermissionError(f"{event} is refused to what reads a document")

    def take() -> list[str]:
        found = list(tried)
        tried.clear()
        return found

    sys.addaudithook(hook)
    return take
