"""Weights of more than two axes as matrices in tiles: the filters of a convolution, the stacked weights of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irx.backends.layouts.layout import Layout, room
from irx.backends.tvm.layouts.tiles import Part, Tiles
from irx.ir.opdef import Array


@dataclass(frozen=True)
class Flattened(Layout):
    """A weight [rows, ...] as the matrix [rows, all else] in tiles. `shape` is that of the weight."""

    tiles: Tiles
    shape: tuple[int, ...]

    @property
    def parts(self) -> Mapping[str, Part]:
        """The arrays of the tiles."""
        return self.tiles.parts

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The arrays of one weight."""
        (weight,) = weights
        return self.tiles.pack([weight.reshape(self.shape[0], -1)])

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The weight again."""
        return [self.tiles.unpack(arrays)[0].reshape(self.shape)]


@dataclass(frozen=True)
class Stacked(Layout):
    """Float matrices of experts, one expert after the other, each in tiles of its own.

    The weight is [experts, sides * rows, columns], `turned` in the tiles: [experts, columns, sides * rows]. An expert
    with two sides is two matrices that come one after the other, in tiles of their own; `interleaved`: their rows
    alternate in the weight. Part `data` is that of the tiles, its first axis experts * sides * tiles.
    """

    tiles: Tiles
    experts: int
    sides: int = 1
    interleaved: bool = False

    @property
    def parts(self) -> Mapping[str, Part]:
        """The one array."""
        part = self.tiles.parts["data"]
        return {"data": Part(part.code, (self.experts * self.sides * part.shape[0], *part.shape[1:]))}

    def pack(self, weights: Sequence[Array]) -> dict[str, Array]:
        """The array of one weight, matrix after matrix."""
        (weight,) = weights
        tiles = self.tiles.tiles
        data = room(self.parts["data"].shape, "<i4" if self.tiles.format == "bf16" else self._code)
        for number, (expert, side) in enumerate(self._matrices()):
            matrix = weight[expert].T if self.tiles.turned else weight[expert]
            chosen = matrix[self._side(side)]
            own = self.tiles.pack([chosen.T if self.tiles.turned else chosen])
            data[number * tiles : (number + 1) * tiles] = own["data"]
        return {"data": data}

    def unpack(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The weight again."""
        data = arrays["data"].reshape(self.experts * self.sides, *self.tiles.parts["data"].shape)
        experts: list[Array] = []
        for number, (_, side) in enumerate(self._matrices()):
            (stored,) = self.tiles.unpack({"data": data[number]})
            matrix = stored.T if self.tiles.turned else stored
            if side == 0:
                experts.append(np.empty((self.sides * self.tiles.rows, self.tiles.columns), matrix.dtype))
            experts[-1][self._side(side)] = matrix
        return [np.ascontiguousarray(np.stack([e.T if self.tiles.turned else e for e in experts]))]

    @property
    def _code(self) -> str:
        return f"<{self.tiles.parts['data'].code}"

    def _matrices(self) -> list[tuple[int, int]]:
        return [(expert, side) for expert in range(self.experts) for side in range(self.sides)]

    def _side(self, side: int) -> slice:
        """The rows of a side in an expert's matrix."""
        if self.interleaved:
            return slice(side, None, self.sides)
        return slice(side * self.tiles.rows, (side + 1) * self.tiles.rows)
