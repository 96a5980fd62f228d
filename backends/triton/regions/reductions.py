"""Reductions: a row at once where the kernel stands at one element, else a loop with a sum for each element of a block.

Elements outside of a mask are replaced by what changes no result: 0 for sums, infinities for extremes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from irx.backends.regions.groups import Materialize
from irx.backends.triton.elementwise import FLOAT, INTEGER, TRUTH, converted, kind, number
from irx.backends.triton.regions.code import Code, Single, op
from irx.backends.triton.regions.moves import axis_of, tensor
from irx.backends.triton.regions.places import ZERO, Index, Place
from irx.ir.dims import Dim, product
from irx.ir.graph import Node, Value


@dataclass(frozen=True)
class Fold:
    """How a block becomes one, how two partial results do, and what the empty one is, by kind."""

    whole: str
    pair: Callable[[str, str], str]
    empty: Callable[[str], float | int]


def _least(of: str) -> float | int:
    return {FLOAT: float("-inf"), INTEGER: -(2**63) + 1, TRUTH: 0}[of]


def _most(of: str) -> float | int:
    return {FLOAT: float("inf"), INTEGER: 2**63 - 1, TRUTH: 1}[of]


def _extreme(sign: str) -> Callable[[str, str], str]:
    """The larger or smaller of two; NaN where either is."""
    return lambda x, y: f"tl.where(({x} {sign} {y}) | ({x} != {x}), {x}, {y})"


SUM = Fold("tl.sum({}, 0)", lambda x, y: f"{x} + {y}", lambda of: 0)
FOLDS = {
    "sum": SUM,
    "mean": SUM,
    "amax": Fold("tl.max({}, 0)", _extreme(">"), _least),
    "amin": Fold("tl.min({}, 0)", _extreme("<"), _most),
    "any": Fold("tl.max({}.to(tl.int32), 0)", lambda x, y: f"{x} | {y}", lambda of: 0),
    "all": Fold("tl.min({}.to(tl.int32), 0)", lambda x, y: f"{x} & {y}", lambda of: 1),
}


@op(*FOLDS)
def _reduce(code: Code, node: Node, value: Value, place: Place) -> str:
    return _Folding(code, node, value, place).run()


def _check_once(code: Code, node: Node, value: Value, place: Place, last: bool) -> None:
    """Raises Materialize where the same reduction would run again and again, Single where a row could be read."""
    if not place.block and place.level == 0:
        return
    if value not in code.alone or code.folding:
        raise Materialize(node)
    if last:
        raise Single


class _Folding:
    """One reduction at one place."""

    def __init__(self, code: Code, node: Node, value: Value, place: Place) -> None:
        self.code, self.node, self.place = code, node, place
        self.x = tensor(node)
        rank = len(self.x.shape)
        axes = node.attr("axes")
        assert isinstance(axes, tuple)
        self.reduced = sorted(axis % rank for axis in axes if isinstance(axis, int))
        self.kind = TRUTH if node.op.name in ("any", "all") else kind(node.output.dtype)
        self.held = "tl.int32" if self.kind == TRUTH else self.kind
        self.fold = FOLDS[node.op.name]
        _check_once(code, node, value, place, self.reduced[-1] == rank - 1)
        self.total = code.let(self._empty(place.block), "acc")

    def run(self) -> str:
        """The name of the result."""
        rank = len(self.x.shape)
        self.code.folding += 1
        if self.reduced == [rank - 1]:
            row = self.code.places.linear(self.place)
            self._last(lambda index: Place(self.x.shape, split=(row, index)))
        else:
            self._along(self.reduced, self._base())
        self.code.folding -= 1
        return self._result()

    def _empty(self, block: bool) -> str:
        empty = number(self.fold.empty(self.kind), INTEGER if self.kind == TRUTH else self.kind)
        shape = f"({self.code.width},)" if block else "()"
        return f"tl.full({shape}, {empty}, {self.held})"

    def _base(self) -> list[Index]:
        """The kept indices, with zeros along the reduced axes."""
        kept = list(self.code.places.axes(self.place))
        rank = len(self.x.shape)
        if len(kept) == rank:
            return [ZERO if i in self.reduced else index for i, index in enumerate(kept)]
        return [ZERO if i in self.reduced else kept.pop(0) for i in range(rank)]

    def _along(self, axes: list[int], indices: list[Index]) -> None:
        """A loop for each axis; the last axis of the tensor in blocks where nothing else is one."""
        if not axes:
            self._add(Place(self.x.shape, axes=tuple(indices)))
            return
        axis, *rest = axes

        def moved(index: Index) -> list[Index]:
            return [*indices[:axis], index, *indices[axis + 1 :]]

        if axis == len(indices) - 1 and not self.place.block:
            self._last(lambda index: Place(self.x.shape, axes=tuple(moved(index))))
        else:
            self.code.loop(self.code.size(self.x.shape[axis]), 1, lambda index: self._along(rest, moved(index)))

    def _last(self, place: Callable[[Index], Place]) -> None:
        self.code.blocks(self.x.shape[-1], lambda index: self._add(place(index)))

    def _add(self, place: Place) -> None:
        code = self.code
        text = converted(code.at(self.x, place), kind(self.x.dtype), self.kind)
        if self.kind == TRUTH:
            text = f"({text}).to(tl.int32)"
        if place.block and not self.place.block:
            empty = number(self.fold.empty(self.kind), INTEGER if self.kind == TRUTH else self.kind)
            text = code.let(f"tl.where({place.mask}, {text}, {empty})") if place.mask else code.let(text)
            text = self.fold.whole.format(text)
        code(f"{self.total} = {self.fold.pair(self.total, code.let(text))}")

    def _result(self) -> str:
        code = self.code
        if self.kind == TRUTH:
            return code.let(f"{self.total} != 0")
        if self.node.op.name != "mean":
            return self.total
        count: Dim = product(self.x.shape[axis] for axis in self.reduced)
        divisor = f"{count}.0" if isinstance(count, int) else f"{code.size(count)}.to(tl.float32)"
        return code.let(f"{self.total} / {divisor}")


@op("argmax")
def _argmax(code: Code, node: Node, value: Value, place: Place) -> str:
    """The first of the largest elements; NaN is the largest of all."""
    x = tensor(node)
    axis = axis_of(node, len(x.shape))
    _check_once(code, node, value, place, axis == len(x.shape) - 1)
    kept = list(code.places.axes(place))
    if len(kept) < len(x.shape):
        kept.insert(axis, ZERO)
    of = kind(x.dtype)
    shape = f"({code.width},)" if place.block else "()"
    best = code.let(f"tl.full({shape}, {number(_least(of), of)}, {of})", "best")
    found = code.let(f"tl.full({shape}, 0, tl.int64)", "found")

    def step(index: Index) -> None:
        here = Place(x.shape, axes=(*kept[:axis], index, *kept[axis + 1 :]))
        text, at = code.at(x, here), index.text
        if index.block:
            ordered = f"tl.where({text} == {text}, {text}, float('inf'))" if of == FLOAT else text
            masked = f"tl.where({here.mask}, {ordered}, {number(_least(of), of)})" if here.mask else ordered
            pair = code.let("(0, 0)", "pair")
            code(f"{pair} = tl.max({masked}, 0, return_indices=True)")
            start = code.let(f"tl.min({index.text}, 0)")
            text, at = code.let(f"{pair}[0]"), code.let(f"{start} + {pair}[1]")
        better = code.let(f"({text} > {best}) | (({text} != {text}) & ({best} == {best}))", "better")
        code(f"{found} = tl.where({better}, {at}, {found})")
        code(f"{best} = tl.where({better}, {text}, {best})")

    if place.block or axis != len(x.shape) - 1:
        code.loop(code.size(x.shape[axis]), 1, step)
    else:
        code.blocks(x.shape[axis], step)
    return found
