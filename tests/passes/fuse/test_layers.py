"""What the default pipeline makes of models: which regions, shared by which layers, and that nothing changes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import irx.ops  # noqa: F401
from irx.analysis.cost import graph_cost
from irx.analysis.inputs import random_inputs
from irx.analysis.reference import evaluate
from irx.frontends import hf
from irx.ir.equal import exact_difference
from irx.ir.graph import Graph
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.regions import body_of, expanded
from irx.ir.verify import verify
from irx.pipeline.base import Stage
from irx.pipeline.index import PassIndex
from irx.pipeline.pipeline import Pipeline
from irx.rewrite.check import difference
from tests.cases.running import context
from tests.end_to_end.families import FAMILIES

INDEX = PassIndex.scan("irx.passes")
PROJECT, MIX, ADD, GATED = "norm-linear", "attention", "linear-add", "norm-linear-swiglu"

# The decode step (forward where there is none) of two layers: regions by their kind, other nodes by op.
EXPECTED: dict[str, list[str]] = {
    "llama": ["embedding", "maximum", *[PROJECT, MIX, ADD, GATED, ADD] * 2, PROJECT],
    "qwen2": ["embedding", "maximum", *[PROJECT, MIX, ADD, GATED, ADD] * 2, PROJECT],
    "qwen3": ["embedding", "maximum", *[PROJECT, MIX, ADD, GATED, ADD] * 2, PROJECT],
    "phi3": ["embedding", "maximum", *[PROJECT, MIX, ADD, GATED, ADD] * 2, PROJECT],
    "gemma2": [
        "embedding-mul",
        "maximum",
        *[PROJECT, MIX, "linear", "norm-add", "norm-linear-geglu", "linear", "norm-add"] * 2,
    ],
    "gpt2": ["maximum", "embedding-add", *[PROJECT, MIX, ADD, "norm-linear-gelu", ADD] * 2, PROJECT],
    "opt": ["embedding-add", *[PROJECT, MIX, ADD, "norm-linear-relu", ADD] * 2, PROJECT],
    "bert": [*["linear", MIX, ADD, "layer_norm", "linear-gelu", ADD, "layer_norm"] * 2, "layer_norm", "linear-tanh"],
}


def optimized(name: str, dtype: torch.dtype = torch.float32) -> tuple[Program, Program]:
    """The program before and after the passes of the fuse stage."""
    family = FAMILIES[name]
    with torch.no_grad():
        program = hf.capture(family.model().to(dtype), family.inputs(2, 16))
    plain, _ = Pipeline.parse("none", INDEX).run(program, context(program), strict=True)
    passes = [one for one in Pipeline.parse("default", INDEX).passes if one.stage is Stage.FUSE]
    fused, _ = Pipeline(tuple(passes)).run(plain, context(plain), strict=True)
    verify(fused)
    return plain, fused


def step(program: Program) -> Graph:
    return program.graphs.get("decode", program.graphs["forward"])


def kinds(graph: Graph) -> list[str]:
    bodies = [body_of(node) for node in graph.nodes]
    return [
        node.op.name if body is None else body.name.rpartition(".")[0]
        for node, body in zip(graph.nodes, bodies, strict=True)
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_regions_of_a_step(name: str) -> None:
    plain, fused = optimized(name)
    missing = Counter(EXPECTED[name]) - Counter(kinds(step(fused)))
    assert not missing, kinds(step(fused))
    assert exact_difference(fused, parse(print_program(fused))) is None
    sizes = {"B": 2, "S": 5}
    inputs = random_inputs(plain.graphs["forward"], sizes)
    old = evaluate(plain.graphs["forward"], inputs, sizes, plain.weights)
    new = evaluate(fused.graphs["forward"], inputs, sizes, fused.weights)
    assert max(map(difference, new, old)) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_llama_layer_is_five_regions_and_layers_share_their_bodies(dtype: torch.dtype) -> None:
    plain, fused = optimized("llama", dtype)
    decode = step(fused)
    assert kinds(decode) == ["embedding", PROJECT, "maximum", *[MIX, ADD, GATED, ADD, PROJECT] * 2]
    bodies = [body_of(node) for node in decode.nodes]
    assert bodies[3:7] == bodies[8:12]
    assert bodies[1] is bodies[7]
    assert all(body is not None for body in bodies[3:])
    before, after = graph_cost(step(plain)), graph_cost(decode)
    sizes = {"B": 2, "T": 64}
    assert after.at(sizes)[0] == graph_cost(expanded(decode)).at(sizes)[0]
    assert after.at(sizes)[1] < before.at(sizes)[1]
