"""What is saved for a GPU: binaries with sources and launches, and what happens where another GPU, or none, is."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import torch

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.backends.triton import backend as backend_module
from irx.backends.triton import executors as executors_module
from irx.backends.triton.backend import BACKEND
from irx.backends.triton.driver import Driver
from irx.errors import DamagedArtifact, GpuOutOfMemory, NoGpu, OtherArchitecture
from irx.ir.program import Program
from irx.target import find_device
from tests.backends.triton.stub_driver import StubCuda

TEXT = """
program @small {
  size B in [1, 4] hint 2
  weight $w : bf16[32]
  graph @forward(%x: bf16[B, 32]) -> (y: bf16[B, 32]) {
    %t = irx.mul(%x, $w) : bf16[B, 32]
    %y = irx.relu(%t) : bf16[B, 32]
    return %y
  }
}
"""


@cache
def program() -> Program:
    made = irx.parse(TEXT)
    bind_random_weights(made.weights)
    return made


@cache
def built(device: str) -> dict[str, bytes]:
    return BACKEND.build(program(), program().graphs["forward"], find_device(device))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StubCuda:
    """A machine with an H200, whose driver is a stand-in."""
    library = StubCuda((9, 0))
    for module in (backend_module, executors_module):
        monkeypatch.setattr(module, "open_driver", lambda: Driver(library))
    monkeypatch.setattr(backend_module, "host_gpu", lambda: find_device("h200"))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(executors_module, "PLACE", torch.device("cpu"))
    return library


def forget(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes compiling an error, as where triton is not installed."""
    asked: list[Any] = []

    def absent(kernels: Any, device: Any, limit: float = 0.0) -> Any:
        asked.append(list(kernels))
        raise AssertionError("nothing is to be compiled")

    monkeypatch.setattr(backend_module, "try_kernels", absent)
    return asked


def test_every_kernel_has_its_binary_source_and_launch() -> None:
    files = built("h200")
    symbols = {name.removesuffix(".cubin") for name in files if name.endswith(".cubin")}
    assert symbols
    for symbol in symbols:
        assert files[f"{symbol}.cubin"].startswith(b"\x7fELF")
        assert f"def {symbol}(".encode() in files[f"{symbol}.py"]
        assert json.loads(files[f"{symbol}.json"])["arch"] == "sm_90"


def test_binaries_run_without_compiling(gpu: StubCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    files = built("h200")
    forget(monkeypatch)
    plan = BACKEND.restore(files, find_device("h200"))
    assert plan.executor.absent is None
    assert sorted(gpu.images) == sorted(data for name, data in files.items() if name.endswith(".cubin"))
    assert any(row.name == "report-resources" for row in plan.report())


def test_on_another_architecture_kernels_are_built_again(gpu: StubCuda, caplog: pytest.LogCaptureFixture) -> None:
    files = built("a100-80gb")
    with caplog.at_level(logging.WARNING):
        plan = BACKEND.restore(files, find_device("a100"))
    assert "compiled for sm_80" in caplog.text and "built again for h200" in caplog.text
    assert plan.target.name == "h200"
    old = {data for name, data in files.items() if name.endswith(".cubin")}
    assert gpu.images and not old & set(gpu.images)


def test_without_triton_another_architecture_is_an_error(gpu: StubCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    files = built("a100-80gb")
    forget(monkeypatch)
    monkeypatch.setattr(backend_module, "missing", lambda: "triton is not installed")
    with pytest.raises(OtherArchitecture, match="compiled for sm_80, and this machine's GPU is sm_90"):
        BACKEND.restore(files, find_device("a100"))


def test_a_plan_for_another_architecture_can_be_saved_but_not_called(gpu: StubCuda) -> None:
    plan = BACKEND.load(built("a100-80gb"), find_device("a100"))
    with pytest.raises(OtherArchitecture):
        plan(torch.zeros(1, 32, dtype=torch.bfloat16))
    assert gpu.images == []


def test_a_file_that_is_missing_is_damage() -> None:
    files = {name: data for name, data in built("h200").items() if name != "graph.irx"}
    with pytest.raises(DamagedArtifact, match=r"graph\.irx"):
        BACKEND.load(files, find_device("h200"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_compiled_and_saved_without_a_gpu(tmp_path: Path) -> None:
    fast = irx.compile(program(), target="h200")
    with pytest.raises(NoGpu):
        fast(torch.zeros(1, 32, dtype=torch.bfloat16))
    fast.save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "manifest.json").read_text())["facts"]
    assert (facts["target"], facts["device"]) == ("h200", "cuda")
    assert list((tmp_path / "model" / "kernels" / "forward").glob("*.cubin"))
    with pytest.raises(NoGpu, match="compiled for h200"):
        irx.load(tmp_path / "model")


def test_a_full_memory_names_the_largest_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = irx.compile(program(), target="triton:cpu")
    kernel: Any = fast.graphs["forward"]

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernel._recorder, "run", full)
    with pytest.raises(GpuOutOfMemory, match="buffers of @forward") as caught:
        fast(torch.zeros(1, 32, dtype=torch.bfloat16))
    assert caught.value.parts["buffers of @forward"] == kernel.bytes
    assert {"w", "packed weights"} & caught.value.parts.keys()


def test_only_the_largest_parts_are_told() -> None:
    error = GpuOutOfMemory(3 * 10**8, {f"part {number}": number * 10**9 for number in range(1, 9)})
    assert str(error).startswith(
        "the GPU's memory is full: 0.3 GB are free, the model holds 36 GB; largest: part 8 8 GB"
    )
    assert "part 4 4 GB" in str(error) and "part 3" not in str(error)
