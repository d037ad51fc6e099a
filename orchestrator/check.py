"""Checks what the model wrote against its contract and its citations: text in, Checked out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from orchestrator.citations import cite, find_quote, is_supported, resolve_citations
from orchestrator.contract import Contract
from orchestrator.places import Place, find_parts, unmarked
from orchestrator.types import Citation, Passage


@dataclass(frozen=True, slots=True)
class Checked:
    """An object that keeps its contract, its citations looked up, and what had to be corrected.

    A flag is a kind and, after colons, what it is about: ``citation_dropped:3``, ``no_source:claims.2``.
    """

    data: Mapping[str, Any]
    text: str
    citations: tuple[Citation, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """One field, or one line: its value as it is kept, its citations in the order of the text, and its flags."""

    value: Any
    citations: tuple[Citation, ...] = ()
    flags: tuple[str, ...] = ()


def check_output(contract: Contract, output: str, passages: Sequence[Passage], message: str = "") -> Checked:
    """The checked answer. Citations that do not resolve or do not carry their text are dropped and flagged, wherever they stand.

    ``message``: the text that quoted fields must be taken from. Raises ContractError when the output breaks the contract.
    """
    data = contract.parse_output(output)
    places = {place.path: place for place in contract.places}
    if contract.is_refusal(data):
        parts = find_parts(data, places)
        return refusal(
            contract, tuple(flag for name, place, part in parts for flag in _all_dropped(name, place, part)), data
        )
    checked = [CheckedPart(data)]
    if () in places:
        checked = [check_part(places[()], data, passages)]
    kept: dict[str, Any] = dict(checked[0].value)
    for name in contract.schema["properties"]:
        if name in kept:
            checked.append(check_field(contract, name, kept[name], passages, message))
            kept[name] = checked[-1].value
    citations = tuple(citation for part in checked for citation in part.citations)
    flags = tuple(flag for part in checked for flag in part.flags)
    text = contract.render(kept)
    if text and not contract.is_refusal(kept):
        return Checked(kept, text, citations, flags)
    flags = (*flags, "empty_answer")
    return refusal(contract, flags, data) if contract.refusal else Checked(kept, text, (), flags)


def check_field(
    contract: Contract, name: str, value: Any, passages: Sequence[Passage], message: str = ""
) -> CheckedPart:
    """One top-level field: what cites in it is checked, what is quoted from the message must stand there."""
    places = {place.path[1:]: place for place in contract.places if place.path[:1] == (name,)}
    flags: list[str] = []
    if name in contract.quoted:
        value, lost = _quoted(value, message)
        flags += [f"not_in_message:{name}"] * lost
    if not places:
        return CheckedPart(value, flags=tuple(flags))
    value = deepcopy(value)
    citations: list[Citation] = []
    for where, place, part in find_parts(value, places, (), (name,)):
        checked = check_part(place, part, passages, where)
        part.update(checked.value)
        citations += checked.citations
        flags += checked.flags
    return CheckedPart(value, tuple(citations), tuple(flags))


def check_part(place: Place, part: Mapping[str, Any], passages: Sequence[Passage], name: str = "") -> CheckedPart:
    """One object that cites: its text, and the citations and the evidence that carry it."""
    raw = str(part[place.answer])
    answer = unmarked(raw).strip()
    if not answer:
        return CheckedPart({**part, **_nothing(place)}, flags=tuple(_all_dropped(name, place, part)))
    citations, dropped = resolve_citations(part[place.citations], passages, answer)
    flags = _dropped(dropped)
    if answer != raw.strip():
        flags.append("marks_removed")
    if citations and not is_supported(answer, [passages[citation.number - 1] for citation in citations]):
        citations = ()
        flags.append("unsupported")
    kept = {**part, place.answer: answer, place.citations: [citation.number for citation in citations]}
    if place.evidence:
        kept[place.evidence], citations = quote_evidence(str(part[place.evidence]), citations, passages)
        flags += ["evidence_not_verbatim"] if citations and not kept[place.evidence] else []
    flags += [] if citations else ["no_source"]
    return CheckedPart(kept, citations, tuple(_named(flag, name) for flag in flags))


def quote_evidence(
    evidence: str, citations: tuple[Citation, ...], passages: Sequence[Passage]
) -> tuple[str, tuple[Citation, ...]]:
    """The evidence as it stands in a cited passage, and the citations with that passage's quote in place of a sentence.

    Evidence that stands in none of them is empty: nobody shall read as a quotation what no document says.
    """
    for at, citation in enumerate(citations):
        passage = passages[citation.number - 1]
        if span := find_quote(passage.text, evidence):
            quoted = cite(citation.number, passage, "", span)
            return quoted.quote, (*citations[:at], quoted, *citations[at + 1 :])
    return "", citations


def answer_text(contract: Contract, raw: str) -> str:
    """The answer without space around it and, where the contract has citations, without the model's own ``[n]`` marks."""
    return (unmarked(raw) if contract.citations else raw).strip()


def refusal(contract: Contract, flags: tuple[str, ...] = (), data: Mapping[str, Any] | None = None) -> Checked:
    """The object that says that the passages do not answer."""
    return Checked(contract.refused(data), contract.refusal, (), flags)


def _quoted(value: Any, message: str) -> tuple[Any, bool]:
    """The value with only what stands in the message, as it stands there, and whether anything was left out."""
    if isinstance(value, str):
        span = find_quote(message, value)
        return message[slice(*span)] if span else "", bool(value.strip()) and not span
    if isinstance(value, list):
        parts = [_quoted(part, message) for part in value]
        return [part for part, _ in parts if part not in ("", [], {})], any(lost for _, lost in parts)
    if isinstance(value, dict):
        fields = {key: _quoted(part, message) for key, part in value.items()}
        return {key: part for key, (part, _) in fields.items()}, any(lost for _, lost in fields.values())
    return value, False


def _nothing(place: Place) -> dict[str, Any]:
    return {place.answer: "", place.citations: []} | ({place.evidence: ""} if place.evidence else {})


def _all_dropped(name: str, place: Place, part: Mapping[str, Any]) -> Iterator[str]:
    return (_named(flag, name) for flag in _dropped(part[place.citations]))


def _dropped(numbers: Sequence[object]) -> list[str]:
    return [f"citation_dropped:{number}"[:40] for number in dict.fromkeys(numbers)]


def _named(flag: str, name: str) -> str:
    return f"{flag}:{name}" if name else flag
