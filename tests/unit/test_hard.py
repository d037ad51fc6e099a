"""Hard cases: what is shown gets harder, what is right stays right, and the gold stands everywhere equally often."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.behaviour.examples import Branch, Group, contains_answer
from orchestrator.behaviour.hard import ATTACKS, FOREIGN, STALE_MARKS, Hard, harden, read_attacks
from orchestrator.errors import TrainingError
from orchestrator.testing import passage

ROOT = Path(__file__).resolve().parents[2]
INJECTION = (
    Path(os.environ.get("DEVELOPMENT_DATA", ROOT.parent / "shared" / "data")) / "injection" / "text_attack_train.json"
)
ALL = {"stale": 0.0, "conflicting": 0.0, "hostile": 0.0, "foreign": 0.0}


def make_groups(count: int, size: int = 3) -> list[Group]:
    """Groups of passages about towers, each with an answered question and one that nothing answers."""
    groups = []
    for number in range(count):
        passages = tuple(
            passage(
                number * 10 + at,
                f"Tower {number}-{at} stands in Elmtown. It was finished in {1500 + number * 7 + at * 3} by Ann Mason.",
                title=f"Tower {number}-{at}",
                external_id=f"d{number}-{at}",
            )
            for at in range(1, size + 1)
        )
        gold = number % size + 1
        year = str(1500 + number * 7 + gold * 3)
        branches = (
            Branch(
                f"q{number}",
                f"When was tower {number}-{gold} finished?",
                f"d{number}-{gold}",
                "answerable",
                (gold,),
                (year,),
            ),
            Branch(f"u{number}", f"Who painted tower {number}-{gold}?", f"d{number}-{gold}", "unanswerable", (), ()),
        )
        groups.append(Group(f"g{number}", "train", "shuffled", passages, branches))
    return groups


def hardened(case: str, count: int = 60, attacks: Sequence[str] = ATTACKS) -> list[Group]:
    return harden(make_groups(count), Hard(**{**ALL, case: 1.0}), attacks)  # type: ignore[arg-type]


def answered(group: Group) -> Branch:
    return group.branches[0]


@pytest.mark.parametrize("case", ["stale", "hostile", "foreign"])
def test_what_is_cited_still_answers(case: str) -> None:
    for group in hardened(case):
        branch = answered(group)
        cited = group.passages[branch.citations[0] - 1]
        assert group.made == f"shuffled+{case}"
        assert contains_answer(cited.text, branch.answers)
        assert cited.external_id == branch.document_id
        assert not set(STALE_MARKS) & set(cited.heading_path)


def test_a_stale_version_is_marked_and_says_something_else() -> None:
    for group in hardened("stale"):
        (stale,) = [each for each in group.passages if set(STALE_MARKS) & set(each.heading_path)]
        assert stale.external_id == answered(group).document_id
        assert not contains_answer(stale.text, answered(group).answers)
        assert len(group.passages) == 4


def test_passages_that_disagree_are_refused() -> None:
    for group in hardened("conflicting"):
        branch = answered(group)
        same = [each for each in group.passages if each.external_id == branch.document_id]
        assert (branch.kind, branch.citations, branch.answerable) == ("conflicting", (), False)
        assert len(same) == 2
        assert sum(contains_answer(each.text, branch.answers) for each in same) == 1
        assert same[0].heading_path == same[1].heading_path


def test_an_order_stands_apart_and_changes_no_answer() -> None:
    before, after = make_groups(60), hardened("hostile")

    assert [group.branches for group in after] == [group.branches for group in before]
    orders = [
        attack for group in after for each in group.passages for attack in ATTACKS if attack in each.text.split("\n\n")
    ]
    assert len(orders) == 60
    assert len(set(orders)) > len(ATTACKS) // 2


def test_a_foreign_passage_is_never_cited() -> None:
    titles = {title for title, _ in FOREIGN}
    for group in hardened("foreign"):
        foreign = [number for number, each in enumerate(group.passages, 1) if each.title in titles]
        assert len(foreign) == 1
        assert foreign[0] not in answered(group).citations


@pytest.mark.parametrize("case", ["stale", "foreign"])
def test_the_gold_stands_everywhere_about_equally_often(case: str) -> None:
    places = Counter(answered(group).citations[0] for group in hardened(case, 400))

    assert set(places) == {1, 2, 3, 4}
    assert max(places.values()) < 1.6 * min(places.values())


def test_the_answer_that_cites_the_copied_passage_is_not_asked_twice() -> None:
    (group,) = make_groups(1)
    twin = Branch("q9", "In which year was it finished?", "d0-1", "answerable", (1,), group.branches[0].answers)
    crowd = [Group(group.id, "train", group.made, group.passages, (group.branches[0], twin))]

    (made,) = harden(crowd, Hard(**{**ALL, "stale": 1.0}))

    assert made.made == "shuffled+stale"
    assert len(made.branches) == 1


def test_a_full_group_and_a_case_that_does_not_fit_stay_as_they_are() -> None:
    full = make_groups(5, size=5)
    refusals = [Group("g", "train", "shuffled", make_groups(1)[0].passages, (make_groups(1)[0].branches[1],))]

    assert harden(full, Hard(**{**ALL, "stale": 1.0})) == full
    assert harden(refusals, Hard(**{**ALL, "conflicting": 1.0})) == refusals
    assert harden(make_groups(5), Hard(**{**ALL, "foreign": 1.0}, max_chars=10)) == make_groups(5)


def test_shares_and_order_are_the_seeds() -> None:
    groups = make_groups(600)
    made = Counter(group.made.partition("+")[2] for group in harden(groups, Hard(0.1, 0.05, 0.2, 0.1)))

    assert harden(groups, Hard(seed=1)) == harden(groups, Hard(seed=1))
    assert harden(groups, Hard(seed=1)) != harden(groups, Hard(seed=2))
    assert 0.06 < made["stale"] / 600 < 0.14
    assert 0.15 < made["hostile"] / 600 < 0.25
    assert made[""] > 270


@pytest.mark.parametrize(
    "text", ['["one", "two"]', '{"a": ["one"], "b": ["two"]}', "one\n\ntwo\n", '{"attack": "one"}\n{"text": "two"}']
)
def test_attacks_are_read_from_every_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "attacks").write_text(text)

    assert read_attacks(tmp_path / "attacks") == ("one", "two")


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_file_without_attacks_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "attacks").write_text(text)

    with pytest.raises(TrainingError, match="holds no attack"):
        read_attacks(tmp_path / "attacks")


@pytest.mark.skipif(
    not INJECTION.is_file(), reason="the injection set (../shared/data/injection, DEVELOPMENT_DATA) is absent"
)
def test_a_public_set_of_attacks_is_taken() -> None:
    attacks = read_attacks(INJECTION)

    made = hardened("hostile", attacks=attacks)

    assert len(attacks) == sum(map(len, json.loads(INJECTION.read_text()).values()))
    assert all(any(attack in each.text for attack in attacks for each in group.passages) for group in made)
