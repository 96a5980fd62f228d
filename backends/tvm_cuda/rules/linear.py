"""Regions around products, for a single row of x: norms in kernels of their own, then a matrix-vector product each.

    y = silu(linear(norm(x), gate)) * linear(norm(x), up)        norm | gate, to memory | up, silu, times

For more rows a region goes the other way, to Triton's kernels: the two share the weights, which lie in one layout.
"""

from __future__ import annotations

from itertools import chain, combinations

from irx.backends.regions.linear_region import LinearRegion, parse
from irx.backends.regions.lowered import Call, Case, Choices, Lowered, Refusal
from irx.backends.regions.simplify import simplified
from irx.backends.triton.regions.tables import Table
from irx.backends.triton.rules import linear as others
from irx.backends.triton.templates.linear_layout import Chunks
from irx.backends.tvm_cuda.elementwise import supports
from irx.backends.tvm_cuda.rules.regions import lower
from irx.backends.tvm_cuda.script import OPS
from irx.ir.dims import Dim, product
from irx.ir.graph import Graph, Value
from irx.ir.types import TensorType

NAME = "tvm_matvec"


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels for a single row, with those of Triton for more; None without a product. Raises Refusal."""
    region = parse(body)
    if region is None:
        return None
    single = Case(_calls(body, region), region.rows, 1)
    if isinstance(region.rows, int):
        if region.rows > 1:
            raise Refusal(f"a product of {region.rows} rows")
        return Lowered((Case(single.calls),))
    rest = others.rule(body, choices)
    assert rest is not None
    return Lowered((single, *(case for case in rest.cases if case.most is None or case.most > 1)), rest.note)


def _calls(body: Graph, region: LinearRegion) -> tuple[Call, ...]:
    """The calls that compute a region of one row."""
    row, outer = _of_one_row(body, region)
    simple, inner = simplified(row)
    for node in simple.nodes:
        if node.op.name not in (*OPS, "dequantize") and (reason := supports(node)) is not None:
            raise Refusal(reason)
    linears = [node for node in simple.nodes if node.op.name == "linear"]
    tables = {}
    for node, made in zip(linears, region.products, strict=True):
        assert node.inputs[1] is not None
        layout = Chunks(made.weight.format, region.n, region.k, made.weight.turned)
        tables[node.inputs[1]] = Table(layout, made.weight.value)
    return lower(simple, {value: outer[own] for value, own in inner.items()}, NAME, tables)


def _of_one_row(body: Graph, region: LinearRegion) -> tuple[Graph, dict[Value, Value]]:
    """A copy of the body with 1 for every number of rows, and the body's inputs and outputs by those of the copy."""
    copy = body.clone()
    outer = dict(zip((*copy.inputs, *copy.outputs), (*body.inputs, *body.outputs), strict=True))
    axes = [dim for made in region.products for dim in made.result.shape[:-1] if not isinstance(dim, int)]
    ones: set[Dim] = {product(some) for count in range(1, len(axes) + 1) for some in combinations(axes, count)}
    for value in chain(copy.inputs, (v for node in copy.nodes for v in node.outputs)):
        if isinstance(value.type, TensorType):
            shape = tuple(1 if dim in ones else dim for dim in value.shape)
            value.type = TensorType(shape, value.dtype)
            if not all(isinstance(dim, int) for dim in shape):
                raise Refusal(f"%{value.name} has a size that is no number of rows")
    return copy, outer
