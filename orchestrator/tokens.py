"""Counts tokens with a model's own tokenizer, without its weights and without I/O after opening."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.errors import MissingExtraError, SettingsError


class LocalTokens:
    """The tokenizer of a model folder (``tokenizer.json``). Marks such as ``<|im_end|>`` are counted as plain text."""

    def __init__(self, folder: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError("embedded", "counting tokens with the model's tokenizer") from error
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise SettingsError(f"{file} does not exist; name a model folder that holds its tokenizer.json")
        self._tokenizer: Any = Tokenizer.from_file(str(file))
        self._tokenizer.encode_special_tokens = True

    def count(self, text: str) -> int:
        """Tokens of ``text``."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
