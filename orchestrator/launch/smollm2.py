"""Unpacks SmolLM2's GGUF into a bf16 Hugging Face folder: ``python -m orchestrator.launch.smollm2 FILE.gguf FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

CONTEXT_TOKENS = 8192


def unpack(gguf: Path, target: Path) -> None:
    """Writes config, weights, tokenizer and chat template. Exits with 3 when transformers, torch or gguf is missing."""
    try:
        import gguf as _installed  # noqa: F401
        import torch
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        print(error, file=sys.stderr)
        raise SystemExit(3) from error
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF carries no pre-tokenizer rules; SmolLM2 was trained with each digit apart: it matters for blanks before them.
    digits = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = digits
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
