"""Cases of shape and indexing ops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from irx.ir.graph import Builder, Graph
from irx.ir.opdef import Operand
from irx.ir.types import TensorType
from tests.ops.cases import Bools, Case, Fixed, Floats, Ints

X = Floats((2, 7, 15))


def _slice(x: torch.Tensor, axis: int, start: int = 0, stop: int | None = None, step: int = 1) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten.slice(x, axis, start, stop, step)
    return result


def _take(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    return x[(slice(None),) * (axis % x.ndim) + (index,)]


def _scatter(x: torch.Tensor, index: torch.Tensor, source: Any, axis: int) -> torch.Tensor:
    return torch.scatter(x, axis, index, source)


def _scatter_slice(x: torch.Tensor, source: torch.Tensor, axis: int, **bounds: Any) -> torch.Tensor:
    result = x.clone()
    _slice(result, axis, **bounds).copy_(source)
    return result


def _pad(x: torch.Tensor, before: tuple[int, ...], after: tuple[int, ...], value: float = 0.0) -> torch.Tensor:
    amounts = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, amounts, value=value)


def _views() -> list[Case]:
    reshape = lambda x, shape: x.reshape(shape)  # noqa: E731
    expand = lambda x, shape: x.expand(shape)  # noqa: E731
    return [
        Case("reshape", (X,), {"shape": (2, 7, 3, 5)}, reshape),
        Case("reshape", (X,), {"shape": (14, 15)}, reshape, named=False, label="merge"),
        Case("reshape", (Floats((1, 1, 1)),), {"shape": ()}, reshape, label="scalar"),
        Case("permute", (X,), {"order": (0, 2, 1)}, lambda x, order: x.permute(order)),
        Case("permute", (X,), {"order": (-1, 0, 1)}, lambda x, order: x.permute(order), label="negative"),
        Case("expand", (Floats((2, 1, 5)),), {"shape": (3, 2, 7, 5)}, expand),
        Case("expand", (Floats(()),), {"shape": (2, 7)}, expand, label="scalar"),
        Case("flip", (X,), {"axes": (1, -1)}, lambda x, axes: x.flip(axes)),
        Case("slice", (X,), {"axis": 1}, _slice, label="everything"),
        Case("slice", (X,), {"axis": 2, "start": 1, "stop": 6}, _slice),
        Case("slice", (X,), {"axis": -1, "start": 1, "step": 2}, _slice, label="odd"),
        Case("slice", (X,), {"axis": 2, "stop": -4}, _slice, label="negative"),
        Case("slice", (X,), {"axis": 2, "start": -4, "stop": 99}, _slice, label="clamped"),
        Case("slice", (X,), {"axis": 2, "start": 9, "stop": 4}, _slice, label="empty"),
        Case("concat", (X, Floats((2, 7, 1)), X), {"axis": -1}, lambda *xs, axis: torch.cat(xs, axis)),
        Case("concat", (X, Floats((2, 1, 15))), {"axis": 1}, lambda *xs, axis: torch.cat(xs, axis), label="middle"),
        Case("concat", (X, Floats((2, 3, 15), dtype="f32")), {"axis": 1}, lambda *xs, axis: torch.cat(xs, axis)),
        Case("pad", (X,), {"before": (0, 1, 2), "after": (0, 0, 3)}, _pad),
        Case("pad", (X,), {"before": (0, 0, 0), "after": (1, 2, 0), "value": -1.5}, _pad, label="value"),
    ]


def _indexing() -> list[Case]:
    index = Ints((2, 7, 3), 0, 15)
    apart = Fixed([[[3], [0]], [[14], [2]]])
    return [
        Case("take", (X, Ints((7, 3), 0, 15)), {"axis": 2}, _take),
        Case("take", (X, Ints((), 0, 7)), {"axis": 1}, _take, label="scalar"),
        Case("take", (X, Ints((4,), -7, 7)), {"axis": -2}, _take, label="negative"),
        Case("gather", (X, index), {"axis": 2}, lambda x, i, axis: torch.gather(x, axis, i)),
        Case("gather", (X, Ints((1, 3, 4), 0, 7)), {"axis": 1}, lambda x, i, axis: torch.gather(x, axis, i)),
        Case("scatter", (X, apart, Floats((2, 2, 1))), {"axis": 2}, _scatter, named=False),
        Case("scatter", (X, index, 0.5), {"axis": -1}, _scatter, label="literal"),
        Case("scatter", (Bools((2, 7, 15)), index, True), {"axis": 2}, _scatter, dtypes=("f32",), label="bools"),
        Case("scatter_slice", (X, Floats((2, 7, 5))), {"axis": 2, "start": 3, "stop": 8}, _scatter_slice),
        Case("scatter_slice", (X, Floats((2, 1, 8))), {"axis": -1, "step": 2}, _scatter_slice, label="step"),
    ]


_DTYPES = {"i64": torch.int64, "f32": torch.float32, "bool": torch.bool, "bf16": torch.bfloat16}


def _arange(stop: int, start: int = 0, step: int = 1, dtype: str = "i64") -> torch.Tensor:
    return torch.arange(start, stop, step, dtype=_DTYPES[dtype])


def _full(shape: tuple[int, ...], value: Any, dtype: str) -> torch.Tensor:
    return torch.full(shape, value, dtype=_DTYPES[dtype])


def _body() -> Graph:
    body = Graph("twice.0")
    x = body.add_input("x", TensorType((2, 7, 15), "f32"))
    body.set_outputs({"twice": Builder(body)("add", x, x)})
    return body


def _made() -> list[Case]:
    once = ("f32",)
    types = (TensorType((2, 3), "f32"), TensorType((2, 3), "i64"))
    call = {"target": "aten.topk.default", "args": (Operand(0), 3), "kwargs": (("dim", -1),), "results": types}
    return [
        Case("arange", (), {"stop": 7}, _arange, once),
        Case("arange", (), {"start": 2, "stop": 9, "step": 3, "dtype": "f32"}, _arange, once, label="step"),
        Case("arange", (), {"start": 9, "stop": 2, "step": -2}, _arange, once, label="down"),
        Case("arange", (), {"start": 0, "stop": 0}, _arange, once, label="empty"),
        Case("full", (), {"shape": (2, 7), "value": 0.5, "dtype": "bf16"}, _full, once),
        Case("full", (), {"shape": (), "value": True, "dtype": "bool"}, _full, once, label="bool"),
        Case("torch.call", (X,), call),
        Case("fusion", (X,), {"body": _body()}, dtypes=once, named=False),
    ]


CASES = [*_views(), *_indexing(), *_made()]
