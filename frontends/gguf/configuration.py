"""From a file's metadata to the fields of the Hugging Face configuration of the same model.

A GGUF file has no config.json: it states sizes under its own keys and leaves out what its architecture implies. Each
function gives the model type and the configuration's fields for one architecture; nothing is read from elsewhere.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from irx.frontends.gguf.settings import Settings

Fields: TypeAlias = dict[str, Any]
Configuration: TypeAlias = tuple[str, Fields]

# Keys that change what a model computes and that none of the architectures here has; zero and false mean absent.
_CHANGING = (
    "expert_count",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
)
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}


def llama(settings: Settings) -> Configuration:
    """Llama, and Mistral, which files call llama as well; only a sliding window tells them apart."""
    _require_full_rotary(settings)
    fields = _decoder(settings)
    fields["rope_parameters"] = _rope(settings)
    window = settings.integer("attention.sliding_window", 0)
    if window:
        return "mistral", fields | {"sliding_window": window}
    tensors = settings.file.tensors
    biases = {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_gate.bias" in tensors}
    return "llama", fields | biases


def qwen2(settings: Settings) -> Configuration:
    """Qwen2: Llama with biases on Q, K and V."""
    _require_full_rotary(settings)
    _refuse(settings, "attention.sliding_window")
    return "qwen2", _decoder(settings) | {"rope_parameters": _rope(settings), "use_sliding_window": False}


def qwen3(settings: Settings) -> Configuration:
    """Qwen3: Llama with norms on the heads of Q and K."""
    _require_full_rotary(settings)
    _refuse(settings, "attention.sliding_window")
    bias = "blk.0.attn_q.bias" in settings.file.tensors
    fields = {"rope_parameters": _rope(settings), "use_sliding_window": False, "attention_bias": bias}
    return "qwen3", _decoder(settings) | fields


def gemma2(settings: Settings) -> Configuration:
    """Gemma 2: a window on every other layer, soft caps; only the largest model scales attention by width / heads."""
    _require_full_rotary(settings)
    fields = {
        "rope_parameters": _rope(settings),
        "sliding_window": settings.integer("attention.sliding_window"),
        "query_pre_attn_scalar": _query_scalar(settings, layers_of_largest=46),
        "attn_logit_softcapping": _cap(settings, "attn_logit_softcapping"),
        "final_logit_softcapping": _cap(settings, "final_logit_softcapping"),
    }
    return "gemma2", _decoder(settings) | fields


def gemma3(settings: Settings) -> Configuration:
    """Gemma 3, the text model: windowed layers rotate with their own base and without scaling."""
    _require_full_rotary(settings)
    local = {"rope_type": "default", "rope_theta": settings.real("rope.freq_base_swa", 10000.0)}
    fields = {
        "rope_parameters": {"full_attention": _rope(settings), "sliding_attention": local},
        "sliding_window": settings.integer("attention.sliding_window"),
        "layer_types": _layer_types(settings, every=6),
        "query_pre_attn_scalar": _query_scalar(settings, layers_of_largest=62),
        "attn_logit_softcapping": _cap(settings, "attn_logit_softcapping"),
        "final_logit_softcapping": _cap(settings, "final_logit_softcapping"),
    }
    return "gemma3_text", _decoder(settings) | fields


def phi3(settings: Settings) -> Configuration:
    """Phi-3: part of every head is rotated; long contexts with one factor per frequency, given as two tensors."""
    context = settings.integer("context_length")
    original = settings.integer("rope.scaling.original_context_length", context)
    rope: Fields = {
        "rope_type": "default",
        "rope_theta": settings.real("rope.freq_base", 10000.0),
        "partial_rotary_factor": settings.integer("rope.dimension_count", settings.head_dim) / settings.head_dim,
    }
    fields = {
        "rope_parameters": rope | _longrope(settings, original),
        "original_max_position_embeddings": original,
        "sliding_window": settings.integer("attention.sliding_window", 0) or None,
    }
    return "phi3", _decoder(settings) | fields


def _decoder(settings: Settings) -> Fields:
    """What all decoders state in the same way."""
    _refuse(settings, *_CHANGING)
    return {
        "vocab_size": settings.vocabulary,
        "hidden_size": settings.width,
        "intermediate_size": settings.integer("feed_forward_length"),
        "num_hidden_layers": settings.integer("block_count"),
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "max_position_embeddings": settings.integer("context_length"),
        "rms_norm_eps": settings.real("attention.layer_norm_rms_epsilon"),
        # The output projection is written only when it is not the embedding.
        "tie_word_embeddings": "output.weight" not in settings.file.tensors,
        "bos_token_id": settings.token("bos"),
        "eos_token_id": settings.token("eos"),
        "pad_token_id": settings.token("padding"),
    }


def _refuse(settings: Settings, *keys: str) -> None:
    for key in keys:
        if settings.value(key):
            raise settings.unsupported(f"{key} = {settings.value(key)!r}")


def _require_full_rotary(settings: Settings) -> None:
    rotary = settings.integer("rope.dimension_count", settings.head_dim)
    if rotary != settings.head_dim:
        raise settings.unsupported(f"{rotary} rotary elements in heads of {settings.head_dim}")


def _rope(settings: Settings) -> Fields:
    """The base and the scaling of positions: none, linear, or YaRN (https://arxiv.org/abs/2309.00071)."""
    rope: Fields = {"rope_type": "default", "rope_theta": settings.real("rope.freq_base", 10000.0)}
    kind = settings.text("rope.scaling.type", "linear")
    factor = settings.real("rope.scaling.factor", 0.0)
    if kind == "none" or factor in (0.0, 1.0):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return rope | {"rope_type": "yarn", "factor": factor} | _yarn(settings)
    raise settings.unsupported(f"rope.scaling.type = {kind!r}")


def _yarn(settings: Settings) -> Fields:
    fields: Fields = {"original_max_position_embeddings": settings.integer("rope.scaling.original_context_length")}
    for key in settings.keys("rope.scaling."):
        if key in _YARN:
            fields[_YARN[key]] = settings.real(f"rope.scaling.{key}")
        elif key not in ("type", "factor", "original_context_length", "finetuned"):
            raise settings.unsupported(f"rope.scaling.{key}")
    return fields


def _longrope(settings: Settings, original: int) -> Fields:
    """LongRoPE (https://arxiv.org/abs/2402.13753): frequencies divided by a factor each, of two lists by length."""
    tensors = settings.file.tensors
    if "rope_factors_long.weight" not in tensors:
        return {}
    lists = {kind: tensors[f"rope_factors_{kind}.weight"].values().tolist() for kind in ("long", "short")}
    fields: Fields = {"rope_type": "longrope", "long_factor": lists["long"], "short_factor": lists["short"]}
    if settings.has("rope.scaling.attn_factor"):
        fields["attention_factor"] = settings.real("rope.scaling.attn_factor")
    return fields | {"original_max_position_embeddings": original}


def _query_scalar(settings: Settings, layers_of_largest: int) -> int:
    """Attention is scaled by this to the power -1/2. Files do not state it: the number of layers tells the model."""
    if settings.integer("block_count") == layers_of_largest:
        return settings.width // settings.heads
    return settings.head_dim


def _cap(settings: Settings, key: str) -> float | None:
    return settings.real(key) if settings.value(key) else None


def _layer_types(settings: Settings, every: int) -> list[str]:
    """Which layers see a window only: all but each `every`-th, or as the file states it."""
    stated = settings.value("attention.sliding_window_pattern")
    layers = settings.integer("block_count")
    if isinstance(stated, list) and len(stated) == layers:
        windowed = [bool(flag) for flag in stated]
    else:
        period = stated if isinstance(stated, int) and stated > 0 else every
        windowed = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if flag else "full_attention" for flag in windowed]
