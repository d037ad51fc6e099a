"""What a freshly trained adapter does on texts that it was not trained on, and what it knows without any passage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.behaviour.examples import Group, normalise_answer
from orchestrator.behaviour.rows import Row
from orchestrator.behaviour.tokens import Renderer
from orchestrator.compose import compose_messages
from orchestrator.contract import Contract
from orchestrator.errors import ContractError
from orchestrator.intervals import wilson

CLOSED_BOOK, CLOSED_BOOK_TOKENS = 48, 48
HELD_OUT, HELD_OUT_TOKENS = 32, 400
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Riddle:
    """A question of the training data and its answers; whoever answers it without passages knows it by heart."""

    question: str
    answers: tuple[str, ...]


def riddles_from(groups: Sequence[Group]) -> list[Riddle]:
    """Answered questions of the builder's examples, evenly from all of them."""
    found = [Riddle(b.question, b.answers) for group in groups for b in group.branches if b.citations and b.answers]
    return _spread(found, CLOSED_BOOK)


def riddles_from_rows(rows: Sequence[Row], contract: Contract) -> list[Riddle]:
    """The same of rows with passages. Rows without any have nothing that could be taken away."""
    found = []
    for row in rows:
        data = json.loads(row.target(contract)) if row.passages and contract.form == "json" else {}
        answer = data.get(contract.answer or "") if data and not contract.is_refusal(data) else None
        if isinstance(answer, str) and normalise_answer(answer):
            found.append(Riddle(row.input, (answer,)))
    return _spread(found, CLOSED_BOOK)


def write_riddles(riddles: Sequence[Riddle], file: Path) -> None:
    """Keeps them for the training process."""
    file.write_text(json.dumps([asdict(riddle) for riddle in riddles], ensure_ascii=False), "utf-8")


def read_riddles(file: Path) -> list[Riddle]:
    """What ``write_riddles`` wrote."""
    return [Riddle(item["question"], tuple(item["answers"])) for item in json.loads(file.read_text("utf-8"))]


def probe_closed_book(model: Any, renderer: Renderer, riddles: Sequence[Riddle]) -> dict[str, Any]:
    """How often adapter and base name the answer without passages. ``risen``: the adapter more often than the upper end
    of the base's 95 % interval, that is, facts were learnt."""
    prompts = [
        renderer.prompt_ids(
            compose_messages(
                renderer.prompt, each.question, (), count=renderer.count, budget_tokens=renderer.budget_tokens
            ).messages
        )
        for each in riddles
    ]
    written = generate(model, renderer.tokenizer, prompts, CLOSED_BOOK_TOKENS)
    with model.disable_adapter():
        plain = generate(model, renderer.tokenizer, prompts, CLOSED_BOOK_TOKENS)
    knows = sum(is_named(text, riddle) for text, riddle in zip(written, riddles, strict=True))
    knew = sum(is_named(text, riddle) for text, riddle in zip(plain, riddles, strict=True))
    low, high = wilson(knew, len(riddles))
    risen = bool(riddles) and knows / len(riddles) > high
    return {"questions": len(riddles), "adapter": knows, "base": knew, "base_interval": [low, high], "risen": risen}


def is_named(text: str, riddle: Riddle) -> bool:
    """True when the text holds at least half of an answer's words that the question does not give away."""
    said, asked = set(normalise_answer(text).split()), set(normalise_answer(riddle.question).split())
    for answer in riddle.answers:
        words = set(normalise_answer(answer).split()) - asked
        if words and len(words & said) * 2 >= len(words):
            return True
    return False


def measure_form(model: Any, renderer: Renderer, groups: Sequence[Group]) -> dict[str, Any]:
    """How many held-out inputs the adapter answers, unconstrained and greedily, within the contract; one fault as it reads."""
    rendered = _spread([each for group in groups for each in renderer.group(group)], HELD_OUT)
    longest = max((len(each.target) for each in rendered), default=0)
    prompts = [each.prompt for each in rendered]
    written = generate(model, renderer.tokenizer, prompts, min(HELD_OUT_TOKENS, 2 * longest + 16))
    faults = [fault for text in written if (fault := contract_fault(text, renderer.contract))]
    kept = len(rendered) - len(faults)
    low, high = wilson(kept, len(rendered))
    return {"inputs": len(rendered), "contract_kept": kept, "interval": [low, high], "fault": (faults or [""])[0][:200]}


def contract_fault(text: str, contract: Contract) -> str:
    """Why the text does not keep the contract; empty when it does."""
    try:
        contract.parse_output(text)
    except ContractError as error:
        return error.message
    return ""


def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
    """What the model writes greedily after each prompt, end token removed; sixteen at a time, those alike in length together."""
    import torch

    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.set_attn_implementation("sdpa")
    device, pad = next(inner.parameters()).device, tokenizer.pad_token_id or 0
    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        width = max(len(prompts[at]) for at in places)
        ids = torch.tensor([[pad] * (width - len(prompts[at])) + list(prompts[at]) for at in places], device=device)
        mask = torch.tensor([[0] * (width - len(prompts[at])) + [1] * len(prompts[at]) for at in places], device=device)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad
            )
        for at, row in zip(places, out, strict=True):
            texts[at] = tokenizer.decode(row[width:], skip_special_tokens=True)
    return [texts[at] for at in range(len(prompts))]


def _spread(things: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of them, at even distances."""
    step = max(1.0, len(things) / count)
    return [things[int(at * step)] for at in range(min(count, len(things)))]


def summary(found: Mapping[str, Any]) -> str:
    """One line about the held-out form, for a person."""
    return f"{found['contract_kept']} of {found['inputs']} held-out inputs were answered within the contract"
