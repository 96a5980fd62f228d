"""Fusions in the text form, under the verifier, compared, cloned, evaluated, costed and taken apart."""

from __future__ import annotations

import numpy as np
import pytest

import irx.ops  # noqa: F401
from irx.analysis.cost import graph_cost
from irx.analysis.inputs import random_inputs
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.errors import ParseError, VerifyError
from irx.ir.dims import symbol
from irx.ir.equal import difference, exact_difference, same_program
from irx.ir.graph import Graph, Loc, Node
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.regions import body_of, expanded, flat_nodes, regions
from irx.ir.verify import verify

KV = "kv<heads=1, dim=4, dense, f32, cap=T>"
TEXT = f"""program @p {{
  size B in [1, 4] hint 2
  size S in [1, 8] hint 3
  size T in [1, 8] hint 5
  weight $g : f32[32]
  weight $u : q8_0[16, 32]
  weight $w : q8_0[16, 32]
  region @norm-linear.0(%p0: f32[B, S, 32], %p1: f32[32], %p2: q8_0[16, 32]) -> (out: f32[B, S, 16]) {{
    %n = irx.rms_norm(%p0, %p1) {{eps=1e-05}} : f32[B, S, 32]  // layers.0.norm
    %d = irx.dequantize(%p2) : f32[16, 32]  // layers.0.up
    %out = irx.linear(%n, %d) : f32[B, S, 16]  // layers.0.up
    return %out
  }}
  region @attend.0(%p0: {KV}, %p1: f32[B, 1, 1, 4], %p2: i64[B, 1]) -> (kv: {KV}, out: f32[B, 1, 1, 4]) {{
    %kv = irx.kv_append(%p0, %p1, %p1, %p2) : {KV}
    %out = irx.kv_attention(%p1, %kv, %p2) {{scale=0.5}} : f32[B, 1, 1, 4]
    return %kv, %out
  }}
  graph @forward(%x: f32[B, S, 32]) -> (y: f32[B, S, 16]) {{
    %a = irx.fusion(%x, $g, $u) {{body=@norm-linear.0}} : f32[B, S, 16]  // layers.0.up
    %b = irx.fusion(%x, $g, $w) {{body=@norm-linear.0}} : f32[B, S, 16]  // layers.1.up
    %y = irx.mul(%a, %b) : f32[B, S, 16]
    return %y
  }}
  graph @step(%q: f32[B, 1, 1, 4], %pos: i64[B, 1], %kv0: {KV}) -> (out: f32[B, 1, 1, 4], kv0: {KV}) {{
    %kv1, %out = irx.fusion(%kv0, %q, %pos) {{body=@attend.0}} : ({KV}, f32[B, 1, 1, 4])
    return %out, %kv1
  }}
}}
"""


def program() -> Program:
    return parse(TEXT)


def fusions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if body_of(node) is not None]


def test_the_text_round_trips() -> None:
    made = program()
    verify(made)
    assert print_program(made) == TEXT
    assert exact_difference(made, parse(print_program(made))) is None
    first, second = fusions(made.graphs["forward"])
    assert body_of(first) is body_of(second)
    assert [body.name for body in regions(made)] == ["norm-linear.0", "attend.0"]


def test_bodies_can_have_any_name() -> None:
    made = parse(TEXT.replace("@norm-linear.0", '@"a region"'))
    assert exact_difference(made, parse(print_program(made))) is None


def test_clones_share_bodies_and_weights_are_operands() -> None:
    made = program()
    assert regions(made.clone()) == regions(made)
    assert [weight.name for weight in made.used_weights()] == ["g", "u", "w"]


def test_bodies_are_compared_by_what_they_compute() -> None:
    renamed = TEXT.replace("norm-linear.0", "other.7").replace("%p1", "%first").replace("%d", "%e")
    assert difference(program(), parse(renamed)) is None
    found = difference(program(), parse(TEXT.replace("eps=1e-05", "eps=1e-06")))
    assert found is not None
    assert "bodies differ" in found
    assert "1e-06" in found


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("{body=@norm-linear.0}", "{body=@norm-liner.0}", "did you mean '@norm-linear.0'"),
        ("(%x, $g, $u)", "(%x, $g)", "@norm-linear.0 takes 3 operands, got 2"),
        ("(%x, $g, $u)", "(%x, $u, $g)", r"takes f32\[32\] as %p1, got q8_0\[16, 32\]"),
        ("(%n, %d)", "(%n, $w)", r"unknown weight \$w"),
        ("@attend.0", "@norm-linear.0", "is defined twice"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(ParseError, match=reason):
        parse(TEXT.replace(old, new, 1))


def broken_name(made: Program) -> None:
    regions(made)[1].name = "norm-linear.0"


def nested(made: Program) -> None:
    body, small = regions(made)[1], Graph("small.0")
    small.set_outputs({"y": small.add("neg", [small.add_input("x", body.inputs[1].type)]).output})
    body.add("fusion", [body.inputs[1]], {"body": small})


def reads_weight(made: Program) -> None:
    body = regions(made)[0]
    body.add("neg", [made.weights["g"]])


def reads_replaced(made: Program) -> None:
    graph = made.graphs["step"]
    q, pos, kv = graph.inputs
    graph.add("kv_attention", [q, kv, pos], {"scale": 1.0})


@pytest.mark.parametrize(("damage", "rule"), [(broken_name, 13), (nested, 13), (reads_weight, 13), (reads_replaced, 9)])
def test_the_verifier_looks_into_bodies(damage: object, rule: int) -> None:
    made = program()
    assert callable(damage)
    damage(made)
    with pytest.raises(VerifyError) as error:
        verify(made)
    assert error.value.rule == rule


def test_sizes_of_a_body_must_be_known_to_the_graph() -> None:
    text = """program @p {
      size B in [1, 4]
      size S in [1, 4]
      region @f.0(%p0: f32[B]) -> (s: i64[S]) {
        %s = irx.arange() {stop=S}
        return %s
      }
      graph @forward(%x: f32[B]) -> (y: i64[4]) {
        %s = irx.fusion(%x) {body=@f.0}
        %y = irx.arange() {stop=4}
        return %y
      }
    }"""
    with pytest.raises(VerifyError) as error:
        verify(parse(text))
    assert error.value.rule == 6


def test_the_oracle_evaluates_bodies() -> None:
    made = program()
    bind_random_weights(made.weights)
    sizes = {"B": 2, "S": 3, "T": 5}
    for graph in made.graphs.values():
        inputs = random_inputs(graph, sizes)
        results = evaluate(graph, inputs, sizes, made.weights)
        expected = evaluate(expanded(graph), inputs, sizes, made.weights)
        for result, wanted, kind in zip(results, expected, graph.outputs, strict=True):
            array, other = (result.k, wanted.k) if "kv" in str(kind.type) else (result, wanted)
            np.testing.assert_array_equal(array, other)


def test_expanded_graphs_are_plain_and_keep_places() -> None:
    made = program()
    plain = made.clone()
    plain.graphs = {name: expanded(graph) for name, graph in made.graphs.items()}
    verify(plain)
    assert not regions(plain)
    assert not same_program(made, plain)
    nodes = list(plain.graphs["forward"].nodes)
    assert [node.op.name for node in nodes] == [node.op.name for node in flat_nodes(made.graphs["forward"])]
    assert [node.loc for node in nodes[:6:3]] == [Loc("layers.0.norm"), Loc("layers.1.norm")]


def test_a_fusion_moves_what_goes_in_and_comes_out() -> None:
    B, S, T = symbol("B"), symbol("S"), symbol("T")
    made = program()
    rows, packed = B * S * 4, 16 * 34
    cost = graph_cost(made.graphs["forward"])
    assert cost.bytes == 2 * (rows * 32 + 32 * 4 + packed + rows * 16) + 3 * rows * 16
    assert cost.flops == graph_cost(expanded(made.graphs["forward"])).flops
    step = graph_cost(made.graphs["step"])
    tokens, whole = 2 * B * 4 * 4, 2 * B * T * 4 * 4
    assert step.bytes == 2 * B * 4 * 4 + B * 8 + tokens + whole
