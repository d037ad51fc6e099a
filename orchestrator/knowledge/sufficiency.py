"""How likely the passages of a search hold what is asked."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.types import Passage


def sufficiency(question: str, passages: Sequence[Passage]) -> float:
    """From 0 to 1. Placeholder of the architect until `ranker` puts the calibrated one here: overwrite this file."""
    return max((passage.scores.get("covered", 0.0) for passage in passages), default=0.0)
