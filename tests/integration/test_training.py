"""Training with the real libraries on a tiny random model: exact tokens, repeatable weights, survival of kill -9."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.behaviour.examples import Recipe, build_groups, load_questions
from orchestrator.behaviour.fit import (
    Fit,
    Progress,
    attach_lora,
    forbid_vision,
    mean_loss,
    open_base,
    score_task,
    train_lora,
    write_atomically,
)
from orchestrator.behaviour.preflight import check_adapter
from orchestrator.behaviour.tokens import Packed, Rendered, Renderer, pack, unpack
from orchestrator.behaviour.train import NOT_HARD, TrainRequest, adapter_digest, provenance_file, train_adapter
from orchestrator.compose import compose_messages
from orchestrator.errors import TrainingError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.testing import passage
from orchestrator.tokens import LocalTokens
from orchestrator.types import Passage

forbid_vision()
pytest.importorskip("torch")
pytest.importorskip("peft")

KILLED_RUNS = int(os.environ.get("TRAINING_KILLED_RUNS", "1"))  # each is killed three times, at random moments
KILL_SEED = os.environ.get("TRAINING_KILL_SEED", str(random.randrange(10**6)))
MOMENTS = ("lock", "job.json", "child.lock", "checkpoint.safetensors", ".adapter.part", "adapter")  # counted from there
RUN = """
import asyncio
from pathlib import Path
from tests.integration.test_training import make_request, train

asyncio.run(train(make_request(Path(BASE), Path(WHERE))))
"""
CATALOGUE = load_catalogue(folder("prompts"))
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    passage(
        number,
        f"House {number} of street {number % 6} was built by mason {number * 7}.",
        title="",
        external_id=f"d{number}",
    )
    for number in range(1, 91)
]


async def search(text: str, k: int) -> Sequence[Passage]:
    """Passages that share most words with the question."""
    wanted = set(text.lower().replace("?", "").split())
    return sorted(CORPUS, key=lambda each: -len(wanted & set(each.text.lower().replace(".", "").split())))[:k]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a byte-level tokenizer and SmolLM2's chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    where = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([each.text for each in CORPUS] + ['{"answerable":true,"citations":[1]}'] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(where)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(where)
    return where


def make_request(base: Path, where: Path) -> TrainRequest:
    """A small run: some 20 steps of a second or two in all."""
    lines = [
        {
            "id": f"q{each.chunk_id}",
            "question": f"Who built House {each.chunk_id} of street {each.chunk_id % 6}?",
            "document_id": each.external_id,
            "answerable": True,
            "answers": [f"mason {each.chunk_id * 7}"],
        }
        for each in CORPUS
    ]
    (where / "questions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return TrainRequest(
        name="tiny",
        data=where,
        collection="c",
        base=base,
        base_name="tiny-base",
        out=where / "out" / "tiny",
        max_examples=60,
        recipe=Recipe(seed=1, max_branches=3),
        hard=NOT_HARD,
        fit=Fit(rank=4, alpha=8, learning_rate=1e-2, batch=1),
    )


@pytest.fixture
def request_(base: Path, tmp_path: Path) -> TrainRequest:
    return make_request(base, tmp_path)


@pytest.fixture(scope="session")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Progress]]:
    """An uninterrupted run: the adapter's folder and its progress."""
    return asyncio.run(train(make_request(base, tmp_path_factory.mktemp("whole"))))


async def train(request: TrainRequest) -> tuple[Path, list[Progress]]:
    seen: list[Progress] = []
    return await train_adapter(request, search=search, catalogue=CATALOGUE, progress=seen.append), seen


async def train_until_killed(request: TrainRequest, failpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILPOINT", failpoint)
    with pytest.raises(TrainingError, match="run the same command again"):
        await train(request)
    monkeypatch.delenv("FAILPOINT")
    assert not request.out.exists()


async def test_a_branch_holds_exactly_the_tokens_of_its_conversation(base: Path, request_: TrainRequest) -> None:
    _, tokenizer = open_base(base, 1)
    renderer = Renderer(
        tokenizer, CATALOGUE.prompt("grounded"), CATALOGUE.contract("cited_answer"), LocalTokens(base).count, 1600
    )
    groups = await build_groups(load_questions(request_.data), search, split="train", count=40, recipe=request_.recipe)

    for group in groups:
        branches = unpack(pack(renderer.group(group)))
        for branch, ids in zip(group.branches, branches, strict=True):
            served = compose_messages(
                renderer.prompt, branch.question, group.passages, count=renderer.count, budget_tokens=1600
            )
            turns = [{"role": each.role, "content": each.content} for each in served.messages]
            written = branch.output or renderer.contract.dump(branch.target())
            turns.append({"role": "assistant", "content": written})
            whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)[
                "input_ids"
            ]
            assert tuple(whole[: len(ids)]) == ids
            assert tokenizer.decode(whole[len(ids) :]) == "\n"


async def test_packed_branches_have_the_loss_of_conversations_alone(base: Path, request_: TrainRequest) -> None:
    model, tokenizer = open_base(base, 1)
    renderer = Renderer(
        tokenizer, CATALOGUE.prompt("grounded"), CATALOGUE.contract("cited_answer"), LocalTokens(base).count, 1600
    )
    groups = await build_groups(load_questions(request_.data), search, split="train", count=12, recipe=request_.recipe)
    tuned = attach_lora(model.float(), request_.fit)

    rendered = [conversation for group in groups for conversation in renderer.group(group)]
    packed = mean_loss(tuned, [pack(renderer.group(group)) for group in groups])
    alone = mean_loss(tuned, [pack([conversation]) for conversation in rendered])

    assert packed == pytest.approx(alone, rel=1e-5)


async def test_the_verdict_of_a_refusal_weighs_as_told(base: Path, request_: TrainRequest) -> None:
    _, tokenizer = open_base(base, 1)
    renderer = Renderer(
        tokenizer, CATALOGUE.prompt("grounded"), CATALOGUE.contract("cited_answer"), LocalTokens(base).count, 1600,
        {"answerable": 5.0}, 2.5,
    )  # fmt: skip
    groups = await build_groups(load_questions(request_.data), search, split="train", count=40, recipe=request_.recipe)

    heaviest = {
        branch.answerable: max(rendered.weights)
        for group in groups
        for branch, rendered in zip(group.branches, renderer.group(group), strict=True)
    }

    assert heaviest == {True: 5.0, False: 12.5}


async def test_a_second_pass_asks_the_same_questions_in_other_groups(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(*_: Any) -> None:
        raise TrainingError("prepared")

    monkeypatch.setattr("orchestrator.behaviour.train._run_child", stop)
    request = replace(request_, max_examples=1000, recipe=replace(request_.recipe, passes=2))
    with pytest.raises(TrainingError, match="prepared"):
        await train(request)

    groups = [json.loads(line) for line in (request.job / "train.jsonl").read_text().splitlines()]

    second = [group for group in groups if group["id"].endswith("-1")]
    assert 0.3 * len(groups) < len(second) < 0.7 * len(groups)
    assert len({group["id"] for group in groups}) == len(groups)


@pytest.mark.parametrize(("many", "weight"), [(40, 2.5), (80, 1.0)])  # 60 examples are built
async def test_refusals_weigh_by_how_many_examples_were_built(
    many: int, weight: float, request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(*_: Any) -> None:
        raise TrainingError("prepared")

    monkeypatch.setattr("orchestrator.behaviour.train._run_child", stop)
    monkeypatch.setattr("orchestrator.behaviour.defaults.MANY", many)
    with pytest.raises(TrainingError, match="prepared"):
        await train(replace(request_, fit=None))

    fit = json.loads((request_.job / "job.json").read_text())["fit"]

    assert (fit["refusals"], fit["seed"]) == (weight, request_.recipe.seed)


def packed_of(prompt: tuple[int, ...], target: tuple[int, ...], weights: tuple[float, ...] = ()) -> Packed:
    return pack([Rendered(prompt, target, weights)])


def test_the_held_out_task_is_scored_by_what_greedy_decoding_writes(base: Path, request_: TrainRequest) -> None:
    import torch

    model, _ = open_base(base, 1)
    tuned = attach_lora(model.float(), request_.fit)
    prompt, written = (5, 9, 13, 7), list[int]()
    blocked = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    for _ in range(4):  # greedy decoding, by the whole sequence each time
        logits = tuned(input_ids=torch.tensor([[*prompt, *written]])).logits
        written.append(int(logits[0, -1].argmax()))
    model.set_attn_implementation(blocked)
    wrong = [*written[:2], written[2] + 1, written[3]]

    assert score_task(tuned, [packed_of(prompt, tuple(written))]) == [1.0]
    assert score_task(tuned, [packed_of(prompt, tuple(wrong))]) == [0.5]
    assert score_task(tuned, [packed_of(prompt, tuple(wrong), (6.0, 2.0, 1.0, 1.0))]) == [0.8]
    assert score_task(tuned, [packed_of(prompt, (written[0] + 1, *written[1:]))]) == [0.0]


def test_a_run_stops_when_the_held_out_task_gains_nothing_and_keeps_the_best_weights(
    base: Path, request_: TrainRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = open_base(base, 1)
    data = [packed_of((5, 9, number), (11, 12, 2)) for number in range(3, 43)]
    looks = iter([[0.2, 0.2], [0.9, 0.9], [0.5, 0.5], [0.6, 0.6], [0.4, 0.4], [1.0, 1.0]])
    kept: list[Any] = []
    tuned = attach_lora(model, request_.fit)

    def score(model: Any, _: Any) -> list[float]:
        kept.append({name: value.clone() for name, value in model.state_dict().items() if "lora" in name})
        return next(looks)

    monkeypatch.setattr("orchestrator.behaviour.fit.score_task", score)
    fit = Fit(rank=4, alpha=8, learning_rate=1e-2, batch=1, checks=10, patience=3)

    spent = train_lora(
        tuned, data, fit, key="k", folder=tmp_path, every=10, report=lambda _: None, held_out=[data[0], data[1]]
    )

    assert (spent["steps"], spent["best_step"]) == (20, 8)  # a look every four steps; three without a gain
    now = tuned.state_dict()
    assert all(bool((now[name] == value).all()) for name, value in kept[1].items())
    assert any(bool((now[name] != value).any()) for name, value in kept[4].items())


def test_a_run_learns_and_leaves_a_checked_adapter_and_nothing_else(whole: tuple[Path, list[Progress]]) -> None:
    out, seen = whole

    checked = check_adapter(out)

    losses = [progress.loss for progress in seen if progress.loss is not None]
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny", "tiny.provenance.jsonl"]
    assert checked.rank == 4
    assert losses[-1] < losses[0]


def test_the_manifest_says_what_the_adapter_depends_on(base: Path, whole: tuple[Path, list[Progress]]) -> None:
    out, _ = whole

    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())

    assert manifest["digest"] == adapter_digest(out)
    assert manifest["prompt"] == {"name": "grounded", "digest": CATALOGUE.prompt("grounded").digest}
    assert manifest["contract"] == {"name": "cited_answer", "digest": CATALOGUE.contract("cited_answer").digest}
    assert manifest["base"]["name"] == "tiny-base"
    assert manifest["data"]["questions"] == 60
    assert sum(manifest["data"]["kinds"].values()) == 60
    assert len(manifest["probe"]) == 8
    assert manifest["data"]["origins"] == {"builder": 60}
    assert manifest["data"]["guard"]["underived"]["count"] == 0
    assert manifest["closed_book"]["questions"] > 20
    assert manifest["held_out"]["inputs"] > 0
    assert str(base) not in json.dumps(manifest)


def test_every_row_leads_back_to_its_question(whole: tuple[Path, list[Progress]]) -> None:
    out, _ = whole
    content = provenance_file(out).read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())

    records = [json.loads(line) for line in content.splitlines()]

    assert hashlib.sha256(content).hexdigest() == manifest["data"]["provenance_sha256"]
    assert sum(record["split"] == "train" for record in records) == 60
    assert all(record["origin"]["question"] == record["id"] and record["documents"] for record in records)


@pytest.mark.parametrize(
    ("failpoint", "note"),
    [
        (f"step:{random.randint(2, 9)}", ""),
        (f"step:{random.randint(12, 19)}", "continues at step 10"),
        ("wrote-checkpoint.safetensors:2", "continues at step 10"),
        ("finished", "continues at step"),
    ],
)
async def test_a_killed_run_goes_on_to_the_same_bytes(
    request_: TrainRequest,
    whole: tuple[Path, list[Progress]],
    monkeypatch: pytest.MonkeyPatch,
    failpoint: str,
    note: str,
) -> None:
    await train_until_killed(request_, failpoint, monkeypatch)

    again, seen = await train(request_)

    assert (again / "adapter_model.safetensors").read_bytes() == (whole[0] / "adapter_model.safetensors").read_bytes()
    assert adapter_digest(again) == adapter_digest(whole[0])
    assert note in " ".join(progress.note for progress in seen)


async def test_a_kill_between_the_two_moves_leaves_no_adapter_and_is_mended(
    request_: TrainRequest, whole: tuple[Path, list[Progress]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(name: str) -> None:
        if name == "provenance":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.behaviour.train.failpoint", die)
        with pytest.raises(KeyboardInterrupt):
            await train(request_)
    assert not request_.out.exists()

    again, _ = await train(request_)

    assert adapter_digest(again) == adapter_digest(whole[0])
    assert provenance_file(again).read_bytes() == provenance_file(whole[0]).read_bytes()


@pytest.mark.parametrize("turn", range(KILLED_RUNS))
async def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    base: Path, tmp_path: Path, whole: tuple[Path, list[Progress]], turn: int
) -> None:
    """Row D9: parent and child die by kill -9 at three random moments; until the end, no adapter or a whole one is there."""
    request = make_request(base, tmp_path)
    script = tmp_path / "run.py"
    script.write_text(RUN.replace("WHERE", repr(str(tmp_path))).replace("BASE", repr(str(base))))
    chance = random.Random(f"{KILL_SEED}:{turn}")

    for _ in range(3):
        await run_and_kill(script, request.job / chance.choice(MOMENTS), chance.uniform(0, 1.5))
        assert not request.out.exists() or check_adapter(request.out)
    if not request.out.exists():
        await run_and_kill(script, None, 0)

    assert check_adapter(request.out).digest == adapter_digest(whole[0]), f"TRAINING_KILL_SEED={KILL_SEED}"
    assert provenance_file(request.out).read_bytes() == provenance_file(whole[0]).read_bytes()
    assert sorted(path.name for path in request.out.parent.iterdir()) == ["tiny", "tiny.provenance.jsonl"]


async def run_and_kill(script: Path, sign: Path | None, after_s: float) -> None:
    """Runs the script in a session of its own; so long after the sign is there, all of it is killed, if it still runs."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=environment, start_new_session=True, stderr=asyncio.subprocess.PIPE
    )
    talk = asyncio.create_task(process.communicate())
    while sign is not None and not talk.done():
        if sign.exists():
            await asyncio.wait([talk], timeout=after_s)
            if not talk.done():
                os.killpg(process.pid, signal.SIGKILL)
                await talk
                return
        await asyncio.wait([talk], timeout=0.02)
    _, said = await talk
    assert process.returncode == 0 or b"holds an adapter already" in said, said.decode()


async def test_two_processes_train_the_adapter_that_one_trains(base: Path, tmp_path: Path) -> None:
    """Two on a CPU share the sequences of each step, as two GPUs would."""
    from safetensors.torch import load_file

    weights = []
    for processes in (1, 2):
        where = tmp_path / str(processes)
        where.mkdir()
        request = replace(make_request(base, where), processes=processes)
        request = replace(request, fit=Fit(rank=4, alpha=8, learning_rate=1e-3, batch=2))
        out, seen = await train(request)
        weights.append(load_file(out / "adapter_model.safetensors"))
        assert sorted(path.name for path in out.parent.iterdir()) == ["tiny", "tiny.provenance.jsonl"]
        assert [each.total for each in seen if each.stage == "train"][-1] == json.loads(
            (out / "manifest.json").read_text()
        )["training"]["steps"]

    alone, together = weights
    moved = {name: float(value.float().norm()) for name, value in alone.items() if "lora_B" in name}
    apart = {name: float((alone[name].float() - together[name].float()).norm()) for name in moved}
    assert min(moved.values()) > 0.01
    assert all(apart[name] < 0.02 * moved[name] for name in moved)


async def test_other_settings_start_anew_and_say_so(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    await train_until_killed(request_, "step:13", monkeypatch)

    _, seen = await train(replace(request_, fit=replace(request_.fit, learning_rate=2e-3)))

    notes = " ".join(progress.note for progress in seen)
    assert "built anew" in notes
    assert "starts anew" in notes


async def test_a_damaged_checkpoint_is_named(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    await train_until_killed(request_, "step:13", monkeypatch)
    (request_.job / "checkpoint.safetensors").write_bytes(b"garbage")

    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is damaged"):
        await train(request_)


async def test_an_existing_adapter_is_never_overwritten(request_: TrainRequest) -> None:
    request_.out.mkdir(parents=True)
    (request_.out / "manifest.json").write_text("{}")

    with pytest.raises(TrainingError, match="holds an adapter already"):
        await train(request_)


async def test_two_runs_of_one_job_do_not_meet(request_: TrainRequest) -> None:
    results = await asyncio.gather(train(request_), train(request_), return_exceptions=True)

    failures = [result for result in results if isinstance(result, BaseException)]
    assert len(failures) == 1
    assert "another process trains" in str(failures[0])


async def test_a_base_without_weights_is_named(request_: TrainRequest, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no \*\.safetensors"):
        await train(replace(request_, base=tmp_path))


async def test_a_budget_too_small_for_the_passages_is_said(request_: TrainRequest) -> None:
    with pytest.raises(TrainingError, match="exceed the budget of 150"):
        await train(replace(request_, budget_tokens=150))


async def test_a_cancelled_run_leaves_no_process(request_: TrainRequest) -> None:
    import psutil

    began = asyncio.Event()

    def show(progress: Progress) -> None:
        if progress.stage == "train":
            began.set()

    task = asyncio.create_task(train_adapter(request_, search=search, catalogue=CATALOGUE, progress=show))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not [each for each in psutil.Process().children() if str(request_.job) in each.cmdline()]
    assert not request_.out.exists()


def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "checkpoint.safetensors"
    write_atomically(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="free some space"):
        write_atomically(file, b"new")

    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


async def test_training_goes_on_from_another_adapter(
    request_: TrainRequest, whole: tuple[Path, list[Progress]], tmp_path: Path
) -> None:
    assert request_.fit is not None
    started = replace(request_, fit=replace(request_.fit, start=str(whole[0])), out=tmp_path / "out" / "second")

    out, seen = await train(started)

    first = next(each.loss for each in seen if each.stage == "train" and each.loss is not None)
    fresh = next(each.loss for each in whole[1] if each.stage == "train" and each.loss is not None)
    assert first < fresh - 0.3  # from fresh weights the two are equal
    assert json.loads((out / "manifest.json").read_text())["fit"]["start"] == str(whole[0])


@pytest.mark.parametrize("rank", [None, 8], ids=["no adapter", "another rank"])
async def test_a_start_that_does_not_fit_is_named(
    request_: TrainRequest, whole: tuple[Path, list[Progress]], tmp_path: Path, rank: int | None
) -> None:
    assert request_.fit is not None
    fit = replace(request_.fit, rank=rank or 4, start=str(whole[0] if rank else tmp_path / "none"))

    with pytest.raises(TrainingError, match="another rank" if rank else "no adapter to start from"):
        await train(replace(request_, fit=fit))


async def test_the_weights_of_fields_reach_the_loss(base: Path, request_: TrainRequest) -> None:
    _, tokenizer = open_base(base, 1)
    count = LocalTokens(base).count
    contract = CATALOGUE.contract("cited_answer")
    renderer = Renderer(
        tokenizer, CATALOGUE.prompt("grounded"), contract, count, 1600, {"answerable": 5.0, "evidence": 0.5}
    )
    groups = await build_groups(load_questions(request_.data), search, split="train", count=9, recipe=request_.recipe)

    packed = pack(renderer.group(groups[0]))

    assert {0.5, 1.0, 5.0} == set(packed.weights)
    assert len(packed.weights) == len(packed.targets)
