"""The shape of feedback over HTTP: a request's JSON to our values and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InputError
from orchestrator.feedback import VERDICTS, Feedback

_KEYS = ("verdict", "output", "note")


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """What a person said of an answer. ``output``: with ``fix``, how it should have been."""

    verdict: str
    output: Mapping[str, Any] | str | None
    note: str


def parse_feedback(body: Mapping[str, Any]) -> FeedbackRequest:
    """The request in a body. Raises InputError that names the key."""
    for key in body.keys() - set(_KEYS):
        raise InputError(f"unknown parameter {key[:80]!r}; feedback has {', '.join(_KEYS)}", param=key[:80])
    verdict, output, note = (body.get(key) for key in _KEYS)
    if verdict not in VERDICTS:
        raise InputError(f"verdict must be one of {', '.join(VERDICTS)}", param="verdict")
    if not isinstance(output, dict | str | None):
        raise InputError("output must be an object or a text", param="output")
    if not isinstance(note, str | None):
        raise InputError("note must be a text", param="note")
    return FeedbackRequest(verdict, output, note or "")


def feedback_body(feedback: Feedback) -> dict[str, Any]:
    """What was recorded."""
    return {
        "object": "feedback",
        "id": feedback.id,
        "answer_id": feedback.answer_id,
        "verdict": feedback.verdict,
        "at": feedback.at.isoformat(),
    }
