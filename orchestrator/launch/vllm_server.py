"""Runs vLLM's OpenAI server in this process: ``python -m orchestrator.launch.vllm_server [--fork] VLLM-FLAGS``.

``--fork`` (CPU only): vLLM's engine and worker processes are forked from this one, which has imported everything, where
vLLM would start two new interpreters that import torch and vllm again: 23 s to ready and 18 s of CPU against 40 and 29.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from orchestrator.launch.vllm import on_cpu

SPIN_S = 0.001


def main() -> None:
    """Serves until a signal ends it."""
    _install()
    if "--fork" in sys.argv:
        sys.argv.remove("--fork")
        _fork_workers()
    try:
        from vllm.entrypoints.launchers.api_server.entry import main as serve
    except ImportError:  # before vLLM 0.32
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
    else:
        serve()  # type: ignore[no-untyped-call,unused-ignore]


def _install() -> None:
    if on_cpu():
        from orchestrator.launch import lora_cpu

        lora_cpu.install()
        _wait_asleep()


def _wait_asleep() -> None:
    """vLLM's scheduler spins while the worker computes a step, which takes a core from it; after 1 ms ours waits for the ping.

    vLLM spins for a second after each message, so under load always.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    condition: Any = shm_broadcast.SpinCondition
    begin = condition.__init__

    def begin_patient(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self.busy_loop_s = min(self.busy_loop_s, SPIN_S)

    condition.__init__ = begin_patient


def _fork_workers() -> None:
    """vLLM's CPU platform insists on spawn when it checks the configuration; nothing has used OpenMP before that."""
    from vllm.platforms.cpu import CpuPlatform

    platform: Any = CpuPlatform
    check = platform.check_and_update_config.__func__

    def check_and_fork(cls: type, config: Any) -> None:
        check(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    platform.check_and_update_config = classmethod(check_and_fork)
    # Imported here once, used after the fork.
    import vllm.model_executor.models.llama
    import vllm.v1.engine.core
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker  # noqa: F401


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # without --fork vLLM starts interpreters that run this file again under this name
    _install()
