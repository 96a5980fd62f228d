"""Least squares from a stream of rows: only sums of products are kept, in float64, never the rows themselves.

sums = Moments(inputs=576, outputs=576)
sums.add(x, wanted)                  # x [n, K] and what its product should gain, wanted [n, N]; batch by batch
delta = sums.solution(ridge)         # [N, K]: argmin |x delta^T - wanted|^2 + ridge * mean(x^2) rows |delta|^2
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from irx.ir.opdef import Array


@dataclass
class Moments:
    """The sums x^T x [K, K], x^T wanted [K, N] and |wanted|^2 of all rows so far."""

    inputs: int
    outputs: int
    gram: Array = field(init=False)
    cross: Array = field(init=False)
    square: float = 0.0

    def __post_init__(self) -> None:
        self.gram = np.zeros((self.inputs, self.inputs))
        self.cross = np.zeros((self.inputs, self.outputs))

    @staticmethod
    def of(x: Array, wanted: Array) -> Moments:
        """The empty sums for rows like these."""
        return Moments(x.shape[-1], wanted.shape[-1])

    def add(self, x: Array, wanted: Array) -> None:
        """Count rows in: x [n, K], wanted [n, N]."""
        self.gram += x.T @ x
        self.cross += x.T @ wanted
        self.square += float((wanted * wanted).sum())

    def __add__(self, other: Moments) -> Moments:
        both = Moments(self.inputs, self.outputs)
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.square = self.square + other.square
        return both

    def solution(self, ridge: float) -> Array:
        """The change of weight [N, K] that fits best; the ridge is relative to the mean square of the inputs."""
        scale = float(np.trace(self.gram)) / self.inputs
        if scale == 0.0:
            return np.zeros((self.outputs, self.inputs))
        regular = self.gram + ridge * scale * np.eye(self.inputs)
        return np.asarray(np.linalg.solve(regular, self.cross)).T

    def left(self, delta: Array) -> float:
        """|x delta^T - wanted|^2 over all rows."""
        fitted = 2 * float((delta.T * self.cross).sum()) - float((delta.T * (self.gram @ delta.T)).sum())
        return max(self.square - fitted, 0.0)
