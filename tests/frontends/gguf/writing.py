"""GGUF files of random transformers models, written by the `gguf` package: the second opinion on the reader.

Keys, tensor names and storage all come from that package; only the changes that converters make to the numbers are
spelled out here, in the converters' direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

Metadata = Mapping[str, Any]


def write(path: Path, architecture: str, metadata: Metadata, tensors: Mapping[str, Any], storage: str = "f32") -> Path:
    """Write a file; matrices are stored as `storage`, vectors as float32, uint8 arrays and float16 as they are."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key if key.startswith(("tokenizer.", "general.", "split.")) else f"{architecture}.{key}", value)
    kind = gguf.GGMLQuantizationType[storage.upper()]
    for name, values in tensors.items():
        array = np.ascontiguousarray(values)
        if array.ndim == 2 and storage != "f32":
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def decoder_metadata(config: Any) -> dict[str, Any]:
    """What converters state of every decoder, from its transformers configuration."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
    }


def random_model(model_class: Any, config: Any) -> Any:
    """A model with weights large enough that every one of them matters to the logits."""
    torch.manual_seed(3)
    model = model_class(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.3 if "norm" in name else 0.15)
    return model


def converted_tensors(model: Any, architecture: str) -> dict[str, np.ndarray[Any, Any]]:
    """The model's parameters under their GGUF names, with the changes that converters make."""
    config = model.config
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        target = names.get_name(stem)
        assert target is not None, name
        values = parameter.numpy()
        if architecture == "llama" and target.split(".")[-1] in heads:
            values = permuted(values, heads[target.split(".")[-1]])
        if architecture.startswith("gemma") and target.endswith("norm"):
            values = values + np.float32(1)
        tensors[f"{target}.{suffix}"] = values
    return tensors


def permuted(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of Q or K as llama files keep them: the two halves of each head interleaved."""
    rows = values.shape[0]
    halves = values.reshape(heads, 2, rows // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
