"""What a change of precision does to one product: a weight's first rows times random activations, before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from irx.errors import UnboundWeight
from irx.ir.blocks import unpack
from irx.ir.graph import Weight
from irx.ir.opdef import Array
from irx.ir.types import is_packed
from irx.ir.weights import Weights
from irx.rewrite.check import difference

_ROWS, _TOKENS = 256, 4  # of the weight, of activations


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
