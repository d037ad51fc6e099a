"""Replaces vLLM's CPU arithmetic for run-time LoRA inside our vLLM child: one matrix product per adapter, not per token.

vLLM 0.32 copies the adapter's factors once for every token of the batch (``weights[token_indices]``): a prompt of 575
tokens cost 3.9 s of CPU through an adapter and 0.7 s without. It also reads index -1, "no adapter", as the last adapter
slot: with every slot in use, a request to the base model is answered through somebody's adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NO_ADAPTER = -1
FEW_ROWS = 32  # a bf16 product costs 13 us however small; up to here float32, conversions included, costs less


def install() -> None:
    """Takes effect in this process and in those that are forked from it."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper: Any = PunicaWrapperCPU
    update_metadata = wrapper.update_metadata

    def update(self: Any, *arguments: Any, **options: Any) -> None:
        update_metadata(self, *arguments, **options)
        self.orchestrator_groups = group(self.token_lora_indices)

    def add_lora_linear(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_unused: Any,
    ) -> None:
        for slot, rows in self.orchestrator_groups:
            add_adapter(y, x, slot, rows, lora_a_stacked, lora_b_stacked, scale, output_slices)

    wrapper.update_metadata = update
    wrapper.add_lora_linear = add_lora_linear


def group(slots: torch.Tensor) -> list[tuple[int, torch.Tensor | None]]:
    """Each adapter slot in the batch with the rows of its tokens; None stands for all rows."""
    found = slots.unique().tolist()
    if len(found) == 1:
        return [(found[0], None)] if found[0] != NO_ADAPTER else []
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in found if slot != NO_ADAPTER]


def add_adapter(
    y: torch.Tensor,
    x: torch.Tensor,
    slot: int,
    rows: torch.Tensor | None,
    lora_a: tuple[torch.Tensor, ...],
    lora_b: tuple[torch.Tensor, ...],
    scale: float,
    slices: tuple[int, ...],
) -> None:
    """y[rows, slice] += scale * (x[rows] A^T) B^T for each slice.

    x: [tokens, in], A: [slots, 1, r, in], B: [slots, 1, out, r], y: [tokens, sum of slices].
    """
    from torch.nn.functional import linear

    inputs = x if rows is None else x[rows]
    few = inputs.shape[0] <= FEW_ROWS
    inputs = inputs.float() if few else inputs
    start = 0
    for stacked_a, stacked_b, width in zip(lora_a, lora_b, slices, strict=True):
        a, b = stacked_a[slot, 0], stacked_b[slot, 0]
        part = y[:, start : start + width]
        start += width
        if rows is None and not few:
            part.addmm_(linear(inputs, a), b.t(), alpha=scale)
            continue
        product = linear(linear(inputs, a.float()), b.float()) if few else linear(linear(inputs, a), b)
        if rows is None:
            part.add_(product, alpha=scale)
        else:
            part.index_add_(0, rows, product.to(y.dtype), alpha=scale)
