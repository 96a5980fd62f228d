"""Instructions that TIR has no words for, as LLVM IR that kernels import, and the words for calling them."""

from __future__ import annotations

PREFETCH = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define i32 @irx_prefetch(ptr %p) alwaysinline {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 3, i32 1)
  ret i32 0
}
"""
PAIRS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @irx_dot_pairs(<16 x float> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
"""


def prefetch(buffer: str, index: str) -> str:
    """A statement: the line of an element will be needed soon."""
    return f'T.evaluate(T.call_extern("int32", "irx_prefetch", T.address_of({buffer}[{index}])))'


def dot_pairs(total: str, weights: str, x: str) -> str:
    """float32 lanes plus the products of two bfloat16 pairs each: 16 words of weights, 16 of x."""
    return f'T.call_pure_extern("float32x16", "irx_dot_pairs", {total}, {weights}, {x})'


def dot_bytes(total: str, unsigned: str, signed: str) -> str:
    """int32 lanes plus the products of four bytes each (VNNI): 16 words of u8, 16 of s8."""
    operands = ", ".join(f'T.reinterpret("int8x64", {words})' for words in (unsigned, signed))
    return f'T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", {total}, {operands})'


def reduced(value: str, operation: str, dtype: str = "float32") -> str:
    """All 16 lanes as one: `fmax` or `add`, and `fadd` in lane order."""
    start = "T.float32(0), " if operation == "fadd" else ""
    return f'T.call_llvm_pure_intrin("{dtype}", "llvm.vector.reduce.{operation}", {start}{value})'
