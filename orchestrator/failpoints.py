"""Named points at which a test lets the process die: ``FAILPOINT=name`` kills it there as ``kill -9`` would."""

from __future__ import annotations

import os
import signal


def failpoint(name: str) -> None:
    """Kills this process when ``FAILPOINT`` in its environment is ``name`` (``name:3``: at the third time)."""
    wanted = os.environ.get("FAILPOINT")
    if not wanted or wanted.partition(":")[0] != name:
        return
    left = int(wanted.partition(":")[2] or 1) - 1
    if left > 0:
        os.environ["FAILPOINT"] = f"{name}:{left}"
        return
    os.kill(os.getpid(), signal.SIGKILL)
