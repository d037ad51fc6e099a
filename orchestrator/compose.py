"""Turns a plan, a query and its passages into the messages the model gets, within a token budget. Pure; used to serve and to train."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.errors import TooLargeError
from orchestrator.prompts import Prompt
from orchestrator.types import Message, Passage

# Marks by which common chat templates end a role, and our own passage number at the start of a line (rows C5, C6).
_ROLE_MARK = re.compile(r"<(?=[|/]|s>|start_of_turn|end_of_turn|bos>|eos>|unk>|pad>)|\[(?=/?INST\])|<(?=<)")
_PASSAGE_MARK = re.compile(r"^(\s*)\[(\d+)\]", re.MULTILINE)
_QUESTION_MARK = re.compile(r"^(\s*)(Question|Passage)(?=\s*:)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Composition:
    """What is sent: the messages, and the passages that fit, in the order of their numbers (1-based)."""

    messages: tuple[Message, ...]
    passages: tuple[Passage, ...]
    dropped: int = 0


def compose_messages(
    prompt: Prompt,
    question: str,
    passages: Sequence[Passage],
    *,
    count: Callable[[str], int],
    budget_tokens: int,
    history: Sequence[Message] = (),
) -> Composition:
    """The conversation with as many passages, best first, as fit ``budget_tokens`` (counted by ``count``).

    Raises TooLargeError when the question alone does not fit.
    """
    question = neutralise(question)
    past = tuple(Message(turn.role, neutralise(turn.content)) for turn in history if turn.role != "system")
    fixed = prompt.render({"passages": "", "question": question})
    left = budget_tokens - sum(count(message.content) + 8 for message in (*fixed, *past))
    if left < 0:
        raise TooLargeError(f"the question takes {-left} tokens more than the route's {budget_tokens}; shorten it")
    shown: list[str] = []
    for number, passage in enumerate(passages, 1):
        block = render_passage(number, passage)
        left -= count(block) + 2
        if left < 0:
            break
        shown.append(block)
    messages = prompt.render({"passages": "\n\n".join(shown), "question": question})
    system = tuple(message for message in messages if message.role == "system")
    rest = tuple(message for message in messages if message.role != "system")
    return Composition((*system, *past, *rest), tuple(passages[: len(shown)]), len(passages) - len(shown))


def render_passage(number: int, passage: Passage) -> str:
    """``[number] title, headings`` and the text below, with every mark that could forge structure made harmless."""
    head = " > ".join(dict.fromkeys(part for part in (passage.title, *passage.heading_path) if part))
    return f"[{number}] {neutralise(' '.join(head.split()))}\n{neutralise(passage.text.strip())}"


def neutralise(text: str) -> str:
    """The text with role marks, passage numbers at line starts and question labels broken by a space, nothing else changed."""
    text = _ROLE_MARK.sub(lambda found: found.group() + " ", text)
    text = _PASSAGE_MARK.sub(r"\1[ \2 ]", text)
    return _QUESTION_MARK.sub(r"\1\2 ", text)
