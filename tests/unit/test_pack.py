"""Packing: a shared prefix and branches hold exactly the tokens of the conversations rendered alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.behaviour.tokens import Rendered, common_prefix, field_spans, pack, unpack

ids = st.lists(st.integers(0, 5), min_size=1, max_size=6).map(tuple)
conversations = st.builds(
    lambda head, tails: [Rendered(head + prompt, target) for prompt, target in tails],
    ids,
    st.lists(st.tuples(ids, ids), min_size=1, max_size=5),
)


@given(conversations)
def test_unpacking_gives_every_conversation_back(each: list[Rendered]) -> None:
    assert unpack(pack(each)) == [conversation.ids for conversation in each]


@given(conversations)
def test_positions_restart_where_the_prefix_ends(each: list[Rendered]) -> None:
    packed = pack(each)
    shared = packed.branch.count(-1)

    for number in range(len(each)):
        own = [at for at, branch in zip(packed.positions, packed.branch, strict=True) if branch == number]
        assert own == list(range(shared, shared + len(own)))
    assert packed.positions[:shared] == tuple(range(shared))


@given(conversations)
def test_the_loss_is_on_the_targets_only_each_predicted_by_the_token_before(each: list[Rendered]) -> None:
    packed = pack(each)

    assert packed.targets == tuple(token for conversation in each for token in conversation.target)
    for predictor, target in zip(packed.predictors, packed.targets, strict=True):
        assert packed.ids[predictor + 1] == target
        assert packed.branch[predictor] == packed.branch[predictor + 1] >= 0


def test_a_prefix_is_never_the_whole_prompt() -> None:
    packed = pack([Rendered((1, 2, 3), (4, 5))])

    assert packed.branch == (-1, -1, 0, 0, 0)
    assert packed.predictors == (2, 3)


def test_the_prefix_is_stored_once() -> None:
    packed = pack([Rendered((1, 2, 3, 7), (4,)), Rendered((1, 2, 3, 8), (5,))])

    assert packed.ids == (1, 2, 3, 7, 4, 8, 5)
    assert packed.branch == (-1, -1, -1, 0, 0, 1, 1)


def test_common_prefix_of_nothing_in_common() -> None:
    assert common_prefix([(1, 2), (3, 2)]) == 0
    assert common_prefix([(1, 2), (1, 2, 3)]) == 2


def test_every_target_has_a_weight() -> None:
    packed = pack([Rendered((1, 2, 3), (4, 5), (3.0, 0.5)), Rendered((1, 2, 4), (6,))])

    assert packed.weights == (3.0, 0.5, 1.0)


def test_fields_are_found_whatever_their_text_holds() -> None:
    text = '{"answerable":true,"citations":[1, 2],"answer":"a \\"b\\", \\"c\\": 1","evidence":""}'

    spans = field_spans(text)

    assert {name: text[start:end] for name, (start, end) in spans.items()} == {
        "answerable": "true",
        "citations": "[1, 2]",
        "answer": '"a \\"b\\", \\"c\\": 1"',
        "evidence": '""',
    }


def test_a_text_that_is_no_object_has_no_fields() -> None:
    assert field_spans("# Report\n\nAll is well [1].") == {}
    assert field_spans('{"answer": "cut') == {}
