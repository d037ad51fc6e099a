"""The registry on a real PostgreSQL: states, files, the shipped adapter, refusals."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.behaviour import registry as module
from orchestrator.behaviour.preflight import CONFIG, MANIFEST, WEIGHTS, digest_files
from orchestrator.behaviour.registry import Registry, check_digests, ensure_shipped
from orchestrator.database import Database
from orchestrator.errors import AdapterUnavailableError, InputError, UnknownNameError
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings
from orchestrator.tenants import add_tenant

CATALOGUE = load_catalogue(folder("prompts"))


def make_adapter(where: Path, seed: int = 0, **manifest: Any) -> Path:
    """A tiny valid adapter; another seed is another content."""
    tensor = bytes([seed, 0x3F]) * 16
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    header = {
        name.format("A"): {"dtype": "BF16", "shape": [2, 8], "data_offsets": [0, 32]},
        name.format("B"): {"dtype": "BF16", "shape": [8, 2], "data_offsets": [32, 64]},
    }
    head = json.dumps(header).encode()
    files = {
        WEIGHTS: len(head).to_bytes(8, "little") + head + tensor + tensor,
        CONFIG: json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}).encode(),
    }
    values: Mapping[str, Any] = {
        "name": "cited-answer",
        "digest": digest_files(files),
        "base": {"name": "b", "sha256": "0" * 64},
        "prompt": {"name": "grounded", "digest": CATALOGUE.prompt("grounded").digest},
        "contract": {"name": "cited_answer", "digest": CATALOGUE.contract("cited_answer").digest},
        **manifest,
    }
    where.mkdir(parents=True)
    for file, content in (*files.items(), (MANIFEST, json.dumps(values).encode())):
        (where / file).write_bytes(content)
    return where


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({}, home=tmp_path / "home")


@pytest.fixture
def registry(database: Database, settings: Settings) -> Registry:
    return Registry(database, settings)


async def test_a_registered_adapter_is_a_candidate_with_its_own_read_only_copy(
    registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    source = make_adapter(tmp_path / "a")

    adapter = await registry.register(source)

    assert adapter.state == "candidate"
    assert adapter.path == settings.adapters / adapter.served_name
    assert {path.name for path in adapter.path.iterdir()} == {WEIGHTS, CONFIG, MANIFEST}
    assert all(path.stat().st_mode & 0o222 == 0 for path in adapter.path.iterdir())
    assert (adapter.path / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


async def test_registering_twice_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    source = make_adapter(tmp_path / "a")
    await registry.register(source)
    await registry.promote("cited-answer", override="test")

    again = await registry.register(source)

    assert again.state == "active"
    assert len(await registry.list()) == 1


async def test_a_damaged_copy_is_mended_by_registering_again(registry: Registry, tmp_path: Path) -> None:
    source = make_adapter(tmp_path / "a")
    adapter = await registry.register(source)
    (adapter.path / WEIGHTS).chmod(0o644)
    (adapter.path / WEIGHTS).write_bytes(b"x")

    await registry.register(source)

    assert (adapter.path / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    assert [path.name for path in adapter.path.parent.iterdir()] == [adapter.served_name]


async def test_a_plain_name_is_the_active_one_and_a_served_name_exactly_that_one(
    registry: Registry, tmp_path: Path
) -> None:
    first = await registry.register(make_adapter(tmp_path / "a", 1))
    second = await registry.register(make_adapter(tmp_path / "b", 2))
    await registry.promote(first.served_name, override="test")

    assert (await registry.get("cited-answer")).digest == first.digest
    assert (await registry.get(second.served_name)).digest == second.digest


async def test_a_name_without_an_active_adapter_does_not_serve(registry: Registry, tmp_path: Path) -> None:
    await registry.register(make_adapter(tmp_path / "a"))

    with pytest.raises(AdapterUnavailableError, match="adapters promote"):
        await registry.get("cited-answer")
    with pytest.raises(UnknownNameError, match="there is no adapter 'other'"):
        await registry.get("other")


async def test_promotion_swaps_and_rollback_swaps_back(registry: Registry, tmp_path: Path) -> None:
    first = await registry.register(make_adapter(tmp_path / "a", 1))
    await registry.promote(first.served_name, override="test")
    second = await registry.register(make_adapter(tmp_path / "b", 2))

    promoted = await registry.promote("cited-answer", override="test")
    back = await registry.rollback("cited-answer")

    assert promoted.digest == second.digest
    assert (back.digest, back.state) == (first.digest, "active")
    assert {adapter.digest: adapter.state for adapter in await registry.list()} == {
        first.digest: "active",
        second.digest: "candidate",
    }


async def test_a_candidate_that_never_served_is_no_target_of_a_rollback(registry: Registry, tmp_path: Path) -> None:
    first = await registry.register(make_adapter(tmp_path / "a", 1))
    await registry.register(make_adapter(tmp_path / "b", 2))
    await registry.promote(first.served_name, override="test")

    with pytest.raises(InputError, match="was in service before"):
        await registry.rollback("cited-answer")


async def test_a_retired_adapter_is_not_rolled_back_to(registry: Registry, tmp_path: Path) -> None:
    first = await registry.register(make_adapter(tmp_path / "a", 1))
    await registry.promote(first.served_name, override="test")
    second = await registry.register(make_adapter(tmp_path / "b", 2))
    await registry.promote(second.served_name, override="test")

    retired = await registry.retire(first.served_name)

    assert retired.state == "retired"
    with pytest.raises(InputError, match="was in service before"):
        await registry.rollback("cited-answer")


async def test_promotions_at_once_leave_one_active(registry: Registry, tmp_path: Path) -> None:
    adapters = [await registry.register(make_adapter(tmp_path / str(seed), seed)) for seed in range(6)]

    await asyncio.gather(*(registry.promote(adapter.served_name, override="test") for adapter in adapters))

    assert [adapter.state for adapter in await registry.list()].count("active") == 1


async def test_tenants_do_not_see_each_others_adapters(
    registry: Registry, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await add_tenant(database, "other")
    await registry.register(make_adapter(tmp_path / "a"))

    assert await Registry(database, replace(settings, tenant="other")).list() == []


async def test_a_refused_adapter_leaves_no_trace(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    source = make_adapter(tmp_path / "a")
    (source / "adapter_model.bin").write_bytes(b"\x80\x04.")

    with pytest.raises(InputError, match=r"adapter_model\.bin"):
        await registry.register(source)

    assert await registry.list() == []
    assert not settings.adapters.exists()


async def test_an_adapter_of_another_base_is_refused(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    model = settings.models / module.weights.SMOLLM2.folder
    model.mkdir(parents=True)
    record = {"files": {"model.safetensors": {"size": 1, "sha256": "f" * 64}}}
    (model / module.weights.MANIFEST).write_text(json.dumps(record))

    with pytest.raises(InputError, match="embedded base is another"):
        await registry.register(make_adapter(tmp_path / "a"))
    same = make_adapter(tmp_path / "b", base={"name": "b", "sha256": "f" * 64})
    assert (await registry.register(same)).state == "candidate"


async def test_a_folder_that_cannot_be_written_is_named(database: Database, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    registry = Registry(database, replace(settings, adapters_dir=tmp_path / "file" / "below"))

    with pytest.raises(Exception, match="cannot be kept"):
        await registry.register(make_adapter(tmp_path / "a"))


async def test_the_shipped_adapter_is_in_service_at_once_even_hard_linked(
    registry: Registry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_adapter(tmp_path / "adapters" / "cited-answer")
    os.link(source / WEIGHTS, tmp_path / "cache")
    monkeypatch.setattr(module, "folder", lambda name: tmp_path / name)

    adapter = await ensure_shipped(registry, settings)

    assert adapter is not None
    assert adapter.state == "active"
    assert await ensure_shipped(registry, settings) == adapter


async def test_the_shipped_adapter_does_not_displace_the_users(
    registry: Registry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "adapters" / "cited-answer", 1)
    monkeypatch.setattr(module, "folder", lambda name: tmp_path / name)
    own = await registry.register(make_adapter(tmp_path / "own", 2))
    await registry.promote(own.served_name, override="test")

    await ensure_shipped(registry, settings)

    assert (await registry.get("cited-answer")).digest == own.digest


async def test_a_new_release_replaces_a_shipped_adapter_that_its_prompt_has_left_behind(
    registry: Registry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_prompt = {"name": "grounded", "digest": "0" * 64}
    make_adapter(tmp_path / "old" / "cited-answer", 1, prompt=old_prompt)
    make_adapter(tmp_path / "new" / "cited-answer", 2)
    monkeypatch.setattr(module, "folder", lambda name: tmp_path / "old")
    await ensure_shipped(registry, settings)
    monkeypatch.setattr(module, "folder", lambda name: tmp_path / "new")

    adapter = await ensure_shipped(registry, settings)

    assert adapter is not None
    assert (await registry.get("cited-answer")).digest == adapter.digest
    check_digests(await registry.get("cited-answer"), CATALOGUE)
    assert len(await registry.list()) == 2


async def test_an_adapter_that_the_user_retired_stays_retired(
    registry: Registry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "adapters" / "cited-answer")
    monkeypatch.setattr(module, "folder", lambda name: tmp_path / name)
    await ensure_shipped(registry, settings)
    await registry.retire("cited-answer")

    await ensure_shipped(registry, settings)

    assert [adapter.state for adapter in await registry.list()] == ["retired"]


async def test_nothing_shipped_is_no_error(
    registry: Registry, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "folder", lambda name: tmp_path)

    assert await ensure_shipped(registry, settings) is None


@pytest.mark.parametrize("kind", ["prompt", "contract"])
async def test_a_changed_prompt_or_contract_is_refused_by_name(registry: Registry, tmp_path: Path, kind: str) -> None:
    good = await registry.register(make_adapter(tmp_path / "a"))
    check_digests(good, CATALOGUE)
    changes: dict[str, Any] = {f"{kind}_digest": "0" * 64}

    with pytest.raises(AdapterUnavailableError, match=f"trained on {kind}"):
        check_digests(replace(good, **changes), CATALOGUE)
