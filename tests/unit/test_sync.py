"""What a folder that is the source of truth makes of a collection: planned without either."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.knowledge.sync import Found, Rename, Stored, SyncPlan, closed_folders, plan_sync, shares_of

LONG = "\n\n".join(f"Paragraph {n} says what nobody else says, at some length." for n in range(9))


def stored(name: str, text: str, source: str = "") -> Stored:
    return Stored(name, text, source or name, shares_of(text))


def found(name: str, text: str) -> Found:
    return Found(name, text, None, shares_of(text))


def plan(there: list[Stored], here: list[Found], unread: tuple[str, ...] = (), taken: tuple[str, ...] = ()) -> SyncPlan:
    return plan_sync(there, here, frozenset([*taken, *(one.external_id for one in there)]), unread)


def test_what_is_there_is_left_alone() -> None:
    assert plan([stored("a", "x")], [found("a", "y"), found("b", "z")]) == SyncPlan(1)


def test_what_is_gone_is_retired() -> None:
    assert plan([stored("a", "x"), stored("b", "y")], [found("a", "x")]).retired == ("b",)


def test_the_same_text_under_another_name_is_a_rename() -> None:
    found_plan = plan([stored("old.md", "x"), stored("b", "y")], [found("new.md", "x"), found("b", "y")])
    assert (found_plan.renamed, found_plan.retired) == ((Rename("old.md", "new.md"),), ())


def test_most_of_a_text_under_another_name_is_a_rename_and_a_little_is_not() -> None:
    changed = LONG.replace("Paragraph 3", "Section 3")
    other = LONG[:300] + "\n\nEntirely different words. " * 40
    assert plan([stored("a", LONG)], [found("b", changed)]).renamed == (Rename("a", "b"),)
    assert plan([stored("a", LONG)], [found("b", other)]).renamed == ()


def test_a_short_text_must_be_the_same() -> None:
    assert plan([stored("a", "Yes.\n\nNo.")], [found("b", "Yes.\n\nNo.\n\nMaybe.")]).renamed == ()


def test_the_same_text_wins_over_a_similar_one_and_the_same_name_over_another() -> None:
    changed = LONG.replace("Paragraph 3", "Section 3")
    there = [stored("a/one.md", LONG), stored("a/two.md", LONG)]
    here = [found("b/two.md", LONG), found("b/three.md", changed)]
    assert plan(there, here).renamed == (Rename("a/one.md", "b/three.md"), Rename("a/two.md", "b/two.md"))


def test_a_name_that_is_taken_is_nobodys_new_name() -> None:
    found_plan = plan([stored("a", "x")], [found("b", "x")], taken=("b",))
    assert (found_plan.renamed, found_plan.retired) == ((), ("a",))


@pytest.mark.parametrize("unread", ["bad.zip", "closed", "closed/deep"])
def test_what_could_not_be_read_is_not_gone(unread: str) -> None:
    there = [stored("z", "1", "bad.zip#part.md"), stored("y", "2", "closed/deep/y.md"), stored("x", "3", "x.md")]
    found_plan = plan(there, [], (unread,))
    assert found_plan.kept == (("z",) if unread == "bad.zip" else ("y",))
    assert "x" in found_plan.retired


@pytest.mark.parametrize(
    ("gone", "of", "expected"), [(2, 2, False), (3, 10, True), (3, 15, False), (4, 15, True), (50, 50, True)]
)
def test_many_are_not_retired_unasked(gone: int, of: int, expected: bool) -> None:
    there = [stored(f"d{n}", str(n)) for n in range(of)]
    here = [found(f"d{n}", str(n)) for n in range(gone, of)]
    assert plan(there, here).is_drastic() is expected


def test_thousands_of_files_that_moved_are_paired_at_once() -> None:
    there = [stored(f"old/{n}.md", f"{LONG}\n\nNumber {n}.") for n in range(3_000)]
    here = [found(f"new/{n}.md", f"{LONG}\n\nNumber {n}.") for n in range(3_000)]
    moved = plan(there, here).renamed
    assert {(one.before[4:], one.after[4:]) for one in moved} == {(f"{n}.md", f"{n}.md") for n in range(3_000)}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "no", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert closed_folders(tmp_path) == [(tmp_path / "closed").as_posix()]
