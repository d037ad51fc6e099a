"""The arithmetic of advice: the shipped cost sheet, the article's figures, bills, break-evens and sensitivities."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SettingsError
from orchestrator.evaluation.costs import OPTIONS, CostSheet, Prices, load_costs, parse_costs
from orchestrator.evaluation.money import (
    DAYS_PER_MONTH,
    Workload,
    bill,
    break_even,
    estimate,
    gpus,
    sensitivity,
    total_usd,
)
from orchestrator.resources import folder

FILE = folder("prompts") / "costs.toml"
SHIPPED = tomllib.loads(FILE.read_text("utf-8"))
SHEET = load_costs()
BANK = Workload(2000, 300, 1500, 150, 3000, 3_000_000, 1 / 3, 40, 1.0)
TRIAGE = Workload(5_000_000, 400, 0, 60)

workloads = st.builds(
    Workload,
    queries_per_day=st.floats(1, 1e7),
    prompt_tokens=st.floats(10, 5000),
    passage_tokens=st.floats(0, 8000),
    completion_tokens=st.floats(1, 2000),
    documents=st.integers(0, 10_000),
    corpus_tokens=st.floats(0, 1e7),
    changes_per_month=st.floats(0, 30),
    documents_per_change=st.floats(1, 500),
    built=st.sampled_from([(), ("retrieval",), ("adapter",), ("retrieval", "adapter")]),
)
options = st.sampled_from(OPTIONS)


def lines(option: str, workload: Workload, prices: Prices = SHEET.likely) -> dict[str, float]:
    return {line.what: line.usd for line in bill(option, workload, prices)}  # type: ignore[arg-type]


# The sheet


def test_every_figure_of_the_shipped_sheet_names_its_source() -> None:
    figures = [line for line in FILE.read_text("utf-8").splitlines() if "=" in line and not line.startswith("#")]

    assert len(figures) == len(fields(Prices)) + 2 * (len(OPTIONS) + 1)
    assert [line for line in figures if not re.search(r"# (article|list|ours)\b", line)] == []


def test_units_stand_in_the_names() -> None:
    units = re.compile(
        r"_(usd|hours|tokens|weeks|share|times|per_second|per_month|of_price|at_least|to_production)(_|$)"
    )

    assert [field.name for field in fields(Prices) if not units.search(field.name)] == []


def test_the_articles_figures_are_the_defaults() -> None:
    def ends(name: str) -> tuple[float, float, float]:
        found = SHEET.range(name)
        return found.low, found.likely, found.high

    assert (ends("lora_run_usd")[0], ends("lora_run_usd")[2]) == (300, 800)
    assert ends("full_run_usd")[0] == 35_000
    assert ends("retrieval_build_usd") == (18_000, 28_000, 45_000)
    assert ends("retrieval_upkeep_hours_per_month")[::2] == (5, 10)
    accuracy = SHEET.accuracy_documents
    assert (accuracy["naive retrieval"].low, accuracy["naive retrieval"].high) == (0.10, 0.40)
    assert (accuracy["retrieval"].low, accuracy["retrieval"].high) == (0.85, 0.90)


def test_a_users_sheet_goes_over_the_shipped_one(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('engineer_hour_usd = 80\n[accuracy_task]\n"adapter" = 0.97\n', "utf-8")

    sheet = load_costs(own)

    assert (sheet.low.engineer_hour_usd, sheet.high.engineer_hour_usd) == (80, 80)
    assert sheet.accuracy_task["adapter"].likely == 0.97
    assert sheet.likely.gpu_hour_usd == SHEET.likely.gpu_hour_usd
    assert sheet.accuracy_task["both"] == SHEET.accuracy_task["both"]


def test_a_sheet_in_the_prompts_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "costs.toml").write_text("gpu_hour_usd = 9\n", "utf-8")

    assert load_costs(prompts_dir=tmp_path).likely.gpu_hour_usd == 9
    assert load_costs(prompts_dir=tmp_path / "empty").likely.gpu_hour_usd == SHEET.likely.gpu_hour_usd


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu_hour = 2", "unknown keys ['gpu_hour']"),
        ("[accuracy_task]\nmagic = 1", "unknown keys ['magic']"),
        ("accuracy_task = 1", "must be a table"),
        ("gpu_hour_usd = { low = 3, likely = 2, high = 4 }", "low <= likely <= high"),
        ("gpu_hour_usd = { low = 1, likely = 2 }", "must be a number or"),
        ("gpu_hour_usd = { low = 1, likely = 2, high = 3, middle = 2 }", "must be a number or"),
        ("gpu_hour_usd = -1", "low <= likely <= high"),
        ("gpu_hour_usd = true", "must be a number or"),
        ("gpu_hour_usd = nan", "must be a number or"),
        ('gpu_hour_usd = "2"', "must be a number or"),
        ("gpu_use_share = 1.5", "share from 0 to 1"),
        ("gpu_use_share = 0", "must be above 0"),
        ("[accuracy_task]\nadapter = 92", "share from 0 to 1"),
    ],
)
def test_a_wrong_figure_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        parse_costs(SHIPPED, ("mine.toml", tomllib.loads(text)))


def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("gpu_hour_usd = = 2", "utf-8")

    with pytest.raises(SettingsError, match=r"mine\.toml"):
        load_costs(tmp_path / "mine.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_costs(tmp_path / "nothing.toml")


def test_a_figure_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match="gpu_hour_usd"):
        parse_costs({name: value for name, value in SHIPPED.items() if name != "gpu_hour_usd"})


# The article's worked examples


def test_full_fine_tuning_with_quarterly_changes_costs_over_140_000_in_year_one() -> None:
    found = estimate("full fine-tuning", BANK, SHEET, months=12)
    runs = lines("full fine-tuning", BANK)["training runs for each change of knowledge"] * 12

    assert runs == pytest.approx(4 * 35_000)
    assert found.total.likely > 140_000
    assert found.total.low > 140_000
    assert found.total.likely > 3 * estimate("retrieval", BANK, SHEET).total.likely


@pytest.mark.parametrize("queries_per_day", [1_000_000, 5_000_000, 20_000_000])
def test_a_narrow_tuned_model_is_70_to_90_percent_cheaper_at_millions_a_day(queries_per_day: float) -> None:
    work = replace(TRIAGE, queries_per_day=queries_per_day)

    saved = 1 - estimate("adapter", work, SHEET).total.likely / estimate("prompt only", work, SHEET).total.likely

    assert 0.7 <= saved <= 0.9


# Bills


def test_a_bill_by_hand() -> None:
    work = Workload(
        1000, 300, 1200, 100, documents=10, corpus_tokens=1_000_000, changes_per_month=2, documents_per_change=5
    )
    per_query = ((300 + 600 + 1200) * 0.40 + 100 * 1.60) / 1e6

    assert lines("retrieval", work) == pytest.approx(
        {
            "tokens of the hosted model": per_query * 1000 * DAYS_PER_MONTH,
            "upkeep of retrieval": 750,
            "database": 150,
            "embedding of what changes": 2 * 5 * 100_000 * 0.02 / 1e6,
            "building retrieval": 28_000,
            "embedding of the corpus": 0.02,
            "upkeep of the prompt": 200,
            "writing the prompt": 2400,
        }
    )


def test_an_estimate_is_once_plus_months_of_running() -> None:
    found = estimate("both", BANK, SHEET, months=7)

    assert found.total.likely == pytest.approx(found.one_off.likely + 7 * found.monthly.likely)
    assert found.per_thousand.likely == pytest.approx(found.total.likely / (2000 * DAYS_PER_MONTH * 7 / 1000))
    assert found.weeks.likely == 8 + 5


def test_what_is_built_is_not_paid_again() -> None:
    built = replace(BANK, built=("retrieval",))

    assert estimate("retrieval", built, SHEET).one_off.likely == 0
    assert estimate("both", built, SHEET).one_off.likely == 60 * 100 + 3 * 500
    assert estimate("both", built, SHEET).weeks.likely == 5
    assert estimate("both", built, SHEET).monthly == estimate("both", BANK, SHEET).monthly


def test_an_adapter_that_keeps_facts_is_trained_for_each_change() -> None:
    still, moving = (replace(BANK, changes_per_month=changes) for changes in (0, 3))

    def month(option: str, work: Workload) -> float:
        return estimate(option, work, SHEET).monthly.likely  # type: ignore[arg-type]

    assert month("adapter", moving) - month("adapter", still) == pytest.approx(3 * (500 + 600))
    assert month("both", moving) - month("both", still) == pytest.approx(3 * 40 * 1000 * 0.02 / 1e6)


def test_gpus_are_rented_for_the_load_and_never_less_than_it_takes_to_serve() -> None:
    assert gpus("adapter", replace(TRIAGE, queries_per_day=10), SHEET.likely) == 1
    assert gpus("adapter", TRIAGE, SHEET.likely) == pytest.approx(5e6 * (400 / 20_000 + 60 / 2500) / (86_400 * 0.4))


@settings(max_examples=50)
@given(options, workloads, st.floats(1, 60))
def test_a_range_holds_its_likely_value(option: str, work: Workload, months: float) -> None:
    found = estimate(option, work, SHEET, months)  # type: ignore[arg-type]

    for span in (found.one_off, found.monthly, found.total, found.per_thousand, found.weeks):
        assert 0 <= span.low <= span.likely * (1 + 1e-9)
        assert span.likely <= span.high * (1 + 1e-9)


@settings(max_examples=50)
@given(options, workloads)
def test_more_queries_never_cost_less(option: str, work: Workload) -> None:
    more = replace(work, queries_per_day=work.queries_per_day * 2)

    assert total_usd(option, more, SHEET.likely, 12) >= total_usd(option, work, SHEET.likely, 12) - 1e-6  # type: ignore[arg-type]


# Break-evens


@settings(max_examples=50)
@given(options, options, workloads, st.sampled_from(["queries_per_day", "changes_per_month"]))
def test_at_a_break_even_both_cost_the_same_and_beside_it_the_cheaper_one_is_named(
    first: str, second: str, work: Workload, by: str
) -> None:
    found = break_even(first, second, work, SHEET.likely, 12, by)  # type: ignore[arg-type]

    def cost(option: str, value: float) -> float:
        return total_usd(option, replace(work, **{by: value}), SHEET.likely, 12)  # type: ignore[arg-type]

    assert len(found.cheaper) == len(found.at) + 1
    for value in found.at:
        assert cost(first, value) == pytest.approx(cost(second, value), rel=1e-6)
    edges = [0.0, *found.at, (found.at[-1] if found.at else 1.0) * 3]
    for (left, right), cheaper in zip(pairwise(edges), found.cheaper, strict=True):
        for share in (0.1, 0.5, 0.9):
            value = left + share * (right - left)
            other = second if cheaper == first else first
            assert cost(cheaper, value) <= cost(other, value) * (1 + 1e-6) + 1e-6


def test_a_gpu_pays_from_a_known_number_of_queries_on() -> None:
    found = break_even("prompt only", "adapter", TRIAGE, SHEET.likely, 12)
    # One GPU, 730.5 hours at $2, upkeep $400, training again 0.17 * 1100; against $200 and tokens.
    fixed = 7500 - 2400 + 12 * (1461 + 400 + 187 - 200)
    per_query_and_day = 12 * DAYS_PER_MONTH * (1000 * 0.40 + 60 * 1.60) / 1e6

    assert found.at == (pytest.approx(fixed / per_query_and_day),)
    assert found.cheaper == ("prompt only", "adapter")


def test_two_options_that_cross_twice_are_cheaper_in_turn() -> None:
    # One GPU at $9 bears 785,454 queries a day: it beats tokens while it fills up, and loses when a second one is needed.
    free = {"few_shot_tokens": 0, "prompt_build_hours": 0, "training_examples_hours": 0, "lora_runs_to_production": 0}
    prices = replace(SHEET.likely, **free, gpu_hour_usd=9.0, prompt_upkeep_hours_per_month=20)

    found = break_even("prompt only", "adapter", TRIAGE, prices, 12)

    assert found.cheaper == ("prompt only", "adapter", "prompt only")
    assert found.at[0] < 785_454 < found.at[1]


def test_retrieval_is_cheaper_than_full_fine_tuning_however_rarely_documents_change() -> None:
    found = break_even("full fine-tuning", "retrieval", BANK, SHEET.likely, 12, "changes_per_month")

    assert found.at == ()
    assert found.cheaper == ("retrieval",)


# Sensitivity


def test_the_input_that_matters_most_comes_first() -> None:
    found = sensitivity("retrieval", BANK, SHEET, 12)

    assert [swing.name for swing in found[:2]] == ["retrieval_build_usd", "engineer_hour_usd"]
    assert found[0].usd_at_high - found[0].usd_at_low == pytest.approx(45_000 - 18_000)
    assert [swing.size for swing in found] == sorted((swing.size for swing in found), reverse=True)


def test_a_swing_is_the_total_with_one_input_moved() -> None:
    for swing in sensitivity("both", BANK, SHEET, 12):
        for value, usd in ((swing.low, swing.usd_at_low), (swing.high, swing.usd_at_high)):
            moved = replace(SHEET.likely, **{swing.name: value})
            assert usd == pytest.approx(total_usd("both", BANK, moved, 12))


def test_a_swing_that_turns_the_order_round_says_so() -> None:
    near = replace(TRIAGE, queries_per_day=break_even("prompt only", "adapter", TRIAGE, SHEET.likely, 12).at[0] * 1.1)

    found = {swing.name: swing for swing in sensitivity("adapter", near, SHEET, 12, rival="prompt only")}

    assert found["gpu_hour_usd"].flips
    assert not found["prompt_build_hours"].flips


def test_a_sheet_without_ranges_has_no_swings() -> None:
    flat = CostSheet(SHEET.likely, SHEET.likely, SHEET.likely, SHEET.accuracy_documents, SHEET.accuracy_task)

    assert sensitivity("both", BANK, flat, 12) == ()
