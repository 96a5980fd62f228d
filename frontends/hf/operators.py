"""Opaque torch operators that stand for attention, its mask and mixtures of experts while a model is traced.

They have no kernels, only shapes: nothing ever runs them. `irx.frontends.torch_export.aten.attention` translates them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_SCHEMAS = (
    "mask(Tensor? padding, SymInt batch, SymInt rows, SymInt columns, bool causal, int window) -> Tensor",
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? padding, Tensor? bias, Tensor? sinks, "
    "float scale, bool causal, int window, float softcap) -> Tensor",
    "experts(Tensor x, Tensor index, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, "
    "Tensor? down_bias, str activation, bool interleaved, bool transposed, float alpha, float limit) -> Tensor",
)


@cache
def operators() -> Any:
    """`torch.ops.irx` with the three operators defined; `window`, `softcap` and `limit` are 0 where there is none."""
    library: Any = torch.library.Library("irx", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)
    torch.library.register_fake("irx::mask", _mask, lib=library)
    torch.library.register_fake("irx::attention", _attention, lib=library)
    torch.library.register_fake("irx::experts", _experts, lib=library)
    _KEPT.append(library)  # its operators disappear together with it
    return torch.ops.irx


_KEPT: list[torch.library.Library] = []


def _mask(padding: Any, batch: int, rows: int, columns: int, causal: bool, window: int) -> torch.Tensor:
    return torch.empty(batch, 1, rows, columns, dtype=torch.bool)


def _attention(query: torch.Tensor, key: Any, value: torch.Tensor, *_rest: Any) -> torch.Tensor:
    batch, heads, rows, _ = query.shape
    return query.new_empty(batch, rows, heads, value.shape[-1])


def _experts(x: torch.Tensor, *_rest: Any) -> torch.Tensor:
    return torch.empty_like(x)
