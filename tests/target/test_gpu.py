"""Which device this machine's GPU is taken for. The drivers are stand-ins that answer as the real ones do."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

import pytest

from irx.target import devices, find_device, runs_on
from irx.target import gpu as gpu_module
from irx.target.gpu import Found, _amd_files, _nvidia_library, describe_gpu


class Library:
    """Stands for libnvidia-ml: one GPU, or a refusal of the call named `broken`."""

    def __init__(self, name: str, capability: tuple[int, int], memory: int, broken: str = "") -> None:
        self.name, self.capability, self.memory, self.broken = name, capability, memory, broken
        self.open = 0

    def __getattr__(self, call: str) -> Any:
        raise AttributeError(call)

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return int(self.broken == "init")

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        return 0 if index.value == 0 else 2

    def nvmlDeviceGetName(self, handle: Any, name: Any, size: ctypes.c_uint) -> int:
        name.value = self.name.encode()[: size.value - 1]
        return int(self.broken == "name")

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.capability
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj[0] = self.memory
        return 0


def test_the_library_tells_model_architecture_and_memory() -> None:
    library = Library("NVIDIA A40", (8, 6), 48 * 10**9)
    assert _nvidia_library(lambda name: library) == [Found("NVIDIA A40", "sm_86", 48.0)]
    assert library.open == 0


@pytest.mark.parametrize("broken", ["init", "name"])
def test_a_library_that_refuses_sees_nothing(broken: str) -> None:
    assert _nvidia_library(lambda name: Library("x", (9, 0), 1, broken)) == []


def test_without_the_library_there_is_nothing() -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    assert _nvidia_library(missing) == []


def test_every_driver_name_finds_its_device() -> None:
    for device in devices().values():
        for name in device.driver_names:
            assert describe_gpu(Found(name)) is device


def test_an_unknown_gpu_is_the_nearest_of_its_architecture(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        device = describe_gpu(Found("NVIDIA A40", "sm_86", 48.3))
    assert device is not None
    assert (device.name, device.title, device.memory_gb) in [(n, "NVIDIA A40", 48.3) for n in ("a10", "rtx3090")]
    assert device.gpu == find_device(device.name).gpu
    assert "A40" in device.sources[0]
    assert caplog.text.count(f"treated as {device.name}") == 1


def test_memory_decides_among_equal_architectures() -> None:
    named = {memory: describe_gpu(Found("NVIDIA H-something", "sm_90", memory)) for memory in (94.0, 144.0)}
    assert {memory: device.name for memory, device in named.items() if device} == {94.0: "h100-pcie", 144.0: "h200"}


def test_a_newer_one_of_a_generation_runs_older_binaries() -> None:
    orin = describe_gpu(Found("Orin", "sm_87", 64.0))
    assert orin is not None and orin.architecture in ("sm_80", "sm_86")
    assert describe_gpu(Found("Tesla V100", "sm_70", 32.0)) is None
    assert describe_gpu(Found("NVIDIA B300", "sm_103", 288.0)) is None
    assert describe_gpu(Found("a name alone")) is None


@pytest.mark.parametrize(
    ("binary", "here", "runs"),
    [
        ("sm_80", "sm_80", True),
        ("sm_80", "sm_86", True),
        ("sm_86", "sm_80", False),
        ("sm_80", "sm_90", False),
        ("sm_90", "sm_90", True),
        ("sm_100", "sm_103", False),  # binaries of sm_90 and later use instructions of that one alone
        ("gfx942", "gfx942", True),
        ("gfx942", "gfx90a", False),
    ],
)
def test_where_a_binary_runs(binary: str, here: str, runs: bool) -> None:
    assert runs_on(binary, here) == runs


def test_the_kernel_tells_of_amd_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, version in enumerate((0, 90402)):
        node = tmp_path / str(number)
        node.mkdir()
        (node / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\n")
        (node / "name").write_text("aqua_vanjaram\n")
    monkeypatch.setattr(gpu_module, "AMD", tmp_path)
    assert _amd_files() == [Found("aqua_vanjaram", "gfx942")]
    device = describe_gpu(*_amd_files())
    assert device is not None and (device.name, device.kind, device.place) == ("mi300x", "hip", "cuda")
