"""Run as a child process by ``spread``: texts come in on standard input, vectors go out on standard output.

A request is a line ``{"texts", "tokens"}``. A reply is a line ``{"sizes"}`` with the bytes of token vectors of each text,
then the vectors as float32, then the token vectors; or a line ``{"error"}``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

if __name__ == "__main__" and str(Path(__file__).resolve().parents[2]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # its parent found a checkout by the current folder

import numpy as np
import orjson

from orchestrator.errors import OrchestratorError
from orchestrator.protocols import Embedder, TokenEmbedder


def serve(embedder: Embedder, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers until the requests end, which they do when the parent dies."""
    while line := requests.readline():
        replies.write(reply(embedder, line))
        replies.flush()


def reply(embedder: Embedder, line: bytes) -> bytes:
    """The reply to one request; a text that the embedder refuses is told, anything else ends the process."""
    request = orjson.loads(line)
    texts = request["texts"]
    packed = [b""] * len(texts)
    try:
        if request["tokens"] and isinstance(embedder, TokenEmbedder):
            found = asyncio.run(embedder.embed_tokens(texts))
            vectors, packed = [one.vector for one in found], [one.packed for one in found]
        else:
            vectors = list(asyncio.run(embedder.embed(texts)))
    except OrchestratorError as error:
        return orjson.dumps({"error": error.message}) + b"\n"
    head = orjson.dumps({"sizes": list(map(len, packed)), "dimensions": embedder.dimensions})
    return b"\n".join([head, np.array(vectors, np.float32).tobytes() + b"".join(packed)])


def main() -> None:
    """Serves the MiniLM in the folder that is the argument, on one thread."""
    from orchestrator.knowledge.embed import MiniLM

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends what it started
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    serve(MiniLM(Path(sys.argv[1]), threads=1), sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
