"""A web service of your own with Orchestrator inside: one value, opened once, used by your routes, mounted as an API.

uvicorn --app-dir examples starlette_service:app
curl 'http://127.0.0.1:8000/leave?years=3'
curl http://127.0.0.1:8000/ai/v1/models

In FastAPI it is the same: `FastAPI(lifespan=lifespan)`, `request.state.orchestrator` in a route.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from orchestrator import Orchestrator, OrchestratorError
from orchestrator.api import create_app

HANDBOOK = Path(__file__).parent / "handbook"


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Opens everything when the service starts and closes it when it stops."""
    async with Orchestrator.open() as orchestrator:
        await orchestrator.ingest(HANDBOOK)
        app.mount("/ai", create_app(orchestrator))  # OpenAI clients: base_url="http://127.0.0.1:8000/ai/v1"
        yield {"orchestrator": orchestrator}


async def leave(request: Request) -> JSONResponse:
    """A route of yours that asks a question of its own."""
    question = f"How many days of annual leave after {request.query_params.get('years', '1')} years?"
    answer = await request.state.orchestrator.ask(question, route="grounded")
    return JSONResponse({"answer": answer.text, "sources": [citation.external_id for citation in answer.citations]})


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Our errors know their status, and their messages may be shown."""
    assert isinstance(error, OrchestratorError)
    return JSONResponse({"error": error.message}, error.http_status)


app = Starlette(routes=[Route("/leave", leave)], lifespan=lifespan, exception_handlers={OrchestratorError: on_error})
