"""Cases of elementwise ops, activations and reductions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.ops.cases import Bools, Case, Fixed, Floats, Ints

X, ROW, COLUMN = Floats((2, 7, 5)), Floats((7, 1)), Floats((5,))
POSITIVE = Floats((2, 7, 5), above=0.5)
WHOLE, SMALL = Ints((2, 7, 5), -9, 9), Ints((7, 1), 1, 5)

_BINARY: dict[str, Any] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "remainder": torch.remainder,
    "floor_div": torch.floor_divide,
}
_COMPARE: dict[str, Any] = {
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
}
_LOGIC: dict[str, Any] = {"and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor}
_UNARY: dict[str, Any] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "relu": torch.relu,
    "floor": torch.floor,
}
_UNARY |= {"ceil": torch.ceil}
_FLOATING: dict[str, Any] = {
    "exp": torch.exp,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
_FLOATING |= {"erf": torch.erf}
_POSITIVE: dict[str, Any] = {"log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal}


def _binary() -> list[Case]:
    positive = Floats((7, 1), above=0.5)
    cases = [Case(op, (X, positive), torch=f) for op, f in _BINARY.items()]
    cases += [Case(op, (WHOLE, SMALL), torch=f, dtypes=("f32",), label="ints") for op, f in _BINARY.items()]
    cases += [Case(op, (X, ROW), torch=f) for op, f in _COMPARE.items()]
    cases += [Case(op, (WHOLE, SMALL), torch=f, dtypes=("f32",), label="ints") for op, f in _COMPARE.items()]
    cases += [Case(op, (WHOLE, SMALL), torch=f, dtypes=("f32",), label="ints") for op, f in _LOGIC.items()]
    cases += [Case(op, (Bools((2, 1, 5)), Bools((7, 5))), torch=f, dtypes=("f32",)) for op, f in _LOGIC.items()]
    return cases


def _promotion() -> list[Case]:
    half, single, scalar = Floats((7, 5), dtype="bf16"), Floats((7, 5), dtype="f32"), Floats((), dtype="f32")
    pairs = {
        "half-single": (half, single),
        "half-scalar": (half, scalar),
        "half-literal": (half, 1.5),
        "ints-literal": (WHOLE, 1.5),
        "ints-scalar": (WHOLE, scalar),
        "bool-int": (Bools((7, 5)), 2),
        "bools": (Bools((7, 5)), Bools((5,))),
        "i32-i64": (Ints((7, 5), 0, 9, "i32"), Ints((5,), 0, 9)),
        "i32-scalar": (Ints((7, 5), 0, 9, "i32"), Ints((), 0, 9)),
        "u8-i8": (Ints((5,), 0, 9, "u8"), Ints((5,), 0, 9, "i8")),
    }
    return [Case("mul", pair, torch=torch.mul, dtypes=("f32",), label=label) for label, pair in pairs.items()]


def _unary() -> list[Case]:
    cases = [Case(op, (X,), torch=f) for op, f in (_UNARY | _FLOATING).items()]
    cases += [Case(op, (WHOLE,), torch=f, dtypes=("f32",), label="ints") for op, f in _UNARY.items()]
    cases += [Case(op, (WHOLE,), torch=f, dtypes=("f32",), label="ints") for op, f in _FLOATING.items()]
    cases += [Case(op, (POSITIVE,), torch=f) for op, f in _POSITIVE.items()]
    extremes = Fixed([-800.0, -50.0, -1.0, 0.0, 1.0, 50.0, 800.0])
    return [
        *cases,
        Case("not", (Bools((7, 5)),), torch=torch.logical_not, dtypes=("f32",)),
        Case("not", (WHOLE,), torch=torch.bitwise_not, dtypes=("f32",), label="ints"),
        Case("softplus", (X,), torch=F.softplus),
        Case("sigmoid", (extremes,), torch=torch.sigmoid, label="extremes"),
        Case("silu", (extremes,), torch=F.silu, label="extremes"),
        Case("div", (X, Floats((7, 1), above=0.5)), torch=torch.div),
        Case("div", (WHOLE, SMALL), torch=torch.div, dtypes=("f32",), label="ints"),
        Case("pow", (POSITIVE, ROW), torch=torch.pow),
        Case("pow", (X, 2), torch=torch.pow, label="square"),
        Case("pow", (WHOLE, 2), torch=torch.pow, dtypes=("f32",), label="ints"),
    ]


def _others() -> list[Case]:
    condition = Bools((2, 1, 5))
    return [
        Case("where", (condition, X, ROW), torch=torch.where),
        Case("where", (condition, X, -math.inf), torch=torch.where, label="literal"),
        Case("where", (condition, 0.0, -1e9), torch=torch.where, dtypes=("f32",), label="literals"),
        Case("clamp", (X,), {"low": -0.5, "high": 0.25}, lambda x, low, high: x.clamp(low, high)),
        Case("clamp", (X,), {"high": 0.25}, lambda x, high: x.clamp(max=high), label="above"),
        Case("clamp", (WHOLE,), {"low": 0}, lambda x, low: x.clamp(low), dtypes=("f32",), label="ints"),
        Case("cast", (X,), {"dtype": "bf16"}, lambda x, dtype: x.bfloat16(), label="bf16"),
        Case("cast", (X,), {"dtype": "f16"}, lambda x, dtype: x.half(), label="f16"),
        Case("cast", (Floats((7,), scale=9.0),), {"dtype": "i64"}, lambda x, dtype: x.long(), label="i64"),
        Case("cast", (WHOLE,), {"dtype": "bool"}, lambda x, dtype: x.bool(), dtypes=("f32",), label="bool"),
        Case("cast", (Bools((7,)),), {"dtype": "f32"}, lambda x, dtype: x.float(), dtypes=("f32",), label="f32"),
        Case("silu", (X,), torch=F.silu),
        Case("gelu", (X,), torch=F.gelu),
        Case("gelu", (X,), {"approximate": "tanh"}, F.gelu, label="tanh"),
        Case("swiglu", (X, X), torch=lambda g, u: F.silu(g) * u),
        Case("geglu", (X, X), torch=lambda g, u: F.gelu(g) * u),
        Case("geglu", (X, X), {"approximate": "tanh"}, lambda g, u, approximate: F.gelu(g, approximate="tanh") * u),
    ]


_REDUCE: dict[str, Any] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "amax": torch.amax,
    "amin": torch.amin,
    "logsumexp": torch.logsumexp,
}


def _reduction(function: Any) -> Any:
    return lambda x, axes, keepdims=False: function(x, axes, keepdim=keepdims)


def _reductions() -> list[Case]:
    cases = []
    for op, f in _REDUCE.items():
        run = _reduction(f)
        cases.append(Case(op, (X,), {"axes": (1,)}, run))
        cases.append(Case(op, (X,), {"axes": (-1, 0), "keepdims": True}, run, label="keep"))
    exact: dict[str, Any] = {"sum": torch.sum, "amax": torch.amax, "amin": torch.amin}
    for op, f in exact.items():
        cases.append(Case(op, (WHOLE,), {"axes": (1, 2)}, _reduction(f), dtypes=("f32",), label="ints"))
    flags = Bools((2, 7, 3))
    return [
        *cases,
        Case("sum", (flags,), {"axes": (2,)}, lambda x, axes: x.sum(axes), dtypes=("f32",), label="bools"),
        Case("any", (flags,), {"axes": (2,)}, lambda x, axes: torch.any(x, dim=axes), dtypes=("f32",)),
        Case("all", (flags,), {"axes": (2,)}, lambda x, axes: torch.all(x, dim=axes), dtypes=("f32",)),
        Case("argmax", (X,), {"axis": -1}, lambda x, axis: x.argmax(axis)),
        Case("argmax", (X,), {"axis": 1, "keepdims": True}, lambda x, axis, keepdims: x.argmax(axis, True)),
        Case("cumsum", (X,), {"axis": 1}, lambda x, axis: x.cumsum(axis)),
        Case("cumsum", (WHOLE,), {"axis": 1}, lambda x, axis: x.cumsum(axis), dtypes=("f32",), label="ints"),
        Case("cumsum", (flags,), {"axis": 1}, lambda x, axis: x.cumsum(axis), dtypes=("f32",), label="bools"),
        Case("softmax", (X,), {"axis": -1}, lambda x, axis: x.softmax(axis)),
        Case("softmax", (X,), {"axis": 1}, lambda x, axis: x.softmax(axis), label="middle"),
        Case("log_softmax", (X,), {"axis": -1}, lambda x, axis: x.log_softmax(axis)),
        Case("topk", (Floats((2, 7, 13)),), {"k": 3, "axis": -1}, lambda x, k, axis: tuple(x.topk(k, axis)), ("f32",)),
        Case("topk", (X,), {"k": 5, "axis": 2}, lambda x, k, axis: tuple(x.topk(k, axis)), label="all"),
    ]


CASES = [*_binary(), *_promotion(), *_unary(), *_others(), *_reductions()]
