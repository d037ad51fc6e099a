"""Rows: training and evaluation examples of any contract, one JSON line each; every row keeps where it came from.

``{"id", "input", "passages": [{"text", "title", "id"}], "output": object or text, "kind", "origin": {"source", ...}}``; a line
in the chat format of OpenAI or LangChain (``{"messages": [...]}``) is read as a row too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.behaviour.examples import Branch, Group, Question, Split, answer_from
from orchestrator.contract import Contract
from orchestrator.errors import ContractError, TrainingError
from orchestrator.types import Passage

SOURCES = ("file", "chat", "eval", "ledger", "distilled", "builder")
MAX_BRANCHES = 4  # rows without passages share no more than the prompt: this many make one training sequence
_USER = frozenset({"user", "human"})
_ASSISTANT = frozenset({"assistant", "ai"})
_SYSTEM = frozenset({"system", "developer"})
_SHOWN_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One example. ``output``: the object or text that a right answer is, None while nobody has written it.

    ``origin`` names its ``source`` and whatever leads back to it. ``number``: its line in the file, from 1.
    """

    id: str
    input: str
    passages: tuple[Passage, ...] = ()
    output: Mapping[str, Any] | str | None = None
    kind: str = ""
    origin: Mapping[str, Any] = field(default_factory=lambda: {"source": "file"})
    number: int = 0

    @property
    def source(self) -> str:
        """Where it came from: one of SOURCES."""
        return str(self.origin["source"])

    @property
    def documents(self) -> tuple[str, ...]:
        """External ids of its passages' documents, each once."""
        return tuple(dict.fromkeys(passage.external_id for passage in self.passages if passage.external_id))

    def target(self, contract: Contract) -> str:
        """The exact text that the model shall write. Raises ContractError when there is none or it breaks the contract."""
        if self.output is None:
            raise ContractError("it has no output; `orchestrator data distill` lets a stronger model write one")
        data = contract.parse_output(self.output if isinstance(self.output, str) else contract.dump(self.output))
        if isinstance(self.output, Mapping) and self.output.keys() - data.keys():
            raise ContractError(f"contract {contract.name!r} has no field {min(self.output.keys() - data.keys())!r}")
        return contract.dump(data)

    def to_json(self) -> dict[str, Any]:
        """The row as a line of a file."""
        return {
            "id": self.id,
            "input": self.input,
            "passages": [_passage_json(passage) for passage in self.passages],
            "output": self.output,
            "kind": self.kind,
            "origin": dict(self.origin),
        }


def read_rows(file: Path) -> list[Row]:
    """All rows of a file. Raises TrainingError that names the first bad lines, or the file when it holds no row."""
    rows, faults = scan_rows(file)
    if faults:
        said = "; ".join(f"line {number}: {fault}" for number, fault in faults[:_SHOWN_FAULTS])
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise TrainingError(f"{file.name}: {said}{more}")
    if not rows:
        raise TrainingError(f"{file} holds no row; each line is one JSON object with input and output, or messages")
    return rows


def scan_rows(file: Path) -> tuple[list[Row], list[tuple[int, str]]]:
    """The rows that can be read, and of the other lines number and fault. Raises TrainingError without such a file."""
    rows: list[Row] = []
    faults: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"cannot read {file}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): a JSON string may hold U+2028
        if not line.strip():
            continue
        try:
            row = parse_row(json.loads(line, parse_constant=_refuse_constant), number)
        except (ValueError, RecursionError) as error:
            faults.append((number, str(error)))
            continue
        if row.id in seen:
            faults.append((number, f"line {seen[row.id]} has the id {row.id!r} already"))
            continue
        seen[row.id] = number
        rows.append(row)
    return rows, faults


def is_rows(file: Path) -> bool:
    """True when the first line is a row, and not a question for the builder of examples."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        item = json.loads(first)
    except ValueError:
        return False
    return isinstance(item, dict) and bool(item.keys() & {"input", "messages"})


def parse_row(item: Any, number: int = 0) -> Row:
    """A row from one parsed line. Raises ValueError that says what is wrong with it."""
    if not isinstance(item, dict):
        raise ValueError("is no JSON object")
    if "messages" in item:
        return _parse_chat(item, number)
    unknown = item.keys() - {"id", "input", "passages", "output", "kind", "origin"}
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}; a row has id, input, passages, output, kind and origin")
    asked, output, origin = item.get("input"), item.get("output"), item.get("origin", {"source": "file"})
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError("input must be a text that is not empty")
    if not isinstance(output, dict | str | None):
        raise ValueError("output must be an object or a text")
    if not isinstance(origin, dict) or origin.get("source") not in SOURCES:
        raise ValueError(f"origin must be an object whose source is one of {', '.join(SOURCES)}")
    shown = item.get("passages", [])
    if not isinstance(shown, list):
        raise ValueError("passages must be a list")
    passages = tuple(_parse_passage(each, place) for place, each in enumerate(shown, 1))
    return Row(
        str(item.get("id") or f"row-{number}"), asked, passages, output, str(item.get("kind") or ""), origin, number
    )


def _parse_chat(item: Mapping[str, Any], number: int) -> Row:
    """The single exchange of a conversation; the system message is left out, as the prompt of the route takes its place."""
    messages = item["messages"]
    if not isinstance(messages, list):
        raise ValueError("messages must be a list")
    turns = [_parse_turn(message) for message in messages]
    said = [(role, text) for role, text in turns if role not in _SYSTEM]
    roles = ["user" if role in _USER else "assistant" if role in _ASSISTANT else role for role, _ in said]
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(f"a row is one question and one answer; this conversation has {', '.join(roles) or 'neither'}")
    if not said[0][1].strip():
        raise ValueError("the user's message is empty")
    origin: dict[str, Any] = {"source": "chat"}
    if len(said) < len(turns):
        system = "\n".join(text for role, text in turns if role in _SYSTEM)
        origin["system_sha256"] = hashlib.sha256(system.encode()).hexdigest()
    output = said[1][1] if len(said) > 1 else None
    kind = str(item.get("kind") or "")
    return Row(str(item.get("id") or f"row-{number}"), said[0][1], (), output, kind, origin, number)


def _parse_turn(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise ValueError("a message must be an object with role and content")
    inner = message.get("data") if isinstance(message.get("data"), dict) else message  # LangChain's messages_to_dict
    content = inner.get("content") if isinstance(inner, dict) else None
    if isinstance(content, list):
        parts = [
            part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)
        ]
        if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
            raise ValueError("a message may hold text only")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise ValueError("a message needs a text as content")
    return str(message.get("role") or message.get("type") or ""), content


def _parse_passage(item: Any, place: int) -> Passage:
    item = {"text": item} if isinstance(item, str) else item
    if not isinstance(item, dict) or not isinstance(item.get("text"), str) or not item["text"].strip():
        raise ValueError(f"passage {place} needs a text")
    text = item["text"]
    span = item.get("span") or (0, len(text))
    try:
        return Passage(
            chunk_id=int(item.get("chunk_id") or 0),
            document_id=str(item.get("document_id") or ""),
            external_id=str(item.get("external_id") or item.get("id") or ""),
            version=int(item.get("version") or 1),
            title=str(item.get("title") or ""),
            text=text,
            span=(int(span[0]), int(span[1])),
            paragraph=int(item.get("paragraph") or 0),
            score=0.0,
            heading_path=tuple(str(part) for part in item.get("heading_path") or ()),
        )
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"passage {place}: {error}") from error


def _passage_json(passage: Passage) -> dict[str, Any]:
    names = ("text", "title", "external_id", "document_id", "version", "chunk_id")
    values = {name: getattr(passage, name) for name in names if getattr(passage, name)}
    more = {"heading_path": list(passage.heading_path)} if passage.heading_path else {}
    return values | more | ({"span": list(passage.span)} if passage.span != (0, len(passage.text)) else {})


def write_rows(rows: Iterable[Row], file: Path) -> str:
    """Writes rows as JSONL and returns the sha256 of the file's bytes."""
    content = "".join(dump_row(row) for row in rows).encode()
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def dump_row(row: Row) -> str:
    """One line, with its end."""
    return json.dumps(row.to_json(), ensure_ascii=False) + "\n"


def to_groups(rows: Sequence[Row], contract: Contract, split: Split) -> list[Group]:
    """Rows as training groups: rows over the same passages branch from one prefix, up to MAX_BRANCHES together.

    Raises TrainingError that names the rows whose output breaks the contract.
    """
    targets, faults = [], []
    for row in rows:
        try:
            targets.append(row.target(contract))
        except ContractError as error:
            faults.append(f"row {row.number} ({row.id}): {error.message}")
    if faults:
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise TrainingError(
            f"{'; '.join(faults[:_SHOWN_FAULTS])}{more}. `orchestrator data lint` names every row that is to be mended"
        )
    together: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    for row, target in zip(rows, targets, strict=True):
        together[_passages_key(row)].append((row, target))
    groups = []
    for members in together.values():
        for start in range(0, len(members), MAX_BRANCHES):
            part = members[start : start + MAX_BRANCHES]
            first = part[0][0]
            branches = tuple(_branch(row, target) for row, target in part)
            groups.append(Group(f"r-{first.id}", split, "rows", _numbered(first.passages), branches))
    return groups


def _branch(row: Row, target: str) -> Branch:
    document = row.documents[0] if row.documents else ""
    return Branch(row.id, row.input, document, row.kind or "row", (), (), output=target)


def _numbered(passages: tuple[Passage, ...]) -> tuple[Passage, ...]:
    return tuple(replace(each, chunk_id=each.chunk_id or -at) for at, each in enumerate(passages, 1))


def _passages_key(row: Row) -> str:
    shown = [[passage.title, list(passage.heading_path), passage.text] for passage in row.passages]
    return json.dumps(shown, ensure_ascii=False)


def from_groups(groups: Iterable[Group]) -> list[Row]:
    """The examples that the builder made, as rows, numbered in order."""
    rows: list[Row] = []
    for group in groups:
        for branch in group.branches:
            origin = {"source": "builder", "group": group.id, "made": group.made, "question": branch.question_id}
            output = branch.output or branch.target()
            number = len(rows) + 1
            rows.append(Row(branch.question_id, branch.question, group.passages, output, branch.kind, origin, number))
    return rows


def origins(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows came from where."""
    return dict(sorted(Counter(row.source for row in rows).items()))


def provenance(rows: Iterable[Row], split: Split) -> Iterator[dict[str, Any]]:
    """One record per row without its text: id, split, kind, origin, its documents, and the sha256 of all it says (D8)."""
    for row in rows:
        whole = json.dumps([row.input, _passages_key(row), row.output], ensure_ascii=False, sort_keys=True)
        documents = [
            {"external_id": each.external_id, "document_id": each.document_id, "version": each.version}
            for each in row.passages
            if each.external_id or each.document_id
        ]
        yield {
            "row": row.number,
            "id": row.id,
            "split": split,
            "kind": row.kind,
            "origin": dict(row.origin),
            "documents": documents,
            "sha256": hashlib.sha256(whole.encode()).hexdigest(),
        }


def from_answer(
    record: Mapping[str, Any], feedback: Mapping[str, Any], texts: Sequence[Passage], number: int = 0
) -> Row:
    """A row from an answer of the ledger (``show_answer``) that a person accepted or corrected.

    ``texts``: its passages with their text, in order. Raises ValueError when it is no example: no contract, no output.
    """
    intent, outcome = record["intent"], record["outcome"]
    answer = outcome.get("answer") or {}
    output = feedback["fix"] if feedback["verdict"] == "fix" else answer.get("data") or outcome.get("output")
    if not intent or not intent.get("contract") or not output:
        raise ValueError("no model answered it under a contract")
    shown = [row["text_sha256"] for row in intent["passages"]]
    if shown != [hashlib.sha256(passage.text.encode()).hexdigest() for passage in texts]:
        raise ValueError("a passage that it was answered from is gone or was shown in part")
    origin = {
        "source": "ledger",
        "answer": record["id"],
        "verdict": feedback["verdict"],
        "feedback": feedback["id"],
        "contract_sha256": intent["contract"]["digest"],
    }
    return Row(str(record["id"]), str(intent["question"]), tuple(texts), output, feedback["verdict"], origin, number)


def from_question(
    name: str,
    asked: str,
    document: str,
    answers: Sequence[str],
    shown: Sequence[Passage],
    origin: Mapping[str, Any],
    contract: Contract,
) -> Row | None:
    """A row from a question of an evaluation set, for contracts with the fields of ``cited_answer``.

    Without known answers its output is left for a stronger model. None when the passages of ``document`` do not hold the answer.
    """
    if not answers:
        return Row(name, asked, tuple(shown), None, "", origin)
    branch = answer_from(Question(name, asked, document, True, tuple(answers)), shown)
    if branch is None or not branch.answerable:
        return None
    target = json.loads(branch.output) if branch.output else branch.target()
    output = {field: target[field] for field in contract.schema["properties"] if field in target}
    return Row(name, asked, tuple(shown), output, branch.kind, origin)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
