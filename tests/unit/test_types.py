"""Values: identifiers, points in time, names that are derived from other fields."""

from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from orchestrator.types import Adapter, Answer, Plan, Query, end_of, new_id, start_of

DAY_START = datetime(2025, 3, 1, tzinfo=UTC)
DAY_END = datetime(2025, 3, 1, 23, 59, 59, 999999, UTC)


def test_new_ids_are_unique_and_say_what_they_name():
    ids = {new_id("ans") for _ in range(1000)}

    assert len(ids) == 1000
    assert all(identifier.startswith("ans_") and len(identifier) == 36 for identifier in ids)


def test_later_ids_sort_behind_earlier_ones(monkeypatch):
    first = new_id("ans")

    assert first[:16] <= new_id("ans")[:16]


@pytest.mark.parametrize("given", [date(2025, 3, 1), "2025-03-01"])
def test_a_plain_date_means_its_whole_day(given):
    assert (start_of(given), end_of(given)) == (DAY_START, DAY_END)


@pytest.mark.parametrize("given", ["2025-03-01T12:30:00+02:00", datetime.fromisoformat("2025-03-01T12:30:00+02:00")])
def test_an_instant_stays_that_instant(given):
    assert start_of(given) == end_of(given) == datetime(2025, 3, 1, 10, 30, tzinfo=UTC)


def test_an_instant_without_a_zone_is_in_utc():
    assert (
        end_of("2025-03-01T10:30:00") == start_of(datetime(2025, 3, 1, 10, 30)) == DAY_START.replace(hour=10, minute=30)
    )


def test_no_moment_stays_none():
    assert start_of(None) is None
    assert end_of(None) is None


@pytest.mark.parametrize("given", ["yesterday", "2025-02-30", "01.03.2025", ""])
def test_a_text_that_is_no_time_is_refused(given):
    with pytest.raises(ValueError):  # noqa: PT011 the message is the standard library's
        end_of(given)


def test_each_query_gets_an_id_of_its_own():
    assert Query("same").id != Query("same").id


def test_values_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Query("a").text = "b"  # type: ignore[misc]


def test_a_plan_retrieves_when_it_has_a_collection_and_a_depth():
    plan = Plan("answer", "grounded", "because", collection="default", k=5)

    assert plan.retrieves
    assert not Plan("answer", "direct", "because", collection="default").retrieves
    assert not Plan("answer", "direct", "because", k=5).retrieves


def test_an_adapter_is_served_under_its_name_and_twelve_digits_of_its_digest():
    adapter = Adapter("cited", "0123456789abcdef", Path("x"), "base", 16, "p", "d", "c", "d")

    assert adapter.served_name == "cited--0123456789ab"


def test_an_answer_names_its_route():
    assert Answer("ans_1", "text", None, (), Plan("answer", "grounded", "because")).route == "grounded"
