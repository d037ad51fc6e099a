"""Reads questions of many forms into a set, and writes results back out; a row that cannot be read is a fault, never lost.

Forms: our own JSONL (below), SQuAD's JSON, a folder with ``questions.jsonl``, a BEIR folder, rows of ragas and deepeval. Ours has
``question`` and one or more of ``answers``, ``gold`` (objects as ``Gold``), ``document_id``, ``contains``, ``pattern``, ``route``,
``answerable: false``; and ``id``, ``as_of``, ``tags``, ``synthetic``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.evaluation.items import Fault, Gold, Item, ItemSet, Outcome, Score
from orchestrator.evaluation.metrics import rank_documents
from orchestrator.evaluation.score import check_pattern, spoken
from orchestrator.evaluation.sets import QRELS
from orchestrator.types import end_of

# Names by which the field calls the same thing; the first that is there counts. `contexts` and `retrieved_contexts` of ragas,
# `retrieval_context` of deepeval, are what some system found once: no gold, so they are not read.
QUESTION = ("question", "user_input", "input", "query", "text")
ANSWERS = ("answers", "answer", "ground_truths", "ground_truth", "reference", "expected_output")
QUOTES = ("reference_contexts", "context")
DOCUMENTS = ("documents", "document_id", "document", "relevant", "reference_context_ids")
MAX_REASON = 120
Read = Iterator[tuple[int, Item | str]]  # line or place from 1, with the item or what is wrong


def read_items(path: str | Path) -> ItemSet:
    """The set in a file or folder. Rows that cannot be used become its faults. Raises InputError when it has no row at all."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no evaluation set {str(path)!r}", param="set")
    rows = list(_read_folder(path) if path.is_dir() else _read_file(path))
    items: dict[str, Item] = {}
    faults = []
    for number, found in rows:
        problem = found if isinstance(found, str) else _problem(found, items)
        if problem:
            faults.append(Fault(number, problem[:MAX_REASON]))
        elif isinstance(found, Item):
            items[found.id] = found
    if not items and not faults:
        raise InputError(
            f"{path} has no question: each line is an object with `question` and what is right", param="set"
        )
    return ItemSet(path.stem if path.is_file() else path.name, tuple(items.values()), tuple(faults))


def _problem(item: Item, known: Mapping[str, Item]) -> str:
    """Why the item cannot join those known; empty when it can."""
    if item.id in known:
        return "an id that another row has"
    if "\0" in item.id:
        return "an id with a NUL in it"
    try:
        json.dumps(item_row(item), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # JSON may escape what no file and no database can hold
        return "half of a character: a surrogate without its pair"
    return ""


def item_row(item: Item) -> dict[str, Any]:
    """The item as one line of our JSONL, without what it says nothing of."""
    gold = [
        {"external_id": each.external_id, "version": each.version, "quote": each.quote, "grade": each.grade}
        for each in item.gold
    ]
    row = {
        "id": item.id,
        "question": item.question,
        "answers": list(item.answers),
        "gold": [{name: value for name, value in each.items() if value not in (None, "", 1.0)} for each in gold],
        "contains": list(item.contains),
        "pattern": item.pattern,
        "route": item.route,
        "as_of": item.as_of and item.as_of.isoformat(),
        "tags": list(item.tags),
        "synthetic": item.synthetic,
    }
    kept = {name: value for name, value in row.items() if value}
    return kept if item.answerable else {**kept, "answerable": False}


def write_items(items: Iterable[Item], path: Path) -> None:
    """Writes a set as our JSONL, which ``read_items`` reads back."""
    path.write_text("".join(json.dumps(item_row(item), ensure_ascii=False) + "\n" for item in items), "utf-8")


def result_row(item: Item, outcome: Outcome, score: Score) -> dict[str, Any]:
    """One result under the names that ragas (``user_input``...) and deepeval (``input``...) read, and our own score."""
    said, accepted = spoken(outcome), item.answers[0] if item.answers else ""
    shown = [passage.text for passage in outcome.passages]
    quotes = [gold.quote for gold in item.gold if gold.quote]
    return {
        "id": item.id,
        "user_input": item.question,
        "response": said,
        "reference": accepted,
        "retrieved_contexts": shown,
        "reference_contexts": quotes,
        "input": item.question,
        "actual_output": said,
        "expected_output": accepted,
        "retrieval_context": shown,
        "context": quotes,
        "answerable": item.answerable,
        "refused": outcome.refused,
        "error": outcome.error,
        "cited": [list(each) for each in outcome.cited],
        "correct": score.correct,
        "reason": score.reason,
        "tags": list(item.tags),
    }


def write_results(found: ItemSet, outcomes: Mapping[str, Outcome], scores: Mapping[str, Score], path: Path) -> int:
    """Writes one JSON line for each row of the set, what was not asked or could not be read as an error; returns how many.

    Whoever averages over the lines gets our share of right answers.
    """
    rows = [
        result_row(item, outcomes[item.id], scores[item.id])
        if item.id in outcomes
        else result_row(item, Outcome(item.id, error="not asked"), Score(0.0, reason="not asked"))
        for item in found.items
    ]
    for fault in found.faults:
        nothing = Outcome(f"row {fault.number}", error=f"no question: {fault.reason}")
        rows.append(result_row(Item(nothing.item, ""), nothing, Score(0.0, reason=fault.reason)))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return len(rows)


def write_trec(found: ItemSet, outcomes: Mapping[str, Outcome], tag: str, folder: Path) -> int:
    """Writes ``run.txt`` and ``qrels.txt`` as trec_eval reads them into a folder; returns the questions with gold documents.

    A document stands where its best passage stands. Scores are 1 / rank: trec_eval sorts by them. Blanks in ids become "_".
    """
    ranked, judged = [], []
    wanted = [item for item in found.items if any(gold.external_id for gold in item.gold)]
    for item in wanted:
        grades = {gold.external_id: gold.grade for gold in item.gold if gold.external_id}
        judged += [f"{_token(item.id)} 0 {_token(name)} {grade:g}" for name, grade in grades.items()]
        shown = outcomes[item.id].passages if item.id in outcomes else ()
        names = rank_documents(passage.external_id for passage in shown)
        ranked += [
            f"{_token(item.id)} Q0 {_token(name)} {rank} {1 / rank:.6f} {_token(tag)}"
            for rank, name in enumerate(names, 1)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("run.txt", ranked), ("qrels.txt", judged)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return len(wanted)


def _token(text: str) -> str:
    return re.sub(r"\s+", "_", text) or "_"


def parse_item(row: Any, number: int) -> Item:
    """One row of ours, ragas or deepeval. Raises InputError that says what is wrong with it."""
    if not isinstance(row, dict):
        raise InputError("no JSON object")
    question = _first(row, QUESTION)
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"no question: one of {', '.join(QUESTION)}")
    pattern = _text(row, "pattern")
    if pattern:
        check_pattern(pattern)
    item = Item(
        id=str(_first(row, ("id", "_id")) or number),
        question=question,
        answers=_texts(_first(row, ANSWERS), "answers"),
        answerable=_flag(row, "answerable", True),
        gold=tuple(_gold(row)),
        contains=_texts(row.get("contains"), "contains"),
        pattern=pattern,
        route=_text(row, "route") or None,
        as_of=_moment(row.get("as_of")),
        tags=_texts(row.get("tags"), "tags"),
        synthetic=_flag(row, "synthetic", False),
    )
    if item.answerable and not (item.answers or item.gold or item.contains or item.pattern):
        raise InputError("nothing to judge it by: an answer, a gold document, an assertion, or answerable false")
    return item


def _read_folder(folder: Path) -> Read:
    if (folder / "questions.jsonl").is_file():
        return _read_rows(folder / "questions.jsonl")
    if (folder / "queries.jsonl").is_file():
        return _read_beir(folder)
    files = sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])
    files = [file for file in files if file.name != "corpus.jsonl"]
    if len(files) == 1:
        return _read_file(files[0])
    raise InputError(
        f"{folder} is no evaluation set: it needs questions.jsonl, or queries.jsonl with qrels.tsv, or one file of questions",
        param="set",
    )


def _read_file(file: Path) -> Read:
    if file.suffix != ".json":
        return _read_rows(file)
    try:
        whole = json.loads(_content(file))
    except (ValueError, RecursionError) as error:
        return iter([(1, f"no JSON: {error}")])
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        return _read_squad(whole["data"])
    for name in ("rows", "samples", "test_cases", "goldens", "examples"):
        if isinstance(whole, dict) and isinstance(whole.get(name), list):
            whole = whole[name]
    rows = whole if isinstance(whole, list) else [whole]
    return ((number, _tried(parse_item, row, number)) for number, row in enumerate(rows, 1))


def _read_rows(file: Path) -> Read:
    for number, line in enumerate(_content(file).split("\n"), 1):  # not splitlines(): a JSON string may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "no JSON"
            continue
        yield number, _tried(parse_item, row, number)


def _read_squad(articles: Sequence[Any]) -> Read:
    """Each paragraph is a document under the id that ``sets.load_set`` gives it."""
    number = 0
    for article_at, article in enumerate(articles):
        for place, paragraph in enumerate(_parts(article, "paragraphs")):
            for row in _parts(paragraph, "qas"):
                number += 1
                yield number, _tried(_squad_item, row, f"{article_at:04d}-{place:03d}")


def _parts(whole: Any, name: str) -> Sequence[Any]:
    """The list under the name; what should have one and has something else is one row that cannot be read."""
    found = whole.get(name, []) if isinstance(whole, dict) else None
    return found if isinstance(found, list) else [None]


def _squad_item(row: Any, document: str) -> Item:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise InputError("no question")
    found = row.get("answers") or ()
    answers = tuple(dict.fromkeys(str(each["text"]) for each in found if isinstance(each, dict) and each.get("text")))
    name = str(row.get("id") or f"{document}:{row['question']}")
    if row.get("is_impossible"):
        return Item(name, row["question"], answerable=False)
    if not answers:
        raise InputError("no answer, and not marked as impossible")
    return Item(name, row["question"], answers, gold=(Gold(document),))


def _read_beir(folder: Path) -> Read:
    """Queries with the documents that they are judged to find, and no answers; those without a judgement are of another split."""
    file = next((folder / name for name in QRELS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} has queries.jsonl and no judgements: one of {', '.join(QRELS)}", param="set")
    gold: dict[str, list[Gold]] = {}
    lines: dict[str, int] = {}
    faults = []
    for number, line in enumerate(_content(file).splitlines(), 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not cells or (number == 1 and cells[0] == "query-id"):
            continue
        try:
            query, document, grade = cells if len(cells) == 3 else (cells[0], *cells[2:])
            if float(grade) > 0:
                gold.setdefault(query.strip(), []).append(Gold(document.strip(), grade=float(grade)))
                lines.setdefault(query.strip(), number)
        except ValueError:
            faults.append((number, f"{file.name}: no judgement of query, document and grade"))
    yield from faults
    broken = 0
    for number, line in enumerate(_content(folder / "queries.jsonl").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = str(_first(row, ("_id", "id")))
            if name in gold:
                yield number, Item(name, str(row["text"]), gold=tuple(gold[name]))
                lines.pop(name, None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            broken += 1
            yield number, "queries.jsonl: no object with _id and text"
    # Judged and not asked: the rows that could not be read may be some of them, and count once.
    for name, number in [*lines.items()][broken:]:
        yield number, f"{file.name}: query {name[:40]!r} is judged and not in queries.jsonl"


def _gold(row: Mapping[str, Any]) -> Iterator[Gold]:
    listed = row.get("gold") or ()
    for each in [listed] if isinstance(listed, str | dict) else listed:
        if isinstance(each, str):
            yield Gold(each)
            continue
        if not isinstance(each, dict) or not (each.get("external_id") or each.get("quote")):
            raise InputError("gold is a list of objects with external_id or quote, and version, grade")
        version = each.get("version")
        if version is not None and not isinstance(version, int):
            raise InputError("the version of a gold document is a whole number")
        yield Gold(
            str(each.get("external_id") or ""), version, str(each.get("quote") or ""), _number(each.get("grade", 1.0))
        )
    if listed:
        return
    named = _first(row, DOCUMENTS)
    if isinstance(named, dict):
        yield from (Gold(str(name), grade=_number(grade)) for name, grade in named.items() if _number(grade) > 0)
    elif named is not None:
        yield from (Gold(str(name)) for name in (named if isinstance(named, list) else [named]))
    else:
        for quote in _texts(_first(row, QUOTES), "the contexts"):
            yield Gold("", quote=quote)


def _tried(parse: Callable[..., Item], *arguments: Any) -> Item | str:
    try:
        return parse(*arguments)
    except OrchestratorError as error:
        return error.message
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _content(file: Path) -> str:
    """The text; bytes that are no UTF-8 spoil their own row only."""
    try:
        return file.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error}", param="set") from error


def _first(row: Any, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "", [], {})), None)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} is a text")
    return value or ""


def _texts(value: Any, name: str) -> tuple[str, ...]:
    """One text or a list; numbers count as texts, as a set may give 25 as an answer."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str | int | float) for each in listed):
        raise InputError(f"{name} is a text or a list of texts")
    return tuple(dict.fromkeys(str(each) for each in listed if str(each).strip()))


def _flag(row: Mapping[str, Any], name: str, default: bool) -> bool:
    value = row.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{name} is true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("a grade is a number")
    return float(value)


def _moment(value: Any) -> Any:
    try:
        return end_of(value) if value else None
    except (ValueError, TypeError):
        raise InputError(f"as_of {str(value)[:40]!r} is no date") from None


def sample(found: ItemSet, count: int) -> ItemSet:
    """The first ``count`` items in an order that depends on their ids alone: a larger sample holds the smaller one."""
    chosen = sorted(found.items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:count]
    kept = {item.id for item in chosen}
    return replace(found, items=tuple(item for item in found.items if item.id in kept))
