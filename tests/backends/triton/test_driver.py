"""Loading and launching through the driver, a stand-in here, and what a user is told where that cannot work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton")

from irx.backends.triton import driver as driver_module
from irx.backends.triton.driver import CallFailed, Driver, Function, Launch, open_driver
from irx.backends.triton.resources import read_usage
from irx.errors import (
    DamagedArtifact,
    DriverTooOld,
    KernelFailed,
    KernelTooLarge,
    MissingFeature,
    NoGpu,
    OtherArchitecture,
)
from irx.target import find_device
from tests.backends.triton.stub_driver import LARGEST_SHARED, StubCuda
from tests.backends.triton.toy_kernels import compiled

KINDS = (8, 8, 8, 4)


def loaded(library: StubCuda, made_for: str = "h200", **changes: Any) -> Function:
    binary, metadata = compiled(made_for, "add")
    device = find_device(made_for)
    usage = read_usage(binary, metadata.name, device, shared=metadata.shared, warps=metadata.num_warps)
    return Driver(library).load(binary, metadata.name, device, replace(usage, **changes), KINDS)


def test_a_kernel_is_loaded_from_its_binary_and_launched() -> None:
    library = StubCuda()
    call = Launch(loaded(library), (5, 1, 1))
    for number, value in enumerate((4096, 8192, 12288, -1)):
        call.set(number, value)
    call.run(stream=77)
    assert library.images == [compiled("h200", "add")[0]]
    assert library.symbols == ["add"]
    ((shape, function, stream, values),) = library.launches
    assert (shape, function, stream) == ((5, 1, 1, 128, 1, 1, 0), 1001, 77)
    assert values[:3] == [4096, 8192, 12288]
    assert values[3] & 0xFFFFFFFF == 0xFFFFFFFF
    assert values[4:] == [0, 0]
    call.set(0, 16)
    call.run(0)
    assert library.launches[1][3][:2] == [16, 8192]


def test_an_empty_grid_launches_nothing() -> None:
    library = StubCuda()
    Launch(loaded(library), (0, 4, 1)).run(0)
    assert library.launches == []


def test_a_context_that_is_current_is_kept() -> None:
    library = StubCuda()
    loaded(library)
    assert library.context == 99
    library.context = 5
    loaded(library)
    assert library.context == 5


def test_much_shared_memory_is_asked_for() -> None:
    library = StubCuda()
    loaded(library, shared=40 * 1024)
    assert library.attributes == {}
    loaded(library, shared=100 * 1024)
    assert library.attributes == {8: 100 * 1024}


def test_a_binary_for_an_older_one_of_the_generation_runs() -> None:
    library = StubCuda((8, 9))
    loaded(library, made_for="a100-80gb")
    assert len(library.images) == 1


def test_another_architecture_is_told_before_anything_is_loaded() -> None:
    library = StubCuda((8, 9))
    with pytest.raises(OtherArchitecture, match="compiled for sm_90, and this machine's GPU is sm_89"):
        loaded(library)
    assert library.images == []


@pytest.mark.parametrize("code", [200, 209, 222])
def test_an_old_driver_is_told(code: int) -> None:
    with pytest.raises(DriverTooOld, match=rf"of CUDA 12.8, does not read the binary of add .*error {code}"):
        loaded(StubCuda(failing={"cuModuleLoadData": code}))


def test_other_errors_of_the_driver_name_call_and_code() -> None:
    with pytest.raises(CallFailed, match="cuModuleLoadData gave error 2"):
        loaded(StubCuda(failing={"cuModuleLoadData": 2}))
    call = Launch(loaded(StubCuda(failing={"cuLaunchKernel": 701})), (1, 1, 1))
    with pytest.raises(KernelFailed, match="launching add gave error 701"):
        call.run(0)


def test_a_kernel_over_the_limits_is_never_launched() -> None:
    library = StubCuda()
    with pytest.raises(KernelTooLarge, match="shared memory"):
        loaded(library, shared=228 * 1024)
    with pytest.raises(KernelTooLarge, match="registers"):
        loaded(library, registers=300)
    assert library.images == []


def test_the_driver_knows_better_than_the_device_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.backends.triton.stub_driver.LARGEST_SHARED", 1024)
    with pytest.raises(MissingFeature, match="this GPU has 1024"):
        loaded(StubCuda(), shared=LARGEST_SHARED)


def test_a_binary_with_other_parameters_is_damaged() -> None:
    with pytest.raises(DamagedArtifact, match="takes"):
        loaded(StubCuda(), parameters=(8, 8, 4, 8, 8))


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet"])
def test_without_a_gpu(call: str) -> None:
    with pytest.raises(NoGpu, match=f"{call} gave error 100"):
        Driver(StubCuda(failing={call: 100}))


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "LIBRARY", "libno-driver.so.1")
    open_driver.cache_clear()
    with pytest.raises(NoGpu, match="no driver"):
        open_driver()


def test_free_memory() -> None:
    assert Driver(StubCuda()).memory() == (3 * 10**9, 8 * 10**9)
