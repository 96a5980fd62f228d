"""fold-norm-weight: the weight and bias of a norm move into the weights of the products that read it.

Before:

    %n = irx.layer_norm(%x, $g, $b) {eps=1e-05} : f32[B, S, 64]
    %y = irx.linear(%n, $w) : f32[B, S, 128]

After:

    weight $w.scaled : f32[128, 64] = irx.mul($w, $g)
    weight $w.shifted : f32[128] = irx.linear($b, $w)
    %n = irx.layer_norm(%x) {eps=1e-05} : f32[B, S, 64]
    %y = irx.linear(%n, $w.scaled, $w.shifted) : f32[B, S, 128]

Not in the default pipeline: a kernel multiplies by the norm's weight while it prepares the rows, so this saves next to
nothing and makes another copy of each weight. It is for backends whose kernels cannot do that. Only for float32 and
wider: rounding the folded weight to 16 bits would change the function by more than rounding may.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.graph import Graph, Node, Value, Weight
from irx.ir.program import Program
from irx.passes.fuse.projections import Folder, Projection, Rewrites, projection
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.check import Check
from irx.rewrite.recorder import Recorder

_NORMS = ("rms_norm", "layer_norm")
_WIDE = ("f32", "f64")


@dataclass(frozen=True)
class FoldNormWeight(Pass):
    """Multiply the weights of products by the weight of the norm before them."""

    name = "fold-norm-weight"
    stage = Stage.FUSE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        rewrites = Rewrites(Check(ctx.evaluate, program.sizes), ctx.fuel, Folder(program.weights))
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.name in _NORMS]:
                _fold(graph, node, rewrites, self.name)
        return rewrites.report


def _fold(graph: Graph, node: Node, rewrites: Rewrites, by: str) -> None:
    readers = graph.users(node.output)
    products = [found for reader in readers if (found := projection(reader)) is not None and found.x is node.output]
    if len(node.inputs) == 1 or not products:
        return
    problem = _unfit(graph, node, products)
    if problem is not None:
        rewrites.miss(graph, node, problem)
        return
    b = Recorder(graph, node, by)
    plain = b(node.op.name, node.inputs[0], **node.attrs)
    names: dict[Value, str] = {}
    made = [_product(b, node, plain, product, names) for product in products]
    leaves = [v for v in node.inputs if v is not None] + [v for p in products for v in p.leaves if v is not p.x]
    rewrites.replace(b, [product.node.output for product in products], made, leaves, names, node.op.name)


def _unfit(graph: Graph, node: Node, products: list[Projection]) -> str | None:
    if len(products) < len(graph.users(node.output)) or graph.is_output(node.output):
        return f"%{node.output.name} is read by more than products"
    if node.output.dtype not in _WIDE:
        return f"the folded weight rounded to {node.output.dtype} is not within the tolerance"
    packed = next((product.weight for product in products if product.unpacking is not None), None)
    if packed is not None:
        return f"${packed.name} is stored as {packed.dtype}"
    variable = any(not isinstance(v, Weight) for v in node.inputs[1:] if v is not None)
    return "the norm's weight is computed" if variable else None


def _product(b: Recorder, node: Node, plain: Value, product: Projection, names: dict[Value, str]) -> Value:
    """The product of the plain norm with the folded weight."""
    scale, shift = node.operand("weight"), None if node.op.name == "rms_norm" else node.operand("bias")
    matrix: Value = product.weight
    bias: Value | None = product.bias
    if shift is not None:
        bias = b("linear", shift, product.weight, *([] if bias is None else [bias]))
        names[bias] = f"{product.weight.name}.shifted"
    if scale is not None:
        matrix = b("mul", product.weight, scale)
        names[matrix] = f"{product.weight.name}.scaled"
    return b("linear", plain, matrix, *([] if bias is None else [bias]))
