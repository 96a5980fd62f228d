"""Kernels of TVM as binaries of named GPUs, made on a machine without one: what they take, how they are launched."""

from __future__ import annotations

from pathlib import Path

import pytest

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.backends.regions.lowered import Lowered
from irx.backends.triton.driver import HIDDEN
from irx.backends.triton.executors import widths
from irx.backends.triton.kernel import Kernel, launch_grid
from irx.backends.triton.resources import read_usage
from irx.backends.tvm_cuda import backend as backend_module
from irx.backends.tvm_cuda import nvrtc
from irx.backends.tvm_cuda.backend import BACKEND
from irx.backends.tvm_cuda.compiling import try_kernels
from irx.backends.tvm_cuda.kernel import CudaKernel
from irx.backends.tvm_cuda.rules import linear, regions
from irx.backends.tvm_cuda.scheduling import Scheduled
from irx.backends.tvm_cuda.signature import launchable
from irx.errors import KernelFailed, MissingFeature
from irx.ir.graph import Builder, Graph
from irx.ir.program import Program
from irx.target import find_device
from tests.backends.region_cases import B, S, input_of
from tests.backends.triton.linear_bodies import default, gated
from tests.backends.triton.lowered_run import choices

pytest.importorskip("tvm")
compiles = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))

SMALL = """
program @small {
  weight $w : bf16[128, 64]
  graph @forward(%x: bf16[1, 64]) -> (y: bf16[1, 128], best: i64[1]) {
    %l = irx.linear(%x, $w) : bf16[1, 128]
    %y = irx.silu(%l) : bf16[1, 128]
    %best = irx.argmax(%y) {axis=-1} : i64[1]
    return %y, %best
  }
}
"""


def small() -> Program:
    made = irx.parse(SMALL)
    bind_random_weights(made.weights)
    return made


def norm() -> tuple[Graph, Lowered]:
    graph = Graph("")
    x, w = input_of(graph, B, S, 131, dtype="bf16"), input_of(graph, 131, dtype="bf16")
    graph.set_outputs({"y": Builder(graph)("rms_norm", x, w, eps=1e-5)})
    lowered = regions.rule(graph, choices())
    assert lowered is not None
    return graph, lowered


def own(lowered: Lowered | None) -> list[Kernel]:
    assert lowered is not None
    return [kernel for kernel in lowered.kernels if isinstance(kernel, CudaKernel)]


@compiles
@pytest.mark.parametrize("name", ["a100", "h200", "rtx5090"])
def test_binaries_take_what_a_launch_gives_and_never_spill(name: str) -> None:
    kernels = [*own(norm()[1]), *own(linear.rule(gated("bf16", 24, 96, "bf16"), default(name)))]
    device = find_device(name)
    made, failures = try_kernels(kernels, device)
    assert not failures
    for kernel in kernels:
        binary = made[kernel.symbol]
        usage = read_usage(binary.data, kernel.symbol, device, shared=binary.shared, warps=binary.warps)
        assert usage.parameters == (*widths(kernel), *(8,) * HIDDEN)
        assert usage.spills == 0
        assert usage.refusal(device) is None


@compiles
def test_the_grid_is_tvm_s_and_depends_on_sizes() -> None:
    (kernel,) = own(norm()[1])
    binary = try_kernels([kernel], find_device("a100"))[0][kernel.symbol]
    assert launch_grid(binary.grid, {"n0": 3, "n1": 5}) == (15, 1, 1)  # a block for each row


@compiles
def test_cuda_text_rounds_to_bfloat16() -> None:
    graph = Graph("")
    half = Builder(graph)("cast", input_of(graph, 3), dtype="bf16")
    graph.set_outputs({"y": Builder(graph)("cast", half, dtype="f32")})
    (kernel,) = own(regions.rule(graph, choices()))
    text = try_kernels([kernel], find_device("a100"))[0][kernel.symbol].text.decode()
    assert "(float)((nv_bfloat16)b1_ptr[" in text or "(float)((nv_bfloat16)b0_ptr[" in text


@compiles
def test_what_is_more_than_one_kernel_is_refused_with_the_reason() -> None:
    graph = Graph("")
    graph.set_outputs({"y": Builder(graph)("softmax", input_of(graph, B, S, 1), axis=-1)})
    (kernel,) = own(regions.rule(graph, choices()))
    _, failures = try_kernels([kernel], find_device("a100"))
    assert "kernels of one" in failures[kernel.symbol]


@compiles
def test_an_artifact_has_binaries_of_both_paths_and_says_which(tmp_path: Path) -> None:
    fast = irx.compile(small(), target="tvm_cuda:h200")
    fast.save(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").rglob("*")}
    matvec = next(name.removesuffix(".cu") for name in names if name.endswith(".cu"))
    assert {f"{matvec}.cubin", f"{matvec}.json", f"{matvec}.py"} <= names
    notes = [row.what for row in fast.ledger().rows if row.name == "choose-kernels"]
    assert any("tvm_matvec" in note and "through TVM" in note for note in notes)
    assert any("argmax" in note and "not through TVM: TVM's path to CUDA has no argmax" in note for note in notes)


@compiles
def test_text_that_is_no_cuda_is_told_with_what_the_compiler_says() -> None:
    with pytest.raises(KernelFailed, match="undefined"):
        nvrtc.compile_cuda('extern "C" __global__ void f() { nothing(); }', "sm_80", fusion=True)


def test_without_the_compiler_the_target_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "LIBRARIES", ())
    assert "irx[cuda]" in str(backend_module.missing(find_device("a100")))
    with pytest.raises(MissingFeature, match="nvidia-cuda-nvrtc-cu12 is not installed"):
        irx.compile(small(), target="tvm_cuda:a100")


def test_other_devices_are_refused_by_name() -> None:
    assert "mi300x" in str(BACKEND.missing(find_device("mi300x")))


def test_parameters_come_in_the_kernel_s_order_and_threads_in_one_direction() -> None:
    text = "void f_kernel(float* b1_ptr, long n0);\nvoid f_kernel(float* b1_ptr, long n0) { b1_ptr[threadIdx.y] = n0; }"
    made = Scheduled(text, "f_kernel", ("b1_ptr", "n0"), ("1",), (32, 4, 1))
    result = launchable(made, "f", [("n0", False), ("b0", True), ("b1", True)])
    head = "void f(long n0, void* b0_ptr, float* b1_ptr, void* scratch_, void* profile_)"
    assert result == f"{head};\n{head} {{ b1_ptr[((int)threadIdx.x / 32 % 4)] = n0; }}"


def test_memory_of_tvm_s_own_is_refused() -> None:
    made = Scheduled("void f(float* work)", "f", ("work",), ("1",), (32, 1, 1))
    with pytest.raises(ValueError, match="work"):
        launchable(made, "f", [("b0", True)])
