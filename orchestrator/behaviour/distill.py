"""Lets a stronger model write the outputs: rows without one in, rows that keep the contract out; failures kept and counted.

Any OpenAI-compatible endpoint will do. Stopped at any moment, the same call goes on behind the last row that was written.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.behaviour.rows import Row, dump_row, scan_rows
from orchestrator.check import check_output
from orchestrator.compose import compose_messages
from orchestrator.contract import Contract
from orchestrator.errors import ContractError, EngineError, EngineUnavailableError, TooLargeError
from orchestrator.prompts import Prompt

ATTEMPTS = 2  # a fault is said back once; a model that then still errs would err again
PATIENCE = 5  # tries at an endpoint that is busy or gone, 1, 2, 4, 8 s apart
MAX_WAIT_S = 30.0
TIMEOUT_S = 180.0
_FENCE = re.compile(r"\A\s*```[a-z]*\s*\n(.*?)\n?```\s*\Z", re.DOTALL)


class Teacher(Protocol):
    """A stronger model."""

    async def complete(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None) -> str:
        """What it writes. Raises EngineError when it cannot."""
        ...


@dataclass(frozen=True, slots=True)
class Distilled:
    """How many rows were written by this call, were there already, and failed (their lines are in ``failures``)."""

    written: int
    kept: int
    failed: int
    failures: Path


@dataclass(frozen=True, slots=True)
class Task:
    """What rows are made for: contract, prompt, and the length that a prompt may have, in tokens as counted."""

    contract: Contract
    prompt: Prompt
    count: Callable[[str], int]
    budget_tokens: int = 1600
    teacher: str = ""  # the model's name, kept as each row's origin
    url: str = ""


async def distill(
    rows: Sequence[Row],
    out: Path,
    teacher: Teacher,
    task: Task,
    *,
    concurrency: int = 4,
    progress: Callable[[int, int, int], None] | None = None,
) -> Distilled:
    """Writes one line to ``out`` for each row that the teacher answers within the contract; ids already there are left alone.

    ``progress`` is called with (done, all, failed). Rows that fail go to ``OUT.failures.jsonl`` with the reason, and are
    tried again by the next call. Raises EngineError when the endpoint itself does not serve.
    """
    known = {row.id for row in scan_rows(out)[0]} if out.exists() else set()
    _mend_end(out)
    failures = out.with_name(f"{out.name}.failures.jsonl")
    wanted = [row for row in rows if row.id not in known]
    done, failed = 0, 0
    gate = asyncio.Semaphore(concurrency)

    async def work(row: Row) -> tuple[Row, str]:
        async with gate:
            return await _teach(row, teacher, task)

    running = [asyncio.create_task(work(row)) for row in wanted]
    try:
        with out.open("a", encoding="utf-8") as lines, failures.open("w", encoding="utf-8") as faults:
            for each in asyncio.as_completed(running):
                row, fault = await each
                done, failed = done + 1, failed + bool(fault)
                stream = faults if fault else lines
                stream.write(
                    json.dumps({**row.to_json(), "fault": fault}, ensure_ascii=False) + "\n" if fault else dump_row(row)
                )
                stream.flush()
                os.fsync(stream.fileno())
                if progress:
                    progress(done, len(wanted), failed)
    finally:
        for waiting in running:
            waiting.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if not failed:
        failures.unlink(missing_ok=True)
    return Distilled(done - failed, len(rows) - len(wanted), failed, failures)


async def _teach(row: Row, teacher: Teacher, task: Task) -> tuple[Row, str]:
    """The row with an output, or with the reason why it has none."""
    try:
        composed = compose_messages(
            task.prompt, row.input, row.passages, count=task.count, budget_tokens=task.budget_tokens
        )
    except TooLargeError as error:
        return row, error.message
    if composed.dropped:
        return row, f"its passages take more than {task.budget_tokens} tokens"
    messages = [{"role": each.role, "content": each.content} for each in composed.messages]
    messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{_asked(task.contract)}"}
    schema = task.contract.engine_schema(len(row.passages)) if _is_json(task.contract) else None
    fault = ""
    for _ in range(ATTEMPTS):
        written = _unfenced(await teacher.complete(messages, schema))
        fault = _fault(written, row, task.contract)
        if not fault:
            output = json.loads(written) if _is_json(task.contract) else written
            origin = {"source": "distilled", "model": task.teacher, "endpoint": task.url, "from": dict(row.origin)}
            return replace(row, output=output, origin=origin), ""
        messages += [
            {"role": "assistant", "content": written},
            {"role": "user", "content": f"Wrong: {fault}. Write it anew."},
        ]
    return row, fault


def _asked(contract: Contract) -> str:
    """What the small model learns from examples, told to the big one."""
    rules = ["Use the passages and the message only; add nothing that you know yourself."]
    if contract.citations:
        rules.append(f"{contract.citations} are the numbers of the passages that you rely on.")
    if contract.evidence:
        rules.append(f"{contract.evidence} is one sentence copied letter by letter from a cited passage.")
    if contract.answerable:
        rules.append(f"If the passages do not answer, {contract.answerable} is false and the rest is empty.")
    shape = json.dumps(contract.schema, ensure_ascii=False) if _is_json(contract) else contract.body
    return " ".join([*rules, "Write only what this describes, without a fence:", shape])


def _fault(written: str, row: Row, contract: Contract) -> str:
    """Why the output cannot be trained on: it breaks the contract, or its citations or evidence do not hold."""
    try:
        checked = check_output(contract, written, row.passages, row.input)
    except ContractError as error:
        return error.message
    held = [flag for flag in checked.flags if flag != "marks_removed"]
    return f"the check found {', '.join(held)}" if held else ""


def _is_json(contract: Contract) -> bool:
    return contract.form == "json"


def _unfenced(text: str) -> str:
    found = _FENCE.match(text)
    return found.group(1) if found else text.strip()


def _mend_end(out: Path) -> None:
    """Cuts off a last line that a kill left unfinished."""
    if not out.exists():
        return
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        out.write_bytes(whole)


class HttpTeacher:
    """A model behind ``URL/chat/completions``; the key comes from a variable of the environment, never from an argument."""

    def __init__(self, url: str, model: str, api_key: str | None = None, max_tokens: int = 1200) -> None:
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._model = model
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._max_tokens = max_tokens
        self._takes_schema = True
        self._session: Any = None

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, model: str, api_key: str | None = None) -> AsyncIterator[HttpTeacher]:
        """A teacher with its connections, for the length of the block."""
        import aiohttp

        teacher = cls(url, model, api_key)
        async with aiohttp.ClientSession(
            headers=teacher._headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        ) as session:
            teacher._session = session
            yield teacher

    async def complete(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None) -> str:
        """What the model writes at temperature 0. An endpoint that refuses a schema is asked without one from then on."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in messages],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        if schema is not None and self._takes_schema:
            kind = {"name": "output", "schema": dict(schema)}
            status, answer = await self._post(body | {"response_format": {"type": "json_schema", "json_schema": kind}})
            if status != 400:
                return self._text(status, answer)
            self._takes_schema = False
        return self._text(*await self._post(body))

    async def _post(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        import aiohttp

        last = ""
        for turn in range(PATIENCE):
            try:
                async with self._session.post(self._url, json=body) as response:
                    if response.status != 429 and response.status < 500:
                        return response.status, await response.json(content_type=None)
                    last = f"HTTP {response.status}"
                    wait = _seconds(response.headers.get("retry-after")) or 2.0**turn
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                last, wait = repr(error), 2.0**turn
            if turn + 1 < PATIENCE:
                await asyncio.sleep(min(wait, MAX_WAIT_S))
        raise EngineUnavailableError(
            f"{self._url} did not answer {PATIENCE} times ({last}); run the same command again: it goes on where it stood"
        )

    def _text(self, status: int, answer: Any) -> str:
        if status in (401, 403):
            raise EngineError(f"{self._url} refuses the key (HTTP {status}); name its variable with --key-env")
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            said = json.dumps(answer)[:200]
            raise EngineError(f"{self._url} gave no completion (HTTP {status}): {said}") from error


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
