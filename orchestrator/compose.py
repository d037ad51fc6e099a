"""Turns a prompt, a question and passages into the messages the model gets, within a token budget. Pure; serves and trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.errors import TooLargeError
from orchestrator.prompts import Prompt
from orchestrator.types import Message, Passage

# Marks by which chat templates begin and end a role or a file: <|im_end|>, </s>, <<SYS>>, <start_of_turn>, [INST] (C6).
_ROLE_MARK = re.compile(
    r"<(?=[|｜/<]|(?:s|bos|eos|unk|pad|start_of_turn|end_of_turn|empty_output|file_sep|filename|gh_stars|repo_?name"
    r"|(?:issue|jupyter)_\w+)>)|\[(?=/?[A-Z]+(?:_[A-Z]+)*\])"
)
# Our own marks at the start of a line, whatever ends lines or cannot be seen (row C5). Space is matched within one line
# only: across lines the search would be quadratic.
_ENDS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_START = rf"((?:\A|(?<=[{_ENDS}]))(?:[^\S{_ENDS}]|[\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff])*)"
_PASSAGE_MARK = re.compile(_START + r"\[(\d+)\]")
_QUESTION_MARK = re.compile(_START + rf"(Question|Passage)(?=[^\S{_ENDS}]*:)")


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
