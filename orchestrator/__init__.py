"""Orchestrator: answers with two layers, documents for what is true and adapters for how to say it.

>>> async with Orchestrator.open() as o:
...     await o.ingest("handbook/")
...     answer = await o.ask("How many days of leave?")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "orchestrator.app": ("Orchestrator", "ask", "ingest", "search"),
    "orchestrator.contract": ("Contract",),
    "orchestrator.errors": ("OrchestratorError",),
    "orchestrator.prompts": ("Catalogue", "Prompt", "Route"),
    "orchestrator.protocols": ("Embedder", "Engine", "Reranker", "Store"),
    "orchestrator.settings": ("Settings",),
    "orchestrator.types": (
        "Adapter",
        "Answer",
        "Chunk",
        "Citation",
        "Completion",
        "Delta",
        "Document",
        "Message",
        "Passage",
        "Plan",
        "Query",
        "Usage",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used: ``import orchestrator`` stays light."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
