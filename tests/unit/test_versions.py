"""Where a new version of a document goes in time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.knowledge.versions import Placement, Version, place_end, place_version, valid_at

NOW = datetime(2025, 6, 1, tzinfo=UTC)
T1, T2, T3 = (datetime(2025, month, 1, tzinfo=UTC) for month in (1, 3, 5))


def version(number: int, sha256: str, begin: datetime | None, end: datetime | None, source: str = "f") -> Version:
    return Version(number, number, sha256, "t", source, begin, end)


def end(number: int, begin: datetime, until: datetime | None = None) -> Version:
    return Version(number, number, "", "t", "", begin, until, is_end=True)


def place(
    versions: list[Version], sha256: str, valid_from: datetime | None = None, source: str = "f"
) -> Placement | None:
    return place_version(versions, sha256=sha256, title="t", source=source, valid_from=valid_from, now=NOW)


def test_the_first_version_was_true_since_ever() -> None:
    assert place([], "a") == Placement(None, None)


def test_a_changed_text_is_true_from_now_on() -> None:
    assert place([version(1, "a", None, None)], "b") == Placement(NOW, None, ends=1)


def test_the_same_text_is_no_work() -> None:
    assert place([version(1, "a", None, None)], "a") is None


def test_another_title_is_a_new_version() -> None:
    found = place_version([version(1, "a", None, None)], sha256="a", title="new", source="f", valid_from=None, now=NOW)
    assert found == Placement(NOW, None, ends=1)


def test_going_back_to_an_old_text_is_a_new_version() -> None:
    assert place([version(1, "a", None, T1), version(2, "b", T1, None)], "a") == Placement(NOW, None, ends=2)


def test_two_files_with_one_id_do_not_replace_each_other_when_read_again() -> None:
    versions = [version(1, "a", None, T1, "f1"), version(2, "b", T1, None, "f2")]
    assert place(versions, "a", source="f1") is None
    assert place(versions, "b", source="f2") is None


def test_a_version_is_put_between_two_others() -> None:
    versions = [version(1, "a", None, T3), version(2, "c", T3, None)]
    assert place(versions, "b", T2) == Placement(T2, T3, ends=1)


def test_a_version_is_put_before_all_others() -> None:
    assert place([version(1, "b", T2, None)], "a", T1) == Placement(T1, T2)


def test_the_same_time_and_text_is_no_work() -> None:
    assert place([version(1, "a", T1, T2), version(2, "b", T2, None)], "a", T1) is None


def test_another_text_for_the_same_time_is_a_correction() -> None:
    versions = [version(1, "a", T1, T2), version(2, "b", T2, None)]
    assert place(versions, "x", T1) == Placement(T1, T2, corrects=1)
    assert place(versions, "x", T2) == Placement(T2, None, corrects=2, ends=1)


def test_a_text_before_a_future_version_ends_where_that_begins() -> None:
    future = NOW + timedelta(days=9)
    assert place([version(1, "a", None, future), version(2, "b", future, None)], "c") == Placement(NOW, future, ends=1)


def test_the_same_text_begins_anew_after_an_end() -> None:
    assert place([version(1, "a", None, T1), end(2, T1)], "a") == Placement(NOW, None, ends=2)


def test_the_same_text_is_no_work_before_an_end_that_is_to_come() -> None:
    future = NOW + timedelta(days=9)
    assert place([version(1, "a", None, future), end(2, future)], "a") is None


def test_a_text_in_place_of_an_end_corrects_it() -> None:
    assert place([version(1, "a", None, T1), end(2, T1)], "b", T1) == Placement(T1, None, corrects=2, ends=1)


def test_an_end_comes_after_the_version_that_holds() -> None:
    versions = [version(1, "a", T1, T3), version(2, "b", T3, None)]
    assert place_end(versions, valid_from=NOW) == Placement(NOW, None, ends=2)
    assert place_end(versions, valid_from=T2) == Placement(T2, T3, ends=1)
    assert place_end(versions, valid_from=T3) == Placement(T3, None, corrects=2, ends=1)


def test_what_has_not_begun_or_has_ended_cannot_end() -> None:
    assert place_end([version(1, "a", T2, None)], valid_from=T1) is None
    assert place_end([version(1, "a", None, T1), end(2, T1)], valid_from=T2) is None


def test_an_end_holds_like_a_version() -> None:
    versions = [version(1, "a", T1, T2), end(2, T2)]
    assert [found.number if (found := valid_at(versions, moment)) else None for moment in (T1, T2, T3)] == [1, 2, 2]
    assert valid_at(versions, T1 - timedelta(1)) is None


@given(st.lists(st.tuples(st.sampled_from("abc-"), st.sampled_from([None, T1, T2, T3])), max_size=12))
def test_versions_never_leave_a_gap_or_overlap(steps: list[tuple[str, datetime | None]]) -> None:
    versions: list[Version] = []
    for number, (sha256, valid_from) in enumerate(steps, 1):
        now = NOW + timedelta(hours=number)
        found = place_version(versions, sha256=sha256, title="t", source="f", valid_from=valid_from, now=now)
        if sha256 == "-":
            found = place_end(versions, valid_from=valid_from or now)
        if found is None:
            continue
        kept = [v for v in versions if v.id != found.corrects]
        kept = [replace(v, valid_to=found.valid_from) if v.id == found.ends else v for v in kept]
        new = version(number, sha256, found.valid_from, found.valid_to)
        kept.append(replace(new, is_end=sha256 == "-"))
        versions = sorted(kept, key=lambda v: (v.valid_from is not None, v.valid_from or NOW))
        for before, after in pairwise(versions):
            assert before.valid_to == after.valid_from
        assert versions[-1].valid_to is None


@pytest.mark.parametrize("valid_from", [None, T1])
def test_placing_twice_is_no_work(valid_from: datetime | None) -> None:
    found = place([], "a", valid_from)
    assert found is not None
    assert place([version(1, "a", found.valid_from, found.valid_to)], "a", valid_from) is None
