"""Attention spelled out, walked from its softmax: up to the product of queries and keys, down to that with values.

On the way up, in this order, may stand: the subtraction of the row's maximum, a column of sinks, masks and biases, a
soft cap, scales; casts and reshapes of leading axes anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from irx.analysis.values import ValueFree
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Node, Value
from irx.passes.normalize.attention.additive import Added, Condition, hides, take_apart
from irx.rewrite.match import scalar


class NotAttention(Exception):
    """The walk ended at something that attention has not; the argument says at what."""


@dataclass
class Spelled:
    """What one softmax belongs to. `q` [..., S, D], `keys` [..., D, T], `v` [..., T, Dv]; `root` computes the result.

    `lead` are the leading axes of the logits, the most that they have anywhere.
    """

    root: Node
    v: Value
    q: Value
    keys: Value
    scale: float = 1.0
    softcap: float | None = None
    sinks: Value | None = None
    added: Added = field(default_factory=Added)
    lead: tuple[Dim, ...] = ()


def softmaxes(graph: Graph) -> Iterator[Node]:
    """The softmax nodes over the last axis, from last to first."""
    for node in graph.reversed_nodes:
        if node.op.name == "softmax" and node.attr("axis") in (-1, len(node.output.shape) - 1):
            yield node


def walk(graph: Graph, softmax: Node, free: ValueFree) -> Spelled | None:
    """The attention around a softmax; None where no product with values follows it. Raises NotAttention."""
    root, sliced = _down(graph, softmax)
    if root is None:
        return None
    upward = _Upward(free)
    q, keys = upward.run(_operand(softmax, 0))
    if sliced != (upward.sinks is not None):
        raise NotAttention("the softmax is cut off, but has no column of sinks" if sliced else "sinks are weighed too")
    return Spelled(
        root, _operand(root, 1), q, keys, upward.scale, upward.softcap, upward.sinks, upward.added, upward.lead
    )


def _operand(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None, f"{node!r} lacks operand {index}"
    return value


def _down(graph: Graph, softmax: Node) -> tuple[Node | None, bool]:
    """The product with values, and whether the last column of the probabilities is cut off before it."""
    value, sliced = softmax.output, False
    while True:
        users = graph.users(value)
        if len(users) != 1 or graph.is_output(value):
            return None, sliced
        node = users[0]
        if node.op.name == "matmul" and node.inputs[0] is value:
            return node, sliced
        if node.op.name == "slice" and _cuts_last(node, value):
            sliced = True
        elif node.op.name not in ("cast", "reshape", "expand") or node.output.shape[-2:] != value.shape[-2:]:
            return None, sliced
        value = node.output


def _cuts_last(node: Node, value: Value) -> bool:
    rank = len(value.shape)
    last = node.attr("axis") in (-1, rank - 1) and node.attr("start") == 0 and node.attr("step") == 1
    return last and node.output.shape[-1] == value.shape[-1] - 1


class _Upward:
    """The walk from the softmax's operand to the product of queries and keys."""

    def __init__(self, free: ValueFree) -> None:
        self.free = free
        self.scale = 1.0
        self.softcap: float | None = None
        self.sinks: Value | None = None
        self.added = Added()
        self.lead: tuple[Dim, ...] = ()

    def run(self, value: Value) -> tuple[Value, Value]:
        while True:
            node = value.producer
            self.lead = max(self.lead, value.shape[:-2], key=len)
            if node is None:
                raise NotAttention("the logits are an input")
            if node.op.name == "matmul":
                return _operand(node, 0), _operand(node, 1)
            step = getattr(self, f"_{node.op.name}", None)
            if step is None:
                raise NotAttention(f"the logits pass through {node.op.name}")
            value = step(node)

    def _cast(self, node: Node) -> Value:
        return _operand(node, 0)

    def _reshape(self, node: Node) -> Value:
        x = _operand(node, 0)
        if x.shape[-2:] != node.output.shape[-2:]:
            raise NotAttention("a reshape of the logits changes their last axes")
        return x

    def _maximum(self, node: Node) -> Value:
        """A bound so low that only hidden keys reach it."""
        for x, bound in (node.inputs, node.inputs[::-1]):
            if hides(bound) and x is not None:
                return x
        raise NotAttention("the logits are bounded from below")

    def _sub(self, node: Node) -> Value:
        x, top = _operand(node, 0), _operand(node, 1)
        reduction = top.producer
        if reduction is not None and reduction.op.name == "reshape":
            reduction = _operand(reduction, 0).producer
        if reduction is None or reduction.op.name != "amax" or _operand(reduction, 0) is not x:
            raise NotAttention("something else than the row's maximum is subtracted from the logits")
        return x

    def _concat(self, node: Node) -> Value:
        if len(node.inputs) != 2 or self.sinks is not None or self.added.masks or self.added.biases:
            raise NotAttention("the logits are joined with something that is no column of sinks")
        x, column = _operand(node, 0), _operand(node, 1)
        if node.attr("axis") not in (-1, len(x.shape) - 1) or column.shape[-1] != 1:
            raise NotAttention("the logits are joined with something that is no column of sinks")
        self.sinks = _per_head(column)
        return x

    def _add(self, node: Node) -> Value:
        a, b = _operand(node, 0), _operand(node, 1)
        x, other = (a, b) if _is_logits(a, node.output) else (b, a)
        if _is_logits(b, node.output) and _is_logits(a, node.output):
            x, other = (a, b) if b in self.free or not _has_product(b) else (b, a)
        self._note(take_apart(other, self.free), node)
        return x

    def _where(self, node: Node) -> Value:
        condition, yes, no = (_operand(node, i) for i in range(3))
        if not (hides(yes) or hides(no)):
            raise NotAttention("the logits are replaced by something that does not hide them")
        self._note(Added([Condition(condition, inverted=hides(yes))]), node)
        return yes if hides(no) else no

    def _note(self, added: Added, node: Node) -> None:
        if self.softcap is not None or self.scale <= 0 or (self.scale != 1.0 and added.biases):
            raise NotAttention("something is added to the logits before they are scaled or capped")
        self.added.extend(added, node.output.shape[:-2])

    def _mul(self, node: Node) -> Value:
        a, b = _operand(node, 0), _operand(node, 1)
        x, number = (a, scalar(b)) if scalar(b) is not None else (b, scalar(a))
        if number is None:
            raise NotAttention("the logits are scaled by something that is no number")
        if x.producer is not None and x.producer.op.name == "tanh" and self.softcap is None:
            if self.scale != 1.0:
                raise NotAttention("capped logits are scaled")
            self.softcap = self.scale = float(number)
            return _operand(x.producer, 0)
        self.scale *= float(number)
        return x

    def _div(self, node: Node) -> Value:
        number = scalar(_operand(node, 1))
        if number is None or number == 0:
            raise NotAttention("the logits are divided by something that is no number")
        self.scale /= float(number)
        return _operand(node, 0)


def _is_logits(value: Value, result: Value) -> bool:
    return value.shape == result.shape and value.dtype == result.dtype


def _has_product(value: Value) -> bool:
    """True where a short way up leads to a matrix product."""
    for _ in range(8):
        node = value.producer
        if node is None or not node.inputs or node.inputs[0] is None:
            return False
        if node.op.name == "matmul":
            return True
        value = node.inputs[0]
    return False


def _per_head(column: Value) -> Value:
    """What a column [B, H, S, 1] repeats: the values before they were expanded."""
    value = column
    while value.producer is not None and value.producer.op.name in ("expand", "reshape", "cast"):
        operand = _operand(value.producer, 0)
        if value.producer.op.name == "cast" and len(operand.shape) < 2:
            break
        value = operand
    heads = column.shape[1] if len(column.shape) == 4 else None
    if value.shape != (heads,):
        raise NotAttention(f"the column beside the logits is {value.type}, not one number per head")
    return value
