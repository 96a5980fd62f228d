"""Reductions: loops of their own for every element of the result, in lanes where the last axis is reduced or kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from irx.backends.regions.groups import Materialize
from irx.backends.tvm.lanes import FLOAT, INTEGER, TRUTH, Lanes, kind
from irx.backends.tvm.regions.code import Code, op
from irx.backends.tvm.regions.moves import axis_of, tensor
from irx.backends.tvm.regions.places import ZERO, Index, Place, Unaligned
from irx.backends.tvm.writer import LANES, at
from irx.ir.dims import Dim, product
from irx.ir.graph import Node, Value

ACCUMULATORS = 4  # registers that a sum over a long row is split into, to hide the latency of additions


@dataclass(frozen=True)
class Fold:
    """How two partial results become one, and what the empty one is, by kind of lanes."""

    combine: Callable[[Lanes, str, str, str], str]
    empty: Callable[[str], float | int]


def _larger(v: Lanes, x: str, y: str, lanes_kind: str) -> str:
    return _kept_nan(v, x, v.select(f"{x} > {y}", x, y), lanes_kind)


def _smaller(v: Lanes, x: str, y: str, lanes_kind: str) -> str:
    return _kept_nan(v, x, v.select(f"{x} < {y}", x, y), lanes_kind)


def _kept_nan(v: Lanes, x: str, other: str, lanes_kind: str) -> str:
    return v.select(f"{x} == {x}", other, x) if lanes_kind == FLOAT else other


def _least(lanes_kind: str) -> float | int:
    return {FLOAT: float("-inf"), INTEGER: -(2**63) + 1, TRUTH: 0}[lanes_kind]


def _most(lanes_kind: str) -> float | int:
    return {FLOAT: float("inf"), INTEGER: 2**63 - 1, TRUTH: 1}[lanes_kind]


SUM = Fold(lambda v, x, y, k: f"{x} + {y}", lambda k: 0)
FOLDS = {
    "sum": SUM,
    "mean": SUM,
    "amax": Fold(_larger, _least),
    "amin": Fold(_smaller, _most),
    "any": Fold(lambda v, x, y, k: f"T.bitwise_or({x}, {y})", lambda k: 0),
    "all": Fold(lambda v, x, y, k: f"T.bitwise_and({x}, {y})", lambda k: 1),
}


@op(*FOLDS)
def _reduce(code: Code, node: Node, value: Value, place: Place) -> str:
    if code.found is None:
        _check_once(code, node, value, place)
    folding = _Folding(code, node, place)
    with code.reducing():
        folding.run()
    return folding.result()


def _check_once(code: Code, node: Node, value: Value, place: Place) -> None:
    """Raises Materialize where the same reduction would run again and again."""
    if len(code.loops) <= code.row_depth:
        code.hoisted = True
    elif value not in code.alone or code.folding:
        raise Materialize(node)


class _Folding:
    """The loops of one reduction at one place."""

    def __init__(self, code: Code, node: Node, place: Place) -> None:
        self.code, self.node = code, node
        self.x = tensor(node)
        rank = len(self.x.shape)
        axes = node.attr("axes")
        assert isinstance(axes, tuple)
        self.reduced = sorted(axis % rank for axis in axes if isinstance(axis, int))
        self.kind = TRUTH if node.op.name in ("any", "all") else kind(node.output.dtype)
        self.fold = FOLDS[node.op.name]
        self.only_last = self.reduced == [rank - 1]
        self.place = place
        if place.lanes > 1 and self.reduced[-1:] == [rank - 1]:
            raise Unaligned
        self.base = self._base(place)
        self.in_lanes = self.reduced[-1:] == [rank - 1] and code.wide and self.kind == FLOAT
        self.lanes = LANES if self.in_lanes else place.lanes
        self.count = ACCUMULATORS if self.in_lanes and self._is_long() else 1
        self.name = code.w.fresh("acc")
        empty = Lanes(code.w, self.lanes).number(self.fold.empty(self.kind), self.kind)
        code.w(f'{self.name} = T.alloc_buffer(({self.lanes * self.count},), "{self.kind}")')
        for number in range(self.count):
            code.w(f"{self._accumulator(str(number * self.lanes))} = {empty}")
        self.single = code.w.register(
            Lanes(code.w, 1).number(self.fold.empty(self.kind), self.kind), dtype=self.kind, lanes=1
        )

    def _is_long(self) -> bool:
        last = self.x.shape[-1]
        return not isinstance(last, int) or last >= ACCUMULATORS * LANES

    def _base(self, place: Place) -> tuple[Index, ...] | None:
        """The kept indices, with zeros along the reduced axes; None where rows are enough."""
        if self.only_last:
            return None
        kept = list(self.code.places.axes(place))
        if len(kept) == len(self.x.shape):
            return tuple(ZERO if i in self.reduced else index for i, index in enumerate(kept))
        return tuple(ZERO if i in self.reduced else kept.pop(0) for i in range(len(self.x.shape)))

    def _accumulator(self, start: str) -> str:
        return at(self.name, start, self.lanes)

    def run(self) -> None:
        if self.only_last:
            row = self.code.places.linear(self.place)
            self._along_last(lambda index: Place(self.x.shape, split=(row, index)))
            return
        assert self.base is not None
        self._along(list(self.reduced), list(self.base))

    def _along(self, axes: list[int], indices: list[Index]) -> None:
        """A loop for each axis; the last axis in lanes."""
        if not axes:
            self._add(Place(self.x.shape, axes=tuple(indices)), "0")
            return
        axis, *rest = axes

        def at_index(index: Index) -> list[Index]:
            return [*indices[:axis], index, *indices[axis + 1 :]]

        if axis == len(indices) - 1:
            self._along_last(lambda index: Place(self.x.shape, axes=tuple(at_index(index))))
        else:
            self.code.loop(self.x.shape[axis], lambda index: self._along(rest, at_index(index)))

    def _along_last(self, place: Callable[[Index], Place]) -> None:
        extent = self.x.shape[-1]
        if not self.in_lanes:
            self.code.loop(extent, lambda index: self._add(place(index), "0"))
            return
        whole = self._unrolled(extent, place)
        left = self.code.vectors(extent) - whole
        if left != 0:
            start = self.code.places.index(whole * LANES)
            self.code.loop(left, lambda i: self._add(place(_vector(i).plus(start)), "0"))
        self.code.rest(extent, self.code.vectors(extent), lambda i: self._add(place(i), "0"))

    def _unrolled(self, extent: Dim, place: Callable[[Index], Place]) -> Dim:
        """A loop over several vectors at once; gives the number of vectors that it takes."""
        if self.count == 1:
            return 0
        blocks = extent // (self.count * LANES)

        def block(i: Index) -> None:
            start = Index(f"{i.text} * {self.count * LANES}", 0, self.count * LANES, i.loops)
            self.code.loop(
                self.count,
                lambda u: self._add(place(_vector(u).plus(start)), f"{u.text} * {LANES}"),
                unroll=True,
            )

        self.code.loop(blocks, block)
        return blocks * self.count

    def _add(self, place: Place, start: str) -> None:
        lanes = place.lanes
        v = Lanes(self.code.w, lanes)
        if self.in_lanes:
            target = self._accumulator(start) if lanes > 1 else self.single
        else:
            target, lanes = self._accumulator("0"), self.lanes
            v = Lanes(self.code.w, lanes)
        text = v.converted(self.code.spread(self.x, place, lanes), kind(self.x.dtype), self.kind)
        self.code.w(f"{target} = {self.fold.combine(v, target, v.let(text, self.kind), self.kind)}")

    def result(self) -> str:
        v = Lanes(self.code.w, 1 if self.in_lanes else self.lanes)
        text = self._joined() if self.in_lanes else self._accumulator("0")
        if self.node.op.name != "mean":
            return v.let(text, self.kind)
        count = product(self.x.shape[axis] for axis in self.reduced)
        size = v.f(count) if isinstance(count, int) else f'T.cast({self.code.extent(count)}, "float32")'
        divisor = size if isinstance(count, int) or v.count == 1 else f"T.broadcast({size}, {v.count})"
        return v.let(f"({text}) / {divisor}", self.kind)

    def _joined(self) -> str:
        """All accumulators, folded in halves."""
        w, lanes, name = self.code.w, self.lanes * self.count, self.name
        while lanes > 1:
            lanes //= 2
            if lanes >= LANES:
                for start in range(0, lanes, LANES):
                    first, second = at(name, str(start), LANES), at(name, str(start + lanes), LANES)
                    w(f"{first} = {self.fold.combine(Lanes(w, LANES), first, second, self.kind)}")
                continue
            first, second = at(name, "0", lanes), at(name, str(lanes), lanes)
            text = w.register(
                self.fold.combine(Lanes(w, lanes), first, second, self.kind), dtype=self.kind, lanes=lanes
            )
            name = text.partition("[")[0]
        return self.fold.combine(Lanes(w, 1), at(name, "0", 1), self.single, self.kind)


def _vector(index: Index) -> Index:
    return Index(f"{index.text} * {LANES}", 1, LANES, index.loops)


@op("argmax")
def _argmax(code: Code, node: Node, value: Value, place: Place) -> str:
    if code.found is None:
        _check_once(code, node, value, place)
    x = tensor(node)
    axis = axis_of(node, len(x.shape))
    kept = list(code.places.axes(place))
    if len(kept) < len(x.shape):
        kept.insert(axis, ZERO)
    v, lanes_kind = Lanes(code.w, place.lanes), kind(x.dtype)
    best = code.w.register(v.number(_least(lanes_kind), lanes_kind), dtype=lanes_kind, lanes=v.count)
    found = code.w.register(v.i(0), dtype=INTEGER, lanes=v.count)

    def step(index: Index) -> None:
        v = Lanes(code.w, place.lanes)  # the writer is another one while the loop is tried
        text = v.let(code.spread(x, Place(x.shape, axes=(*kept[:axis], index, *kept[axis + 1 :])), v.count), lanes_kind)
        unordered = f"T.And({text} != {text}, {best} == {best})" if lanes_kind == FLOAT else f"{text} > {best}"
        better = f"T.Or({text} > {best}, {unordered})"
        place_of = f'T.cast({index.text}, "int64")'
        where = place_of if v.count == 1 else f"T.broadcast({place_of}, {v.count})"
        code.w(f"{found} = {v.select(better, where, found)}")
        code.w(f"{best} = {v.select(better, text, best)}")

    code.loop(x.shape[axis], step)
    return found
