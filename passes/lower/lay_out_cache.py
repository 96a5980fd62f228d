"""lay-out-cache: keys and values lie as the processor reads them.

Before:

    graph @decode(%ids: i64[B, 1], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, dense, f32>) -> (...) {
      ...
      %kv = irx.kv_append(%kv0, %k, %v, %pos) : kv<heads=2, dim=64, dense, f32>
      %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125} : f32[B, 8, 1, 64]

After:

    graph @decode(%ids: i64[B, 1], %pos: i64[B, 1], %kv0: kv<heads=2, dim=64, blocked, f32>) -> (...) {
      ...
      %kv = irx.kv_append(%kv0, %k, %v, %pos) : kv<heads=2, dim=64, blocked, f32>
      %y = irx.kv_attention(%q, %kv, %pos) {scale=0.125} : f32[B, 8, 1, 64]

On a CPU a query is compared with 16 tokens at once where their keys lie beside each other, channel by channel. A state
has one layout in all graphs. States whose slots are gathered stay dense, as do those that are stored in other
dtypes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from irx.ir.codes import tailed
from irx.ir.graph import Graph, Loc, Node, Value
from irx.ir.program import Program
from irx.ir.regions import body_of
from irx.ir.types import KVType
from irx.passes.cache.versions import given_as, states_of, versions
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage

STORAGES = ("f32", "bf16", "i8", "token8", "token4")
TILE = 64  # slots that kernels read at once
USERS = ("kv_append", "kv_attention", "kv_keep")


@dataclass(frozen=True)
class LayOutCache(Pass):
    """Store keys in blocks of 16 tokens where a CPU attends to them."""

    name = "lay-out-cache"
    stage = Stage.LOWER
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        if ctx.device.kind != "cpu":
            return Report(note=f"blocks are for CPUs, and {ctx.device.name} is none")
        if "blocked" not in ctx.layouts:
            return Report(note="what runs the program here reads dense caches")
        states = list(dict.fromkeys(value.name for graph in program.graphs.values() for value in states_of(graph)))
        if not states:
            return Report(note="there is no cache")
        report, change = Report(), _Change(program)
        for name in states:
            found = [(g, v) for g in program.graphs.values() for v in states_of(g) if v.name == name]
            if all(isinstance(v.type, KVType) and v.type.layout == "blocked" for _, v in found):
                continue
            miss = next((miss for graph, value in found if (miss := _obstacle(graph, value)) is not None), None)
            if miss is not None:
                report.near_misses.append(miss)
            elif ctx.fuel.take():
                report.sites.append(change.state(name, found))
        change.bodies()
        return report


def _obstacle(graph: Graph, state: Value) -> NearMiss | None:
    """The first reason why a state cannot be laid out in blocks."""
    kv = state.type
    assert isinstance(kv, KVType)
    place = next((node.loc for node in graph.users(state)), Loc())
    if kv.layout not in ("dense", "blocked"):
        return NearMiss(graph.name, place, f"%{state.name} has the layout {kv.layout}")
    if kv.storage not in STORAGES and tailed(kv.code) is None:
        return NearMiss(graph.name, place, f"no kernel reads blocks of {kv.storage}")
    if kv.page is not None and kv.page % TILE:
        return NearMiss(graph.name, place, f"pages of {kv.page} slots are no whole tiles of {TILE}")
    if kv.heads != kv.value_heads:
        return NearMiss(graph.name, place, f"{kv.heads} heads of keys, but {kv.value_heads} of values")
    for value in versions(graph, state):
        for node in graph.users(value):
            found = _odd_user(node, value)
            if found is not None:
                return NearMiss(graph.name, node.loc, f"{found.op.name} reads the slots of %{state.name}")
    return None


def _odd_user(node: Node, value: Value) -> Node | None:
    """The node, or the one in its body, that does more with a state than append and attend."""
    body = body_of(node)
    if body is None:
        return None if node.op.name in USERS else node
    inner = given_as(node, body, value)
    users = (user for own in inner for version in versions(body, own) for user in body.users(version))
    return next((user for user in users if user.op.name not in USERS), None)


@dataclass
class _Change:
    """Gives states their new type; the bodies of fusions, which other programs share, are copied once for all sites."""

    program: Program
    _made: dict[tuple[Graph, tuple[int, ...]], Graph] = field(default_factory=dict)
    _wanted: dict[Node, set[int]] = field(default_factory=dict)

    def state(self, name: str, found: list[tuple[Graph, Value]]) -> Site:
        """Change a state in all graphs."""
        places = []
        for graph, state in found:
            for value in list(versions(graph, state)):
                for node in graph.users(value):
                    places.append((graph.name, node.loc))
                    if body_of(node) is not None:
                        indices = {i for i, given in enumerate(node.inputs) if given is value}
                        self._wanted.setdefault(node, set()).update(indices)
                _block(value)
        graph_name, loc = places[0] if places else (found[0][0].name, Loc())
        return Site(graph_name, loc, "cache in blocks of 16 tokens")

    def bodies(self) -> None:
        """Give fusions bodies that read the new types."""
        for node, indices in self._wanted.items():
            body = body_of(node)
            assert body is not None
            key = (body, tuple(sorted(indices)))
            if key not in self._made:
                self._made[key] = _blocked_body(body, key[1])
            node.attrs["body"] = self._made[key]


def _blocked_body(body: Graph, indices: tuple[int, ...]) -> Graph:
    copy = body.clone()
    for index in indices:
        for value in list(versions(copy, copy.inputs[index])):
            _block(value)
    return copy


def _block(value: Value) -> None:
    """No op's result depends on the layout but through the state's own type, so nodes stay as they are."""
    assert isinstance(value.type, KVType)
    value.type = replace(value.type, layout="blocked")
