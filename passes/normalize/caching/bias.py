"""A bias of queries and keys that depends on their distance only, as a table of distances.

The biases of T5 (a learned table looked up by bucketed distance) and ALiBi (a slope per head) are value-free tensors
[1|B, H|1, S|1, S]. With a cache they become a table [H, L]: what a key at distance d adds, the last column for all
distances beyond. A number added to a whole row changes no softmax, so rows are compared up to such a number where that
is needed and nothing but keys takes part in the softmax.
"""

from __future__ import annotations

import numpy as np

from irx.analysis.rows import rows_of
from irx.analysis.values import integers_in
from irx.ir.graph import Node, Value, Weight
from irx.ir.opdef import Array
from irx.ir.types import numpy_dtype
from irx.ir.weights import Weights
from irx.passes.normalize.caching.frontier import Frontier
from irx.passes.normalize.caching.refusal import NotCacheable

_HIDDEN = -9999.0


def distance_table(site: Node, bias: Value, frontier: Frontier, weights: Weights) -> Weight | None:
    """The table of the value-free `bias` of an attention node, None where it adds nothing. Raises NotCacheable."""
    heads = site.output.shape[1]
    assert isinstance(heads, int), "the heads of a cached site are a number"
    frontier.shorten(lambda length: _rows(bias, [length - 1], length, heads, frontier))
    longest = frontier.longest
    table = _distances(_rows(bias, [longest - 1], longest, heads, frontier), longest - 1)
    lengths = sorted({5, 12, 40, *(c + 7 for c in integers_in(bias) if c > 1), longest})
    samples = [(n, _sampled(n, bias)) for n in lengths if n <= longest]
    compared = [(rows, _rows(bias, rows, n, heads, frontier)) for n, rows in samples]
    for rows, array in compared:
        _check_visible(site, rows, array)
    if not _explains(table, compared):
        table = table - table[:, :1]
        if site.operand("sinks") is not None or not _explains(table, [(r, _centred(a, r)) for r, a in compared]):
            raise NotCacheable(f"the bias %{bias.name} depends on more than the distance of query and key", site)
    if not table.any():
        return None
    name = f"{site.loc.module or 'attention'}.distances"
    return weights.add_array(name, _trimmed(table).astype(numpy_dtype(bias.dtype)))


def _sampled(length: int, bias: Value) -> list[int]:
    near = {c + d for c in integers_in(bias) for d in (-1, 0, 1)}
    rows = {0, 1, 2, length // 3, length // 2, length - 2, length - 1, *near}
    return sorted(row for row in rows if 0 <= row < length)


def _rows(bias: Value, rows: list[int], length: int, heads: int, frontier: Frontier) -> Array:
    """The bias of some query rows, [H, rows, length], nan where it hides a key."""
    sizes = frontier.bindings(bias, length)
    axis = len(bias.shape) - 2
    if axis < 0 or bias.shape[axis] == 1:
        array = frontier.prober.array(bias, sizes)
    else:
        array = rows_of(frontier.prober, bias, axis, rows, sizes)
    array = np.asarray(array, np.float64)
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    if not (array == array[:1]).all():
        raise NotCacheable(f"the bias %{bias.name} differs between rows of the batch", bias.producer)
    full = np.broadcast_to(array[0], (heads, len(rows), length))
    return np.where(full <= _HIDDEN, np.nan, full)


def _distances(last: Array, row: int) -> Array:
    """The table [H, row + 1] that the one query row `row` implies; distances it hides repeat the last one it shows."""
    table = last[:, 0, row::-1]
    shown = ~np.isnan(table).any(axis=0)
    edge = int(np.nonzero(shown)[0].max()) if shown.any() else 0
    return np.where(np.isnan(table), table[:, edge : edge + 1], table)


def _check_visible(site: Node, rows: list[int], array: Array) -> None:
    """A bias may only hide what the attributes of the attention hide as well: those are all that is left of it."""
    distance = np.asarray(rows)[:, None] - np.arange(array.shape[2])
    window = site.attr("window")
    visible = (distance >= 0) & (distance < (window if isinstance(window, int) else np.inf))
    if np.isnan(array[:, visible]).any():
        raise NotCacheable("the bias hides keys, and neither causality nor a window says which", site)


def _centred(array: Array, rows: list[int]) -> Array:
    """Every row less its element on the diagonal."""
    diagonal = np.stack([array[:, i, row] for i, row in enumerate(rows)], axis=1)
    return np.asarray(array - diagonal[:, :, None])


def _explains(table: Array, compared: list[tuple[list[int], Array]]) -> bool:
    """True where every visible element in the past of its query is what the table says."""
    for rows, array in compared:
        distance = np.asarray(rows)[:, None] - np.arange(array.shape[2])
        expected = table[:, np.clip(distance, 0, table.shape[1] - 1)]
        past = (distance >= 0) & ~np.isnan(array)
        if not np.allclose(array[past], expected[past], rtol=1e-9, atol=1e-12):
            return False
    return True


def _trimmed(table: Array) -> Array:
    """Without the columns at the end that repeat the one before."""
    differs = (table != table[:, -1:]).any(axis=0)
    keep = int(np.nonzero(differs)[0].max()) + 2 if differs.any() else 1
    return table[:, :keep]
