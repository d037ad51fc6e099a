"""What a search sends: the question's vector as PostgreSQL receives it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgvector import HalfVector

from orchestrator.errors import InputError
from orchestrator.knowledge.search import pack_halfvec


@given(st.lists(st.floats(-60_000, 60_000), min_size=1, max_size=9))
def test_a_vector_is_packed_as_pgvector_packs_it(vector: list[float]) -> None:
    assert pack_halfvec(vector) == HalfVector(vector).to_binary()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 70_000.0, 1e300])
def test_what_16_bits_do_not_hold_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        pack_halfvec([0.5, bad, 0.5])


def test_a_vector_that_is_longer_than_any_is_refused() -> None:
    with pytest.raises(InputError):
        pack_halfvec([0.5] * 70_000)
