"""The functions registered with transformers under the name `irx`, and the session during which a model uses them.

transformers dispatches attention, masks and experts by a name in the configuration. While a model is traced that name
is `irx`, every site becomes one opaque operator with explicit attributes, and neither mask tensors nor repeated KV
heads appear in the graph. The configurations get their own names back afterwards, also when tracing fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from irx.errors import UnsupportedAttention
from irx.frontends.hf.experts import ExpertsSpec, recognise_experts
from irx.frontends.hf.masks import MaskSpec, UnknownMask, recognise
from irx.frontends.hf.operators import operators

_NAME = "irx"
_ATTENTION, _EXPERTS = "_attn_implementation_internal", "_experts_implementation_internal"

# Keywords that change nothing about what attention computes: bookkeeping of the caller, and hints for other kernels.
# A window is part of the mask; without a mask, transformers' own reference attention does not apply one either.
_MEANINGLESS = frozenset(
    {
        "dropout",
        "sliding_window",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "use_cache",
        "position_ids",
        "cache_position",
        "return_dict",
        "deterministic",
        "num_items_in_batch",
    }
)


@dataclass
class Session:
    """What is known while one model is traced. `names` are module paths, `masks` the masks made so far."""

    names: dict[int, str]
    experts: dict[int, ExpertsSpec | None] = field(default_factory=dict)
    masks: dict[int, tuple[torch.Tensor, MaskSpec]] = field(default_factory=dict)
    sites: list[dict[str, Any]] = field(default_factory=list)

    def name(self, module: torch.nn.Module) -> str:
        """The module's path in the model."""
        return self.names.get(id(module)) or type(module).__name__


_sessions: list[Session] = []


@contextmanager
def adapted(model: torch.nn.Module, *, attention: bool = True) -> Iterator[Session]:
    """Trace `model` inside this block. `attention=False` replaces experts only."""
    _register()
    session = Session({id(module): name for name, module in model.named_modules()})
    configs = _configurations(model)
    kept = [(config, key, getattr(config, key, None)) for config in configs for key in (_ATTENTION, _EXPERTS)]
    for module in model.modules():
        if hasattr(module, "_apply_gate"):
            session.experts[id(module)] = recognise_experts(module)
    _sessions.append(session)
    try:
        for config in configs:
            if attention:
                setattr(config, _ATTENTION, _NAME)
            if session.experts:
                setattr(config, _EXPERTS, _NAME)
        yield session
    finally:
        _sessions.remove(session)
        for config, key, value in kept:
            setattr(config, key, value)


def can_adapt(model: torch.nn.Module) -> bool:
    """True where every part of the model asks transformers' interface for its attention."""
    from transformers import PreTrainedModel

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return bool(parts) and all(part._can_set_attn_implementation() for part in parts)


def _configurations(model: torch.nn.Module) -> list[Any]:
    """Every configuration object in the model, each once: parts may hold copies of their own."""
    from transformers import PreTrainedConfig

    found: dict[int, Any] = {}
    for module in model.modules():
        pending = [getattr(module, "config", None)]
        while pending:
            config = pending.pop()
            if isinstance(config, PreTrainedConfig) and id(config) not in found:
                found[id(config)] = config
                pending += [getattr(config, key, None) for key in config.sub_configs]
    return list(found.values())


@cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import AttentionMaskInterface

    operators()
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _experts)


def _session() -> Session:
    if not _sessions:
        raise UnsupportedAttention(
            "the attention implementation 'irx' exists only while a model is captured",
            fix="choose 'sdpa' or 'eager' for running the model itself",
        )
    return _sessions[-1]


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    **_for_others: Any,
) -> torch.Tensor:
    """The mask interface: a tensor that `_attention` recognises again."""
    session = _session()
    for offset in (q_offset, kv_offset):
        if not isinstance(offset, int) or offset != 0:
            raise UnknownMask("attention is masked relative to a cache")
    spec = recognise(mask_function)
    spec = MaskSpec(spec.causal, spec.window, attention_mask)
    mask: torch.Tensor = operators().mask(attention_mask, batch_size, q_length, kv_length, spec.causal, spec.window)
    session.masks[id(mask)] = (mask, spec)
    return mask


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface: [B, H, S, D] in, [B, S, H, D] out."""
    session = _session()
    _refuse_unknown(session, module, keywords)
    known = session.masks.get(id(attention_mask))
    spec = known[1] if known is not None else MaskSpec()
    if attention_mask is None:
        spec = MaskSpec(causal=_is_causal(module, query, key, is_causal))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    session.sites.append({"module": session.name(module), "causal": spec.causal, "window": spec.window})
    out = operators().attention(
        query,
        key,
        value,
        None if known is not None else attention_mask,
        spec.padding,
        position_bias,
        s_aux,
        float(scale),
        spec.causal,
        spec.window,
        float(softcap or 0.0),
    )
    return out, None


def _refuse_unknown(session: Session, module: torch.nn.Module, keywords: dict[str, Any]) -> None:
    for keyword, value in keywords.items():
        if keyword not in _MEANINGLESS and value is not None and value is not False:
            raise UnsupportedAttention(
                f"{type(module).__name__} passes {keyword!r} to attention, whose meaning IRX does not know",
                where=session.name(module),
                fix="wrap the model in an nn.Module of your own, whose attention is then captured as it is",
            )


def _is_causal(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, is_causal: bool | None) -> bool:
    """Without a mask the module's flag decides, as in transformers' reference attention."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if causal and not statically_known_true(query.shape[2] == key.shape[2]):
        raise UnknownMask("causal attention between sequences of different lengths, without a mask")
    return causal


def _experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts interface; a gate that was not recognised is captured as batched matrix products."""
    from transformers.integrations.moe import batched_mm_experts_forward

    spec = _session().experts.get(id(module))
    if spec is None or hidden_states.dim() != 2:
        return batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    result: torch.Tensor = operators().experts(
        hidden_states,
        top_k_index,
        top_k_weights,
        module.gate_up_proj,
        module.down_proj,
        getattr(module, "gate_up_proj_bias", None),
        getattr(module, "down_proj_bias", None),
        spec.activation,
        spec.interleaved,
        spec.transposed,
        spec.alpha,
        spec.limit,
    )
    return result
