"""Complex tensors as pairs of real ones: rotary positions written with `torch.polar` and `view_as_complex`.

IRX has no complex dtypes. A complex tensor of the traced graph is a `Complex` here, never a value of the graph; what
multiplies or makes one is written out in its real and imaginary parts, and what only moves elements is done to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from irx.errors import ExportFailed
from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Rule
from irx.frontends.torch_export.tensors import WeightTable
from irx.ir.graph import Graph, Loc, Operand, Value
from irx.ir.types import TensorType

REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}

_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "view.default reshape.default unsqueeze.default squeeze.default squeeze.dim slice.Tensor select.int "
        "expand.default transpose.int permute.default index_select.default index.Tensor cat.default stack.default "
        "clone.default contiguous.default alias.default detach.default to.dtype to.dtype_layout to.device "
        "flatten.using_ints unflatten.int repeat.default split.Tensor chunk.default unbind.int _unsafe_view.default "
        "lift_fresh_copy.default"
    ).split()
)


@dataclass(frozen=True)
class Complex:
    """A complex tensor by its parts, of one shape and float dtype."""

    real: Value
    imaginary: Value


def has_complex(value: Any) -> bool:
    """True where a complex tensor is among the (nested) arguments."""
    if isinstance(value, (list, tuple)):
        return any(map(has_complex, value))
    return isinstance(value, Complex)


def complex_constant(graph: Graph, table: WeightTable, name: str, tensor: torch.Tensor) -> Complex:
    """A complex weight: a real one with an axis more, and its two halves."""
    weight = table.add(name, torch.view_as_real(tensor.resolve_conj()))
    site = Site(graph, Loc(name), [TensorType(weight.shape[:-1], weight.dtype)])
    return _view_as_complex(site, weight)


def apply_complex(site: Site, name: str, arguments: Mapping[str, Any], rule: Rule | None) -> Any:
    """The result of an operator that takes or makes complex tensors; `rule` is the one for real tensors.

    Raises ExportFailed for operators that are not known here.
    """
    own = _RULES.get(name)
    if own is not None:
        return own(site, *arguments.values())
    if name not in _MOVES or rule is None:
        raise ExportFailed(f"{name} of complex tensors has no translation", where=str(site.loc), fix="use real tensors")
    parts = [rule(site, **{key: _part(value, i) for key, value in arguments.items()}) for i in (0, 1)]
    if isinstance(parts[0], (list, tuple)):
        return [Complex(real, imaginary) for real, imaginary in zip(*parts, strict=True)]
    return Complex(*parts)


def _part(value: Any, index: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [_part(item, index) for item in value]
    return (value.real, value.imaginary)[index] if isinstance(value, Complex) else value


def _polar(site: Site, absolute: Value, angle: Value, *_rest: Any) -> Complex:
    return Complex(site("mul", absolute, site("cos", angle)), site("mul", absolute, site("sin", angle)))


def _complex(site: Site, real: Value, imaginary: Value, *_rest: Any) -> Complex:
    return Complex(real, imaginary)


def _view_as_complex(site: Site, x: Value, *_rest: Any) -> Complex:
    axis = len(x.shape) - 1
    halves = [site.reshape(site.slice(x, axis, i, i + 1), x.shape[:-1]) for i in (0, 1)]
    return Complex(*halves)


def _view_as_real(site: Site, z: Complex, *_rest: Any) -> Value:
    axis = len(z.real.shape)
    return site("concat", site.unsqueeze(z.real, axis), site.unsqueeze(z.imaginary, axis), axis=axis)


def _multiply(site: Site, a: Complex | Operand, b: Complex | Operand, *_rest: Any) -> Complex:
    if not isinstance(a, Complex):
        a, b = b, a
    assert isinstance(a, Complex)
    if not isinstance(b, Complex):
        return Complex(site("mul", a.real, b), site("mul", a.imaginary, b))
    real = site("sub", site("mul", a.real, b.real), site("mul", a.imaginary, b.imaginary))
    return Complex(real, site("add", site("mul", a.real, b.imaginary), site("mul", a.imaginary, b.real)))


def _conjugate(site: Site, z: Complex, *_rest: Any) -> Complex:
    return Complex(z.real, site("neg", z.imaginary))


def _real(site: Site, z: Complex, *_rest: Any) -> Value:
    return z.real


def _imaginary(site: Site, z: Complex, *_rest: Any) -> Value:
    return z.imaginary


_RULES: dict[str, Callable[..., Any]] = {
    "aten.polar.default": _polar,
    "aten.complex.default": _complex,
    "aten.view_as_complex.default": _view_as_complex,
    "aten.view_as_real.default": _view_as_real,
    "aten.mul.Tensor": _multiply,
    "aten.conj.default": _conjugate,
    "aten._conj.default": _conjugate,
    "aten.real.default": _real,
    "aten.imag.default": _imaginary,
}
