"""What a change of precision does to one product: a weight's first rows times random activations, before and after.

And whether codes are on the grid that they should be: rounding moves an element by less than a step of its group's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from irx.errors import PassRefused, UnboundWeight
from irx.ir.blocks import FORMATS, unpack
from irx.ir.graph import Weight
from irx.ir.opdef import Array
from irx.ir.types import is_packed
from irx.ir.weights import Weights
from irx.rewrite.check import difference

_ROWS, _TOKENS = 256, 4  # of the weight, of activations
_FULL_BYTE = 8  # bits of an element, scales included, from which on codes take a byte
_SPARE = 1.1  # steps: one where 4 bits have no minimum, and what float16 rounds of the scale
_COARSE = 2.0**-10  # of float16, in which the lowest value and the scale are stored
_SMALLEST = 2.0**-20  # a group of smaller numbers has a scale of few bits


@dataclass
class ProductError:
    """Measures once for every kind of matrix; `weights` gives the arrays."""

    weights: Weights
    _known: dict[str, float | None] = field(default_factory=dict)

    def of_weight(self, weight: Weight, change: Callable[[Array], Array], what: str) -> float | None:
        """max|y' - y| / max|y| where `change` gives the weight's new values; None for a weight without an array."""
        return self._measured(f"{weight.type} {what}", weight, lambda x, w: (x, change(w)))

    def of_activations(self, weight: Weight, change: Callable[[Array], Array], what: str) -> float | None:
        """The same where `change` gives the new activations."""
        return self._measured(f"{weight.type} {what}", weight, lambda x, w: (change(x), w))

    def _measured(
        self, key: str, weight: Weight, change: Callable[[Array, Array], tuple[Array, Array]]
    ) -> float | None:
        if key not in self._known:
            self._known[key] = self._measure(weight, change)
        return self._known[key]

    def _measure(self, weight: Weight, change: Callable[[Array, Array], tuple[Array, Array]]) -> float | None:
        try:
            array = self.weights.array(weight)
        except UnboundWeight:
            return None
        rows = array.reshape(-1, array.shape[-1])[:_ROWS]
        rows = unpack(rows, weight.dtype) if is_packed(weight.dtype) else np.asarray(rows, dtype=np.float32)
        x = np.random.default_rng(0).standard_normal((_TOKENS, rows.shape[1])).astype(np.float32)
        new_x, new_rows = change(x, rows)
        wide = np.float64
        return difference(new_x.astype(wide) @ new_rows.astype(wide).T, x.astype(wide) @ rows.astype(wide).T)


def on_grid(rows: Array, rounded: Array, form: str, name: str) -> Array:
    """`rounded`, which stands for `rows` in a format. Raises PassRefused where an element is off by more than a step.

    The step is what the group's own numbers say: their width, around zero where there is no minimum, over the codes.
    """
    groups, found = (array.reshape(-1, FORMATS[form].elements).astype(np.float64) for array in (rows, rounded))
    codes = 2**8 - 1 if FORMATS[form].bits >= _FULL_BYTE else 2**4 - 1
    largest = np.abs(groups).max(axis=1)
    centred = 2 * largest
    width = centred if form.startswith(("q8_0", "q4_0", "i")) else np.ptp(groups, axis=1) + largest * _COARSE
    step = (width + _SMALLEST) / codes
    worst = float((np.abs(found - groups).max(axis=1) / step).max(initial=0.0))
    if worst > _SPARE:
        raise PassRefused(
            f"${name} as {form}: an element is off by {worst:.3g} steps of its group, which no rounding is"
        )
    return rounded
