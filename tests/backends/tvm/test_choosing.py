"""The largest columns of a product's rows, chosen without storing the rows: exactly those of the rows as stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from irx.backends.regions.linear_region import parse
from irx.backends.regions.lowered import Call, Choices, Lowered, Refusal
from irx.backends.tvm import steps
from irx.backends.tvm.checking import wrong
from irx.backends.tvm.kernel import Kernel
from irx.backends.tvm.rules.linear import rule
from irx.ir.blocks import FORMATS
from irx.ir.graph import Graph
from irx.ir.parser import parse as parse_text
from irx.ops.numerics import top_indices
from irx.target import host_cpu
from irx.target.device import find_device
from tests.backends.tvm.lowered_run import choices, objects, run_lowered
from tests.backends.tvm.planting import planted
from tests.backends.tvm.test_matvec import array, body

MANY = 19  # rows: more than a kernel of few rows serves, and no whole number of blocks


def head(form: str, n: int, k: int, top: int, x: str = "f32", epilogue: str = "") -> tuple[Graph, Graph]:
    """A norm and a product with its logits as the result, and the same with the `top` largest of every row."""
    inputs = [f"x: {x}[B, {k}]", f"g: {x}[{k}]", f"w: {form}[{n}, {k}]"]
    nodes = [f"%n = irx.rms_norm(%x, %g) {{eps=1e-05}} : {x}[B, {k}]"]
    nodes += [f'%f = irx.dequantize(%w) {{dtype="{x}"}} : {x}[{n}, {k}]'] if form in FORMATS else []
    nodes.append(f"%p = irx.linear(%n, %{'f' if form in FORMATS else 'w'}) : {x}[B, {n}]")
    nodes.append(epilogue or f"%l = irx.mul(%p, 2.0) : {x}[B, {n}]")
    chosen = f"%v, %i = irx.topk(%l) {{k={top}, axis=1}} : ({x}[B, {top}], i64[B, {top}])"
    found = [("v", f"{x}[B, {top}]"), ("i", f"i64[B, {top}]")]
    return body(inputs, nodes, [("l", f"{x}[B, {n}]")]), body(inputs, [*nodes, chosen], found)


def lowered(graph: Graph, chosen: Choices, rows: int) -> Lowered:
    """The kernels for so many rows."""
    found = rule(graph, chosen)
    assert found is not None
    return Lowered((next(case for case in found.cases if case.most is None or rows <= case.most),))


def check(pair: tuple[Graph, Graph], arrays: dict[str, Any], rows: int, threads: int = 2, device: Any = None) -> None:
    """Both kernels on the same arrays: values and columns must be those of the sorted logits, bit for bit."""
    chosen, sizes = choices(device), {"B": rows}
    options: dict[str, Any] = {"threads": threads, "device": device}
    plain, best = (run_lowered(lowered(graph, chosen, rows), graph, arrays, sizes, **options) for graph in pair)
    columns = top_indices(plain["l"], best["i"].shape[1])
    assert best["i"].tolist() == columns.tolist()
    np.testing.assert_array_equal(best["v"], np.take_along_axis(plain["l"], columns, 1))


@pytest.mark.parametrize(
    ("form", "x", "rows"),
    [
        *[("f32", "f32", 3), ("bf16", "bf16", 1), ("q8_0", "f32", 2), ("q4_1", "f32", 5)],
        *[("f32", "f32", MANY), ("bf16", "bf16", MANY), ("q4_1", "f32", MANY)],
    ],
)
def test_chosen_are_the_largest_of_the_stored_logits(form: str, x: str, rows: int) -> None:
    pair = head(form, 203, 64, 7, x)
    check(pair, {value.name: array(value, rows) for value in pair[0].inputs}, rows)


@pytest.mark.parametrize(("rows", "top"), [(1, 1), (MANY, 37)])
def test_equal_logits_are_in_the_order_of_their_columns(rows: int, top: int) -> None:
    pair = head("f32", 70, 16, top)
    arrays = {value.name: array(value, rows) for value in pair[0].inputs}
    arrays["w"] = np.repeat(arrays["w"][:5], 14, axis=0)[np.random.default_rng(0).permutation(70)]
    check(pair, arrays, rows, threads=3)


def test_zeros_infinities_and_what_is_no_number() -> None:
    pair = head("f32", 96, 8, 90)
    arrays = {value.name: array(value, 2) for value in pair[0].inputs}
    arrays["w"][::3] = 0.0
    arrays["w"][3::6] = -0.0
    arrays["w"][7], arrays["w"][50], arrays["w"][61] = np.inf, np.nan, -np.inf
    arrays["x"][:] = np.abs(arrays["x"])
    arrays["g"][:] = np.abs(arrays["g"])
    check(pair, arrays, 2)


def test_without_avx512() -> None:
    pair = head("bf16", 50, 33, 3, "bf16")
    check(pair, {value.name: array(value, 2) for value in pair[0].inputs}, 2, device=find_device("cpu-avx2"))


def test_a_region_is_only_chosen_from_by_who_can() -> None:
    _, graph = head("f32", 32, 16, 4)
    with pytest.raises(Refusal, match="topk after the product"):
        parse(graph)
    other = body(
        ["x: f32[B, 8]", "w: f32[12, 8]"],
        ["%l = irx.linear(%x, %w) : f32[B, 12]", "%v, %i = irx.topk(%l) {k=1, axis=0} : (f32[1, 12], i64[1, 12])"],
        [("v", "f32[1, 12]"), ("i", "i64[1, 12]")],
    )
    with pytest.raises(Refusal, match="other than the product's columns"):
        parse(other, chooses=True)


TEXT = """
program @p {
  weight $w : f32[64, 16]
  region @best.0(%p0: f32[3, 16], %p1: f32[64, 16]) -> (v: f32[3, 2], i: i64[3, 2]) {
    %l = irx.linear(%p0, %p1)
    %v, %i = irx.topk(%l) {k=2, axis=1}
    return %v, %i
  }
  graph @decode(%x: f32[3, 16]) -> (v: f32[3, 2], i: i64[3, 2]) {
    %v, %i = irx.fusion(%x, $w) {body=@best.0}
    return %v, %i
  }
}
"""


@pytest.mark.parametrize(
    "fault", ["", "indices[0] = indices[1]", "indices[0] = T.int64(64)", "indices[0] = 63 - indices[0]"]
)
def test_wrong_columns_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of kernels looks at the elements that columns stand for: of others, or of none, it says so."""

    def spoil(call: Call, body: Graph) -> Call:
        kernel = cast(Kernel, call.kernel)
        last = kernel.name == "choose"
        spoilt = f"{kernel.body}if tid == 0:\n    {fault}\n" if fault else kernel.body  # by the thread that has row 0
        return replace(call, kernel=replace(kernel, body=spoilt)) if last else call

    monkeypatch.setattr(steps, "RULES", planted(spoil, "topk"))
    program = parse_text(TEXT)
    (graph,) = program.graphs.values()
    made = steps.Lowering(choices()).steps(graph)
    (step,) = made.steps
    assert step.lowered is not None
    assert bool(wrong(program, made, objects(step.lowered, host_cpu()))) == bool(fault)
