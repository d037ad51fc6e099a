"""The OpenAI-compatible HTTP surface: ``create_app`` over an open Orchestrator, ``serve`` to run it."""

from orchestrator.api.routes import create_app, serve

__all__ = ["create_app", "serve"]
