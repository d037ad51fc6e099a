"""Checks an adapter's files before anything loads them: plain files, bounded headers, known modules, finite numbers (D1, D5).

Nothing here executes or unpickles: bytes are read once, checked, and those same bytes are what is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.behaviour.fit import TARGETS
from orchestrator.errors import AdapterUnavailableError, InputError
from orchestrator.types import Adapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
FILES = {WEIGHTS: 1 << 30, CONFIG: 1 << 20, MANIFEST: 4 << 20}  # largest size of each, in bytes
MAX_RANK = 16
MAX_HEADER = 8 << 20
MODULES = frozenset(TARGETS)

_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d{1,4})\.(?:self_attn|mlp)\.([a-z]+_proj)\.lora_(A|B)\.weight"
)
_WIDTH = {"BF16": 2, "F16": 2, "F32": 4}
# What a plain LoRA may say; every other key of PEFT's configuration must be empty, or it changes what the weights mean.
_CONFIG_KEYS = frozenset(
    {
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "target_modules",
        "task_type",
    }
)
_HARMLESS = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}
_MANIFEST_STRINGS = (
    ("name",),
    ("digest",),
    ("base", "name"),
    ("base", "sha256"),
    ("prompt", "name"),
    ("prompt", "digest"),
    ("contract", "name"),
    ("contract", "digest"),
)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Checked:
    """An adapter whose files passed: the bytes by name, its digest, rank and manifest."""

    files: Mapping[str, bytes]
    digest: str
    rank: int
    manifest: Mapping[str, Any]


def check_adapter(folder: Path, *, links: bool = False) -> Checked:
    """Reads and checks an adapter's folder. ``links``: files may be hard links, as installers make them.

    Raises InputError that names the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder with {', '.join(FILES)}")
    extra = sorted(entry.name for entry in os.scandir(folder) if entry.name not in FILES)
    if extra:
        raise InputError(
            f"{folder} holds {extra[:5]}; an adapter is {', '.join(FILES)} and nothing else; convert it to safetensors, "
            "or take away what is not of it"
        )
    files = {name: _read(folder / name, limit, links) for name, limit in FILES.items()}
    rank = _check_config(_parse(files[CONFIG], CONFIG))
    _check_weights(files[WEIGHTS], rank)
    manifest = _parse(files[MANIFEST], MANIFEST)
    _check_manifest(manifest)
    digest = digest_files(files)
    if manifest["digest"] != digest:
        raise InputError(
            f"{folder} was changed after training: its digest is {digest[:12]}, its manifest says otherwise; train it again, "
            "or fetch the files that were trained"
        )
    return Checked(files, digest, rank, manifest)


def check_kept(adapter: Adapter) -> None:
    """Compares a registered adapter's files with its digest, before and after an engine reads them (row D2).

    Raises AdapterUnavailableError when they are not those that were registered.
    """
    try:
        found = digest_files({name: _read(adapter.path / name, FILES[name], links=False) for name in (WEIGHTS, CONFIG)})
    except InputError as error:
        raise AdapterUnavailableError(
            f"adapter {adapter.served_name} is not loaded: {error.message}; register it again"
        ) from error
    if found != adapter.digest:
        raise AdapterUnavailableError(
            f"adapter {adapter.served_name} is not loaded: its files in {adapter.path} were changed after it was registered "
            f"(their digest is {found[:12]}); register it again: orchestrator adapters register FOLDER"
        )


def digest_files(files: Mapping[str, bytes]) -> str:
    """sha256 over the sorted names and bytes of the weights and the configuration: an adapter's identity."""
    digest = hashlib.sha256()
    for name in sorted((WEIGHTS, CONFIG)):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _read(file: Path, limit: int, links: bool) -> bytes:
    """The bytes of a regular file, opened without following links and without waiting on a pipe."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{file} cannot be read as a plain file: {error.strerror}") from error
    with open(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or (found.st_nlink > 1 and not links):
            raise InputError(f"{file} is no plain file of its own; copy the adapter's files into a folder")
        if found.st_size > limit:
            raise InputError(f"{file} has {found.st_size} bytes; {limit} are allowed")
        return stream.read(limit)


def _parse(content: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{name} is not a JSON object")
    return values


def _check_config(config: Mapping[str, Any]) -> int:
    odd = [key for key, value in config.items() if key not in _CONFIG_KEYS and value and _HARMLESS.get(key) != value]
    if odd:
        raise InputError(f"{CONFIG} sets {sorted(odd)[:5]}; only a plain LoRA is served")
    if config.get("peft_type") != "LORA" or config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise InputError(f"{CONFIG} must be of peft_type LORA with plain initial weights")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    targets: Any = config.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise InputError(
            f"{CONFIG}: r is {rank!r}; it must be from 1 to {MAX_RANK}; train it again with --rank {MAX_RANK} or less"
        )
    if type(alpha) not in (int, float) or not math.isfinite(alpha) or alpha <= 0:
        raise InputError(f"{CONFIG}: lora_alpha is {alpha!r}; with it the adapter would do nothing")
    if not isinstance(targets, list) or not targets or not set(map(str, targets)) <= MODULES:
        raise InputError(f"{CONFIG}: target_modules must be some of {sorted(MODULES)}; train it again with these")
    return int(rank)


def _check_weights(content: bytes, rank: int) -> None:
    """Checks the safetensors file: header within bounds, tensors that tile the rest, LoRA pairs of this rank, finite."""
    size = int.from_bytes(content[:8], "little") if len(content) >= 8 else -1
    if not 2 <= size <= min(MAX_HEADER, len(content) - 8):
        raise InputError(
            f"{WEIGHTS}: its header claims {size} bytes of a file of {len(content)}; the file is truncated or forged"
        )
    header = _parse(content[8 : 8 + size], f"{WEIGHTS}: the header")
    header.pop("__metadata__", None)
    data = memoryview(content)[8 + size :]
    at, shapes = 0, {}
    for name, entry in sorted(header.items(), key=_offset):
        begin, end, shapes[name] = _check_tensor(name, entry)
        if begin != at or end > len(data):
            raise InputError(f"{WEIGHTS}: {name} does not follow the tensor before it; the file is forged or truncated")
        if not _is_finite(data[begin:end], entry["dtype"]):
            raise InputError(f"{WEIGHTS}: {name} holds NaN or infinity; train again with a smaller learning rate")
        at = end
    if at != len(data) or not shapes:
        raise InputError(f"{WEIGHTS}: {len(data) - at} bytes belong to no tensor")
    for name, shape in shapes.items():
        inner = shape[0] if ".lora_A." in name else shape[1]
        other = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if inner != rank or other not in shapes:
            raise InputError(f"{WEIGHTS}: {name} of shape {shape} is not half of a pair of rank {rank}")


def _offset(item: tuple[str, Any]) -> int:
    entry = item[1]
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets[0] if isinstance(offsets, list) and offsets and type(offsets[0]) is int else -1


def _check_tensor(name: str, entry: Any) -> tuple[int, int, tuple[int, int]]:
    found = _TENSOR.fullmatch(name)
    if found is None or found.group(2) not in MODULES:
        raise InputError(
            f"{WEIGHTS}: {name[:120]!r} is no LoRA matrix of a module that the engine knows; "
            "train it again with `orchestrator train`"
        )
    shape: Any = entry.get("shape") if isinstance(entry, dict) else None
    offsets: Any = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not _are_counts(shape) or not _are_counts(offsets) or entry.get("dtype") not in _WIDTH:
        raise InputError(f"{WEIGHTS}: {name} has no usable type, shape or place")
    begin, end = offsets
    if end - begin != shape[0] * shape[1] * _WIDTH[entry["dtype"]]:
        raise InputError(f"{WEIGHTS}: {name} is not as long as its shape says")
    return begin, end, (shape[0], shape[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(type(value) is int and value >= 0 for value in values)


def _is_finite(data: memoryview, kind: str) -> bool:
    import numpy as np

    if kind == "BF16":  # the upper half of a float32: all exponent bits set means NaN or infinity
        return not bool(np.any((np.frombuffer(data, "<u2") & 0x7F80) == 0x7F80))
    return bool(np.isfinite(np.frombuffer(data, "<f2" if kind == "F16" else "<f4")).all())


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    for path in _MANIFEST_STRINGS:
        value: Any = manifest
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str) or not value:
            raise InputError(f"{MANIFEST} lacks {'.'.join(path)}; adapters are made by `orchestrator train`")
    if not _NAME.fullmatch(manifest["name"]) or "--" in manifest["name"]:
        raise InputError(f"{MANIFEST}: the name {manifest['name']!r} must be of a-z, 0-9, '.', '_' and single '-'")
