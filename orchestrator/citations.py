"""Looks up citations: passage numbers of a checked object become document, version, paragraph, span and quote."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from orchestrator.types import Citation, Passage

# A sentence ends at a mark before a space, but not after an initial or one of these; and where a new block begins.
_ABBREVIATIONS = frozenset(
    "approx art bzw ca cf dr e.g ed eg etc fig i.e ie inc jr ltd mr mrs ms nr p pp prof sr st vs z.b".split()  # noqa: SIM905
)
_BREAK = re.compile(
    r"^#{1,6} [^\n]*\n|\n(?=[^\S\n]*(?:\n|[-*+•#>|]|\d{1,3}[.)] ))|(?<=[|:])\n"
    r"|(?<![.!?])[.!?]+[\"'”’)\]]*(?=\s)|[。！？]",
    re.MULTILINE,
)
_CJK = "\u2e80-\u9fff\uac00-\ud7a3"  # scripts without spaces: each character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_WITHIN = re.compile(rf"[^\W_{_CJK}]{{2}}")
_NUMBER = re.compile(r"(?<!\d)\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)|\d+(?:[.,]\d+)*")
_COUNTED = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTED.split())} | {
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "seventy": "70",
    "eighty": "80",
    "ninety": "90",
}
_DATE = re.compile(r"\b\d{4}-(\d\d)-\d\d\b|\b\d{1,2}[./](\d{1,2})[./]\d{4}\b")
_MONTHS = "january february march april may june july august september october november december".split()  # noqa: SIM905
# Words that carry no fact of their own: an answer of nothing else ("Yes") is not asked to share words with its source.
_EMPTY = """a an the and or but nor so if then than that this these those it its they them their he she his her him we our us
you your i my me is are was were be been being am do does did done has have had having can could may might must shall should
will would not no yes true false of in on at by for from to with without into onto about as per via there here when where
which who whom whose what why how also only just very"""
_EMPTY_WORDS = frozenset(_EMPTY.split())
_ENDINGS = ("ments", "ment", "ings", "ing", "ies", "ied", "ers", "es", "ed", "er", "en", "ly", "s", "e", "y", "n")
_SHARE = 4  # an answer must share every fourth of its content words with what it cites, and at least one


def resolve_citations(
    numbers: Iterable[object], passages: Sequence[Passage], answer: str
) -> tuple[tuple[Citation, ...], tuple[object, ...]]:
    """Citations, once each, for the numbers of shown passages that can carry the answer, and the other numbers (C5)."""
    found: list[Citation] = []
    dropped: list[object] = []
    for number in dict.fromkeys(numbers):
        whole = type(number) is int or (isinstance(number, float) and number.is_integer())
        if whole and 1 <= number <= len(passages) and shares_words(answer, passages[int(number) - 1]):  # type: ignore[operator, call-overload]
            found.append(cite(int(number), passages[int(number) - 1], answer))  # type: ignore[call-overload]
        else:
            dropped.append(number)
    return tuple(found), tuple(dropped)


def cite(number: int, passage: Passage, answer: str, span: tuple[int, int] | None = None) -> Citation:
    """The sentence of the passage that shares most of the answer's words, or ``span`` of it, as an exact quote."""
    start, end = span or best_sentence(passage.text, answer)
    quote = passage.text[start:end]
    return Citation(
        number=number,
        document_id=passage.document_id,
        external_id=passage.external_id,
        version=passage.version,
        paragraph=passage.paragraph + len(re.findall(r"\n\s*\n", passage.text[:start])),
        span=(passage.span[0] + start, passage.span[0] + end),
        quote=quote,
        quote_sha256=hashlib.sha256(quote.encode()).hexdigest(),
        title=passage.title,
        page=passage.page,
    )


def find_quote(text: str, quote: str) -> tuple[int, int] | None:
    """Span of the quote in the text, whole words; None when it does not stand there.

    Space is not compared: a line may break elsewhere, and the marks that compose made harmless hold a space more.
    """
    wanted = "".join(quote.split())
    places = [at for at, char in enumerate(text) if not char.isspace()]
    squeezed = "".join(text[at] for at in places)
    at = squeezed.find(wanted) if wanted else -1
    while at >= 0:
        start, end = places[at], places[at + len(wanted) - 1] + 1
        if not (_cuts_word(text, start) or _cuts_word(text, end)):
            return start, end
        at = squeezed.find(wanted, at + 1)
    return None


def _cuts_word(text: str, at: int) -> bool:
    """True when letters or digits stand on both sides: "5 days" is no quote of "25 days"."""
    return 0 < at < len(text) and bool(_WITHIN.match(text, at - 1))


def best_sentence(text: str, answer: str) -> tuple[int, int]:
    """Span of the sentence that contains the answer, else of the one that shares most with it, else of the whole text."""
    wanted, spoken = _content(answer), " ".join(answer.lower().split()).rstrip(".!?")
    numbers = {value for number in _numbers(answer) for value in number}
    best, best_score = _strip(text, 0, len(text)), 0.0
    for start, end in _sentences(text):
        sentence = text[start:end]
        words = _content(sentence)
        shared = len(wanted & words) + 2 * len(numbers & _present_numbers(sentence))
        if spoken and spoken in " ".join(sentence.lower().split()):
            shared += len(wanted) + 1
        score = shared / (1 + 0.01 * len(words))
        if score > best_score:
            best, best_score = (start, end), score
    return best


def shares_words(answer: str, passage: Passage) -> bool:
    """True when one passage has a content word or a number of the answer, or the answer has none ("Yes")."""
    words, numbers = _content(answer), _numbers(answer)
    source = f"{passage.title}\n{passage.text}"
    present = _present_numbers(source)
    return not (words or numbers) or bool(words & _content(source)) or any(number & present for number in numbers)


def is_supported(answer: str, passages: Iterable[Passage]) -> bool:
    """True when all numbers and names of the answer and a fourth of its content words stand in the cited passages.

    A name is a capitalised word that does not begin the answer or a sentence of it.

    Words are compared without their endings, numbers by value. A necessary condition for groundedness, not a sufficient
    one: it catches an answer that its citations cannot carry.
    """
    source = "\n".join(f"{passage.title}\n{passage.text}" for passage in passages)
    present, words = _present_numbers(source), _content(answer)
    if not all(number & present for number in _numbers(answer)):
        return False
    written = _content(source)
    if not _names(answer) <= written:
        return False
    return not words or len(words & written) * _SHARE >= len(words)


def _names(answer: str) -> set[str]:
    """Content words, without their endings, of what is written as a name."""
    found = (match for match in _WORD.finditer(answer) if match.group()[0].isupper())
    inner = (
        match.group()
        for match in found
        if (before := answer[: match.start()].rstrip(" \"'“(")) and before[-1] not in ".!?:\n"
    )
    return {word for name in inner for word in _content(name)}


def _sentences(text: str) -> Iterable[tuple[int, int]]:
    """Spans without outer space, in order; linear in the length of the text."""
    start = 0
    for found in _BREAK.finditer(text):
        if found.group() == "." and _goes_on(text, start, found.end()):
            continue
        span = _strip(text, start, found.end())
        start = found.end()
        if span[0] < span[1]:
            yield span
    span = _strip(text, start, len(text))
    if span[0] < span[1]:
        yield span


def _goes_on(text: str, start: int, end: int) -> bool:
    """True when the full stop before ``end`` closes an abbreviation, an initial or a list number, not a sentence."""
    word = text[max(start, end - 12) : end - 1].rpartition(" ")[2].rpartition("\n")[2].lstrip("(\"'“").lower()
    following = text[end : end + 2].lstrip()[:1]
    return (
        word in _ABBREVIATIONS
        or (len(word) == 1 and word.isalpha())
        or (word.isdigit() and not text[start : end - 1 - len(word)].strip())
        or following.islower()
    )


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _content(text: str) -> set[str]:
    """Words that carry meaning, without endings and digits; a date in figures names its month."""
    words = set(_WORD.findall(text.lower())) - _EMPTY_WORDS
    words.update(_MONTHS[int(iso or local) - 1] for iso, local in _DATE.findall(text) if 1 <= int(iso or local) <= 12)
    return {_stem(word) for word in words if not any(char.isdigit() for char in word)}


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:6]


def _numbers(text: str) -> list[set[str]]:
    """For each number of the text, the values that it may stand for."""
    return [_values(token) for token in _NUMBER.findall(text)]


def _present_numbers(text: str) -> set[str]:
    """Values of all numbers of a source, number words and the parts of dates and of grouped digits among them."""
    present = {value for token in _NUMBER.findall(text) for value in _values(token)}
    for token in _NUMBER.findall(text):
        parts = re.split(r"[ \u00a0\u202f.,]", token)
        if len(parts) > 2 or not re.fullmatch(r"[\d.,]+", token):
            present.update(value for part in parts for value in _values(part))
    for word in re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower()):
        tens, _, ones = word.partition("-")
        if tens in _NUMBER_WORDS and (not ones or ones in _NUMBER_WORDS):
            present.add(str(int(_NUMBER_WORDS[tens]) + int(_NUMBER_WORDS.get(ones, "0"))))
    return present


def _values(token: str) -> set[str]:
    """1,000 and 1 000 are 1000; 3.50 and 3,5 are 3.5; 1.500 may be either; 01.03.2025 stays whole."""
    bare = re.sub(r"[ \u00a0\u202f]", "", token)
    values = set()
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+(?:,\d+)?", bare):
        group = "," if "," in bare and (bare.find(",") < bare.find(".") or "." not in bare) else "."
        values.add(_plain(bare.replace(group, "").replace(",", ".")))
    if re.fullmatch(r"\d+(?:[.,]\d+)?", bare):
        values.add(_plain(bare.replace(",", ".")))
    return values or {bare}


def _plain(number: str) -> str:
    whole, _, fraction = number.partition(".")
    fraction = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
