"""Settings of training that follow from how much there is to learn from."""

from __future__ import annotations

import pytest

from orchestrator.behaviour.defaults import questions_fit


@pytest.mark.parametrize(("questions", "weight"), [(8, 1.0), (7_999, 1.0), (8_000, 2.5), (10_395, 2.5)])
def test_refusals_weigh_more_only_where_there_is_much_to_learn_from(questions, weight):
    assert questions_fit(questions).refusals == weight


def test_the_shipped_adapter_is_trained_as_its_manifest_says():
    fit = questions_fit(10_395, seed=2)

    assert (fit.rank, fit.alpha, fit.learning_rate, fit.batch, fit.epochs) == (16, 32, 1.2e-3, 2, 1)
    assert dict(fit.emphasis) == {"answerable": 5.0, "citations": 3.0, "answer": 2.0}
