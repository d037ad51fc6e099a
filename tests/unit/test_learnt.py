"""The learnt router: rules before it, its threshold, what it may not choose, limits, and files that do not fit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError, SettingsError
from orchestrator.learnt import (
    FEATURES,
    Limits,
    Measured,
    choose_cheapest,
    count_inputs,
    hashed_words,
    lexical,
    load_learnt,
    own_words,
    pack_weights,
    parse_learnt,
    read_features,
    start_of_text,
    unpack_weights,
)
from orchestrator.prompts import Catalogue, Route
from orchestrator.router import LEARNT_FILE, Router, digest_routes, find_learnt, misfit, open_router
from orchestrator.testing import HashEmbedder
from orchestrator.types import Query

SPACE = "toy"
CATALOGUE = Catalogue(
    {
        route.name: route
        for route in (
            Route("papers", prompt="p", contract="c", collection="default", k=5, examples=("How long?",)),
            Route("task", prompt="p", contract="c", needs_text=True, keywords=("classify",), examples=("Sort: a",)),
            Route("say", action="clarify", reply="Say more.", patterns=(r"^\W*$",)),
        )
    },
    {},
    {},
    fallback="papers",
)
MEASURED = {
    "papers": {"cost": 4.0, "ms": 900, "quality": {"papers": 0.9, "task": 0.9}, "n": 50},
    "task": {"cost": 1.0, "ms": 300, "quality": {"papers": 0.2, "task": 0.9}, "n": 50},
}


def model_file(**changes):
    """A file whose model reads a vector of three numbers: one for each route."""
    weights = np.hstack([np.eye(3) * 4, np.zeros((3, count_inputs(3) - 3))])
    values = {
        "format": 2, "space": SPACE, "dimensions": 3, "routes": ["papers", "say", "task"], "features": FEATURES,
        "weights": pack_weights(weights), "bias": [0.0, 0.0, 0.0], "temperature": 1.0, "threshold": 0.8, "precision": 0.97,
        "abstain": "say", "costs": (1 - np.eye(3)).tolist(), "catalogue": digest_routes(CATALOGUE), "measured": MEASURED,
        "evidence": {},
    }  # fmt: skip
    return json.dumps({**values, **changes}).encode()


LEARNT = parse_learnt(model_file())
ROUTER = Router(CATALOGUE, {}, "handbook", LEARNT)
PAPERS, SAY, TASK = ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])


@pytest.mark.parametrize(
    ("text", "vector", "route"), [("a: b", PAPERS, "papers"), ("a: b", SAY, "say"), ("a: b", TASK, "task")]
)
def test_the_likeliest_route_is_taken_and_the_file_is_named(text, vector, route):
    plan = ROUTER.plan(Query(text), vector)

    assert plan.route == route
    assert plan.reason.startswith(f"router {LEARNT.digest[:12]}: {route}")
    assert plan.scores[route] == pytest.approx(math.e**4 / (math.e**4 + 2))


def test_below_the_threshold_it_abstains():
    plan = ROUTER.plan(Query("a: b"), [0.5, 0, 0.5])

    assert (plan.route, plan.action) == ("say", "clarify")
    assert "below 0.80" in plan.reason


def test_rules_and_pins_come_first():
    assert ROUTER.plan(Query("classify: x"), PAPERS).reason.startswith("rule of task")
    assert ROUTER.plan(Query("..."), PAPERS).route == "say"
    assert ROUTER.plan(Query("a: b", route="papers"), TASK).reason == "pinned by the caller"


def test_a_route_that_needs_text_is_not_for_a_message_without_one():
    plan = ROUTER.plan(Query("sort it"), [0.9, 0, 1.0])

    assert plan.route == "papers"
    assert sum(plan.scores.values()) == pytest.approx(1)


def test_of_two_likely_routes_the_one_that_is_cheaper_to_be_wrong_with_is_taken():
    dear = parse_learnt(model_file(threshold=0.4, costs=[[0, 9, 9], [1, 0, 1], [1, 1, 0]]))
    plan = replace(ROUTER, learnt=dear).plan(Query("a: b"), [0.5, 0.0, 0.6])

    assert (plan.route, max(plan.scores, key=lambda name: plan.scores[name])) == ("papers", "task")
    assert "costs less than to be wrong with task" in plan.reason
    assert dear.cheapest({"papers": 0.05, "say": 0.05, "task": 0.9}) == "task"


def test_without_a_vector_it_is_the_fallback():
    assert ROUTER.plan(Query("a: b")).route == "papers"


@given(st.text(max_size=300), st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_probabilities_are_probabilities_and_the_same_each_time(text, vector):
    shares = LEARNT.probabilities(read_features(text, vector))

    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares == LEARNT.probabilities(read_features(text, vector))


@given(st.text(max_size=300))
def test_there_is_a_number_between_0_and_3_for_every_feature(text):
    found = lexical(text)

    assert len(found) == len(FEATURES)
    assert all(0 <= value <= 3 for value in found)


def test_features_see_what_they_are_named_after():
    found = dict(zip(FEATURES, lexical("Please fix this: i has a cat"), strict=True))

    assert (found["colon"], found["brings_text"], found["question_end"], found["opens_polite"]) == (1, 1, 0, 1)
    assert found["has_task"] == pytest.approx(1 / 3)
    assert dict(zip(FEATURES, lexical("How many?"), strict=True))["brings_text"] == 0


@pytest.mark.parametrize(
    ("text", "brought"),
    [
        ("Any typos in this? We recieve parcels.", "We recieve parcels."),
        ("Sort: pear, fig", ": pear, fig"),
        ('Who is praised? "Selma did it."', '"Selma did it."'),
        ("Count the words\nin here", "\nin here"),
    ],
)
def test_a_text_that_is_brought_is_seen(text, brought):
    assert text[start_of_text(text) :] == brought


@pytest.mark.parametrize(
    "text", ["How long?", "Is this allowed?", "Summarise the travel policy. I need it today.", "it's"]
)
def test_a_question_brings_no_text(text):
    assert start_of_text(text) is None


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ('The mail says "pay now". What do our terms say?', "The mail says  . What do our terms say?"),
        ("Translate into Dutch: hello there", "Translate into Dutch"),
        ("How long?", "How long?"),
    ],
)
def test_own_words_are_those_outside_the_text(text, own):
    assert own_words(text) == own


def test_hashed_words_are_a_unit_vector_that_order_matters_to():
    one, other = hashed_words("the dog bites the man"), hashed_words("the man bites the dog")

    assert np.linalg.norm(one) == pytest.approx(1)
    assert not np.array_equal(one, other)
    assert not hashed_words("").any()


def test_hashed_words_fall_into_the_same_buckets_in_every_process():
    assert np.flatnonzero(hashed_words("notice")).tolist() == [131, 450]


def test_there_are_as_many_inputs_as_are_counted():
    assert len(read_features("Which? a: b", [0.1] * 7)) == count_inputs(7)


def test_weights_survive_their_packing():
    weights = np.asarray([[0.5, -2.0, 3.25], [1e-3, 0.0, 7.0]])

    assert unpack_weights(pack_weights(weights), 2) == pytest.approx(weights, rel=1e-3)


def test_a_long_message_is_read_at_its_beginning():
    assert lexical("x" * 4000) == lexical("x" * 4000 + "?" * 100_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1},
        {"features": ["other"]},
        {"weights": pack_weights(np.ones((3, 2)))},
        {"weights": "no base64"},
        {"weights": pack_weights(np.full((3, count_inputs(3)), np.nan))},
        {"costs": [[0.0]]},
        {"costs": [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]},
        {"catalogue": None, "costs": None},
        {"bias": [0.0]},
        {"bias": [0.0, 0.0, math.nan]},
        {"temperature": 0},
        {"threshold": 1.5},
        {"routes": ["papers"]},
        {"measured": []},
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, changes):
    (tmp_path / "m.json").write_bytes(model_file(**changes))

    with pytest.raises(SettingsError, match="router fit"):
        load_learnt(tmp_path / "m.json")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff"])
def test_what_is_no_file_of_ours_is_refused(tmp_path, raw):
    (tmp_path / "m.json").write_bytes(raw)

    with pytest.raises(SettingsError, match="no router's file"):
        load_learnt(tmp_path / "m.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        find_learnt(CATALOGUE, tmp_path, tmp_path / "none.json", SPACE)


def test_the_file_beside_the_routes_is_found_when_it_fits(tmp_path, caplog):
    assert find_learnt(CATALOGUE, tmp_path, None, SPACE) is None

    (tmp_path / LEARNT_FILE).write_bytes(model_file())

    assert find_learnt(CATALOGUE, tmp_path, None, SPACE).digest == LEARNT.digest
    with caplog.at_level("INFO"):
        assert find_learnt(CATALOGUE, tmp_path, None, "other") is None
    assert "left aside" in caplog.text


def test_a_file_that_lies_there_does_not_serve_routes_that_were_changed(tmp_path):
    (tmp_path / LEARNT_FILE).write_bytes(model_file())
    papers = replace(CATALOGUE.routes["papers"], examples=("How long?", "Who signs?"))
    changed = replace(CATALOGUE, routes={**CATALOGUE.routes, "papers": papers})

    assert find_learnt(changed, tmp_path, None, SPACE) is None
    assert find_learnt(changed, tmp_path, tmp_path / LEARNT_FILE, SPACE) is not None


def test_what_does_not_decide_does_not_change_the_digest_of_the_routes():
    papers = replace(CATALOGUE.routes["papers"], description="other", budget_tokens=9, max_tokens=7, adapter="a")

    assert digest_routes(replace(CATALOGUE, routes={**CATALOGUE.routes, "papers": papers})) == digest_routes(CATALOGUE)


def test_a_named_file_that_does_not_fit_is_an_error(tmp_path):
    (tmp_path / "m.json").write_bytes(model_file())

    with pytest.raises(SettingsError, match="vectors of toy"):
        find_learnt(CATALOGUE, tmp_path, tmp_path / "m.json", "other")


def test_a_file_for_other_routes_does_not_fit():
    more = Catalogue({**CATALOGUE.routes, "new": Route("new", examples=("x",))}, {}, {}, fallback="papers")
    fewer = Catalogue({"papers": CATALOGUE.routes["papers"]}, {}, {}, fallback="papers")

    assert misfit(LEARNT, CATALOGUE, SPACE) is None
    assert "'new'" in misfit(LEARNT, more, SPACE)
    assert "'say', 'task'" in misfit(LEARNT, fewer, SPACE)


async def test_a_learnt_router_embeds_no_examples():
    embedder = HashEmbedder()

    router = await open_router(CATALOGUE, embedder, "c", LEARNT)

    assert (embedder.texts, router.learnt) == ([], LEARNT)


# the second look

NO_SAY = Route("say", action="refuse", reply="No.", patterns=(r"^\W*$",))
WITH_NO = replace(
    CATALOGUE,
    routes={**CATALOGUE.routes, "papers": replace(CATALOGUE.routes["papers"], min_sufficiency=0.2), "say": NO_SAY},
)
REFUSING = replace(ROUTER, catalogue=WITH_NO)


@pytest.mark.parametrize(("sufficiency", "route"), [(0.2, "papers"), (0.19, "say"), (None, "say")])
def test_a_probable_refusal_gives_way_to_documents_that_suffice(sufficiency, route):
    plan = REFUSING.plan(Query("a: b"), SAY)
    look = REFUSING.second_look(Query("a: b"), plan)

    assert (plan.action, look.route, look.retrieves) == ("refuse", "papers", True)
    assert REFUSING.settle(plan, look, sufficiency).route == route
    assert "the documents suffice" in look.reason


@pytest.mark.parametrize(
    ("query", "vector", "router"),
    [
        (Query("..."), SAY, REFUSING),
        (Query("a: b", route="say"), SAY, REFUSING),
        (Query("a: b", max_cost=9), SAY, REFUSING),
        (Query("a: b"), PAPERS, REFUSING),
        (Query("a: b"), SAY, ROUTER),
    ],
    ids=["a rule refuses", "a pin", "limits", "no refusal", "a question back"],
)
def test_nothing_else_is_looked_at_again(query, vector, router):
    plan = router.plan(query, vector)

    assert router.second_look(query, plan) is None
    assert router.settle(plan, None, 1.0) is plan


# limits


@pytest.mark.parametrize(
    ("limits", "route"),
    [
        ({"min_quality": 0.5}, "papers"),
        ({"max_cost": 2}, "task"),
        ({"deadline_ms": 500}, "task"),
        ({"min_quality": 0.1}, "task"),
    ],
)
def test_the_cheapest_route_that_meets_the_limits_answers(limits, route):
    plan = ROUTER.plan(Query("a: b", **limits), PAPERS)

    assert plan.route == route
    assert "cheapest with" in plan.reason


def test_what_the_question_probably_is_decides_how_good_a_route_is_on_it():
    assert ROUTER.plan(Query("a: b", min_quality=0.8), TASK).route == "task"
    assert ROUTER.plan(Query("a: b", min_quality=0.8), PAPERS).route == "papers"


def test_when_no_route_meets_the_limits_it_says_what_each_gives():
    with pytest.raises(
        InputError, match=r"no route meets cost at most 2, quality at least 0.8 \(papers: cost 4, quality 0.88, 900 ms;"
    ):
        ROUTER.plan(Query("a: b", max_cost=2, min_quality=0.8), PAPERS)


def test_limits_do_not_make_a_task_of_a_message_without_a_text():
    with pytest.raises(InputError, match="no route meets"):
        ROUTER.plan(Query("sort it", max_cost=2), PAPERS)


def test_a_pinned_route_must_meet_the_limits_itself():
    assert ROUTER.plan(Query("a: b", route="task", max_cost=2)).route == "task"
    with pytest.raises(InputError, match="papers: cost 4"):
        ROUTER.plan(Query("a: b", route="papers", max_cost=2))


def test_a_rule_says_what_kind_of_question_it_is():
    plan = ROUTER.plan(Query("classify: x", min_quality=0.8))

    assert plan.route == "task"
    assert plan.reason.startswith("rule of task")


def test_what_asks_back_costs_nothing():
    assert ROUTER.plan(Query("?", max_cost=0)).action == "clarify"


def test_limits_without_measurements_are_an_error():
    with pytest.raises(InputError, match="has been measured"):
        replace(ROUTER, learnt=None, examples={}).plan(Query("a: b", max_cost=9), PAPERS)


def test_of_two_that_cost_the_same_the_better_one_answers():
    table = {name: Measured(1.0, 10, {"x": quality}, 9) for name, quality in (("a", 0.4), ("b", 0.6))}

    assert choose_cheapest(table, {"x": 1.0}, Limits(max_cost=1), ["a", "b"])[0] == "b"
