"""What the inputs and outputs of `forward` are for: tokens of the decoder, masks, positions, the encoder's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from irx.ir.dims import Dim, SymDim
from irx.ir.graph import Graph, Value
from irx.ir.types import TensorType, is_float
from irx.passes.normalize.caching.refusal import NotCacheable

_TOKENS = ("decoder_ids", "decoder_embeddings", "ids", "embeddings")  # the first that occurs is the decoder's
_NAMES = {
    "input_ids": "ids",
    "ids": "ids",
    "attention_mask": "mask",
    "decoder_input_ids": "decoder_ids",
    "decoder_attention_mask": "decoder_mask",
    "position_ids": "positions",
    "inputs_embeds": "embeddings",
    "decoder_inputs_embeds": "decoder_embeddings",
}


@dataclass(frozen=True)
class Roles:
    """The inputs of one graph by role, and the name of the output with one row of logits per token.

    `tokens` is [B, S] or [B, S, D]; `masks` are the decoder's own; `encoder` are the inputs that are not per token.
    `padding` are ids that the model itself takes for padding.
    """

    tokens: Value
    masks: tuple[Value, ...]
    positions: tuple[Value, ...]
    encoder: tuple[Value, ...]
    logits: str
    padding: tuple[int, ...] = ()

    @property
    def batch(self) -> Dim:
        return self.tokens.shape[0]

    @property
    def length(self) -> SymDim:
        """The named size of the decoder's sequence."""
        length = self.tokens.shape[1]
        assert isinstance(length, SymDim), "find_roles refuses fixed lengths"
        return length


def find_roles(graph: Graph, meta: Mapping[str, Any]) -> Roles:
    """The roles in `forward`, from the program's metadata or, where that says nothing, from names and types.

    Raises NotCacheable.
    """
    roles = _roles(graph, meta)
    tokens = _tokens(graph, roles)
    separate = roles[tokens].startswith("decoder_")
    masks = tuple(v for v in graph.inputs if roles[v] == ("decoder_mask" if separate else "mask"))
    positions = tuple(v for v in graph.inputs if roles[v] == "positions")
    others = tuple(v for v in graph.inputs if v not in (tokens, *masks, *positions))
    _check_sequence(tokens)
    per_token = [v.name for v in others if isinstance(v.type, TensorType) and tokens.shape[1] in v.shape]
    if per_token:
        raise NotCacheable(f"input {per_token[0]} has the tokens' length, and what it is for is not known")
    return Roles(tokens, masks, positions, others, _logits(graph, tokens))


def _roles(graph: Graph, meta: Mapping[str, Any]) -> dict[Value, str]:
    known = {item["name"]: item["role"] for item in meta.get("inputs", ())}
    return {v: known.get(v.name, _NAMES.get(v.name, "tensor")) for v in graph.inputs}


def _tokens(graph: Graph, roles: Mapping[Value, str]) -> Value:
    for wanted in _TOKENS:
        found = [v for v in graph.inputs if roles[v] == wanted]
        if found:
            return found[0]
    rows = [v for v in graph.inputs if isinstance(v.type, TensorType) and v.dtype == "i64" and len(v.shape) == 2]
    if len(rows) != 1:
        raise NotCacheable(f"none of the inputs {', '.join(v.name for v in graph.inputs)} is known to be token ids")
    return rows[0]


def _check_sequence(tokens: Value) -> None:
    if len(tokens.shape) not in (2, 3):
        raise NotCacheable(f"the tokens {tokens.name} are {tokens.type}, not [batch, length]")
    batch, length = tokens.shape[:2]
    if not isinstance(batch, SymDim):
        raise NotCacheable(f"the batch of {tokens.name} is {batch} and cannot vary")
    if not isinstance(length, SymDim) or not length.text.isidentifier():
        raise NotCacheable(f"the length of {tokens.name} is {length} and cannot vary")


def _logits(graph: Graph, tokens: Value) -> str:
    """The output called `logits`, else the first float output with a row per token."""
    outputs = dict(zip(graph.output_names, graph.outputs, strict=True))
    tensors = {name: v.type for name, v in outputs.items() if isinstance(v.type, TensorType) and v.type.rank == 3}
    per_token = [n for n, type in tensors.items() if is_float(type.dtype) and type.shape[:2] == tokens.shape[:2]]
    if not per_token:
        raise NotCacheable("no output has one row per token")
    return "logits" if "logits" in per_token else per_token[0]
