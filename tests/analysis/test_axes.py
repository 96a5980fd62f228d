"""Rows that an op keeps apart: every claim of `operand_axes` is tried on numbers, for every case of every op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import irx.ops  # noqa: F401
from irx.analysis.axes import operand_axes, preserved_axis, resized
from irx.ir.dims import symbol
from irx.ir.graph import Graph, Node, Value, as_value
from irx.ir.opdef import as_float64
from irx.ir.parser import parse
from irx.ops.cache import KVArrays
from tests.ops.cases import Case, all_cases

SKIPPED = {"torch.call", "dequantize"}


def node_of(case: Case) -> tuple[Node, list[Any]]:
    arrays = case.arrays("f32")
    graph = Graph("case")
    operands: list[Value | None] = []
    for i, (array, type) in enumerate(zip(arrays, case.types(arrays), strict=True)):
        plain = type is None or isinstance(array, bool | int | float)
        operands.append(as_value(array) if plain or type is None else graph.add_input(f"x{i}", type))
    return graph.add(case.op, operands, dict(case.attrs)), arrays


def claims() -> Iterator[Any]:
    for case in all_cases():
        if case.op in SKIPPED:
            continue
        node, _ = node_of(case)
        shape = getattr(node.outputs[0].type, "shape", ())
        for axis, size in enumerate(shape):
            if isinstance(size, int) and size > 1 and operand_axes(node, axis) is not None:
                yield pytest.param(case, axis, id=f"{case}-{axis}")


def lifted(array: Any) -> Any:
    if isinstance(array, KVArrays):
        return KVArrays(as_float64(array.k), as_float64(array.v), array.positions)
    return as_float64(array) if isinstance(array, np.ndarray) else array


@pytest.mark.parametrize(("case", "axis"), list(claims()))
def test_chosen_rows_need_the_same_rows_of_the_operands_only(case: Case, axis: int) -> None:
    node, arrays = node_of(case)
    size = node.outputs[0].shape[axis]
    assert isinstance(size, int)
    rows = [size - 1, 0]
    axes = operand_axes(node, axis)
    assert axes is not None
    chosen = [
        lifted(x) if place is None else np.take(lifted(x), rows, axis=place)
        for x, place in zip(arrays, axes, strict=True)
    ]
    whole = first(node.op.reference(*map(lifted, arrays), **node.attrs))
    part = first(node.op.reference(*chosen, **resized(node, axis, len(rows))))
    np.testing.assert_allclose(part, np.take(whole, rows, axis=axis), rtol=1e-12, atol=1e-12)


def first(result: Any) -> Any:
    return np.asarray(result[0] if isinstance(result, tuple) else result)


def test_claims_cover_the_ops_that_models_are_made_of() -> None:
    covered = {param.values[0].op for param in claims()}
    assert {"add", "where", "silu", "linear", "matmul", "rms_norm", "layer_norm", "softmax", "sum"} <= covered
    assert {"embedding", "reshape", "permute", "expand", "slice", "concat", "take", "gather", "topk"} <= covered
    assert {"rope", "attention", "kv_attention", "moe", "gather_tokens"} <= covered


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("irx.cumsum(%x) {axis=1}", 1),
        ("irx.softmax(%x) {axis=1}", 1),
        ("irx.flip(%x) {axes=[1]}", 1),
        ("irx.slice(%x) {axis=1, start=1}", 1),
        ("irx.concat(%x, %x) {axis=1}", 1),
        ("irx.rms_norm(%x) {eps=1e-06}", 2),
        ("irx.pad(%x) {before=[0, 1, 0], after=[0, 0, 0]}", 1),
        ("irx.reshape(%x) {shape=[B*S, 8]}", 0),
    ],
)
def test_rows_that_mix_are_not_claimed(text: str, axis: int) -> None:
    program = parse(f"graph @g(%x: f32[B, S, 8], %z: f32[1]) -> (z: f32[1]) {{\n  %y = {text}\n  return %z\n}}")
    node = next(iter(program.graphs["g"].nodes))
    assert operand_axes(node, axis) is None


def test_preserved_axis_needs_the_same_size_behind_as_many_elements() -> None:
    batch, length = symbol("B"), symbol("S")
    assert preserved_axis((batch, length, 64), (batch, length, 4, 16), 1) == 1
    assert preserved_axis((batch, length, 4, 16), (batch, length, 64), 1) == 1
    assert preserved_axis((batch, 4, length, 16), (4 * batch, length, 16), 1) == 2
    assert preserved_axis((batch, length, 64), (batch * length, 64), 0) is None
    assert preserved_axis((batch, length, 64), (length, batch, 64), 1) is None
