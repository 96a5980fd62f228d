"""Type rules with named sizes, and what they reject."""

from __future__ import annotations

from typing import Any

import pytest

import irx.ops  # noqa: F401  declares the ops
from irx.errors import TypeRuleError, UnknownOption
from irx.ir.dims import Dim, parse_dim, symbol
from irx.ir.opdef import lookup
from irx.ir.types import KVType, TensorType, Type

B, S, T = symbol("B"), symbol("S"), symbol("T")
KV = KVType(3, 3, 64, 64, "f32", capacity=T)


def t(*shape: Dim | str, dtype: str = "f32") -> TensorType:
    return TensorType(tuple(parse_dim(d) if isinstance(d, str) else d for d in shape), dtype)


def infer(op: str, *operands: Type | None, **attrs: Any) -> str:
    return ", ".join(map(str, lookup(op).types(operands, attrs)))


@pytest.mark.parametrize(
    ("result", "op", "operands", "attrs"),
    [
        ("f32[B, S, 576]", "add", (t(B, S, 576), t(576)), {}),
        ("f32[B, S, 576]", "add", (t(B, 1, 576), t(S, 1)), {}),
        ("f32[B, 9, S, 64]", "reshape", (t(B, S, 576),), {"shape": (B, 9, S, 64)}),
        ("f32[B*S, 576]", "reshape", (t(B, S, 576),), {"shape": (B * S, 576)}),
        ("f32[B, 4, floor(S/4), 8]", "reshape", (t(B, S, 8),), {"shape": (B, 4, S // 4, 8)}),
        ("f32[B, S + 1, 64]", "concat", (t(B, S, 64), t(B, 1, 64)), {"axis": 1}),
        ("f32[B, 1, 64]", "slice", (t(B, S, 64),), {"axis": 1, "start": S - 1}),
        ("f32[B, S - 1, 64]", "slice", (t(B, S, 64),), {"axis": 1, "start": 1}),
        ("f32[B, S - 1, 64]", "slice", (t(B, S, 64),), {"axis": 1, "stop": -1}),
        ("f32[B, 1, 64]", "slice", (t(B, S, 64),), {"axis": 1, "stop": 1}),
        ("f32[B, S, 32]", "slice", (t(B, S, 64),), {"axis": -1, "start": 1, "step": 2}),
        ("f32[B, S, 64]", "slice", (t(B, S, 64),), {"axis": 1, "stop": S}),
        ("f32[B, Min(3, S), 64]", "slice", (t(B, S, 64),), {"axis": 1, "stop": 3}),
        ("i64[S]", "arange", (), {"stop": S}),
        ("i64[S]", "arange", (), {"start": T, "stop": T + S}),
        ("f32[B, S + 2]", "pad", (t(B, S),), {"before": (0, 2), "after": (0, 0)}),
        ("f32[B, S, 9]", "take", (t(B, 5, 9), t(S, dtype="i64")), {"axis": 1}),
        ("f32[B, S, K], i64[B, S, K]", "topk", (t(B, S, 9),), {"k": symbol("K"), "axis": 2}),
        ("bf16[B, S, 576]", "linear", (t(B, S, 8, dtype="bf16"), t(576, 8, dtype="bf16")), {}),
        ("q4_0[24, 64]", "concat", (t(16, 64, dtype="q4_0"), t(8, 64, dtype="q4_0")), {"axis": 0}),
        ("bf16[16, 64]", "dequantize", (t(16, 64, dtype="q4_0"),), {"dtype": "bf16"}),
        ("f32[B, 9, S, 64]", "kv_attention", (t(B, 9, S, 64), KV, t(B, S, dtype="i64")), {"scale": 0.125}),
        (str(KV), "kv_append", (KV, t(B, 3, S, 64), t(B, 3, S, 64), t(B, S, dtype="i64")), {}),
        ("kv<heads=3, dim=64, dense, f32, cap=5>", "kv_gather", (KV, t(B, 3, 5, dtype="i64")), {}),
        ("f32[B, 8, S - 2]", "conv1d", (t(B, 2, S), t(8, 2, 3)), {}),
    ],
)
def test_named_sizes(result: str, op: str, operands: tuple[Type, ...], attrs: dict[str, Any]) -> None:
    assert infer(op, *operands, **attrs) == result


REJECTED = {
    "sizes": ("add", (t(B, S), t(B, T)), {}, "do not broadcast"),
    "a name is no number": ("add", (t(S), t(7)), {}, "do not broadcast"),
    "packed": ("add", (t(16, 64, dtype="q4_0"), 1.0), {}, "dequantized first"),
    "packed columns": ("slice", (t(16, 64, dtype="q4_0"),), {"axis": 1, "stop": 32}, "dequantized first"),
    "count": ("reshape", (t(2, 3),), {"shape": (7,)}, "element counts differ"),
    "named count": ("reshape", (t(B, S),), {"shape": (B, T)}, "element counts differ"),
    "order": ("permute", (t(2, 3),), {"order": (0,)}, "does not name all axes"),
    "axis": ("softmax", (t(2, 3),), {"axis": 2}, "axis 2 does not exist"),
    "axis twice": ("sum", (t(2, 3),), {"axes": (0, -2)}, "named twice"),
    "floats only": ("softmax", (t(2, dtype="i64"),), {"axis": 0}, "floating point"),
    "logic": ("and", (t(2), t(2)), {}, "booleans or integers"),
    "condition": ("where", (t(2), t(2), t(2)), {}, "must be boolean"),
    "dtype": ("cast", (t(2),), {"dtype": "float32"}, "no dtype 'float32'"),
    "others": ("concat", (t(2, 3), t(3, 3)), {"axis": 1}, "differ in more than axis 1"),
    "padding": ("pad", (t(2),), {"before": (-1,), "after": (0,)}, "must not be negative"),
    "k": ("topk", (t(2),), {"k": 3, "axis": 0}, "has 2 elements"),
    "step": ("slice", (t(2),), {"axis": 0, "step": -1}, "must be positive"),
    "summed axis": ("linear", (t(2, 3), t(4, 5)), {}, "differ in their last axis"),
    "one dtype": ("linear", (t(2, 3), t(4, 3, dtype="bf16")), {}, "one dtype"),
    "matmul": ("matmul", (t(2, 3), t(4, 5)), {}, "do not agree"),
    "index": ("embedding", (t(2), t(4, 5)), {}, "must be integers"),
    "scatter": ("scatter", (t(2, dtype="i64"), t(1, dtype="i64"), 0.5), {"axis": 0}, "does not fit"),
    "norm weight": ("rms_norm", (t(2, 3), t(2)), {"eps": 1e-6}, "weight must be [3]"),
    "groups": ("attention", (t(1, 4, 2, 8), t(1, 3, 2, 8), t(1, 3, 2, 8)), {"scale": 1.0}, "not a multiple of 3"),
    "mask": ("attention", (*[t(1, 1, 2, 8)] * 3, t(1, 1, 2, 2)), {"scale": 1.0}, "mask must be boolean"),
    "sinks": ("attention", (*[t(1, 4, 2, 8)] * 3, None, None, t(3)), {"scale": 1.0}, "sinks must be [4]"),
    "rope": ("rope", (t(1, 1, 2, 8), t(1, 2, dtype="i64"), t(5)), {}, "10 rotated channels"),
    "positions": ("kv_append", (KV, t(B, 3, S, 64), t(B, 3, S, 64), t(B, T, dtype="i64")), {}, "pos must be [B, S]"),
    "kv heads": ("kv_append", (KV, t(B, 4, S, 64), t(B, 4, S, 64), t(B, S, dtype="i64")), {}, "k must be"),
    "kept": ("kv_evict", (KV, t(B, 3, T)), {"keep": 8}, "do not fit into 8"),
    "experts": ("moe", (t(7, 5), t(7, 2, dtype="i64"), t(7, 2), t(4, 6, 5), t(4, 5, 4)), {}, "gate_up must be"),
    "channels": ("conv1d", (t(1, 4, 9), t(8, 3, 3)), {}, "times the channels"),
    "kernel": ("conv1d", (t(1, 3, 2), t(8, 3, 3)), {}, "larger than x"),
    "style": ("rope", (t(1, 1, 2, 8), t(1, 2, dtype="i64"), t(4)), {"style": "full"}, "half, interleaved"),
    "temperature": ("sample", (t(1, 9), t(1)), {"temperature": -1.0}, "not be negative"),
    "missing": ("softmax", (t(2),), {}, "'axis' is missing"),
    "none": ("add", (t(2), None), {}, "must not be none"),
    "count of operands": ("add", (t(2),), {}, "takes 2 operands, got 1"),
    "kind": ("kv_append", (t(2), t(2), t(2), t(2)), {}, "wrong kind of type"),
}


@pytest.mark.parametrize(("op", "operands", "attrs", "message"), REJECTED.values(), ids=REJECTED)
def test_rejected(op: str, operands: tuple[Any, ...], attrs: dict[str, Any], message: str) -> None:
    types = [TensorType((), "float_") if isinstance(x, float) else x for x in operands]
    with pytest.raises(TypeRuleError) as caught:
        infer(op, *types, **attrs)
    assert message in str(caught.value)
    assert lookup(op).qualified() in str(caught.value)


def test_unknown_attribute_names_the_nearest() -> None:
    with pytest.raises(UnknownOption, match="did you mean 'causal'"):
        infer("attention", t(1, 1, 2, 8), t(1, 1, 2, 8), t(1, 1, 2, 8), scale=1.0, casual=True)
