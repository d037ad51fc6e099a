"""Turns groups into token sequences: one shared prefix (system and passages), and a branch for each question.

A packed sequence holds the prefix once and every branch after it. Branches see the prefix and themselves; each starts at
the position where the prefix ends, so a branch's numbers equal those of its conversation rendered alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.behaviour.examples import Group
from orchestrator.compose import compose_messages
from orchestrator.contract import Contract
from orchestrator.errors import TrainingError
from orchestrator.prompts import Prompt
from orchestrator.types import Message

_FIELD = re.compile(r'\s*[{,]\s*("(?:[^"\\]|\\.)*")\s*:\s*')
ASSISTANT_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as the model gets it: the prompt's ids, and the ids that it shall write, end token included."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    weights: tuple[float, ...] = ()  # of the target's tokens in the loss; none: all alike

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and target."""
        return self.prompt + self.target


@dataclass(frozen=True, slots=True)
class Packed:
    """One training sequence. All tuples are of length T except the last three (N targets of the loss).

    ``branch``: -1 in the shared prefix, else the branch's number. ``predictors``: index whose output predicts ``targets``.
    ``weights``: of each target in the loss.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    branch: tuple[int, ...]
    predictors: tuple[int, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders conversations with a model's own tokenizer and chat template, exactly as the engine does."""

    tokenizer: Any
    prompt: Prompt
    contract: Contract
    count: Callable[[str], int]
    budget_tokens: int
    weights: Mapping[str, float] = field(default_factory=dict)  # of a role's value in the loss: answerable, evidence...
    refusals: float = 1.0  # how many times that the verdict of a refusal counts

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
            answer = (branch.output or self.contract.dump(branch.target())) + end
            refused = not branch.output and not branch.answerable
            target, weights = self._target(answer, self.refusals if refused else 1.0)
            rendered.append(Rendered(self.prompt_ids(composition.messages), target, weights))
        return rendered

    def _target(self, answer: str, verdict: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Ids of the text that shall be written, and their weights: a token has that of the field where it begins."""
        encoded = self.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        spans = field_spans(answer)
        weights = []
        for start, end in encoded["offset_mapping"]:
            roles = (role for role in self.weights if (named := getattr(self.contract, role)) and named in spans)
            inside = (role for role in roles if _overlaps(spans[getattr(self.contract, role)], (start, end)))
            role = next(inside, "")
            weights.append(self.weights.get(role, 1.0) * (verdict if role == "answerable" else 1.0))
        return tuple(encoded["input_ids"]), tuple(weights)

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


def field_spans(text: str) -> dict[str, tuple[int, int]]:
    """Where the value of each field of a JSON object's text stands; of any other text nothing."""
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    decoder = json.JSONDecoder()
    while found := _FIELD.match(text, at):
        try:
            _, at = decoder.raw_decode(text, found.end())
        except ValueError:
            break
        spans[json.loads(found.group(1))] = (found.end(), at)
    return spans


def _overlaps(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return span[0] < other[1] and other[0] < span[1]


def pack(conversations: Sequence[Rendered]) -> Packed:
    """The conversations as one sequence with their longest common prefix once."""
    shared = min(common_prefix([each.ids for each in conversations]), *(len(each.prompt) - 1 for each in conversations))
    ids = list(conversations[0].ids[:shared])
    positions, branch = list(range(shared)), [-1] * shared
    predictors: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for number, each in enumerate(conversations):
        start = len(ids) - shared  # what this branch is shifted by against its conversation rendered alone
        tail = each.ids[shared:]
        ids.extend(tail)
        positions.extend(range(shared, shared + len(tail)))
        branch.extend([number] * len(tail))
        for at in range(len(each.prompt), len(each.ids)):
            predictors.append(start + at - 1)
            targets.append(each.ids[at])
        weights.extend(each.weights or [1.0] * len(each.target))
    return Packed(tuple(ids), tuple(positions), tuple(branch), tuple(predictors), tuple(targets), tuple(weights))


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
