"""What ``status`` shows of one embedded service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

State = Literal["stopped", "starting", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Service:
    """One embedded service now. ``remedy`` is the command that mends it; empty when nothing is wrong."""

    name: str
    state: State
    pid: int | None = None
    url: str | None = None
    since: datetime | None = None
    restarts: int = 0
    detail: str = ""
    remedy: str = ""
    model: str = ""  # the name under which an engine serves; empty for a database
