"""The learnt part of the router: what a file of weights says of a message. Text and unit vector in, probabilities of routes out."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError, SettingsError

FORMAT = 2
LOOKED_AT = 4000  # characters: 1,000 of them cost 0.1 ms, and what a message wants stands at its beginning
EARLY = 40  # words: one that is named at the end of a long message tells little of what is wanted
BUCKETS = 512  # of hashed words and pairs of neighbours
Numbers = npt.NDArray[np.float64]

_WORD = re.compile(r"\w+")
_TEXT_BROUGHT = re.compile(r":\s*\S|\n\s*\S|(?<!\w)[\"“«'‘].{3,}[\"”»'’](?!\w)|\s(->|=>|→|[-–—]\s)\s*\S+\s+\S")
# "Any typos in this? We recieve parcels." A sentence that points at a text, and the text behind it.
_POINTED = re.compile(
    r"^[^?.!]*\b(?:this|here|these|below|following|next|one|text|message|mail|sentence|verbs?|nouns?|words?|line|meant|named|mistakes?|"
    r"typos?|misspelt|fewer|politely|kindly|calmer|shorter|nicer|better|positive|negative|calm|hier|das|diese\w*|fehler|ici|faute|"
    r"phrase|texte|esto|aquí|frase|deze|dit|zin|isto|aqui|questa)\b[^?.!]*[?.!]+\s+(\S+\s+\S+\s+\S+)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[\"“«][^\"”»]*[\"”»]")
_QUOTATION = re.compile(r"(?<!\w)[\"“«][^\"”»]{3,}[\"”»](?!\w)")
_CODE = re.compile(
    r"\b(?:select|delete|insert|update|union|truncate|drop)\b[^?]*\b(?:from|into|set|select|table|database|users|where)\b|"
    r"<\s*/?\s*(?:script|img|svg|iframe|context)\b|javascript:|\brm -|\bsudo\b|(?:\.\./)+|/etc/|\b(?:curl|wget)\b|"
    r"\$\(|os\.system|\.env\b|"
    r"'\s*(?:or|;|--)\b|--\s*$|[;|]\s*(?:sh|bash|shutdown|rm)\b",
    re.IGNORECASE,
)
# A line that plays another role: "SYSTEM:", "[admin]", "### Instruction", "<|im_start|>", '"role": "system"'.
_ROLE = re.compile(
    r"^\W*(?:system|assistant|admin\w*|instruction|inst|end of|begin|new|developer|im_start)\b[^?]*(?:[:\]|>]|-{3})|"
    r"\b(?:system|developer|admin|god|debug)\s+(?:override|mode|message)|\"role\"",
    re.IGNORECASE,
)
# Word groups in the languages that a European help desk meets; a word ending in * stands for all that begin with it.
_GROUPS: Mapping[str, tuple[frozenset[str], tuple[str, ...]]] = {
    name: (
        frozenset(word for word in words.split() if word[-1] != "*"),
        tuple(word[:-1] for word in words.split() if word[-1] == "*"),
    )
    for name, words in {
        "asking": "how what which who whom whose when where why is are was were do does did should must may am will wie was "
        "wer wann wo warum welche* quién qué cuándo dónde cómo cuánt* cuál qui quand où comment combien quel* hoe wat wanneer "
        "waar quem quando onde como quant* darf come quali chi dove qual",
        "facts": "who whom whose when where which why was were did does must may wer wann wo quién cuándo dónde quand où quem chi",
        "method": "how wie cómo comment hoe como come steps recipe instructions tips teach way",
        "polite": "please could would can you kindly bitte",
        "greeting": "hi hello hey hiya thanks thank thx cheers bye goodbye morning evening night ok okay great sorry hallo guten "
        "danke* hola gracias buen* bonjour bonsoir merci bedankt bom olá obrigad* ciao grazie salut tschüss",
        "task": "classify rewrite rephrase paraphrase translat* summari* extract proofread shorten correct fix convert count sort "
        "simplify label tag reword condense improve turn make replace split group put write rank mark find choose pick spell "
        "übersetz* korrigier* verbesser* kürz* formulier* fasse tradu* corrig* correg* résum* resum* reformul* raccourci* vertaal "
        "verbeter riassumi",
        "matter": "sentence* text* message mail email paragraph following below list ticket review note notes word words letter "
        "reply title version draft names date tone sentiment grammar spelling typo* mistake* bullet* here satz phrase comma "
        "article caption headline poem fehler faute frase zin",
        "tongue": "english german french spanish italian dutch polish portuguese danish swedish russian englisch* deutsch* "
        "französisch* spanisch* anglais inglés inglês inglese duits",
        "self": "i me my we our us mine ich mir mein* wir yo mi je mon ma ik eu mijn meine* nous",
        "you": "you your yours yourself dir dein* du tu tes tus ton te je jouw teu",
        "vague": "it this that these those same other one again more something anything thing things stuff else so",
        "sources": "policy policies guideline* handbook manual terms contract* warranty regulation* documents docs leaflet* "
        "minutes statute* tariff* guarantee procedure* insurance catalogue rule",
        "meta": "prompt* instruction* rules system ignor* forget disregard discard pretend above hidden developer* administrator "
        "mode restriction* filter* guidelines overrid* unlocked obey limits configuration reveal* told regeln anweisung* "
        "instruccion* instruktion* consignes instructions vergiss olvida oublie negeer censorship policy jailbreak roleplay act "
        "unrestricted safety systemprompt comply reglas règles istruzioni instruções instructies",
        "invent": "invent* make made pretend claim whatever matter ignor* cite citing citation cites fabricate approved always "
        "answer say source sources passages documents alter overwrite change",
        "harm": "bomb* kill* hack* poison* explos* weapon* gun* malware ransomware virus spyware keylogger exploit* steal* stole* "
        "forg* fak* cheat* brib* blackmail* launder* meth cocaine drugs stalk* spy* crack* hurt racist hate illegal* evad* murder* "
        "deadly threat* insult* manipulat* fälsch* knack* stehl* gift* robar robo roub* rubo voler tuer matar veneno falsif* "
        "backdate smuggl* rob sabotag* revenge trojan worm phishing ddos napalm dynamite nerve pick break fraud commit rig leak "
        "clone humiliat* bully violence suicide die attack* sprengstoff bombe* bom bomba vergift* empoison* envenen* vervals* "
        "hackeo pirat* fraud* erpress* drohbrief menace espion* afluister* einbrech* hinterzieh* evado überwach* inferior "
        "slurs propaganda bug cook forge slip",
        "hiding": "secret* secretly unnoticed noticing notice* caught seeing knowing trace traces hidden undetected suspected "
        "finding anonymously heimlich geheim* secrètes merkt erwischt pillen prendre privé behind escond* ocult*",
        "taking": "password* keys private personal delete drop dump database variables environment passwort* passwörter contraseña "
        "passe wachtwoord senha select script admin administrator* credentials login credit token secrets root lösche clé* "
        "api export datos données dados",
        "private": "salary earn* bonus pregnant religion union medical hospital address phone inbox personnel pay sick verdient "
        "gana gagne salaire sueldo file chats number lives salario",
        "victim": "colleague* coworker* boss manager* neighbour* someone somebody user users customer* tenant ex husband wife "
        "competitor* woman man girl girlfriend children child people mate kollege* nachbar* chef* collègue* foreigners chefin "
        "jefe compañero novia femme voisin collega* flatmate team oma freundin vrouw mother employee others everyone witness",
        "demand": "give show tell print list dump reveal send read open find get output paste repeat quote gib zeig* dame "
        "muéstrame enséñame donne montre affiche laat geef mostra* run execute",
        "english": "the a an of to in is and for on with at from by",
        "foreign": "der die das ist und ich nicht ein wo el la los las que de en es y un le les des est et je une het een van ik "
        "niet o os para com por il di per mi ho",
    }.items()
}
# What two groups mean together: a weapon with "who" is history, with "I" it is a plan.
_PAIRS: tuple[tuple[str, str], ...] = (
    *(("harm", other) for other in ("self", "facts", "victim", "hiding", "demand", "method", "task", "sources")),
    *(("taking", other) for other in ("self", "facts", "victim", "demand", "you", "sources")),
    *(("meta", other) for other in ("self", "facts", "demand", "you", "task")),
    *(("facts", other) for other in ("hiding", "victim", "demand", "self")),
    *(("private", other) for other in ("victim", "self")),
    *(("invent", other) for other in ("sources", "meta")),
    *(("sources", other) for other in ("task", "self")),
    ("hiding", "self"), ("hiding", "method"), ("victim", "demand"), ("victim", "method"), ("self", "asking"), ("task", "tongue"),
)  # fmt: skip
_SHAPES = (
    "words", "characters", "one_word", "few_words", "lines", "question_end", "questions", "colon", "quotes", "brings_text",
    "share_brought", "words_before", "words_quoted", "digits", "capitals", "beyond_ascii", "letters", "symbols", "pointed",
    "code", "role", "question_last", "asks_behind_text",
)  # fmt: skip
# Mean another thing where a text is brought; only the words outside it count.
_WITH_TEXT = (
    "asking", "polite", "task", "matter", "vague", "self", "sources", "meta", "facts", "demand", "harm", "you",
)  # fmt: skip
_OPENINGS = (
    "opens_asking",
    "opens_task",
    "opens_polite",
    "opens_greeting",
    "opens_self",
    "opens_demand",
    "opens_method",
)
FEATURES: tuple[str, ...] = (
    *_SHAPES,
    *(f"has_{name}" for name in _GROUPS),
    *_OPENINGS,
    *(f"text_{name}" for name in _WITH_TEXT),
    *(f"{one}_and_{other}" for one, other in _PAIRS),
)
# A message is read twice where one of these holds: what its vector means is another thing then.
_TURNS = ("has_self", "brings_text", "question_end", "opens_asking")
_TURN_AT = tuple(FEATURES.index(name) for name in _TURNS)


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
    """A multinomial logistic model over what `read_features` gives, calibrated by a temperature. ``digest``: sha256 of its file.

    ``costs``: what the column's route costs where the row's was right; a route is taken when it is likely to cost least.
    """

    routes: tuple[str, ...]
    space: str
    weights: Numbers = field(repr=False)  # a row for each route
    bias: Numbers = field(repr=False)
    temperature: float
    threshold: float  # probability under which nothing is decided
    precision: float  # of what is decided, that the threshold was chosen for
    abstain: str  # the route of what is not decided
    costs: Numbers = field(repr=False)
    catalogue: str  # digest of the routes that it was fitted for
    measured: Mapping[str, Measured]
    evidence: Mapping[str, Any] = field(repr=False)
    digest: str

    def probabilities(self, features: Numbers) -> dict[str, float]:
        """Route to probability, likeliest first; ``features`` as `read_features` gives them."""
        logits = (self.weights @ features + self.bias) / self.temperature
        odds = np.exp(logits - logits.max())
        shares = (odds / odds.sum()).tolist()
        return dict(sorted(zip(self.routes, shares, strict=True), key=lambda pair: -pair[1]))

    def cheapest(self, shares: Mapping[str, float]) -> str:
        """The route with the least expected cost, among those that ``shares`` names."""
        expected = np.asarray([shares.get(name, 0.0) for name in self.routes]) @ self.costs
        return min(shares, key=lambda name: float(expected[self.routes.index(name)]))


def read_features(text: str, vector: Sequence[float]) -> Numbers:
    """The vector, the same for each of the turns that hold (else zeros), a number for each of FEATURES, and hashed words."""
    point = np.asarray(vector, np.float64)
    signs = np.asarray(lexical(text), np.float64)
    turned = [point if signs[at] > 0 else np.zeros_like(point) for at in _TURN_AT]
    return np.concatenate([point, *turned, signs, hashed_words(text)])


def count_inputs(dimensions: int) -> int:
    """How many numbers `read_features` gives for vectors of this length."""
    return dimensions * (1 + len(_TURNS)) + len(FEATURES) + BUCKETS


def hashed_words(text: str) -> Numbers:
    """The first words and pairs of neighbours, counted in buckets by a hash that is the same everywhere; of length 1, or 0."""
    words = ["", *(word.lower() for word in _WORD.findall(own_words(text.strip()[:LOOKED_AT]))[:EARLY])]
    found = np.zeros(BUCKETS)
    for before, word in itertools.pairwise(words):
        for token in (word, f"{before} {word}"):
            found[zlib.crc32(token.encode()) % BUCKETS] += 1
    size = np.sqrt(found @ found)
    return found / size if size else found


def lexical(text: str) -> list[float]:
    """What can be seen in a text without a model, in the order of FEATURES; each number is about 0 to 1."""
    text = text.strip()[:LOOKED_AT]
    words = [word.lower() for word in _WORD.findall(text)]
    shapes = _shapes(text, words)
    hits = _count_groups(words)
    own = _count_groups([word.lower() for word in _WORD.findall(own_words(text))])
    first = set(words[:2])
    openings = [bool(first & _GROUPS[name.removeprefix("opens_")][0]) for name in _OPENINGS]
    brought = shapes[_SHAPES.index("brings_text")]
    with_text = [own[name] * brought for name in _WITH_TEXT]
    pairs = [hits[one] > 0 < hits[other] for one, other in _PAIRS]
    return [float(value) for value in (*shapes, *hits.values(), *openings, *with_text, *pairs)]


def _count_groups(words: Sequence[str]) -> dict[str, float]:
    early = words[:EARLY]
    return {
        name: min(3, sum(word in whole or word.startswith(stems) for word in early)) / 3
        for name, (whole, stems) in _GROUPS.items()
    }


def own_words(text: str) -> str:
    """What a message says itself, without the text that it brings: quotations are left out, else all behind the task."""
    start = start_of_text(text)
    if start is None:
        return text
    bare = _QUOTATION.sub(" ", text)
    return bare if bare != text else text[:start] or text


def _shapes(text: str, words: Sequence[str]) -> tuple[float, ...]:
    size, letters = max(1, len(text)), sum(map(str.isalpha, text))
    start = start_of_text(text)
    quoted = max((found.group() for found in _QUOTED.finditer(text)), key=len, default="")
    return (
        math.log1p(len(words)) / 4, math.log1p(len(text)) / 6, len(words) <= 1, len(words) <= 4, "\n" in text,
        text.endswith("?"), min(3, text.count("?")) / 3, ":" in text, any(mark in text for mark in "\"“«‘"), start is not None,
        0.0 if start is None else 1 - start / size,
        0.0 if start is None else min(20, len(_WORD.findall(text[:start]))) / 20, min(20, len(_WORD.findall(quoted))) / 20,
        sum(map(str.isdigit, text)) / size,
        sum(map(str.isupper, text)) / max(1, letters), sum(not character.isascii() for character in text) / size,
        letters / size, sum(character in "<>{}[];=/\\$`|" for character in text) / size,
        _POINTED.search(text[:400]) is not None, _CODE.search(text[:400]) is not None, _ROLE.search(text[:400]) is not None,
        "?" in text[-60:], start is not None and text.endswith("?"),
    )  # fmt: skip


def start_of_text(text: str) -> int | None:
    """Where the text begins that a message brings; None when it brings none."""
    brought, pointed = _TEXT_BROUGHT.search(text), _POINTED.search(text[:400])
    starts = [*([brought.start()] if brought else []), *([pointed.start(1)] if pointed else [])]
    return min(starts, default=None)


def carries_text(text: str) -> bool:
    """True when a task brings the text it is about: after a colon, in quotes, on further lines, behind a pointing sentence."""
    return start_of_text(text) is not None


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
    weights, bias = unpack_weights(values["weights"], len(routes)), np.asarray(values["bias"], np.float64)
    costs = np.asarray(values["costs"], np.float64)
    if weights.shape[1] != count_inputs(int(values["dimensions"])) or bias.shape != (len(routes),):
        raise ValueError(f"weights of shape {weights.shape} for {len(routes)} routes")
    if costs.shape != (len(routes), len(routes)) or not (np.isfinite(costs).all() and costs.min() >= 0):
        raise ValueError(f"costs of shape {costs.shape} for {len(routes)} routes")
    temperature, threshold = float(values["temperature"]), float(values["threshold"])
    if not (np.isfinite(weights).all() and np.isfinite(bias).all() and temperature > 0 and 0 <= threshold <= 1):
        raise ValueError("a number is out of its range")
    return Learnt(
        routes, str(values["space"]), weights, bias, temperature, threshold, float(values["precision"]),
        str(values["abstain"]), costs, str(values["catalogue"]), _parse_measured(values["measured"]),
        dict(values["evidence"]), hashlib.sha256(raw).hexdigest(),
    )  # fmt: skip


def pack_weights(weights: Numbers) -> str:
    """The matrix as base64 of little-endian half floats: 27 kB where decimals take 80."""
    return base64.b64encode(weights.astype("<f2").tobytes()).decode()


def unpack_weights(text: str, rows: int) -> Numbers:
    """The matrix that `pack_weights` packed. Raises ValueError."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float64).reshape(rows, -1)


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
