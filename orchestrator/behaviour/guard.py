"""Keeps facts out of training: rows in, a verdict out, with row numbers; ``refuse`` raises before anything is trained.

What is trained is the form of answers. An answer that no passage gives teaches the model to know it by heart, and a text that
stands in two splits makes a measurement worthless.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.behaviour.rows import Row
from orchestrator.behaviour.similar import Pair, clusters, near_pairs, similarity
from orchestrator.contract import Contract
from orchestrator.errors import ContractError, TrainingError

NEAR = 0.9  # Jaccard of shingles from which two inputs, and two sets of passages, count as the same
LEAK = 0.8  # the same for sources in two splits: a little less alike is a leak already
_WORD = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W\d_]{3,}")
_STEM = 5  # letters by which two forms of a word are taken for one
_SHOWN = 10
_TEXT = "text "


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares of judged rows above which training is refused. ``underived``: rows with passages; ``unknown``: rows without,
    whose output names numbers or names that the input lacks (a label needs no source, so this one is wide)."""

    underived: float = 0.10
    unknown: float = 0.50


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard found; row numbers of the file, from 1. ``near``: rows that repeat an earlier one."""

    with_passages: int
    without_passages: int
    underived: tuple[int, ...]
    unknown: tuple[int, ...]
    near: tuple[int, ...]
    shared_documents: tuple[str, ...]
    leaks: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Counts and the first row numbers, for the manifest."""
        values: dict[str, Any] = {"with_passages": self.with_passages, "without_passages": self.without_passages}
        for name in ("underived", "unknown", "near", "shared_documents", "leaks"):
            found = asdict(self)[name]
            values[name] = {"count": len(found), "first": list(found[:_SHOWN])}
        return values


def inspect(train: Sequence[Row], held_out: Sequence[Row], contract: Contract) -> Verdict:
    """Judges rows that have an output keeping the contract; the others are the lint's."""
    common = _common_words([*train, *held_out])
    sourced = [row for row in train if row.passages]
    bare = [row for row in train if not row.passages]
    near = near_rows(train)
    ours, theirs = _documents(train), _documents(held_out)
    return Verdict(
        len(sourced),
        len(bare),
        tuple(row.number for row in sourced if is_underived(row, contract, common)),
        tuple(row.number for row in bare if _names_unknown(row, contract, common)),
        tuple(dict.fromkeys(train[pair.second].number for pair in near)),
        tuple(sorted(ours & theirs)),
        tuple(find_leaks(train, held_out)),
    )


def refuse(verdict: Verdict, limits: Limits = Limits()) -> None:
    """Raises TrainingError, with the row numbers, when the rows would teach facts or the splits leak."""
    for what, rows, judged, limit, why in (
        ("answers", verdict.underived, verdict.with_passages, limits.underived, "that their passages do not give"),
        (
            "outputs",
            verdict.unknown,
            verdict.without_passages,
            limits.unknown,
            "with names or numbers not in their input",
        ),
    ):
        if judged and len(rows) / judged > limit:
            raise TrainingError(
                f"{len(rows)} of {judged} rows hold {what} {why} ({len(rows) / judged:.0%}, allowed {limit:.0%}): training "
                f"on them teaches facts, not a form. Rows {_listed(rows)}; give them passages that answer, or leave them out"
            )
    if verdict.shared_documents or verdict.leaks:
        pairs = ", ".join(f"{one} and {other}" for one, other in verdict.leaks[:_SHOWN])
        raise TrainingError(
            f"training and validation share {len(verdict.shared_documents)} documents "
            f"{list(verdict.shared_documents[:3])} and {len(verdict.leaks)} near-equal rows ({pairs}): no measurement on "
            "them would mean anything"
        )


def split_rows(rows: Sequence[Row], seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Training and validation rows (about a twelfth, none of fewer than 40). Rows of one document, or nearly the same,
    stay together; which go where depends on seed and ids alone."""
    wanted = min(64, max(8, len(rows) // 12)) if len(rows) >= 40 else 0
    names: dict[str, int] = {}  # documents and source texts are nodes behind the rows
    pairs = [
        (place, names.setdefault(name, len(rows) + len(names)))
        for place, row in enumerate(rows)
        for name in _names(row)
    ]
    texts = [name for name in names if name.startswith(_TEXT)]
    for pair in near_pairs([name.removeprefix(_TEXT) for name in texts], LEAK):
        pairs.append((names[texts[pair.first]], names[texts[pair.second]]))
    chosen: set[int] = set()
    found = ([place for place in each if place < len(rows)] for each in clusters(len(rows) + len(names), pairs))
    for cluster in sorted(found, key=lambda members: _draw(rows[members[0]].id, seed)):
        if len(chosen) + len(cluster) <= wanted:
            chosen |= set(cluster)
    train = [row for place, row in enumerate(rows) if place not in chosen]
    return train, [row for place, row in enumerate(rows) if place in chosen]


def near_rows(rows: Sequence[Row]) -> list[Pair]:
    """Pairs of rows whose inputs are nearly the same over nearly the same passages."""
    shown = [_passages_text(row) for row in rows]
    return [
        pair
        for pair in near_pairs([row.input for row in rows], NEAR)
        if shown[pair.first] == shown[pair.second] or similarity(shown[pair.first], shown[pair.second]) >= NEAR
    ]


def find_leaks(train: Sequence[Row], held_out: Sequence[Row]) -> list[tuple[int, int]]:
    """Row numbers of both splits that rest on nearly the same text: a passage, or the input of a row without any."""
    ours, theirs = _by_source(train), _by_source(held_out)
    found = {(ours[text], theirs[text]) for text in ours.keys() & theirs.keys()}
    texts = [*ours, *(text for text in theirs if text not in ours)] if held_out else []
    for pair in near_pairs(texts, LEAK):
        one, other = texts[pair.first], texts[pair.second]
        found |= {(ours[a], theirs[b]) for a, b in ((one, other), (other, one)) if a in ours and b in theirs}
    return sorted(found)


def _by_source(rows: Sequence[Row]) -> dict[str, int]:
    """Every text that rows rest on, with the number of the first row."""
    found: dict[str, int] = {}
    for row in rows:
        for text in _sources(row):
            found.setdefault(text, row.number)
    return found


def _sources(row: Row) -> list[str]:
    return [passage.text for passage in row.passages] or [row.input]


def _names(row: Row) -> list[str]:
    return [*(f"document {name}" for name in row.documents), *(_TEXT + text for text in _sources(row))]


def _passages_text(row: Row) -> str:
    return "\n".join(f"{passage.title} {passage.text}" for passage in row.passages)


def whole_text(row: Row) -> str:
    """Input and passages as one text, by which rows are compared."""
    return f"{row.input}\n{_passages_text(row)}"


def leaves(value: Any) -> list[str]:
    """Every text and number in an output, field names left out."""
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [] if isinstance(value, bool) or value is None else [str(value)]


def is_underived(row: Row, contract: Contract, common: frozenset[str] = frozenset()) -> bool:
    """True when most content words of the answer, or one of its numbers, stand neither in passages nor in input.

    Words of the format itself (``common``) and the passage numbers are not judged; a refusal says nothing.
    """
    words = _said(row, contract) - common
    known = _words(whole_text(row))
    missing = {word for word in words if word not in known}
    return len(missing) * 2 > len(words) or any(word[0].isdigit() and len(word) > 1 for word in missing)


def _names_unknown(row: Row, contract: Contract, common: frozenset[str]) -> bool:
    known = _words(row.input)
    raw = " ".join(leaves(_judged(row, contract)))
    names = {_stem(word) for word in _WORD.findall(raw) if word[0].isdigit() or word[0].isupper()}
    missing = {word for word in names if word not in known} - common
    return any(not word.isdigit() or len(word) > 1 for word in missing)


def _said(row: Row, contract: Contract) -> set[str]:
    return _words(" ".join(leaves(_judged(row, contract))))


def _judged(row: Row, contract: Contract) -> Any:
    """The output without what is no statement about the world: verdict, passage numbers, values of an enumeration."""
    if not isinstance(row.output, Mapping):
        try:
            data: Mapping[str, Any] = contract.parse_output(str(row.output or ""))
        except ContractError:
            return re.sub(r"\[\d+\]", " ", str(row.output or ""))
    else:
        data = row.output
    if contract.answerable is not None and data.get(contract.answerable) is False:
        return {}
    properties = contract.schema.get("properties", {})
    fixed = {
        name for name, schema in properties.items() if isinstance(schema, Mapping) and schema.keys() & {"enum", "const"}
    }
    return {
        name: value for name, value in data.items() if name not in fixed | {contract.citations, contract.answerable}
    }


def _common_words(rows: Sequence[Row]) -> frozenset[str]:
    """Words of the format: those in the outputs of a twentieth of the rows, and of five at least."""
    counts = Counter(word for row in rows for word in _words(" ".join(leaves(row.output))))
    return frozenset(word for word, count in counts.items() if count >= max(5, len(rows) / 20))


def _words(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text) if len(word) > 1}  # a single digit stands everywhere


def _stem(word: str) -> str:
    return word if word[0].isdigit() else word.casefold()[:_STEM]


def _documents(rows: Iterable[Row]) -> set[str]:
    return {document for row in rows for document in row.documents}


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _listed(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(map(str, rows[:_SHOWN])) + more
