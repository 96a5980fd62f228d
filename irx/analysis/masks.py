"""What does a mask let through? Found by evaluating it at several sizes and comparing with the masks that have a name.

A mask may equal `causal` at every small size and still be a sliding window wider than those. So every whole number c in
the mask's computation is followed up at the size c + 7, and the longest size of this compilation is looked at as well,
both on a few rows only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from irx.analysis.rows import rows_of
from irx.analysis.values import FAILS, Prober, integers_in, largest_working, size_names
from irx.ir.dims import Dim, Range, SymDim
from irx.ir.graph import Value
from irx.ir.opdef import Array
from irx.ir.types import is_float

_SMALL = (5, 12, 40)
_WHOLE = 64  # sizes up to which every row is compared
_WIDEST = 1 << 17  # a number above this is no window, but an end of range or a mixing constant
_HIDDEN = -9999.0  # a bias of this and less hides its key: exp underflows to 0 in every dtype


@dataclass(frozen=True)
class Visible:
    """Row i sees key j where, with `causal`, j <= i and, with `window` w, i - j < w. `zero`: an additive mask adds
    nothing to what is seen (always true of boolean masks)."""

    causal: bool = False
    window: int | None = None
    zero: bool = True

    def __str__(self) -> str:
        if self.window is not None:
            return f"{'sliding' if self.causal else 'backward'} window of {self.window}"
        return "causal" if self.causal else "full"


@dataclass(frozen=True)
class MaskProbe:
    """Asks about masks of one program: `sizes` are its named sizes, `longest` the longest sequence it will see."""

    prober: Prober
    sizes: Mapping[str, Range]
    longest: int

    def classify(self, mask: Value, rows: Dim, keys: Dim) -> Visible | str:
        """What `mask`, which broadcasts to [..., rows, keys], lets through; else the reason why that has no name.

        `mask` is value-free: boolean, or float where very low numbers hide.
        """
        found: dict[int, Visible | str] = {}

        def look(length: int) -> None:
            found[length] = self._at(mask, rows, keys, length)

        for length in self._lengths(mask, rows):
            try:
                look(length)
            except FAILS as error:
                if not found:
                    return f"the mask cannot be evaluated at length {length}: {error}"
                largest_working(look, max(found), length - 1)  # a table of the model ends here, and its sequences too
                break
        return _agree(found)

    def _lengths(self, mask: Value, rows: Dim) -> list[int]:
        """Lengths to look at, ascending."""
        if isinstance(rows, int):
            return [rows]
        limits = self.sizes.get(str(rows), Range())
        wide = {c + 7 for c in integers_in(mask) if 1 < c < _WIDEST}
        return sorted({_within(n, limits) for n in {*_SMALL, *wide, self.longest}})

    def _at(self, mask: Value, rows: Dim, keys: Dim, length: int) -> Visible | str:
        others = enumerate(_named(mask, keys))
        bindings = {name: _within(3 + 2 * i, self.sizes.get(name, Range())) for i, name in others}
        bindings |= {str(rows): length} if isinstance(rows, SymDim) else {}
        chosen = _chosen_rows(length, integers_in(mask))
        count = keys if isinstance(keys, int) else bindings[str(keys)]
        axis = len(mask.shape) - 2
        if axis < 0 or mask.shape[axis] == 1:
            array = self.prober.array(mask, bindings)
        else:
            array = rows_of(self.prober, mask, axis, chosen, bindings)
        array = np.asarray(array)
        full = np.broadcast_to(array, (*array.shape[:-2], len(chosen), count)).reshape(-1, len(chosen), count)
        square = rows == keys
        return _compare(full, np.asarray(chosen), square, is_float(mask.dtype))


def is_named(dim: Dim) -> bool:
    """True for a number, and for a size that is a bare name."""
    return isinstance(dim, int) or dim.text.isidentifier()


def _named(mask: Value, keys: Dim) -> list[str]:
    names = size_names(mask)
    return sorted(names | ({str(keys)} if isinstance(keys, SymDim) else set()))


def _within(size: int, range: Range) -> int:
    return max(range.low, size if range.high is None else min(size, range.high))


def _chosen_rows(length: int, numbers: Iterable[int]) -> list[int]:
    if length <= _WHOLE:
        return list(range(length))
    near = {c + d for c in numbers if 0 <= c < length for d in (-1, 0, 1)}
    rows = {0, 1, 2, 7, length // 3, length // 2, length - 2, length - 1, *near}
    return sorted(row for row in rows if 0 <= row < length)


def _compare(array: Array, rows: Array, square: bool, additive: bool) -> Visible | str:
    """The visible part of [N, rows, keys], which must be the same for all N."""
    seen = array > _HIDDEN if additive else array.astype(bool)
    if not (seen == seen[:1]).all():
        return "it differs between rows of the batch, or between heads"
    zero = not additive or not array[seen].any()
    shown, keys = seen[0], np.arange(seen.shape[2])
    if shown.all():
        return Visible(zero=zero)
    if not square:
        return "it hides keys, and keys and rows have different lengths"
    causal = keys <= rows[:, None]
    if np.array_equal(shown, causal):
        return Visible(causal=True, zero=zero)
    window = int(shown[-1].sum())
    near = keys > rows[:, None] - window
    for past in (causal, True):
        if window and np.array_equal(shown, near & past):
            return Visible(causal=past is causal, window=window, zero=zero)
    return "it is neither full nor causal nor a sliding window"


def _agree(found: Mapping[int, Visible | str]) -> Visible | str:
    """One answer for all lengths: a window shows only where the sequence is longer."""
    pairs: list[tuple[int, Visible]] = []
    for length, seen in sorted(found.items()):
        if isinstance(seen, str):
            return f"at length {length} {seen}"
        pairs.append((length, seen))
    longer = [(length, seen) for length, seen in pairs if length > 1] or pairs
    windows = {seen.window for _, seen in longer if seen.window is not None}
    if len(windows) > 1 or len({seen.causal for _, seen in longer}) > 1:
        return f"the mask changes with the length: {', '.join(f'{n}: {s}' for n, s in pairs)}"
    window = windows.pop() if windows else None
    if window is not None and any(seen.window is None and length > window for length, seen in longer):
        return "the window of the mask changes with the length"
    return Visible(longer[0][1].causal, window, all(seen.zero for _, seen in longer))
