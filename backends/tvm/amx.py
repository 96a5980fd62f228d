"""Matrix multiplication by AMX: the LLVM IR that kernels import.

A block is 16 rows of x times up to four times 16 columns. Matrices: 0 to 3 are sums, 4 and 5 weights, 6 x. The words of
bfloat16 pairs that other kernels read are what AMX wants: of weights 16 words by 16 depths, of x 16 rows by 16 words.

Tests run it in an emulation (`tests/backends/tvm/emulated_amx.py`) where the processor has none; its speed was never
measured.
"""

from __future__ import annotations

MOST_VECTORS = 4

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
    """The functions for blocks of 16 rows and `vectors` times 16 columns."""
    if not 1 <= vectors <= MOST_VECTORS:
        raise ValueError(f"{vectors} vectors of columns, not 1 to {MOST_VECTORS}")
    return _DECLARED + _configure() + _RELEASE + _zero(vectors) + _multiply(vectors) + _store(vectors)


def statement(name: str, *arguments: str) -> str:
    """A TIR statement that calls one of the functions.

    `configure`, `release`, `zero`, `multiply(x, x_stride, weights, stride, steps)`, `store(sums, stride)`: strides are
    in bytes, a step is 32 columns of x.
    """
    operands = ", ".join(['"int32"', f'"irx_amx_{name}"', *arguments])
    return f"T.evaluate(T.call_extern({operands}))"


def _configure() -> str:
    """Eight matrices of 16 rows of 64 bytes."""
    lines = ["define i32 @irx_amx_configure() alwaysinline {", "  %c = alloca [64 x i8], align 64"]
    lines.append("  call void @llvm.memset.p0.i64(ptr %c, i8 0, i64 64, i1 false)")
    lines.append("  store i8 1, ptr %c")
    for i in range(8):
        lines += [f"  %b{i} = getelementptr i8, ptr %c, i64 {16 + 2 * i}", f"  store i16 64, ptr %b{i}"]
        lines += [f"  %r{i} = getelementptr i8, ptr %c, i64 {48 + i}", f"  store i8 16, ptr %r{i}"]
    return "\n".join([*lines, "  call void @llvm.x86.ldtilecfg(ptr %c)", "  ret i32 0", "}", ""])


def _zero(vectors: int) -> str:
    lines = [f"  call void @llvm.x86.tilezero(i8 {v})" for v in range(vectors)]
    return "\n".join(["define i32 @irx_amx_zero() alwaysinline {", *lines, "  ret i32 0", "}", ""])


def _multiply(vectors: int) -> str:
    steps = []
    for v in range(vectors):
        steps.append(f"  %w{v} = getelementptr i8, ptr %w, i64 {64 * v}")
        steps.append(f"  call void @llvm.x86.tileloadd64(i8 {4 + v % 2}, ptr %w{v}, i64 %stride)")
        steps.append(f"  call void @llvm.x86.tdpbf16ps(i8 {v}, i8 6, i8 {4 + v % 2})")
    body = "\n".join(steps)
    return f"""define i32 @irx_amx_multiply(ptr %x0, i64 %row, ptr %w0.0, i64 %stride, i64 %steps) alwaysinline {{
entry:
  %advance = mul i64 %stride, 16
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %x.at = mul i64 %i, 64
  %x = getelementptr i8, ptr %x0, i64 %x.at
  %w.at = mul i64 %i, %advance
  %w = getelementptr i8, ptr %w0.0, i64 %w.at
  call void @llvm.x86.tileloadd64(i8 6, ptr %x, i64 %row)
{body}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %steps
  br i1 %more, label %loop, label %out
out:
  ret i32 0
}}
"""


def _store(vectors: int) -> str:
    lines = []
    for v in range(vectors):
        lines.append(f"  %p{v} = getelementptr i8, ptr %p, i64 {64 * v}")
        lines.append(f"  call void @llvm.x86.tilestored64(i8 {v}, ptr %p{v}, i64 %stride)")
    return "\n".join(["define i32 @irx_amx_store(ptr %p, i64 %stride) alwaysinline {", *lines, "  ret i32 0", "}", ""])
