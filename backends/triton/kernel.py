"""A kernel as data: a name, typed parameters, the text of a Triton function, its grid, and how it is compiled.

What never changes (feature sizes, heads, formats) is baked into the text, so that equal layers share one binary:

    w = Writer()
    row = w.let("tl.program_id(0)", "row")
    i = w.let("tl.arange(0, 1024)", "i")
    x = w.let(f"tl.load(x + {row} * 576 + {i}, mask={i} < 576, other=0.0).to(tl.float32)", "x")
    w(f"tl.store(y + {row} * 576 + {i}, ({x} * {x}).to(y.dtype.element_ty), mask={i} < 576)")
    kernel = Kernel("square", (Pointer("x", "bf16"), Pointer("y", "bf16"), Size("rows")), w.text(), grid=("rows",))
    Call(kernel, {"x": Data(a), "y": Data(b), "rows": rows_of(a)})

Rules of the interpreter and of compiling ahead of time: kernels with scratch memory of their own, several CTAs in a
cluster or host-made descriptors are not launched; `mask & scalar_condition` breaks one interpreter: compare the index
with `tl.where(condition, n, 0)` instead.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import CodeType
from typing import TypeAlias

ALIGNMENT = 16  # bytes of the pointers, and factor of the sizes, that compiled kernels may count on

STORED: Mapping[str, str] = {
    "f64": "fp64",
    "f32": "fp32",
    "bf16": "bf16",
    "f16": "fp16",
    "f8e4m3": "fp8e4nv",
    "f8e5m2": "fp8e5",
    "i64": "i64",
    "i32": "i32",
    "i16": "i16",
    "i8": "i8",
    "u32": "u32",
    "u16": "u16",
    "u8": "u8",
    "bool": "u8",
}
"""How elements of an IR dtype (and of words of packed codes) lie in memory, in Triton's spelling."""


@dataclass(frozen=True)
class Size:
    """An integer parameter: rows, capacity, anything known only when the kernel runs; `dtype` is i32 or i64.

    With `multiple` 16 the binary counts on a multiple of 16, so bind only what always is one.
    """

    name: str
    dtype: str = "i32"
    multiple: int = 1


@dataclass(frozen=True)
class Pointer:
    """A buffer of elements of an IR `dtype`: `tl.load(name + index)`. All buffers begin on 16 bytes.

    Truth values are bytes: compare a loaded one with 0. Not `aligned`: the kernel gets an address inside a buffer.
    """

    name: str
    dtype: str
    aligned: bool = True


Parameter: TypeAlias = "Size | Pointer"
Constant: TypeAlias = "int | float | bool | str"

HEAD = """import triton
import triton.language as tl
"""


@dataclass(frozen=True)
class Kernel:
    """One compiled function.

    `body` are its statements. `helpers` is the text of whole `@triton.jit` functions that it calls. `constants` are
    `tl.constexpr` parameters with their values, for bodies that are not written for one shape. `grid` are one to three
    Python expressions over names of sizes and constants, with `ceil(a, b)`, `min` and `max`. `stages` is the depth of
    software pipelines, `fusion` whether a * b + c may become one instruction. `note` says what the kernel computes.
    Programs of one that `waits` wait for each other, so the device must have room for all of them at once.
    """

    name: str
    parameters: tuple[Parameter, ...]
    body: str
    grid: tuple[str, ...]
    helpers: str = ""
    constants: tuple[tuple[str, Constant], ...] = ()
    warps: int = 4
    stages: int = 2
    fusion: bool = True
    waits: bool = False
    note: str = ""

    @cached_property
    def symbol(self) -> str:
        """The name of the compiled function, unique to its text and to how it is compiled."""
        how = repr((self.parameters, self.grid, self.constants, self.options))
        text = "\n".join((self.name, self.body, self.helpers, how))
        return f"{self.name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def options(self) -> dict[str, int | bool]:
        """What Triton is told."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fusion}

    @property
    def signature(self) -> dict[str, str]:
        """The type of every parameter as Triton spells it."""
        types = {p.name: f"*{STORED[p.dtype]}" if isinstance(p, Pointer) else p.dtype for p in self.parameters}
        return types | {name: "constexpr" for name, _ in self.constants}

    @property
    def divisible(self) -> tuple[str, ...]:
        """Parameters that are multiples of 16."""
        return tuple(p.name for p in self.parameters if _divisible(p))

    @property
    def source(self) -> str:
        """The module under a line that says what it computes."""
        return f"# {self.note or self.name}\n{self.code}"

    @property
    def code(self) -> str:
        """The module alone: equal kernels of different places have equal code."""
        names = [p.name for p in self.parameters] + [f"{name}: tl.constexpr" for name, _ in self.constants]
        lines = [f"@triton.jit\ndef {self.symbol}({', '.join(names)}):"]
        lines += [f"    {line}" if line else "" for line in self.body.splitlines()]
        helpers = [self.helpers.strip("\n") + "\n"] if self.helpers else []
        return "\n\n".join([HEAD, *helpers, "\n".join(lines) + "\n"])


def _divisible(parameter: Parameter) -> bool:
    if isinstance(parameter, Pointer):
        return parameter.aligned
    return parameter.multiple % ALIGNMENT == 0


def launch_grid(grid: Sequence[str], values: Mapping[str, int]) -> tuple[int, int, int]:
    """The numbers of programs in three directions. Raises ValueError for text that is no expression of a grid."""
    names = {"ceil": _ceil, "min": min, "max": max, **values}
    counts = [int(eval(_compiled(text), {"__builtins__": {}}, names)) for text in grid]
    x, y, z = (*counts, 1, 1)[:3]
    return x, y, z


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


_ALLOWED = (ast.Expression, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Call, ast.Name, ast.Load)


@cache
def _compiled(text: str) -> CodeType:
    """The code of one expression: an artifact's may come from anywhere, so nothing else is evaluated."""
    tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        is_number = isinstance(node, ast.Constant) and type(node.value) is int
        if not (isinstance(node, _ALLOWED) or is_number):
            raise ValueError(f"{text!r} is no expression of a grid")
    return compile(tree, "<grid>", "eval")
