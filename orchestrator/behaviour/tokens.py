"""Turns groups into token sequences: one shared prefix (system and passages), and a branch for each question.

A packed sequence holds the prefix once and every branch after it. Branches see the prefix and themselves; each starts at
the position where the prefix ends, so a branch's numbers equal those of its conversation rendered alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.behaviour.examples import Group
from orchestrator.compose import compose_messages
from orchestrator.contract import Contract
from orchestrator.errors import TrainingError
from orchestrator.prompts import Prompt
from orchestrator.types import Message

ASSISTANT_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as the model gets it: the prompt's ids, and the ids that it shall write, end token included."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and target."""
        return self.prompt + self.target


@dataclass(frozen=True, slots=True)
class Packed:
    """One training sequence. All tuples are of length T except the last two (N targets of the loss).

    ``branch``: -1 in the shared prefix, else the branch's number. ``predictors``: index whose output predicts ``targets``.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    branch: tuple[int, ...]
    predictors: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders conversations with a model's own tokenizer and chat template, exactly as the engine does."""

    tokenizer: Any
    prompt: Prompt
    contract: Contract
    count: Callable[[str], int]
    budget_tokens: int

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the conversation up to where the assistant begins to write."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def group(self, group: Group) -> list[Rendered]:
        """One rendered conversation for each branch. Raises TrainingError when the passages exceed the budget."""
        rendered = []
        end = self.end  # looked up once: a tokenizer copies its whole vocabulary for it
        for branch in group.branches:
            composition = compose_messages(
                self.prompt, branch.question, group.passages, count=self.count, budget_tokens=self.budget_tokens
            )
            if composition.dropped:
                raise TrainingError(
                    f"group {group.id}: {composition.dropped} passages exceed the budget of {self.budget_tokens} tokens; "
                    "train with a larger budget or index smaller chunks"
                )
            answer = self.contract.dump(branch.target()) + end
            target = tuple(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
            rendered.append(Rendered(self.prompt_ids(composition.messages), target))
        return rendered

    @property
    def end(self) -> str:
        """The token that ends the assistant's turn. Raises TrainingError for an unknown chat template."""
        known = self.tokenizer.get_vocab()
        template = self.tokenizer.chat_template or ""
        for mark in ASSISTANT_ENDS:
            if mark in template and mark in known:
                return mark
        if self.tokenizer.eos_token and "eos_token" in template:
            return str(self.tokenizer.eos_token)
        raise TrainingError(
            f"the base model's chat template ends a turn with none of {ASSISTANT_ENDS}; use another base"
        )


def pack(conversations: Sequence[Rendered]) -> Packed:
    """The conversations as one sequence with their longest common prefix once."""
    shared = min(common_prefix([each.ids for each in conversations]), *(len(each.prompt) - 1 for each in conversations))
    ids = list(conversations[0].ids[:shared])
    positions, branch = list(range(shared)), [-1] * shared
    predictors: list[int] = []
    targets: list[int] = []
    for number, each in enumerate(conversations):
        start = len(ids) - shared  # what this branch is shifted by against its conversation rendered alone
        tail = each.ids[shared:]
        ids.extend(tail)
        positions.extend(range(shared, shared + len(tail)))
        branch.extend([number] * len(tail))
        for at in range(len(each.prompt), len(each.ids)):
            predictors.append(start + at - 1)
            targets.append(each.ids[at])
    return Packed(tuple(ids), tuple(positions), tuple(branch), tuple(predictors), tuple(targets))


def unpack(packed: Packed) -> list[tuple[int, ...]]:
    """The ids of every conversation, read back from a packed sequence."""
    prefix = tuple(token for token, number in zip(packed.ids, packed.branch, strict=True) if number < 0)
    numbers = sorted({number for number in packed.branch if number >= 0})
    return [
        prefix + tuple(token for token, number in zip(packed.ids, packed.branch, strict=True) if number == branch)
        for branch in numbers
    ]


def common_prefix(sequences: Iterable[Sequence[int]]) -> int:
    """Length of the longest prefix that all sequences share."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length
