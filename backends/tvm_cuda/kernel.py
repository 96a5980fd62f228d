"""A kernel as TVM reads it: what it computes, without a word about threads; how, TVM decides when it compiles it."""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.triton.kernel import Kernel, Parameter, Pointer

STORED = {
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u32": "uint32",
    "u16": "uint16",
    "u8": "uint8",
    "bool": "uint8",
}
"""How elements of an IR dtype (and of words of packed codes) lie in memory, in TIR's spelling."""


@dataclass(frozen=True)
class CudaKernel(Kernel):
    """One function of blocks: `body` gives every pointer `x` a shape (`x = T.match_buffer(x_p, ...)`), and reads sizes
    as i64. The grid and the threads of a block are TVM's choice, and come with the binary.
    """

    @property
    def code(self) -> str:
        """The function alone: equal kernels of different places have equal code."""
        declared = ", ".join(map(_declared, self.parameters))
        lines = ["@T.prim_func(s_tir=True)", f"def {self.symbol}({declared}):"]
        lines.append(f'    T.func_attr({{"global_symbol": "{self.symbol}", "tirx.noalias": True}})')
        return "\n".join([*lines, *(f"    {line}" for line in self.body.splitlines())]) + "\n"


def _declared(parameter: Parameter) -> str:
    return f"{parameter.name}_p: T.handle" if isinstance(parameter, Pointer) else f"{parameter.name}: T.int64"
