"""A kernel as data: a name, typed parameters, and a body in TVMScript.

Every kernel is one function `kernel(tid, nt, *sizes, *pointers)`: thread `tid` of `nt` does its share of the work.
Sizes are i64 values known when it runs, pointers are raw addresses of 64-byte aligned buffers (T.handle). What never
changes (feature sizes, heads, formats) is baked into the body, so that equal layers share one compiled object.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias


@dataclass(frozen=True)
class Size:
    """An i64 parameter: rows, capacity, anything known only when the kernel runs."""

    name: str


@dataclass(frozen=True)
class Pointer:
    """A buffer parameter. `dtype` is TIR's spelling of its elements: float32, uint16, int32, int64, uint8, int8.

    In the body the buffer is `name`, flat and indexed in elements, unless `shape` gives it axes: ints, names of sizes.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] = ()


Parameter: TypeAlias = "Size | Pointer"

HEADER = "T.func_attr({{'tirx.noalias': {noalias}, 'global_symbol': '{symbol}'}})"
UNBOUNDED = 1 << 40  # the extent of a flat buffer: never checked, only there because TIR wants one


@dataclass(frozen=True)
class Kernel:
    """One compiled function.

    `body` holds TVMScript statements; `llvm` is LLVM IR to import, for instructions that TIR has no words for; `note`
    says in one line what the kernel computes. Parameters that may point to the same memory need `aliases`.
    """

    name: str
    parameters: tuple[Parameter, ...]
    body: str
    llvm: str = ""
    note: str = ""
    aliases: bool = False

    @cached_property
    def symbol(self) -> str:
        """The name of the compiled function, unique to its text."""
        text = "\n".join([self.name, self.body, self.llvm, repr(self.parameters), str(self.aliases)])
        return f"{self.name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def source(self) -> str:
        """The whole function as TVMScript reads it, under a line that says what it computes."""
        return f"# {self.note or self.name}\n{self.code}"

    @property
    def code(self) -> str:
        """The function alone: equal kernels of different places have equal code."""
        signature = ", ".join(["tid: T.int64", "nt: T.int64", *map(_declared, self.parameters)])
        lines = ["@T.prim_func(s_tir=True)", f"def {self.symbol}({signature}):"]
        lines.append("    " + HEADER.format(noalias=not self.aliases, symbol=self.symbol))
        if self.llvm:
            lines.append(f'    T.attr(0, "pragma_import_llvm", {self.llvm!r})')
        lines += ["    " + _buffer(p) for p in self.parameters if isinstance(p, Pointer)]
        lines += ["    " + line for line in self.body.splitlines()]
        return "\n".join(lines) + "\n"


def _declared(parameter: Parameter) -> str:
    if isinstance(parameter, Size):
        return f"{parameter.name}: T.int64"
    return f'{parameter.name}_p: T.handle("{parameter.dtype}")'


def _buffer(pointer: Pointer) -> str:
    shape = ", ".join(map(str, pointer.shape or (UNBOUNDED,)))
    return f'{pointer.name} = T.decl_buffer(({shape},), "{pointer.dtype}", data={pointer.name}_p)'
