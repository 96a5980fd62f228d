"""Writing TVMScript: lines, blocks, vector registers, and loads and stores that convert.

    w = Writer()
    with w.block("for row in T.serial((rows * tid) // nt, (rows * (tid + 1)) // nt):"):
        x = w.load("x", "row * 64", "f32")             # 16 lanes of float32 in a register
        w.store("y", "row * 64", "f32", f"{x} * {x}")
    Kernel("square", (Size("rows"), Pointer("x", "float32"), Pointer("y", "float32")), w.text())

A register is a local buffer of 16 lanes that LLVM keeps in a vector register; its name can stand in any expression.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LANES = 16
STACK = 1024  # bytes from which TVM would ask its runtime for memory, and there is none
STORAGE = {
    "f32": "float32",
    "bf16": "uint16",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "uint8",
}
"""How a tensor of an IR dtype lies in memory, in TIR's spelling."""


class Writer:
    """Collects the statements of one kernel body."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0
        self._count = 0

    def text(self) -> str:
        """All statements."""
        return "\n".join(self._lines) + "\n"

    def __call__(self, line: str) -> None:
        """One statement."""
        self._lines.append("    " * self._depth + line)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """Statements under a `for` or `if` line."""
        self(header)
        self._depth += 1
        start = len(self._lines)
        yield
        if len(self._lines) == start:
            self("T.evaluate(0)")
        self._depth -= 1

    def fresh(self, prefix: str) -> str:
        """A name not used before."""
        self._count += 1
        return f"{prefix}_{self._count}"

    def register(self, value: str | None = None, *, dtype: str = "float32", lanes: int = LANES) -> str:
        """A register that can be assigned to: returns the text that reads or, on the left of `=`, writes it."""
        name = self.fresh("r")
        self(f'{name} = T.alloc_buffer(({lanes},), "{dtype}")')
        place = f"{name}[T.ramp(0, 1, {lanes})]" if lanes > 1 else f"{name}[0]"
        if value is not None:
            self(f"{place} = {value}")
        return place

    def let(self, value: str, prefix: str = "v") -> str:
        """A name for a scalar (or vector) value that never changes."""
        name = self.fresh(prefix)
        self(f"{name}: T.let = {value}")
        return name

    def local(self, size: int, dtype: str = "float32") -> str:
        """A small buffer of the thread's own, on the stack: of less than STACK bytes."""
        if size * int("".join(filter(str.isdigit, dtype))) // 8 >= STACK:
            raise ValueError(f"a local buffer of {size} {dtype} elements is too large for the stack")
        name = self.fresh("b")
        self(f'{name} = T.alloc_buffer(({size},), "{dtype}")')
        return name

    def load(self, buffer: str, index: str, dtype: str, lanes: int = LANES) -> str:
        """A register of `lanes` f32 values read at `index` of a buffer that holds `dtype` elements."""
        return self.register(widened(at(buffer, index, lanes), dtype, lanes), lanes=lanes)

    def store(self, buffer: str, index: str, dtype: str, value: str, lanes: int = LANES) -> None:
        """Write `lanes` f32 values, rounded to `dtype`, at `index`."""
        self(f"{at(buffer, index, lanes)} = {narrowed(self, value, dtype, lanes)}")


def at(buffer: str, index: str, lanes: int = LANES) -> str:
    """Element `index` of a flat buffer, or `lanes` elements from there."""
    return f"{buffer}[T.ramp({index}, 1, {lanes})]" if lanes > 1 else f"{buffer}[{index}]"


def typed(dtype: str, lanes: int) -> str:
    """`float32x16`, or `float32` for one lane."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def splat(value: str, lanes: int = LANES) -> str:
    """A scalar in all lanes."""
    return f"T.broadcast({value}, {lanes})" if lanes > 1 else value


def constant(value: float, lanes: int = LANES) -> str:
    """A float32 constant in all lanes; infinities as T spells them."""
    if value != value or value in (float("inf"), float("-inf")):
        return splat(f'T.float32("{"nan" if value != value else "inf" if value > 0 else "-inf"}")', lanes)
    return splat(f"T.float32({value!r})", lanes)


def widened(value: str, dtype: str, lanes: int = LANES) -> str:
    """An element (or lanes) as they lie in memory, as float32."""
    if dtype == "f32":
        return value
    if dtype == "bf16":
        bits = f'T.shift_left(T.cast({value}, "{typed("uint32", lanes)}"), {splat("T.uint32(16)", lanes)})'
        return f'T.reinterpret("{typed("float32", lanes)}", {bits})'
    return f'T.cast({value}, "{typed("float32", lanes)}")'


def narrowed(w: Writer, value: str, dtype: str, lanes: int = LANES) -> str:
    """float32 lanes as elements of `dtype`; bf16 rounds to nearest, ties to even, and keeps a NaN one."""
    if dtype == "f32":
        return value
    if dtype == "bf16":
        return f'T.cast({bf16_bits(w, value, lanes)}, "{typed("uint16", lanes)}")'
    return f'T.cast({value}, "{typed(STORAGE[dtype], lanes)}")'


def bf16_bits(w: Writer, value: str, lanes: int = LANES) -> str:
    """The bfloat16 nearest to each float32 lane, as the low 16 bits of uint32 lanes."""
    wide = typed("uint32", lanes)

    def c(number: int) -> str:
        return splat(f"T.uint32({number})", lanes)

    kept = w.register(value, lanes=lanes)
    bits = w.register(f'T.reinterpret("{wide}", {kept})', dtype="uint32", lanes=lanes)
    odd = f"T.bitwise_and(T.shift_right({bits}, {c(16)}), {c(1)})"
    rounded = f"T.shift_right({bits} + {c(0x7FFF)} + {odd}, {c(16)})"
    return f"T.Select({kept} == {kept}, {rounded}, {c(0x7FC0)})"
