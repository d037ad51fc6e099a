"""How often `orchestrator improve` keeps a change that does nothing: decisions over made-up questions.

python benchmarks/false_keeps.py [--changes 800] [--flipped 0.2] [--seed 0]

Before, six questions in ten are right; a change flips one answer in five, either way alike, so its true gain is nothing.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

from orchestrator.evaluation.metrics import compare

DRAWINGS = 1_000
LEVEL = 0.05


def kept(questions: int, changes: int, flipped: float, chance: random.Random) -> tuple[int, int]:
    """Changes kept by interval and permutation test together, and by the interval alone."""
    both = alone = 0
    for _ in range(changes):
        before = [float(chance.random() < 0.6) for _ in range(questions)]
        found = compare(_changed(before, flipped, chance), before, rounds=DRAWINGS)
        alone += found.is_gain
        both += found.is_gain and found.p <= LEVEL
    return both, alone


def _changed(before: Sequence[float], flipped: float, chance: random.Random) -> list[float]:
    """As many turn right as turn wrong on average: a flip of a right answer is as likely as one of a wrong answer."""
    # Of the 60 % right and 40 % wrong, equal numbers flip: half of `flipped` from each side.
    share = {1.0: flipped / 2 / 0.6, 0.0: flipped / 2 / 0.4}
    return [1 - value if chance.random() < share[value] else value for value in before]


def main() -> None:
    """Prints a line for each number of deciding questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=800)
    parser.add_argument("--flipped", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    for questions in (20, 40, 100):
        both, alone = kept(questions, given.changes, given.flipped, chance)
        print(f"{questions:4d} questions decide: {both} of {given.changes} kept; {alone} by the interval alone")


if __name__ == "__main__":
    main()
