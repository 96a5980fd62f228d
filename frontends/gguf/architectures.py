"""The architectures that can be built from a GGUF file, and where each of a model's parameters lies in it.

The names are data: a block's tensor `blk.7.attn_q.weight` is the parameter `model.layers.7.self_attn.q_proj.weight`,
with a `Transform` where the file keeps other numbers, or another order of rows, than the model. A tensor without a
place is an error, so that a variant with more tensors (experts, adapters) is refused and not half built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from irx.errors import UnknownArchitecture
from irx.frontends.gguf import configuration
from irx.frontends.gguf.configuration import Configuration
from irx.frontends.gguf.reader import GgufFile
from irx.frontends.gguf.settings import Settings
from irx.frontends.gguf.weights import MinusOne, StoredWeight, Transform, Unpermute

Kind: TypeAlias = Literal["unpermute q", "unpermute k", "minus one"]

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA = _ATTENTION | {"ffn_norm": "post_attention_layernorm"} | _FEED_FORWARD
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICH = _ATTENTION | _FEED_FORWARD
_SANDWICH |= {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
# These norms multiply by 1 + weight; the file keeps the sum.
_SHIFTED = (
    "output_norm",
    "attn_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
    "attn_q_norm",
    "attn_k_norm",
)
_ALL_SHIFTED: dict[str, Kind] = dict.fromkeys(_SHIFTED, "minus one")
# One factor a frequency: they go into the rotary table (`frequency_factors`) or the configuration, not a parameter.
_FREQUENCIES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Architecture:
    """One architecture: how its configuration is read, its tensors' names within a block, and their transforms."""

    configure: Callable[[Settings], Configuration]
    block: Mapping[str, str]
    transforms: Mapping[str, Kind] = field(default_factory=dict)
    frequencies: tuple[str, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    # Rotary pairs are neighbours in the file and half a head apart in the model.
    "llama": Architecture(
        configuration.llama, _LLAMA, {"attn_q": "unpermute q", "attn_k": "unpermute k"}, _FREQUENCIES[:1]
    ),
    "qwen2": Architecture(configuration.qwen2, _LLAMA),
    "qwen3": Architecture(configuration.qwen3, _LLAMA | _HEAD_NORMS),
    "gemma2": Architecture(configuration.gemma2, _SANDWICH, _ALL_SHIFTED),
    "gemma3": Architecture(configuration.gemma3, _SANDWICH | _HEAD_NORMS, _ALL_SHIFTED),
    "phi3": Architecture(configuration.phi3, _PHI3, {}, _FREQUENCIES[1:]),
}


def architecture_of(file: GgufFile) -> Architecture:
    """The architecture a file states. Raises UnknownArchitecture, which lists the known ones."""
    name = file.architecture
    if name not in ARCHITECTURES:
        raise UnknownArchitecture(name, ARCHITECTURES, where=str(file.path))
    return ARCHITECTURES[name]


def configure(file: GgufFile) -> Configuration:
    """The Hugging Face model type (`llama`) and the fields of its configuration, from the file's metadata.

    Raises UnknownArchitecture, DamagedFile for missing or contradictory metadata, and UnsupportedFile for a variant
    that is not built.
    """
    return architecture_of(file).configure(Settings(file))


def stored_weights(file: GgufFile) -> dict[str, StoredWeight]:
    """Every parameter the file has, by its Hugging Face name. Nothing is read. Raises UnsupportedFile for a tensor
    that the architecture has no place for.
    """
    architecture, settings = architecture_of(file), Settings(file)
    weights = {}
    for name, tensor in file.tensors.items():
        if name in architecture.frequencies:
            continue
        owner, _, leaf = name.rpartition(".")
        parameter = _parameter(architecture, owner)
        if parameter is None or leaf not in ("weight", "bias"):
            raise settings.unsupported(f"the tensor {name!r}")
        kind = architecture.transforms.get(owner.split(".")[-1])
        weights[f"{parameter}.{leaf}"] = StoredWeight(tensor, _transform(kind, settings))
    return weights


def _parameter(architecture: Architecture, owner: str) -> str | None:
    """`blk.7.attn_q` to `model.layers.7.self_attn.q_proj`; None for a name that has no place."""
    if owner in _OUTER:
        return _OUTER[owner]
    block, _, rest = owner.partition(".")
    layer, _, name = rest.partition(".")
    if block != "blk" or not layer.isdecimal() or name not in architecture.block:
        return None
    return f"model.layers.{int(layer)}.{architecture.block[name]}"


def _transform(kind: Kind | None, settings: Settings) -> Transform | None:
    if kind is None:
        return None
    if kind == "minus one":
        return MinusOne()
    return Unpermute(settings.heads if kind == "unpermute q" else settings.kv_heads)
