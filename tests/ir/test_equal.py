"""Structural comparison: what does not count, what does, and how the first difference reads."""

from __future__ import annotations

import pytest

import irx.ops  # noqa: F401
from irx.ir.equal import difference, exact_difference, graph_difference, same_graph, same_program
from irx.ir.parser import parse

TEXT = """size B in [1, 4]
weight $w : f32[4]
weight $v : f32[8] = irx.concat($w, $w) {axis=0}
graph @f(%x: f32[B, 4], %i: i64[B]) -> (y: f32[B, 4], z: f32[8]) {
  %a = irx.add(%x, $w)
  %b = irx.mul(%x, 2.0)
  %c = irx.sub(%a, %b)  // m.n @ net.py:1
  %d = irx.gelu(%c)
  %e, %g = irx.topk(%d) {k=4, axis=1}
  %h = irx.neg(%x)
  return %e, $v
}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%a", "%other"),
        ("  // m.n @ net.py:1", ""),
        ("irx.gelu(%c)", 'irx.gelu(%c) {approximate="none"}'),
        ("$v", "$u"),
        ("  %a = irx.add(%x, $w)\n  %b = irx.mul(%x, 2.0)\n", "  %b = irx.mul(%x, 2.0)\n  %a = irx.add(%x, $w)\n"),
        ("  %h = irx.neg(%x)\n", "  %h = irx.neg(%a)\n"),
    ],
)
def test_what_does_not_count(old: str, new: str) -> None:
    assert old in TEXT
    first, second = parse(TEXT), parse(TEXT.replace(old, new))
    assert difference(first, second) is None
    assert same_program(first, second)
    assert same_graph(first.graphs["f"], first.graphs["f"].clone())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("irx.sub(%a, %b)", "irx.sub(%b, %a)", "operations differ: %a = irx.add"),
        ("irx.sub(%a, %b)", "irx.sub(%a, %a)", "operations differ: %b = irx.mul"),
        ("irx.mul(%x, 2.0)", "irx.mul(%x, 2)", "operands differ: 2.0"),
        ("irx.mul(%x, 2.0)", "irx.mul(2.0, %x)", "operands differ: %x"),
        ("irx.add(%x, $w)", "irx.add(%x, 1.0)", "operands differ: $w"),
        ("irx.gelu(%c)", 'irx.gelu(%c) {approximate="tanh"}', "attributes differ: %d = irx.gelu"),
        ("irx.gelu(%c)", "irx.silu(%c)", "operations differ: %d = irx.gelu"),
        ("$w) {axis=0}", "$w) {axis=-1}", "weights are made with other attributes"),
        ("  %h = irx.neg(%x)\n", "", "nodes without readers differ: {'irx.neg': 1} only in the first"),
        ("%i: i64[B]", "%j: i64[B]", "inputs differ"),
        ("%i: i64[B]", "%i: i32[B]", "inputs differ"),
        ("(y: ", "(yy: ", "results differ: y, z"),
        ("@f", "@g", "graph @f is only in the first"),
        ("%d = irx.gelu(%c)", "%d = irx.gelu(%a)", "operations differ: %c = irx.sub"),
    ],
)
def test_what_counts(old: str, new: str, message: str) -> None:
    assert old in TEXT
    found = difference(parse(TEXT), parse(TEXT.replace(old, new)))
    assert found is not None
    assert message in found
    assert difference(parse(TEXT.replace(old, new)), parse(TEXT)) is not None


def test_results_of_one_node_are_told_apart() -> None:
    text = "graph @f(%x: i64[4]) -> (y: i64[2]) { %a, %b = irx.topk(%x) {k=2, axis=0} return %a }"
    found = difference(parse(text), parse(text.replace("return %a", "return %b")))
    assert found is not None
    assert "another result is used: %a against %b" in found


def test_merged_nodes_differ_from_equal_ones() -> None:
    two = "graph @f(%x: f32[4]) -> (y: f32[4]) { %a = irx.neg(%x) %b = irx.neg(%x) %y = irx.add(%a, %b) return %y }"
    one = "graph @f(%x: f32[4]) -> (y: f32[4]) { %a = irx.neg(%x) %y = irx.add(%a, %a) return %y }"
    assert difference(parse(two), parse(one)) is not None
    assert difference(parse(one), parse(two)) is not None


def test_without_stores_derived_weights_are_compared_by_name() -> None:
    first, second = parse(TEXT), parse(TEXT.replace("$v", "$u"))
    assert graph_difference(first.graphs["f"], second.graphs["f"]) is not None


def test_exact_comparison_shows_the_lines() -> None:
    found = exact_difference(parse(TEXT), parse(TEXT.replace("net.py:1", "net.py:2")))
    assert found is not None
    assert found.count("net.py") == 2
    assert exact_difference(parse(TEXT), parse(TEXT)) is None
