"""Views against numpy: where elements lie, and what is no view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from irx.backends.regions.attention_region import parse
from irx.backends.regions.views import View, viewed, whole
from irx.ir.dims import evaluate
from tests.backends.tvm.attention_bodies import decoder, graph_of

SIZES = {"B": 2, "S": 3, "T": 5}


def elements(view: View, buffer: Any) -> Any:
    """What a view shows of a buffer, element by element."""
    shape = [evaluate(n, SIZES) for n in view.shape]
    strides = [evaluate(n, SIZES) for n in view.strides]
    found = np.zeros(shape)
    for index in np.ndindex(*shape):
        place = evaluate(view.offset, SIZES) + sum(i * n for i, n in zip(index, strides, strict=True))
        found[index] = buffer.reshape(-1)[place]
    return found


@pytest.mark.parametrize(
    ("lines", "shape"),
    [
        (["%a = irx.reshape(%x) {shape=[B, S, 4, 6]}", "%b = irx.permute(%a) {order=[0, 2, 1, 3]}"], "[B, 4, S, 6]"),
        (["%a = irx.slice(%x) {axis=-1, start=6, stop=18}", "%b = irx.reshape(%a) {shape=[B, S, 2, 6]}"],
         "[B, S, 2, 6]"),
        (["%a = irx.reshape(%x) {shape=[B, S, 3, 2, 4]}", "%b = irx.slice(%a) {axis=3, start=-1}"], "[B, S, 3, 1, 4]"),
        (["%a = irx.reshape(%x) {shape=[B, 1, S, 24]}", "%b = irx.expand(%a) {shape=[B, 3, S, 24]}"], "[B, 3, S, 24]"),
        (["%a = irx.permute(%x) {order=[1, 0, 2]}", "%b = irx.reshape(%a) {shape=[S, B, 24, 1]}"], "[S, B, 24, 1]"),
        (["%a = irx.slice(%x) {axis=2, start=1, step=2}", "%b = irx.reshape(%a) {shape=[B*S, 12]}"], "[B*S, 12]"),
    ],
)  # fmt: skip
def test_elements_lie_where_the_view_says(lines: Sequence[str], shape: str) -> None:
    graph = graph_of("%x: f32[B, S, 24]", f"b: f32{shape}", lines, "%b")
    array = np.arange(2 * 3 * 24.0).reshape(2, 3, 24)
    view: View | None = whole(graph.inputs[0])
    expected = array
    for node in graph.nodes:
        assert view is not None
        view = viewed(view, node)
        attrs = {
            name: tuple(evaluate(n, SIZES) for n in value) if isinstance(value, list | tuple) else value
            for name, value in node.attrs.items()
        }
        expected = node.op.reference(expected, **attrs)
    assert view is not None
    np.testing.assert_array_equal(elements(view, array), expected)


def test_joining_axes_that_lie_apart_is_no_view() -> None:
    lines = ["%a = irx.permute(%x) {order=[0, 2, 1]}", "%b = irx.reshape(%a) {shape=[B, 24*S]}"]
    graph = graph_of("%x: f32[B, S, 24]", "b: f32[B, 24*S]", lines, "%b")
    first, second = graph.nodes
    view = viewed(whole(graph.inputs[0]), first)
    assert view is not None
    assert viewed(view, second) is None


def test_heads_are_found_in_a_merged_projection() -> None:
    """Offsets of q, k and v in one row of 4 * 16 + 2 * 2 * 16 columns, and the result in rows."""
    region = parse(decoder(rotated=8))
    assert region is not None and region.append is not None and region.attend is not None and region.result is not None
    heads = (region.attend.q, region.append.k, region.append.v)
    assert [(h.count, h.size, h.view.offset) for h in heads] == [(4, 16, 0), (2, 16, 64), (2, 16, 96)]
    assert [str(n) for n in region.result.strides] == ["64*S", "16", "64", "1"]
    assert region.attend.q.rotation == region.append.k.rotation
