"""The place where one aten operator is translated: a builder that knows what torch says about the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.frontends.torch_export.tables import Untranslatable
from irx.ir.dims import Dim
from irx.ir.graph import Builder, Graph, Literal, Loc, Operand, Value
from irx.ir.types import TensorType, is_float


class Site(Builder):
    """Adds nodes at the end of the graph with the operator's location. The steps that change nothing (a cast to the
    same dtype, a reshape to the same shape) add no node and return their operand.

    `results` are the result types torch found, None for results that are no tensors.
    """

    def __init__(self, graph: Graph, loc: Loc, results: Sequence[TensorType | None]) -> None:
        super().__init__(graph, loc=loc)
        self.results = results

    @property
    def result(self) -> TensorType:
        """The type of the only (or first) tensor result."""
        return next(result for result in self.results if result is not None)

    def value(self, operand: Operand) -> Value:
        """A tensor, scalar or size as a value."""
        return operand if isinstance(operand, Value) else Literal(operand)  # type: ignore[arg-type]

    def number(self, attribute: Any) -> float:
        """A float that has to be known now. Raises Untranslatable for one that is a tensor's element."""
        if not isinstance(attribute, (int, float)):
            raise Untranslatable("a number known at run time only")
        return float(attribute)

    def axis(self, x: Value, axis: int) -> int:
        """The axis counted from 0."""
        return axis % max(len(x.shape), 1)

    def axes(self, x: Value, axes: Any) -> tuple[int, ...]:
        """Axes counted from 0; all of them for None, an empty list too, as torch's reductions do."""
        if axes is None or axes == []:
            return tuple(range(len(x.shape)))
        listed = [axes] if isinstance(axes, int) else axes
        return tuple(self.axis(x, axis) for axis in listed)

    def cast(self, x: Value, dtype: str) -> Value:
        """`x` as `dtype`."""
        return x if x.dtype == dtype else self("cast", x, dtype=dtype)

    def floating(self, x: Value) -> Value:
        """`x`, or its f32 form where it is integer or bool."""
        return x if is_float(x.dtype) else self.cast(x, "f32")

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """`x` in another shape."""
        return x if x.shape == tuple(shape) else self("reshape", x, shape=tuple(shape))

    def permute(self, x: Value, order: Sequence[int]) -> Value:
        """`x` with axis i taken from axis order[i]."""
        return x if list(order) == sorted(order) else self("permute", x, order=tuple(order))

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        """`x` broadcast to `shape`."""
        return x if x.shape == tuple(shape) else self("expand", x, shape=tuple(shape))

    def slice(self, x: Value, axis: int, start: Dim = 0, stop: Dim | None = None, step: int = 1) -> Value:
        """`x[start:stop:step]` along an axis, where the bounds are known to be within it."""
        if start == 0 and step == 1 and (stop is None or stop == x.shape[axis]):
            return x
        return self("slice", x, axis=axis, start=start, stop=x.shape[axis] if stop is None else stop, step=step)

    def unsqueeze(self, x: Value, axis: int) -> Value:
        """`x` with a new axis of size 1."""
        shape = list(x.shape)
        shape.insert(axis, 1)
        return self.reshape(x, shape)

    def squeeze(self, x: Value, axes: Sequence[int]) -> Value:
        """`x` without those of the axes that have size 1."""
        kept = [size for axis, size in enumerate(x.shape) if axis not in axes or size != 1]
        return self.reshape(x, kept)

    def arange(self, stop: Dim, dtype: str = "i64") -> Value:
        """0, 1, ... below `stop`."""
        return self("arange", stop=stop, dtype=dtype)

    def full(self, shape: Sequence[Dim], value: bool | int | float, dtype: str) -> Value:
        """A tensor of one value."""
        return self("full", shape=tuple(shape), value=value, dtype=dtype)
