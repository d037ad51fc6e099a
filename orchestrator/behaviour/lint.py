"""Looks over rows before anybody trains on them: a file in, findings with row numbers out."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.behaviour.guard import LEAK, NEAR, find_leaks, near_rows, whole_text
from orchestrator.behaviour.rows import Row, origins, scan_rows
from orchestrator.behaviour.similar import near_pairs
from orchestrator.check import check_output
from orchestrator.compose import compose_messages
from orchestrator.contract import Contract
from orchestrator.errors import ContractError, TooLargeError
from orchestrator.prompts import Prompt

Severity = Literal["error", "warning"]
SAME_OUTPUT = 0.9  # Jaccard from which two outputs count as the same: a comma more is no contradiction
RARE = 0.02  # a kind with less than this share of the rows is hardly learnt
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}\b")
_PHONE = re.compile(
    r"(?<![\w.+-])\+?(?:\(0?\d{1,4}\)|\d{2,4})(?:[ /-]\d{2,5}){2,4}(?![\w-])|(?<![\w.])\+\d{9,14}(?!\w)"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_DATE = re.compile(r"\d{4}[ /-]\d{2}[ /-]\d{2}|\d{2}[ /-]\d{2}[ /-]\d{4}")
_SIGNS: dict[str, tuple[Severity, str]] = {  # flags of the check, as findings
    "citation_dropped": ("error", "cite passages that they do not show, or cite in a refusal"),
    "evidence_not_verbatim": ("error", "quote evidence that is not verbatim in a cited passage"),
    "no_source": ("error", "say something and cite nothing for it"),
    "empty_answer": ("error", "neither answer nor refuse"),
    "not_in_message": ("error", "hold values that are to be taken from the input and are not in it"),
    "unsupported": ("warning", "share too few words with what they cite: is it the right passage?"),
    "marks_removed": ("warning", "hold passage numbers in the text, which the check takes out"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault and the rows (lines of the file) that have it. An error keeps rows from being trained on."""

    check: str
    severity: Severity
    rows: tuple[int, ...]
    message: str


@dataclass(frozen=True, slots=True)
class LintReport:
    """What a file holds and what is wrong with it."""

    rows: int
    kinds: dict[str, int]
    origins: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """True when nothing is found that keeps a row from being trained on."""
        return not any(finding.severity == "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Rule:
    """What rows are held to: contract, prompt, how tokens are counted, and how many a prompt may have."""

    contract: Contract
    prompt: Prompt
    count: Callable[[str], int]
    budget_tokens: int = 1600


def lint_file(file: Path, rule: Rule, against: Path | None = None) -> LintReport:
    """Everything that is found in a file; ``against``: another split, which must share nothing with it.

    Raises TrainingError when a file cannot be read at all.
    """
    rows, faults = scan_rows(file)
    others = scan_rows(against)[0] if against else []
    findings = [Finding("unreadable", "error", (number,), fault) for number, fault in faults]
    for found in (
        _contract(rows, rule),
        _duplicates(rows),
        _labels(rows, rule.contract),
        _lengths(rows, rule),
        _personal(rows),
        _kinds(rows),
        _leaks(rows, others),
    ):
        findings += found
    return LintReport(len(rows), dict(Counter(row.kind for row in rows).most_common()), origins(rows), tuple(findings))


def _contract(rows: Sequence[Row], rule: Rule) -> Iterator[Finding]:
    faults: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        try:
            row.target(rule.contract)
        except ContractError as error:
            faults[error.message.replace("the model's output", "its output", 1)].append(row.number)
    for message, numbers in faults.items():
        yield Finding("contract", "error", tuple(numbers), message)


def _duplicates(rows: Sequence[Row]) -> Iterator[Finding]:
    """Exact and near duplicates, and contradictions: the same question over the same passages with another output."""
    texts = [whole_text(row) for row in rows]
    outputs = [_flat(row.output) for row in rows]
    same: list[int] = []
    against: list[tuple[int, int]] = []
    near: list[tuple[int, int]] = []
    for pair in near_rows(rows):
        one, other = rows[pair.first], rows[pair.second]
        if " ".join(texts[pair.first].split()) == " ".join(texts[pair.second].split()):
            if outputs[pair.first] == outputs[pair.second]:
                same.append(other.number)
            elif not near_pairs([outputs[pair.first], outputs[pair.second]], SAME_OUTPUT):
                against.append((one.number, other.number))
            else:
                near.append((one.number, other.number))
        else:
            near.append((one.number, other.number))
    if same:
        yield Finding(
            "duplicate", "warning", _unique(same), "say what an earlier row says; it counts twice in training"
        )
    for one_number, other_number in against:
        message = "have the same input and passages and different outputs: only one of them can be right"
        yield Finding("contradiction", "error", (one_number, other_number), message)
    if near:
        numbers = _unique(number for pair_of in near for number in pair_of)
        yield Finding("near_duplicate", "warning", numbers, f"are at least {NEAR:.0%} alike in input and passages")


def _labels(rows: Sequence[Row], contract: Contract) -> Iterator[Finding]:
    """Signs of wrong labels: what the check of an answer would have to correct in the example itself."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        try:
            checked = check_output(contract, row.target(contract), row.passages, row.input)
        except ContractError:
            continue
        for kind in {flag.partition(":")[0] for flag in checked.flags}:
            found[kind].append(row.number)
    for kind, numbers in found.items():
        severity, message = _SIGNS.get(kind, ("warning", f"would be corrected by the check: {kind}"))
        yield Finding(kind, severity, tuple(numbers), message)


def _lengths(rows: Sequence[Row], rule: Rule) -> Iterator[Finding]:
    long, cut = [], []
    for row in rows:
        try:
            composed = compose_messages(
                rule.prompt, row.input, row.passages, count=rule.count, budget_tokens=rule.budget_tokens
            )
        except TooLargeError:
            long.append(row.number)
            continue
        if composed.dropped:
            cut.append(row.number)
    if long:
        yield Finding("length", "error", tuple(long), f"are longer than {rule.budget_tokens} tokens without a passage")
    if cut:
        message = f"hold more passages than {rule.budget_tokens} tokens take; shorten them or leave some out"
        yield Finding("length", "error", tuple(cut), message)


def _personal(rows: Sequence[Row]) -> Iterator[Finding]:
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        for what in personal_data(f"{whole_text(row)}\n{_flat(row.output)}"):
            found[what].append(row.number)
    for what, numbers in found.items():
        yield Finding("personal_data", "warning", tuple(numbers), f"hold {what}: weights cannot be made to forget it")


def personal_data(text: str) -> list[str]:
    """What in the text looks like personal data: e-mail addresses, phone numbers, IBANs and card numbers by their checksums."""
    found = ["an e-mail address"] if _EMAIL.search(text) else []
    rest = _IBAN.sub(lambda match: "" if _is_iban(match.group()) else match.group(), text)
    if rest != text:
        found.append("an IBAN")
    without = _CARD.sub(lambda match: "" if _is_card(match.group()) else match.group(), rest)
    if without != rest:
        found.append("a card number")
    if any(not _DATE.fullmatch(match.group()) for match in _PHONE.finditer(without)):
        found.append("a phone number")
    return found


def _is_iban(text: str) -> bool:
    """The check of ISO 13616: the country and check digits moved behind, letters as numbers, modulo 97."""
    plain = text.replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Luhn's check (ISO/IEC 7812)."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    doubled = [digit if at % 2 == 0 else digit * 2 - 9 * (digit > 4) for at, digit in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _kinds(rows: Sequence[Row]) -> Iterator[Finding]:
    counts = Counter(row.kind for row in rows)
    rare = {kind for kind, count in counts.items() if kind and count < max(2, RARE * len(rows))}
    if len(counts) > 1 and rare and len(rows) >= 20:
        numbers = tuple(row.number for row in rows if row.kind in rare)
        yield Finding("kinds", "warning", numbers, f"are the only ones of their kind ({', '.join(sorted(rare)[:5])})")
    outputs = Counter(_flat(row.output) for row in rows if row.output is not None)
    top, count = outputs.most_common(1)[0] if outputs else ("", 0)
    if len(rows) >= 20 and count * 2 > len(rows):
        numbers = tuple(row.number for row in rows if _flat(row.output) == top)
        yield Finding("kinds", "warning", numbers, f"have one and the same output, {count / len(rows):.0%} of all rows")


def _leaks(rows: Sequence[Row], others: Sequence[Row]) -> Iterator[Finding]:
    if not others:
        return
    theirs = {document for row in others for document in row.documents}
    shared = tuple(row.number for row in rows if theirs & set(row.documents))
    if shared:
        yield Finding("leak", "error", shared, "are about documents that the other file has rows of")
    near = _unique(ours for ours, _ in find_leaks(rows, others))
    if near:
        yield Finding("leak", "error", near, f"rest on texts at least {LEAK:.0%} alike with those of the other file")


def _flat(output: Any) -> str:
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False, sort_keys=True)


def _unique(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))
