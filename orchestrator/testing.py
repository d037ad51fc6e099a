"""Public fakes for tests of applications and of ourselves: deterministic, fast, without network."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence


class HashEmbedder:
    """Words hashed into dimensions: the same text gives the same unit vector, texts that share words are near."""

    def __init__(self, dimensions: int = 64) -> None:
        self._dimensions = dimensions
        self.texts: list[str] = []  # every text that was embedded, in order

    @property
    def space(self) -> str:
        """Names the number of dimensions: two sizes are two spaces."""
        return f"hash-{self._dimensions}"

    @property
    def dimensions(self) -> int:
        """Length of each vector."""
        return self._dimensions

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text, in order."""
        self.texts.extend(texts)
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * self._dimensions
        for word in re.findall(r"\w+", text.lower()) or [""]:
            digest = hashlib.sha256(word.encode("utf-8", "replace")).digest()
            vector[int.from_bytes(digest[:4]) % self._dimensions] += 1.0 if digest[4] % 4 else -0.5
        length = math.sqrt(sum(value * value for value in vector))
        if length == 0:
            vector[0], length = 1.0, 1.0
        return [value / length for value in vector]
