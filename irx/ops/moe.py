"""Mixture of experts: every token through its chosen experts' gated MLP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irx.errors import TypeRuleError
from irx.ir.dims import Dim, minimum
from irx.ir.opdef import Array, OpDef, tensor_bytes
from irx.ir.types import TensorType, Type
from irx.ops.numerics import gelu, project, sigmoid
from irx.ops.shapes import need, need_float, need_integer, need_rank, need_same_dtype, need_shape

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swigluoai")


def gated_activation(gate: Array, up: Array, activation: str, alpha: float, limit: float | None) -> Array:
    """The gated activation of `Moe`, on arrays."""
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    if activation == "swigluoai":
        return np.asarray(gate * sigmoid(alpha * gate) * (up + 1))
    if activation == "silu":
        return np.asarray(gate * sigmoid(gate) * up)
    return np.asarray(gelu(gate, "tanh" if activation == "gelu_tanh" else "none") * up)


class Moe(OpDef):
    """Weighted sum over the chosen experts' gated MLPs: x [N, D], index i64[N, K], weights [N, K] give [N, D].

    gate_up [E, 2F, D] and down [E, D, F] (`transposed`: [E, D, 2F] and [E, F, D]), biases [E, 2F] and [E, D] or none.
    Gate comes first in gate_up, up second; `interleaved`: they alternate. activation silu, gelu, gelu_tanh: act(gate) *
    up; swigluoai: gate * sigmoid(alpha * gate) * (up + 1). `limit` clamps gate to at most it and up to [-limit, limit]
    first. Result in x's dtype. (Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961.)
    """

    name = "moe"
    streamed = ("gate_up", "down")

    @staticmethod
    def infer(
        x: TensorType,
        index: TensorType,
        weights: TensorType,
        gate_up: TensorType,
        down: TensorType,
        gate_up_bias: TensorType | None = None,
        down_bias: TensorType | None = None,
        *,
        activation: str = "silu",
        interleaved: bool = False,
        transposed: bool = False,
        alpha: float = 1.702,
        limit: float | None = None,
    ) -> TensorType:
        need(activation in _ACTIVATIONS, f"activation must be one of {', '.join(_ACTIVATIONS)}, not {activation!r}")
        for tensor, rank, name in ((x, 2, "x"), (index, 2, "index"), (gate_up, 3, "gate_up"), (down, 3, "down")):
            need_rank(tensor, rank, name)
        need_float(x, "x")
        need_integer(index, "index")
        need(index.shape[0] == x.shape[0], f"index {index} and x {x} have different numbers of tokens")
        need_shape(weights, index.shape, "weights")
        need_same_dtype("x, gate_up and down", x, gate_up, down)
        experts, hidden = down.shape[0], down.shape[1 if transposed else 2]
        width = x.shape[1]
        first, second = (width, 2 * hidden) if transposed else (2 * hidden, width)
        need_shape(gate_up, (experts, first, second), "gate_up")
        need_shape(down, (experts, hidden, width) if transposed else (experts, width, hidden), "down")
        for bias, size, name in ((gate_up_bias, 2 * hidden, "gate_up_bias"), (down_bias, width, "down_bias")):
            if bias is not None:
                need_shape(bias, (experts, size), name)
        return x

    @staticmethod
    def reference(
        x: Array,
        index: Array,
        weights: Array,
        gate_up: Array,
        down: Array,
        gate_up_bias: Array | None = None,
        down_bias: Array | None = None,
        *,
        activation: str = "silu",
        interleaved: bool = False,
        transposed: bool = False,
        alpha: float = 1.702,
        limit: float | None = None,
    ) -> Array:
        result = np.zeros(x.shape)
        parts = np.zeros((*index.shape, x.shape[1]))
        for e in np.unique(index):
            token, slot = np.nonzero(index == e)
            first, second = (gate_up[e].T, down[e].T) if transposed else (gate_up[e], down[e])
            both = project(x[token], first) + (0 if gate_up_bias is None else gate_up_bias[e])
            half = both.shape[1] // 2
            gate, up = (both[:, ::2], both[:, 1::2]) if interleaved else (both[:, :half], both[:, half:])
            hidden = gated_activation(gate, up, activation, alpha, limit)
            parts[token, slot] = project(hidden, second) + (0 if down_bias is None else down_bias[e])
        for k in range(index.shape[1]):
            result += parts[:, k] * weights[:, k, None]
        return result.astype(x.dtype)

    @staticmethod
    def flops(
        x: TensorType,
        index: TensorType,
        weights: TensorType,
        gate_up: TensorType,
        down: TensorType,
        gate_up_bias: TensorType | None = None,
        down_bias: TensorType | None = None,
        **attrs: object,
    ) -> Dim:
        hidden = down.shape[1 if attrs.get("transposed") else 2]
        return index.elements * (6 * x.shape[1] * hidden + 5 * hidden + 2 * x.shape[1])

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """Of the experts' weights as many are read as tokens choose, at most all of them."""
        index, experts = operands[1], operands[3:]
        if not isinstance(index, TensorType):
            raise TypeRuleError("takes tensors")
        total = super().bytes(operands[:3], results)
        for weight in experts:
            if isinstance(weight, TensorType):
                total = total + tensor_bytes(weight.with_shape(*weight.shape[1:])) * minimum(
                    index.elements, weight.shape[0]
                )
        return total
