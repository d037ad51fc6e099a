"""The interval of a rate. Numbers in, numbers out."""

from __future__ import annotations

import math

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (Wilson 1927); 0 to 1 when nothing was tried."""
    if not trials:
        return 0.0, 1.0
    share, scale = hits / trials, 1 + _Z * _Z / trials
    middle = share + _Z * _Z / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z * _Z / (4 * trials * trials))
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
