"""What a report's plots count, and that each number stands where it belongs in the drawing."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from orchestrator.evaluation.causes import draw_bars, draw_ceilings, share_of
from orchestrator.evaluation.figures import Bin, Matrix, Reliability, compare_with, refusals, reliability, routes
from orchestrator.evaluation.items import Gold, Item, ItemSet, Outcome
from orchestrator.evaluation.markup import Html, element, shown, table
from orchestrator.evaluation.metrics import Interval, wilson
from orchestrator.evaluation.plots import (
    PAINT,
    plot_latency,
    plot_matrix,
    plot_measures,
    plot_reliability,
    plot_waterfall,
)
from orchestrator.evaluation.summary import Timing
from tests.pages import as_run, make_diagnosis, make_run, passage

HOLDS, OTHER = passage(1, "Ann wrote it.", document="a"), passage(2, "Bob read it.", document="a")


def run_of(*outcomes: Outcome, answerable: bool = True, **given: str):
    items = tuple(
        Item(each.item, "Who?", ("Ann",) if answerable else (), answerable, (Gold("a"),) if answerable else (), **given)
        for each in outcomes
    )
    return as_run(ItemSet("s", items), {each.item: each for each in outcomes})


# counts


def test_sufficiency_is_held_against_the_gold_that_was_shown():
    said = [(0.91, HOLDS), (0.95, HOLDS), (0.97, OTHER), (0.12, OTHER), (1.0, HOLDS)]
    run = run_of(*(Outcome(str(at), passages=(shown_,), sufficiency=p) for at, (p, shown_) in enumerate(said)))

    found = reliability(run)

    assert [round(each.said, 4) for each in found.bins] == [0.12, 0.9575]
    assert [each.found for each in found.bins] == [wilson(0, 1), wilson(3, 4)]
    assert found.error == pytest.approx((0.12 + 4 * (0.9575 - 0.75)) / 5)
    assert found.brier == pytest.approx((0.09**2 + 0.05**2 + 0.97**2 + 0.12**2) / 5)
    assert (found.n, found.unseen) == (5, 0)


def test_what_cannot_be_answered_has_nothing_to_find_and_what_was_refused_unasked_tells_nothing():
    nothing = run_of(Outcome("a", passages=(OTHER,), sufficiency=0.9), answerable=False)
    unasked = run_of(
        Outcome("a", refused=True, sufficiency=0.1, flags=("passages_insufficient: 0.1",)),
        Outcome("b", sufficiency=0.5),
    )

    assert reliability(nothing).bins == (Bin(0.9, wilson(0, 1)),)
    assert (reliability(unasked).n, reliability(unasked).unseen) == (1, 1)
    assert reliability(run_of(Outcome("a"))) is None


def test_refusals_are_counted_by_what_can_be_answered():
    items = (Item("a", "x", ("y",)), Item("b", "x", ("y",)), Item("c", "x", answerable=False), Item("d", "x", ("y",)))
    done = {"a": Outcome("a", "y"), "b": Outcome("b", refused=True), "c": Outcome("c", refused=True)}

    failed = refusals(as_run(ItemSet("s", items), {**done, "d": Outcome("d", error="timeout: x")}))
    unasked = refusals(as_run(ItemSet("s", items), done))
    whole = refusals(as_run(ItemSet("s", items[:3]), done))

    assert (
        failed
        == unasked
        == Matrix(
            ("can be answered", "cannot be answered"), ("answered", "refused", "no answer"), ((1, 1, 1), (0, 1, 0))
        )
    )
    assert whole.columns == ("answered", "refused")


def test_routes_are_counted_where_a_question_names_one():
    items = (
        Item("a", "x", route="grounded"),
        Item("b", "x", route="grounded"),
        Item("c", "x", route="chat"),
        Item("d", "x"),
    )
    taken = {"a": "grounded", "b": "other", "c": "", "d": "chat"}
    run = as_run(ItemSet("s", items), {name: Outcome(name, route=route) for name, route in taken.items()})

    assert routes(run) == Matrix(
        ("chat", "grounded"), ("chat", "grounded", "(none)", "other"), ((0, 0, 1, 0), (0, 1, 0, 1))
    )
    assert routes(run_of(Outcome("a"))) is None


def test_questions_move_between_runs_and_what_was_not_asked_counts_as_wrong():
    items = tuple(Item(name, "x", ("y",)) for name in "abcd")
    now = as_run(
        ItemSet("s", items), {name: Outcome(name, said) for name, said in zip("abc", ("y", "n", "y"), strict=True)}
    )
    then = as_run(
        ItemSet("s", items), {name: Outcome(name, said) for name, said in zip("acd", ("n", "y", "y"), strict=True)}
    )

    found = compare_with(now, then)

    assert found.moves == {"a": "gained", "b": "", "c": "", "d": "lost"}
    assert (found.moved("gained"), found.moved("lost"), found.correct.value) == (("a",), ("d",), 0.0)
    assert found.verdict == "no significant difference"


# drawings


def parts(svg: str, paint: str) -> list[list[tuple[float, float]]]:
    """The corners of every path that is drawn in this colour."""
    paths = [
        each
        for each in ElementTree.fromstring(svg).iter("path")
        if f"var(--{paint})" in (each.get("stroke"), each.get("fill"))
    ]
    return [
        [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", each.get("d"))] for each in paths
    ]


def ticks(svg: str, at: str) -> dict[float, float]:
    """Share to coordinate, from the labels of the axis ``x`` or ``y``."""
    anchor = {"x": "middle", "y": "end"}[at]
    texts = [each for each in ElementTree.fromstring(svg).iter("text") if each.get("text-anchor") == anchor]
    return {float(each.text[:-1]) / 100: float(each.get(at)) for each in texts if re.fullmatch(r"\d+%", each.text)}


def spans(svg: str, paint: str) -> list[tuple[float, float]]:
    """The horizontal lines of a colour, as shares."""
    scale = ticks(svg, "x")
    lines = [each for each in parts(svg, paint) if len(each) == 2 and each[0][1] == each[1][1]]
    return [tuple((x - scale[0.0]) / (scale[1.0] - scale[0.0]) for x, _ in each) for each in lines]


def near(*values: float):
    return pytest.approx(values, abs=0.002)


def test_an_interval_is_drawn_from_its_low_to_its_high_end():
    svg = plot_measures(
        [("Correct", Interval(0.5, 0.42, 0.61, 9), Interval(0.3, 0.2, 0.4, 9)), ("F1", wilson(1, 2), None)]
    )

    assert spans(svg, "accent") == [near(0.42, 0.61), near(wilson(1, 2).low, wilson(1, 2).high)]
    assert spans(svg, "before") == [near(0.2, 0.4)]
    assert "Correct: 50.0% (42.0% to 61.0%), before 30.0% (20.0% to 40.0%)" in svg


def test_reliability_is_drawn_at_what_was_said_with_the_interval_of_what_was_found():
    svg = plot_reliability(Reliability((Bin(0.25, Interval(0.4, 0.3, 0.6, 7)),), 0.1, 0.2, 7, 0))
    across, up = ticks(svg, "x"), ticks(svg, "y")
    (line,) = [each for each in parts(svg, "accent") if len(each) == 2 and each[0][0] == each[1][0]]

    assert (line[0][0] - across[0.0]) / (across[1.0] - across[0.0]) == pytest.approx(0.25, abs=0.003)
    assert (line[1][1] - line[0][1]) / (up[1.0] - up[0.0]) == pytest.approx(0.3, abs=0.003)
    assert "about 0.25: 40.0% (30.0% to 60.0%) of 7 questions" in svg


def test_the_waterfall_climbs_from_today_to_each_ceiling():
    causes = {"a": ("stale",), "b": ("not_retrieved",), "c": ("not_retrieved",)}
    found = replace(
        make_diagnosis(make_run(5)), n=10, accuracy=share_of(7, 10), bars=draw_bars(causes, 10),
        ceilings=draw_ceilings(causes, 7, 10),
    )  # fmt: skip

    svg = plot_waterfall(found)

    texts = [each.text for each in ElementTree.fromstring(svg).iter("text")]
    assert [text for text in texts if re.match(r"[+\d]+\.\d", text)] == [
        "70.0%",
        "+10.0",
        "+20.0",
        "+0.0",
        "+0.0",
        "+0.0",
        "+0.0",
    ]
    (today,) = [each for each in parts(svg, "accent") if len(each) == 4]
    steps = [each for each in parts(svg, "good") if len(each) == 4]
    heights = [max(y for _, y in each) - min(y for _, y in each) for each in (today, *steps)]
    assert [round(each / heights[0], 2) for each in heights[:3]] == [1.0, 0.14, 0.29]
    assert min(y for _, y in today) == pytest.approx(max(y for _, y in steps[0]), abs=0.02)
    assert "retrieval: +20.0 points to 100.0%" in svg


def test_a_matrix_says_its_counts_and_shares():
    svg = plot_matrix("m", "Routes", Matrix(("chat", "grounded"), ("chat", "grounded"), ((3, 1), (0, 9))), "taken")
    texts = [each.text for each in ElementTree.fromstring(svg).iter("text")]

    assert [text for text in texts if re.fullmatch(r"\d+%?", text)] == ["3", "75%", "1", "25%", "0", "0%", "9", "100%"]
    assert "chat: 3 chat, 1 grounded; grounded: 0 chat, 9 grounded" in svg


def test_a_stage_is_a_bar_to_its_median_and_a_line_to_its_95th_percentile():
    svg = plot_latency([("search", Timing(20, 50, 9), Timing(10, 40, 9))])
    (bar,) = [each for each in parts(svg, "accent") if len(each) == 4]
    (line,) = [each for each in parts(svg, "accent") if len(each) == 2]
    start, middle = min(x for x, _ in bar), max(x for x, _ in bar)

    assert line[0][0] == pytest.approx(middle, abs=0.02)
    assert (line[1][0] - start) / (middle - start) == pytest.approx(50 / 20, abs=0.01)
    assert "search: median 20 ms, 95% below 50 ms; before 10 and 40 ms" in svg


@pytest.mark.parametrize(
    "name", ["$\\frac$", "$x_1$", "<b>&\"'", "\x00\u202e\ud800", "日本語", "x" * 500, "two\nlines", ""]
)
def test_any_name_can_be_drawn_as_it_is(name: str):
    svg = plot_matrix("m", name, Matrix((name,), (name,), ((1,),)), "taken")
    texts = [each.text or "" for each in ElementTree.fromstring(svg).iter("text")]
    whole = " ".join(shown(name).split())

    assert whole in texts or f"{whole[:25]}…" in texts or not whole
    assert max(map(len, texts)) <= 26
    assert "<b>" not in svg


def test_a_plot_carries_no_style_no_date_and_no_id_but_its_own():
    svg = plot_measures([("Correct", wilson(3, 9), wilson(2, 9))])
    root = ElementTree.fromstring(svg)
    colors = {value for each in root.iter() for key, value in each.attrib.items() if key in ("fill", "stroke")}

    assert "style" not in svg
    assert "metadata" not in svg
    assert {each.get("id", "measures-") for each in root.iter()} - {"plot-measures"} != set()
    assert all(each.get("id", "measures-").startswith(("measures-", "plot-measures")) for each in root.iter())
    assert colors <= {"none", *(f"var(--{name})" for name in PAINT.values())}
    referred = {each.get("href", "#")[1:] for each in root.iter("use")}
    assert referred <= {each.get("id") for each in root.iter()}
    assert svg == plot_measures([("Correct", wilson(3, 9), wilson(2, 9))])


# markup


def test_text_is_text_and_markup_is_markup():
    assert element("p", "<b>&", Html("<i>x</i>"), data_name='"><script>') == (
        '<p data-name="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;<i>x</i></p>'
    )


def test_hidden_characters_are_seen_and_what_scripts_need_stays():
    assert shown("a\x00\u202eb\U000e0041\ud800") == "a⟨U+0000⟩⟨U+202E⟩b⟨U+E0041⟩⟨U+D800⟩"
    assert shown("क्\u200dष می\u200cخواهم\tx\r\ny\u2028z") == "क्\u200dष می\u200cخواهم\tx\ny\nz"


def test_a_table_has_a_caption_and_heads_for_rows_and_columns():
    found = table("What", ["a", "b"], [["<x>", "1"]], numbers=1)

    assert "<caption>What</caption>" in found
    assert '<th scope="col">a</th><th scope="col" class="number">b</th>' in found
    assert '<tr><th scope="row">&lt;x&gt;</th><td class="number">1</td></tr>' in found
