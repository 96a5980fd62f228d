"""Every kernel of the torch backend against the op's numpy reference in float64, op by op and dtype by dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import irx.ops  # noqa: F401  declares the ops
from irx.backends.torch.kernels import find, kernels
from irx.ir.opdef import as_float64, lookup, registry
from irx.ir.types import TensorType
from irx.ops.cache import KVArrays
from irx.runtime.kv import KVState
from irx.runtime.tensors import IR, Packed
from tests.ops.cases import Case, all_cases, from_torch, to_torch, type_of
from tests.ops.cases import Packed as PackedSpec

NO_KERNEL = {"torch.call", "fusion"}  # resolved by name, see test_call; put in its place, see test_plan
CASES = [(case, dtype) for case in all_cases() if case.op not in NO_KERNEL for dtype in case.dtypes]


def test_every_op_has_a_kernel_and_every_kernel_an_op() -> None:
    assert kernels().keys() == registry().keys() - NO_KERNEL


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=[f"{case}-{dtype}" for case, dtype in CASES])
def test_a_kernel_computes_what_the_reference_says(case: Case, dtype: str) -> None:
    op = lookup(case.op)
    arrays = case.arrays(dtype)
    operands = [_operand(array, spec) for array, spec in zip(arrays, case.operands, strict=True)]
    results = find(case.op)(*operands, **case.attrs)
    results = results if isinstance(results, tuple) else (results,)
    expected = op.reference(*map(_exact, arrays), **case.attrs, **_format(case))
    expected = expected if isinstance(expected, tuple) else (expected,)
    types = op.types(case.types(arrays), case.attrs)
    for result, wanted, type in zip(results, expected, types, strict=True):
        narrow = type.dtype if type.dtype in ("bf16", "f16") else dtype
        _compare(result, wanted, type, op.tolerance.of(narrow) or op.tolerance.f32)


def _operand(value: Any, spec: Any) -> Any:
    if isinstance(value, KVArrays):
        return KVState(to_torch(value.k), to_torch(value.v), (0,) * len(value.k), to_torch(value.positions))
    if isinstance(spec, PackedSpec):
        return Packed(to_torch(value), spec.format)
    return to_torch(value)


def _exact(value: Any) -> Any:
    if isinstance(value, KVArrays):
        return KVArrays(as_float64(value.k), as_float64(value.v), value.positions)
    return as_float64(value) if isinstance(value, np.ndarray) else value


def _format(case: Case) -> dict[str, str]:
    return {"format": case.operands[0].format} if case.op == "dequantize" else {}


def _compare(result: Any, wanted: Any, type: Any, tolerance: float) -> None:
    if isinstance(result, KVState):
        _compare_states(result, wanted, tolerance)
        return
    assert isinstance(type, TensorType)
    if isinstance(result, Packed):
        assert result.form == type.dtype
        np.testing.assert_array_equal(result.raw.numpy(), wanted)
        return
    assert IR[result.dtype] == type.dtype
    assert tuple(result.shape) == np.shape(wanted) == type.shape
    _close(from_torch(result), wanted, tolerance)


def _close(result: Any, wanted: Any, tolerance: float) -> None:
    result, wanted = np.asarray(result, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    finite = np.isfinite(wanted)
    assert np.array_equal(result[~finite], wanted[~finite], equal_nan=True)
    error = np.abs(result[finite] - wanted[finite]).max(initial=0)
    assert error <= tolerance * np.abs(wanted[finite]).max(initial=0)


def _compare_states(result: KVState, wanted: KVArrays, tolerance: float) -> None:
    """The same tokens in the same slots; a state may have more empty slots behind."""
    positions = result.slot_positions().numpy()
    count = wanted.positions.shape[2]
    assert np.array_equal(positions[..., :count], wanted.positions)
    assert (positions[..., count:] < 0).all()
    held = wanted.positions >= 0
    _close(from_torch(result.k)[:, :, :count][held], wanted.k[held], tolerance)
    _close(from_torch(result.v)[:, :, :count][held], wanted.v[held], tolerance)


def test_the_table_covers_every_kernel() -> None:
    assert {case.op for case, _ in CASES} >= kernels().keys()
    assert type_of(1.0) == TensorType((), "float_")
    assert torch.get_default_dtype() == torch.float32
