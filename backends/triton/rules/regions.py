"""The rule of last resort: kernels generated for any region of elementwise, shape, lookup and reduction ops."""

from __future__ import annotations

from irx.backends.regions.groups import Region
from irx.backends.regions.lowered import Choices, Lowered, Refusal, single
from irx.backends.regions.simplify import simplified
from irx.backends.triton.elementwise import supports
from irx.backends.triton.regions import moves, reductions  # noqa: F401  declare how their ops are computed
from irx.backends.triton.regions.code import OPS
from irx.backends.triton.regions.kernels import Group, data
from irx.backends.triton.regions.tables import tables
from irx.ir.graph import Graph, Node
from irx.ir.types import KVType


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels for the whole body, one for each number of elements among its results. Raises Refusal."""
    if any(isinstance(v.type, KVType) for node in body.nodes for v in (*node.inputs, *node.outputs) if v is not None):
        return None
    simple, outer = simplified(body)
    for node in simple.nodes:
        reason = _objection(node)
        if reason is not None:
            raise Refusal(reason)
    found = tables(simple, outer)
    weights = {table.weight for table in found.values()}
    buffers = {v: data(outer[v]) for v in simple.inputs if simple.users(v) and outer[v] not in weights}
    stored = {v: data(outer[v]) for v in simple.outputs if v.producer is not None}
    name = _name(body)
    region = Region(simple, buffers, stored, lambda values, known: Group(name, found, values, stored, known).call())
    return single(*region.lower())


def _objection(node: Node) -> str | None:
    if node.op.name in OPS or node.op.name == "dequantize":
        return None
    if not node.op.elementwise:
        return f"no kernel is generated for {node.op.name}"
    return supports(node, sizes=True)


def _name(body: Graph) -> str:
    """The kernels' name: that of the region, or of its only op."""
    ops = dict.fromkeys(node.op.name for node in body.nodes)
    text = body.name if body.name else "_".join(ops)
    return "".join(c if c.isalnum() else "_" for c in text)[:40] or "region"
