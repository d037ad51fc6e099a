"""Trains an adapter: questions and an index, or rows of any contract, in; a PEFT folder with its manifest out.

``train_adapter`` builds the examples and lets the guard judge them, then trains in a child process (``python -m
orchestrator.behaviour.train JOBDIR``), so that the caller stays light and a kill costs at most a few steps: the same call goes
on where the run stood.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.behaviour.defaults import choose_fit, questions_fit
from orchestrator.behaviour.examples import (
    SPLIT_RULE,
    Group,
    Recipe,
    Search,
    build_groups,
    load_questions,
    read_groups,
    summarise,
    write_groups,
)
from orchestrator.behaviour.fit import (
    TARGETS,
    Fit,
    Progress,
    Report,
    attach_lora,
    forbid_vision,
    greedy,
    mean_loss,
    open_base,
    train_lora,
    write_adapter,
    write_atomically,
)
from orchestrator.behaviour.guard import Limits, inspect, refuse, split_rows
from orchestrator.behaviour.hard import ATTACKS, Hard, harden
from orchestrator.behaviour.held_out import (
    Riddle,
    measure_form,
    probe_closed_book,
    read_riddles,
    riddles_from,
    riddles_from_rows,
    write_riddles,
)
from orchestrator.behaviour.preflight import CONFIG, WEIGHTS, digest_files
from orchestrator.behaviour.probe import PROBE_TOKENS, probe_messages
from orchestrator.behaviour.processes import command, join_processes, leave_processes
from orchestrator.behaviour.rows import Row, from_groups, is_rows, origins, provenance, read_rows, to_groups
from orchestrator.behaviour.tokens import Packed, Renderer, pack
from orchestrator.contract import Contract
from orchestrator.errors import OrchestratorError, TrainingError
from orchestrator.failpoints import failpoint
from orchestrator.prompts import Catalogue, parse_prompt
from orchestrator.resources import processor
from orchestrator.tokens import LocalTokens

CHECKPOINT_STEPS = 10
NOT_HARD = Hard(stale=0, conflicting=0, hostile=0, foreign=0)
PROVENANCE = "provenance.jsonl"
ROW_SPLIT_RULE = "rows of one document, or nearly alike, together; clusters by sha256(seed:id); about 1 in 12 held out"
_LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train. ``data``: rows, or questions.jsonl or its folder; ``base``: model folder, named in the manifest by
    its folder unless ``base_name`` says otherwise; ``out``: where the adapter goes; ``fit``: chosen from the data if None;
    ``hard``: shares of built examples with stale, conflicting, hostile (``attacks``) or foreign passages."""

    name: str
    data: Path
    collection: str
    base: Path
    out: Path
    base_name: str = ""
    prompt: str = "grounded"
    contract: str = "cited_answer"
    budget_tokens: int = 1600
    max_examples: int = 3000
    threads: int = 1
    processes: int = 1
    recipe: Recipe = field(default_factory=Recipe)
    fit: Fit | None = None
    limits: Limits = field(default_factory=Limits)
    hard: Hard = field(default_factory=Hard)
    attacks: tuple[str, ...] = ATTACKS

    @property
    def job(self) -> Path:
        """Folder of the unfinished run, beside the adapter."""
        return self.out.with_name(f"{self.out.name}.job")


async def train_adapter(
    request: TrainRequest, *, search: Search | None = None, catalogue: Catalogue, progress: Report | None = None
) -> Path:
    """Folder of the trained adapter (``request.out``). Called again after a kill, it goes on where the run stood.

    ``search``: over the collection that questions are about; rows need none. Beside the adapter lies
    ``NAME.provenance.jsonl``, a line for every row. Raises TrainingError that says what to do; then nothing half-written
    lies at ``request.out``.
    """
    report = progress or (lambda _: None)
    if (request.out / "manifest.json").is_file():
        raise TrainingError(f"{request.out} holds an adapter already; name another --out or move it away")
    if request.contract != "cited_answer" and not is_rows(request.data):
        raise TrainingError(
            f"examples are built from questions for the contract cited_answer, not {request.contract!r}; give rows with "
            "input and output, which train any contract"
        )
    _make_folder(request.job)
    with _only_one(request.job):
        await _prepare(request, search, catalogue, report)
        await _run_child(request.job, request.processes, report)
        finished = request.job / "adapter"
        try:
            request.out.parent.mkdir(parents=True, exist_ok=True)
            if (request.job / PROVENANCE).exists():  # first, so that no adapter is ever without it
                (request.job / PROVENANCE).replace(provenance_file(request.out))
            failpoint("provenance")
            finished.replace(request.out)
        except OSError as error:
            raise TrainingError(
                f"the finished adapter in {finished} cannot be moved to {request.out}: {error}"
            ) from error
    shutil.rmtree(request.job, ignore_errors=True)
    return request.out


async def _prepare(request: TrainRequest, search: Search | None, catalogue: Catalogue, report: Report) -> None:
    """Writes examples and job.json; a prepared job of the same request is kept, so that a resumed run sees the same data."""
    prompt, contract = catalogue.prompt(request.prompt), catalogue.contract(request.contract)
    wanted = _describe(request, prompt.body, contract.body)
    file = request.job / "job.json"
    if file.is_file():
        stored = json.loads(file.read_text("utf-8"))
        if stored["request"] == wanted:
            return
        report(Progress("examples", 0, request.max_examples, note="data or settings changed: examples are built anew"))
        file.unlink()  # it vouches for the files beside it, which are about to be replaced
        shutil.rmtree(request.job / "adapter", ignore_errors=True)
    if is_rows(request.data):
        data = await asyncio.to_thread(_prepare_rows, request, contract)
    else:
        data = await _prepare_questions(request, search, contract, report)
    try:
        content = {"request": wanted, **data.write(request.job)}
        write_atomically(file, json.dumps(content, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise TrainingError(
            f"the examples cannot be written to {request.job}: {error.strerror}; free some space"
        ) from error


@dataclass(frozen=True, slots=True)
class _Data:
    """What a run is made of, judged and accepted by the guard."""

    train: list[Group]
    held_out: list[Group]
    rows: tuple[list[Row], list[Row]]
    riddles: list[Riddle]
    fit: Fit
    facts: dict[str, Any]

    def write(self, job: Path) -> dict[str, Any]:
        """Puts the files beside job.json and returns what job.json says of them."""
        digest = write_groups(self.train, job / "train.jsonl")
        write_groups(self.held_out, job / "validation.jsonl")
        write_riddles(self.riddles, job / "riddles.json")
        lines = [*provenance(self.rows[0], "train"), *provenance(self.rows[1], "validation")]
        origin = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        write_atomically(job / PROVENANCE, origin)
        facts = {
            "origins": origins(self.rows[0]),
            "provenance_sha256": hashlib.sha256(origin).hexdigest(),
            **self.facts,
        }
        return {"data_digest": digest, "counts": summarise(self.train) | facts, "fit": asdict(self.fit)}


def _prepare_rows(request: TrainRequest, contract: Contract) -> _Data:
    rows = read_rows(request.data)
    train, held_out = split_rows(rows, request.recipe.seed)
    groups, others = to_groups(train, contract, "train"), to_groups(held_out, contract, "validation")
    verdict = inspect(train, held_out, contract)
    refuse(verdict, request.limits)
    fit = request.fit or choose_fit(len(train), len(groups), seed=request.recipe.seed)
    facts = {"guard": verdict.to_json(), "split": ROW_SPLIT_RULE, "held_out_rows": len(held_out)}
    return _Data(groups, others, (train, held_out), riddles_from_rows(train, contract), fit, facts)


async def _prepare_questions(request: TrainRequest, search: Search | None, contract: Contract, report: Report) -> _Data:
    if search is None:
        raise TrainingError(
            "questions are trained with passages that a search finds; open the collection and pass search"
        )
    questions = load_questions(request.data)

    def show(done: int, total: int) -> None:
        report(Progress("examples", done, total))

    train: list[Group] = []
    for turn in range(request.recipe.passes):
        left = request.max_examples - sum(len(group.branches) for group in train)
        if left <= 0:
            break
        recipe = replace(request.recipe, order=request.recipe.order + turn)
        made = await build_groups(questions, search, split="train", count=left, recipe=recipe, progress=show)
        train += [replace(group, id=f"{group.id}-{turn}") if turn else group for group in made]
    train = harden(train, request.hard, request.attacks)
    held_out = await _validation(questions, search, request)
    rows = from_groups(train), from_groups(held_out)
    verdict = await asyncio.to_thread(inspect, *rows, contract)
    refuse(verdict, request.limits)
    facts = {"guard": verdict.to_json(), "split": SPLIT_RULE}
    fit = request.fit or questions_fit(sum(len(group.branches) for group in train), seed=request.recipe.seed)
    return _Data(train, held_out, rows, riddles_from(train), fit, facts)


def provenance_file(out: Path) -> Path:
    """Where the origin of every row that an adapter was trained on is kept: beside its folder."""
    return out.with_name(f"{out.name}.{PROVENANCE}")


async def _validation(questions: Any, search: Search, request: TrainRequest) -> list[Group]:
    wider = replace(request.recipe, depth=request.recipe.depth * 5)  # few of the passages found are of this split
    try:
        return await build_groups(
            questions, search, split="validation", count=min(120, max(8, request.max_examples // 40)), recipe=wider
        )
    except TrainingError:
        return []  # a small corpus may have none


def _describe(request: TrainRequest, prompt: str, contract: str) -> dict[str, Any]:
    """Everything that decides the weights, as JSON values."""
    questions = request.data / "questions.jsonl" if request.data.is_dir() else request.data
    values = asdict(request) | {"base": str(request.base), "prompt_body": prompt, "contract_body": contract}
    values["base_name"] = request.base_name or request.base.name
    del values["data"], values["out"]
    values["attacks"] = hashlib.sha256(json.dumps(request.attacks).encode()).hexdigest()
    values["data_sha256"] = hashlib.sha256(questions.read_bytes()).hexdigest() if questions.is_file() else ""
    described: dict[str, Any] = json.loads(json.dumps(values))
    return described


async def _run_child(job: Path, processes: int, report: Report) -> None:
    """Runs the training process, or several, hands its progress on, and raises TrainingError with its reason when it fails."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (job / "log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            *command(__name__, job, processes), stdout=asyncio.subprocess.PIPE, stderr=log, env=env
        )
        failure = ""
        try:
            assert child.stdout is not None
            async for line in child.stdout:
                event = json.loads(line)
                failure = event.pop("error", "") or failure
                if event:
                    report(Progress(**event))
            code = await child.wait()
        finally:
            if child.returncode is None:
                child.terminate()
                await child.wait()
    if failure:
        raise TrainingError(failure)
    if code == -9:
        raise TrainingError(
            "the training process was killed, most likely for memory; free some and run the same command again: it continues"
        )
    if code:
        raise TrainingError(f"the training process ended with code {code}; its log is {job / 'log'}")


def run_job(job: Path, report: Report) -> None:
    """The child's work: tokens, training, probes and manifest. Writes ``JOBDIR/adapter`` in one move."""
    began = datetime.now(UTC)
    finished = job / "adapter"
    if (finished / "manifest.json").is_file():
        return
    stored = json.loads((job / "job.json").read_text("utf-8"))
    wanted: Mapping[str, Any] = stored["request"]
    fit = Fit(**stored["fit"])
    base_sha256 = digest_weights(Path(wanted["base"]))
    forbid_vision()
    processes = join_processes()
    model, tokenizer = open_base(Path(wanted["base"]), wanted["threads"], processes)
    renderer = Renderer(
        tokenizer,
        parse_prompt(wanted["prompt"], wanted["prompt_body"]),
        Contract.parse(wanted["contract"], wanted["contract_body"]),
        lru_cache(maxsize=8192)(LocalTokens(Path(wanted["base"])).count),  # each passage is counted once per question
        wanted["budget_tokens"],
        dict(fit.emphasis),
        fit.refusals,
    )
    data = [pack(renderer.group(group)) for group in read_groups(job / "train.jsonl")]
    others = list(read_groups(job / "validation.jsonl"))
    held_out = [pack(renderer.group(group)) for group in others]
    model = attach_lora(model, fit)
    key = _run_key(stored, base_sha256, [*data, *held_out])
    spent = train_lora(
        model, data, fit, key=key, folder=job, every=CHECKPOINT_STEPS, report=report, held_out=held_out,
        processes=processes,
    )  # fmt: skip
    leave_processes(processes)
    if not processes.is_first:
        return
    validation_loss = mean_loss(model, held_out) if held_out else None
    part = job / ".adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    write_adapter(model, part, wanted["base_name"])
    report(Progress("probe", 0, 1))
    manifest = _manifest(wanted, stored, renderer, base_sha256, began) | {
        "training": spent | {"validation_loss": validation_loss, "peak_memory_mb": _peak_memory_mb()},
        "probe": _probe(model, tokenizer, renderer),
        "closed_book": probe_closed_book(model, renderer, read_riddles(job / "riddles.json")),
        "held_out": measure_form(model, renderer, others),
        "digest": adapter_digest(part),
        "measurements": {},
    }
    write_atomically(part / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")
    failpoint("finished")
    part.replace(finished)
    report(Progress("probe", 1, 1))


def _run_key(stored: Mapping[str, Any], base_sha256: str, data: Sequence[Packed]) -> str:
    """Names a run by all that decides its weights, the very tokens included: only its own checkpoint is continued."""
    digest = hashlib.sha256(json.dumps([stored, base_sha256], sort_keys=True).encode())
    for packed in data:
        digest.update(repr(packed).encode())
    return digest.hexdigest()


def adapter_digest(folder: Path) -> str:
    """sha256 over the sorted names and bytes of the adapter's weights and configuration: its identity."""
    return digest_files({name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG)})


def digest_weights(folder: Path) -> str:
    """sha256 of a model folder's ``*.safetensors``, in the order of their names. Raises TrainingError without any."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise TrainingError(
            f"{folder} holds no *.safetensors; name a model folder, or run `orchestrator up` once to fetch one"
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _manifest(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], renderer: Renderer, base_sha256: str, began: datetime
) -> dict[str, Any]:
    fit = stored["fit"]
    return {
        "name": wanted["name"],
        "collection": wanted["collection"],
        "base": {"name": wanted["base_name"], "sha256": base_sha256},
        "lora": {"rank": fit["rank"], "alpha": fit["alpha"], "targets": list(TARGETS)},
        "prompt": {"name": renderer.prompt.name, "digest": renderer.prompt.digest},
        "contract": {"name": renderer.contract.name, "digest": renderer.contract.digest},
        "budget_tokens": wanted["budget_tokens"],
        "data": {
            "sha256": wanted["data_sha256"],
            "examples_sha256": stored["data_digest"],
            "recipe": wanted["recipe"],
            **stored["counts"],
        },
        "fit": fit,
        "trained_at": began.isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": wanted["threads"]},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
    }


def _probe(model: Any, tokenizer: Any, renderer: Renderer) -> list[dict[str, Any]]:
    conversations = probe_messages(renderer.prompt, renderer.count, renderer.budget_tokens)
    prompts = [renderer.prompt_ids(messages) for messages in conversations]
    trained = greedy(model, tokenizer, prompts, PROBE_TOKENS)
    with model.disable_adapter():
        plain = greedy(model, tokenizer, prompts, PROBE_TOKENS)
    return [
        {"messages": [asdict(message) for message in messages], "adapter": written, "base": other}
        for messages, written, other in zip(conversations, trained, plain, strict=True)
    ]


@contextmanager
def _only_one(job: Path) -> Iterator[None]:
    """Keeps a second process from training the same job; the lock dies with its process."""
    with (job / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"another process trains in {job}; wait for it or name another --out") from error
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be made ({error.strerror}); name another --out") from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _peak_memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024)


def main(arguments: list[str]) -> int:
    """Entry of the training process: one line of JSON per step on standard output."""
    os.nice(5)  # a training run must not starve the services beside it
    last, rank = 0.0, int(os.environ.get("RANK", "0"))
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to the log, not between our lines

    def emit(values: Mapping[str, Any]) -> None:
        lines.write(json.dumps(values) + "\n")
        lines.flush()

    def report(progress: Progress) -> None:
        nonlocal last
        if rank == 0 and (progress.note or progress.done in (0, progress.total) or time.monotonic() - last > 0.5):
            last = time.monotonic()
            emit(asdict(progress))

    try:
        job = Path(arguments[0])
        with _lock_child(job) if rank == 0 else nullcontext():
            run_job(job, report)
    except OrchestratorError as error:
        emit({"error": error.message})
        return 1
    except BrokenPipeError:
        return 1  # the caller is gone; what is done is in the checkpoint
    except OSError as error:
        emit({"error": f"{error}; free some space or memory and run the same command again: it continues"})
        return 1
    return 0


@contextmanager
def _lock_child(job: Path) -> Iterator[None]:
    """A child whose parent was killed may still run; its successor waits until it has ended."""
    with (job / "child.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
