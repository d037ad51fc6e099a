"""Several training processes that work as one, a GPU each: what they share, and what only the first of them writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among ``count`` that train together. Each takes every ``count``-th sequence of a step."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """True for the one that reports, checks and writes."""
        return self.index == 0

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This process's part."""
        return things[self.index :: self.count]

    def add_up(self, tensors: Sequence[Any]) -> None:
        """Makes each tensor the sum over all processes, in place; one message for all of them."""
        if self.count == 1:
            return
        import torch
        from accelerate.utils import reduce

        flat: Any = reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), reduction="sum")
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def as_first(self, values: Sequence[float], device: Any) -> list[float]:
        """The first process's numbers on all of them: GPUs may round differently, and all must decide alike."""
        import torch

        shared = torch.tensor(values, dtype=torch.float64, device=device) * self.is_first
        self.add_up([shared])
        found: list[float] = shared.tolist()
        return found


ALONE = Processes()


def join_processes() -> Processes:
    """This process's place, when ``command`` started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def leave_processes(processes: Processes) -> None:
    """Ends what binds them; the others may then end before or after the first."""
    if processes.count > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def count_gpus() -> int:
    """The GPUs that this machine shows to a process, without loading torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return there if named is None else min(there, len([name for name in named.split(",") if name.strip()]))


def command(module: str, job: Path, count: int) -> list[str]:
    """How the training of ``job`` is started in ``count`` processes of this machine."""
    if count == 1:
        return [sys.executable, "-m", module, str(job)]
    together = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--no-python"]
    return [sys.executable, "-m", *together, sys.executable, "-m", module, str(job)]
