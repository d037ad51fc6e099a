"""Builds training and test examples: questions and an index in, groups of numbered passages with their questions out."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from orchestrator.citations import best_sentence
from orchestrator.errors import TrainingError
from orchestrator.types import Passage

Split = Literal["train", "validation", "test"]
Kind = Literal["answerable", "unanswerable", "gold_left_out", "entity_swapped", "opposite", "sentence_cut"]
Made = Literal["search_order", "shuffled", "gold_left_out", "rows"]
Search = Callable[[str, int], Awaitable[Sequence[Passage]]]

SPLIT_RULE = "sha256(seed:title, or seed:document id without a title): first 80 % train, 5 % validation, 15 % test"
# Names and years. The first word of a question begins one as well: such a match starts at 0 and is left alone.
_ENTITY = re.compile(r"\b[A-Z][\w'’.-]+(?: (?:of |the |de )?[A-Z][\w'’.-]+)*|\b(?:1\d|20)\d\d\b")
# Turned into each other, they make a question about what the passage does not say.
_OPPOSITES = (
    ("first", "last"), ("largest", "smallest"), ("biggest", "smallest"), ("highest", "lowest"), ("most", "least"),
    ("oldest", "newest"), ("longest", "shortest"), ("before", "after"), ("began", "ended"), ("start", "end"),
    ("started", "ended"), ("won", "lost"), ("win", "lose"), ("born", "buried"), ("increase", "decrease"),
    ("increased", "decreased"), ("north", "south"), ("northern", "southern"), ("east", "west"), ("eastern", "western"),
    ("early", "late"), ("minimum", "maximum"), ("founded", "dissolved"), ("opened", "closed"), ("built", "demolished"),
    ("joined", "left"), ("male", "female"), ("winter", "summer"), ("father", "mother"), ("allowed", "forbidden"),
)  # fmt: skip
_DENIALS = (("did", "didn't"), ("was", "wasn't"), ("is", "isn't"), ("were", "weren't"))
_BEFORE, _AFTER = 40, 24  # characters quoted on each side of an answer
_CLAUSE = re.compile(r'[,;:–—] |\) | (?=\()|"')
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Question:
    """One line of ``questions.jsonl``. Without an answer in its document, ``answers`` is empty."""

    id: str
    question: str
    document_id: str
    answerable: bool
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """One question over a group's passages and the object that a right answer holds. ``citations``: 1-based numbers."""

    question_id: str
    question: str
    document_id: str
    kind: Kind | str  # rows of users have tags of their own
    citations: tuple[int, ...]
    answers: tuple[str, ...]
    evidence: str = ""  # the gold passage's sentence that answers
    output: str = ""  # the exact text that the model shall write, when it is not made from the fields above

    @property
    def answerable(self) -> bool:
        """True when a shown passage answers."""
        return self.kind == "answerable"

    def target(self) -> dict[str, Any]:
        """The object of the contract ``cited_answer`` that the model is trained to write."""
        answer = self.answers[0] if self.answerable else ""
        return {
            "answerable": self.answerable,
            "citations": list(self.citations),
            "evidence": self.evidence,
            "answer": answer,
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Numbered passages, and the questions that branch over them. ``made`` says how the passages were chosen."""

    id: str
    split: Split
    made: Made | str  # with a hard case behind it, see hard.py
    passages: tuple[Passage, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How groups are made. Shares are of groups, except ``unanswerable`` (of all questions) and ``swapped`` (of answerable ones).

    ``cut``: of groups when refusals are wanted, those whose gold passage is shown without the sentence that answers.
    ``seed`` decides split and order; another ``order`` visits the same split's questions in another order, over other
    passages. ``passes``: how often that is done.
    """

    seed: int = 0
    order: int = 0
    passes: int = 1
    sizes: tuple[tuple[int, float], ...] = ((1, 0.06), (2, 0.06), (3, 0.13), (4, 0.20), (5, 0.55))
    search_order: float = 0.5
    left_out: float = 0.12
    unanswerable: float = 0.40
    swapped: float = 0.25
    cut: float = 0.4
    max_branches: int = 12
    max_chars: int = 4200
    depth: int = 20


@dataclass(slots=True)
class _State:
    """What is counted while groups are made, so that kinds and gold positions stay balanced."""

    used: set[str] = field(default_factory=set)
    branches: int = 0
    refused: int = 0
    gold_at: Counter[tuple[int, int]] = field(default_factory=Counter)


def load_questions(path: Path) -> list[Question]:
    """Questions of a JSONL file, or of ``questions.jsonl`` in a folder. Raises TrainingError that names the bad line."""
    file = path / "questions.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise TrainingError(f"{file} does not exist; --data takes a questions.jsonl or a folder that holds one")
    questions = []
    for number, line in enumerate(file.read_text("utf-8").split("\n"), 1):
        if line.strip():
            questions.append(_parse_question(line, f"{file.name} line {number}"))
    if not questions:
        raise TrainingError(f"{file} holds no question; each line is one JSON object")
    return questions


def split_of(title: str, external_id: str, seed: int = 0) -> Split:
    """The split of a document: all documents of one title share it (SPLIT_RULE)."""
    key = f"{seed}:{title.strip() or external_id}"
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.80 else "validation" if share < 0.85 else "test"


async def build_groups(
    questions: Sequence[Question],
    search: Search,
    *,
    split: Split,
    count: int,
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> list[Group]:
    """Groups with ``count`` questions in all (fewer when the data ends), each question once, in a seeded order.

    Only passages of ``split`` are shown: no text of another split reaches a group. Raises TrainingError when the index
    holds none of the questions' documents.
    """
    chance = random.Random(f"{recipe.seed}:{split}" + (f":{recipe.order}" if recipe.order else ""))
    order = list(questions)
    chance.shuffle(order)
    by_document: dict[str, list[Question]] = defaultdict(list)
    for question in order:
        by_document[question.document_id].append(question)
    state, groups = _State(), []
    known: dict[str, Split] = {}  # of every document seen so far: a question of another split needs no search
    for seed in order:
        if state.branches >= count:
            break
        if seed.id in state.used or known.get(seed.document_id, split) != split:
            continue
        found = await search(seed.question, recipe.depth)
        known |= {each.external_id: split_of(each.title, each.external_id, recipe.seed) for each in found}
        pool = [passage for passage in found if known[passage.external_id] == split]
        group = _make_group(seed, pool, by_document, recipe, chance, state, count - state.branches)
        if group is None:
            continue
        groups.append(replace(group, split=split))
        if progress:
            progress(min(state.branches, count), count)
    if not groups:
        raise TrainingError(
            "the index holds none of these questions' documents; ingest their corpus into the collection first"
        )
    return groups


def _make_group(
    seed: Question,
    pool: list[Passage],
    by_document: Mapping[str, list[Question]],
    recipe: Recipe,
    chance: random.Random,
    state: _State,
    room: int,
) -> Group | None:
    gold = [passage for passage in pool if is_gold(seed, passage)][:1]
    if not gold:
        return None
    size = chance.choices([n for n, _ in recipe.sizes], [share for _, share in recipe.sizes])[0]
    made = _choose_made(recipe, chance, seed, state)
    shown = _choose_passages(made, gold[0], pool, size, recipe, chance, state)
    if recipe.cut and made != "gold_left_out" and _wants_refusal(recipe, state) and chance.random() < recipe.cut:
        shown = cut_answer(seed, shown) or shown
    if not shown:
        return None
    rest = [passage for passage in pool if all(passage.chunk_id != other.chunk_id for other in shown)]
    branches = _choose_branches(seed, shown, rest, by_document, recipe, state, min(room, recipe.max_branches), chance)
    if not branches:
        return None
    for branch in branches:
        state.used.add(branch.question_id)
        state.branches += 1
        state.refused += not branch.answerable
    return Group(f"g-{seed.id}", "train", made, tuple(shown), tuple(branches))


def _choose_made(recipe: Recipe, chance: random.Random, seed: Question, state: _State) -> Made:
    roll = chance.random()
    if roll < recipe.search_order:
        return "search_order"
    if seed.answerable and _wants_refusal(recipe, state) and roll < recipe.search_order + recipe.left_out:
        return "gold_left_out"
    return "shuffled"


def _wants_refusal(recipe: Recipe, state: _State) -> bool:
    return state.refused < recipe.unanswerable * (state.branches + 1)


def cut_answer(question: Question, shown: Sequence[Passage]) -> list[Passage] | None:
    """The passages with the sentence that answers taken out; None where an answer or less than half of the text is left.

    The question then differs from an answerable one in nothing but the fact itself.
    """
    cut = []
    for passage in shown:
        text = passage.text
        if question.answerable and is_gold(question, passage):
            start, end = find_evidence(text, question.question, question.answers)
            text = f"{text[:start].rstrip()} {text[end:].lstrip()}".strip()
            if 2 * len(text) < len(passage.text):
                return None
        if contains_answer(f"{passage.title} {text}", question.answers):
            return None
        cut.append(replace(passage, text=text))
    return cut if question.answerable else None


def _choose_passages(
    made: Made,
    gold: Passage,
    pool: list[Passage],
    size: int,
    recipe: Recipe,
    chance: random.Random,
    state: _State,
) -> list[Passage]:
    if made == "search_order":
        return _fit(pool[:5], recipe.max_chars)
    others = [passage for passage in pool if passage.chunk_id != gold.chunk_id]
    if made == "gold_left_out":
        return _fit([passage for passage in others if passage.external_id != gold.external_id][:size], recipe.max_chars)
    shown = _fit([gold, *others[: size - 1]], recipe.max_chars)
    rest = shown[1:]
    chance.shuffle(rest)
    place = min(range(len(shown)), key=lambda at: (state.gold_at[len(shown), at], chance.random()))
    state.gold_at[len(shown), place] += 1
    return [*rest[:place], gold, *rest[place:]]


def _fit(passages: list[Passage], max_chars: int) -> list[Passage]:
    kept: list[Passage] = []
    left = max_chars
    for passage in passages:
        left -= len(passage.text) + len(passage.title)
        if left < 0 and kept:
            break
        kept.append(passage)
    return kept


def _choose_branches(
    seed: Question,
    shown: list[Passage],
    rest: list[Passage],
    by_document: Mapping[str, list[Question]],
    recipe: Recipe,
    state: _State,
    room: int,
    chance: random.Random,
) -> list[Branch]:
    near = dict.fromkeys([seed, *_spread(shown, by_document, state.used)])
    found = [branch for question in near if (branch := answer_from(question, shown))]
    branches = found[: room // 2 + 1 if recipe.swapped else room]
    far = _spread(rest, by_document, state.used | {branch.question_id for branch in branches})
    names = [found.group() for question in far for found in _entities(question.question)]
    twins = [
        twin
        for branch in branches
        if recipe.swapped and branch.answerable and chance.random() < recipe.swapped
        if (twin := make_twin(branch, shown, names))
    ]
    left_out = (
        branch for question in far if (branch := answer_from(question, shown)) and branch.kind == "gold_left_out"
    )
    for branch in chain(twins, left_out):
        refused = state.refused + sum(not branch.answerable for branch in branches)
        if len(branches) >= room or refused >= recipe.unanswerable * (state.branches + len(branches)):
            break
        branches.append(branch)
    return branches


def make_twin(branch: Branch, shown: Sequence[Passage], names: Sequence[str]) -> Branch | None:
    """A question like the branch's that nothing shown answers: about an absent name, one of the passage, or the opposite.

    These are the commonest ways in which people wrote the adversarial questions of SQuAD 2.0 (Rajpurkar et al. 2018, table 2).
    """
    ways: tuple[Callable[[], Branch | None], ...] = (
        lambda: swap_within(branch, shown),
        lambda: turn_round(branch, shown),
        lambda: swap_entity(branch, shown, names),
    )
    first = len(branch.question) % len(ways)
    return next((twin for way in (*ways[first:], *ways[:first]) if (twin := way())), None)


def swap_within(branch: Branch, shown: Sequence[Passage]) -> Branch | None:
    """The question about another name of the gold passage, one whose sentences share no long word with the question."""
    gold = shown[branch.citations[0] - 1].text
    asked = set(re.findall(r"\w{5,}", branch.question.lower()))
    for found in _entities(branch.question):
        old, others = found.group(), asked - set(re.findall(r"\w{5,}", found.group().lower()))
        if old[0].isdigit() or not contains_answer(gold, [old]):
            continue
        for other in _ENTITY.finditer(gold):
            new = re.split(r"[.'’]", other.group())[0]  # the words of one sentence, without what follows a name
            start, end = gold.rfind(". ", 0, other.start()) + 1, gold.find(". ", other.end())
            about = gold[start : end if end >= 0 else len(gold)].lower()
            known = set(re.findall(r"\w{2,}", f"{branch.question} {' '.join(branch.answers)}".lower()))
            fresh = (
                start < other.start() - 2
                and not new[0].isdigit()
                and not known & set(re.findall(r"\w{2,}", new.lower()))
            )
            if fresh and not any(word in about for word in others):
                return _twin(branch, found.span(), new, "entity_swapped")
    return None


def turn_round(branch: Branch, shown: Sequence[Passage]) -> Branch | None:
    """The question with one word turned into its opposite, which the gold passage does not hold."""
    gold = shown[branch.citations[0] - 1].text.lower()
    rare = _DENIALS if len(branch.question) % 4 == 0 else ()  # else almost all twins would be denials
    for pair in (*_OPPOSITES, *rare):
        for old, new in (pair, pair[::-1]):
            found = re.search(rf"\b{old}\b", branch.question)
            if found and not re.search(rf"\b{new}\b", gold):
                return _twin(branch, found.span(), new, "opposite")
    return None


def _twin(branch: Branch, span: tuple[int, int], new: str, kind: Kind) -> Branch:
    question = branch.question[: span[0]] + new + branch.question[span[1] :]
    return Branch(f"{branch.question_id}~{new}", question, branch.document_id, kind, (), ())


def swap_entity(branch: Branch, shown: Sequence[Passage], names: Sequence[str]) -> Branch | None:
    """The question about another name or year, of a near document, that no shown passage mentions: nothing answers it.

    Beside its twin it differs in one word and in the verdict, as the adversarial questions of SQuAD 2.0 do.
    """
    gold = shown[branch.citations[0] - 1]
    turn = len(branch.question) % max(1, len(names))  # not the same name for all twins of a group
    for found in _entities(branch.question):
        old = found.group()
        for new in (*names[turn:], *names[:turn]):
            same_kind = new[0].isdigit() == old[0].isdigit()
            absent = not any(contains_answer(f"{passage.title} {passage.text}", [new]) for passage in shown)
            if same_kind and absent and normalise_answer(new) and contains_answer(f"{gold.title} {gold.text}", [old]):
                return _twin(branch, found.span(), new, "entity_swapped")
    return None


def _entities(question: str) -> list[re.Match[str]]:
    return [found for found in _ENTITY.finditer(question) if found.start()]


def _spread(passages: Iterable[Passage], by_document: Mapping[str, list[Question]], used: set[str]) -> list[Question]:
    """Unused questions of the passages' documents, two rounds: first one of each document, then one more."""
    queues = [
        [question for question in by_document.get(document, ()) if question.id not in used]
        for document in dict.fromkeys(passage.external_id for passage in passages)
    ]
    return [queue[turn] for turn in range(2) for queue in queues if turn < len(queue)]


def answer_from(question: Question, shown: Sequence[Passage]) -> Branch | None:
    """The right answer to ``question`` from these passages, or None when it cannot be told for certain."""
    numbers = [number for number, passage in enumerate(shown, 1) if is_gold(question, passage)]
    own = any(passage.external_id == question.document_id for passage in shown)
    if question.answerable and numbers:
        return Branch(
            question.id,
            question.question,
            question.document_id,
            "answerable",
            tuple(numbers[:1]),
            question.answers,
            quote_for(question, shown[numbers[0] - 1].text),
        )
    if not question.answerable:
        return Branch(question.id, question.question, question.document_id, "unanswerable", (), ()) if own else None
    if any(contains_answer(f"{passage.title} {passage.text}", question.answers) for passage in shown):
        return None
    kind: Kind = "sentence_cut" if own else "gold_left_out"
    return Branch(question.id, question.question, question.document_id, kind, (), question.answers)


def quote_for(question: Question, text: str) -> str:
    """The words of the text that answer, verbatim: the answer with the rest of its clause, as far as that is near.

    Short, because a small model that copies a long sentence leaves it; without quotation marks where the answer has none,
    because it forgets to escape them.
    """
    start, end = find_evidence(text, question.question, question.answers)
    sentence = text[start:end]
    spoken = ((sentence.lower().find(answer.lower()), len(answer)) for answer in question.answers)
    at, size = next((found for found in spoken if found[0] >= 0), (0, len(sentence)))
    marks = [0, *(found.end() for found in _CLAUSE.finditer(sentence)), len(sentence)]
    left = max(mark for mark in marks if mark <= at)
    right = min(mark for mark in marks if mark >= at + size)
    if at - left > _BEFORE:
        left = sentence.find(" ", at - _BEFORE, at) + 1 or at
    if right - at - size > _AFTER:
        right = sentence.rfind(" ", at + size, at + size + _AFTER + 1)
        right = right if right >= 0 else at + size
    quote = sentence[left:right].strip(' ,;:–—("')
    return quote if contains_answer(quote, question.answers) else sentence


def find_evidence(text: str, question: str, answers: Sequence[str]) -> tuple[int, int]:
    """Span of the sentence that holds the first answer, of several the one that shares most words with the question."""
    wanted = set(normalise_answer(question).split())
    best, most, at = best_sentence(text, answers[0]), -1, 0
    while at < len(text):
        start, end = (at + place for place in best_sentence(text[at:], answers[0]))
        if end <= at or not contains_answer(text[start:end], answers):
            break
        shared = len(wanted & set(normalise_answer(text[start:end]).split()))
        if shared > most:
            best, most = (start, end), shared
        at = end
    return best


def is_gold(question: Question, passage: Passage) -> bool:
    """True when the passage is of the question's document and holds an answer (if it has any)."""
    own = passage.external_id == question.document_id
    return own and (not question.answerable or contains_answer(passage.text, question.answers))


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """True when an answer occurs in the text, word by word, after normalisation."""
    words = f" {normalise_answer(text)} "
    return any(f" {normalised} " in words for answer in answers if (normalised := normalise_answer(answer)))


def normalise_answer(text: str) -> str:
    """Lower case without punctuation, articles and extra blanks (the normalisation of SQuAD's evaluate-v2.0.py)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def summarise(groups: Iterable[Group]) -> dict[str, Any]:
    """Counts for the manifest: groups, questions, passages, kinds, ways of making, gold positions."""
    groups = list(groups)
    branches = [(group, branch) for group in groups for branch in group.branches]
    gold = Counter(f"{branch.citations[0]} of {len(group.passages)}" for group, branch in branches if branch.citations)
    return {
        "groups": len(groups),
        "questions": len(branches),
        "passages": len({passage.chunk_id for group in groups for passage in group.passages}),
        "documents": len({passage.external_id for group in groups for passage in group.passages}),
        "kinds": dict(sorted(Counter(branch.kind for _, branch in branches).items())),
        "made": dict(sorted(Counter(group.made for group in groups).items())),
        "gold_position": dict(sorted(gold.items())),
    }


def write_groups(groups: Iterable[Group], file: Path) -> str:
    """Writes groups as JSONL, each with its origin, and returns the sha256 of the file's bytes."""
    lines = [json.dumps(_group_json(group), ensure_ascii=False, sort_keys=True) for group in groups]
    content = ("\n".join(lines) + "\n").encode()
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_groups(file: Path) -> Iterator[Group]:
    """The groups of a file made by ``write_groups``."""
    for line in filter(None, file.read_text("utf-8").split("\n")):
        item = json.loads(line)
        passages = tuple(_parse_passage(passage) for passage in item["passages"])
        branches = tuple(
            Branch(**{**branch, "citations": tuple(branch["citations"]), "answers": tuple(branch["answers"])})
            for branch in item["branches"]
        )
        yield Group(item["id"], item["split"], item["made"], passages, branches)


def _group_json(group: Group) -> dict[str, Any]:
    passages = [
        {
            "chunk_id": passage.chunk_id,
            "document_id": passage.document_id,
            "external_id": passage.external_id,
            "version": passage.version,
            "title": passage.title,
            "heading_path": list(passage.heading_path),
            "text": passage.text,
        }
        for passage in group.passages
    ]
    branches = [asdict(branch) for branch in group.branches]
    return {"id": group.id, "split": group.split, "made": group.made, "passages": passages, "branches": branches}


def _parse_passage(item: Mapping[str, Any]) -> Passage:
    values = {**item, "heading_path": tuple(item["heading_path"])}
    return Passage(span=(0, len(item["text"])), paragraph=0, score=0.0, **values)


def _parse_question(line: str, where: str) -> Question:
    try:
        item = json.loads(line)
        answers = tuple(str(answer) for answer in item["answers"])
        question = Question(
            str(item["id"]), str(item["question"]), str(item["document_id"]), bool(item["answerable"]), answers
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f'{where} is not {{"id", "question", "document_id", "answerable", "answers"}}: {error}'
        ) from error
    if question.answerable != bool(answers):
        raise TrainingError(f"{where}: an answerable question needs answers, an unanswerable one has none")
    return question
