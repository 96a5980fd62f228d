"""Floors against blocks counted by hand, and the same floor for one block however it is fused."""

from __future__ import annotations

from dataclasses import replace

import pytest

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.roofline import Floor, Work, graph_floor, least_work, module_floors, node_work
from irx.ir.graph import Graph, Node
from irx.ir.parser import parse
from irx.target import find_device

DEVICE = replace(
    find_device("cpu-avx2"), bandwidth_gb_s=10.0, peak_tflops={"f32": 0.1, "bf16": 0.2, "i8": 0.4}, sources=("a test",)
)
SIZES = {"B": 2, "S": 5, "T": 100}
PACKED = 64 * 32 * 20 // 32  # bytes of q4_1[64, 32]
LINEAR = """
  weight $w : q4_1[64, 32]
  graph @forward(%x: f32[B, 32]) -> (y: f32[B, 64]) {
    %d = irx.dequantize($w) {dtype="f32"} : f32[64, 32]
    %l = irx.linear(%x, %d) : f32[B, 64]
    %y = irx.silu(%l) : f32[B, 64]
    return %y
  }
"""
FUSED = """
  weight $w : q4_1[64, 32]
  region @linear-silu(%x: f32[B, 32], %w: q4_1[64, 32]) -> (y: f32[B, 64]) {
    %d = irx.dequantize(%w) {dtype="f32"} : f32[64, 32]
    %l = irx.linear(%x, %d) : f32[B, 64]
    %y = irx.silu(%l) : f32[B, 64]
    return %y
  }
  graph @forward(%x: f32[B, 32]) -> (y: f32[B, 64]) {
    %y = irx.fusion(%x, $w) {body=@linear-silu} : f32[B, 64]
    return %y
  }
"""
DECODE = """
  weight $embed : f32[1000, 8]
  graph @decode(%ids: i64[B, 1], %pos: i64[B, 1], %kv: kv<heads=2, dim=4, dense, f32>)
      -> (y: f32[B, 1, 1000], next: kv<heads=2, dim=4, dense, f32>) {
    %e = irx.embedding(%ids, $embed) : f32[B, 1, 8]
    %r = irx.reshape(%e) {shape=[B, 1, 2, 4]} : f32[B, 1, 2, 4]
    %q = irx.permute(%r) {order=[0, 2, 1, 3]} : f32[B, 2, 1, 4]
    %next = irx.kv_append(%kv, %q, %q, %pos) : kv<heads=2, dim=4, dense, f32>
    %a = irx.kv_attention(%q, %next, %pos) {scale=0.5} : f32[B, 2, 1, 4]
    %p = irx.permute(%a) {order=[0, 2, 1, 3]} : f32[B, 1, 2, 4]
    %h = irx.reshape(%p) {shape=[B, 1, 8]} : f32[B, 1, 8]
    %y = irx.linear(%h, $embed) : f32[B, 1, 1000]
    return %y, %next
  }
"""


def graph(text: str) -> Graph:
    (found,) = parse(text).graphs.values()
    return found


def node(text: str, op: str) -> Node:
    return next(node for node in graph(text).nodes if node.op.name == op)


def test_packed_weights_count_once_at_their_packed_bytes() -> None:
    work = graph_floor(graph(LINEAR), DEVICE, SIZES).work
    assert work.bytes == PACKED + 4 * (2 * 32 + 2 * 64)
    assert work.flops == {"i8": 2 * 2 * 32 * 64, "f32": 4 * 2 * 64}


def test_fusion_does_not_change_the_floor() -> None:
    assert graph_floor(graph(FUSED), DEVICE, SIZES) == graph_floor(graph(LINEAR), DEVICE, SIZES)


def test_a_node_moves_its_operands_and_results() -> None:
    assert node_work(node(LINEAR, "linear"), SIZES).bytes == PACKED + 4 * (2 * 32 + 2 * 64)
    assert node_work(node(LINEAR, "silu"), SIZES) == Work(4 * 2 * 2 * 64, {"f32": 4 * 2 * 64})
    assert node_work(node(LINEAR, "dequantize"), SIZES) == Work()
    assert node_work(node(FUSED, "fusion"), SIZES).bytes == PACKED + 4 * (2 * 32 + 2 * 64)


def test_the_cache_is_read_once_and_a_table_by_rows() -> None:
    parts = {part.op.name: work for part, work in least_work(graph(DECODE), SIZES).items()}
    cache, table, logits = 2 * 100 * 2 * (4 + 4) * 4, 4 * 1000 * 8, 4 * 2 * 1000
    assert parts["embedding"].bytes == 2 * 8 * 4 + 2 * 8  # the rows and the ids
    assert parts["kv_append"].bytes == 2 * (2 * 8 * 4) - 2 * 8 + 2 * 8  # the new tokens less pos, which is an input
    assert parts["kv_attention"].bytes == cache
    assert parts["linear"].bytes == table + logits
    assert parts["reshape"] == Work()
    assert node_work(node(DECODE, "permute"), SIZES) == Work()
    assert node_work(node(DECODE, "kv_attention"), SIZES).bytes == cache + 2 * 4 * 2 * 8 + 8 * 2


def test_a_weight_read_twice_counts_once() -> None:
    text = """
      weight $w : bf16[16, 16]
      graph @forward(%x: bf16[B, 16]) -> (z: bf16[B, 16]) {
        %y = irx.linear(%x, $w) : bf16[B, 16]
        %z = irx.linear(%y, $w) : bf16[B, 16]
        return %z
      }
    """
    work = graph_floor(graph(text), DEVICE, SIZES).work
    assert work == Work(2 * 16 * 16 + 2 * 2 * 2 * 16, {"bf16": 2 * 2 * 2 * 16 * 16})


def test_what_weights_alone_decide_is_free() -> None:
    text = """
      weight $w : f32[16, 16]
      graph @forward(%x: bf16[B, 16]) -> (y: bf16[B, 16]) {
        %n = irx.mul($w, 2.0) : f32[16, 16]
        %c = irx.cast(%n) {dtype="bf16"} : bf16[16, 16]
        %y = irx.linear(%x, %c) : bf16[B, 16]
        return %y
      }
    """
    work = graph_floor(graph(text), DEVICE, SIZES).work
    assert work == Work(2 * 16 * 16 + 2 * 2 * 2 * 16, {"bf16": 2 * 2 * 16 * 16})


def test_modules_add_up_to_the_graph() -> None:
    text = LINEAR.replace(": f32[64, 32]\n", ": f32[64, 32]  // block.up\n").replace(
        "(%x, %d) : f32[B, 64]", "(%x, %d) : f32[B, 64]  // block.up"
    )
    modules = module_floors(graph(text), DEVICE, SIZES)
    assert modules.keys() == {"block.up", ""}
    assert modules["block.up"].work.bytes == PACKED + 4 * 2 * 32
    whole = graph_floor(graph(text), DEVICE, SIZES).work
    assert sum((floor.work for floor in modules.values()), Work()) == whole


@pytest.mark.parametrize(
    ("work", "bound", "seconds"),
    [(Work(10**9, {"f32": 10**9}), "memory", 0.1), (Work(10**6, {"f32": 10**9, "i8": 10**9}), "compute", 0.0125)],
)
def test_the_slower_resource_decides(work: Work, bound: str, seconds: float) -> None:
    floor = Floor(work, DEVICE)
    assert floor.bound == bound
    assert floor.seconds == pytest.approx(seconds)


def test_a_floor_prints_its_arithmetic() -> None:
    assert Floor(Work(50_000_000, {"bf16": 10**9, "f32": 10**8}), DEVICE).lines() == [
        "50 MB at 10 GB/s = 5 ms",
        "1 GFLOP in bf16 at 200 GFLOP/s = 5 ms",
        "0.1 GFLOP in f32 at 100 GFLOP/s = 1 ms",
    ]


def test_a_size_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="T"):
        graph_floor(graph(DECODE), DEVICE, {"B": 1})


def test_fusions_that_share_a_body_have_weights_of_their_own() -> None:
    text = """
      weight $a : q8_0[32, 32]
      weight $b : q8_0[32, 32]
      region @layer(%x: f32[B, 32], %w: q8_0[32, 32]) -> (y: f32[B, 32]) {
        %d = irx.dequantize(%w) {dtype="f32"} : f32[32, 32]
        %y = irx.linear(%x, %d) : f32[B, 32]
        return %y
      }
      graph @forward(%x: f32[B, 32]) -> (y: f32[B, 32]) {
        %h = irx.fusion(%x, $a) {body=@layer} : f32[B, 32]
        %g = irx.fusion(%h, $b) {body=@layer} : f32[B, 32]
        %y = irx.fusion(%g, $a) {body=@layer} : f32[B, 32]
        return %y
      }
    """
    work = graph_floor(graph(text), DEVICE, SIZES).work
    assert work.bytes == 2 * 32 * 34 + 2 * 4 * 2 * 32
    assert work.flops == {"i8": 3 * 2 * 2 * 32 * 32}
