"""raise-shapes: rows that were flattened for row-wise ops get their axes back, and tensors filled slice by slice become
concatenations.

Before:

    %a = irx.reshape(%x) {shape=[B*S, 64]} : f32[B*S, 64]
    %b = irx.linear(%a, $up) : f32[B*S, 256]
    %c = irx.relu(%b) : f32[B*S, 256]
    %y = irx.reshape(%c) {shape=[B, S, 256]} : f32[B, S, 256]
    %k = irx.scatter_slice(%empty, %nope) {axis=3, start=0, stop=16} : f32[B, 4, S, 24]
    %l = irx.scatter_slice(%k, %rope) {axis=3, start=16, stop=24} : f32[B, 4, S, 24]

After:

    %b = irx.linear(%x, $up) : f32[B, S, 256]
    %y = irx.relu(%b) : f32[B, S, 256]
    %l = irx.concat(%nope, %rope) {axis=3} : f32[B, 4, S, 24]

Passes that act on tokens need to see batch and sequence as axes. Rows that something else reads flattened stay flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from irx.analysis.axes import operand_axes
from irx.ir.dims import Dim, SymDim, product
from irx.ir.graph import Builder, Node, Value
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.simplify import simplify

_ROW_WISE = frozenset({"linear", "rms_norm", "layer_norm"})


@dataclass(frozen=True)
class RaiseShapes(Pass):
    """Give flattened rows their axes back; turn tensors filled slice by slice into concatenations."""

    name = "raise-shapes"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        report = Report()
        rules = {"reshape": _unflatten, "scatter_slice": _concat}
        for graph in program.graphs.values():
            report.add(simplify(graph, rules, by=self.name, fuel=ctx.fuel))
        return report


def _unflatten(node: Node, b: Builder) -> Value | None:
    flat = node.inputs[0]
    if flat is None or flat.producer is None or flat.producer.op.name == "reshape" or not flat.shape:
        return None
    lead = _leading(node.output.shape, flat.shape[0])
    if lead is None:
        return None
    rows = _Rows(lead, node)
    if not rows.gather(flat) or rows.read_outside(b):
        return None
    whole = rows.rebuild(flat, b)
    return whole if whole.type == node.output.type else b("reshape", whole, shape=node.output.shape)


def _leading(shape: Sequence[Dim], rows: Dim) -> tuple[Dim, ...] | None:
    """The first axes of `shape` that make up the flattened rows, where they are at least two."""
    for count in range(2, len(shape) + 1):
        if product(shape[:count]) == rows:
            return tuple(shape[:count])
    return None


@dataclass
class _Rows:
    """Row-wise nodes between reshapes that flatten rows and `root`, which gives them the axes `lead` back."""

    lead: tuple[Dim, ...]
    root: Node
    inside: dict[Node, tuple[int | None, ...]] = field(default_factory=dict)
    made: dict[Value, Value] = field(default_factory=dict)

    def gather(self, value: Value) -> bool:
        """Collect the nodes that compute `value`. False where one is not row-wise, or rows begin flat."""
        node = value.producer
        if node is None:
            return False
        if node in self.inside or self._begins(node):
            return True
        if not (node.op.elementwise or node.op.name in _ROW_WISE):
            return False
        axes = operand_axes(node, 0)
        if axes is None:
            return False
        self.inside[node] = axes
        rows = [v for v, axis in zip(node.inputs, axes, strict=True) if v is not None and axis is not None]
        return bool(rows) and all(axis in (0, None) for axis in axes) and all(map(self.gather, rows))

    def read_outside(self, b: Builder) -> bool:
        """True where something else reads the flat rows, which would then be computed twice."""
        users = {user for node in self.inside for value in node.outputs for user in b.graph.users(value)}
        kept = any(b.graph.is_output(value) for node in self.inside for value in node.outputs)
        return kept or not users <= {self.root, *self.inside}

    def rebuild(self, value: Value, b: Builder) -> Value:
        """The value with the leading axes."""
        if value not in self.made:
            self.made[value] = self._rebuilt(value, b)
        return self.made[value]

    def _rebuilt(self, value: Value, b: Builder) -> Value:
        node = value.producer
        assert node is not None, "gather has seen the node of every value"
        if self._begins(node):
            whole, shape = node.inputs[0], (*self.lead, *value.shape[1:])
            assert whole is not None, "a reshape has an operand"
            return whole if whole.shape == shape else b("reshape", whole, shape=shape)
        axes = self.inside[node]
        operands = [
            v if axis is None or v is None else self.rebuild(v, b) for v, axis in zip(node.inputs, axes, strict=True)
        ]
        b.loc = node.loc.touched(RaiseShapes.name)
        return b(node.op.name, *operands, **node.attrs)

    def _begins(self, node: Node) -> bool:
        source = node.inputs[0] if node.op.name == "reshape" else None
        return source is not None and source.shape[: len(self.lead)] == self.lead


def _concat(node: Node, b: Builder) -> Value | None:
    """The sources of a chain of slices written side by side, if they cover the whole axis."""
    axis = int(str(node.attr("axis"))) % len(node.output.shape)
    pieces: dict[Dim, tuple[Dim, Value]] = {}
    current: Node | None = node
    while current is not None and current.op.name == "scatter_slice":
        base, source = current.inputs
        start, stop = _bounds(current, axis)
        if base is None or source is None or stop is None:
            return None
        pieces.setdefault(start, (stop, source))  # what is written later stands
        current = base.producer
    parts = []
    end: Dim = 0
    while end in pieces:
        (stop, part), start = pieces.pop(end), end
        if part.dtype != node.output.dtype:
            return None
        end = stop
        shape = (*node.output.shape[:axis], end - start, *node.output.shape[axis + 1 :])
        parts.append(part if part.shape == shape else b("expand", part, shape=shape))
    return b("concat", *parts, axis=axis) if not pieces and end == node.output.shape[axis] else None


def _bounds(node: Node, axis: int) -> tuple[Dim, Dim | None]:
    """Where a slice is written along `axis`; no stop where it is another axis or has gaps."""
    size, start, stop = node.output.shape[axis], node.attr("start"), node.attr("stop")
    stop = size if stop is None else stop
    same = int(str(node.attr("axis"))) % len(node.output.shape) == axis and node.attr("step") == 1
    if not same or not isinstance(start, int | SymDim) or not isinstance(stop, int | SymDim):
        return 0, None
    return start, stop
