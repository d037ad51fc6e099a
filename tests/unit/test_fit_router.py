"""Fitting a router: what is held out stays unseen, what is no gain is not served, and the numbers of a judgement are right."""

import json
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.errors import TrainingError
from orchestrator.evaluation.fit_router import Wanted, choose_caution, choose_threshold, fit_router, measure_routes
from orchestrator.evaluation.routing import (
    Labelled,
    Tried,
    calibration,
    confusion_cost,
    judge_router,
    nearest,
    paraphrases,
    read_labelled,
    split_rows,
)
from orchestrator.learnt import parse_learnt
from orchestrator.prompts import Catalogue, Route
from orchestrator.router import Router, digest_routes

CATALOGUE = Catalogue(
    {
        route.name: route
        for route in (
            Route("papers", prompt="p", contract="c", collection="default", k=5, examples=("How long?",)),
            Route("task", prompt="p", contract="c", examples=("Sort: a",)),
            Route("say", action="clarify", reply="Say more."),
            Route("no", action="refuse", reply="No."),
        )
    },
    {},
    {},
    fallback="papers",
)
ROUTES = ("papers", "task", "say")
BASE = Router(CATALOGUE, {})


def toy(each=40, noise=0.3, seed=0):
    """Messages of three routes whose vectors lie around three points, each text unlike the others."""
    chance = np.random.default_rng(seed)
    rows, vectors = [], {}
    for place, route in enumerate(ROUTES):
        for _ in range(each):
            text = "".join(map(chr, chance.integers(97, 123, 30)))
            point = np.eye(24)[place] + noise * chance.normal(size=24)
            rows.append(Labelled(text, route))
            vectors[text] = (point / np.linalg.norm(point)).tolist()
    return rows, vectors


ROWS, VECTORS = toy()
FITTED = fit_router(ROWS, VECTORS, BASE, Wanted("toy", abstain="say"))


def test_a_fitted_router_beats_the_rules_and_is_the_one_that_was_tested():
    again = judge_router(replace(BASE, learnt=parse_learnt(FITTED.raw)), split_rows(ROWS, VECTORS)[1], VECTORS)

    assert FITTED.may_serve
    assert FITTED.gain.low > 0.2
    assert again.right == FITTED.ours.right
    assert parse_learnt(FITTED.raw).evidence["accuracy"] == again.accuracy.value


def test_the_same_messages_give_the_same_file():
    assert fit_router(ROWS, VECTORS, BASE, Wanted("toy", abstain="say")).raw == FITTED.raw


def test_labels_without_meaning_are_not_served():
    chance = np.random.default_rng(1)
    rows = [replace(row, route=ROUTES[chance.integers(3)]) for row in ROWS]

    assert not fit_router(rows, VECTORS, BASE, Wanted("toy", abstain="say")).may_serve


def test_a_router_that_skips_more_searches_is_not_served():
    skipping = replace(FITTED, ours=replace(FITTED.ours, skipped=replace(FITTED.ours.skipped, value=0.2)))

    assert not skipping.may_serve


def test_a_router_that_is_worse_than_the_rules_is_not_served():
    worse = replace(FITTED, gain=replace(FITTED.gain, low=-0.1))

    assert FITTED.may_serve
    assert not worse.may_serve


def test_the_file_names_the_routes_that_it_was_fitted_for():
    learnt = parse_learnt(FITTED.raw)

    assert learnt.catalogue == digest_routes(CATALOGUE)
    assert learnt.costs[learnt.routes.index("papers")].max() >= 2
    assert learnt.evidence["folds_skipped"] <= learnt.evidence["skipped_wanted"] == 0.01


def test_caution_grows_until_searches_are_not_skipped():
    names = ["papers", "say"]
    shares = np.asarray([[0.4, 0.6], [0.2, 0.8], [0.9, 0.1], [0.1, 0.9]])
    labels = np.asarray([0, 0, 0, 1])

    careless, skipped = choose_caution(shares, labels, names, CATALOGUE, 1.0)
    careful, none = choose_caution(shares, labels, names, CATALOGUE, 0.0)

    assert ((shares @ careless).argmin(axis=1).tolist(), skipped.value) == ([1, 1, 0, 1], 2 / 3)
    assert ((shares @ careful).argmin(axis=1).tolist(), none.value) == ([0, 0, 0, 1], 0)
    assert careful[0, 1] > careless[0, 1]
    assert careful[1].tolist() == careless[1].tolist()


def test_practice_is_learnt_from_but_moves_no_threshold():
    chance = np.random.default_rng(3)
    practice = [
        replace(row, text=row.text[::-1], route=ROUTES[chance.integers(3)], practice=True)
        for row in ROWS
        if row.route == "say"
    ]
    vectors = {**VECTORS, **{row.text: VECTORS[row.text[::-1]] for row in practice}}

    fit, held = split_rows([*ROWS, *practice], vectors)
    found = fit_router([*ROWS, *practice], vectors, BASE, Wanted("toy", abstain="say"))

    assert not any(row.practice for row in held)
    assert parse_learnt(found.raw).evidence["counted"] == sum(not row.practice for row in fit)
    assert found.raw != FITTED.raw


def test_practice_that_is_like_what_is_held_out_is_left_aside():
    held = replace(ROWS[0], side="held")
    alike, other = (Labelled(text, "papers", practice=True) for text in ("something alike", "something else"))
    vectors = {**VECTORS, alike.text: VECTORS[held.text], other.text: VECTORS[ROWS[-1].text]}

    fit, _ = split_rows([held, *ROWS[1:3], alike, other], vectors)

    assert alike not in fit
    assert other in fit


def test_a_written_side_goes_before_the_hash_and_takes_paraphrases_along():
    rows = [
        Labelled("annual holiday", "papers", "leave", side="held"), Labelled("vacation", "papers", "leave"),
        Labelled("Sort these", "task", side="fit"),
    ]  # fmt: skip
    points = dict(zip([row.text for row in rows], np.eye(3), strict=True))

    assert split_rows(rows, points, 0.0) == ([rows[2]], rows[:2])
    assert split_rows(rows, points, 1.0) == ([rows[2]], rows[:2])


def test_paraphrases_that_are_written_to_both_sides_are_refused():
    rows = [
        Labelled("annual holiday", "papers", "leave", side="held"),
        Labelled("vacation", "papers", "leave", side="fit"),
    ]

    with pytest.raises(TrainingError, match="both sides"):
        split_rows(rows, dict(zip([row.text for row in rows], np.eye(2), strict=True)))


def test_the_nearest_of_the_others_is_told():
    rows = [Labelled("a", "papers"), Labelled("b", "papers"), Labelled("c", "papers")]
    vectors = {"a": [1.0, 0.0], "b": [0.6, 0.8], "c": [0.0, 1.0]}

    assert nearest(rows[:1], rows[1:], vectors) == pytest.approx([0.6])


def test_two_routes_are_enough():
    rows = [row for row in ROWS if row.route != "say"]

    fitted = fit_router(rows, VECTORS, BASE, Wanted("toy", abstain="say"))

    assert fitted.ours.accuracy.value > 0.9


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS[:44], "too few"),
        ([row for row in ROWS if row.route != "task"], "too few"),
        ([*ROWS, Labelled(ROWS[0].text, "nowhere")], "nowhere"),
    ],
)
def test_what_cannot_be_fitted_is_refused(rows, said):
    with pytest.raises(TrainingError, match=said):
        fit_router(rows, VECTORS, BASE, Wanted("toy", abstain="say"))


def test_paraphrases_stay_on_one_side():
    rows = [
        Labelled("How many days of leave do I get?", "papers"),
        Labelled("How many days of leave do I get now?", "papers"),
        Labelled("annual holiday", "papers", "leave"),
        Labelled("vacation entitlement", "papers", "leave"),
        Labelled("Sort these words", "task"),
        Labelled("Put that into order", "task"),
        Labelled("xyz", "say"),
    ]
    points = dict(zip([row.text for row in rows], np.eye(7), strict=True))
    points["Put that into order"] = 0.9 * points["Sort these words"] + 0.43 * np.eye(7)[5]

    assert sorted(paraphrases(rows, points)) == [[0, 1], [2, 3], [4, 5], [6]]


def test_a_split_does_not_change_with_the_order_and_loses_nothing():
    fit, held = split_rows(ROWS, VECTORS)
    fit_again, held_again = split_rows(ROWS[::-1], VECTORS)

    assert {row.text for row in held} == {row.text for row in held_again}
    assert len(fit) + len(held) == len(ROWS) == len(fit_again) + len(held_again)
    assert 0.2 < len(held) / len(ROWS) < 0.46


def test_the_threshold_is_the_lowest_that_keeps_the_precision():
    shares, hits = [0.9, 0.8, 0.7, 0.6, 0.5], [True, True, False, True, False]

    assert choose_threshold(shares, hits, 1.0) == 0.8
    assert choose_threshold(shares, hits, 0.75) == 0.6
    assert choose_threshold(shares, hits, 0.5) == 0.5
    assert choose_threshold([0.9, 0.9], [True, False], 1.0) == 1.0


def test_calibration_is_the_mean_gap_by_tenths():
    ece, bins = calibration([0.95, 0.85, 0.85, 1.0], [True, True, False, True])

    assert [(each.low, each.n) for each in bins] == [(0.8, 2), (0.9, 2)]
    assert ece == pytest.approx(0.5 * abs(0.85 - 0.5) + 0.5 * abs(0.975 - 1))
    assert calibration([], []) == (None, ())


def test_the_judgement_counts_confusions_costs_and_skipped_searches():
    rows = [Labelled("a", "papers"), Labelled("b", "papers"), Labelled("c", "task"), Labelled("d", "no")]
    vectors = {row.text: [1.0] for row in rows}

    judged = judge_router(BASE, rows, vectors)

    assert judged.accuracy.value == 0.5
    assert judged.confusion == {"no": {"papers": 1}, "papers": {"papers": 2}, "task": {"papers": 1}}
    assert judged.cost_of == {"no": {"papers": 2}, "papers": {}, "task": {"papers": 2}}
    assert judged.cost.value == judged.regret.value == 4 / 4
    assert (judged.skipped.value, judged.skipped.n) == (0, 2)
    assert [each[:3] for each in judged.wrong] == [("c", "task", "papers"), ("d", "no", "papers")]


def test_a_search_that_is_skipped_is_seen():
    rows = [Labelled(f"question {place}", "papers") for place in range(4)]
    routes = {**CATALOGUE.routes, "task": replace(CATALOGUE.routes["task"], patterns=("question 3",))}
    judged = judge_router(Router(replace(CATALOGUE, routes=routes), {}), rows, {row.text: [1.0] for row in rows})

    assert judged.skipped.value == 0.25
    assert confusion_cost(CATALOGUE, "papers", "task") == 5


def test_outcomes_label_a_message_with_its_best_route_and_measure_all(tmp_path):
    data = tmp_path / "runs.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({"text": text, "outcomes": outcomes})
            for text, outcomes in (
                ("a", {"papers": {"quality": 1, "cost": 4, "ms": 900}, "task": {"quality": 0, "cost": 1, "ms": 300}}),
                ("b", {"papers": {"quality": 1, "cost": 6, "ms": 800}, "task": {"quality": 1, "cost": 1, "ms": 200}}),
            )
        )
    )

    rows = read_labelled(data)
    table = measure_routes(rows)

    assert [row.route for row in rows] == ["papers", "task"]
    assert rows[0].tried["papers"] == Tried(1.0, 4.0, 900.0)
    assert (table["papers"]["cost"], table["task"]["quality"]) == (5.0, {"papers": 0.0, "task": 1.0})
    assert judge_router(BASE, rows, {"a": [1.0], "b": [1.0]}).regret.value == 0


@pytest.mark.parametrize(
    "line",
    ["no json", "[]", "{}", '{"text": 1, "route": "papers"}', '{"text": " ", "route": "papers"}',
     '{"text": "a", "outcomes": {"papers": {"quality": 2}}}', '{"text": "a"}', '{"text": "a", "route": "papers", "side": "left"}'],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, line):
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "ok", "route": "papers"}\n\n' + line)

    with pytest.raises(TrainingError, match=r"d\.jsonl line 3"):
        read_labelled(data)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text("\n")

    with pytest.raises(TrainingError, match="no rows"):
        read_labelled(tmp_path / "d.jsonl")
