"""The guard: answers that no passage gives are found and refused, and no text is in two splits."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.behaviour.guard import Limits, inspect, is_underived, leaves, refuse, split_rows, whole_text
from orchestrator.behaviour.rows import Row, parse_row
from orchestrator.behaviour.similar import clusters, near_pairs
from orchestrator.contract import Contract
from orchestrator.errors import TrainingError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import passage
from tests.formats import UNSEEN, Format

CONTRACT = load_catalogue(folder("prompts")).contract("cited_answer")
TOWNS = (
    "Lisbon", "Porto", "Bergen", "Malmo", "Ghent", "Krakow", "Varna", "Izmir", "Cadiz", "Turin", "Basel", "Linz", "Cork", "Split",
    "Riga", "Tartu", "Kaunas", "Brno",
)  # fmt: skip


def row(number: int, told: str, answer: str, **changes: Any) -> Row:
    output = {"answerable": bool(answer), "citations": [1] if answer else [], "evidence": "", "answer": answer}
    shown = (passage(number, told, title="", external_id=f"d{number}"),)
    return replace(Row(f"r{number}", f"Where is house {number * 37}?", shown, output, number=number), **changes)


def derived(count: int, first: int = 1) -> list[Row]:
    chance = random.Random(first)
    return [
        row(n, f"The house {n * 37} of {chance.random()} {chance.random()} is in {TOWNS[n % 18]}.", TOWNS[n % 18])
        for n in range(first, first + count)
    ]


def invented(count: int, first: int) -> list[Row]:
    return [
        replace(each, output={**dict(each.output), "answer": f"Atlantis{each.number}"})
        for each in derived(count, first)
    ]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "answer", "wrong"),
    [
        ("The bell weighs 2 tonnes.", "two tonnes", False),
        ("The clock tower was finished in 1911.", "1911", False),
        ("The clock tower was finished in 1911.", "1912", True),
        ("The clock tower was finished in 1911.", "in 1911, by King Haakon", True),
        ("They were planted by the school.", "the schools", False),
        ("They were planted by the school.", "Marie Curie", True),
        ("Nothing of the kind.", "", False),
    ],
)
def test_an_answer_must_come_from_its_passages(told: str, answer: str, wrong: bool) -> None:
    assert is_underived(row(1, told, answer), CONTRACT) is wrong


def test_underived_answers_are_refused_with_their_rows() -> None:
    rows = [*derived(40), *invented(6, 41)]

    verdict = inspect(rows, [], CONTRACT)

    assert verdict.underived == tuple(range(41, 47))
    with pytest.raises(TrainingError, match=r"6 of 46 rows .*13%, allowed 10%.*Rows 41, 42, 43, 44, 45, 46;"):
        refuse(verdict)
    refuse(verdict, Limits(underived=0.2))


def test_a_few_underived_answers_are_let_through_and_counted() -> None:
    verdict = inspect([*derived(40), *invented(2, 41)], [], CONTRACT)

    refuse(verdict)
    assert verdict.to_json()["underived"] == {"count": 2, "first": [41, 42]}


def test_facts_without_passages_are_refused() -> None:
    contract = load_catalogue(folder("prompts")).contract("text_answer")
    rows = [
        Row(f"r{n}", f"Which town comes after number {n}?", (), {"answer": f"{TOWNS[n % 18]}{n}"}, number=n)
        for n in range(40)
    ]

    with pytest.raises(TrainingError, match="names or numbers not in their input"):
        refuse(inspect(rows, [], contract))


def test_labels_without_passages_are_no_facts() -> None:
    contract = load_catalogue(folder("prompts")).contract("text_answer")
    rows = [
        Row(f"r{n}", f"My bill {n} is wrong.", (), {"answer": "Billing. About an invoice."}, number=n)
        for n in range(40)
    ]

    refuse(inspect(rows, [], contract))


@pytest.mark.parametrize("form", UNSEEN, ids=lambda form: form.name)
def test_a_format_that_is_filled_from_its_input_teaches_no_facts(form: Format) -> None:
    rows = [parse_row(each, number) for number, each in enumerate(form.rows(120, seed=5), 1)]

    verdict = inspect(rows, [], Contract.parse(form.name, json.dumps(form.schema)))

    assert (verdict.underived, verdict.unknown) == ((), ())


def test_a_document_in_two_splits_is_a_leak() -> None:
    train, held_out = derived(5), [replace(each, input=f"And now {each.number}?") for each in derived(1)]

    with pytest.raises(TrainingError, match=r"share 1 documents \['d1'\]"):
        refuse(inspect(train, held_out, CONTRACT))


def test_a_text_in_two_splits_is_a_leak_whatever_its_name() -> None:
    train = derived(5)
    copy = replace(train[2], number=9, passages=(replace(train[2].passages[0], external_id="other"),))

    verdict = inspect(train, [copy], CONTRACT)

    assert verdict.shared_documents == ()
    assert verdict.leaks == ((3, 9),)
    with pytest.raises(TrainingError, match="near-equal rows \\(3 and 9\\)"):
        refuse(verdict)


def test_near_duplicates_are_counted() -> None:
    rows = derived(6)
    twin = replace(rows[0], number=7, input=rows[0].input + "!")

    assert inspect([*rows, twin], [], CONTRACT).near == (7,)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_shares_neither_documents_nor_texts(seed: int) -> None:
    rows = derived(120)
    rows += [replace(each, id=f"{each.id}-again", number=each.number + 200) for each in rows[:30]]

    train, held_out = split_rows(rows, seed)
    verdict = inspect(train, held_out, CONTRACT)

    assert 8 <= len(held_out) <= 14
    assert sorted(each.number for each in [*train, *held_out]) == sorted(each.number for each in rows)
    assert verdict.shared_documents == ()
    assert verdict.leaks == ()


def test_a_split_is_the_seeds_alone() -> None:
    rows = derived(120)

    assert split_rows(rows, 1) == split_rows(rows, 1)
    assert split_rows(rows, 1) != split_rows(rows, 2)


def test_rows_that_are_all_alike_are_not_split() -> None:
    rows = [replace(each, passages=(replace(each.passages[0], external_id="one"),)) for each in derived(60)]

    assert split_rows(rows)[1] == []


def test_few_rows_are_all_trained_on() -> None:
    assert split_rows(derived(39))[1] == []


def test_leaves_are_the_values_without_the_names() -> None:
    assert leaves({"a": ["x", {"b": 2}], "c": True, "d": None}) == ["x", "2"]


def test_rows_are_compared_with_their_passages() -> None:
    assert "Lisbon" in whole_text(row(1, "It is in Lisbon.", "Lisbon"))


# texts that are nearly the same


def brute(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    def shingles(text: str) -> set[str]:
        return {text[at : at + 5] for at in range(max(1, len(text) - 4))}

    return [
        (one, other)
        for one in range(len(texts))
        for other in range(one + 1, len(texts))
        if len(shingles(texts[one]) & shingles(texts[other]))
        >= threshold * len(shingles(texts[one]) | shingles(texts[other]))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_near_pairs_are_those_that_comparing_all_finds(seed: int) -> None:
    chance = random.Random(seed)
    words = [chr(97 + n // 26) + chr(97 + n % 26) * 2 for n in range(80)]
    texts = [" ".join(chance.choices(words, k=60)) for _ in range(60)]
    for _ in range(60):
        copy = chance.choice(texts).split()
        for _ in range(chance.randint(0, 12)):
            copy[chance.randrange(len(copy))] = chance.choice(words)
        texts.append(" ".join(copy))

    found = [(pair.first, pair.second) for pair in near_pairs(texts, 0.85)]

    assert set(found) <= set(brute(texts, 0.85))
    assert len(found) >= 0.99 * len(brute(texts, 0.85)) > 10


def test_a_crowd_of_equal_texts_is_one_cluster() -> None:
    pairs = near_pairs(["the same words again"] * 200 + ["", ""], 0.9)

    found = clusters(202, [(pair.first, pair.second) for pair in pairs])

    assert [len(each) for each in found] == [200, 1, 1]
