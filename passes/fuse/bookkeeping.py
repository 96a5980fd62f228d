"""Makes regions for a pass: takes fuel, shows that the region computes the same, and keeps the books.

A region only groups nodes. So what is shown is that it is the same computation: taken apart again, it must be the part
of the graph that it was made of, node by node. That is done once for every body.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from irx.analysis.structure import extract, fingerprint
from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program
from irx.ir.regions import expanded
from irx.passes.fuse.nodes import title
from irx.rewrite.outline import NotConvex, Outline, Outliner
from irx.rewrite.report import Fuel, NearMiss, Report, Site


class Grouping:
    """The regions that the pass `by` makes in one program, and its report."""

    def __init__(self, program: Program, by: str, fuel: Fuel) -> None:
        self.report = Report()
        self._fuel = fuel
        self._outliner = Outliner(program, by)

    def group(self, graph: Graph, nodes: Collection[Node]) -> Node | None:
        """One region of `nodes`; None where that cannot be, which is a near miss, or no fuel is left."""
        ordered = graph.span(nodes)
        try:
            plan = self._outliner.prepare(graph, nodes, title([node for node in ordered if node in nodes]))
        except NotConvex as problem:
            self.miss(graph, ordered[-1], str(problem))
            return None
        if plan.is_new and not _is_same(plan):
            self.miss(graph, ordered[-1], "check failed: the region is another computation")
            return None
        if not self._fuel.take():
            return None
        fusion = self._outliner.commit(graph, plan)
        what = plan.body.name.rpartition(".")[0]
        self.report.sites.append(Site(graph.name, fusion.loc, what, 0.0))
        return fusion

    def miss(self, graph: Graph, node: Node, reason: str) -> None:
        """Report a place that almost became a region."""
        self.report.near_misses.append(NearMiss(graph.name, node.loc, reason))


def _is_same(plan: Outline) -> bool:
    """The body computes, of inputs that stand for the operands, what the nodes compute."""
    before, after = _plain(plan.results, plan.operands), _plain(plan.body.outputs, plan.body.inputs)
    alike = [v.name for v in before.inputs] == [v.name for v in after.inputs]
    return alike and fingerprint(before) == fingerprint(after)


def _plain(values: Sequence[Value], leaves: Sequence[Value]) -> Graph:
    """What computes `values` from `leaves`, without regions, its nodes and inputs in the order of the computation."""
    flat = expanded(extract(values, leaves, {value: f"p{index}" for index, value in enumerate(leaves)}))
    return extract(flat.outputs, flat.inputs, {value: value.name for value in flat.inputs})
