"""The interval of a rate. Numbers in, numbers out."""

from __future__ import annotations

import math

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


def wilson(hits: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (Wilson 1927); 0 to 1 when nothing was tried."""
    if not trials:
        return 0.0, 1.0
    share, scale = hits / trials, 1 + _Z * _Z / trials
    middle = share + _Z * _Z / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z * _Z / (4 * trials * trials))
    # The formula gives the ends exactly where all or none hit; rounding must not say 0.9999.
    low = 0.0 if hits == 0 else max(0.0, (middle - spread) / scale)
    high = 1.0 if hits == trials else min(1.0, (middle + spread) / scale)
    return low, high
