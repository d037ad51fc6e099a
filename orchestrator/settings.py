"""All settings as one frozen value, read once from ``ORCHESTRATOR_*`` and passed down; no global, secrets hidden in repr."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import SettingsError

PREFIX = "ORCHESTRATOR_"
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _setting(default: Any, help: str, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class Settings:
    """Where everything is. With no setting given, everything runs embedded on this machine."""

    home: Path | None = _setting(
        None, "Data directory of the embedded services; the platform's data directory when unset."
    )
    models_dir: Path | None = _setting(None, "Where model weights are cached; `models` under home when unset.")
    prompts_dir: Path | None = _setting(
        None, "Folder with routes.toml, prompts and contracts; the shipped one when unset."
    )
    router_file: Path | None = _setting(
        None,
        "Model of `orchestrator router fit`; `router.json` beside routes.toml when unset, if it is of this embedder.",
    )
    adapters_dir: Path | None = _setting(None, "Where trained adapters are kept; `adapters` under home when unset.")
    database_url: str | None = _setting(None, "PostgreSQL with pgvector; embedded when unset.", secret=True)
    owner_database_url: str | None = _setting(
        None, "Login that owns the tables, for migrations and maintenance; database_url when unset.", secret=True
    )
    pool_size: int = _setting(8, "Connections to PostgreSQL, at most.")
    engine_url: str | None = _setting(None, "Base URL of a vLLM server, without /v1; embedded when unset.")
    engine_api_key: str | None = _setting(None, "Key that the vLLM server asks for.", secret=True)
    engine_model: str = _setting("base", "Name under which the engine serves the base model.")
    engine_max_len: int = _setting(4096, "Longest prompt plus answer that the engine accepts, in tokens.")
    strong_url: str | None = _setting(
        None,
        "OpenAI-compatible endpoint, with /v1, of a stronger model: `diagnose` asks it what the model in service gets wrong.",
    )
    strong_model: str | None = _setting(None, "Its name there.")
    strong_api_key: str | None = _setting(None, "Its key.", secret=True)
    adapter_serving: Literal["auto", "runtime", "merged"] = _setting(
        "auto",
        "How the embedded engine serves the active adapter: `runtime`, `merged` into the base, or the faster (`auto`).",
    )
    adapter_slots: int = _setting(
        4, "Adapters that the engine holds at once; the least used one makes room for another."
    )
    adapter_wait_s: float = _setting(
        30.0, "Longest wait of a question for a slot and for its adapter to be loaded, in seconds."
    )
    two_identities: bool = _setting(
        False, "Whether an adapter is put into service only when two holders of different API keys ask for it."
    )
    actor_key: str | None = _setting(
        None, "API key of whoever changes adapters: proves in the audit who it was.", secret=True
    )
    embedder: str = _setting("minilm", "`minilm` (embedded), or the model's name at embedder_url.")
    embedder_url: str | None = _setting(None, "Base URL of an OpenAI-compatible embeddings server, without /v1.")
    embedder_api_key: str | None = _setting(None, "Key of the embeddings server.", secret=True)
    embedder_dimensions: int = _setting(384, "Length of the vectors of the embeddings server's model.")
    next_embedder: str | None = _setting(
        None, "Embedder whose space `collections reembed` fills; searched as soon as a collection is switched to it."
    )
    next_embedder_url: str | None = _setting(None, "Its base URL, as embedder_url.")
    next_embedder_api_key: str | None = _setting(None, "Its key.", secret=True)
    next_embedder_dimensions: int = _setting(384, "Length of its vectors.")
    reranker: str = _setting(
        "maxsim",
        "What orders the candidates anew: `maxsim` (token vectors of the embedder), `cross-encoder` (packaged), `none`, "
        "or the name of a model at reranker_url or of sentence-transformers.",
    )
    reranker_url: str | None = _setting(None, "Base URL of a server with /v1/rerank or /rerank (vLLM, TEI, Cohere).")
    reranker_api_key: str | None = _setting(None, "Key of the re-ranking server.", secret=True)
    rerank_budget_ms: int = _setting(
        250, "Longest time that re-ranking may take; after it the order of the first stage is kept."
    )
    collection: str = _setting("default", "Collection that is used when none is named.")
    tenant: str = _setting("default", "Tenant whose ledger and collections are used.")
    api_keys: tuple[str, ...] = _setting(
        (), "Keys that the HTTP server accepts, separated by commas; open when empty.", secret=True
    )
    host: str = _setting("127.0.0.1", "Address that `serve` listens on.")
    port: int = _setting(8080, "Port that `serve` listens on.")
    public_url: str | None = _setting(None, "Address by which clients reach the server; citation links begin with it.")
    request_timeout_s: float = _setting(120.0, "Longest time that one question may take, in seconds.")
    token_timeout_s: float = _setting(30.0, "Longest silence of the engine between two tokens, in seconds.")
    max_question_chars: int = _setting(16_000, "Longest question, in characters.")
    max_document_bytes: int = _setting(32_000_000, "Largest file that ingest reads, in bytes.")
    recall_sample: float = _setting(
        0.01, "Share of the searches through an HNSW index that are repeated exactly, to measure the index's recall."
    )
    allow_urls: bool = _setting(
        False, "Whether `ingest` may fetch http and https URLs: public addresses only, every redirect checked again."
    )
    log_level: str = _setting("WARNING", "Level of the log on standard error.")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Reads ``ORCHESTRATOR_*``; arguments win. Raises SettingsError for unknown names and malformed values."""
        env = os.environ if env is None else env
        kinds = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for variable, text in env.items():
            if not variable.startswith(PREFIX):
                continue
            name = variable[len(PREFIX) :].lower()
            if name not in kinds:
                raise SettingsError(f"{variable} is not a setting. Known settings: {', '.join(variables())}")
            if text != "":
                values[name] = _parse(variable, text, kinds[name])
        unknown = overrides.keys() - kinds.keys()
        if unknown:
            raise SettingsError(f"unknown settings {sorted(unknown)}. Known: {', '.join(sorted(kinds))}")
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**values).resolved()

    def resolved(self) -> Settings:
        """The same settings with every directory filled in."""
        home = Path(self.home) if self.home else _default_home()
        home = home.expanduser().absolute()
        models = Path(self.models_dir or home / "models").expanduser().absolute()
        adapters = Path(self.adapters_dir or home / "adapters").expanduser().absolute()
        return replace(self, home=home, models_dir=models, adapters_dir=adapters)

    @property
    def home_dir(self) -> Path:
        """The resolved data directory."""
        return self.home or _default_home()

    @property
    def models(self) -> Path:
        """The resolved folder of model weights."""
        return self.models_dir or self.home_dir / "models"

    @property
    def adapters(self) -> Path:
        """The resolved folder of trained adapters."""
        return self.adapters_dir or self.home_dir / "adapters"


def variables() -> dict[str, str]:
    """Environment variable of every setting, to its help text."""
    return {PREFIX + f.name.upper(): f.metadata["help"] for f in fields(Settings)}


def _default_home() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("orchestrator", appauthor=False))


def _parse(variable: str, text: str, kind: Any) -> Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is Literal:
        if text not in typing.get_args(kind):
            raise SettingsError(f"{variable}={text!r} must be one of {', '.join(typing.get_args(kind))}")
        return text
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise SettingsError(f"{variable}={text!r} must be true or false")
        return _BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise SettingsError(f"{variable} must be of type {kind.__name__}, not {text!r}") from error
