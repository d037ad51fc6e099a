"""Two texts compared by paragraphs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.knowledge.compare import Difference, closest, differences, normalised, paragraphs, unified
from orchestrator.knowledge.split import split
from orchestrator.types import Document

OLD = "# Travel\n\nA hotel may cost 120 EUR a night.\n\nTrains are preferred.\n\nKeep the receipts."
NEW = "# Travel\n\nA hotel may cost 140 EUR a night.\n\nKeep the receipts.\n\nBicycles are paid for as well."


def test_what_was_changed_removed_and_added() -> None:
    assert differences(OLD, NEW) == [
        Difference("changed", "A hotel may cost 120 EUR a night.", "A hotel may cost 140 EUR a night.", 1, 1),
        Difference("removed", "Trains are preferred.", "", 2, None),
        Difference("added", "", "Bicycles are paid for as well.", None, 3),
    ]


def test_lines_for_a_terminal() -> None:
    assert list(unified(differences(OLD, NEW)))[:5] == [
        "@@ paragraph 2 -> 2 @@",
        "-A hotel may cost 120 EUR a night.",
        "+A hotel may cost 140 EUR a night.",
        "@@ paragraph 3 -> none @@",
        "-Trains are preferred.",
    ]


def test_wrapping_lines_anew_is_no_change() -> None:
    assert differences("One two three\nfour five.", "One two\nthree four five.\n") == []


def test_a_paragraph_that_has_moved_is_found_in_its_new_wording() -> None:
    assert closest("A hotel may cost 120 EUR a night.", paragraphs(NEW)) == "A hotel may cost 140 EUR a night."
    assert closest("Dogs may come to the office.", paragraphs(NEW)) == ""
    assert closest("Anything", []) == ""


def test_a_line_of_a_million_blanks_is_read_in_linear_time() -> None:
    assert paragraphs("a\n" + " " * 1_000_000 + "\nb") == ["a", "b"]


@pytest.mark.parametrize("text", ["", "\n \n", "a", "a\n\n\nb\n", "\n\n- a\n- b\n \t\nc"])
def test_paragraphs_are_counted_as_in_chunks(text: str) -> None:
    chunks = split(Document("d", "", text, "f"))
    assert all(normalised(paragraphs(text)[c.paragraph]).startswith(c.text.split()[0]) for c in chunks)


@given(
    st.lists(st.sampled_from(["a b", "a c", "d", "e f g"]), max_size=8), st.lists(st.sampled_from(["a b", "a c", "d"]))
)
def test_the_differences_lead_from_one_text_to_the_other(before: list[str], after: list[str]) -> None:
    found = differences("\n\n".join(before), "\n\n".join(after))
    gone = {one.paragraph_before for one in found} - {None}
    came = {one.paragraph_after: one.after for one in found if one.paragraph_after is not None}
    kept = iter([text for place, text in enumerate(before) if place not in gone])
    assert [came[place] if place in came else next(kept) for place in range(len(after))] == after
    assert list(kept) == []
