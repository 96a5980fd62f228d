"""Rules that many type rules share: broadcasting, result dtypes, axes, sizes of slices, demands on operands.

Sizes are compared as expressions: two dims are equal when they are the same expression, and broadcast when they are
equal or one of them is 1. A named size is never assumed to equal a number, whatever it was at capture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from irx.errors import TypeRuleError
from irx.ir.dims import Dim, SymDim, is_nonnegative, maximum, minimum, product
from irx.ir.types import INTEGERS, WEAK, TensorType, is_float, is_packed, promote

Shape: TypeAlias = tuple[Dim, ...]

_DEFAULTS = {"bool_": "bool", "int_": "i64", "float_": "f32"}


def broadcast(*shapes: Shape) -> Shape:
    """The shape numpy's broadcasting gives: aligned at the last axis, sizes equal or 1."""
    result: Shape = ()
    for shape in shapes:
        result = _broadcast_two(result, shape)
    return result


def _broadcast_two(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return tuple(_broadcast_size(x, y, a, b) for x, y in pairs)


def _broadcast_size(x: Dim, y: Dim, a: Shape, b: Shape) -> Dim:
    if x == y or y == 1:
        return x
    if x == 1:
        return y
    raise TypeRuleError(f"shapes {show(a)} and {show(b)} do not broadcast: {x} against {y}")


def broadcasts_to(shape: Shape, target: Shape, what: str) -> None:
    """Demand that `shape` broadcasts to exactly `target`."""
    fits = len(shape) <= len(target) and all(
        x in (y, 1) for x, y in zip(reversed(shape), reversed(target), strict=False)
    )
    if not fits:
        raise TypeRuleError(f"{what} {show(shape)} does not broadcast to {show(target)}")


def result_dtype(*types: TensorType) -> str:
    """The dtype of an elementwise result, by torch's rules.

    Tensors with axes decide; tensors without any, and after them literals, only lift the category (bool, int, float).
    """
    for tensor in types:
        if is_packed(tensor.dtype):
            raise TypeRuleError(f"a packed {tensor.dtype} weight must be dequantized first")
    weak = [t.dtype for t in types if t.dtype in WEAK]
    strong = [t for t in types if t.dtype not in WEAK]
    with_axes = [t.dtype for t in strong if t.shape]
    scalars = [t.dtype for t in strong if not t.shape]
    if with_axes and scalars:
        base, scalar = promote(*with_axes), promote(*scalars)
        strong_dtype = [scalar if category(scalar) > category(base) else base]
    else:
        strong_dtype = with_axes or scalars
    result = promote(*strong_dtype, *weak)
    return _DEFAULTS.get(result, result)


def selected_dtype(axis: int, *types: TensorType) -> str:
    """The result dtype of an op that moves whole elements along `axis`: packed weights pass through when all are of one
    format and `axis` is not the last, as blocks never cross rows."""
    first = types[0]
    whole_rows = is_packed(first.dtype) and all(t.dtype == first.dtype for t in types) and axis != first.rank - 1
    return first.dtype if whole_rows else result_dtype(*types)


def category(dtype: str) -> int:
    """0 for booleans, 1 for integers, 2 for floats."""
    if dtype in ("bool", "bool_"):
        return 0
    return 2 if is_float(dtype) else 1


def floating(dtype: str) -> str:
    """`dtype` where it is a float, else f32: what division and transcendental functions of integers give."""
    return dtype if is_float(dtype) else "f32"


def accumulated(dtype: str) -> str:
    """The dtype of a sum: booleans and integers are summed as i64."""
    return dtype if is_float(dtype) else "i64"


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises TypeRuleError when there is no such axis."""
    if not -rank <= axis < rank:
        raise TypeRuleError(f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, ascending. Raises TypeRuleError for a missing or repeated one."""
    found = sorted(axis_of(axis, rank) for axis in axes)
    if len(set(found)) != len(found):
        raise TypeRuleError(f"an axis is named twice in {tuple(axes)}")
    return tuple(found)


def replaced(shape: Shape, axis: int, *sizes: Dim) -> Shape:
    """`shape` with the size at `axis` replaced by `sizes` (none removes it)."""
    return (*shape[:axis], *sizes, *shape[axis + 1 :])


def reduced(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    """The shape after reducing `axes`."""
    chosen = axes_of(axes, len(shape))
    return tuple(1 if i in chosen else d for i, d in enumerate(shape) if keepdims or i not in chosen)


def steps(start: Dim, stop: Dim, step: int) -> Dim:
    """How many numbers there are from `start` to before `stop`; never negative."""
    if step == 0:
        raise TypeRuleError("step must not be 0")
    distance = stop - start if step > 0 else start - stop
    width = abs(step)
    count = distance if width == 1 else (distance + (width - 1)) // width
    return count if is_nonnegative(count) else maximum(count, 0)


def slice_length(size: Dim, start: Dim, stop: Dim | None, step: int) -> Dim:
    """The size of `x[start:stop:step]` along an axis of `size`, bounds clamped as Python does."""
    if step < 1:
        raise TypeRuleError(f"the step of a slice must be positive, not {step}")
    last = size if stop is None else _bound(stop, size)
    return steps(_bound(start, size), last, step)


def _bound(bound: Dim, size: Dim) -> Dim:
    if bound in (0, size):
        return bound
    if isinstance(bound, SymDim):
        return minimum(bound, size)
    return minimum(bound, size) if bound >= 0 else maximum(size + bound, 0)


def same_count(a: Shape, b: Shape) -> bool:
    """False only when the element counts certainly differ for some sizes; True where rounding hides that."""
    x, y = product(a), product(b)
    if x == y or (isinstance(x, int) and isinstance(y, int)):
        return x == y
    undecidable = ("floor", "ceiling", "Mod", "Max", "Min")
    return any(word in f"{x} {y}" for word in undecidable)


def need(condition: bool, message: str) -> None:
    """Raise TypeRuleError with `message` unless `condition` holds."""
    if not condition:
        raise TypeRuleError(message)


def need_rank(tensor: TensorType, rank: int, what: str) -> None:
    """Demand that number of axes."""
    need(tensor.rank == rank, f"{what} must have {rank} axes, not {tensor}")


def need_float(tensor: TensorType, what: str) -> None:
    """Demand a floating-point dtype."""
    need(is_float(tensor.dtype), f"{what} must be floating point, not {tensor}")


def need_integer(tensor: TensorType, what: str) -> None:
    """Demand an integer dtype."""
    need(tensor.dtype in (*INTEGERS, "int_"), f"{what} must be integers, not {tensor}")


def need_shape(tensor: TensorType, shape: Shape, what: str) -> None:
    """Demand exactly that shape."""
    need(tensor.shape == shape, f"{what} must be {show(shape)}, not {tensor}")


def need_same_dtype(what: str, *tensors: TensorType) -> None:
    """Demand that all tensors have the same dtype."""
    need(len({t.dtype for t in tensors}) == 1, f"{what} must have one dtype, not {', '.join(map(str, tensors))}")


def show(shape: Shape) -> str:
    """A shape as it is printed in types: `[B, S, 64]`."""
    return f"[{', '.join(map(str, shape))}]"
