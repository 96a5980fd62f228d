"""repair-output: the last product of a changed unit is fitted anew, so that the stream behind it is what it was.

Before, where an earlier pass has changed what comes into the product:

    %o = irx.linear(%a, $o_proj.weight)
    %y = irx.add(%x, %o)

After:

    weight $o_proj.weight.repaired : f32[576, 576]         // packed where the old one was
    %o = irx.linear(%a, $o_proj.weight.repaired)
    %y = irx.add(%x, %o)

The new weight is W + D with D = argmin sum |y0 - y - a D^T|^2 / |y0|^2 + ridge |D|^2 over the tokens of the calibration
data, y0 being the stream behind the unit in the program before the first lossy pass. So a unit also takes over what
units before it no longer do. Units are fitted one after the other, each on what the repaired ones before it give. The
ridge is the one that does best on a quarter of the data which the fit does not see; a unit that no ridge improves there
is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from irx.analysis.blocks import Unit, find_blocks
from irx.analysis.calibration import Calibration
from irx.errors import UnboundWeight
from irx.ir.blocks import unpack
from irx.ir.graph import Graph, Loc, Node, Value, Weight
from irx.ir.opdef import Array
from irx.ir.packing import is_writable, pack
from irx.ir.program import Program
from irx.ir.types import is_packed, numpy_dtype
from irx.passes.attention.least_squares import Moments
from irx.passes.fuse.projections import UNPACKING, Projection, projection
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.recorder import Recorder

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Relative to the mean square of an input channel."""

_REPAIRED = ".repaired"
_WRITABLE = "q8_0"  # in place of formats that are only read; every packed row is a whole number of its blocks
_TINY = 1e-30
_HELD_BACK = 4  # every batch's last rows, one in so many, choose the ridge


@dataclass(frozen=True)
class RepairOutput(Pass):
    """Fit the last linear of changed units by least squares on calibration data; no training.

    `units`: changed (those that earlier lossy passes have changed, or before which they dropped a unit) or all.
    """

    units: Literal["changed", "all"] = "changed"

    name = "repair-output"
    stage = Stage.ATTENTION
    effect = Effect.LOSSY
    repairs = True
    paper = "least-squares reconstruction, He et al. 2017, arXiv:1707.06168"
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def run(self, program: Program, ctx: Context) -> Report:
        if ctx.captured is None:
            return Report(note="no lossy pass before it has changed anything")
        if "forward" not in program.graphs or "forward" not in ctx.captured.graphs:
            return Report(note="there is no graph forward to compare")
        data = ctx.calibrated("repair-output")
        return _Repair(self, program, ctx.captured, data, ctx).run()


@dataclass(frozen=True)
class _Closing:
    """A unit and the linear that ends it."""

    unit: Unit
    linear: Projection


@dataclass
class _Repair:
    options: RepairOutput
    program: Program
    captured: Program
    data: Calibration
    ctx: Context
    report: Report = field(default_factory=Report)

    def run(self) -> Report:
        then = {_original(one.linear.weight): one for one in self._closing(self.captured)}
        now = [one for one in self._closing(self.program, tell=True) if _original(one.linear.weight) in then]
        wanted = now if self.options.units == "all" else list(_changed(list(then.values()), now))
        for one in wanted:
            self._repair(one, then[_original(one.linear.weight)])
        if not wanted:
            self.report.note = "no unit was changed"
        return self.report

    def _closing(self, program: Program, tell: bool = False) -> Iterator[_Closing]:
        for unit in find_blocks(program.graphs["forward"]).units:
            for term in unit.terms:
                found = _last_linear(term)
                if found is not None:
                    yield _Closing(unit, found)
                elif tell and unit.nodes:
                    self._miss(unit.nodes[-1].loc, f"no linear with a weight ends this {unit.kind} unit")

    def _repair(self, now: _Closing, then: _Closing) -> None:
        loc, old = now.linear.node.loc, then.unit.total.type
        if now.unit.total.type != old:
            return self._miss(loc, f"the stream is {now.unit.total.type}, and was {old}: tokens have no counterpart")
        others = _other_readers(self.program, now.linear.weight)
        if others:
            return self._miss(loc, f"{others} reads the weight as well")
        try:
            old_values = floats(self.program.weights.array(now.linear.weight), now.linear.weight.dtype)
        except UnboundWeight as error:
            return self._miss(loc, error.what)
        dtype = storage(now.linear.weight.dtype)
        fit = _Fit.of(self._rows(now, then), old_values, dtype)
        if fit.after >= fit.before or not self.ctx.fuel.take():
            return self._miss(loc, f"no change does better on rows that it was not fitted to: {fit.before:.3g} is off")
        what = f"the stream was off by {fit.before:.3g} of its size, now by {fit.after:.3g}"
        self._replace(now.linear.weight, fit.raw, dtype, what, fit.after)
        return None

    def _replace(self, old: Weight, raw: Array, dtype: str, what: str, error: float) -> None:
        """Let all graphs read a new weight."""
        name = f"{_original(old)}{_REPAIRED}"
        weight = self.program.weights.add(name, old.tensor.with_dtype(dtype), lambda: raw)
        for graph in self.program.graphs.values():
            places = _redirect(graph, old, weight, self.options.name)
            self.report.sites += [Site(graph.name, place, what, error) for place in places]

    def _rows(self, now: _Closing, then: _Closing) -> Iterator[tuple[Array, Array]]:
        """Batch by batch what comes into the linear [n, K], and what the stream behind it lacks [n, N], both per size
        of the stream, because the next norm divides by that."""
        present = self.data.values(self.program, [now.linear.x, now.unit.total])
        past = self.data.values(self.captured, [then.unit.total])
        for (x, y), (wanted,) in zip(present, past, strict=True):
            x, y, wanted = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (x, y, wanted))
            size = np.sqrt((wanted * wanted).sum(axis=1, keepdims=True)) + _TINY
            yield x / size, (wanted - y) / size

    def _miss(self, loc: Loc, reason: str) -> None:
        self.report.near_misses.append(NearMiss("forward", loc, reason))


@dataclass(frozen=True)
class _Fit:
    """The new weight as it is stored, and the error of the stream without and with it on rows not fitted to."""

    raw: Array
    before: float
    after: float

    @staticmethod
    def of(batches: Iterator[tuple[Array, Array]], old: Array, dtype: str) -> _Fit:
        """The fit for an old weight [N, K] whose successor is stored as `dtype`."""
        seen, held = Moments(old.shape[1], old.shape[0]), Moments(old.shape[1], old.shape[0])
        rows = 0
        for x, wanted in batches:
            first = len(x) - len(x) // _HELD_BACK
            seen.add(x[:first], wanted[:first])
            held.add(x[first:], wanted[first:])
            rows += len(x) - first
        errors = {}
        for ridge in RIDGES:
            raw = stored(old + seen.solution(ridge), dtype)
            errors[ridge] = held.left(floats(raw, dtype) - old)
        best = min(errors, key=errors.__getitem__)
        raw = stored(old + (seen + held).solution(best), dtype)
        return _Fit(raw, (held.square / max(rows, 1)) ** 0.5, (errors[best] / max(rows, 1)) ** 0.5)


def storage(dtype: str) -> str:
    """How a new weight is stored in place of one of `dtype`: alike, but where no format of that kind can be written."""
    return _WRITABLE if is_packed(dtype) and not is_writable(dtype) else dtype


def stored(values: Array, dtype: str) -> Array:
    """A matrix as elements of a dtype, or as the bytes of a packed format."""
    return pack(values, dtype) if is_packed(dtype) else values.astype(numpy_dtype(dtype))


def floats(raw: Array, dtype: str) -> Array:
    """The elements of a stored matrix in float64."""
    return np.asarray(unpack(raw, dtype) if is_packed(dtype) else raw).astype(np.float64)


def _last_linear(term: Value) -> Projection | None:
    """The linear that a term of a residual sum is, reshaped or not; None where something else comes after it."""
    node = term.producer
    while node is not None and node.op.name == "reshape":
        node = node.inputs[0].producer if node.inputs[0] is not None else None
    return projection(node)


def _original(weight: Weight) -> str:
    """The name of a weight before it was repaired."""
    return weight.name.removesuffix(_REPAIRED)


def _changed(then: Sequence[_Closing], now: Sequence[_Closing]) -> Iterator[_Closing]:
    """Units that do not compute what they did, or that stand behind another unit than they did."""
    before = {}
    for previous, one in zip((None, *then), then, strict=False):
        before[_original(one.linear.weight)] = _form(previous, one)
    for previous, one in zip((None, *now), now, strict=False):
        if before[_original(one.linear.weight)] != _form(previous, one):
            yield one


def _form(previous: _Closing | None, one: _Closing) -> object:
    """What tells whether a unit was changed: its ops, the weights they read, and the unit before it."""
    nodes = sorted((n.op.name, [v.name for v in n.inputs if isinstance(v, Weight)]) for n in one.unit.nodes)
    return None if previous is None else _original(previous.linear.weight), nodes


def _other_readers(program: Program, weight: Weight) -> str:
    """What reads a weight besides one linear in each graph; empty where nothing does."""
    for graph in program.graphs.values():
        readers = [node for node in graph.nodes if _reads(node, weight)]
        odd = [node for node in readers if node.op.name != "linear"]
        if odd or len(readers) > 1:
            return odd[0].op.name if odd else "another linear"
    return ""


def _reads(node: Node, weight: Weight) -> bool:
    """True for a node that reads a weight, unpacked or not; what only unpacks it does not count."""
    if node.op.name in UNPACKING:
        return False
    sources = [v.producer.inputs[0] if v.producer and v.producer.op.name in UNPACKING else v for v in node.inputs if v]
    return any(source is weight for source in sources)


def _redirect(graph: Graph, old: Weight, new: Weight, by: str) -> list[Loc]:
    """Let linears that read `old`, unpacked or not, read `new`; gives their places."""
    places = []
    for node in list(graph.nodes):
        found = projection(node)
        if found is None or found.weight is not old:
            continue
        b = Recorder(graph, node, by)
        x, _, *bias = node.inputs
        graph.set_inputs(node, [x, found.matrix(b, new), *bias])
        places.append(node.loc)
        node.loc = node.loc.touched(by)
        erase_unused(graph, [found.unpacking] if found.unpacking is not None else [])
    return places
