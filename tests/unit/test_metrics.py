"""Measures of rankings: cases computed by hand, trec_eval's own answers, and the paired tests on known differences."""

import math
import random

import pytest

from orchestrator.evaluation.metrics import compare, mean, ndcg, precision, rank_documents, recall, reciprocal_rank

GRADES = {"a": 3.0, "b": 2.0, "c": 1.0}


def test_ndcg_of_the_ideal_order_is_one():
    assert ndcg(["a", "b", "c"], GRADES, 10) == pytest.approx(1.0)


def test_ndcg_takes_the_grade_as_gain_and_the_logarithm_of_the_rank_as_discount():
    found = 1 / math.log2(2) + 3 / math.log2(4)
    best = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)

    assert ndcg(["c", "x", "a"], GRADES, 10) == pytest.approx(found / best)


def test_ndcg_is_cut_on_both_sides():
    assert ndcg(["x", "a"], GRADES, 1) == 0.0
    assert ndcg(["a"], GRADES, 1) == pytest.approx(1.0)


def test_grades_below_zero_are_no_gain():
    assert ndcg(["bad", "a"], {"a": 1.0, "bad": -1.0}, 10) == pytest.approx(1 / math.log2(3))


def test_reciprocal_rank_is_of_the_first_relevant():
    assert reciprocal_rank(["x", "y", "b", "a"], GRADES, 10) == pytest.approx(1 / 3)
    assert reciprocal_rank(["x", "y", "b", "a"], GRADES, 2) == 0.0


def test_recall_is_of_all_relevant_documents():
    assert recall(["a", "x", "b"], GRADES, 10) == pytest.approx(2 / 3)
    assert recall(["x", "a"], GRADES, 1) == 0.0


def test_precision_counts_places_that_stayed_empty():
    assert precision(["a", "b"], GRADES, 10) == pytest.approx(0.2)


def test_nothing_relevant_is_zero():
    assert [measure(["a"], {}, 10) for measure in (ndcg, reciprocal_rank, recall, precision)] == [0.0] * 4


def test_a_document_stands_where_its_best_passage_stands():
    assert rank_documents(["b", "a", "b", "c", "a"]) == ["b", "a", "c"]


# Computed with trec_eval (pytrec-eval-terrier 0.5.11) for the rankings that `_random_case` makes with these seeds.
TREC_EVAL = {
    0: (0.1478250446, 0.25, 0.1666666667, 0.1),
    1: (0.1212313197, 0.1666666667, 0.1666666667, 0.1),
    2: (0.3039146603, 1.0, 0.3333333333, 0.2),
}


@pytest.mark.parametrize("seed", TREC_EVAL)
def test_the_figures_are_those_of_trec_eval(seed):
    ranking, grades = _random_case(seed)
    ours = (
        ndcg(ranking, grades, 10),
        reciprocal_rank(ranking, grades, 10),
        recall(ranking, grades, 10),
        precision(ranking, grades, 10),
    )

    assert ours == pytest.approx(TREC_EVAL[seed], abs=1e-9)


def test_trec_eval_agrees_on_many_rankings():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    for seed in range(50):
        ranking, grades = _random_case(seed)
        run = {"q": {name: float(len(ranking) - place) for place, name in enumerate(ranking)}}
        judged = {"q": {name: int(grade) for name, grade in grades.items()}}
        [theirs] = (
            pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10,100", "P.10"}).evaluate(run).values()
        )

        assert ndcg(ranking, grades, 10) == pytest.approx(theirs["ndcg_cut_10"], abs=1e-9)
        assert recall(ranking, grades, 10) == pytest.approx(theirs["recall_10"], abs=1e-9)
        assert recall(ranking, grades, 100) == pytest.approx(theirs["recall_100"], abs=1e-9)
        assert precision(ranking, grades, 10) == pytest.approx(theirs["P_10"], abs=1e-9)


def _random_case(seed):
    """Forty documents in some order; six of sixty are relevant with grades 1 to 3, some were judged not relevant."""
    chance = random.Random(seed)
    names = [f"d{number}" for number in range(60)]
    grades = {name: float(chance.choice([1, 1, 2, 3])) for name in chance.sample(names, 6)}
    grades.update({name: 0.0 for name in chance.sample(names, 5) if name not in grades})
    return chance.sample(names, 40), grades


def test_the_standard_error_is_of_the_sample():
    found = mean([1.0, 2.0, 3.0, 4.0])

    assert (found.value, found.n) == (2.5, 4)
    assert found.error == pytest.approx(math.sqrt(5 / 3 / 4))


def test_one_value_has_no_spread():
    assert mean([0.5]).error == 0.0


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        mean([])


def test_a_steady_gain_is_significant():
    base = [random.Random(seed).random() for seed in range(200)]

    found = compare([value + 0.05 for value in base], base)

    assert found.value == pytest.approx(0.05)
    assert found.is_gain
    assert not found.is_loss
    assert found.p < 0.001


def test_the_other_way_round_it_is_a_loss():
    found = compare([0.1] * 50, [0.2] * 50)

    assert found.is_loss
    assert not found.is_gain


def test_noise_is_significant_as_often_as_the_level_says():
    chance = random.Random(7)
    trials = [
        compare([chance.gauss(0, 1) for _ in range(60)], [chance.gauss(0, 1) for _ in range(60)], rounds=400)
        for _ in range(200)
    ]

    false = sum(trial.is_gain or trial.is_loss for trial in trials)
    assert (
        2 <= false <= 22
    )  # 5 % of 200 is 10; the binomial's 99.9 % interval, widened for the bootstrap's small samples
    assert 2 <= sum(trial.p < 0.05 for trial in trials) <= 22


def test_interval_and_p_agree_with_the_normal_approximation():
    chance = random.Random(3)
    differences = [chance.gauss(0.1, 1) for _ in range(400)]
    error = mean(differences).error

    found = compare(differences, [0.0] * 400)

    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)
    assert found.p == pytest.approx(math.erfc(abs(found.value) / error / math.sqrt(2)), abs=0.02)


def test_no_difference_is_no_gain():
    found = compare([0.3, 0.7, 0.1], [0.3, 0.7, 0.1])

    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.is_gain


def test_the_same_seed_gives_the_same_figures():
    ours, theirs = [random.Random(1).random() for _ in range(30)], [0.5] * 30

    assert compare(ours, theirs) == compare(ours, theirs)


def test_drawing_in_blocks_changes_nothing_but_memory(monkeypatch):
    monkeypatch.setattr("orchestrator.evaluation.metrics.BLOCK", 100)
    small = compare([0.2] * 40 + [0.1] * 20, [0.1] * 60, rounds=500)

    assert small.n == 60
    assert 0.05 < small.low < small.value < small.high < 0.1


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], [])])
def test_unpaired_lists_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="same length"):
        compare(ours, theirs)
