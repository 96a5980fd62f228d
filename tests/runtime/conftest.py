"""A small Llama and its executable, compiled once for all tests of the runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irx


@pytest.fixture(scope="session")
def model() -> Any:
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=5, pad_token_id=0,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    with torch.no_grad():  # as spread out as a trained model's, so that greedy tokens are not all the same
        made.lm_head.weight.mul_(40)
    return made


@pytest.fixture(scope="session")
def fast(model: Any) -> irx.Executable:
    return irx.compile(model, target="torch", strict=True, max_batch=4, max_length=96)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(6, 128, (3, 20), generator=torch.Generator().manual_seed(1))


def eager(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The model's own logits [B, S, V]."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def close(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within 1e-5 of the largest element."""
    return result.shape == expected.shape and bool((result - expected).abs().max() <= 1e-5 * expected.abs().max())
