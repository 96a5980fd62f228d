"""Fused regions of elementwise, shape, lookup and reduction ops: a kernel for each value that they store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from irx.backends.regions.groups import Buffer, Buffers, Materialize, Region
from irx.backends.regions.lowered import Call, Choices, Data, Lowered, Refusal, single
from irx.backends.regions.simplify import simplified
from irx.backends.triton.regions.tables import Table, tables
from irx.backends.tvm_cuda import moves  # noqa: F401  declares how its ops are computed
from irx.backends.tvm_cuda.elementwise import COMPUTED, supports
from irx.backends.tvm_cuda.moves import tensor
from irx.backends.tvm_cuda.reductions import FOLDS, axes_of
from irx.backends.tvm_cuda.script import OPS, Script
from irx.ir.dims import product
from irx.ir.graph import Graph, Node, Value
from irx.ir.sizes import dims_of
from irx.ir.types import KVType, TensorType


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels of a body without states and products. Raises Refusal."""
    if any(isinstance(v.type, KVType) for node in body.nodes for v in (*node.inputs, *node.outputs) if v is not None):
        return None
    simple, outer = simplified(body)
    for node in simple.nodes:
        if node.op.name not in OPS and node.op.name != "dequantize" and (reason := supports(node)) is not None:
            raise Refusal(reason)
    return single(*lower(simple, outer, _name(body)))


def lower(
    simple: Graph, outer: Mapping[Value, Value], name: str, weights_of: Mapping[Value, Table] | None = None
) -> tuple[Call, ...]:
    """The calls that compute the outputs of a body of simple ops.

    `outer` are the caller's values for its inputs and outputs, `weights_of` the weights that are read from a layout.
    """
    found = tables(simple, outer) | dict(weights_of or {})
    weights = {table.weight for table in found.values()}
    buffers = {v: data(outer[v]) for v in simple.inputs if simple.users(v) and outer[v] not in weights}
    kept = {v: data(outer[v]) for v in simple.outputs if v.producer is not None}
    writing = _Writing(name, found, kept, _is_wide(simple))
    return _OneByOne(simple, buffers, kept, writing.call).lower()


class _OneByOne(Region):
    """A kernel of TVM's schedules stores one value: two would be two loops, and two kernels."""

    def _group_of(self, value: Value, groups: list[list[Value]]) -> int | None:
        return None


@dataclass(frozen=True)
class _Writing:
    """Writes the kernels of one region."""

    name: str
    tables: dict[Value, Table]
    stored: Buffers
    wide: bool

    def call(self, values: Sequence[Value], buffers: Buffers) -> Call:
        """The call that computes one value. Raises Refusal, Materialize."""
        (value,) = values
        _check(value, buffers)
        script = Script(buffers, self.tables, wide=self.wide)
        script.store(value, self.stored[value])
        ops = ", ".join(dict.fromkeys(node.op.name for node in reversed(list(_nodes(value, buffers)))))
        return script.call(self.name, f"{self.name}: {ops} of {list(value.shape)}, by TVM")


def _check(value: Value, buffers: Mapping[Value, Buffer]) -> None:
    """One kernel takes one product, one reduction, or several of the same rows. Raises Materialize for what is more."""
    found = [node for node in _nodes(value, buffers) if node.op.name in FOLDS]
    linears = [node for node in found if node.op.name == "linear"]
    for node in linears:
        _check_source(node, buffers)
    if len(linears) > 1:
        raise Materialize(next(node for node in reversed(linears) if node.output is not value))
    own = [node for node in found if node.output is not value]
    rows = {(tensor(node).shape, axes_of(node)) for node in found}
    if linears or not own:
        return
    shape, axes = next(iter(rows))
    kept = product(size for axis, size in enumerate(shape) if axis not in axes)
    fits = product(value.shape) in (product(shape), kept)
    last = len(found) == 1 or axes == (len(shape) - 1,)
    if len(rows) > 1 or not fits or not last:
        raise Materialize(own[-1])


def _check_source(linear: Node, buffers: Mapping[Value, Buffer]) -> None:
    """What a product reads lies in memory: else every column of the result would compute it again."""
    x = tensor(linear)
    while x not in buffers and x.producer is not None and x.producer.op.name in ("cast", "reshape"):
        x = tensor(x.producer)
    if x not in buffers and x.producer is not None:
        raise Materialize(x.producer)


def _nodes(value: Value, buffers: Mapping[Value, Buffer]) -> Iterator[Node]:
    """What the value is computed by, up to what lies in memory, the last nodes first."""
    seen, waiting = set[Node](), [value]
    while waiting:
        node = waiting.pop().producer
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [v for v in node.inputs if isinstance(v, Value) and v not in buffers]


def _is_wide(body: Graph) -> bool:
    """True where indices depend on named sizes, or do not fit 32 bits."""
    values = [v for node in body.nodes for v in (*node.inputs, *node.outputs) if v is not None]
    dims = [dim for v in values if isinstance(v.type, TensorType) for dim in dims_of(v.type)]
    static = all(isinstance(dim, int) for dim in dims)
    return not static or any(int(str(product(v.shape))) >= 1 << 31 for v in values)


def data(value: Value) -> Buffer:
    """The buffer of an input or output of the body. Raises Refusal for a dtype that is not computed."""
    if value.dtype not in COMPUTED:
        raise Refusal(f"{value.type} is not read by kernels of TVM")
    return Buffer(Data(value), value.dtype)


def _name(body: Graph) -> str:
    ops = dict.fromkeys(node.op.name for node in body.nodes)
    text = body.name if body.name else "_".join(ops)
    return "".join(c if c.isalnum() else "_" for c in text)[:40] or "region"
