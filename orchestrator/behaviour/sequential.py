"""Compares a canary with the active adapter while answers come in, so that looking at any moment, as often as one likes, is sound.

The test is that of Lindon and Malek, "Anytime-Valid Inference for Multinomial Count Data" (NeurIPS 2022), one-sided and for
two arms: traffic is split by a hash, so when both arms are equally bad, each bad conversation is the canary's with
probability ``share``, whatever the rates are and however they drift. A mixture of likelihood ratios against that is a test
martingale; by Ville's inequality it exceeds 1/alpha ever in the canary's life with probability alpha at most.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque

RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)  # how many times as bad: the alternatives that are mixed
SLOW_QUANTILE = 0.9
SLOW_WINDOW = 200
SLOW_NEEDED = 20


def in_canary(digest: str, tenant: str, key: str, share: float) -> tuple[bool, str]:
    """Whether a conversation goes to the canary, and the name under which it is counted: both fixed by adapter and key."""
    drawn = hashlib.sha256(f"{digest}\0{tenant}\0{key}".encode("utf-8", "replace")).digest()
    return int.from_bytes(drawn[:8], "big") / 2**64 < share, drawn[8:20].hex()


def evidence(canary: int, active: int, share: float, allowed_ratio: float = 1.0) -> float:
    """How strongly bad conversations speak against the canary: an e-value, 1 at the start, at most 1 on average when it is fine.

    ``canary``, ``active``: bad conversations of each arm. ``allowed_ratio``: how many times the active one's rate the canary
    may have.
    """
    fine = _share(share, allowed_ratio)
    logs = []
    for ratio in RATIOS:
        worse = _share(share, allowed_ratio * ratio)
        logs.append(canary * math.log(worse / fine) + active * math.log((1 - worse) / (1 - fine)))
    top = max(logs)
    return math.exp(min(top, 700.0)) * sum(math.exp(each - top) for each in logs) / len(logs)


def _share(share: float, ratio: float) -> float:
    """The canary's share of bad conversations when its rate is ``ratio`` times the active one's."""
    return share * ratio / (share * ratio + 1 - share)


class SlowAnswers:
    """Calls an answer slow when it took longer than nine of ten of the 200 before it, of either arm.

    The bar stands before the answer is seen, so an equal canary has its share of slow answers, whatever the load does.
    """

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=SLOW_WINDOW)

    def judge(self, milliseconds: float) -> bool:
        """True when it is slow; the first 20 are not judged."""
        before = sorted(self._seen)
        self._seen.append(milliseconds)
        return len(before) >= SLOW_NEEDED and milliseconds > before[int(SLOW_QUANTILE * len(before))]
