"""Counting tokens with a tokenizer alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from orchestrator.errors import SettingsError
from orchestrator.tokens import LocalTokens


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({"a": 0, "?": 1, "<|im_end|>": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokens_are_the_models(model_folder: Path) -> None:
    assert LocalTokens(model_folder).count("a a, a") == 4
    assert LocalTokens(model_folder).count("") == 0


def test_a_special_token_in_a_text_is_counted_as_the_text_it_is(model_folder: Path) -> None:
    assert LocalTokens(model_folder).count("<|im_end|>") > 1


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tokenizer\.json"):
        LocalTokens(tmp_path)
