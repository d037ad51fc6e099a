"""Reads evaluation sets: documents, questions, and which documents answer each question.

Layouts: a BEIR folder (``corpus.jsonl``, ``queries.jsonl``, ``qrels.tsv`` or ``qrels/test.tsv``), a folder with ``corpus.jsonl``
and ``questions.jsonl``, one ``.jsonl`` of questions over documents that are indexed already, and SQuAD's JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.types import Document, Passage, end_of

QRELS = ("qrels.tsv", "qrels/test.tsv", "qrels/dev.tsv", "qrels/train.tsv")  # the first that is there
HEADER = ("query-id", "corpus-id", "score")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the grade of every relevant document, by the document's external id; grades are above zero.

    ``answers``: right answers, word for word, where the set knows them.
    """

    id: str
    text: str
    relevant: Mapping[str, float]
    as_of: datetime | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalSet:
    """A named evaluation set. ``documents`` is empty when the set is about documents that are indexed already.

    ``skipped``: questions without any relevant document (unanswerable, not judged), which say nothing about a ranking.
    ``missing``: judged documents that the corpus lacks; they are left out, as nothing could find them.
    """

    name: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    skipped: int = 0
    missing: int = 0

    @property
    def sha256(self) -> str:
        """Hash of questions and judgements: names the set in what was learnt from it."""
        rows = sorted(
            [q.id, q.text, *sorted(f"{name}={grade:g}" for name, grade in q.relevant.items())] for q in self.questions
        )
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def sample(self, count: int, seed: int = 0) -> EvalSet:
        """The same set with ``count`` of its questions, drawn with this seed; all of them when there are fewer."""
        if count >= len(self.questions):
            return self
        drawn = random.Random(seed).sample(range(len(self.questions)), count)
        return replace(self, questions=tuple(self.questions[place] for place in sorted(drawn)))


def load_set(path: str | Path) -> EvalSet:
    """The set in a folder or file, whichever layout it has. Raises InputError, naming file and line."""
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise InputError(f"there is no evaluation set {str(path)!r}", param="set")
    if path.suffix == ".json":
        return _load_squad(path)
    return _with_questions(path.stem, (), *_asked(path))


class Neighbours:
    """Passages for the questions of a set with documents of its own, chosen without an index."""

    def __init__(self, found: EvalSet) -> None:
        self._documents = found.documents
        self._words = [set(f"{each.title} {each.text}".casefold().split()) for each in found.documents]
        counts = Counter(word for words in self._words for word in words)
        self._rarity = {word: math.log(len(self._words) / count) for word, count in counts.items()}
        self._places = {document.external_id: place for place, document in enumerate(found.documents)}

    def passages(self, question: Question, k: int) -> list[Passage]:
        """A relevant document among the k - 1 others that share most rare words with the question.

        Its place follows from the question's id, so that it is not always the first.
        """
        gold = min((self._places[name] for name in question.relevant if name in self._places), default=None)
        if gold is None:
            return []
        asked = set(question.text.casefold().split()) & self._rarity.keys()
        others = sorted(
            (place for place, each in enumerate(self._documents) if each.external_id not in question.relevant),
            key=lambda place: -sum(self._rarity[word] for word in asked & self._words[place]),
        )[: k - 1]
        at = int.from_bytes(hashlib.sha256(question.id.encode()).digest()[:4], "big") % (len(others) + 1)
        shown = [self._documents[place] for place in (*others[:at], gold, *others[at:])]
        return [
            Passage(-number, "", each.external_id, 1, each.title, each.text, (0, len(each.text)), 0, 0.0)
            for number, each in enumerate(shown, 1)
        ]


def _load_folder(folder: Path) -> EvalSet:
    if (folder / "corpus.jsonl").is_file():
        documents = _documents(folder / "corpus.jsonl")
        if (folder / "queries.jsonl").is_file():
            return _with_questions(folder.name, documents, *_judged(folder))
        if (folder / "questions.jsonl").is_file():
            return _with_questions(folder.name, documents, *_asked(folder / "questions.jsonl"))
    files = sorted(folder.glob("*.json"))
    if len(files) == 1:
        return _load_squad(files[0])
    if files:
        raise InputError(f"{folder} holds {len(files)} sets: name one of {', '.join(file.name for file in files)}")
    if (folder / "questions.jsonl").is_file():
        return _with_questions(folder.name, (), *_asked(folder / "questions.jsonl"))
    raise InputError(
        f"{folder} is no evaluation set: it needs corpus.jsonl with queries.jsonl and qrels.tsv, or questions.jsonl, "
        "or one .json of SQuAD's form",
        param="set",
    )


def _with_questions(name: str, documents: tuple[Document, ...], questions: Sequence[Question], skipped: int) -> EvalSet:
    """The set, with what its documents and its judgements have in common. Raises InputError when that is nothing."""
    _refuse_twice(name, "question", [question.id for question in questions])
    _refuse_twice(name, "document", [document.external_id for document in documents])
    missing: set[str] = set()
    if documents:
        there = {document.external_id for document in documents}
        missing = {name for question in questions for name in question.relevant} - there
        kept = [replace(q, relevant={i: g for i, g in q.relevant.items() if i in there}) for q in questions]
        questions = [question for question in kept if question.relevant]
        skipped += len(kept) - len(questions)
    if not questions:
        raise InputError(f"no question of {name} has a relevant document: there is nothing to measure", param="set")
    return EvalSet(name, documents, tuple(questions), skipped, len(missing))


def _refuse_twice(name: str, what: str, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise InputError(f"{name} holds two {what}s with the id {each!r}")
        seen.add(each)


def _documents(file: Path) -> tuple[Document, ...]:
    """One document per line; a title alone is text, and what has neither could not be found by anything."""
    return tuple(
        Document(
            external_id=_text(row, where, "_id", "id"),
            title=str(row.get("title") or ""),
            text=str(row.get("text") or row["title"]),
            source=f"{file.parent.name}/{file.name}",
            metadata=row["metadata"] if isinstance(row.get("metadata"), dict) else {},
        )
        for where, row in _rows(file)
        if row.get("text") or row.get("title")
    )


def _judged(folder: Path) -> tuple[list[Question], int]:
    """BEIR: questions and judgements in two files."""
    file = next((folder / name for name in QRELS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} has queries.jsonl and no judgements: one of {', '.join(QRELS)}", param="set")
    grades: dict[str, dict[str, float]] = {}
    for query, document, grade in _judgements(file):
        if grade > 0:
            grades.setdefault(query, {})[document] = grade
    rows = [
        (_text(row, where, "_id", "id"), _text(row, where, "text")) for where, row in _rows(folder / "queries.jsonl")
    ]
    questions = [Question(name, text, grades[name]) for name, text in rows if name in grades]
    # BEIR folders hold the queries of all splits: only those that this file judges belong to the set.
    return questions, len({row[0] for row in _judgements(file)} - grades.keys())


def _judgements(file: Path) -> Iterator[tuple[str, str, float]]:
    """Rows ``query document grade``, or the four columns of TREC (``query iteration document grade``)."""
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not cells or (number == 1 and cells[0] == HEADER[0]):
            continue
        try:
            query, document, grade = cells if len(cells) == 3 else (cells[0], *cells[2:])
            yield query.strip(), document.strip(), float(grade)
        except ValueError:
            raise InputError(f"{file}:{number} is no judgement: it needs {', '.join(HEADER)}") from None


def _asked(file: Path) -> tuple[list[Question], int]:
    """One line per question, which names its document itself."""
    questions = []
    rows = list(_rows(file))
    for where, row in rows:
        named = row.get("documents") or row.get("document_id") or row.get("document") or row.get("relevant")
        if not named or row.get("answerable") is False:
            continue
        questions.append(
            Question(
                id=str(row.get("id") or where.rpartition(":")[2]),
                text=_text(row, where, "question", "text"),
                relevant=_grades(named, where),
                as_of=_moment(row.get("as_of"), where),
                answers=tuple(str(answer) for answer in row.get("answers") or () if isinstance(answer, str)),
            )
        )
    return questions, len(rows) - len(questions)


def _grades(named: Any, where: str) -> dict[str, float]:
    if isinstance(named, str | int):
        return {str(named): 1.0}
    if isinstance(named, list):
        return {str(name): 1.0 for name in named}
    if isinstance(named, dict) and all(isinstance(grade, int | float) for grade in named.values()):
        return {str(name): float(grade) for name, grade in named.items() if grade > 0}
    raise InputError(f"{where}: the relevant documents are an id, a list of ids, or an object of id and grade")


def _moment(value: Any, where: str) -> datetime | None:
    try:
        return end_of(value) if value else None
    except (ValueError, TypeError):
        raise InputError(f"{where}: as_of {value!r} is no date") from None


def _load_squad(file: Path) -> EvalSet:
    """SQuAD's form: each paragraph is a document, and what its questions are to find."""
    texts: dict[str, Document] = {}
    questions: dict[str, Question] = {}
    skipped = 0
    for article, place, paragraph in _paragraphs(file):
        text = paragraph["context"]
        title = str(article.get("title") or "").replace("_", " ")
        document = texts.setdefault(text, Document(place, title, text, file.name))
        for row in paragraph["qas"]:
            if row.get("is_impossible") or not row.get("answers"):
                skipped += 1
                continue
            answers = tuple(dict.fromkeys(str(answer["text"]) for answer in row["answers"]))
            asked = Question(str(row["id"]), row["question"], {document.external_id: 1.0}, answers=answers)
            found = questions.setdefault(asked.id, asked)
            if found.text == asked.text and found is not asked:  # the same question over a paragraph that stands twice
                questions[asked.id] = replace(found, relevant={**found.relevant, **asked.relevant})
    return _with_questions(file.stem, tuple(texts.values()), list(questions.values()), skipped)


def _paragraphs(file: Path) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    try:
        for number, article in enumerate(json.loads(file.read_text("utf-8-sig"))["data"]):
            for place, paragraph in enumerate(article["paragraphs"]):
                yield article, f"{number:04d}-{place:03d}", paragraph
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no evaluation set of SQuAD's form: {type(error).__name__} {error}") from error


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSONL file, each with ``file:line``."""
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}:{number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{file}:{number} is no JSON object")
        yield f"{file}:{number}", row


def _lines(file: Path) -> Iterable[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:  # not splitlines(): a JSON string may hold U+2028
            yield from lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error


def _text(row: Mapping[str, Any], where: str, *names: str) -> str:
    for name in names:
        if row.get(name) not in (None, ""):
            return str(row[name])
    raise InputError(f"{where} has no {' or '.join(names)}")
