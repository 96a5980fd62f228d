"""Matrix multiplication by AMX: the LLVM IR that kernels import.

A block is 17 to 32 rows of x times 16 or 32 columns: every matrix that is loaded meets two others. Matrices: 0 to 3 are
sums (of the first 16 rows 0 and 1), 4 and 5 weights, 6 and 7 x. The words of bfloat16 pairs that other kernels read are
what AMX wants: of weights 16 words by 16 depths, of x 16 rows by 16 words.

Tests run it in an emulation (`tests/backends/tvm/emulated_amx.py`) where the processor has none; its speed was never
measured.
"""

from __future__ import annotations

ROWS = 32
"""Rows of a block; the last one of few rows may have less, but more than half."""
MOST_VECTORS = 2

_DECLARED = """
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8 immarg, i8 immarg, i8 immarg)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1 immarg)
"""
_RELEASE = """
define i32 @irx_amx_release() alwaysinline {
  call void @llvm.x86.tilerelease()
  ret i32 0
}
"""


def functions(vectors: int) -> str:
    """The functions for blocks of `vectors` times 16 columns."""
    if not 1 <= vectors <= MOST_VECTORS:
        raise ValueError(f"{vectors} vectors of columns, not 1 to {MOST_VECTORS}")
    sums = [(half, v) for half in range(2) for v in range(vectors)]
    return _DECLARED + _configure() + _RELEASE + _zero(sums) + _multiply(vectors) + _store(sums)


def statement(name: str, *arguments: str) -> str:
    """A TIR statement that calls one of the functions.

    `configure(rows)`, `release`, `zero`, `multiply(x, x_stride, weights, stride, steps)`, `store(sums, stride)`: rows
    are those of a block behind its first 16, strides are in bytes, a step is 32 columns of x.
    """
    operands = ", ".join(['"int32"', f'"irx_amx_{name}"', *arguments])
    return f"T.evaluate(T.call_extern({operands}))"


def _sum(half: int, vector: int) -> int:
    return 2 * half + vector


def _configure() -> str:
    """Eight matrices of rows of 64 bytes: 16, or those of the block's second half."""
    lines = ["define i32 @irx_amx_configure(i64 %rows) alwaysinline {", "  %c = alloca [64 x i8], align 64"]
    lines.append("  call void @llvm.memset.p0.i64(ptr %c, i8 0, i64 64, i1 false)")
    lines.append("  store i8 1, ptr %c")
    lines.append("  %second = trunc i64 %rows to i8")
    for i in range(8):
        lines += [f"  %b{i} = getelementptr i8, ptr %c, i64 {16 + 2 * i}", f"  store i16 64, ptr %b{i}"]
        rows = "%second" if i in (2, 3, 7) else "16"
        lines += [f"  %r{i} = getelementptr i8, ptr %c, i64 {48 + i}", f"  store i8 {rows}, ptr %r{i}"]
    return "\n".join([*lines, "  call void @llvm.x86.ldtilecfg(ptr %c)", "  ret i32 0", "}", ""])


def _zero(sums: list[tuple[int, int]]) -> str:
    lines = [f"  call void @llvm.x86.tilezero(i8 {_sum(*one)})" for one in sums]
    return "\n".join(["define i32 @irx_amx_zero() alwaysinline {", *lines, "  ret i32 0", "}", ""])


def _multiply(vectors: int) -> str:
    steps = []
    for v in range(vectors):
        steps.append(f"  %w{v} = getelementptr i8, ptr %w, i64 {64 * v}")
        steps.append(f"  call void @llvm.x86.tileloadd64(i8 {4 + v}, ptr %w{v}, i64 %stride)")
        for half in range(2):
            steps.append(f"  call void @llvm.x86.tdpbf16ps(i8 {_sum(half, v)}, i8 {6 + half}, i8 {4 + v})")
    body = "\n".join(steps)
    return f"""define i32 @irx_amx_multiply(ptr %x0, i64 %row, ptr %w0.0, i64 %stride, i64 %steps) alwaysinline {{
entry:
  %advance = mul i64 %stride, 16
  %half = mul i64 %row, 16
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %x.at = mul i64 %i, 64
  %x = getelementptr i8, ptr %x0, i64 %x.at
  %x.half = getelementptr i8, ptr %x, i64 %half
  %w.at = mul i64 %i, %advance
  %w = getelementptr i8, ptr %w0.0, i64 %w.at
  call void @llvm.x86.tileloadd64(i8 6, ptr %x, i64 %row)
  call void @llvm.x86.tileloadd64(i8 7, ptr %x.half, i64 %row)
{body}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %steps
  br i1 %more, label %loop, label %out
out:
  ret i32 0
}}
"""


def _store(sums: list[tuple[int, int]]) -> str:
    lines = ["  %half = mul i64 %stride, 16", "  %h0 = getelementptr i8, ptr %p, i64 0"]
    lines.append("  %h1 = getelementptr i8, ptr %p, i64 %half")
    for half, v in sums:
        place = _sum(half, v)
        lines.append(f"  %p{place} = getelementptr i8, ptr %h{half}, i64 {64 * v}")
        lines.append(f"  call void @llvm.x86.tilestored64(i8 {place}, ptr %p{place}, i64 %stride)")
    return "\n".join(["define i32 @irx_amx_store(ptr %p, i64 %stride) alwaysinline {", *lines, "  ret i32 0", "}", ""])
