"""Models from GGUF files compute what the transformers model they were converted from computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files of these tests")
transformers = pytest.importorskip("transformers", reason="the models are built and checked with transformers")

from irx.errors import DamagedFile, UnsupportedFile  # noqa: E402
from irx.frontends.gguf.architectures import ARCHITECTURES  # noqa: E402
from irx.frontends.gguf.model import GgufModel, load  # noqa: E402
from tests.frontends.gguf.writing import converted_tensors, decoder_metadata, random_model, write  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0], "long_factor": [1.0, 1.5, 2, 3, 4, 6, 8, 9.0]}


@dataclass(frozen=True)
class Case:
    """A configuration, and the metadata and tensors that a converter writes for it beyond the common ones."""

    name: str
    architecture: str
    model: str
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: Callable[[Any], dict[str, Any]] = lambda model: {}


def rope(theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | scaling}


def llama3_factors(model: Any) -> dict[str, Any]:
    plain = 1.0 / (10000.0 ** (torch.arange(0, 16, 2).float() / 16))
    return {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq).numpy()}


def long_factors(model: Any) -> dict[str, Any]:
    return {f"rope_factors_{kind}.weight": np.array(LONG[f"{kind}_factor"], np.float32) for kind in ("short", "long")}


YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
HEADS_OF_32 = {"attention.key_length": 32, "attention.value_length": 32}
GEMMA2 = {"sliding_window": 5, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
GEMMA2 |= {"head_dim": 32, "query_pre_attn_scalar": 32}
GEMMA2_KEYS = {"attention.sliding_window": 5, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
GEMMA3: dict[str, Any] = {"sliding_window": 5, "head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7}
GEMMA3["rope_parameters"] = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
PHI3_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8, **LONG}

CASES = [
    Case("llama", "llama", "Llama", rope(5e5), {"rope.freq_base": 5e5, "rope.dimension_count": 16}),
    Case("llama-tied", "llama", "Llama", {"tie_word_embeddings": True}),
    Case("llama-biases", "llama", "Llama", {"attention_bias": True, "mlp_bias": True}),
    Case("llama-linear", "llama", "Llama", rope(1e4, rope_type="linear", factor=8.0), LINEAR_KEYS),
    Case("llama-yarn", "llama", "Llama", rope(1e4, rope_type="yarn", **YARN), YARN_KEYS),
    Case("llama-3.1", "llama", "Llama", {"rope_parameters": LLAMA3_ROPE}, {}, llama3_factors),
    Case("mistral", "llama", "Mistral", {"sliding_window": 5}, {"attention.sliding_window": 5}),
    Case("qwen2", "qwen2", "Qwen2", rope(1e6), {"rope.freq_base": 1e6}),
    Case("qwen2-yarn", "qwen2", "Qwen2", rope(1e4, rope_type="yarn", **YARN), YARN_KEYS),
    Case("qwen3", "qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": True}, HEADS_OF_32),
    Case("gemma2", "gemma2", "Gemma2", GEMMA2, GEMMA2_KEYS | HEADS_OF_32),
    Case(
        "gemma3",
        "gemma3",
        "Gemma3",
        GEMMA3,
        {"attention.sliding_window": 5, "rope.freq_base": 1e6} | LINEAR_KEYS | HEADS_OF_32,
    ),
    Case("phi3", "phi3", "Phi3", {"sliding_window": 5}, {"attention.sliding_window": 5, "rope.dimension_count": 16}),
    Case("phi3-partial", "phi3", "Phi3", rope(1e4, partial_rotary_factor=0.5), {"rope.dimension_count": 8}),
    Case(
        "phi3-long",
        "phi3",
        "Phi3",
        {"rope_parameters": PHI3_LONG, "original_max_position_embeddings": 8},
        {"rope.scaling.original_context_length": 8},
        long_factors,
    ),
]


def original_of(case: Case) -> Any:
    config_class = getattr(transformers, f"{case.model}{'Text' if case.model == 'Gemma3' else ''}Config")
    config = config_class(**(SIZES | case.config))
    return random_model(getattr(transformers, f"{case.model}ForCausalLM"), config)


def written(case: Case, original: Any, path: Path, storage: str = "f32") -> Path:
    tensors = converted_tensors(original, case.architecture) | case.tensors(original)
    metadata = decoder_metadata(original.config) | case.metadata
    return write(path, case.architecture, metadata, tensors, storage)


def run(model: Any, values: dict[str, Any] | None = None) -> torch.Tensor:
    """Logits of two rows of 24 tokens, longer than every window and original context of the cases."""
    ids = torch.arange(48).reshape(2, 24) * 7 % 96
    if values is not None:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in values.items()}, assign=True)
    with torch.no_grad():
        logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits


def loaded_values(model: GgufModel) -> dict[str, Any]:
    return {name: weight.values() for name, weight in model.weights.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_equal_those_of_the_original(case: Case, tmp_path: Path) -> None:
    original = original_of(case)
    model = load(written(case, original, tmp_path / "model.gguf"))
    expected = run(original)
    assert expected.std() > 0.1
    torch.testing.assert_close(run(model.module, loaded_values(model)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ARCHITECTURES], ids=lambda case: case.name)
@pytest.mark.parametrize("storage", ["q8_0", "q4_1", "f16"])
def test_logits_with_stored_weights_equal_dequantized_ones(case: Case, storage: str, tmp_path: Path) -> None:
    original = original_of(case)
    model = load(written(case, original, tmp_path / "model.gguf", storage))
    kind = gguf.GGMLQuantizationType[storage.upper()]
    for parameter in original.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)))
    assert {weight.dtype for weight in model.weights.values()} == {"f32", storage}
    torch.testing.assert_close(run(model.module, loaded_values(model)), run(original), rtol=0, atol=1e-5)


def test_every_architecture_has_a_case() -> None:
    assert {case.architecture for case in CASES} == set(ARCHITECTURES)


def test_handing_over_takes_no_memory_for_weights(tmp_path: Path) -> None:
    case = CASES[1]
    model = load(written(case, original_of(case), tmp_path / "model.gguf", "q8_0"))
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in model.module.parameters())
    assert all(not buffer.is_meta for buffer in model.module.buffers())
    assert not model.module.training
    assert set(model.weights) == set(model.module.state_dict())
    assert model.weights["lm_head.weight"] is model.weights["model.embed_tokens.weight"]
    key = model.weights["model.layers.0.self_attn.v_proj.weight"]
    assert (key.dtype, key.shape) == ("q8_0", (32, 64))
    assert key.load().shape == (32, 68)
    assert key.load().base is not None, "an unchanged weight is a view of the file"


def test_permuted_rows_stay_packed(tmp_path: Path) -> None:
    case = CASES[0]
    original = original_of(case)
    model = load(written(case, original, tmp_path / "model.gguf", "q4_1"))
    weight = model.weights["model.layers.1.self_attn.q_proj.weight"]
    stored = weight.load()
    assert stored.dtype == np.uint8
    assert stored.shape == (64, 40)
    unpermuted = gguf.quantize(original.model.layers[1].self_attn.q_proj.weight.numpy(), gguf.GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(stored, unpermuted)


def rewritten(tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """A llama file with other metadata and tensors; None removes one."""
    original = original_of(CASES[0])
    every = converted_tensors(original, "llama") | tensors
    stated = decoder_metadata(original.config) | metadata
    kept = {key: value for key, value in stated.items() if value is not None}
    return write(tmp_path / "x.gguf", "llama", kept, {k: v for k, v in every.items() if v is not None})


@pytest.mark.parametrize(
    ("metadata", "tensors", "error", "message"),
    [
        ({"block_count": None}, {}, DamagedFile, r"llama\.block_count is missing"),
        ({"block_count": "two"}, {}, DamagedFile, "whole number"),
        ({"block_count": 3}, {}, DamagedFile, r"no tensor for the parameter model\.layers\.2"),
        ({"block_count": 1}, {}, UnsupportedFile, r"no place for model\.layers\.1"),
        ({"attention.head_count": 0}, {}, DamagedFile, "positive"),
        ({"attention.head_count": 5, "attention.head_count_kv": 5}, {}, DamagedFile, "contradicts itself"),
        ({"attention.head_count_kv": 3}, {}, DamagedFile, "3 heads of keys"),
        ({"attention.head_count_kv": [2, 1]}, {}, UnsupportedFile, "layer to layer"),
        ({"embedding_length": 32}, {}, DamagedFile, "embedding_length"),
        ({"feed_forward_length": 128}, {}, DamagedFile, r"mlp\.\w+_proj\.weight has the shape"),
        ({"expert_count": 8}, {}, UnsupportedFile, "expert_count"),
        ({"rope.dimension_count": 8}, {}, UnsupportedFile, "rotary"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, {}, UnsupportedFile, "longrope"),
        (YARN_KEYS | {"rope.scaling.yarn_log_multiplier": 0.1}, {}, UnsupportedFile, "yarn_log_multiplier"),
        ({}, {"token_embd.weight": None}, DamagedFile, "token_embd"),
        ({}, {"blk.0.ffn_up.weight": None}, DamagedFile, r"model\.layers\.0\.mlp\.up_proj\.weight"),
        ({}, {"blk.0.ffn_gate_exps.weight": np.zeros((2, 32), np.float32)}, UnsupportedFile, "ffn_gate_exps"),
        ({}, {"rope_freqs.weight": np.ones(3, np.float32)}, DamagedFile, "rope_freqs"),
    ],
)
def test_files_that_cannot_be_built(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = rewritten(tmp_path, metadata, tensors)
    with pytest.raises(error, match=message) as caught:
        load(path)
    assert "x.gguf" in str(caught.value)


def test_a_block_quantized_shifted_norm_is_refused(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "gemma2")
    original = original_of(case)
    tensors = converted_tensors(original, "gemma2")
    tensors["output_norm.weight"] = tensors["output_norm.weight"].reshape(1, 64)
    metadata = decoder_metadata(original.config) | case.metadata
    path = write(tmp_path / "x.gguf", "gemma2", metadata, tensors, "q8_0")
    with pytest.raises(UnsupportedFile, match="output_norm"):
        load(path)


def test_token_ids_outside_the_vocabulary_are_dropped(tmp_path: Path) -> None:
    ids = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 4000000}
    config: Any = load(rewritten(tmp_path, ids, {})).module.config
    assert (config.eos_token_id, config.pad_token_id) == (2, None)


def test_settings_keep_decimals(tmp_path: Path) -> None:
    config: Any = load(rewritten(tmp_path, {"attention.layer_norm_rms_epsilon": 1e-5}, {})).module.config
    assert config.rms_norm_eps == 1e-5
