"""Examples: what is shown, what is asked, what must never leak."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from orchestrator.behaviour.examples import (
    Branch,
    Group,
    Question,
    Recipe,
    Split,
    answer_from,
    build_groups,
    contains_answer,
    cut_answer,
    is_gold,
    load_questions,
    normalise_answer,
    quote_for,
    read_groups,
    split_of,
    summarise,
    swap_entity,
    swap_within,
    turn_round,
    write_groups,
)
from orchestrator.errors import TrainingError
from orchestrator.testing import passage
from orchestrator.types import Passage

RECIPE = Recipe(seed=3)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@cache
def make_corpus(size: int = 200) -> tuple[list[Passage], list[Question]]:
    """Passages on eight topics; each holds a code word of its own that its questions ask for."""
    passages, questions = [], []
    for number in range(1, size + 1):
        topic = number % 8
        text = f"The town of topic{topic} keeps item{number}. Its keyword is code{number}, its colour is hue{number}."
        passages.append(passage(number, text, title="", external_id=f"d{number}"))
        ask = f"keyword of item{number} in the town of topic{topic}?"
        questions.append(Question(f"k{number}", f"What is the {ask}", f"d{number}", True, (f"code{number}",)))
        questions.append(
            Question(
                f"c{number}", f"Which colour has item{number}, topic{topic}?", f"d{number}", True, (f"hue{number}",)
            )
        )
        if number % 10 == 0:
            questions.append(Question(f"u{number}", f"Who sold item{number} of topic{topic}?", f"d{number}", False, ()))
    return passages, questions


WORDS = {each.chunk_id: set(each.text.lower().replace(".", "").replace(",", "").split()) for each in make_corpus()[0]}


@cache
def find(text: str) -> tuple[Passage, ...]:
    """All passages, those that share most words with the question first."""
    wanted = set(text.lower().replace("?", "").replace(",", "").split())
    return tuple(sorted(make_corpus()[0], key=lambda each: -len(wanted & WORDS[each.chunk_id])))


async def search(text: str, k: int) -> Sequence[Passage]:
    return find(text)[:k]


async def build(split: Split = "train", count: int = 240, recipe: Recipe = RECIPE) -> list[Group]:
    return await build_groups(make_corpus()[1], search, split=split, count=count, recipe=recipe)


async def test_every_question_is_asked_once_and_the_count_is_kept() -> None:
    groups = await build()

    ids = [branch.question_id for group in groups for branch in group.branches]

    assert len(ids) == len(set(ids)) == 240


async def test_only_passages_of_the_split_are_shown() -> None:
    shown = {
        split: {passage.external_id for group in await build(split) for passage in group.passages} for split in SPLITS
    }

    assert all(split_of("", name, RECIPE.seed) == split for split, names in shown.items() for name in names)
    assert shown["train"]
    assert shown["test"]


async def test_the_cited_passage_is_of_the_questions_document_and_holds_an_answer() -> None:
    groups = await build()

    cited = [
        (branch, group.passages[branch.citations[0] - 1])
        for group in groups
        for branch in group.branches
        if branch.answerable
    ]

    assert len(cited) > 120
    assert all(shown.external_id == branch.document_id for branch, shown in cited)
    assert all(contains_answer(shown.text, branch.answers) for branch, shown in cited)


async def test_a_question_whose_gold_is_left_out_cannot_be_answered_from_what_is_shown() -> None:
    left_out = [
        (branch, group) for group in await build() for branch in group.branches if branch.kind == "gold_left_out"
    ]

    assert len(left_out) > 30
    assert not any(
        contains_answer(f"{shown.title} {shown.text}", branch.answers)
        for branch, group in left_out
        for shown in group.passages
    )


async def test_the_share_of_unanswerable_questions_is_the_recipes() -> None:
    kinds = summarise(await build())["kinds"]

    refused = sum(kinds.values()) - kinds["answerable"]

    assert RECIPE.unanswerable == 0.4
    assert 0.34 <= refused / sum(kinds.values()) <= 0.44


async def test_the_datasets_unanswerable_questions_show_their_document() -> None:
    found = [(branch, group) for group in await build() for branch in group.branches if branch.kind == "unanswerable"]

    assert found
    assert all(branch.document_id in {shown.external_id for shown in group.passages} for branch, group in found)


async def test_gold_stands_at_every_place_about_equally_often() -> None:
    groups = await build(recipe=replace(RECIPE, search_order=0.0, sizes=((4, 1.0),)))

    places = Counter(branch.citations[0] for group in groups for branch in group.branches if branch.answerable)

    assert set(places) == {1, 2, 3, 4}
    assert max(places.values()) < 1.6 * min(places.values())


async def test_groups_in_search_order_show_what_serving_shows() -> None:
    group = (await build(count=50, recipe=replace(RECIPE, search_order=1.0)))[0]

    found = await search(group.branches[0].question, 20)

    kept = [each for each in found if split_of(each.title, each.external_id, RECIPE.seed) == "train"]
    assert list(group.passages) == kept[:5]


async def test_the_same_seed_gives_the_same_examples_and_another_seed_gives_others() -> None:
    assert await build() == await build()
    assert await build() != await build(recipe=replace(RECIPE, seed=4))


async def test_an_index_without_the_documents_is_named_as_the_reason() -> None:
    async def empty(text: str, k: int) -> Sequence[Passage]:
        return []

    with pytest.raises(TrainingError, match="ingest their corpus"):
        await build_groups(make_corpus()[1], empty, split="train", count=10, recipe=RECIPE)


async def test_groups_survive_a_round_trip_through_their_file(tmp_path: Path) -> None:
    groups = await build(count=40)

    digest = write_groups(groups, tmp_path / "groups.jsonl")

    again = list(read_groups(tmp_path / "groups.jsonl"))
    assert [group.branches for group in again] == [group.branches for group in groups]
    assert [[each.text for each in group.passages] for group in again] == [
        [each.text for each in group.passages] for group in groups
    ]
    assert write_groups(again, tmp_path / "again.jsonl") == digest


def test_unusual_line_breaks_in_a_text_do_not_break_the_file(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    group = Group("g", "train", "shuffled", (passage(1, text),), ())

    write_groups([group], tmp_path / "groups.jsonl")

    assert next(read_groups(tmp_path / "groups.jsonl")).passages[0].text == text


def test_documents_of_one_title_share_their_split() -> None:
    assert len({split_of("New York", f"d{number}", 1) for number in range(200)}) == 1
    assert len({split_of("", f"d{number}", 1) for number in range(200)}) == 3


def test_the_targets_of_both_kinds() -> None:
    shown = [passage(1, "The bell rings at nine.", external_id="a"), passage(2, "Cats sleep.", external_id="b")]

    found = answer_from(Question("q", "When?", "a", True, ("nine",)), shown)
    missing = answer_from(Question("q", "When?", "z", True, ("ten",)), shown)

    assert found is not None
    assert missing is not None
    evidence = "The bell rings at nine."
    assert found.target() == {"answerable": True, "citations": [1], "answer": "nine", "evidence": evidence}
    assert missing.target() == {"answerable": False, "citations": [], "answer": "", "evidence": ""}


def test_a_question_that_another_passage_may_answer_is_not_used() -> None:
    shown = [passage(1, "The bell rings at nine.", external_id="a")]

    assert answer_from(Question("q", "When does the shop open?", "z", True, ("nine",)), shown) is None


def test_an_answer_is_found_as_whole_words_only() -> None:
    assert contains_answer("It was built in 1911, by the town.", ["the 1911"])
    assert not contains_answer("It has 19115 bricks.", ["1911"])
    assert not contains_answer("anything", ["the"])  # nothing is left of it after normalisation


def test_a_chunk_of_the_right_document_without_the_answer_is_not_gold() -> None:
    question = Question("q", "When?", "a", True, ("1911",))

    assert is_gold(question, passage(1, "Built in 1911.", external_id="a"))
    assert not is_gold(question, passage(2, "It is red.", external_id="a"))
    assert not is_gold(question, passage(3, "Built in 1911.", external_id="b"))


def test_normalisation_is_squads() -> None:
    assert normalise_answer("  The  Cat's, hat! ") == "cats hat"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2"),
        ('{"id": "x"}', "line 2"),
        ('{"id":"x","question":"q","document_id":"d","answerable":true,"answers":[]}', "needs answers"),
        ('{"id":"x","question":"q","document_id":"d","answerable":true,"answers":3}', "line 2"),
    ],
)
def test_a_bad_line_of_the_questions_is_named(tmp_path: Path, line: str, problem: str) -> None:
    good = {"id": "1", "question": "q", "document_id": "d", "answerable": True, "answers": ["a"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(good) + "\n" + line + "\n")

    with pytest.raises(TrainingError, match=problem):
        load_questions(tmp_path)


def test_missing_and_empty_questions_say_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")

    with pytest.raises(TrainingError, match="holds no question"):
        load_questions(tmp_path / "empty.jsonl")
    with pytest.raises(TrainingError, match="does not exist"):
        load_questions(tmp_path)


def test_a_swapped_question_names_what_no_shown_passage_mentions() -> None:
    shown = [passage(1, "Ann Lee met Bob Ray in 1911.", external_id="a"), passage(2, "Cid Fox sang.", external_id="b")]
    asked = Branch("q", "When did she meet Bob Ray?", "a", "answerable", (1,), ("1911",))

    twin = swap_entity(asked, shown, ["Cid Fox", "1950", "Dan Poe"])

    assert twin is not None
    assert twin.question == "When did she meet Dan Poe?"
    assert (twin.question_id, twin.kind, twin.answers) == ("q~Dan Poe", "entity_swapped", ())
    assert twin.target() == {"answerable": False, "citations": [], "answer": "", "evidence": ""}


@pytest.mark.parametrize("question", ["When did they meet?", "When did she meet Zed Kay?", "Ann Lee met whom?"])
def test_a_question_without_a_name_of_its_passage_has_no_twin(question: str) -> None:
    shown = [passage(1, "Ann Lee met Bob Ray in 1911.", external_id="a")]

    assert swap_entity(Branch("q", question, "a", "answerable", (1,), ("1911",)), shown, ["Dan Poe"]) is None


def test_a_year_is_swapped_for_a_year() -> None:
    shown = [passage(1, "Ann Lee sang in 1911.", external_id="a")]
    asked = Branch("q", "Who sang in 1911?", "a", "answerable", (1,), ("Ann Lee",))

    twin = swap_entity(asked, shown, ["Dan Poe", "1911", "1950"])

    assert twin is not None
    assert twin.question == "Who sang in 1950?"


async def test_another_order_visits_the_same_split_in_another_order() -> None:
    first, other = await build(count=60), await build(count=60, recipe=replace(RECIPE, order=1))

    assert [group.id for group in first] != [group.id for group in other]
    assert {split_of("", each.external_id, RECIPE.seed) for group in other for each in group.passages} == {"train"}


def asks(text: str, *answers: str) -> Question:
    return Question("q", text, "a", True, answers)


def test_evidence_is_of_the_sentence_that_answers_and_not_the_first_with_the_word() -> None:
    text = "Ann had nine cats. The bell rings at nine. Bob left at nine."

    assert quote_for(asks("When does the bell ring?", "nine"), text) == "The bell rings at nine."


def test_long_evidence_is_the_words_around_the_answer_verbatim() -> None:
    text = (
        f"{'It was a grey day in the old town, ' * 5}and after long talks in the council the bell was cast by Ann Lee of the "
        f"lower town {'who lived there ' * 12}alone."
    )

    assert quote_for(asks("Who cast the bell?", "Ann Lee"), text) == (
        "in the council the bell was cast by Ann Lee of the lower town who"
    )


def test_evidence_keeps_clear_of_quotation_marks_unless_the_answer_is_in_them() -> None:
    text = 'She called it "the old bell" and sold it to Bob Ray in 1911.'

    assert quote_for(asks("Who bought it?", "Bob Ray"), text) == "and sold it to Bob Ray in 1911."
    assert quote_for(asks("What did she call it?", "the old bell"), text) == "the old bell"
    assert '"' in quote_for(asks("What did she sell?", 'old bell" and'), text)


@pytest.mark.parametrize(
    "answer", ["1911", "Bob", "sold it to Bob Ray in 1911", "called it", "she", "The Bell and Sold"]
)
def test_evidence_holds_the_answer(answer: str) -> None:
    text = 'In the end, she called it (the old) bell; and sold it to Bob Ray in 1911. "The bell," and sold, they said.'

    evidence = quote_for(asks("What?", answer), text)

    assert evidence in text
    assert contains_answer(evidence, [answer])


def test_a_name_of_the_passage_that_is_told_other_things_makes_a_question_without_answer() -> None:
    text = "The bell was cast by Ann Lee in 1911. Later the tower was sold to Bob Ray."
    shown = [passage(1, text, external_id="a")]
    asked = Branch("q", "When did Ann Lee make the bell?", "a", "answerable", (1,), ("1911",))

    twin = swap_within(asked, shown)

    assert twin is not None
    assert (twin.question, twin.kind, twin.citations) == ("When did Bob Ray make the bell?", "entity_swapped", ())
    shares = replace(shown[0], text="The bell was cast by Ann Lee in 1911. The bell was painted by Bob Ray.")
    assert swap_within(replace(asked, question="When did Ann Lee paint that bell, painted in red?"), [shares]) is None


def test_a_word_turned_round_makes_a_question_without_answer_unless_the_passage_has_both() -> None:
    asked = Branch("q", "Who was the first keeper?", "a", "answerable", (1,), ("Ann Lee",))

    twin = turn_round(asked, [passage(1, "Ann Lee was its first keeper.", external_id="a")])

    assert twin is not None
    assert (twin.question, twin.kind, twin.answerable) == ("Who was the last keeper?", "opposite", False)
    assert turn_round(asked, [passage(1, "Its first keeper was Ann Lee, its last Bob Ray.", external_id="a")]) is None


def test_a_cut_passage_says_all_but_the_answer() -> None:
    shown = [
        passage(1, "Cats sleep in the hall. The bell rings at nine. It is loud.", external_id="a"),
        passage(2, "Dogs bark.", external_id="b"),
    ]
    question = asks("When does the bell ring?", "nine")

    cut = cut_answer(question, shown)

    assert cut is not None
    assert [passage.text for passage in cut] == ["Cats sleep in the hall. It is loud.", "Dogs bark."]
    branch = answer_from(question, cut)
    assert branch is not None
    assert (branch.kind, branch.evidence) == ("sentence_cut", "")


@pytest.mark.parametrize(
    "texts",
    [["The bell rings at nine."], ["Cats sleep at nine in the hall. The bell rings at nine."]],
    ids=["nothing is left", "the answer stands elsewhere too"],
)
def test_a_passage_that_cannot_lose_its_answer_is_not_cut(texts: list[str]) -> None:
    shown = [passage(number, text, external_id="a") for number, text in enumerate(texts, 1)]

    assert cut_answer(asks("When does the bell ring?", "nine"), shown) is None


async def test_cutting_makes_questions_whose_document_is_shown_without_the_fact() -> None:
    passages, questions = make_corpus()
    told = [replace(each, text=f"{each.text} {'It lies by the sea. ' * 6}".strip()) for each in passages]

    async def search_told(text: str, k: int) -> Sequence[Passage]:
        return [told[found.chunk_id - 1] for found in find(text)[:k]]

    recipe = replace(RECIPE, cut=1.0, unanswerable=0.5)
    groups = await build_groups(questions, search_told, split="train", count=200, recipe=recipe)
    found = [(group, branch) for group in groups for branch in group.branches if branch.kind == "sentence_cut"]

    assert found
    for group, branch in found:
        assert not any(contains_answer(passage.text, branch.answers) for passage in group.passages)
