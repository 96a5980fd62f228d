"""Instructions that TIR has no words for, as LLVM IR that kernels import, and the words for calling them."""

from __future__ import annotations

import re

import numpy as np

from irx.backends.layouts.coding import Coding

PREFETCH = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define i32 @irx_prefetch(ptr %p) alwaysinline {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)
  ret i32 0
}
"""
"""As far as the second-level cache: the first has room for few lines under way, and they would hold up all loads."""
PAIRS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @irx_dot_pairs(<16 x float> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
"""
HIGHEST = """
define float @irx_highest(<16 x float> %x) alwaysinline {
  %a = shufflevector <16 x float> %x, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %b = shufflevector <16 x float> %x, <16 x float> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %more8 = fcmp ogt <8 x float> %a, %b
  %m8 = select <8 x i1> %more8, <8 x float> %a, <8 x float> %b
  %c = shufflevector <8 x float> %m8, <8 x float> poison, <4 x i32> <i32 0, i32 1, i32 2, i32 3>
  %d = shufflevector <8 x float> %m8, <8 x float> poison, <4 x i32> <i32 4, i32 5, i32 6, i32 7>
  %more4 = fcmp ogt <4 x float> %c, %d
  %m4 = select <4 x i1> %more4, <4 x float> %c, <4 x float> %d
  %e = shufflevector <4 x float> %m4, <4 x float> poison, <4 x i32> <i32 2, i32 3, i32 2, i32 3>
  %more2 = fcmp ogt <4 x float> %m4, %e
  %m2 = select <4 x i1> %more2, <4 x float> %m4, <4 x float> %e
  %y = extractelement <4 x float> %m2, i32 0
  %z = extractelement <4 x float> %m2, i32 1
  %more = fcmp ogt float %y, %z
  %r = select i1 %more, float %y, float %z
  ret float %r
}
"""  # noqa: E501
SUM = """
declare float @llvm.vector.reduce.fadd.v16f32(float, <16 x float>)
define float @irx_sum(<16 x float> %x) alwaysinline {
  %r = call reassoc float @llvm.vector.reduce.fadd.v16f32(float -0.0, <16 x float> %x)
  ret float %r
}
"""

_PERMUTE = {
    1: "@llvm.x86.avx512.permvar.hi.512(<32 x i16> {0}, <32 x i16> %codes)",
    2: "@llvm.x86.avx512.vpermi2var.hi.512(<32 x i16> {0}, <32 x i16> %codes, <32 x i16> {1})",
}
_CODE_HALVES = """
declare <32 x i16> {declared}
define <16 x i32> @irx_code_halves_{bits}_{zero}(<16 x i32> %words) alwaysinline {{
  %codes = bitcast <16 x i32> %words to <32 x i16>
  %halves = call <32 x i16> {called}
  %r = bitcast <32 x i16> %halves to <16 x i32>
  ret <16 x i32> %r
}}
"""
CROSSED = """
define <16 x float> @irx_crossed(<16 x float> %x) alwaysinline {
  %r = shufflevector <16 x float> %x, <16 x float> zeroinitializer, <16 x i32> <ORDER>
  ret <16 x float> %r
}
""".replace("ORDER", ", ".join(f"i32 {first + i}" for first in range(0, 16, 4) for i in (0, 2, 1, 3)))


def needed_for_halves(coding: Coding) -> str:
    """What kernels import for `code_halves`."""
    bits = max(coding.bits, 5)
    values = [float(code % (1 << coding.bits) - coding.zero) for code in range(1 << bits)]
    halves = np.array(values, np.float32).view(np.uint32) >> 16
    tables = [f"<{', '.join(f'i16 {half}' for half in part)}>" for part in halves.reshape(-1, 32)]
    call = _PERMUTE[len(tables)]
    declared = re.sub(r" (%codes|\{\d\})", "", call)
    return _CODE_HALVES.format(bits=coding.bits, zero=coding.zero, declared=declared, called=call.format(*tables))


def code_halves(coding: Coding, words: str) -> str:
    """Pairs of codes of at most 6 bits in 16 words, less their zero, as pairs of bfloat16.

    A code is the low bits of each half of a word; with 4 bits the fifth one may be anything, as may be all above.
    """
    return f'T.call_pure_extern("int32x16", "irx_code_halves_{coding.bits}_{coding.zero}", {words})'


def crossed(value: str) -> str:
    """16 floats with the second and the third of every four exchanged."""
    return f'T.call_pure_extern("float32x16", "irx_crossed", {value})'


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
    """All 16 lanes as one: `fmin`, `fmax`, `smax` or `add`, and `fadd` in lane order."""
    start = "T.float32(0), " if operation == "fadd" else ""
    return f'T.call_llvm_pure_intrin("{dtype}", "llvm.vector.reduce.{operation}", {start}{value})'


def summed(value: str) -> str:
    """The sum of all 16 lanes, in any order: a tree of additions, where lane after lane would wait for each other."""
    return f'T.call_pure_extern("float32", "irx_sum", {value})'


def largest_of(magnitudes: str) -> str:
    """The largest of 16 floats that are not negative, nan where there is one: as integers their order is the same.

    LLVM's own maximum of floats passes over nan, which takes lane after lane.
    """
    bits = reduced(f'T.reinterpret("int32x16", {magnitudes})', "smax", "int32")
    return f'T.reinterpret("float32", {bits})'


def highest(value: str) -> str:
    """The largest of all 16 lanes, by halves; LLVM's own reduction passes over nan, which takes lane after lane."""
    return f'T.call_pure_extern("float32", "irx_highest", {value})'
