"""Costs against a block counted by hand."""

from __future__ import annotations

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.cost import Cost, graph_cost, node_cost
from irx.ir.dims import symbol
from irx.ir.graph import Builder, Graph, Value
from irx.ir.types import KVType, TensorType
from irx.ir.weights import Weights

B, S = symbol("B"), symbol("S")


def cost(graph: Graph, value: Value) -> Cost:
    return node_cost(next(node for node in graph.nodes if value in node.outputs))


def test_a_linear_layer() -> None:
    graph, weights = Graph("forward"), Weights()
    b = Builder(graph)
    x = graph.add_input("x", TensorType((B, S, 576), "bf16"))
    weight = weights.add("w", TensorType((1536, 576), "bf16"))
    y = b("linear", x, weight)
    b("silu", y)
    assert cost(graph, y) == Cost(2 * B * S * 576 * 1536, 2 * (B * S * 576 + 576 * 1536 + B * S * 1536))
    rows = 21
    linear = 2 * rows * 576 * 1536, 2 * (rows * 576 + 576 * 1536 + rows * 1536)
    silu = 4 * rows * 1536, 2 * 2 * rows * 1536
    assert cost(graph, y).at({"B": 3, "S": 7}) == linear
    assert graph_cost(graph).at({"B": 3, "S": 7}) == (linear[0] + silu[0], linear[1] + silu[1])


def test_decode_attention() -> None:
    """4 B H T d + 5 B H T operations; the cache is 2 B G T d elements."""
    graph = Graph("decode")
    b = Builder(graph)
    q = graph.add_input("q", TensorType((B, 9, 1, 64), "bf16"))
    pos = graph.add_input("pos", TensorType((B, 1), "i64"))
    kv = graph.add_input("kv", KVType(3, 3, 64, 64, "bf16"))
    y = b("kv_attention", q, kv, pos, scale=0.125)
    near = b("kv_attention", q, kv, pos, scale=0.125, window=100)
    batch, heads, groups, tokens, channels = 2, 9, 3, 1000, 64
    flops, moved = cost(graph, y).at({"B": batch, "T": tokens})
    assert flops == 4 * batch * heads * tokens * channels + 5 * batch * heads * tokens
    assert moved == 2 * 2 * batch * groups * tokens * channels + 2 * (2 * batch * heads * channels) + 8 * batch
    assert cost(graph, near).at({"B": batch, "T": tokens})[0] == flops // 10


def test_views_are_free_and_lookups_read_what_they_return() -> None:
    graph, weights = Graph("forward"), Weights()
    b = Builder(graph)
    ids = graph.add_input("ids", TensorType((B, S), "i64"))
    table = weights.add("w", TensorType((49152, 576), "f32"))
    rows = b("embedding", ids, table)
    turned = b("permute", b("reshape", rows, shape=(B, S, 9, 64)), order=(0, 2, 1, 3))
    assert cost(graph, rows).at({"B": 1, "S": 5}) == (0, 8 * 5 + 2 * 4 * 5 * 576)
    assert cost(graph, turned) == Cost(0, 0)


def test_experts_read_at_most_what_is_chosen() -> None:
    graph, weights = Graph("forward"), Weights()
    b = Builder(graph)
    x = graph.add_input("x", TensorType((S, 8), "f32"))
    index = graph.add_input("index", TensorType((S, 2), "i64"))
    share = graph.add_input("share", TensorType((S, 2), "f32"))
    gate_up = weights.add("gate_up", TensorType((64, 32, 8), "f32"))
    down = weights.add("down", TensorType((64, 8, 16), "f32"))
    y = b("moe", x, index, share, gate_up, down)
    one_expert = 4 * (32 * 8 + 8 * 16)
    per_token = 4 * 8 + 8 * 2 + 4 * 2 + 4 * 8
    assert cost(graph, y).at({"S": 1})[1] == per_token + 2 * one_expert
    assert cost(graph, y).at({"S": 500})[1] == 500 * per_token + 64 * one_expert
    assert cost(graph, y).at({"S": 1})[0] == 2 * (3 * 2 * 8 * 16 + 5 * 16 + 2 * 8)


def test_packed_weights_count_their_packed_bytes() -> None:
    graph, weights = Graph("forward"), Weights()
    b = Builder(graph)
    weight = weights.add("w", TensorType((16, 64), "q4_0"))
    y = b("dequantize", weight, dtype="bf16")
    assert cost(graph, y).at({}) == (2 * 16 * 64, 16 * 2 * 18 + 2 * 16 * 64)


def test_an_empty_graph_costs_nothing() -> None:
    assert graph_cost(Graph("forward")) == Cost(0, 0)
    assert graph_cost(Graph("forward")).at({}) == (0, 0)
