"""Judges what the system did with one item: an outcome in, numbers from 0 to 1 and the reason of a failure out."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import jsonschema_rs

from orchestrator.behaviour.examples import normalise_answer
from orchestrator.contract import NO_SOURCE
from orchestrator.errors import InputError
from orchestrator.evaluation.items import Gold, Item, Outcome, Score
from orchestrator.places import unmarked
from orchestrator.types import Passage

NEAR = 0.8  # F1 from which an answer counts as the accepted one
EXTRA_WORDS = 12  # that a short answer may have beside the accepted one it holds
HOLDS = 0.5  # share of words that two quotations of the same sentence have in common
MAX_PATTERN = 300
MAX_MATCHED = 10_000  # characters of an answer that a pattern is tried on
# What the check says of output whose citations or quotations do not hold.
BROKEN = frozenset({"citation_dropped", "evidence_not_verbatim", "no_source", "unsupported", "not_in_message"})
# Scripts without blanks between words: each sign is one.
_WORD = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\s\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
_NEGATIONS = frozenset(
    (
        "not",
        "no",
        "never",
        "neither",
        "nor",
        "cannot",
        "without",
        "isnt",
        "wasnt",
        "arent",
        "werent",
        "doesnt",
        "dont",
        "didnt",
    )
)
_COMMON = frozenset(
    (
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "and",
        "or",
        "is",
        "are",
        "was",
        "were",
        "be",
        "by",
        "with",
        "from",
        "that",
        "it",
        "as",
    )
)


def score_outcome(item: Item, outcome: Outcome) -> Score:
    """How right one outcome is. A failure is wrong in everything that the item says something of.

    ``correct``: what cannot be answered was refused; else the answer matches. It matches by its pattern and all its
    ``contains`` where the item has them, and by one of its ``answers`` where it has some: equal (SQuAD's normalisation),
    or F1 of words >= 0.8 with the same numbers and negations, or the accepted answer stands word by word in an answer of
    at most 12 words more, and not behind a negation, or only the unit is left out that the question names. An item with
    gold documents alone is right when one of them is cited.
    """
    said = spoken(outcome)
    answered = not outcome.error and not outcome.refused
    judged = item.answerable and bool(item.answers)
    reason = _fault(item, outcome, said)
    precision, recall = _cited(item, outcome)
    return Score(
        correct=float(not reason),
        exact=max(float(_words(said) == _words(each)) for each in item.answers) * answered if judged else None,
        f1=max(word_f1(said, each) for each in item.answers) * answered if judged else None,
        contract_kept=_kept(outcome),
        citation_precision=precision,
        citation_recall=recall,
        supported=_supported(outcome, said) if answered else None,
        gold_found=float(holds_gold(item, outcome.passages)) if item.answerable and (item.gold or judged) else None,
        refusal_right=float(not outcome.error and outcome.refused is not item.answerable),
        route_right=float(outcome.route == item.route) if item.route else None,
        reason=reason,
    )


def spoken(outcome: Outcome) -> str:
    """The answer as a reader takes it in: without passage numbers and without the note that there is no source."""
    return unmarked(outcome.text.replace(NO_SOURCE, "")).strip()


def is_answer(said: str, accepted: str) -> bool:
    """Whether what was said is an accepted answer, by the rule of ``score_outcome``."""
    got, wanted = _words(said), _words(accepted)
    if not wanted or not got:
        return False
    return (
        got == wanted
        or (_f1(got, wanted) >= NEAR and _hard_words(got) == _hard_words(wanted))
        or (len(got) <= len(wanted) + EXTRA_WORDS and _is_said(wanted, got))
    )


def is_bare_amount(said: str, accepted: str, question: str) -> bool:
    """Whether the answer is the accepted one but for the unit, which the question names: "45" to "How many days ...?"."""
    got, wanted, asked = _words(said), _words(accepted), set(_words(question))
    amount = [word for word in wanted if any(sign.isdigit() for sign in word)]
    unit = set(wanted) - set(amount)
    return bool(amount and unit) and got == amount and unit <= asked and not asked & set(amount)


def word_f1(said: str, accepted: str) -> float:
    """F1 of the words that two answers share, from 0 to 1 (compute_f1 of SQuAD's evaluate-v2.0.py)."""
    return _f1(_words(said), _words(accepted))


def holds_words(text: str, words: str) -> bool:
    """Whether the words stand in the text one after the other, as answers are compared."""
    part = _words(words)
    return bool(part) and _stands_in(part, _words(text))


def share_of_words(question: str, text: str) -> float:
    """Share of the question's telling words that stand in the text, from 0 to 1."""
    words = set(_words(question)) - _COMMON
    return len(words & set(_words(text))) / len(words) if words else 0.0


def holds_gold(item: Item, passages: Sequence[Passage]) -> bool:
    """Whether a passage of a gold document holds the quote or an accepted answer; the document counts where neither is known."""
    return any(_holds(item, passage) for passage in passages)


def same_place(gold: Gold, external_id: str, version: int, quote: str) -> bool:
    """Whether a citation or a passage is of the gold's document, its version and, where it names one, its words.

    A gold without a document is any document that says its quote.
    """
    if gold.external_id and gold.external_id != external_id:
        return False
    if gold.version is not None and gold.version != version:
        return False
    return not gold.quote or _overlap(_words(gold.quote), _words(quote)) >= HOLDS


def check_pattern(pattern: str) -> None:
    """Raises InputError for a pattern that is too long, is none, or could take more than linear time."""
    if len(pattern) > MAX_PATTERN:
        raise InputError(f"the pattern has {len(pattern)} characters; {MAX_PATTERN} are allowed", param="pattern")
    _matcher(pattern)


def _matcher(pattern: str) -> jsonschema_rs.Draft202012Validator:
    """A pattern of the engine that needs linear time whatever the pattern is: the sets of others must not stop a run."""
    options = jsonschema_rs.RegexOptions(size_limit=1 << 20)
    try:
        return jsonschema_rs.Draft202012Validator({"type": "string", "pattern": pattern}, pattern_options=options)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise InputError(
            f"the pattern {pattern[:80]!r} is none that can be matched in linear time (look-around and back-references are not)",
            param="pattern",
        ) from error


def _fault(item: Item, outcome: Outcome, said: str) -> str:
    """Why the outcome is not right; empty when it is."""
    if outcome.error:
        return f"failed: {outcome.error.partition(':')[0]}"
    if not item.answerable:
        return "" if outcome.refused else "answered what cannot be answered"
    if outcome.refused:
        return "refused what can be answered"
    if item.pattern and not _matches(item.pattern, said):
        return "does not match the pattern"
    missing = [part for part in item.contains if _flat(part) not in _flat(said)]
    if missing:
        return f"does not say {missing[0]!r}"[:80]
    if item.answers:
        told = any(is_answer(said, each) or is_bare_amount(said, each, item.question) for each in item.answers)
        return "" if told else "another answer"
    if item.pattern or item.contains:
        return ""
    cited = any(same_place(gold, *citation) for gold in item.gold for citation in outcome.cited)
    return "" if cited else "cites no gold document" if item.gold else "nothing to judge it by"


def _matches(pattern: str, said: str) -> bool:
    try:
        check_pattern(pattern)
    except InputError:
        return False
    return bool(_matcher(pattern).is_valid(said[:MAX_MATCHED]))


def _kept(outcome: Outcome) -> float | None:
    """None where another fault than the contract's kept the model from answering."""
    if outcome.error:
        return 0.0 if outcome.error.startswith("contract:") else None
    return float(not any(flag.partition(":")[0] in BROKEN for flag in outcome.flags))


def _cited(item: Item, outcome: Outcome) -> tuple[float | None, float | None]:
    if not item.gold or not item.answerable:
        return None, None
    right = [any(same_place(gold, *cited) for gold in item.gold) for cited in outcome.cited]
    found = [any(same_place(gold, *cited) for cited in outcome.cited) for gold in item.gold]
    return (sum(right) / len(right) if right else None), sum(found) / len(found)


def _supported(outcome: Outcome, said: str) -> float | None:
    """Share of citations whose quote holds half of the answer's words."""
    words = set(_words(said))
    words = words - _COMMON or words
    if not outcome.cited or not words:
        return None
    holds = [len(words & set(_words(quote))) >= HOLDS * len(words) for _, _, quote in outcome.cited]
    return sum(holds) / len(holds)


def _holds(item: Item, passage: Passage) -> bool:
    shown = f"{passage.title}\n{passage.text}"
    words = _words(shown)
    if item.gold and not any(_is_of(gold, passage) for gold in item.gold):
        return False
    quoted = [_words(gold.quote) for gold in item.gold if gold.quote and _is_of(gold, passage)]
    answers = [_words(answer) for answer in item.answers]
    if not quoted and not answers:
        return bool(item.gold)
    return any(_stands_in(each, words) for each in (*quoted, *answers) if each)


def _is_of(gold: Gold, passage: Passage) -> bool:
    return gold.external_id in ("", passage.external_id) and gold.version in (None, passage.version)


def _words(text: str) -> list[str]:
    """Words as SQuAD compares them, in any script."""
    plain = normalise_answer(unicodedata.normalize("NFKC", text))
    words = _WORD.findall("".join(" " if unicodedata.category(sign)[0] == "P" else sign for sign in plain))
    return words or ([plain] if plain else [])


def _flat(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hard_words(words: Sequence[str]) -> tuple[Counter[str], bool]:
    """What turns an answer into another one: its numbers, and whether it denies. 25 days of leave are not 30 days of leave."""
    return Counter(word for word in words if any(sign.isdigit() for sign in word)), bool(_NEGATIONS & set(words))


def _is_said(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether the words stand in the others, at least once without a negation in the two words before them."""
    places = _places(part, whole)
    return any(not _NEGATIONS & set(whole[max(0, at - 2) : at]) for at in places)


def _f1(got: Sequence[str], wanted: Sequence[str]) -> float:
    if not got or not wanted:
        return float(got == wanted)
    return 2 * sum((Counter(got) & Counter(wanted)).values()) / (len(got) + len(wanted))


def _overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the shorter one's words that the other has too."""
    least = min(len(one), len(other))
    return sum((Counter(one) & Counter(other)).values()) / least if least else 0.0


def _stands_in(part: Sequence[str], whole: Sequence[str]) -> bool:
    return bool(_places(part, whole))


def _places(part: Sequence[str], whole: Sequence[str]) -> list[int]:
    size = len(part)
    return [at for at in range(len(whole) - size + 1) if list(whole[at : at + size]) == list(part)]
