"""What the fuse passes ask of nodes, whether they stand alone or are regions already."""

from __future__ import annotations

from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.regions import body_of

ANCHORS = ("attention", "kv_attention", "linear", "embedding", "moe", "conv1d", "conv2d")
"""Ops that do the work of a region: it is of the kind of the first of these that it holds."""

_KINDS = {"attention": "attention", "kv_attention": "attention", "conv1d": "conv", "conv2d": "conv"}


def inner_nodes(node: Node) -> list[Node]:
    """The nodes of a region's body; the node itself where it is none."""
    body = body_of(node)
    return [node] if body is None else list(body.nodes)


def kind(node: Node | None) -> str:
    """What a region is built around: attention, linear, embedding, moe, conv; empty for anything else."""
    if node is None:
        return ""
    names = {inner.op.name for inner in inner_nodes(node)}
    anchor = next((name for name in ANCHORS if name in names), "")
    return _KINDS.get(anchor, anchor)


def only_reader(graph: Graph, value: Value) -> Node | None:
    """The node that reads `value`, where it is the only one and the graph does not return the value."""
    users = graph.users(value)
    return users[0] if len(users) == 1 and not graph.is_output(value) else None


def operands(node: Node) -> list[Value]:
    """The operands of a node that are there and no literals."""
    return [value for value in node.inputs if value is not None and not isinstance(value, Literal)]


def is_last(graph: Graph, node: Node, other: Node) -> bool:
    """True where `node` stands behind `other`."""
    return graph.span([node, other])[-1] is node


_TITLES = {"rms_norm": "norm", "layer_norm": "norm", "kv_attention": "attention", "kv_append": ""}
_TITLES |= dict.fromkeys(("dequantize", "reshape", "permute", "expand", "slice", "cast"), "")
_LONGEST = 4


def title(nodes: list[Node]) -> str:
    """A name for a region: what its nodes do, in order. `norm-linear-swiglu`, `attention`, `linear-add`."""
    names = [inner.op.name for node in nodes for inner in inner_nodes(node)]
    if "attention" in names or "kv_attention" in names:
        return "attention"
    words = [word for word in (_TITLES.get(name, name) for name in names) if word]
    kept = [word for index, word in enumerate(words) if index == 0 or words[index - 1] != word]
    return "-".join(kept[:_LONGEST]) or "views"


def product_input(node: Node) -> Value | None:
    """The x of a product that reads it as it comes: of a linear, or of the first in a region without a prologue."""
    body = body_of(node)
    if body is None:
        return node.inputs[0] if node.op.name == "linear" else None
    linear = next((inner for inner in body.nodes if inner.op.name == "linear"), None)
    if linear is None or linear.inputs[0] not in body.inputs:
        return None
    return node.inputs[body.inputs.index(linear.inputs[0])]


PROLOGUES = ("rms_norm", "layer_norm", "cast", "round_activations")
"""What a product may do to its rows before it multiplies them."""


def reads_rows(reader: Node, value: Value) -> bool:
    """True for a product that takes its rows from `value`, maybe through a prologue, and reads it for nothing else."""
    body = body_of(reader)
    if body is None:
        return reader.op.name == "linear" and [v is value for v in reader.inputs[:2]] == [True, False]
    pending = [inner for inner, outer in zip(body.inputs, reader.inputs, strict=True) if outer is value]
    found = False
    while pending:
        row = pending.pop()
        for user in body.users(row):
            if user.inputs[0] is not row or user.op.name not in ("linear", *PROLOGUES):
                return False
            found = found or user.op.name == "linear"
            pending += user.outputs if user.op.name in PROLOGUES else ()
    return found


def columns(product: Node) -> int:
    """How many columns the products of a region have together; 0 where that is not known."""
    widths = [n.output.shape[-1] for n in inner_nodes(product) if n.op.name == "linear"]
    return sum(width for width in widths if isinstance(width, int))
