"""Writing the body of a Triton function: lines, blocks and names.

w = Writer()
acc = w.fresh("acc")
w(f"{acc} = tl.zeros((64,), tl.float32)")
with w.block("for k in range(0, 576, 64):"):
    x = w.load("x", "k + tl.arange(0, 64)", "bf16")       # a name for float32 values
    w(f"{acc} += {x} * {x}")
w.store("y", "tl.program_id(0)", "bf16", f"tl.sum({acc}, 0)")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

INTEGERS = ("i64", "i32", "i16", "i8", "u8")


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
            self("pass")
        self._depth -= 1

    def fresh(self, prefix: str = "v") -> str:
        """A name not used before."""
        self._count += 1
        return f"{prefix}_{self._count}"

    def let(self, value: str, prefix: str = "v") -> str:
        """A name for a value."""
        name = self.fresh(prefix)
        self(f"{name} = {value}")
        return name

    def load(self, pointer: str, index: str, dtype: str, mask: str = "") -> str:
        """A name for the elements at `index`: float32, int64, or int1 for truth values; 0 outside of `mask`."""
        return self.let(loaded(pointer, index, dtype, mask), "x")

    def store(self, pointer: str, index: str, dtype: str, value: str, mask: str = "") -> None:
        """Write `value`, rounded to the `dtype` of the buffer, at `index`."""
        self(f"tl.store({pointer} + {index}, {narrowed(value, dtype)}{f', mask={mask}' if mask else ''})")


def loaded(pointer: str, index: str, dtype: str, mask: str = "") -> str:
    """The text of a load as `Writer.load` makes it."""
    other = "" if not mask else f", mask={mask}, other={'0' if dtype in (*INTEGERS, 'bool') else '0.0'}"
    text = f"tl.load({pointer} + {index}{other})"
    if dtype == "bool":
        return f"({text} != 0)"
    return f"{text}.to(tl.int64)" if dtype in INTEGERS else f"{text}.to(tl.float32)"


def narrowed(value: str, dtype: str) -> str:
    """A computed value as an element of a buffer of `dtype`: to nearest, ties to even."""
    return f"({value}).to({ELEMENTS[dtype]})"


ELEMENTS = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "bf16": "tl.bfloat16",
    "f16": "tl.float16",
    "f8e4m3": "tl.float8e4nv",
    "f8e5m2": "tl.float8e5",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u32": "tl.uint32",
    "u16": "tl.uint16",
    "u8": "tl.uint8",
    "bool": "tl.uint8",
}
"""The element type of a buffer as kernels write it."""
