"""What BM25 is computed from: a text's terms, which configuration makes them, and the counts over a collection.

Words become lexemes by PostgreSQL's configuration of the document's language. Runs of a script that is written without
spaces become overlapping pairs of characters first. Identifiers (``ERR-4012``, ``max_connections``, ``C++``, ``2.0.1``)
are kept whole beside their words.
Invariant: a chunk is counted exactly while a version that counts holds it (``chunks.live`` is not empty).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from orchestrator.database import Connection, statement

BATCH = 1_000  # chunks of one statement: bounds its memory for documents of tens of megabytes
MAX_EXACT = 64  # characters of an identifier
SAMPLE = 2_000  # characters that a language is told from
SURE = 0.95  # probability from which it is believed
MAX_TYPED = 16  # identifiers and phrases of one question

# ISO 639-1 to PostgreSQL's configuration; a language without one is indexed as it is written ('simple').
CONFIGURATIONS = {
    "ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
    "et": "estonian", "eu": "basque", "fi": "finnish", "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian",
    "hy": "armenian", "id": "indonesian", "it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch",
    "no": "norwegian", "nb": "norwegian", "nn": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip
UNSPACED = "simple"

# Scripts without spaces between words, and Hangul, whose words carry their particles.
_RUN = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003134f]+"
)
_EXACT = re.compile(
    r"(?<!\w)[A-Za-z]\w*(?:\+\+|\#)(?!\w)"  # C++ F#
    r"|(?<![\w.])\.[A-Za-z]\w+"  # .NET
    r"|(?<![\w.])\w+(?:[-_./:]+\w+)+"  # ERR-4012 max_connections file.py 10.0.0.1
    r"|(?<!\w)\w*\d\w*(?!\w)"  # A4
)
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th|s)", re.IGNORECASE)  # 5th, 1990s: in texts about anything
_SEPARATORS = re.compile(r"[-_./:]+")
_PHRASE = re.compile(r'"([^"\n]{2,200})"|“([^”\n]{2,200})”|„([^“”\n]{2,200})[“”]|«([^»\n]{2,200})»')


def segment(text: str) -> str:
    """The text with runs of an unspaced script written as overlapping pairs of characters, separated by spaces.

    Bigrams rank as well as dictionary segmentation for Chinese (Kwok 1997, "Comparing representations in Chinese
    information retrieval").
    """
    return _RUN.sub(_pairs, text)


def _pairs(run: re.Match[str]) -> str:
    text = run[0]
    pairs = [text[i : i + 2] for i in range(len(text) - 1)] or [text]
    return " " + " ".join(pairs) + " "


def exact_terms(text: str) -> list[str]:
    """Identifiers of a question, as they stand in the index: ``=err-4012``; each once."""
    return list(_exact_counts(text))[:MAX_TYPED]


def phrases(text: str) -> list[str]:
    """What the question puts in quotation marks, in lower case."""
    found = ("".join(match.groups("")).strip().lower() for match in _PHRASE.finditer(text))
    return list(dict.fromkeys(phrase for phrase in found if len(phrase) > 1))[:MAX_TYPED]


def _exact_counts(text: str) -> Counter[str]:
    found = _EXACT.finditer(_RUN.sub(" ", text))  # an identifier ends where Chinese begins
    return Counter("=" + match.group().lower() for match in found if _is_exact(match.group()))


def _is_exact(word: str) -> bool:
    """Letters with a digit or an underscore, names with a dot inside, numbers of three parts, and what ends in ++ or #.

    Neither a year, a decimal number, an ordinal nor ``and/or``: they stand in texts about anything.
    """
    if len(word) > MAX_EXACT or _ORDINAL.fullmatch(word):
        return False
    if word[0] == "." or word[-1] in "+#":
        return True
    if not any(map(str.isalpha, word)):
        return len(_SEPARATORS.split(word)) > 2
    return (
        "_" in word
        or any(map(str.isdigit, word))
        or (("." in word or "::" in word) and all(len(part) > 1 for part in _SEPARATORS.split(word)))
    )


def detect_language(text: str) -> str | None:
    """The text search configuration of the language that the text is likeliest written in; None when it is too short to tell."""
    sample = text[:SAMPLE]
    unspaced = sum(len(run) for run in _RUN.findall(sample))
    if unspaced * 3 > len(sample):
        return UNSPACED
    code, probability = _identifier().classify(sample)
    return CONFIGURATIONS.get(code, UNSPACED) if probability >= SURE else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


async def add_postings(
    connection: Connection, collection_id: int, language: str, chunk_ids: Sequence[int], texts: Sequence[str]
) -> None:
    """Adds the postings of chunks that have none; the caller holds the collection's lock."""
    if chunk_ids:
        values: dict[str, Any] = {"collection_id": collection_id, "language": language}
        await connection.execute(statement("use-language"), values)
    for first in range(0, len(chunk_ids), BATCH):
        values = posting_values(collection_id, language, chunk_ids[first : first + BATCH], texts[first : first + BATCH])
        await connection.execute(statement("add-postings"), values)


def posting_values(collection_id: int, language: str, chunk_ids: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """What the statements that make lexemes of chunks are given."""
    exact = [
        (chunk, *pair) for chunk, text in zip(chunk_ids, texts, strict=True) for pair in _exact_counts(text).items()
    ]
    return {
        "collection_id": collection_id,
        "language": language,
        "chunk_ids": list(chunk_ids),
        "texts": [segment(text) for text in texts],
        "exact_ids": [row[0] for row in exact],
        "exact_terms": [row[1] for row in exact],
        "exact_counts": [min(row[2], 255) for row in exact],
    }


async def count_chunks(connection: Connection, collection_id: int, chunk_ids: Sequence[int], sign: int) -> None:
    """Counts chunks in (+1) or out (-1) of the collection's document frequencies; the caller holds its lock."""
    if chunk_ids:
        values = {"collection_id": collection_id, "chunk_ids": list(chunk_ids), "sign": sign}
        await connection.execute(statement("count-chunks"), values)
