"""Every declared op: its type rule against its reference, its reference against torch, its costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

import irx.ops  # noqa: F401  declares the ops
from irx.errors import NoReference
from irx.ir.blocks import FORMATS
from irx.ir.dims import Dim, evaluate, substitute, symbol
from irx.ir.opdef import OpDef, as_float64, lookup, registry
from irx.ir.types import KVType, TensorType, Type, is_float, is_packed
from irx.ops.cache import KVArrays
from tests.ops.cases import NAMED, Case, Packed, all_cases, from_torch, to_torch

CASES = all_cases()
RUNS = [pytest.param(case, dtype, id=f"{case}-{dtype}") for case in CASES for dtype in case.dtypes]
COMPARED = [pytest.param(c, d, c.torch, id=f"{c}-{d}") for c in CASES for d in c.dtypes if c.torch is not None]
NO_REFERENCE = {"torch.call": r"aten\.topk\.default", "fusion": r"@twice\.0"}  # and what the error names
_TORCH = {"bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32}
_TORCH |= {"i64": torch.int64, "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def reference(case: Case, arrays: list[Any]) -> tuple[Any, ...]:
    """The reference's results on operands lifted to float64."""
    extra = {"format": case.operands[0].format} if case.op == "dequantize" else {}
    with np.errstate(all="ignore"):
        result = lookup(case.op).reference(*map(lifted, arrays), **case.attrs, **extra)
    return result if isinstance(result, tuple) else (result,)


def lifted(value: Any) -> Any:
    if isinstance(value, KVArrays):
        return KVArrays(as_float64(value.k), as_float64(value.v), value.positions)
    return as_float64(value) if isinstance(value, np.ndarray) else value


def test_every_op_has_a_case() -> None:
    assert {case.op for case in CASES} == set(registry())


def test_names_are_in_their_text_form() -> None:
    assert lookup("irx.add") is lookup("add")
    assert lookup("torch.call").qualified() == "torch.call"


@pytest.mark.parametrize("op", registry().values(), ids=registry())
def test_declaration_is_documented(op: type[OpDef]) -> None:
    first = (op.__doc__ or "").strip().splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 116


@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_type_rule_agrees_with_reference(case: Case, dtype: str) -> None:
    arrays = case.arrays(dtype)
    types = lookup(case.op).types(case.types(arrays), case.attrs)
    if case.op in NO_REFERENCE:
        with pytest.raises(NoReference, match=NO_REFERENCE[case.op]):
            reference(case, arrays)
        return
    for type, result in zip(types, reference(case, arrays), strict=True):
        assert_matches(type, result)


def assert_matches(type: Type, result: Any) -> None:
    if isinstance(type, KVType):
        slots = result.k.shape[2] if type.capacity is None else type.capacity  # None: as many as there were tokens
        assert result.k.shape[1:] == (type.heads, slots, type.k_dim)
        assert result.v.shape[1:] == (type.value_heads, slots, type.v_dim)
        assert result.positions.shape == result.k.shape[:3]
        return
    result = np.asarray(result)
    if is_packed(type.dtype):
        assert result.dtype == np.uint8
        assert result.shape == FORMATS[type.dtype].packed_shape(type.shape)
        return
    assert result.shape == type.shape
    kinds = "fV" if is_float(type.dtype) else "b" if type.dtype == "bool" else "iu"
    assert result.dtype.kind in kinds


@pytest.mark.parametrize(("case", "dtype", "function"), COMPARED)
def test_reference_agrees_with_torch(case: Case, dtype: str, function: Callable[..., Any]) -> None:
    arrays = case.arrays(dtype)
    op = lookup(case.op)
    types = op.types(case.types(arrays), case.attrs)
    expected = function(*map(to_torch, arrays), **case.attrs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for type, result, other in zip(types, reference(case, arrays), expected, strict=True):
        if isinstance(type, KVType):
            assert_same_state(result, from_torch(other))
            continue
        assert other.dtype == _TORCH[type.dtype], "torch's dtype against the type rule's"
        assert_close(result, from_torch(other), op.tolerance.of(type.dtype))


def assert_same_state(result: KVArrays, expected: KVArrays) -> None:
    np.testing.assert_array_equal(result.positions, expected.positions)
    used = expected.positions >= 0
    np.testing.assert_array_equal(result.k[used], expected.k[used])
    np.testing.assert_array_equal(result.v[used], expected.v[used])


def assert_close(result: Any, expected: Any, tolerance: float) -> None:
    result = np.asarray(result)
    assert result.shape == expected.shape
    a, b = result.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite])
    scale = np.abs(b[finite]).max(initial=0.0)
    assert np.abs(a[finite] - b[finite]).max(initial=0.0) <= tolerance * scale


@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_costs_are_whole_and_not_negative(case: Case, dtype: str) -> None:
    op = lookup(case.op)
    operands = case.types(case.arrays(dtype))
    results = op.types(operands, case.attrs)
    flops = op.flops(*operands, **op.complete(case.attrs))
    for amount in (flops, op.bytes(operands, results)):
        value = evaluate(amount, {"T": 16})
        assert isinstance(value, int)
        assert value >= 0


@pytest.mark.parametrize("case", [c for c in CASES if c.named], ids=str)
def test_type_rule_holds_for_named_sizes(case: Case) -> None:
    op = lookup(case.op)
    arrays = case.arrays("f32")
    types = case.types(arrays)
    concrete = op.types(types, case.attrs)
    named = [with_names(t) if not isinstance(s, Packed) else t for t, s in zip(types, case.operands, strict=True)]
    attrs = {k: names_in(v) if k in ("shape", "stop", "keys") else v for k, v in case.attrs.items()}
    general = op.types(named, attrs)
    back = {name: size for size, name in NAMED.items()}
    assert tuple(with_sizes(t, back) for t in general) == concrete
    flops = op.flops(*named, **op.complete(attrs))
    assert evaluate(flops, back) == evaluate(op.flops(*types, **op.complete(case.attrs)), back)


def with_names(type: Type | None) -> Type | None:
    return TensorType(names_in(type.shape), type.dtype) if isinstance(type, TensorType) else type


def names_in(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(names_in, value))
    return symbol(NAMED[value]) if isinstance(value, int) and value in NAMED else value


def with_sizes(type: Type, sizes: Mapping[str, Dim]) -> Type:
    if not isinstance(type, TensorType):
        return type
    return type.with_shape(*(substitute(d, sizes) for d in type.shape))
