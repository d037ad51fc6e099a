"""The learnt part of the router: what a file of weights says of a message. Text and unit vector in, probabilities of routes out."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError, SettingsError

FORMAT = 1
LOOKED_AT = 4000  # characters: 1,000 of them cost 0.1 ms, and what a message wants stands at its beginning
Numbers = npt.NDArray[np.float64]

_WORD = re.compile(r"\w+")
_TEXT_BROUGHT = re.compile(r":\s*\S|\n\s*\S|(?<!\w)[\"“«'‘].{3,}[\"”»'’](?!\w)")
_QUOTED = re.compile(r"[\"“«][^\"”»]*[\"”»]")
# Word groups in the languages that a European help desk meets; a word ending in * stands for all that begin with it.
_GROUPS: Mapping[str, tuple[frozenset[str], tuple[str, ...]]] = {
    name: (
        frozenset(word for word in words.split() if word[-1] != "*"),
        tuple(word[:-1] for word in words.split() if word[-1] == "*"),
    )
    for name, words in {
        "asking": "how what which who whom whose when where why is are was were do does did should must may am will wie was "
        "wer wann wo warum welche* quién qué cuándo dónde cómo cuánt* cuál qui quand où comment combien quel* hoe wat wanneer "
        "waar quem quando onde como quant* darf",
        "facts": "who whom whose when where which why was were did does must may wer wann wo quién cuándo dónde quand où quem",
        "polite": "please could would can you kindly bitte",
        "greeting": "hi hello hey hiya thanks thank cheers bye goodbye morning evening night ok okay great sorry hallo guten "
        "danke* hola gracias buen* bonjour bonsoir merci bedankt bom olá obrigad*",
        "task": "classify rewrite rephrase paraphrase translat* summari* extract proofread shorten correct fix convert count sort "
        "simplify label tag reword condense improve turn make replace split group put write übersetz* korrigier* kürz* traduc* "
        "corrig* résum* vertaal",
        "matter": "sentence* text* message mail email paragraph following below list ticket review note notes word words letter "
        "reply title version draft names date tone sentiment grammar spelling typo* mistake* bullet* here satz phrase",
        "self": "i me my we our us mine ich mir mein* wir yo mi je mon ik eu",
        "vague": "it this that these those same other one again more something anything thing things stuff else so",
        "meta": "prompt* instruction* rules system ignor* forget disregard pretend above hidden developer administrator mode "
        "restriction* filter* guidelines override unlocked obey limits configuration reveal* told regeln anweisung* "
        "instrucciones consignes vergiss olvida oublie",
        "harm": "bomb* kill* hack* poison* explos* weapon* gun malware ransomware virus spyware keylogger exploit steal* stole* "
        "forg* fake* cheat* brib* blackmail* launder* meth cocaine drugs stalk* spy crack* hurt racist hate illegal* evad* murder* "
        "deadly threat* insult* manipulat* fälsch* knack* stehl* gift robar voler tuer matar veneno falsif* backdate",
        "hiding": "secret* secretly unnoticed noticing caught seeing knowing trace hidden undetected geheim* heimlich secrètes",
        "taking": "password* keys private personal delete drop dump database variables environment passwort* contraseña passe "
        "wachtwoord senha select script admin administrator*",
        "victim": "colleague* boss manager* neighbour* someone somebody user users customer* tenant ex husband wife competitor* "
        "woman man kollegen chef collègue foreigners",
        "demand": "give show tell print list dump reveal send read open find get output gib zeig* dame muéstrame donne montre",
        "english": "the a an of to in is and for on with at from by",
        "foreign": "der die das ist und ich nicht ein wo el la los las que de en es y un le les des est et je une het een van ik "
        "niet o os para com por",
    }.items()
}
# What two groups mean together: a weapon with "who" is history, with "I" it is a plan.
_PAIRS: tuple[tuple[str, str], ...] = (
    *(("harm", other) for other in ("self", "facts", "victim", "hiding", "demand")),
    *(("taking", other) for other in ("self", "facts", "victim", "demand")),
    *(("meta", other) for other in ("self", "facts", "demand")),
    *(("facts", other) for other in ("hiding", "victim", "demand", "self")),
    ("hiding", "self"), ("victim", "demand"), ("self", "asking"),
)  # fmt: skip
_SHAPES = (
    "words", "characters", "one_word", "few_words", "lines", "question_end", "questions", "colon", "quotes", "brings_text",
    "share_brought", "words_before", "words_quoted", "digits", "capitals", "beyond_ascii", "letters", "symbols",
)  # fmt: skip
_WITH_TEXT = ("asking", "polite", "task", "matter", "vague", "self")  # mean another thing when a text is brought
_OPENINGS = ("opens_asking", "opens_task", "opens_polite", "opens_greeting", "opens_self")
FEATURES: tuple[str, ...] = (
    *_SHAPES,
    *(f"has_{name}" for name in _GROUPS),
    *_OPENINGS,
    *(f"text_{name}" for name in _WITH_TEXT),
    *(f"{one}_and_{other}" for one, other in _PAIRS),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a route was measured to give. ``quality``: best route of a question to the mean quality (0..1) of this one on it.

    ``cost``: of one answer, in the currency of the measurement; ``ms``: time until it is whole, 95th percentile.
    """

    cost: float
    ms: float
    quality: Mapping[str, float]
    n: int


@dataclass(frozen=True, slots=True)
class Learnt:
    """A multinomial logistic model over a vector and FEATURES, calibrated by a temperature. ``digest``: sha256 of its file."""

    routes: tuple[str, ...]
    space: str
    weights: Numbers = field(repr=False)  # a row for each route: the vector's part, then that of FEATURES
    bias: Numbers = field(repr=False)
    temperature: float
    threshold: float  # probability under which nothing is decided
    precision: float  # of what is decided, that the threshold was chosen for
    abstain: str  # the route of what is not decided
    measured: Mapping[str, Measured]
    evidence: Mapping[str, Any] = field(repr=False)
    digest: str

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it reads."""
        return int(self.weights.shape[1]) - len(FEATURES)

    def probabilities(self, features: Numbers) -> dict[str, float]:
        """Route to probability, likeliest first; ``features`` as `read_features` gives them."""
        logits = (self.weights @ features + self.bias) / self.temperature
        odds = np.exp(logits - logits.max())
        shares = (odds / odds.sum()).tolist()
        return dict(sorted(zip(self.routes, shares, strict=True), key=lambda pair: -pair[1]))


def read_features(text: str, vector: Sequence[float]) -> Numbers:
    """The vector and, behind it, one number for each of FEATURES."""
    return np.concatenate([np.asarray(vector, np.float64), np.asarray(lexical(text), np.float64)])


def lexical(text: str) -> list[float]:
    """What can be seen in a text without a model, in the order of FEATURES; each number is about 0 to 1."""
    text = text.strip()[:LOOKED_AT]
    words = [word.lower() for word in _WORD.findall(text)]
    size = max(1, len(text))
    letters = sum(map(str.isalpha, text))
    brought = _TEXT_BROUGHT.search(text)
    quoted = max((found.group() for found in _QUOTED.finditer(text)), key=len, default="")
    shapes = (
        math.log1p(len(words)) / 4, math.log1p(len(text)) / 6, len(words) <= 1, len(words) <= 4, "\n" in text,
        text.endswith("?"), min(3, text.count("?")) / 3, ":" in text, any(mark in text for mark in "\"“«‘"), brought is not None,
        1 - brought.start() / size if brought else 0.0,
        min(20, len(_WORD.findall(text[: brought.start()]))) / 20 if brought else 0.0, min(20, len(_WORD.findall(quoted))) / 20,
        sum(map(str.isdigit, text)) / size,
        sum(map(str.isupper, text)) / max(1, letters), sum(not character.isascii() for character in text) / size,
        letters / size, sum(character in "<>{}[];=/\\$`|" for character in text) / size,
    )  # fmt: skip
    # A word that is named at the end of a long message tells little of what is wanted: the first forty count.
    early = words[:40]
    hits = {
        name: min(3, sum(word in whole or word.startswith(stems) for word in early)) / 3
        for name, (whole, stems) in _GROUPS.items()
    }
    first = set(words[:2])
    openings = [bool(first & _GROUPS[name.removeprefix("opens_")][0]) for name in _OPENINGS]
    with_text = [hits[name] * (brought is not None) for name in _WITH_TEXT]
    pairs = [hits[one] > 0 < hits[other] for one, other in _PAIRS]
    return [float(value) for value in (*shapes, *hits.values(), *openings, *with_text, *pairs)]


def carries_text(text: str) -> bool:
    """True when a task brings the text it is about: after a colon, in quotes or on further lines."""
    return bool(_TEXT_BROUGHT.search(text))


def load_learnt(path: Path) -> Learnt:
    """Reads a file that `orchestrator router fit` wrote. Raises SettingsError that says what is wrong with it."""
    try:
        raw = path.read_bytes()
        return parse_learnt(raw)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read: {error.strerror}; set ORCHESTRATOR_ROUTER_FILE to a file of `orchestrator router fit`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{path} is no router's file ({error}); write it anew: `orchestrator router fit`"
        ) from error


def parse_learnt(raw: bytes) -> Learnt:
    """The model in a file's bytes. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
    values = json.loads(raw)
    if values["format"] != FORMAT:
        raise ValueError(f"format {values['format']}, not {FORMAT}")
    if tuple(values["features"]) != FEATURES:
        raise ValueError("it reads other features than this version of the package")
    routes = tuple(map(str, values["routes"]))
    weights = np.asarray(values["weights"], np.float64)
    bias = np.asarray(values["bias"], np.float64)
    if weights.shape != (len(routes), int(values["dimensions"]) + len(FEATURES)) or bias.shape != (len(routes),):
        raise ValueError(f"weights of shape {weights.shape} for {len(routes)} routes")
    temperature, threshold = float(values["temperature"]), float(values["threshold"])
    if not (np.isfinite(weights).all() and np.isfinite(bias).all() and temperature > 0 and 0 <= threshold <= 1):
        raise ValueError("a number is out of its range")
    return Learnt(
        routes, str(values["space"]), weights, bias, temperature, threshold, float(values["precision"]),
        str(values["abstain"]), _parse_measured(values["measured"]), dict(values["evidence"]),
        hashlib.sha256(raw).hexdigest(),
    )  # fmt: skip


def _parse_measured(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Measured]:
    return {
        name: Measured(
            float(row["cost"]),
            float(row["ms"]),
            {best: float(quality) for best, quality in row["quality"].items()},
            int(row["n"]),
        )
        for name, row in table.items()
    }


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller wants at most and at least; None: no limit."""

    max_cost: float | None = None
    min_quality: float | None = None
    deadline_ms: float | None = None

    def __bool__(self) -> bool:
        return (self.max_cost, self.min_quality, self.deadline_ms) != (None, None, None)

    def __str__(self) -> str:
        named = (
            ("cost at most", self.max_cost),
            ("quality at least", self.min_quality),
            ("ms at most", self.deadline_ms),
        )
        return ", ".join(f"{name} {value:g}" for name, value in named if value is not None)


def choose_cheapest(
    measured: Mapping[str, Measured], probabilities: Mapping[str, float], limits: Limits, allowed: Sequence[str]
) -> tuple[str, str]:
    """The cheapest of the allowed routes that meets the limits, and why; the better one where two cost the same.

    The quality of a route on this question is its measured quality on each kind of question, weighted with how likely the
    question is of that kind. Raises InputError when no route meets the limits; it says what each of them gives.
    """
    known = {name: measured[name] for name in allowed if name in measured}
    if not known:
        raise InputError(
            "no route that may answer this has been measured; fit the router on outcomes: `orchestrator router fit`",
            param="max_cost",
        )
    qualities = {name: expected_quality(row, probabilities) for name, row in known.items()}
    meeting = [
        name
        for name, row in known.items()
        if (limits.max_cost is None or row.cost <= limits.max_cost)
        and (limits.deadline_ms is None or row.ms <= limits.deadline_ms)
        and (limits.min_quality is None or qualities[name] >= limits.min_quality)
    ]
    if not meeting:
        offers = "; ".join(
            f"{name}: cost {row.cost:g}, quality {qualities[name]:.2f}, {row.ms:.0f} ms" for name, row in known.items()
        )
        raise InputError(f"no route meets {limits} ({offers}); loosen a limit", param="min_quality")
    best = min(meeting, key=lambda name: (known[name].cost, -qualities[name]))
    return best, f"cheapest with {limits}: cost {known[best].cost:g}, quality {qualities[best]:.2f}"


def expected_quality(row: Measured, probabilities: Mapping[str, float]) -> float:
    """Quality of a route, 0 to 1, on a question that is of each kind with these probabilities; an unmeasured kind gives 0."""
    total = sum(probabilities.values())
    return sum(share * row.quality.get(kind, 0.0) for kind, share in probabilities.items()) / total if total else 0.0
