"""A small language model in a folder, with random weights and a tokenizer of words."""

from __future__ import annotations

from pathlib import Path

import pytest

WORDS = "the a moon sun shines on sea and is bright dark today so".split()


def save_model(folder: Path, positions: int = 64, layers: int = 2) -> Path:
    """Write the model into `folder`, for `positions` tokens; skips the test where the hf extra is not installed."""
    pytest.importorskip("transformers", reason="the hf extra is not installed")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="so"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
