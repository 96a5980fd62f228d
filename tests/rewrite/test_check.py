"""How two spellings of a site are compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from irx.ir.dims import Range
from irx.ir.graph import Builder, Graph
from irx.ir.parser import parse
from irx.pipeline.oracle import Oracle
from irx.rewrite.check import Check, difference, small_sizes


@pytest.mark.parametrize(
    ("new", "old", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 2.0], 0.5),
        ([math.nan, 2.0], [math.nan, 2.0], 0.0),
        ([math.nan, 2.0], [1.0, 2.0], math.inf),
        ([math.inf, 2.0], [-math.inf, 2.0], math.inf),
        ([-math.inf, 2.0], [-math.inf, 2.0], 0.0),
        ([1.0], [1.0, 2.0], math.inf),
        ([True, False], [True, True], 1.0),
        ([], [], 0.0),
    ],
)
def test_difference(new: list[float], old: list[float], error: float) -> None:
    assert difference(np.array(new), np.array(old)) == error


def test_sizes_are_those_of_the_capture_where_small() -> None:
    assert small_sizes({"B": Range(1, 16, 2), "S": Range(1, None, 16)}) == {"B": 2, "S": 16}
    large = small_sizes({"B": Range(1, 16, 2), "S": Range(1, None, 4096)})
    assert large["B"] != large["S"]
    assert small_sizes({"B": Range(8, 16), "S": Range(1, 4)}) == {"B": 8, "S": 4}


def site(text: str) -> tuple[Graph, Check]:
    program = parse(text)
    return program.graphs["forward"], Check(Oracle(program.weights), program.sizes)


def test_casts_do_not_round_in_checks() -> None:
    graph, check = site("""
        graph @forward(%x: bf16[B, 8]) -> (y: bf16[B, 8]) {
          %a = irx.cast(%x) {dtype="f32"}
          %b = irx.tanh(%a)
          %c = irx.cast(%b) {dtype="bf16"}
          %y = irx.neg(%c)
          return %y
        }""")
    b = Builder(graph)
    moved = b("cast", b("neg", b("tanh", b("cast", graph.inputs[0], dtype="f32"))), dtype="bf16")
    assert check.error(graph.outputs, [moved], graph.inputs) == 0.0
    other = b("cast", b("tanh", b("cast", graph.inputs[0], dtype="f32")), dtype="bf16")
    assert check.error(graph.outputs, [other], graph.inputs) == 2.0
    assert any(node.attrs.get("dtype") == "bf16" for node in graph.nodes), "the graph itself keeps its casts"


def test_what_cannot_be_evaluated_is_not_equal() -> None:
    text = """
        graph @forward(%x: f32[B, 8]) -> (y: f32[B, 8]) {
          %y = torch.call(%x) {target="aten.foo.default", args=[#0], results=[f32[B, 8]]}
          return %y
        }"""
    graph, check = site(text)
    new = Builder(graph)("neg", graph.inputs[0])
    assert check.error(graph.outputs, [new], graph.inputs) == math.inf


def test_too_large_to_check() -> None:
    text = """
        weight $w : f32[65536, 65536]
        graph @forward(%x: f32[B, 65536]) -> (y: f32[B, 65536]) {
          %y = irx.linear(%x, $w)
          return %y
        }"""
    graph, check = site(text)
    new = Builder(graph)("neg", graph.inputs[0])
    assert check.error(graph.outputs, [new], graph.inputs) is None
