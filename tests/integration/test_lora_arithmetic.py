"""An adapter merged into its base, and our arithmetic for adapters at run time: both against the formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from orchestrator.behaviour.merge import merge  # noqa: E402
from orchestrator.errors import TrainingError  # noqa: E402
from orchestrator.launch import lora_cpu  # noqa: E402

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
PREFIX = "base_model.model.layer.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {"layer.q_proj.weight": torch.randn(6, 4), "embed.weight": torch.randn(5, 4)}
    safetensors.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def adapter(folder: Path, factors: dict[str, Any], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def factors(a: Any = None, b: Any = None) -> dict[str, Any]:
    return {
        f"{PREFIX}.lora_A.weight": torch.randn(2, 4) if a is None else a,
        f"{PREFIX}.lora_B.weight": torch.randn(6, 2) if b is None else b,
    }


@pytest.mark.parametrize(("options", "scale"), [({}, 2.0), ({"use_rslora": True}, 4 / 2**0.5)])
def test_the_merged_weight_is_the_base_and_the_scaled_product(
    base: Path, tmp_path: Path, options: dict[str, Any], scale: float
) -> None:
    parts = factors()

    merge(base, adapter(tmp_path / "a", parts, **options), tmp_path / "out")

    before, after = (safetensors.load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    a, b = parts.values()
    torch.testing.assert_close(after["layer.q_proj.weight"], before["layer.q_proj.weight"] + scale * (b @ a))
    assert torch.equal(after["embed.weight"], before["embed.weight"])
    assert (tmp_path / "out" / "config.json").exists()


def test_a_merge_replaces_what_was_there_whole(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rest").touch()

    merge(base, adapter(tmp_path / "a", factors()), tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "merge.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("parts", "config", "reason"),
    [
        ({f"base_model.model.other.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}, {}, "another model"),
        (factors(b=torch.full((6, 2), float("nan"))), {}, "NaN"),
        (factors(b=torch.ones(5, 2)), {}, "do not fit"),
        ({f"{PREFIX}.lora_A.weight": torch.ones(2, 4)}, {}, "do not fit"),
        (factors(), {"use_dora": True}, "use_dora"),
        (factors(), {"peft_type": "IA3"}, "IA3"),
        (factors(), {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
    ids=["foreign", "nan", "shape", "half", "dora", "ia3", "saved modules"],
)
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(
    base: Path, tmp_path: Path, parts: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        merge(base, adapter(tmp_path / "a", parts, **config), tmp_path / "out" / "merged")

    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "slots",
    [[0, 0, 0], [2], [-1, -1], [0, 2, 0, -1, 2], [-1, 3], [1] * 50, [1] * 50 + [-1] * 5 + [0] * 40],
    ids=["one", "decode", "none", "mixed", "base and last", "prompt", "mixed prompts"],
)
def test_run_time_adapters_add_their_own_product_to_their_own_rows(slots: list[int]) -> None:
    torch.manual_seed(1)
    widths = (6, 2)
    x, y = torch.randn(len(slots), 4), torch.randn(len(slots), sum(widths))
    a = tuple(torch.randn(4, 1, 2, 4) for _ in widths)
    b = tuple(torch.randn(4, 1, width, 2) for width in widths)
    wanted = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            wanted[row] += torch.cat([b[i][slot, 0] @ (a[i][slot, 0] @ x[row]) for i in range(2)]) * 0.5

    for slot, rows in lora_cpu.group(torch.tensor(slots)):
        lora_cpu.add_adapter(y, x, slot, rows, a, b, 0.5, widths)

    torch.testing.assert_close(y, wanted)
