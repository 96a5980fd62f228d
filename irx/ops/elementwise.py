"""Ops that map element to element, with numpy's broadcasting and torch's dtype promotion."""

from __future__ import annotations

import numpy as np

from irx.errors import TypeRuleError
from irx.ir.dims import Dim, product
from irx.ir.opdef import Array, OpDef
from irx.ir.types import DTYPES, TensorType, is_float, numpy_dtype
from irx.ops.numerics import erf, sigmoid
from irx.ops.shapes import broadcast, floating, need, result_dtype

# --- two operands ---------------------------------------------------------------------------------------------------


class Binary(OpDef):
    """Two broadcasting operands; the result has the promoted dtype."""

    elementwise = True

    @staticmethod
    def infer(x: TensorType, y: TensorType) -> TensorType:
        return TensorType(broadcast(x.shape, y.shape), result_dtype(x, y))

    @staticmethod
    def flops(x: TensorType, y: TensorType) -> Dim:
        return product(broadcast(x.shape, y.shape))


class Add(Binary):
    """x + y; broadcasts, promotes."""

    name = "add"
    commutative = True
    reference = staticmethod(np.add)


class Sub(Binary):
    """x - y; broadcasts, promotes."""

    name = "sub"
    reference = staticmethod(np.subtract)


class Mul(Binary):
    """x * y; broadcasts, promotes."""

    name = "mul"
    commutative = True
    reference = staticmethod(np.multiply)


class Div(Binary):
    """x / y; broadcasts, promotes; integers give f32."""

    name = "div"

    @staticmethod
    def infer(x: TensorType, y: TensorType) -> TensorType:
        return TensorType(broadcast(x.shape, y.shape), floating(result_dtype(x, y)))

    reference = staticmethod(np.divide)


class Pow(Binary):
    """x to the power of y; broadcasts, promotes."""

    name = "pow"
    reference = staticmethod(np.power)


class FloorDiv(Binary):
    """floor(x / y), rounding towards minus infinity; broadcasts, promotes."""

    name = "floor_div"
    reference = staticmethod(np.floor_divide)


class Remainder(Binary):
    """x - y * floor(x / y), with the sign of y; broadcasts, promotes."""

    name = "remainder"
    reference = staticmethod(np.remainder)


class Maximum(Binary):
    """The larger of x and y; broadcasts, promotes; nan wins."""

    name = "maximum"
    commutative = True
    reference = staticmethod(np.maximum)


class Minimum(Binary):
    """The smaller of x and y; broadcasts, promotes; nan wins."""

    name = "minimum"
    commutative = True
    reference = staticmethod(np.minimum)


# --- comparisons and logic ------------------------------------------------------------------------------------------


class Comparison(Binary):
    """Two broadcasting operands; the result is boolean."""

    @staticmethod
    def infer(x: TensorType, y: TensorType) -> TensorType:
        return TensorType(broadcast(x.shape, y.shape), "bool")


class Eq(Comparison):
    """x == y as bool; broadcasts."""

    name = "eq"
    commutative = True
    reference = staticmethod(np.equal)


class Ne(Comparison):
    """x != y as bool; broadcasts."""

    name = "ne"
    commutative = True
    reference = staticmethod(np.not_equal)


class Lt(Comparison):
    """x < y as bool; broadcasts."""

    name = "lt"
    reference = staticmethod(np.less)


class Le(Comparison):
    """x <= y as bool; broadcasts."""

    name = "le"
    reference = staticmethod(np.less_equal)


class Gt(Comparison):
    """x > y as bool; broadcasts."""

    name = "gt"
    reference = staticmethod(np.greater)


class Ge(Comparison):
    """x >= y as bool; broadcasts."""

    name = "ge"
    reference = staticmethod(np.greater_equal)


class Logical(Binary):
    """Booleans: logic; integers: bit by bit."""

    commutative = True

    @staticmethod
    def infer(x: TensorType, y: TensorType) -> TensorType:
        dtype = result_dtype(x, y)
        need(not is_float(dtype), f"takes booleans or integers, not {x} and {y}")
        return TensorType(broadcast(x.shape, y.shape), dtype)


class And(Logical):
    """x and y: logical for booleans, bit by bit for integers; broadcasts."""

    name = "and"
    reference = staticmethod(np.bitwise_and)


class Or(Logical):
    """x or y: logical for booleans, bit by bit for integers; broadcasts."""

    name = "or"
    reference = staticmethod(np.bitwise_or)


class Xor(Logical):
    """Exclusive or: logical for booleans, bit by bit for integers; broadcasts."""

    name = "xor"
    reference = staticmethod(np.bitwise_xor)


# --- one operand ----------------------------------------------------------------------------------------------------


class Unary(OpDef):
    """One operand; shape and dtype are kept."""

    elementwise = True

    @staticmethod
    def infer(x: TensorType) -> TensorType:
        return x.with_dtype(result_dtype(x))

    @staticmethod
    def flops(x: TensorType) -> Dim:
        return x.elements


class Transcendental(Unary):
    """One operand; floats keep their dtype, integers and booleans give f32."""

    @staticmethod
    def infer(x: TensorType) -> TensorType:
        return x.with_dtype(floating(result_dtype(x)))


class Not(Unary):
    """not x: logical for booleans, bit by bit for integers."""

    name = "not"

    @staticmethod
    def infer(x: TensorType) -> TensorType:
        need(not is_float(x.dtype), f"takes booleans or integers, not {x}")
        return x.with_dtype(result_dtype(x))

    reference = staticmethod(np.invert)


class Neg(Unary):
    """-x."""

    name = "neg"
    reference = staticmethod(np.negative)


class Abs(Unary):
    """The absolute value of x."""

    name = "abs"
    reference = staticmethod(np.abs)


class Sign(Unary):
    """-1, 0 or 1, in x's dtype."""

    name = "sign"
    reference = staticmethod(np.sign)


class Floor(Unary):
    """The largest integer not above x, in x's dtype; integers are unchanged."""

    name = "floor"

    @staticmethod
    def reference(x: Array) -> Array:
        return np.floor(x) if np.asarray(x).dtype.kind not in "iub" else x


class Ceil(Unary):
    """The smallest integer not below x, in x's dtype; integers are unchanged."""

    name = "ceil"

    @staticmethod
    def reference(x: Array) -> Array:
        return np.ceil(x) if np.asarray(x).dtype.kind not in "iub" else x


class Relu(Unary):
    """max(x, 0)."""

    name = "relu"

    @staticmethod
    def reference(x: Array) -> Array:
        return np.maximum(x, 0)


class Exp(Transcendental):
    """e to the power of x; integers give f32."""

    name = "exp"
    reference = staticmethod(np.exp)


class Log(Transcendental):
    """The natural logarithm of x; integers give f32."""

    name = "log"
    reference = staticmethod(np.log)


class Sqrt(Transcendental):
    """The square root of x; integers give f32."""

    name = "sqrt"
    reference = staticmethod(np.sqrt)


class Rsqrt(Transcendental):
    """1 / sqrt(x); integers give f32."""

    name = "rsqrt"

    @staticmethod
    def reference(x: Array) -> Array:
        return 1 / np.sqrt(x)


class Reciprocal(Transcendental):
    """1 / x; integers give f32."""

    name = "reciprocal"

    @staticmethod
    def reference(x: Array) -> Array:
        return np.divide(1, x)


class Sin(Transcendental):
    """The sine of x in radians; integers give f32."""

    name = "sin"
    reference = staticmethod(np.sin)


class Cos(Transcendental):
    """The cosine of x in radians; integers give f32."""

    name = "cos"
    reference = staticmethod(np.cos)


class Tanh(Transcendental):
    """The hyperbolic tangent of x; integers give f32."""

    name = "tanh"
    reference = staticmethod(np.tanh)


class Sigmoid(Transcendental):
    """1 / (1 + exp(-x)); integers give f32."""

    name = "sigmoid"
    reference = staticmethod(sigmoid)


class Erf(Transcendental):
    """The error function of x; integers give f32."""

    name = "erf"
    reference = staticmethod(erf)


class Softplus(Transcendental):
    """log(1 + exp(x)); integers give f32."""

    name = "softplus"

    @staticmethod
    def reference(x: Array) -> Array:
        return np.logaddexp(0.0, x)


# --- others ---------------------------------------------------------------------------------------------------------


class Where(OpDef):
    """x where the boolean condition holds, else y; all three broadcast, x and y promote."""

    name = "where"
    elementwise = True

    @staticmethod
    def infer(condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
        need(condition.dtype in ("bool", "bool_"), f"the condition must be boolean, not {condition}")
        return TensorType(broadcast(condition.shape, x.shape, y.shape), result_dtype(x, y))

    reference = staticmethod(np.where)

    @staticmethod
    def flops(condition: TensorType, x: TensorType, y: TensorType) -> Dim:
        return product(broadcast(condition.shape, x.shape, y.shape))


class Clamp(OpDef):
    """x limited to [low, high]; a bound of none does not limit. A float bound lifts integers to f32."""

    name = "clamp"
    elementwise = True

    @staticmethod
    def infer(x: TensorType, *, low: float | None = None, high: float | None = None) -> TensorType:
        bounds = [TensorType((), "float_" if isinstance(b, float) else "int_") for b in (low, high) if b is not None]
        return x.with_dtype(result_dtype(x, *bounds))

    @staticmethod
    def reference(x: Array, *, low: float | None = None, high: float | None = None) -> Array:
        lifted = x if low is None else np.maximum(x, low)
        return lifted if high is None else np.minimum(lifted, high)

    @staticmethod
    def flops(x: TensorType, *, low: float | None = None, high: float | None = None) -> Dim:
        return x.elements * ((low is not None) + (high is not None))


class Cast(OpDef):
    """x in another dtype: floats round to nearest even, floats to integers truncate, to bool is `x != 0`."""

    name = "cast"
    elementwise = True

    @staticmethod
    def infer(x: TensorType, *, dtype: str) -> TensorType:
        if dtype not in DTYPES:
            raise TypeRuleError(f"there is no dtype {dtype!r}; known: {', '.join(DTYPES)}")
        result_dtype(x)  # refuses packed weights
        return x.with_dtype(dtype)

    @staticmethod
    def reference(x: Array, *, dtype: str) -> Array:
        return np.asarray(x).astype(numpy_dtype(dtype))

    @staticmethod
    def flops(x: TensorType, *, dtype: str) -> Dim:
        return 0
