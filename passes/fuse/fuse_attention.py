"""fuse-attention: what brings queries, keys and values into the form that attention takes, and its result out of it.

Before:

    %q = irx.slice(%qkv) {axis=2, start=0, stop=576} : f32[B, S, 576]
    %q4 = irx.reshape(%q) {shape=[B, S, 9, 64]} : f32[B, S, 9, 64]
    %qh = irx.permute(%q4) {order=[0, 2, 1, 3]} : f32[B, 9, S, 64]
    %qr = irx.rope(%qh, %positions, $inv_freq) : f32[B, 9, S, 64]
    ...
    %next = irx.kv_append(%kv, %kr, %vh, %pos) : kv<heads=3, dim=64, dense, f32>
    %a = irx.kv_attention(%qr, %next, %pos) {scale=0.125} : f32[B, 9, S, 64]
    %t = irx.permute(%a) {order=[0, 2, 1, 3]} : f32[B, S, 9, 64]
    %y = irx.reshape(%t) {shape=[B, S, 576]} : f32[B, S, 576]

After:

    %next, %y = irx.fusion(%kv, %qkv, %pos, %positions, $inv_freq) {body=@attention.0} : (kv<...>, f32[B, S, 576])

The region begins at the products, whose rows it reads as they are, and ends with rows again. Cuts, reshapes,
permutations, rotations, norms over one head, factors and the append to the cache belong to it where nothing else reads
them. Positions and masks, which all layers share, come from outside.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.dims import Dim
from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.program import Program
from irx.passes.fuse.bookkeeping import Grouping
from irx.passes.fuse.nodes import only_reader
from irx.pipeline.base import Context, Effect, Pass, Report, Stage

_ANCHORS = {"attention": 3, "kv_attention": 2}  # with the number of operands to look behind: q, k, v; q and the state
_VIEWS = frozenset({"slice", "reshape", "permute", "expand"})
_FORMING = _VIEWS | {"rope", "kv_append", "concat", "pad", "cast"}
_NORMS = frozenset({"rms_norm", "layer_norm"})
_OPERANDS = {"rope": 1, "rms_norm": 1, "layer_norm": 1, "kv_append": 3}  # those that are looked behind, all unless said


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Put what stands around attention into its region."""

    name = "fuse-attention"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        grouping = Grouping(program, self.name, ctx.fuel)
        for graph in program.graphs.values():
            for node in [node for node in graph.nodes if node.op.name in _ANCHORS]:
                _fuse(graph, node, grouping)
        return grouping.report


def _fuse(graph: Graph, node: Node, grouping: Grouping) -> None:
    query = node.inputs[0]
    assert query is not None
    found = _before(graph, node, query.shape[-1])
    found |= set(_after(graph, node))
    if len(found) > 1:
        grouping.group(graph, found)


def _before(graph: Graph, anchor: Node, head: Dim) -> set[Node]:
    """The anchor and what forms its operands, as far as only the region reads it."""
    found, growing = {anchor}, True
    while growing:
        near = {value.producer for node in found for value in _looked_behind(node) if value is not None}
        joining = {n for n in near - found if n is not None and _forms(n, head) and _is_inside(graph, n, found)}
        found |= joining
        growing = bool(joining)
    return found


def _looked_behind(node: Node) -> tuple[Value | None, ...]:
    return node.inputs[: _ANCHORS.get(node.op.name, _OPERANDS.get(node.op.name))]


def _is_inside(graph: Graph, node: Node, found: set[Node]) -> bool:
    """True when only the region reads what the node makes, and next states, which anybody may return."""
    if node.op.name == "kv_append":
        return all(user in found for user in graph.users(node.output))
    return not graph.is_output(node.output) and all(user in found for user in graph.users(node.output))


def _forms(node: Node, head: Dim) -> bool:
    if node.op.name in _NORMS:
        return node.output.shape[-1:] == (head,)
    if node.op.name == "mul":
        return any(isinstance(value, Literal) for value in node.inputs)
    return node.op.name in _FORMING


def _after(graph: Graph, anchor: Node) -> list[Node]:
    """The permutation and reshapes that make rows of the result."""
    found: list[Node] = []
    value: Value = anchor.output
    while (reader := only_reader(graph, value)) is not None and reader.op.name in ("permute", "reshape", "cast"):
        found.append(reader)
        value = reader.output
    return found
