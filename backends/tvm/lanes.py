"""Values in lanes: the words in which vector code is written, for 16 lanes at once or for a single element.

A tensor's elements are computed as one of three kinds, whatever their dtype in memory: floats as float32, integers as
int64 (so that their arithmetic is exact), booleans as int32 that are 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from irx.backends.tvm.writer import LANES, STORAGE, Writer, at, constant, splat, typed, widened
from irx.ir.types import INTEGERS, is_float

FLOAT, INTEGER, TRUTH = "float32", "int64", "int32"
COMPUTED = ("f32", "bf16", "f16", *INTEGERS, "bool")
"""The dtypes that kernels load, compute and store."""


def kind(dtype: str) -> str:
    """How lanes hold elements of an IR dtype (weak ones included), in TIR's spelling."""
    if dtype in ("bool", "bool_"):
        return TRUTH
    return FLOAT if is_float(dtype) else INTEGER


@dataclass(frozen=True)
class Lanes:
    """Writes expressions over `count` lanes. Values are texts that may stand in any expression."""

    w: Writer
    count: int = LANES

    def type(self, name: str) -> str:
        """`float32x16`."""
        return typed(name, self.count)

    def let(self, value: str, name: str = FLOAT) -> str:
        """A register for a value of that TIR type: computed once (lets TVM would look through again and again)."""
        return self.w.register(value, dtype=name, lanes=self.count)

    def f(self, value: float) -> str:
        """A float32 constant."""
        return constant(float(value), self.count)

    def d(self, value: float) -> str:
        """A finite or infinite float64 constant."""
        text = repr(value) if math.isfinite(value) else f'"{value}"'
        return splat(f"T.float64({text})", self.count)

    def n(self, value: int) -> str:
        """An int32 constant."""
        return splat(f"T.int32({value})", self.count)

    def i(self, value: int) -> str:
        """An int64 constant."""
        return splat(f"T.int64({value})", self.count)

    def number(self, value: float | int | bool, lanes_kind: str) -> str:
        """A constant of a kind."""
        make: dict[str, Callable[[float], str]] = {
            FLOAT: self.f,
            INTEGER: lambda v: self.i(int(v)),
            TRUTH: lambda v: self.n(int(v)),
        }
        return make[lanes_kind](value)

    def cast(self, value: str, name: str) -> str:
        """The value converted to another TIR type."""
        return f'T.cast({value}, "{self.type(name)}")'

    def bits(self, value: str, name: str) -> str:
        """The same bits read as another TIR type."""
        return f'T.reinterpret("{self.type(name)}", {value})'

    def intrinsic(self, name: str, *values: str, result: str = FLOAT) -> str:
        """An LLVM intrinsic of lanes."""
        return f'T.call_llvm_pure_intrin("{self.type(result)}", "llvm.{name}", {", ".join(values)})'

    def select(self, condition: str, x: str, y: str) -> str:
        """x where the condition holds, else y."""
        return f"T.Select({condition}, {x}, {y})"

    def truth(self, condition: str) -> str:
        """A condition as a value of kind TRUTH."""
        return self.select(condition, self.n(1), self.n(0))

    def holds(self, value: str) -> str:
        """A value of kind TRUTH as a condition."""
        return f"({value} != {self.n(0)})"

    def at_most(self, value: str, bound: str) -> str:
        """min(value, bound) of floats; nan stays."""
        return self.select(f"{value} > {bound}", bound, value)

    def at_least(self, value: str, bound: str) -> str:
        """max(value, bound) of floats; nan stays."""
        return self.select(f"{value} < {bound}", bound, value)

    def polynomial(self, x: str, coefficients: tuple[float, ...]) -> str:
        """The polynomial with these coefficients, lowest first."""
        value = self.f(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = self.let(f"{value} * {x} + {self.f(coefficient)}")
        return value

    def converted(self, value: str, source: str, target: str) -> str:
        """A value of one kind as another; a float becomes an integer by truncation, a truth by `!= 0`."""
        if source == target:
            return value
        if target == TRUTH:
            return self.truth(f"{value} != {self.number(0, source)}")
        return self.cast(value, target)

    def wrapped(self, value: str, dtype: str) -> str:
        """int64 lanes cut to the range of a narrower integer dtype, modulo its width."""
        if dtype == "i64" or dtype not in INTEGERS:
            return value
        return self.let(self.cast(self.cast(value, STORAGE[dtype]), INTEGER), INTEGER)


def load(w: Writer, buffer: str, index: str, dtype: str, lanes: int = LANES) -> str:
    """`lanes` elements from `index` of a flat buffer of the IR dtype, in lanes of its kind."""
    return loaded(w, buffer, index, dtype, lanes, 1)


def loaded(w: Writer, buffer: str, index: str, dtype: str, lanes: int, step: int) -> str:
    """As `load`, elements that lie `step` apart."""
    v = Lanes(w, lanes)
    raw = at(buffer, index, lanes) if step == 1 or lanes == 1 else f"{buffer}[T.ramp({index}, {step}, {lanes})]"
    if kind(dtype) == FLOAT:
        return v.let(widened(raw, dtype, lanes))
    if dtype == "bool":
        return v.let(v.truth(f"{raw} != {splat('T.uint8(0)', lanes)}"), TRUTH)
    return v.let(raw if dtype == "i64" else v.cast(raw, INTEGER), INTEGER)


def store(w: Writer, buffer: str, index: str, dtype: str, value: str, lanes: int = LANES) -> None:
    """Write lanes of the dtype's kind at `index`: floats are rounded to the dtype, integers wrap."""
    if kind(dtype) == FLOAT:
        w.store(buffer, index, dtype, value, lanes)
    elif dtype == "i64":
        w(f"{at(buffer, index, lanes)} = {value}")
    else:
        w(f"{at(buffer, index, lanes)} = {Lanes(w, lanes).cast(value, STORAGE[dtype])}")
