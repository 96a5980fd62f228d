"""fuse-epilogue: what works element by element on the result of a product joins its region.

Before:

    %h = irx.linear(%x, $w, $b) : f32[B, S, 3072]
    %y = irx.gelu(%h) : f32[B, S, 3072]

After:

    %y = irx.fusion(%x, $w, $b) {body=@linear-gelu.0} : f32[B, S, 3072]

The result must be read by nothing else and keep its shape. Other operands may be numbers, vectors along the columns, or
of the result's own shape; the sum with such a one is left to `fuse-residual`, and casts there and back to `fuse-norm`.
A kernel applies all this to a tile of the result while it is in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.dims import Dim
from irx.ir.graph import Graph, Node, Value
from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.nodes import is_last, kind, only_reader, operands, reads_rows
from irx.pipeline.base import Context, Effect, Pass, Report, Stage


@dataclass(frozen=True)
class FuseEpilogue(Pass):
    """Let elementwise ops join the product before them."""

    name = "fuse-epilogue"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.elementwise]:
                fuse(graph, node, grouping, residual=False)
        return grouping.report


def fuse(graph: Graph, node: Node, grouping: Grouping, *, residual: bool) -> None:
    """Let an elementwise node join the region of the product that it reads, if it reads one."""
    product = _product(graph, node)
    if product is None or _rounds_rows(graph, node) or is_residual(node) != residual:
        return
    problem = _unfit(graph, node, product)
    if problem is not None:
        if not residual:  # the stream itself often comes out of a product, and is read by a norm as well
            grouping.miss(graph, node, problem)
    elif product.producer is not None:
        grouping.group(graph, {product.producer, node})


def _rounds_rows(graph: Graph, node: Node) -> bool:
    """True for a cast there and back that only says how the next products read their rows."""
    source = operands(node)
    return node.op.name == "cast" and bool(source) and _feeds_products(graph, node.output, source[0].dtype)


def _feeds_products(graph: Graph, value: Value, dtype: str) -> bool:
    readers = graph.users(value)
    return bool(readers) and not graph.is_output(value) and all(
        _feeds_products(graph, reader.output, dtype) if reader.op.name == "cast"
        else value.dtype == dtype and reads_rows(reader, value)
        for reader in readers
    )  # fmt: skip


def is_residual(node: Node) -> bool:
    """True for the sum of two tensors of one shape."""
    return node.op.name == "add" and [v.shape for v in operands(node)] == [node.output.shape] * 2


def _product(graph: Graph, node: Node) -> Value | None:
    """The operand that a product computes: the later one of two, unless only the other is read by nothing else."""
    found = [value for value in dict.fromkeys(operands(node)) if kind(value.producer) == "linear"]
    found.sort(key=lambda value: only_reader(graph, value) is not None, reverse=True)
    if len(found) < 2 or only_reader(graph, found[1]) is None:
        return found[0] if found else None
    first, second = found[0].producer, found[1].producer
    assert first is not None and second is not None
    return found[0] if first is not second and is_last(graph, first, second) else found[1]


def _unfit(graph: Graph, node: Node, product: Value) -> str | None:
    if only_reader(graph, product) is None:
        return f"%{product.name} is read elsewhere as well"
    shape = node.output.shape
    if product.shape != shape:
        return f"%{product.name} is broadcast"
    broadcast = next((v for v in operands(node) if v.shape != shape and not _is_one_row(v, shape)), None)
    return None if broadcast is None else f"%{broadcast.name} is broadcast along the columns"


def _is_one_row(value: Value, shape: tuple[Dim, ...]) -> bool:
    """True for a number or a vector along the columns."""
    return all(size == 1 for size in value.shape[:-1]) and value.shape[-1:] in (shape[-1:], (1,), ())
