"""Does a rewritten site still compute the same? The part before and the part after, evaluated on random inputs.

Both parts run on the oracle, from the same leaves, with small values for the named sizes. Sites of one structure are
evaluated once: a model of 30 equal layers costs as much as one of a single layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from irx.analysis.inputs import random_inputs
from irx.analysis.structure import extract, fingerprint
from irx.errors import IRXError
from irx.ir.dims import Range, evaluate
from irx.ir.graph import Graph, Value
from irx.ir.opdef import Array
from irx.ir.regions import body_of
from irx.ir.types import TensorType, is_float

Evaluate: TypeAlias = Callable[[Graph, Mapping[str, Any], Mapping[str, int]], list[Array]]
"""The oracle: `evaluate(graph, inputs by name, named sizes)` returns the outputs, floats computed in float64."""

LIMIT = 1e-5
"""The largest error of a site. In float64 a rewrite that is right is far below, one that is wrong far above."""

LARGEST = 1 << 26
"""Elements of one input above which a site is not evaluated: half a gigabyte in float64."""

_SMALL_HINT = 32


@dataclass
class Check:
    """Compares sites of one program; `sizes` are its named sizes."""

    evaluate: Evaluate
    sizes: Mapping[str, Range]
    _known: dict[tuple[str, str], float | None] = field(default_factory=dict)

    def error(self, old: Sequence[Value], new: Sequence[Value], leaves: Collection[Value]) -> float | None:
        """max|new - old| / max|old| on random leaves, infinite where they cannot be compared; None: too large."""
        names: dict[Value, str] = {}
        before, after = extract(old, leaves, names), extract(new, leaves, names)
        key = fingerprint(before), fingerprint(after)
        if key not in self._known:
            self._known[key] = self._measure(before, after)
        return self._known[key]

    def _measure(self, before: Graph, after: Graph) -> float | None:
        sizes = small_sizes(self.sizes)
        types = [v.type for graph in (before, after) for v in graph.inputs]
        if any(evaluate(t.elements, sizes) > LARGEST for t in types if isinstance(t, TensorType)):
            return None
        _without_rounding(before)
        _without_rounding(after)
        try:
            inputs = random_inputs(before, sizes) | random_inputs(after, sizes)
            old, new = (self._run(graph, inputs, sizes) for graph in (before, after))
        except (IRXError, ArithmeticError, LookupError, ValueError):
            return math.inf  # a part that cannot be evaluated has not been shown to be equal
        return max(map(difference, new, old))

    def _run(self, graph: Graph, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Array]:
        return self.evaluate(graph, {v.name: inputs[v.name] for v in graph.inputs}, sizes)


def _without_rounding(graph: Graph) -> None:
    """Let float casts do nothing: a rewrite may move them, and what is compared is the function."""
    for node in graph.nodes:
        body = body_of(node)
        if body is not None:
            node.attrs["body"] = body = body.clone()
            _without_rounding(body)
        elif node.op.name == "cast" and is_float(node.output.dtype):
            node.attrs["dtype"] = "f64"


def small_sizes(sizes: Mapping[str, Range]) -> dict[str, int]:
    """A small value for every named size: those of the capture where small (they fit together), else distinct ones."""
    hints = {name: range.hint for name, range in sizes.items() if range.hint is not None and range.hint <= _SMALL_HINT}
    if len(hints) == len(sizes):
        return hints
    return {name: _clamp(3 + 2 * index, range) for index, (name, range) in enumerate(sizes.items())}


def difference(new: Array, old: Array) -> float:
    """max|new - old| / max|old|; infinite where shapes differ or only one of the two is not a number."""
    a, b = np.asarray(new, np.float64), np.asarray(old, np.float64)
    if a.shape != b.shape:
        return math.inf
    if a.size == 0 or np.array_equal(a, b, equal_nan=True):
        return 0.0
    finite = np.isfinite(a) & np.isfinite(b)
    same = np.where(finite, True, (a == b) | (np.isnan(a) & np.isnan(b)))
    if not same.all() or not finite.any():
        return math.inf
    return float(np.abs(a[finite] - b[finite]).max() / max(np.abs(b[finite]).max(), 1e-30))


def _clamp(value: int, range: Range) -> int:
    return max(range.low, value if range.high is None else min(value, range.high))
