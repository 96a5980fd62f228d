"""merge-linears: products of one input become one product with all rows, as those of Q, K and V.

Before:

    %q = irx.linear(%x, $q) : f32[B, S, 576]
    %k = irx.linear(%x, $k) : f32[B, S, 192]
    %v = irx.linear(%x, $v) : f32[B, S, 192]

After:

    weight $q_k_v : f32[960, 576] = irx.concat($q, $k, $v) {axis=0}
    %all = irx.linear(%x, $q_k_v) : f32[B, S, 960]
    %q = irx.slice(%all) {axis=2, start=0, stop=576} : f32[B, S, 576]
    %k = irx.slice(%all) {axis=2, start=576, stop=768} : f32[B, S, 192]
    %v = irx.slice(%all) {axis=2, start=768, stop=960} : f32[B, S, 192]

Rows of packed weights are joined as they are. One large product reads its input once and fills all threads. Products
are merged where they belong to one module and only views (reshapes, slices, permutations) read them: what works on
their elements, as the activation behind gate and up, belongs into their own region. All must be stored alike; a missing
bias is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irx.ir.graph import Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.passes.fuse.projections import Folder, Projection, Rewrites, joined_name, projection
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.rewrite.check import Check
from irx.rewrite.recorder import Recorder

_VIEWS = frozenset({"reshape", "slice", "permute"})


@dataclass(frozen=True)
class MergeLinears(Pass):
    """Merge the products that one module computes of one input."""

    name = "merge-linears"
    stage = Stage.FUSE
    effect = Effect.ROUNDING

    def run(self, program: Program, ctx: Context) -> Report:
        rewrites = Rewrites(Check(ctx.evaluate, program.sizes), ctx.fuel, Folder(program.weights))
        for graph in program.graphs.values():
            for group in _groups(graph):
                for alike in _alike(graph, group, rewrites):
                    _merge(graph, alike, rewrites, self.name)
        return rewrites.report


def _groups(graph: Graph) -> list[list[Projection]]:
    """The projections of each input in each module, where there are several."""
    groups: dict[tuple[Value, str], list[Projection]] = {}
    for node in graph.nodes:
        found = projection(node)
        if found is not None and _is_only_viewed(graph, node):
            groups.setdefault((found.x, _module(node)), []).append(found)
    return [group for group in groups.values() if len(group) > 1]


def _is_only_viewed(graph: Graph, node: Node) -> bool:
    users = graph.users(node.output)
    return bool(users) and not graph.is_output(node.output) and all(user.op.name in _VIEWS for user in users)


def _module(node: Node) -> str:
    return node.loc.module.rpartition(".")[0]


def _alike(graph: Graph, group: Sequence[Projection], rewrites: Rewrites) -> list[list[Projection]]:
    """The parts of a group that are stored alike; a product that is stored like no other is a near miss."""
    forms: dict[tuple[str, str], list[Projection]] = {}
    for one in group:
        forms.setdefault(one.form, []).append(one)
    most = max(forms.values(), key=len)
    for alone in (part[0] for part in forms.values() if len(part) == 1 and part is not most):
        weight, other = alone.weight, most[0].weight
        rewrites.miss(graph, alone.node, f"${weight.name} is {weight.dtype}, but ${other.name} is {other.dtype}")
    return [part for part in forms.values() if len(part) > 1]


def _merge(graph: Graph, parts: Sequence[Projection], rewrites: Rewrites, by: str) -> None:
    first = parts[0]
    b = Recorder(graph, first.node, by)
    b.loc = Loc(_module(first.node), first.node.loc.line, b.loc.passes)
    rows = b("concat", *(one.weight for one in parts), axis=0)
    names = {rows: joined_name([one.weight.name for one in parts])}
    bias = _bias(b, parts, names)
    merged = b("linear", first.x, first.matrix(b, rows), *([] if bias is None else [bias]))
    axis, start, slices = len(merged.shape) - 1, 0, []
    for one in parts:
        slices.append(b("slice", merged, axis=axis, start=start, stop=start + one.width))
        start += one.width
    leaves = [value for one in parts for value in one.leaves]
    rewrites.replace(b, [one.node.output for one in parts], slices, leaves, names, f"{len(parts)} linears")


def _bias(b: Recorder, parts: Sequence[Projection], names: dict[Value, str]) -> Value | None:
    """All biases behind each other, zeros for those that are missing; None where all are."""
    given = [one.bias for one in parts if one.bias is not None]
    if not given:
        return None
    biases: list[Value] = []
    for one in parts:
        biases.append(one.bias or b("full", shape=(one.width,), value=0.0, dtype=given[0].dtype))
        names[biases[-1]] = f"zeros.{one.width}"
    made = b("concat", *biases, axis=0)
    names[made] = joined_name([one.name for one in given])
    return made
