"""Activations and gated activations. Computed in at least float32; the result has the operand's dtype."""

from __future__ import annotations

import numpy as np

from irx.ir.dims import Dim, product
from irx.ir.opdef import Array, OpDef
from irx.ir.types import TensorType
from irx.ops.numerics import gelu, sigmoid
from irx.ops.shapes import broadcast, need, need_float, need_same_dtype

_FORMS = ("none", "tanh")


def _check_form(approximate: str) -> None:
    need(approximate in _FORMS, f"approximate must be one of {', '.join(_FORMS)}, not {approximate!r}")


class Silu(OpDef):
    """x * sigmoid(x), x a float tensor (Elfwing et al. 2017, arXiv:1702.03118)."""

    name = "silu"
    elementwise = True

    @staticmethod
    def infer(x: TensorType) -> TensorType:
        need_float(x, "x")
        return x

    @staticmethod
    def reference(x: Array) -> Array:
        return np.asarray(x * sigmoid(x))

    @staticmethod
    def flops(x: TensorType) -> Dim:
        return 4 * x.elements


class Gelu(OpDef):
    """x * Phi(x); approximate: none (erf) or tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    name = "gelu"
    elementwise = True

    @staticmethod
    def infer(x: TensorType, *, approximate: str = "none") -> TensorType:
        need_float(x, "x")
        _check_form(approximate)
        return x

    @staticmethod
    def reference(x: Array, *, approximate: str = "none") -> Array:
        return gelu(x, approximate)

    @staticmethod
    def flops(x: TensorType, *, approximate: str = "none") -> Dim:
        return (9 if approximate == "tanh" else 5) * x.elements


def _gated(gate: TensorType, up: TensorType) -> TensorType:
    need_float(gate, "gate")
    need_same_dtype("gate and up", gate, up)
    return TensorType(broadcast(gate.shape, up.shape), gate.dtype)


class Swiglu(OpDef):
    """silu(gate) * up, both of one float dtype (Shazeer 2020, arXiv:2002.05202)."""

    name = "swiglu"
    elementwise = True

    @staticmethod
    def infer(gate: TensorType, up: TensorType) -> TensorType:
        return _gated(gate, up)

    @staticmethod
    def reference(gate: Array, up: Array) -> Array:
        return np.asarray(gate * sigmoid(gate) * up)

    @staticmethod
    def flops(gate: TensorType, up: TensorType) -> Dim:
        return 5 * product(broadcast(gate.shape, up.shape))


class Geglu(OpDef):
    """gelu(gate) * up, both of one float dtype; approximate: none or tanh (Shazeer 2020, arXiv:2002.05202)."""

    name = "geglu"
    elementwise = True

    @staticmethod
    def infer(gate: TensorType, up: TensorType, *, approximate: str = "none") -> TensorType:
        _check_form(approximate)
        return _gated(gate, up)

    @staticmethod
    def reference(gate: Array, up: Array, *, approximate: str = "none") -> Array:
        return gelu(gate, approximate) * up

    @staticmethod
    def flops(gate: TensorType, up: TensorType, *, approximate: str = "none") -> Dim:
        return (10 if approximate == "tanh" else 6) * product(broadcast(gate.shape, up.shape))
