"""Tries a contract on the decoder in use before the engine gets it: a contract in, accepted, refused or too slow out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.contract import Contract
from orchestrator.errors import LaunchError

Verdict = Literal["accepted", "refused", "too_slow"]

CPU_S = 10  # of the compiler; every shipped contract takes less than 4
MEMORY_BYTES = 1 << 30
LOAD_S = 300  # of the whole child: xgrammar imports torch, on a busy machine for a minute
SHOWN = 5  # passages that the form is compiled for
_CHILD = "orchestrator.launch.grammar"


@dataclass(frozen=True, slots=True)
class Trial:
    """What the decoder makes of a contract. ``decoder`` is None when none is installed: then only the rules were applied."""

    verdict: Verdict
    why: str = ""
    decoder: str | None = None
    compile_ms: float | None = None
    memory_kb: int | None = None
    examples: int = 0


async def try_contract(
    contract: Contract,
    examples: Sequence[str] = (),
    tokenizer: Path | None = None,
    cpu_s: int = CPU_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Trial:
    """Compiles the form of a contract, and tries outputs that keep it, in a child process of bounded time and memory.

    ``tokenizer``: the folder of the model's; without one the form is compiled for single bytes, which takes less time.
    Raises LaunchError when the child cannot be run.
    """
    job = {
        "schema": contract.engine_schema(SHOWN),
        "grammar": contract.engine_grammar(SHOWN),
        "tokenizer": tokenizer and str(tokenizer),
        "texts": list(examples),
        "cpu_s": cpu_s,
        "memory_bytes": memory_bytes,
    }
    said, status, errors = await _run(json.dumps(job).encode())
    if not said or "decoder" not in said[0]:
        raise LaunchError(f"the decoder did not start (exit status {status}): {errors[-500:] or 'it said nothing'}")
    decoder = said[0]["decoder"]
    if decoder is None:
        return Trial("accepted", "no xgrammar is installed here: only the rules were applied")
    if len(said) == 1:
        slow = status in (-signal.SIGXCPU, -signal.SIGKILL)
        why = f"compiling took more than {cpu_s} s" if slow else f"compiling took more than {memory_bytes >> 20} MB"
        return Trial("too_slow", f"{why}: shorten its lists, patterns and lengths", decoder)
    return _verdict(said[1], decoder, len(examples))


def _verdict(result: Mapping[str, Any], decoder: str, examples: int) -> Trial:
    if "refused" in result:
        return Trial("refused", str(result["refused"]), decoder)
    spent, memory = result["compile_ms"], result["memory_kb"]
    if result["rejected"]:
        first = result["rejected"][0] + 1
        return Trial(
            "refused",
            f"the decoder would never write example {first}, which keeps the contract",
            decoder,
            spent,
            memory,
        )
    return Trial("accepted", "", decoder, spent, memory, examples)


async def _run(job: bytes) -> tuple[list[dict[str, Any]], int, str]:
    """What the child said, its exit status (negative: the signal that ended it), and its errors."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _CHILD, env={**env, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LOAD_S):
            output, errors = await child.communicate(job)
    except TimeoutError as error:
        raise LaunchError(
            f"the decoder was not done within {LOAD_S} s; try again when the machine is less busy"
        ) from error
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    said = [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]
    return said, child.returncode or 0, errors.decode("utf-8", "replace")
