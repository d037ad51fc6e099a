"""Compiles a contract with xgrammar as vLLM does, in this process alone: ``python -m orchestrator.launch.grammar``.

One JSON job on standard input: ``{"schema" or "grammar", "tokenizer": folder or null, "texts", "cpu_s", "memory_bytes"}``. On
standard output a line once the decoder is loaded, and one with what came of it. A compiler of native code cannot be
interrupted: the kernel ends this process at its limits, and the parent reads that from the exit status.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Reads the job, limits this process, compiles, and tries the texts."""
    job: dict[str, Any] = json.load(sys.stdin)
    try:
        import xgrammar
    except ImportError:
        _say({"decoder": None})
        return
    vocabulary = _vocabulary(xgrammar, job["tokenizer"])
    _say({"decoder": f"xgrammar {version('xgrammar')}"})
    limit(job["cpu_s"], job["memory_bytes"])
    started = time.process_time()
    try:
        compiled = _compile(xgrammar, vocabulary, job)
    except (RuntimeError, ValueError) as error:
        _say({"refused": str(error)[:500]})
        return
    spent = time.process_time() - started
    rejected = [at for at, text in enumerate(job["texts"]) if not _accepts(xgrammar, compiled, text)]
    _say({"compile_ms": round(spent * 1000, 1), "memory_kb": compiled.memory_size_bytes >> 10, "rejected": rejected})


def limit(cpu_s: int, memory_bytes: int) -> None:
    """From now on so much more CPU time and memory; past them the kernel ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + cpu_s + 1
    with open("/proc/self/statm" if sys.platform.startswith("linux") else os.devnull, encoding="ascii") as pages:
        held = int((pages.read().split() or ["0"])[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if held:  # what the libraries reserved for themselves is not the contract's
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, held + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _vocabulary(xgrammar: Any, folder: str | None) -> Any:
    if folder is None:
        return xgrammar.TokenizerInfo([*(bytes([byte]) for byte in range(256)), b"</s>"], stop_token_ids=[256])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return xgrammar.TokenizerInfo.from_huggingface(tokenizer)


def _compile(xgrammar: Any, vocabulary: Any, job: Mapping[str, Any]) -> Any:
    """With the arguments of vLLM's XgrammarBackend.compile_grammar, on one thread: CPU time is what is limited."""
    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
    if job["schema"] is None:
        return compiler.compile_grammar(job["grammar"])
    return compiler.compile_json_schema(json.dumps(job["schema"]), any_whitespace=False, separators=(",", ":"))


def _accepts(xgrammar: Any, compiled: Any, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(compiled)
    return bool(matcher.accept_string(text) and matcher.is_completed())


def _say(value: Mapping[str, Any] | Sequence[Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
