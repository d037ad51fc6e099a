"""A stand-in for vLLM over HTTP, in this process: adapters come and go, and an answer says whose weights wrote it.

The text of an answer is the digest of the weights that lay in the folder when the name was loaded, so an answer of another
adapter, of old weights or of the base is seen in the answer itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

BASE = "the base"


@dataclass
class Double:
    """What it holds and what was asked of it."""

    url: str = ""
    loaded: dict[str, str] = field(default_factory=dict)  # name to the digest of its weights
    most: int = 0  # adapters at once
    loads: list[dict[str, Any]] = field(default_factory=list)  # bodies of all load requests
    unloads: list[str] = field(default_factory=list)
    running: int = 0
    busiest: int = 0
    token_s: float = 0.002
    load_s: float = 0.005
    gate: asyncio.Event | None = None  # answers wait for it

    async def health(self, request: web.Request) -> web.Response:
        """Ready."""
        return web.json_response({})

    async def models(self, request: web.Request) -> web.Response:
        """The base and what is loaded."""
        return web.json_response({"data": [{"id": name} for name in ("base", *self.loaded)]})

    async def load(self, request: web.Request) -> web.Response:
        """Reads the weights; a name that is loaded is refused, as vLLM refuses it."""
        body = await request.json()
        self.loads.append(body)
        await asyncio.sleep(self.load_s)
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.loaded:
            return _error(400, f"{name} has already been loaded")
        if not path.is_dir():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        self.loaded[name] = weights_digest(path)
        self.most = max(self.most, len(self.loaded))
        return web.json_response({})

    async def unload(self, request: web.Request) -> web.Response:
        """Forgets a name."""
        name = (await request.json())["lora_name"]
        self.unloads.append(name)
        return web.json_response({}) if self.loaded.pop(name, None) else _error(404, f"{name} is not loaded")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Streams the digest of the weights of the model, in four pieces."""
        body = await request.json()
        model = body["model"]
        if model != "base" and model not in self.loaded:
            return _error(404, f"The model `{model}` does not exist.")
        text = BASE if model == "base" else self.loaded[model]
        self.running += 1
        self.busiest = max(self.busiest, self.running)
        try:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            if self.gate is not None:
                await self.gate.wait()
            for at in range(0, len(text), 16):
                await asyncio.sleep(self.token_s)
                await _send(response, {"choices": [{"delta": {"content": text[at : at + 16]}}]})
            await _send(response, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
            await response.write(b"data: [DONE]\n\n")
            return response
        finally:
            self.running -= 1


def weights_digest(folder: Path) -> str:
    """What the double answers when it was loaded from this folder."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@asynccontextmanager
async def run_double() -> AsyncIterator[Double]:
    """A running double on a free port of loopback."""
    double = Double()
    app = web.Application()
    app.add_routes(
        [
            web.get("/health", double.health),
            web.get("/v1/models", double.models),
            web.post("/v1/load_lora_adapter", double.load),
            web.post("/v1/unload_lora_adapter", double.unload),
            web.post("/v1/chat/completions", double.chat),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield double
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; the test fails when it does not come (about a minute)."""
    for _ in range(12_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + orjson.dumps(event) + b"\n\n")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)
