"""Reading the values of a graph's named sizes off the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.errors import InputMismatch
from irx.ir.dims import SymDim, evaluate, names
from irx.ir.graph import Value
from irx.ir.types import TensorType


class SizeReader:
    """Where each named size is found. A size that is never an axis by itself is solved for in an expression."""

    def __init__(self, inputs: Sequence[Value]) -> None:
        self._axes: list[tuple[int, int]] = []
        self._names: list[str] = []
        self._solved: list[tuple[str, SymDim, int]] = []
        places = [
            (dim, i, axis)
            for i, value in enumerate(inputs)
            if isinstance(value.type, TensorType)
            for axis, dim in enumerate(value.type.shape)
            if isinstance(dim, SymDim)
        ]
        for dim, i, axis in places:
            if dim.text not in self._names:
                self._names.append(dim.text)
                self._axes.append((i, axis))
        self._plan_solving([dim for dim, _, _ in places])

    def read(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """The sizes of the axes that determine all named sizes; equal ones mean equal bindings."""
        return tuple([inputs[i].shape[axis] for i, axis in self._axes])

    def named(self, sizes: tuple[int, ...]) -> dict[str, int]:
        """The binding that `read` stands for. Raises InputMismatch where an expression has no whole solution."""
        found = dict(zip(self._names, sizes, strict=True))
        for name, dim, slope in self._solved:
            value, rest = divmod(found[dim.text] - evaluate(dim, {**found, name: 0}), slope)
            if rest:
                raise InputMismatch(f"an axis of {found[dim.text]} elements is not of the form {dim}")
            found[name] = value
        return found

    def _plan_solving(self, dims: Sequence[SymDim]) -> None:
        known = {name for name in self._names if name.isidentifier()}
        growing = True
        while growing:
            growing = False
            for dim in dims:
                unknown = names(dim) - known
                if len(unknown) == 1:
                    (name,) = unknown
                    self._solved.append((name, dim, _slope(dim, name)))
                    known.add(name)
                    growing = True


def _slope(dim: SymDim, name: str) -> int:
    """The factor of `name` in an expression that is linear in it."""
    others = dict.fromkeys(names(dim), 1)
    at = [evaluate(dim, {**others, name: value}) for value in (0, 1, 2)]
    if at[1] - at[0] != at[2] - at[1] or at[1] == at[0]:
        raise InputMismatch(f"the size {name} cannot be read off an axis of {dim} elements")
    return at[1] - at[0]
