"""What a transformers model's configurations say about running it, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LENGTHS = ("max_target_positions", "max_position_embeddings", "n_positions", "n_ctx")


def describe_model(model: Any, sites: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Entries for a program's metadata: lengths, vocabulary, special tokens, and the kind of model.

    `sites` are the attention sites met while tracing; without any, a model that can generate counts as causal.
    """
    config = model.config
    text = config.get_text_config(decoder=True)
    encoder_decoder = bool(config.is_encoder_decoder)
    causal = any(site["causal"] for site in sites) if sites else bool(model.can_generate())
    return {
        "model_type": str(config.model_type),
        "name_or_path": str(config._name_or_path or ""),
        "causal": causal and not encoder_decoder,
        "encoder_decoder": encoder_decoder,
        "max_length": longest(model),
        "vocab": getattr(text, "vocab_size", None),
        "eos": _listed(_token(model, "eos_token_id")),
        "bos": _token(model, "bos_token_id"),
        "pad": _token(model, "pad_token_id"),
        "decoder_start": _token(model, "decoder_start_token_id"),
        "sites": list(sites),
    }


def longest(model: Any) -> int | None:
    """The longest sequence the configuration allows; None where positions are relative."""
    text = model.config.get_text_config(decoder=True)
    if getattr(text, "relative_attention_num_buckets", None):
        return None
    found = (getattr(text, name, None) for name in _LENGTHS)
    return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def _token(model: Any, name: str) -> Any:
    """A special token: what generation uses, else what the model's configuration says."""
    generation = getattr(getattr(model, "generation_config", None), name, None)
    if generation is not None:
        return generation
    text = model.config.get_text_config(decoder=True)
    return getattr(text, name, getattr(model.config, name, None))


def _listed(token: Any) -> list[int]:
    if token is None:
        return []
    return [int(t) for t in token] if isinstance(token, (list, tuple)) else [int(token)]
