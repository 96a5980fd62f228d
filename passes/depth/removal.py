"""Taking units out of a residual stream: where a sum was, the stream goes on as it came.

    %y = irx.add(%x, %b)          with its only unit gone: who read %y reads %x
    %z = irx.add(%y, %c)

A norm behind the sum goes with it. Where one of two parallel units goes, its term leaves the sum and the rest stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from irx.analysis.blocks import Block, Kind, Unit
from irx.ir.graph import Builder, Graph, Node, Value
from irx.rewrite.cleanup import erase_unused


def leaving(block: Block, kinds: frozenset[Kind]) -> list[Unit]:
    """The units of a block that are of these kinds."""
    return [unit for unit in block.units if unit.kind in kinds]


def obstacle(units: Iterable[Unit]) -> str | None:
    """Why the stream cannot go on without these units; None where it can."""
    for unit in units:
        if unit.start.type != unit.end.type:
            return f"the stream is {unit.start.type} before the unit and {unit.end.type} behind it"
    return None


@dataclass
class Removal:
    """Removes units of one graph, all found before the first one went; keeps track of what the streams are now."""

    graph: Graph
    _moved: dict[Value, Value] = field(default_factory=dict)

    def leave_out(self, units: Sequence[Unit], block: Block) -> None:
        """Take these units of the block out; what only they needed is erased."""
        sums = [value.producer for unit in units for value in (unit.total, unit.end)]
        for total in dict.fromkeys(unit.total for unit in units):
            going = [unit for unit in units if unit.total is total]
            if _whole(units, block, total):
                self._replace(going[0].end, self.now(going[0].start))
            else:
                sums += [self._without(term, total) for term in _terms(going)]
        inner = [node for unit in units for node in unit.nodes]
        erase_unused(self.graph, [node for node in (*inner, *sums) if node is not None])

    def now(self, value: Value) -> Value:
        """What stands for a value of the graph as it was."""
        while value in self._moved:
            value = self._moved[value]
        return value

    def cosine(self, b: Builder, units: Sequence[Unit], block: Block) -> Value:
        """The cosine of the stream before these units and behind them, f32 without the last axis."""
        start, end = self.now(units[0].start), self.now(units[-1].end)
        if not _whole(units, block, units[-1].total):
            end = start
            for term in _terms(units):
                end = b("add", end, term)
        x, y = (value if value.dtype == "f32" else b("cast", value, dtype="f32") for value in (start, end))
        inner, xx, yy = (b("sum", b("mul", *pair), axes=(-1,)) for pair in ((x, y), (x, x), (y, y)))
        return b("mul", inner, b("rsqrt", b("maximum", b("mul", xx, yy), 1e-24)))

    def _replace(self, old: Value, new: Value) -> None:
        self.graph.replace(old, new)
        self._moved[old] = new

    def _without(self, term: Value, total: Value) -> Node | None:
        """Let who reads the addition that takes the term read its other operand; returns the addition."""
        for node in self.graph.users(term):
            others = [value for value in node.inputs if value is not None and value is not term]
            if node.op.name == "add" and len(others) == 1 and node.output.type == total.type:
                self._replace(node.output, others[0])
                return node
        return None


def _whole(units: Sequence[Unit], block: Block, total: Value) -> bool:
    """True where these are all units of the block whose branches that sum adds."""
    return sum(unit.total is total for unit in units) == sum(unit.total is total for unit in block.units)


def _terms(units: Sequence[Unit]) -> list[Value]:
    return [term for unit in units for term in unit.terms]
