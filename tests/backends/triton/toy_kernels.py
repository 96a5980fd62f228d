"""Two small kernels in Triton, compiled ahead of time for the tests of what is read from binaries."""

from __future__ import annotations

from functools import cache
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "a100-80gb": GPUTarget("cuda", 80, 32),
    "l4": GPUTarget("cuda", 89, 32),
    "h200": GPUTarget("cuda", 90, 32),
    "mi300x": GPUTarget("hip", "gfx942", 64),
}


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    tl.store(out + place, tl.load(x + place, mask=inside) + tl.load(y + place, mask=inside), mask=inside)


@triton.jit
def product(a, b, out, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        left = tl.load(a + rows[:, None] * K + (start + inner)[None, :])
        right = tl.load(b + (start + inner)[:, None] * N + columns[None, :])
        total = tl.dot(left, right, total)
    tl.store(out + rows[:, None] * N + columns[None, :], total.to(tl.bfloat16))


ADD = {"x": "*bf16", "y": "*bf16", "out": "*bf16", "n": "i32", "BLOCK": 1024}
PRODUCT = {"a": "*bf16", "b": "*bf16", "out": "*bf16", "N": "i32", "K": "i32", "BM": 64, "BN": 64, "BK": 32}
SPILLING = PRODUCT | {"BM": 128, "BN": 128, "BK": 32}


@cache
def compiled(device: str, kind: str) -> tuple[bytes, Any]:
    """The binary and the compiler's metadata of `add`, `product`, or a `product` in tiles too large for one warp."""
    function, arguments, warps = {"add": (add, ADD, 4), "product": (product, PRODUCT, 4)}.get(
        kind, (product, SPILLING, 1)
    )
    constants = {name: value for name, value in arguments.items() if isinstance(value, int)}
    signature = {name: "constexpr" if name in constants else kind for name, kind in arguments.items()}
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(arguments) if name not in constants}
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=TARGETS[device], options={"num_warps": warps, "enable_fp_fusion": True})
    return made.asm.get("cubin") or made.asm["hsaco"], made.metadata
