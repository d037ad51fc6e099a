"""When a load is so large that its collection's index is built after it."""

from __future__ import annotations

import pytest

from orchestrator.knowledge.ingest import is_large_load


@pytest.mark.parametrize(
    ("stored", "new", "read", "total", "is_large"),
    [
        (20_000, 1_000, 0, 0, False),  # a source that does not say how much it holds
        (20_000, 20_001, 0, 0, True),
        (20_000, 1_000, 1_000_000, 5_000_000, False),  # five thousand are to be expected
        (20_000, 1_000, 1_000_000, 21_000_000, True),
        (20_000, 1_000, 9_000_000, 5_000_000, False),  # files that grew while they were read
        (20_000, 999, 1_000, 21_000_000, False),  # too few to tell
        (0, 1_000, 1_000_000, 1_000_000, True),
    ],
)
def test_a_load_is_large_when_it_brings_more_than_is_stored(
    stored: int, new: int, read: int, total: int, is_large: bool
) -> None:
    assert is_large_load(stored, new, read, total) is is_large
