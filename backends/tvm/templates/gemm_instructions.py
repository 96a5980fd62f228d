"""Instructions of matrix-matrix kernels that TIR has no words for, as LLVM IR that kernels import."""

from __future__ import annotations

from irx.backends.tvm.templates.instructions import PAIRS, dot_bytes, dot_pairs

_EVEN = ", ".join(f"i32 {4 * i}, i32 64, i32 {4 * i + 1}, i32 64" for i in range(16))
_ODD = ", ".join(f"i32 {4 * i + 2}, i32 64, i32 {4 * i + 3}, i32 64" for i in range(16))

_WORDS = """
define <16 x i32> @irx_{name}_words(<16 x i32> %quad, <16 x i32> %zero) alwaysinline {{
  %bytes = bitcast <16 x i32> %quad to <64 x i8>
  %pairs = shufflevector <64 x i8> %bytes, <64 x i8> zeroinitializer, <64 x i32> <{order}>
  %codes = bitcast <64 x i8> %pairs to <32 x i16>
  %zeros = bitcast <16 x i32> %zero to <32 x i16>
  %centred = sub <32 x i16> %codes, %zeros
  %r = bitcast <32 x i16> %centred to <16 x i32>
  ret <16 x i32> %r
}}
"""
WORDS = _WORDS.format(name="even", order=_EVEN) + _WORDS.format(name="odd", order=_ODD)
"""Columns k, k+1 (even) or k+2, k+3 (odd) of 16 quads of unsigned bytes, less their zero, as pairs of 16-bit codes."""

DOT_WORDS = """
declare <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32>, <32 x i16>, <32 x i16>)
define <16 x i32> @irx_dot_words(<16 x i32> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x i16>
  %y = bitcast <16 x i32> %b to <32 x i16>
  %r = call <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32> %sum, <32 x i16> %x, <32 x i16> %y)
  ret <16 x i32> %r
}
"""
HALVES = """
define <16 x i32> @irx_halves(<16 x i32> %words) alwaysinline {
  %codes = bitcast <16 x i32> %words to <32 x i16>
  %wide = sitofp <32 x i16> %codes to <32 x float>
  %bits = bitcast <32 x float> %wide to <32 x i32>
  %top = lshr <32 x i32> %bits, splat (i32 16)
  %narrow = trunc <32 x i32> %top to <32 x i16>
  %r = bitcast <32 x i16> %narrow to <16 x i32>
  ret <16 x i32> %r
}
"""
"""Pairs of small 16-bit integers as pairs of bfloat16."""

NEEDED = {
    "floats": "",
    "pairs": PAIRS,
    "halves": PAIRS + WORDS + HALVES,
    "words": DOT_WORDS + WORDS,
    "bytes": "",
    "split": PAIRS,
}
"""What the kernels of each way import."""


def dot(way: str, total: str, weights: str, x: str) -> str:
    """The sum `total` plus the product of 16 words of weights and 16 of x."""
    if way == "floats":
        return f"{total} + {x} * {weights}"
    if way == "words":
        return f'T.call_pure_extern("int32x16", "irx_dot_words", {total}, {weights}, {x})'
    return dot_bytes(total, weights, x) if way == "bytes" else dot_pairs(total, weights, x)


def code_pairs(quad: str, zero: int, which: str) -> str:
    """16 pairs of centred 16-bit codes: the `even` or `odd` columns pairs of 16 quads of unsigned bytes."""
    zeros = f"T.broadcast({zero * 0x10001}, 16)"
    return f'T.call_pure_extern("int32x16", "irx_{which}_words", {quad}, {zeros})'


def halves(words: str) -> str:
    """16 pairs of 16-bit integers as pairs of bfloat16."""
    return f'T.call_pure_extern("int32x16", "irx_halves", {words})'
