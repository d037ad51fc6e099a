"""Which vLLM children the settings ask for, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.launch import vllm
from orchestrator.launch.vllm import Child
from orchestrator.settings import Settings
from orchestrator.types import Adapter

ADAPTER = Adapter("cite", "ab" * 32, Path("/adapters/cite"), "base", 16, "p", "1", "c", "2", state="active")


def settings(**options: object) -> Settings:
    return Settings(home=Path("/home"), models_dir=Path("/models"), **options)  # type: ignore[arg-type]


def test_the_base_is_served_with_its_adapters_on_loopback_only() -> None:
    (engine,) = vllm.plan(settings(engine_model="small", engine_max_len=2048), [ADAPTER], ADAPTER)

    assert (engine.name, engine.model) == ("engine", "small")
    assert engine.adapters == (("cite--abababababab", "/adapters/cite"),)
    for command in engine.commands:
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert command[command.index("--max-model-len") + 1] == "2048"
        assert command[command.index("--model") + 1].startswith("/models/")
        assert "--enable-lora" in command


def test_a_merged_adapter_has_an_engine_of_its_own_under_its_own_name() -> None:
    engine, merged = vllm.plan(settings(adapter_serving="merged"), [ADAPTER], ADAPTER)

    assert (merged.name, merged.model, merged.adapters) == ("merged", "cite--abababababab", ())
    assert engine.adapters  # the base has it as well: it answers while the merged one starts
    assert all("--enable-lora" not in command for command in merged.commands)
    assert all("/home/merged/cite--abababababab" in " ".join(command) for command in merged.commands)


@pytest.mark.parametrize("serving", ["auto", "runtime"])
def test_otherwise_one_engine_serves_all(serving: str) -> None:
    assert len(vllm.plan(settings(adapter_serving=serving), [ADAPTER], ADAPTER)) == 1


def test_without_an_adapter_nothing_is_merged() -> None:
    assert len(vllm.plan(settings(adapter_serving="merged"))) == 1


def test_adapters_do_not_change_the_process_and_settings_do() -> None:
    (bare,), (loaded,) = vllm.plan(settings()), vllm.plan(settings(), [ADAPTER])
    (longer,) = vllm.plan(settings(engine_max_len=100))

    assert bare.key == loaded.key
    assert bare.key != longer.key


def test_equal_orders_are_equal_bytes_and_come_back_whole() -> None:
    wanted = vllm.plan(settings(adapter_serving="merged"), [ADAPTER], ADAPTER)

    assert vllm.desired_json(wanted) == vllm.desired_json(tuple(wanted))
    assert tuple(Child.read(child.as_json()) for child in wanted) == wanted
