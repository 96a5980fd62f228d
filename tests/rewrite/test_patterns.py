"""What patterns fit, and what a failed attempt says."""

from __future__ import annotations

import pytest

from irx.errors import UnknownOp
from irx.ir.graph import Graph, Value
from irx.ir.parser import parse
from irx.rewrite.match import Match, Trace
from irx.rewrite.patterns import (
    Pattern,
    any_value,
    constant,
    literal,
    maybe,
    named,
    number,
    one_of,
    op,
    optional,
    product,
    through,
)

X, Y = any_value("x"), any_value("y")


def graph(body: str, result: str = "%y", head: str = "%x: f32[B, 8], %z: f32[B, 8]") -> Graph:
    """A graph of these lines, in which %y is the result unless said otherwise."""
    lines = "\n".join(body.strip().splitlines())
    weights = "weight $w : f32[8]\nweight $m : f32[8, 8]\nweight $q : q4_1[4, 32]\n"
    text = f"{weights}graph @forward({head}) -> (out: f32[B, 8]) {{\n{lines}\nreturn {result}\n}}"
    return parse(text).graphs["forward"]


def first(pattern: Pattern, graph: Graph, value: Value | None = None) -> Match | None:
    return next(pattern.matches(graph, value or graph.outputs[0]), None)


def reason(pattern: Pattern, graph: Graph) -> str:
    trace = Trace()
    assert next(pattern.match(graph.outputs[0], Match(graph, trace)), None) is None
    return trace.reason


def test_operands_are_captured() -> None:
    g = graph("%y = irx.sub(%x, %z)")
    match = first(op("sub", X, Y), g)
    assert match is not None
    assert (match["x"], match["y"]) == tuple(g.inputs)
    assert match.root is g.outputs[0].producer
    assert match.leaves == tuple(g.inputs)


def test_commutative_operands_come_in_either_order() -> None:
    turned = op("add", op("tanh", X), Y)
    assert first(turned, graph("%t = irx.tanh(%x)\n%y = irx.add(%t, %z)")) is not None
    assert first(turned, graph("%t = irx.tanh(%x)\n%y = irx.add(%z, %t)")) is not None
    assert first(op("sub", op("tanh", X), Y), graph("%t = irx.tanh(%x)\n%y = irx.sub(%z, %t)")) is None


def test_every_way_is_found() -> None:
    g = graph("%y = irx.add(%x, %z)")
    ways = [match["x"].name for match in op("add", X, Y).matches(g, g.outputs[0])]
    assert ways == ["x", "z"]


def test_one_name_means_one_value() -> None:
    square = op("mul", X, X)
    assert first(square, graph("%y = irx.mul(%x, %x)")) is not None
    assert first(square, graph("%y = irx.mul(%x, %z)")) is None


def test_equal_numbers_are_one_value() -> None:
    twice = op("add", op("mul", X, number("n")), number("n"))
    assert first(twice, graph("%t = irx.mul(%x, 2.0)\n%y = irx.add(%t, 2.0)")) is not None
    assert first(twice, graph("%t = irx.mul(%x, 2.0)\n%y = irx.add(%t, 3.0)")) is None


def test_literals() -> None:
    g = graph("%y = irx.mul(%x, 0.5)")
    match = first(op("mul", X, number("half")), g)
    assert match is not None
    assert match.number("half") == 0.5
    assert match.leaves == (g.inputs[0],)
    assert first(op("mul", X, literal(0.5)), g) is not None
    assert first(op("mul", X, literal(0.51, tolerance=0.1)), g) is not None
    assert first(op("mul", X, literal(0.51)), g) is None
    full = graph('%h = irx.full() {shape=[], value=0.5, dtype="f32"}\n%y = irx.mul(%x, %h)')
    assert first(op("mul", X, literal(0.5)), full) is not None
    assert first(op("add", X, number("n")), graph("%y = irx.add(%x, %z)")) is None
    assert first(op("add", X, number("n")), graph("%y = irx.add(%x, B)", head="%x: f32[B, 8]")) is None


def test_constants() -> None:
    scaled = op("mul", X, constant("w"))
    assert first(scaled, graph("%y = irx.mul(%x, $w)")) is not None
    assert first(scaled, graph("%v = irx.add($w, 1.0)\n%y = irx.mul(%x, %v)")) is not None
    assert first(scaled, graph("%y = irx.mul(%x, 2.0)")) is None
    assert first(scaled, graph("%y = irx.mul(%x, %z)")) is None
    sized = '%o = irx.full() {shape=[B, 8], value=1.0, dtype="f32"}\n%v = irx.mul(%o, $w)\n%y = irx.mul(%z, %v)'
    assert first(scaled, graph(sized)) is None


def test_operands_left_out() -> None:
    bare = op("linear", X, constant("w"))
    biased = op("linear", X, constant("w"), optional("b"))
    without = graph("%y = irx.linear(%x, $m)")
    with_bias = graph("%y = irx.linear(%x, $m, $w)")
    assert first(bare, without) is not None
    assert first(bare, with_bias) is None
    match = first(biased, without)
    assert match is not None
    assert match.get("b") is None
    match = first(biased, with_bias)
    assert match is not None
    assert match["b"].name == "w"


def test_maybe_and_through() -> None:
    plain = graph("%y = irx.tanh(%x)")
    cast = graph('%t = irx.tanh(%x)\n%c = irx.cast(%t) {dtype="f64"}\n%y = irx.cast(%c) {dtype="f32"}', "%y")
    tanh = op("tanh", X)
    assert first(maybe("cast", tanh), plain) is not None
    assert first(maybe("cast", tanh), cast) is None
    assert first(through(tanh), cast) is not None
    assert first(through(tanh, where=lambda value: "f32 only" if value.dtype == "f32" else None), cast) is None
    shaped = graph("%t = irx.tanh(%x)\n%r = irx.reshape(%t) {shape=[8*B]}\n%y = irx.reshape(%r) {shape=[B, 8]}")
    match = first(through(tanh), shaped)
    assert match is not None
    assert len(match.nodes) == 3


def test_through_prefers_the_value_farthest_away() -> None:
    g = graph("%r = irx.reshape(%x) {shape=[8*B]}\n%y = irx.reshape(%r) {shape=[B, 8]}")
    ways = [match["x"].name for match in through(X).matches(g, g.outputs[0])]
    assert ways == ["x", "r", "y"]


def test_one_of_and_named() -> None:
    either = named("result", one_of(op("tanh", X), op("sigmoid", X)))
    for name in ("tanh", "sigmoid"):
        g = graph(f"%y = irx.{name}(%x)")
        match = first(either, g)
        assert match is not None
        assert match["result"] is g.outputs[0]
    assert either.roots == {"tanh", "sigmoid"}
    assert one_of(op("tanh", X), X).roots is None


@pytest.mark.parametrize(
    "body",
    [
        "%a = irx.mul(%x, %t)\n%y = irx.mul(%a, 0.5)",
        "%a = irx.mul(%t, 0.5)\n%y = irx.mul(%x, %a)",
        "%a = irx.mul(0.5, %x)\n%y = irx.mul(%t, %a)",
    ],
)
def test_products_in_any_order_and_association(body: str) -> None:
    pattern = product(X, op("tanh", X), literal(0.5))
    assert first(pattern, graph(f"%t = irx.tanh(%x)\n{body}")) is not None
    assert first(pattern, graph(f"%t = irx.tanh(%z)\n{body}")) is None


def test_conditions_on_nodes_and_values() -> None:
    g = graph("%s = irx.slice(%x) {axis=1, step=2}\n%y = irx.tanh(%s)", head="%x: f32[B, 16]")
    assert first(op("tanh", op("slice", X, attrs={"step": 2})), g) is not None
    assert first(op("tanh", op("slice", X, attrs={"step": 1})), g) is None
    assert first(op("tanh", op("slice", X, where=lambda node: None)), g) is not None
    assert first(op("tanh", op("slice", X, where=lambda node: "no")), g) is None
    assert first(op("tanh", any_value("v", lambda value: "no" if value.dtype == "f32" else None)), g) is None


def test_the_deepest_failure_is_told_once_a_key_was_found() -> None:
    g = graph("%e = irx.exp(%x)\n%a = irx.add(%e, 2.0)\n%y = irx.reciprocal(%a)")
    inner = op("add", op("exp", X, key=True), literal(1))
    assert reason(op("reciprocal", inner), g) == "2.0 is not 1"
    assert reason(op("reciprocal", op("add", op("exp", X), literal(1))), g) == ""
    assert reason(op("tanh", inner), g) == ""
    step = op("slice", X, attrs={"step": 2}, key=True)
    assert reason(step, graph("%y = irx.slice(%x) {axis=1}")) == "slice: step is 1, not 2"
    bare = op("linear", X, constant("w"), key=True)
    assert reason(bare, graph("%y = irx.linear(%x, $m, $w)")) == "linear: more than 2 operands"


def test_users_outside() -> None:
    g = graph("%t = irx.tanh(%x)\n%s = irx.exp(%t)\n%y = irx.add(%s, %t)")
    match = first(op("add", op("exp", op("tanh", X)), op("tanh", X)), g)
    assert match is not None
    assert match.outside_user() is None
    match = first(op("exp", op("tanh", X)), g, g.outputs[0].producer.inputs[0])  # type: ignore[union-attr]
    assert match is not None
    outside = match.outside_user()
    assert outside is not None
    assert outside.op.name == "tanh"
    match = first(op("exp", op("tanh", X, shared=True)), g, g.outputs[0].producer.inputs[0])  # type: ignore[union-attr]
    assert match is not None
    assert match.outside_user() is None


def test_patterns_name_declared_ops() -> None:
    with pytest.raises(UnknownOp, match="rsqrt"):
        op("rsqtr", X)
