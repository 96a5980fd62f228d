"""Kernels read here are what TVM's own parser makes of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from irx.backends.tvm import backend
from irx.backends.tvm.codegen import load_tvm, missing
from irx.backends.tvm.kernel import Kernel, Pointer, Size
from irx.backends.tvm.script import read
from irx.errors import KernelFailed
from irx.target import Device
from tests.end_to_end.families import FAMILIES

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PARAMETERS = (Size("n"), Pointer("x", "float32"), Pointer("y", "float32"), Pointer("k", "int64"))
BODIES = {
    "loops": """\
for i in T.serial(tid, n):
    for j in T.unroll(4):
        y[i * 4 + j] = x[i] * T.float32(2.0)
for i in T.unroll(1, 3):
    y[i] = x[n - i - 1]""",
    "lets": """\
count: T.let = n // 4 + tid
five: T.let = 5
count_2: T.let = count % T.int64(3) + five
y[count_2] = x[count]""",
    "names that hide others": """\
i: T.let = n + 1
for x_1 in T.serial(n):
    i: T.let = T.int64(2) * x_1
    for x in T.serial(i):
        y[x] = T.float32(1.0)
if n > 3:
    let: T.let = i + 1
    y[let] = x[i]
y[i] = x[i]""",
    "registers": """\
r = T.alloc_buffer((16,), "float32")
r[T.ramp(0, 1, 16)] = T.broadcast(T.float32(-1.0), 16) - x[T.ramp(n, 1, 16)]
inside: T.let = r[T.ramp(0, 1, 16)] > T.broadcast(T.float32(0.0), 16)
y[T.ramp(0, 1, 16)] = T.Select(inside, r[T.ramp(0, 1, 16)], x[T.ramp(0, 1, 16)])""",
    "branches": """\
if n == 3:
    y[0] = x[0]
if not (n != 5) and (tid < 1 or n >= 2 * nt):
    y[1] = x[1]
else:
    if k[0] <= n:
        y[2] = -x[2]""",
    "selects": "y[0] = T.if_then_else(n == 1, x[0], T.Select(k[0] != n, x[1], x[2]))",
    "frames": """\
T.attr(0, "pragma_unroll_explicit", 1)
T.evaluate(T.call_extern("int32", "prefetch", T.address_of(x[n])))
T.call_extern("int32", "prefetch", T.address_of(x[tid]))
y[0] = x[0]""",
}


def equal(source: str) -> bool:
    import tvm.script
    import tvm_ffi

    return bool(tvm_ffi.structural_equal(read(source), tvm.script.from_source(source)))


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_statements_mean_what_they_mean_to_tvm(body: str) -> None:
    load_tvm()
    assert equal(Kernel("some", PARAMETERS, body).source)


def test_kernels_of_a_model_mean_what_they_mean_to_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest of every template: TVM's parser takes its time."""
    import irx

    seen: dict[str, str] = {}

    def noted(kernels: Iterable[Kernel], device: Device) -> tuple[dict[str, bytes], dict[str, str]]:
        wanted = sorted(kernels, key=lambda kernel: len(kernel.source), reverse=True)
        seen.update({kernel.name: kernel.source for kernel in wanted})
        return {}, {kernel.symbol: "only its text was wanted" for kernel in wanted}

    monkeypatch.setattr(backend, "try_kernels", noted)
    family = FAMILIES["llama"]
    irx.compile(
        family.model(), family.inputs(2, 16), target="tvm:cpu", pipeline="default | quantize-weights{skip=none}"
    )
    assert {"matvec", "gemm", "attention_split"} <= set(seen)
    assert {name for name, source in seen.items() if not equal(source)} == set()


@pytest.mark.parametrize(
    "line",
    [
        "while n > 0:\n    y[0] = x[0]",
        "value = n + 1",
        "y[0] = x[0] if n else x[1]",
        "a, b = n, n",
        "y[0] = 1 < n < 3",
        "return",
    ],
)
def test_what_kernels_have_no_word_for_is_refused(line: str) -> None:
    load_tvm()
    with pytest.raises(KernelFailed, match="for which there is no word"):
        read(Kernel("some", PARAMETERS, line).source)


def test_a_name_that_nothing_defines_is_named() -> None:
    load_tvm()
    with pytest.raises(KernelFailed, match="reads 'let', which nothing before defines"):
        read(Kernel("some", PARAMETERS, "if n > 1:\n    let: T.let = n\ny[0] = x[let]").source)
