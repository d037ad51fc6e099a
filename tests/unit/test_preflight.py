"""Preflight: only a plain, whole, finite LoRA of known modules passes; everything else is refused by name (D1, D5)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.behaviour.preflight import CONFIG, MANIFEST, WEIGHTS, check_adapter, digest_files
from orchestrator.errors import InputError

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
CONFIGURATION = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
    "megatron_core": "megatron.core",
}
ONE = b"\x80\x3f"  # 1.0 in bf16
NAN = b"\xc0\x7f"


def pair(a: tuple[int, int] = (2, 8), b: tuple[int, int] = (8, 2)) -> dict[str, tuple[tuple[int, int], bytes]]:
    return {NAME.format("A"): (a, ONE * a[0] * a[1]), NAME.format("B"): (b, ONE * b[0] * b[1])}


def safetensors(
    tensors: Mapping[str, tuple[tuple[int, int], bytes]], change: Callable[[Any], None] = lambda _: None
) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    change(header)
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(data for _, data in tensors.values())


def write_adapter(
    folder: Path,
    *,
    weights: bytes | None = None,
    config: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    files = {
        WEIGHTS: safetensors(pair()) if weights is None else weights,
        CONFIG: json.dumps(CONFIGURATION | dict(config or {})).encode(),
    }
    head = {
        "name": "tiny",
        "digest": digest_files(files),
        "base": {"name": "b", "sha256": "0" * 64},
        "prompt": {"name": "grounded", "digest": "1" * 64},
        "contract": {"name": "cited_answer", "digest": "2" * 64},
    }
    files[MANIFEST] = json.dumps(head | dict(manifest or {})).encode()
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_plain_adapter_passes(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")

    checked = check_adapter(folder)

    assert checked.rank == 2
    assert checked.digest == checked.manifest["digest"]
    assert checked.files[WEIGHTS] == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "training_args.bin", "optimizer.pt", "modeling.py", "more.safetensors"]
)
def test_any_other_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).write_bytes(b"\x80\x04.")

    with pytest.raises(InputError, match=name):
        check_adapter(folder)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(InputError, match="plain file"):
        check_adapter(folder)


def test_a_hard_link_is_refused_unless_an_installer_made_it(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    os.link(folder / WEIGHTS, tmp_path / "other")

    with pytest.raises(InputError, match="plain file"):
        check_adapter(folder)
    assert check_adapter(folder, links=True).rank == 2


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)

    with pytest.raises(InputError, match="plain file"):
        check_adapter(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / MANIFEST).unlink()

    with pytest.raises(InputError, match=MANIFEST):
        check_adapter(folder)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (b"", "header"),
        (b"\xff" * 8 + b"{}", "header"),  # a header of 16 exabytes
        ((1 << 40).to_bytes(8, "little") + b"{}", "header"),
        (b"\x02" + b"\0" * 7 + b"[]", "not a JSON object"),
        (safetensors(pair())[:-2], "truncated"),
        (safetensors(pair()) + b"xx", "belong to no tensor"),
        (safetensors({}), "belong to no tensor"),
        (safetensors({**pair(), NAME.format("A"): ((2, 8), NAN * 16)}), "NaN"),
        (safetensors(pair(a=(3, 8), b=(8, 3))), "rank 2"),
        (safetensors({NAME.format("A"): ((2, 8), ONE * 16)}), "pair"),
        (safetensors({"model.embed_tokens.weight": ((2, 8), ONE * 16)}), "no LoRA matrix"),
        (safetensors({NAME.replace("q_proj", "evil_proj").format("A"): ((2, 8), ONE * 16)}), "no LoRA matrix"),
    ],
)
def test_bad_weights_are_refused(tmp_path: Path, weights: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_adapter(write_adapter(tmp_path / "a", weights=weights))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16", "shape": [2, 8], "data_offsets": [0, 33]},
        {"dtype": "BF16", "shape": [2, 8], "data_offsets": [16, 48]},
        {"dtype": "BF16", "shape": [-2, -8], "data_offsets": [32, 64]},
        {"dtype": "BF16", "shape": [2, 8, 1], "data_offsets": [32, 64]},
        {"dtype": "I64", "shape": [2, 8], "data_offsets": [32, 64]},
        {"dtype": "BF16"},
        "text",
    ],
)
def test_forged_entries_of_the_header_are_refused(tmp_path: Path, entry: Any) -> None:
    weights = safetensors(pair(), lambda header: header.update({NAME.format("B"): entry}))

    with pytest.raises(InputError, match=r"lora_B|belong"):
        check_adapter(write_adapter(tmp_path / "a", weights=weights))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"r": 64}, "from 1 to 16"),
        ({"r": True}, "from 1 to 16"),
        ({"lora_alpha": 0}, "do nothing"),
        ({"lora_alpha": float("nan")}, "do nothing"),
        ({"use_dora": True}, "use_dora"),
        ({"auto_mapping": {"base_model_class": "x.Y"}}, "auto_mapping"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "initial weights"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": ["embed_tokens"]}, "target_modules"),
    ],
)
def test_anything_but_a_plain_lora_is_refused(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_adapter(write_adapter(tmp_path / "a", config=config))


@pytest.mark.parametrize("at", [9, 200, -1])
def test_one_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    folder = write_adapter(tmp_path / "a")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[at] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(content))

    with pytest.raises(InputError):
        check_adapter(folder)


@pytest.mark.parametrize("name", ["../evil", "a--b", "A B", "", "x" * 80])
def test_a_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name"):
        check_adapter(write_adapter(tmp_path / "a", manifest={"name": name}))


def test_a_manifest_without_its_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompt\.name"):
        check_adapter(write_adapter(tmp_path / "a", manifest={"prompt": {}}))


def test_a_file_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        check_adapter(tmp_path / "nothing")
