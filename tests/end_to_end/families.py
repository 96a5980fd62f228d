"""The model families that IRX is tested with: small, with seeded random weights, of every architecture in the notes.

    family = FAMILIES["llama"]
    model = family.model()                     # eval mode, float32
    inputs = family.inputs(batch=3, length=21) # keyword arguments of model.forward
    expected = family.eager(model, inputs)     # tensors by the name of the output field

`model(**changes)` overrides fields of the configuration, as `sliding_window=100`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from irx.ir.program import Program

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

VOCABULARY, WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS, LENGTH = 256, 64, 4, 2, 128, 2, 256
WINDOW = 8
IMAGE, PATCH = 32, 8

Inputs = dict[str, torch.Tensor]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WITHOUT_KV_HEADS = {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"}
_ENCODER = {key: value for key, value in _WITHOUT_KV_HEADS.items() if not key.endswith("token_id")}
_VISION = {
    **{key: _COMMON[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
    "image_size": IMAGE,
    "patch_size": PATCH,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GROUPED_EXPERTS = {
    "num_key_value_heads": HEADS,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}


@dataclass(frozen=True)
class Family:
    """One row of the table of families. `kind` is decoder, encoder, seq2seq or vision; `plain` models are nn.Modules
    that know nothing of transformers."""

    name: str
    kind: str
    build: Callable[[dict[str, Any]], torch.nn.Module]
    make_inputs: Callable[[int, int, torch.Generator], Inputs]
    plain: bool = False
    fields: tuple[str, ...] = field(default=("logits",))

    def model(self, seed: int = 0, **changes: Any) -> torch.nn.Module:
        """A new model in eval mode and float32; no parameter has its trivial initial value of 0 or 1."""
        torch.manual_seed(seed)
        model = self.build(changes).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    def inputs(self, batch: int, length: int, seed: int = 1) -> Inputs:
        """Random inputs; `length` means nothing to vision models."""
        return self.make_inputs(batch, length, torch.Generator().manual_seed(seed))

    def eager(self, model: torch.nn.Module, inputs: Inputs) -> Inputs:
        """What the model itself computes, without a cache."""
        options = {"use_cache": False} if self.caches else {}
        with torch.no_grad():
            result = model(**inputs, **options)
        return {"output": result} if isinstance(result, torch.Tensor) else {name: result[name] for name in self.fields}

    @property
    def caches(self) -> bool:
        """True where the forward function has a `use_cache` argument."""
        return self.kind in ("decoder", "seq2seq") and not self.plain


def torch_calls(program: Program) -> Counter[str]:
    """How often each aten name is left as a `torch.call` in a program."""
    nodes = (node for graph in program.graphs.values() for node in graph.nodes)
    return Counter(str(node.attr("target")) for node in nodes if node.op.name == "torch.call")


def _ids(batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def _decoder_inputs(batch: int, length: int, generator: torch.Generator) -> Inputs:
    return {"input_ids": _ids(batch, length, generator)}


def _encoder_inputs(batch: int, length: int, generator: torch.Generator) -> Inputs:
    """Rows padded on the right by different amounts."""
    padding = torch.arange(batch)[:, None].clamp(max=length - 1)
    mask = (torch.arange(length)[None] < length - padding).long()
    return {"input_ids": _ids(batch, length, generator), "attention_mask": mask}


def _translation_inputs(batch: int, length: int, generator: torch.Generator) -> Inputs:
    decoder = _ids(batch, max(1, length // 2), generator)
    return {"input_ids": _ids(batch, length, generator), "decoder_input_ids": decoder}


def _speech_inputs(batch: int, length: int, generator: torch.Generator) -> Inputs:
    features = torch.randn(batch, 16, 64, generator=generator)
    return {"input_features": features, "decoder_input_ids": _ids(batch, length, generator)}


def _image_inputs(batch: int, length: int, generator: torch.Generator) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)}


def _embedding_inputs(batch: int, length: int, generator: torch.Generator) -> Inputs:
    return {"inputs_embeds": torch.randn(batch, length, WIDTH, generator=generator)}


def _plain_image_inputs(batch: int, length: int, generator: torch.Generator) -> Inputs:
    return {"x": torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)}


def _causal(config: str, model: str, base: dict[str, Any], **fixed: Any) -> Callable[[dict[str, Any]], Any]:
    """A builder from the names of transformers' configuration and model classes."""

    def build(changes: dict[str, Any]) -> Any:
        made = getattr(transformers, config)(**{**base, **fixed, **changes})
        return getattr(transformers, model)(made)

    return build


def _llava(changes: dict[str, Any]) -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION, projection_dim=WIDTH),
        text_config=transformers.LlamaConfig(**{**_COMMON, **changes}),
        image_token_index=5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return transformers.LlavaForConditionalGeneration(config)


class _VisionTower(torch.nn.Module):
    """LLaVA's image side: tower and projector, a plain module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.tower(pixel_values).last_hidden_state[:, 1:]
        projected: torch.Tensor = self.projector(features)
        return projected


def _timm(changes: dict[str, Any]) -> Any:
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2, img_size=IMAGE, patch_size=PATCH)


_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "llama": _causal("LlamaConfig", "LlamaForCausalLM", _COMMON),
    "llama_tied": _causal(
        "LlamaConfig", "LlamaForCausalLM", _COMMON, tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE
    ),
    "qwen2": _causal("Qwen2Config", "Qwen2ForCausalLM", _COMMON),
    "qwen3": _causal("Qwen3Config", "Qwen3ForCausalLM", _COMMON, head_dim=16),
    "gemma2": _causal(
        "Gemma2Config", "Gemma2ForCausalLM", _COMMON, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16
    ),
    "gemma3": _causal(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        _COMMON,
        num_hidden_layers=3,
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "mistral": _causal("MistralConfig", "MistralForCausalLM", _COMMON, sliding_window=WINDOW),
    "phi3": _causal("Phi3Config", "Phi3ForCausalLM", _COMMON),
    "gpt2": _causal(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2},
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=HIDDEN,
    ),
    "opt": _causal("OPTConfig", "OPTForCausalLM", _WITHOUT_KV_HEADS, ffn_dim=HIDDEN, word_embed_proj_dim=WIDTH),
    "gptneox": _causal("GPTNeoXConfig", "GPTNeoXForCausalLM", _WITHOUT_KV_HEADS),
    "mixtral": _causal("MixtralConfig", "MixtralForCausalLM", _COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _causal(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        _COMMON,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    "gpt_oss": _causal(
        "GptOssConfig",
        "GptOssForCausalLM",
        _COMMON,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "deepseek_v3": _causal("DeepseekV3Config", "DeepseekV3ForCausalLM", _COMMON, **_GROUPED_EXPERTS, **_LATENT),
    "olmo2": _causal("Olmo2Config", "Olmo2ForCausalLM", _COMMON),
}
_T5 = _causal(
    "T5Config",
    "T5ForConditionalGeneration",
    {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 16, "d_ff": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS},
    feed_forward_proj="gated-gelu",
    decoder_start_token_id=0,
)
_WHISPER = _causal(
    "WhisperConfig",
    "WhisperForConditionalGeneration",
    {key: _COMMON[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
    num_mel_bins=16,
    d_model=WIDTH,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    encoder_ffn_dim=HIDDEN,
    decoder_ffn_dim=HIDDEN,
    max_source_positions=32,
    max_target_positions=64,
    decoder_start_token_id=3,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)
_STATES = ("last_hidden_state",)
_ALL = [
    *(Family(name, "decoder", build, _decoder_inputs) for name, build in _DECODERS.items()),
    Family(
        "bert",
        "encoder",
        _causal("BertConfig", "BertModel", _ENCODER),
        _encoder_inputs,
        fields=("last_hidden_state", "pooler_output"),
    ),
    Family("vit", "vision", _causal("ViTConfig", "ViTForImageClassification", _VISION), _image_inputs),
    Family("t5", "seq2seq", _T5, _translation_inputs),
    Family("whisper", "seq2seq", _WHISPER, _speech_inputs),
    Family("llava_text", "decoder", lambda c: _llava(c).model.language_model, _embedding_inputs, fields=_STATES),
    Family("llava_vision", "vision", lambda c: _VisionTower(_llava(c)), _image_inputs, plain=True),
    Family("timm_vit", "vision", _timm, _plain_image_inputs, plain=True),
]
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
DECODERS = [family.name for family in _ALL if family.kind == "decoder"]
