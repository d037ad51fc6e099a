"""Mixes the scores of the stages into one order: dense, BM25, character grams, and a re-ranker's score.

Pure: lists of numbers in, numbers out. The weights follow from how well the embedder's tokenizer reads the text, not from
the set at hand (docs/retrieval.md has the figures).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Scores = npt.NDArray[np.float64]
    Numbers = npt.NDArray[np.integer[Any]]

GRAM, UNSPACED_GRAM = 4, 2  # characters; a word of an unspaced script has one or two
UNREAD = 9.0  # letters to a piece; of English chunks 99 in 100 have less than 5.7, of questions less than 7
MAX_QUESTION = 1_000  # characters of a question that grams are taken from
PLANE = 0x10000  # characters of Unicode's first plane, whose kinds are kept in a table
MAX_GRAMS = 150  # of a long question these many, spread evenly, rank as well as all 350 at half the cost

_GAP = re.compile(r"[\W_]+")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003134f]")


@dataclass(frozen=True, slots=True)
class Weights:
    """``dense``: share of the cosine beside BM25; ``grams``: share of the grams beside both; ``second``: of the re-ranker.

    ``familiarity``: what they were chosen by.
    """

    dense: float
    grams: float
    second: float
    familiarity: float = 1.0


# One rule for all collections, chosen with twelve sets of ten languages in view (docs/retrieval.md).
FAMILIAR = Weights(dense=0.7, grams=0.1, second=0.35)
FOREIGN = Weights(dense=0.25, grams=0.47, second=0.1, familiarity=0.0)


def weights_for(familiarity: float) -> Weights:
    """The weights for a text that the embedder's model reads as well as ``familiarity`` says, from 0 to 1."""

    def between(foreign: float, familiar: float) -> float:
        return foreign * (1 - familiarity) + familiar * familiarity

    return Weights(
        between(FOREIGN.dense, FAMILIAR.dense),
        between(FOREIGN.grams, FAMILIAR.grams),
        between(FOREIGN.second, FAMILIAR.second),
        familiarity,
    )


def familiarity(texts: Sequence[str], pieces: int, letters_per_piece: tuple[float, float]) -> float:
    """How far the model is at home in these texts, from 0 to 1; ``pieces``: what its tokenizer cut them into.

    Fertility of the tokenizer tells how well a language was present in training (Rust et al. 2021, "How Good is Your
    Tokenizer?"); it needs no label and no list of languages. Where each word became one unknown piece (Thai: 19 letters)
    the model has read nothing.
    """
    low, high = letters_per_piece
    letters = int(_are_letters(_row("".join(texts))).sum()) / max(pieces, 1)
    return 0.0 if letters > UNREAD else min(1.0, max(0.0, (letters - low) / (high - low)))


def gram_coverage(question: str, texts: Sequence[str]) -> list[float]:
    """Share of the question's character grams that each text holds, each weighted by its idf among the texts; 0 to 1.

    Finds what stems and whole words miss: compounds, inflection, order of words (McNamee & Mayfield 2004, "Character
    N-Gram Tokenization for European Language Text Retrieval": 4 for European languages).
    """
    import numpy as np

    asked = _normal(question[:MAX_QUESTION])
    size = UNSPACED_GRAM if len(_UNSPACED.findall(asked)) * 4 > len(asked) else GRAM
    grams = sorted({asked[i : i + size] for i in range(len(asked) - size + 1)})
    if not grams or not texts:
        return [0.0] * len(texts)
    grams = grams[:: -(-len(grams) // MAX_GRAMS)]
    holds = _held(grams, texts)
    count = holds.sum(axis=0)
    idf = np.where(count > 0, np.log1p((len(texts) - count + 0.5) / (count + 0.5)), 0.0)
    covered: list[float] = (holds @ idf / max(idf.sum(), 1e-9)).tolist()
    return covered


def _held(grams: Sequence[str], texts: Sequence[str]) -> Scores:
    """1.0 for each text and gram that it holds, else 0.0: [texts, grams]. ``grams``: sorted, all of two or of four letters.

    All texts are one row of numbers; neighbours become the number of their pair, then pairs of pairs. 30 texts take
    0.3 ms of CPU, to search each text for each gram takes five times as long.
    """
    import numpy as np

    row: Numbers
    wanted: Numbers
    row, starts = _letters(texts)
    wanted = _row("".join(grams)).reshape(len(grams), -1)
    alphabet = np.unique(wanted)
    table = np.zeros(max(int(row.max()), int(alphabet[-1])) + 1, np.int32)
    table[alphabet] = np.arange(1, len(alphabet) + 1)  # what no gram has stays 0
    row, wanted, distance = table[row], table[wanted], 1
    while wanted.shape[1] > 1:
        base = int(wanted.max()) + 1
        codes, numbers = np.unique(wanted[:, ::2] * base + wanted[:, 1::2], return_inverse=True)
        table = np.zeros(base * base, np.int32)
        table[codes] = np.arange(1, len(codes) + 1)
        row = table[row[:-distance] * base + row[distance:]]
        wanted = numbers.reshape(len(grams), -1) + 1
        distance *= 2
    hits = np.flatnonzero(row)
    holds = np.zeros((len(texts), len(grams)))
    holds[np.searchsorted(starts, hits, "right") - 1, row[hits] - 1] = 1.0
    return holds


def _letters(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """The characters of all texts, each text as ``_normal`` gives it, and where each begins.

    No gram goes over the border of two texts: two spaces meet there.
    """
    import numpy as np

    normal = [f" {unicodedata.normalize('NFKC', text).casefold()} " for text in texts]
    row = _row("".join(normal))
    starts = np.cumsum([0, *map(len, normal[:-1])])
    are_letters = _are_letters(row)
    kept = are_letters.copy()
    kept[1:] |= are_letters[:-1]  # one space after each word
    kept[starts] = True
    return np.where(are_letters, row, ord(" "))[kept], np.cumsum(kept)[starts] - 1


def _row(text: str) -> Numbers:
    import numpy as np

    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _are_letters(row: Numbers) -> npt.NDArray[np.bool_]:
    """True for letters and digits: what `str.isalnum` says of each character."""
    import numpy as np

    found = _alphanumeric().take(row, mode="clip")
    for place in np.flatnonzero(row >= PLANE).tolist():
        found[place] = chr(row[place]).isalnum()
    return found


@lru_cache(maxsize=1)
def _alphanumeric() -> npt.NDArray[np.bool_]:
    import numpy as np

    return np.array([chr(code).isalnum() for code in range(PLANE)])


def interpolate(first: Sequence[float], second: Sequence[float], weight: float) -> list[float]:
    """``(1 - weight) first + weight second``, each from 0 and scaled to a maximum of 1 over the passages."""
    mixed: list[float] = ((1 - weight) * scaled(first) + weight * scaled(second)).tolist()
    return mixed


def scaled(scores: Sequence[float]) -> Scores:
    """Scores from their theoretical minimum of 0 (what is below counts as 0), divided by their maximum."""
    import numpy as np

    found = np.maximum(np.array(scores, np.float64), 0.0)
    shares: Scores = found / max(float(found.max(initial=0.0)), 1e-9)
    return shares


def _normal(text: str) -> str:
    return f" {_GAP.sub(' ', unicodedata.normalize('NFKC', text).casefold()).strip()} "
