"""Outlining: what a fusion takes and gives, when bodies are shared, and which sets of nodes cannot be one node."""

from __future__ import annotations

import pytest

import irx.ops  # noqa: F401
from irx.ir.equal import difference
from irx.ir.graph import Graph, Node
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.regions import expanded, inline, regions
from irx.ir.verify import verify
from irx.rewrite.outline import NotConvex, Outliner, convex

KV = "kv<heads=1, dim=4, dense, f32, cap=T>"


def program(text: str) -> Program:
    made = parse(text)
    verify(made)
    return made


def named(graph: Graph, *names: str) -> set[Node]:
    return {node for node in graph.nodes if node.outputs[0].name in names}


def outline(made: Program, *names: str) -> Node:
    graph = next(iter(made.graphs.values()))
    fusion = Outliner(made, "test").outline(graph, named(graph, *names), "r")
    verify(made)
    return fusion


CHAIN = """graph @f(%x: f32[B, 4], %y: f32[B, 4]) -> (c: f32[B, 4], d: f32[B, 4]) {
  %a = irx.neg(%x)
  %b = irx.exp(%y)
  %c = irx.add(%a, %b)
  %d = irx.abs(%a)
  return %c, %d
}"""


def test_operands_and_results_in_order() -> None:
    made = program(CHAIN)
    before = made.clone()
    fusion = outline(made, "a", "c")
    graph = made.graphs["f"]
    assert [value.name for value in fusion.inputs if value is not None] == ["x", "b"]
    assert [value.name for value in fusion.outputs] == ["a", "c"]
    assert [node.op.name for node in graph.nodes] == ["exp", "fusion", "abs"]
    assert str(fusion.loc.passes) == "('test',)"
    inline(graph, fusion)
    assert difference(made, before) is None


def test_what_depends_on_the_region_comes_after_it() -> None:
    made = program("""graph @f(%x: f32[4], %y: f32[4]) -> (d: f32[4], e: f32[4]) {
      %a = irx.neg(%x)
      %b = irx.exp(%a)
      %c = irx.abs(%b)
      %d = irx.add(%c, 1.0)
      %e = irx.mul(%a, %y)
      return %d, %e
    }""")
    outline(made, "a", "e")
    assert [node.op.name for node in made.graphs["f"].nodes] == ["fusion", "exp", "abs", "add"]


def test_equal_sets_share_a_body_and_fusions_are_taken_apart() -> None:
    made = program("""weight $v : f32[4]
    weight $w : f32[4]
    graph @f(%x: f32[B, 4]) -> (y: f32[B, 4]) {
      %a = irx.mul(%x, $v)
      %b = irx.neg(%a)
      %c = irx.mul(%b, $w)
      %d = irx.neg(%c)
      return %d
    }""")
    graph = made.graphs["f"]
    outliner = Outliner(made, "test")
    first = outliner.outline(graph, named(graph, "a", "b"), "r")
    second = outliner.outline(graph, named(graph, "c", "d"), "r")
    assert first.attrs["body"] is second.attrs["body"]
    whole = outliner.outline(graph, {first, second}, "r")
    verify(made)
    assert [body.name for body in regions(made)] == ["r.1"]
    assert [node.op.name for node in expanded(graph).nodes] == ["mul", "neg", "mul", "neg"]
    assert [str(value) for value in whole.inputs[1:]] == ["$v: f32[4]", "$w: f32[4]"]


def test_a_set_with_something_between_is_refused() -> None:
    made = program("""graph @f(%x: f32[4]) -> (c: f32[4]) {
      %a = irx.neg(%x)
      %b = irx.exp(%a)
      %c = irx.add(%a, %b)
      return %c
    }""")
    before = made.clone()
    graph = made.graphs["f"]
    assert not convex(graph, named(graph, "a", "c"))
    with pytest.raises(NotConvex, match="%c depends on the region by a way outside"):
        Outliner(made, "test").outline(graph, named(graph, "a", "c"), "r")
    assert difference(made, before) is None


TOKEN = "f32[B, 1, 1, 4]"
STATES = f"""graph @f(%q: {TOKEN}, %pos: i64[B, 1], %kv: {KV}) -> (u: {TOKEN}, t: {TOKEN}, kv: {KV}) {{
  %s = irx.kv_attention(%q, %kv, %pos) {{scale=1.0}}
  %next = irx.kv_append(%kv, %q, %q, %pos)
  %t = irx.exp(%q)
  %u = irx.mul(%s, %t)
  return %u, %t, %next
}}"""


def test_a_state_is_read_before_it_is_replaced() -> None:
    graph = program(STATES).graphs["f"]
    assert convex(graph, named(graph, "s", "next"))
    assert not convex(graph, named(graph, "s", "u"))  # would read the state at the place of u
    made = program(STATES)
    outline(made, "s", "next")
    (body,) = regions(made)
    assert [node.op.name for node in body.nodes] == ["kv_attention", "kv_append"]
