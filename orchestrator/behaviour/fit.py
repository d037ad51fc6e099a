"""The training loop: packed sequences in, LoRA weights out; survives being killed at any moment and goes on exactly there."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.behaviour.processes import ALONE, Processes
from orchestrator.behaviour.tokens import Packed
from orchestrator.errors import MissingExtraError, TrainingError
from orchestrator.failpoints import failpoint

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHECKPOINT = "checkpoint.safetensors"
PATIENCE = 4
_COUNTERS = ("step", "wall_s", "cpu_s", "tokens", "loss", "scores", "best_step", "waited")
_ALIGN = 64  # lengths are padded to this: oneDNN compiles a kernel for every new shape (measured 4.0 s against 1.5 s)
_BLOCK = 256  # queries per block of attention
_PLAIN_ATTENTION = frozenset({"llama", "mistral", "qwen2", "qwen3"})  # no soft cap, sinks or sliding window in use


@dataclass(frozen=True, slots=True)
class Fit:
    """What decides the weights. ``batch``: packed sequences per optimizer step.

    ``emphasis``: how much the value of a role (answerable, citations, evidence, answer) counts in the loss, others 1;
    ``refusals``: how many times that the verdict of a refusal counts, which moves the point where the model refuses.
    ``checks``: how often a run looks at the held-out task; it stops after ``patience`` looks without a gain (0: never).
    ``start``: folder of an adapter of the same rank that training goes on from; none: fresh weights.
    """

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1.2e-3
    epochs: int = 1
    batch: int = 2
    warmup: float = 0.05
    clip: float = 1.0
    emphasis: tuple[tuple[str, float], ...] = ()
    refusals: float = 1.0
    checks: int = 10
    patience: int = PATIENCE
    start: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. ``seconds_left`` and ``tokens_per_s`` are None until they are known."""

    stage: str
    done: int
    total: int
    loss: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    note: str = ""


Report = Callable[[Progress], None]


@dataclass(slots=True)
class _Run:
    """The moving parts of one run: fp32 masters of the LoRA weights, their optimizer, and what was spent so far.

    ``best`` and ``scores``: the weights of the best look at the held-out task, and what each branch scored then.
    """

    model: Any
    weights: list[Any]
    masters: list[Any]
    optimizer: Any
    step: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    tokens: int = 0
    loss: float = 0.0
    best: list[Any] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_step: int = 0
    waited: int = 0
    processes: Processes = ALONE


def open_base(folder: Path, threads: int, processes: Processes = ALONE) -> tuple[Any, Any]:
    """The base model and its tokenizer, on this process's GPU when there is one. Raises MissingExtraError without the extra
    ``train``."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("train", "training an adapter") from error
    torch.set_num_threads(threads)
    device = f"cuda:{processes.index}" if torch.cuda.is_available() else "cpu"
    fast = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if fast else torch.float32)
    if device == "cpu" and model.config.model_type in _PLAIN_ATTENTION:
        _use_blocked_attention(model)
    return model.to(device), AutoTokenizer.from_pretrained(folder)


def attach_lora(model: Any, fit: Fit) -> Any:
    """The model with LoRA weights on all linear layers: fresh and seeded, or those of the adapter that ``fit`` starts from.

    Raises TrainingError when there is no such adapter or its weights do not fit.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(fit.seed)
    config = LoraConfig(
        r=fit.rank, lora_alpha=fit.alpha, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if fit.start:
        _load_start(adapted, Path(fit.start))
    return adapted


def _load_start(model: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{folder} holds no adapter to start from ({error}); name another folder or none"
        ) from error
    own = get_peft_model_state_dict(model)
    if {name: tensor.shape for name, tensor in state.items()} != {name: own[name].shape for name in own}:
        raise TrainingError(f"the adapter in {folder} has another rank or other layers; start from one that is alike")
    set_peft_model_state_dict(model, state)


def train_lora(
    model: Any,
    data: Sequence[Packed],
    fit: Fit,
    *,
    key: str,
    folder: Path,
    every: int,
    report: Report,
    held_out: Sequence[Packed] = (),
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Trains in place; returns steps, seconds and tokens. A checkpoint of the same ``key`` in ``folder`` is continued.

    With ``held_out`` the model ends with the weights that did its task best (see ``score_task``), and stops early when
    they stop getting better. Raises TrainingError when the loss is not a number, memory runs out or the disk is full.
    """
    run = _start(model, fit)
    run.processes = processes
    batches = list(_batches(len(data), fit))
    look = max(1, -(-len(batches) // max(1, fit.checks))) if held_out and fit.patience else 0
    if _restore(run, folder / CHECKPOINT, key):
        report(Progress("train", run.step, len(batches), note=f"continues at step {run.step}"))
    elif (folder / CHECKPOINT).exists():
        report(Progress("train", 0, len(batches), note="starts anew: data or settings differ from the checkpoint's"))
    began, spent, tokens = time.monotonic(), time.process_time(), 0
    first = run.step
    wall, cpu = run.wall_s, run.cpu_s
    while run.step < len(batches) and not (look and run.waited >= fit.patience):
        chosen = [data[at] for at in batches[run.step]]
        _take_step(run, chosen, fit, run.step, len(batches))
        run.step += 1
        failpoint("step")
        tokens += sum(len(packed.ids) for packed in chosen)
        run.tokens += sum(len(packed.ids) for packed in chosen)
        run.wall_s, run.cpu_s = wall + time.monotonic() - began, cpu + time.process_time() - spent
        rate = (time.monotonic() - began) / (run.step - first)
        report(
            Progress(
                "train",
                run.step,
                len(batches),
                loss=run.loss,
                tokens_per_s=tokens / (time.monotonic() - began),
                seconds_left=rate * (len(batches) - run.step),
            )
        )
        if look and (run.step % look == 0 or run.step == len(batches)):
            _look(run, held_out, len(batches), report)
        if processes.is_first and (run.step % every == 0 or run.step == len(batches)):
            _checkpoint(run, folder / CHECKPOINT, key)
    told = {"steps": run.step, "wall_s": run.wall_s, "cpu_s": run.cpu_s, "tokens": run.tokens, "last_loss": run.loss}
    if run.best:
        _set(run.weights, run.best)
        told |= {"best_step": run.best_step, "task_score": sum(run.scores) / len(run.scores)}
    return told


def score_task(model: Any, held_out: Sequence[Packed]) -> list[float]:
    """How much of each held-out answer greedy decoding would write right before its first mistake: 0 to 1 a branch.

    Greedy decoding writes the target up to the first place where another token is likelier, so one pass without decoding
    tells it exactly. Tokens count as in the loss: a wrong verdict or citation costs nearly all, a last word little.
    """
    import torch

    scores = []
    for packed in held_out:
        with torch.no_grad():
            right = (_logits(model, packed).argmax(-1).cpu() == torch.tensor(packed.targets)).tolist()
        weights = packed.weights or (1.0,) * len(packed.targets)
        whole: dict[int, float] = defaultdict(float)
        kept: dict[int, float] = defaultdict(float)
        wrong: set[int] = set()
        for at, weight, hit in zip(packed.predictors, weights, right, strict=True):
            branch = packed.branch[at]
            whole[branch] += weight
            if not hit:
                wrong.add(branch)
            kept[branch] += weight * (branch not in wrong)
        scores += [kept[branch] / whole[branch] for branch in whole]
    return scores


def _look(run: _Run, held_out: Sequence[Packed], total: int, report: Report) -> None:
    """Keeps these weights unless earlier ones were better by more than a standard error of the paired difference."""
    scores = run.processes.as_first(score_task(run.model, held_out), run.masters[0].device)
    mean = sum(scores) / len(scores)
    report(Progress("train", run.step, total, note=f"held-out task {mean:.3f}"))
    differences = [new - old for new, old in zip(scores, run.scores, strict=True)] if run.scores else []
    gain = sum(differences) / len(scores)
    error = math.sqrt(sum((each - gain) ** 2 for each in differences)) / len(scores)
    run.waited = (
        0 if gain > 0 or not any(run.scores) else run.waited + 1
    )  # before anything is right, nothing can be lost
    if not run.scores or gain >= -error:
        run.best = [master.detach().clone() for master in run.masters]
        run.scores, run.best_step = scores, run.step


def mean_loss(model: Any, data: Sequence[Packed]) -> float:
    """Mean loss per target token (weighted as in training), without training."""
    import torch

    with torch.no_grad():
        losses = [(float(_loss(model, packed)), _size(packed)) for packed in data]
    return sum(loss for loss, _ in losses) / max(1, sum(size for _, size in losses))


def write_adapter(model: Any, folder: Path, base: str) -> None:
    """Writes ``adapter_model.safetensors`` (bf16) and ``adapter_config.json`` in the form that PEFT and vLLM read."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    state = get_peft_model_state_dict(model)
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in sorted(state.items())}
    config = model.peft_config["default"].to_dict()
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    config |= {"base_model_name_or_path": base, "inference_mode": True, "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / "adapter_config.json", json.dumps(config, indent=1, sort_keys=True).encode() + b"\n")


def greedy(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
    """What the model writes greedily after each prompt, one at a time, end token removed."""
    import torch

    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.set_attn_implementation("sdpa")
    texts = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=next(inner.parameters()).device)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
            )
        texts.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return texts


def write_atomically(file: Path, content: bytes) -> None:
    """Writes so that after a crash the file is the old one or the new one. Raises TrainingError when the disk is full."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        failpoint(f"wrote-{file.name}")
        part.replace(file)
        handle = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TrainingError(
            f"{file} cannot be written ({error.strerror}); free some space and run the same command again: it continues"
        ) from error


def forbid_vision() -> None:
    """Keeps CUDA builds of torchvision and its kin, which some wheels drag in, from breaking ``import transformers``."""
    for name in ("torchvision", "torchaudio", "torchcodec"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _start(model: Any, fit: Fit) -> _Run:
    import torch

    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    masters = [weight.detach().float().clone() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=fit.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    return _Run(model, weights, masters, optimizer)


def _batches(size: int, fit: Fit) -> Iterator[list[int]]:
    """Indices of each step's sequences, in a seeded order; the last batch may be smaller."""
    for epoch in range(fit.epochs):
        order = list(range(size))
        random.Random(f"{fit.seed}:{epoch}").shuffle(order)
        for at in range(0, size, fit.batch):
            yield order[at : at + fit.batch]


def _take_step(run: _Run, chosen: Sequence[Packed], fit: Fit, step: int, total: int) -> None:
    import torch

    size = sum(_size(packed) for packed in chosen)
    for master in run.masters:
        master.grad = torch.zeros_like(master)
    summed = torch.zeros((), device=run.masters[0].device)
    try:
        for packed in run.processes.share(chosen):
            loss = _loss(run.model, packed)
            (loss / size).backward()
            summed += loss.detach()
            for master, weight in zip(run.masters, run.weights, strict=True):
                master.grad += weight.grad.float()
                weight.grad = None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise TrainingError(
                "memory ran out; free some (a step of five passages takes about 3 GB) and run the same command again: "
                "it continues"
            ) from error
        raise
    run.processes.add_up([*(master.grad for master in run.masters), summed])
    run.loss = float(summed) / size
    if not math.isfinite(run.loss):
        raise TrainingError(
            f"the loss is {run.loss} at step {step}; train with a smaller learning rate (Fit.learning_rate)"
        )
    torch.nn.utils.clip_grad_norm_(run.masters, fit.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = fit.learning_rate * _rate(step, total, fit.warmup)
    run.optimizer.step()
    _set(run.weights, run.masters)


def _set(weights: Sequence[Any], masters: Sequence[Any]) -> None:
    import torch

    with torch.no_grad():
        for master, weight in zip(masters, weights, strict=True):
            weight.copy_(master)


def _rate(step: int, total: int, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine down to 5 %."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _loss(model: Any, packed: Packed) -> Any:
    """Summed cross-entropy of the targets."""
    import torch

    logits = _logits(model, packed)
    targets = torch.tensor(packed.targets, device=logits.device)
    if not packed.weights:
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    weights = torch.tensor(packed.weights, device=logits.device)
    return (torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


def _logits(model: Any, packed: Packed) -> Any:
    """Logits of shape (targets, vocabulary); they are computed for the predictors only (a tenth of the tokens)."""
    import torch

    inner = model.get_base_model()
    device, dtype = inner.device, inner.dtype
    length = -(-len(packed.ids) // _ALIGN) * _ALIGN
    pad = length - len(packed.ids)
    ids = torch.tensor([[*packed.ids, *[0] * pad]], device=device)
    positions = torch.tensor([[*packed.positions, *[0] * pad]], device=device)
    branch = torch.tensor([*packed.branch, *[-2] * pad], device=device)
    order = torch.arange(length, device=device)
    allowed = (order[None, :] <= order[:, None]) & ((branch[None, :] == -1) | (branch[None, :] == branch[:, None]))
    mask = torch.zeros(length, length, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)
    hidden = inner.model(
        input_ids=ids, attention_mask=mask[None, None], position_ids=positions, use_cache=False
    ).last_hidden_state
    return inner.lm_head(hidden[0, torch.tensor(packed.predictors, device=device)])


def _size(packed: Packed) -> float:
    return sum(packed.weights) if packed.weights else len(packed.targets)


def _use_blocked_attention(model: Any) -> None:
    """Attention by blocks of queries over the keys before their end.

    torch's fused CPU attention took 53 % of a step of 900 tokens with a mask; this takes 25 % (260 -> 434 tokens/s).
    """
    import torch
    from transformers import AttentionInterface

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> tuple[Any, None]:
        batch, heads, length, width = query.shape
        kept = key.shape[1]
        queries = (query * scaling).reshape(batch * kept, heads // kept, length, width)
        keys, values = key.reshape(batch * kept, -1, width), value.reshape(batch * kept, -1, width)
        parts = []
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            block = queries[:, :, start:end].reshape(batch * kept, -1, width)
            scores = torch.bmm(block, keys[:, :end].transpose(1, 2)).view(batch * kept, -1, end - start, end)
            weights = torch.softmax(scores + mask[0, 0, start:end, :end], -1).view(batch * kept, -1, end)
            parts.append(torch.bmm(weights, values[:, :end]).view(batch, heads, end - start, width))
        return torch.cat(parts, 2).transpose(1, 2), None

    AttentionInterface.register("orchestrator_blocked", attend)
    model.set_attn_implementation("orchestrator_blocked")


def _checkpoint(run: _Run, file: Path, key: str) -> None:
    import torch
    from safetensors.torch import save

    tensors = {"rng": torch.get_rng_state()}
    for number, master in enumerate(run.masters):
        state = run.optimizer.state[master]
        tensors[f"{number}.weight"] = master
        tensors[f"{number}.mean"] = state["exp_avg"]
        tensors[f"{number}.square"] = state["exp_avg_sq"]
    tensors |= {f"{number}.best": best for number, best in enumerate(run.best)}
    counters = {name: getattr(run, name) for name in _COUNTERS}
    write_atomically(file, save(tensors, metadata={"key": key, "counters": json.dumps(counters)}))


def _restore(run: _Run, file: Path, key: str) -> bool:
    """Takes up the checkpoint if it belongs to this run; safetensors holds no code, so a foreign file can do no harm."""
    import torch
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt") as stored:
            head = stored.metadata() or {}
            if head.get("key") != key:
                return False
            counters = json.loads(head["counters"])
            torch.set_rng_state(stored.get_tensor("rng"))
            with torch.no_grad():
                for number, (master, weight) in enumerate(zip(run.masters, run.weights, strict=True)):
                    master.copy_(stored.get_tensor(f"{number}.weight"))
                    weight.copy_(master)
                    if counters["scores"]:
                        run.best.append(stored.get_tensor(f"{number}.best").to(master.device))
                    run.optimizer.state[master] = {
                        "step": torch.tensor(float(counters["step"])),
                        "exp_avg": stored.get_tensor(f"{number}.mean").to(master.device),
                        "exp_avg_sq": stored.get_tensor(f"{number}.square").to(master.device),
                    }
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"{file} is damaged ({error}); delete it to start anew") from error
    for name in _COUNTERS:
        setattr(run, name, counters[name])
    return True
