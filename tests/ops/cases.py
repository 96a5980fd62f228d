"""The case table: sample operands and attributes for every op, with what torch computes from them.

`CASES` serves the tests of the declarations here and those of every backend's kernels. Sizes are odd, prime or 1; the
sizes 2, 7 and 11 stand for the named sizes B, S and T where a case is checked with symbolic shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns bfloat16
import numpy as np
import torch

from irx.ir.opdef import Array
from irx.ir.packing import random_blocks
from irx.ir.types import KVType, TensorType, Type, dtype_of, numpy_dtype
from irx.ops.cache import KVArrays

NAMED = {2: "B", 7: "S", 11: "T"}


@dataclass(frozen=True)
class Floats:
    """Normal floats in the dtype under test, or `dtype`; absolute values plus `above` where `above` is given."""

    shape: tuple[int, ...]
    above: float | None = None
    dtype: str | None = None
    scale: float = 1.0

    def make(self, generator: np.random.Generator, dtype: str) -> Array:
        values = np.asarray(generator.standard_normal(self.shape) * self.scale)
        values = values if self.above is None else np.abs(values) + self.above
        return values.astype(numpy_dtype(self.dtype or dtype))


@dataclass(frozen=True)
class Ints:
    """Integers from low to before high."""

    shape: tuple[int, ...]
    low: int
    high: int
    dtype: str = "i64"

    def make(self, generator: np.random.Generator, dtype: str) -> Array:
        return np.asarray(generator.integers(self.low, self.high, self.shape)).astype(numpy_dtype(self.dtype))


@dataclass(frozen=True)
class Bools:
    """Random truth values."""

    shape: tuple[int, ...]

    def make(self, generator: np.random.Generator, dtype: str) -> Array:
        return generator.integers(0, 2, self.shape).astype(bool)


@dataclass(frozen=True)
class Fixed:
    """Given values; floats take the dtype under test unless `keep`."""

    values: Any
    keep: bool = False

    def make(self, generator: np.random.Generator, dtype: str) -> Array:
        array = np.asarray(self.values)
        return array.astype(numpy_dtype(dtype)) if array.dtype.kind == "f" and not self.keep else array


@dataclass(frozen=True)
class Packed:
    """A block-quantized weight of that logical shape, of any codes."""

    shape: tuple[int, ...]
    format: str

    def make(self, generator: np.random.Generator, dtype: str) -> Array:
        return random_blocks(generator, self.shape, self.format)


@dataclass(frozen=True)
class State:
    """A KV state with random tokens at `positions` (one list per row of the batch, -1 = empty slot)."""

    positions: Sequence[Sequence[int]]
    heads: int
    k_dim: int
    v_dim: int

    def make(self, generator: np.random.Generator, dtype: str) -> KVArrays:
        batch, slots = np.shape(self.positions)
        shape, kind = (batch, self.heads, slots), numpy_dtype(dtype)
        k = generator.standard_normal((*shape, self.k_dim)).astype(kind)
        v = generator.standard_normal((*shape, self.v_dim)).astype(kind)
        return KVArrays(k, v, np.broadcast_to(np.asarray(self.positions)[:, None], shape).copy())


@dataclass(frozen=True)
class Case:
    """One application of an op. `torch` takes the operands as tensors (scalars, None and KV states as they are) and
    the attributes; None where there is nothing to compare with. `named` off: the shapes mean nothing as named sizes."""

    op: str
    operands: tuple[Any, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    torch: Callable[..., Any] | None = None
    dtypes: tuple[str, ...] = ("f32", "bf16")
    named: bool = True
    label: str = ""
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op

    def arrays(self, dtype: str) -> list[Any]:
        """The operands: arrays, KVArrays, scalars, None."""
        generator = np.random.default_rng(self.seed)
        return [x.make(generator, dtype) if hasattr(x, "make") else x for x in self.operands]

    def types(self, arrays: Sequence[Any]) -> list[Type | None]:
        """The operands' types."""
        return [type_of(x, spec) for x, spec in zip(arrays, self.operands, strict=True)]


def type_of(value: Any, spec: Any = None) -> Type | None:
    """The IR type of an operand."""
    if value is None:
        return None
    if isinstance(spec, Packed):
        return TensorType(spec.shape, spec.format)
    if isinstance(value, KVArrays):
        _, heads, slots, k_dim = value.k.shape
        return KVType(heads, heads, k_dim, value.v.shape[3], dtype_of(value.k.dtype), capacity=slots)
    if isinstance(value, bool | int | float):
        return TensorType((), {bool: "bool_", int: "int_"}.get(type(value), "float_"))
    return TensorType(tuple(value.shape), dtype_of(value.dtype))


def to_torch(value: Any) -> Any:
    """An operand for torch."""
    if isinstance(value, KVArrays):
        return KVArrays(*(to_torch(part) for part in (value.k, value.v, value.positions)))
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(value))


def from_torch(value: Any) -> Any:
    """A result of torch as numpy, floats in float64."""
    if isinstance(value, KVArrays):
        return KVArrays(*(from_torch(part) for part in (value.k, value.v, value.positions)))
    return value.double().numpy() if value.is_floating_point() else value.numpy()


def all_cases() -> list[Case]:
    """Every case of every family."""
    from tests.ops import cases_attention, cases_cache, cases_elementwise, cases_linear, cases_shape, cases_tokens

    modules = (cases_elementwise, cases_shape, cases_linear, cases_attention, cases_cache, cases_tokens)
    return [case for module in modules for case in module.CASES]
