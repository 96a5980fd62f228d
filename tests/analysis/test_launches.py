"""Floors of a step on a GPU, by hand."""

from __future__ import annotations

import pytest

import irx
from irx.analysis.launches import launch_seconds, launches
from irx.target import find_device

TEXT = """
program @p {
  size B in [1, 16]
  weight $w : bf16[4096, 1024]
  graph @g(%x: bf16[B, 1024]) -> (y: bf16[B, 4096]) {
    %y = irx.linear(%x, $w) : bf16[B, 4096]
    %z = irx.relu(%y) : bf16[B, 4096]
    return %z
  }
}
"""


def test_both_floors_and_the_sum_of_kernels() -> None:
    (graph,) = irx.parse(TEXT).graphs.values()
    device = find_device("a100")
    found = launches(graph, device, {"B": 1}, [(node, 2 if node.op.name == "linear" else 1) for node in graph.nodes])
    moved = 2 * (4096 * 1024 + 1024 + 4096)
    assert found.count == 3
    assert found.floor.memory_seconds == pytest.approx(moved / 2039e9)
    assert found.start_seconds == pytest.approx(3 * 1.3e-6)
    linear, relu = (moved / 2039e9, 2 * 2 * 4096 / 2039e9)
    assert found.predicted_seconds == pytest.approx(linear + relu + 3.9e-6)
    assert found.bound == "memory"
    assert str(found).startswith("3 launches; floors 4.119 us by memory, 3.9 us by starts")


def test_many_small_kernels_are_bound_by_their_starts() -> None:
    (graph,) = irx.parse(TEXT).graphs.values()
    assert launches(graph, find_device("h200"), {"B": 1}, [(node, 4) for node in graph.nodes]).bound == "launches"


def test_a_cpu_starts_no_kernels() -> None:
    with pytest.raises(ValueError, match="cpu-avx2 is no GPU"):
        launch_seconds(find_device("cpu-avx2"))
