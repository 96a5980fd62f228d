"""torch.call: names, templates of arguments, several results, and the oracle's use of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.reference import evaluate
from irx.backends.torch.call import bind_call, call_on_arrays, resolve
from irx.errors import UnknownOp
from irx.ir.opdef import Operand
from irx.ir.parser import parse
from irx.ir.types import TensorType

CPU = torch.device("cpu")


def bound(target: str, *args: Any, results: int = 1, **kwargs: Any) -> Any:
    types = (TensorType((1,), "f32"),) * results
    return bind_call(target=target, args=args, kwargs=tuple(kwargs.items()), results=types, device=CPU)


def test_operands_stand_where_the_template_says() -> None:
    x, y = torch.randn(3), torch.randn(3)
    assert torch.equal(bound("aten.stack.default", (Operand(1), Operand(0)))(x, y), torch.stack([y, x]))
    assert torch.equal(bound("aten.sub.Tensor", Operand(0), other=Operand(1), alpha=2)(x, y), x - 2 * y)


def test_dtypes_are_words() -> None:
    made = bound("aten.sum.default", Operand(0), dtype="torch.float64")
    assert made(torch.ones(3)).dtype == torch.float64


def test_lists_of_results_are_flat() -> None:
    parts = bound("aten.split.Tensor", Operand(0), 2, results=2)(torch.arange(4))
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3]]
    (alone,) = (bound("aten.split.Tensor", Operand(0), 4)(torch.arange(4)),)
    assert alone.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("target", ["aten.nothing_like_it.default", "aten.sum.nowhere", "nowhere.at.all"])
def test_unknown_names_are_errors(target: str) -> None:
    with pytest.raises(UnknownOp, match=target.replace(".", r"\.")):
        resolve(target)


def test_functions_that_open_files_are_not_found() -> None:
    assert hasattr(torch.ops.aten, "from_file")
    with pytest.raises(UnknownOp):
        resolve("aten.from_file.default")


def test_the_oracle_calls_torch() -> None:
    text = """
    graph @main(%x: f32[S]) -> (y: f32[S]) {
      %h = torch.call(%x) {target="aten.flip.default", args=[#0, [0]], results=[f32[S]]}
      %y = irx.mul(%h, 2.0)
      return %y
    }
    """
    program = parse(text)
    (y,) = evaluate(program.graphs["main"], {"x": np.arange(3.0)}, {}, program.weights, call_on_arrays)
    assert y.tolist() == [4, 2, 0]
