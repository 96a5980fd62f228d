"""What a linear-anchored body computes: norm, one product or two of the same rows, and what follows at each element.

    rounding(norm(x)) -> linear by one weight, or by two of equal shape -> elementwise nodes -> outputs

Everything after the products happens at the same (row, column), so a kernel can do it on its accumulators. At the end
the largest of every row may be chosen (`topk`), for which a kernel need not store the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal as OneOf
from typing import TypeAlias

from irx.backends.layouts.coding import CODINGS
from irx.backends.regions.lowered import Refusal
from irx.ir.dims import Dim, product
from irx.ir.graph import Graph, Literal, Node, Value

Index: TypeAlias = OneOf["full", "row", "column", "scalar"]
FLOATS = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class WeightOperand:
    """A weight as the program stores it: an input of the body, its format, `turned` where it is stored [K, N]."""

    value: Value
    format: str
    turned: bool = False


@dataclass(frozen=True)
class Norm:
    """The norm before the product. Vectors are inputs of the body."""

    op: str
    eps: float
    weight: Value | None
    bias: Value | None
    rounds: str
    """The dtype of its result."""


@dataclass(frozen=True)
class Product:
    """One linear: `result` is the value that the accumulator, with the bias added, stands for."""

    weight: WeightOperand
    bias: Value | None
    result: Value


@dataclass(frozen=True)
class EpilogueOperand:
    """An input that the epilogue reads: `full` at [row, column], `row` at [column], `column` at [row], or `scalar`."""

    value: Value
    index: Index


@dataclass(frozen=True)
class Best:
    """The `k` largest columns of every row: of the value `held`, as numbers `values` and as columns `indices`."""

    held: Value
    k: int
    values: Value
    indices: Value


@dataclass(frozen=True)
class LinearRegion:
    """A parsed body. `n` and `k` are output and input columns, `rows` is the product of all leading axes of x.

    `activations` says how x meets the weights: f32, bf16 (its values are bfloat16 numbers), or a8 (each `group` of
    elements shares a scale, as `round_activations` does it). `outputs` pairs every output of the body with the value
    of a product or of the epilogue that it holds; outputs that are reshaped have the same bytes.
    """

    body: Graph
    x: Value
    rows: Dim
    n: int
    k: int
    norm: Norm | None
    activations: str
    group: int
    products: tuple[Product, ...]
    epilogue: tuple[Node, ...]
    operands: tuple[EpilogueOperand, ...]
    outputs: tuple[tuple[Value, Value], ...]
    best: Best | None = None


def parse(body: Graph, *, chooses: bool = False) -> LinearRegion | None:
    """The region, None where the body has no linear. Raises Refusal where it has one that does not fit.

    A region may end in a `topk` of its columns where the caller `chooses`.
    """
    linears = [node for node in body.nodes if node.op.name == "linear"]
    return _Parser(body, linears, chooses).region() if linears else None


class _Parser:
    def __init__(self, body: Graph, linears: Sequence[Node], chooses: bool) -> None:
        self.body = body
        self.linears = linears
        self.chooses = chooses
        self.best: Best | None = None
        self.before: set[Node] = set(linears)
        self.inputs = set(body.inputs)

    def region(self) -> LinearRegion:
        source = self._source()
        products = tuple(self._product(node) for node in self.linears)
        n, k = self._sizes()
        chain = self._chain(source)
        x, norm = self._norm(chain)
        activations, group = self._activations(x, norm, chain)
        rest = [node for node in self.body.nodes if node not in self.before]
        epilogue, outputs = self._epilogue(rest, n)
        operands = self._operands(epilogue, n)
        rows = product(self.linears[0].output.shape[:-1])
        parts = (norm, activations, group, products, epilogue, operands, outputs, self.best)
        return LinearRegion(self.body, x, rows, n, k, *parts)

    def _source(self) -> Value:
        """The x that all linears share."""
        if len(self.linears) > 2:
            raise Refusal(f"{len(self.linears)} linears: a kernel takes one, or two of the same x")
        sources = {node.inputs[0] for node in self.linears}
        source = sources.pop()
        if sources or source is None:
            raise Refusal("two linears of different x")
        return source

    def _sizes(self) -> tuple[int, int]:
        shapes = {node.inputs[1].shape for node in self.linears if node.inputs[1] is not None}
        if len(shapes) != 1:
            raise Refusal("two linears whose weights differ in shape")
        n, k = shapes.pop()
        if not (isinstance(n, int) and isinstance(k, int) and n and k):
            raise Refusal(f"a weight of the size [{n}, {k}] that is not a number")
        return n, k

    def _product(self, node: Node) -> Product:
        weight, bias = node.inputs[1], node.operand("bias")
        assert weight is not None
        if bias is not None and bias not in self.inputs:
            raise Refusal(f"the bias %{bias.name} is computed in the region")
        return Product(self._weight(weight), bias, node.output)

    def _weight(self, value: Value) -> WeightOperand:
        turned = False
        while value not in self.inputs:
            node = value.producer
            if node is None or node.op.name not in ("dequantize", "cast", "permute") or len(node.inputs) != 1:
                raise Refusal(f"the weight %{value.name} is computed in the region")
            if node.op.name == "permute":
                turned = not turned if node.attr("order") == (1, 0) else turned
            source = node.inputs[0]
            assert source is not None
            if node.op.name == "cast" and not _keeps(source.dtype, value.dtype):
                raise Refusal(f"the weight %{value.name} is rounded to {value.dtype} in the region")
            self.before.add(node)
            value = source
        if value.dtype not in FLOATS and value.dtype not in CODINGS:
            raise Refusal(f"weights of dtype {value.dtype}")
        if turned and value.dtype in CODINGS:
            raise Refusal("a packed weight that is stored turned")
        return WeightOperand(value, value.dtype, turned)

    def _chain(self, value: Value) -> list[Node]:
        """The nodes between an input of the body and the products, first to last."""
        chain: list[Node] = []
        while value not in self.inputs:
            node = value.producer
            if node is None or node.op.name not in _BEFORE or self._escapes(value):
                raise Refusal(f"x comes from {node.op.name if node else 'a literal'}, or is read by others too")
            chain.append(node)
            self.before.add(node)
            source = node.inputs[0]
            assert source is not None
            value = source
        return chain[::-1]

    def _escapes(self, value: Value) -> bool:
        return self.body.is_output(value) or any(user not in self.before for user in self.body.users(value))

    def _norm(self, chain: Sequence[Node]) -> tuple[Value, Norm | None]:
        x = chain[0].inputs[0] if chain else self.linears[0].inputs[0]
        assert x is not None
        if x.dtype not in FLOATS:
            raise Refusal(f"activations of dtype {x.dtype}")
        norms = [node for node in chain if node.op.name in ("rms_norm", "layer_norm")]
        if len(norms) > 1:
            raise Refusal("two norms before one product")
        return x, self._one_norm(norms[0], chain) if norms else None

    def _one_norm(self, node: Node, chain: Sequence[Node]) -> Norm:
        weight = node.operand("weight")
        bias = node.operand("bias") if node.op.name == "layer_norm" else None
        if any(v is not None and v not in self.inputs for v in (weight, bias)):
            raise Refusal("the norm's weight is computed in the region")
        for earlier in chain[: chain.index(node)]:
            narrows = earlier.op.name == "cast" and not _keeps(earlier.inputs[0].dtype, earlier.output.dtype)  # type: ignore[union-attr]
            if narrows or earlier.op.name == "round_activations":
                raise Refusal("x is rounded before its norm")
        if node.output.shape[-1] != self.linears[0].inputs[0].shape[-1]:  # type: ignore[union-attr]
            raise Refusal("the norm is over other rows than the product's")
        eps = node.attr("eps")
        assert isinstance(eps, float | int)
        return Norm(node.op.name, float(eps), weight, bias, node.output.dtype)

    def _activations(self, x: Value, norm: Norm | None, chain: Sequence[Node]) -> tuple[str, int]:
        rounding = [node for node in chain if node.op.name == "round_activations"]
        if rounding:
            (node,) = rounding if len(rounding) == 1 else (None,)
            if node is None or node.attr("bits") != 8 or node is not _last_change(chain):
                raise Refusal("activations rounded otherwise than to 8 bits just before the product")
            group = node.attr("group")
            assert isinstance(group, int)
            return "a8", group
        dtypes = [x.dtype, *(n.output.dtype for n in chain)]
        start = next((i + 1 for i, n in enumerate(chain) if norm is not None and n.op.name in _NORMS), 0)
        return ("bf16" if "bf16" in dtypes[start:] else "f32"), 0

    def _epilogue(self, rest: Sequence[Node], n: int) -> tuple[tuple[Node, ...], tuple[tuple[Value, Value], ...]]:
        """The elementwise nodes, and what every output holds."""
        full = self.linears[0].output.shape
        same: dict[Value, Value] = {}
        nodes = []
        for node in rest:
            if node.op.name == "reshape":
                self._view(node, same)
                continue
            if node.op.name == "topk" and self.chooses:
                self.best = self._chosen(node, same, n)
                continue
            if not node.op.elementwise or len(node.outputs) != 1:
                raise Refusal(f"{node.op.name} after the product")
            if any(value in same for value in node.inputs if value is not None):
                raise Refusal("nodes after a reshape of the product")
            if node.output.shape != full:
                raise Refusal(f"%{node.output.name} has another shape than the product")
            nodes.append(node)
        known = {v for node in (*self.linears, *nodes) for v in node.outputs}
        chosen = () if self.best is None else (self.best.values, self.best.indices)
        pairs = tuple((value, same.get(value, value)) for value in self.body.outputs if value not in chosen)
        for value, held in (*pairs, *((v, self.best.held) for v in chosen[:1] if self.best is not None)):
            if held not in known:
                raise Refusal(f"the output %{value.name} does not come from the product")
            if held.dtype not in FLOATS:
                raise Refusal(f"an output of dtype {held.dtype}")
        return tuple(nodes), pairs

    def _chosen(self, node: Node, same: Mapping[Value, Value], n: int) -> Best:
        """The choice at the end of the region."""
        source, k = node.inputs[0], node.attr("k")
        assert source is not None
        if self.best is not None or node.attr("axis") not in (-1, len(source.shape) - 1) or source.shape[-1] != n:
            raise Refusal("topk of something other than the product's columns")
        if not isinstance(k, int) or k < 1:
            raise Refusal(f"topk of {k} elements")
        return Best(same.get(source, source), k, *node.outputs)

    def _view(self, node: Node, same: dict[Value, Value]) -> None:
        source = node.inputs[0]
        assert source is not None
        if source in self.inputs:
            raise Refusal("an operand of the epilogue is reshaped in the region")
        same[node.output] = same.get(source, source)

    def _operands(self, epilogue: Sequence[Node], n: int) -> tuple[EpilogueOperand, ...]:
        found: dict[Value, EpilogueOperand] = {}
        for node in epilogue:
            for value in node.inputs:
                if value is not None and value in self.inputs and value not in found:
                    found[value] = EpilogueOperand(value, self._index(value, n))
                elif isinstance(value, Literal) and not isinstance(value.value, bool | int | float):
                    raise Refusal("a size as an operand of the epilogue")
        return tuple(found.values())

    def _index(self, value: Value, n: int) -> Index:
        full = self.linears[0].output.shape
        shape = value.shape
        if shape == full:
            return "full"
        if all(size == 1 for size in shape):
            return "scalar"
        if shape[-1] == n and all(size == 1 for size in shape[:-1]):
            return "row"
        if shape == (*full[:-1], 1):
            return "column"
        raise Refusal(f"%{value.name} {value.type} is broadcast to {full} over some rows only")


_NORMS = ("rms_norm", "layer_norm")
_BEFORE = (*_NORMS, "cast", "reshape", "round_activations")


def _keeps(source: str, target: str) -> bool:
    """True where every number of dtype `source` is one of `target`."""
    return source == target or target == "f32" or source in CODINGS


def _last_change(chain: Sequence[Node]) -> Node | None:
    """The last node that does more than reshape."""
    return next((node for node in reversed(chain) if node.op.name != "reshape"), None)
