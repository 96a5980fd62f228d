"""Tables of kernels: order, barriers, threads, errors, and a process without libgomp."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from irx.backends.tvm import native
from irx.backends.tvm.codegen import compile_kernels, missing
from irx.backends.tvm.kernel import Kernel, Pointer, Size
from irx.backends.tvm.native import MOST_ARGUMENTS, Argument, Entry, Table, load
from irx.errors import KernelFailed
from irx.runtime.arena import WEIGHTS
from irx.target import host_cpu

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
assert torch.get_num_threads() > 0, "torch brings the threads that tables run on"

COUNT = 64
# Every element becomes its mirror image plus one: a thread reads what another wrote just before.
MIRROR = Kernel(
    "mirror",
    (Size("n"), Pointer("x", "float32"), Pointer("y", "float32")),
    """\
for i in T.serial((n * tid) // nt, (n * (tid + 1)) // nt):
    y[i] = x[n - 1 - i] + T.float32(1)""",
)
WHO = Kernel(
    "who",
    (Pointer("y", "int64"),),
    """\
y[tid] = nt""",
)


@pytest.fixture(scope="module")
def functions() -> dict[str, int]:
    objects = compile_kernels([MIRROR, WHO], host_cpu())
    return {kernel.name: load(objects)[kernel.symbol] for kernel in (MIRROR, WHO)}


class Chain:
    """Many mirrors one after the other, between two buffers."""

    def __init__(self, function: int, length: int = 50) -> None:
        self.length = length
        self.buffers = [WEIGHTS.zeros(COUNT * 4).view(np.float32) for _ in range(2)]
        addresses = [Argument(buffer.ctypes.data, True) for buffer in self.buffers]
        entries = [Entry(function, [Argument(COUNT), addresses[i % 2], addresses[(i + 1) % 2]]) for i in range(length)]
        self.table = Table(entries)

    def run(self, threads: int) -> list[float]:
        self.buffers[0][:] = np.arange(COUNT)
        self.table.run(threads)
        return [float(x) for x in self.buffers[self.length % 2]]

    @property
    def expected(self) -> list[float]:
        turned = self.length % 2 == 1
        return [float((COUNT - 1 - i if turned else i) + self.length) for i in range(COUNT)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_calls_wait_for_those_before(functions: dict[str, int], threads: int) -> None:
    chain = Chain(functions["mirror"])
    for _ in range(50):
        assert chain.run(threads) == chain.expected


def test_every_thread_is_told_its_number(functions: dict[str, int]) -> None:
    found = WEIGHTS.zeros(8 * 8).view(np.int64)
    Table([Entry(functions["who"], [Argument(found.ctypes.data, True)])]).run(3)
    assert found.tolist() == [3, 3, 3, 0, 0, 0, 0, 0]


def test_tables_run_from_several_python_threads(functions: dict[str, int]) -> None:
    chains = [Chain(functions["mirror"]) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            assert list(pool.map(lambda chain: chain.run(2), chains)) == [chain.expected for chain in chains]


def test_arguments_change_between_runs(functions: dict[str, int]) -> None:
    chain = Chain(functions["mirror"], length=1)
    chain.run(1)
    other = WEIGHTS.zeros(COUNT * 4).view(np.float32)
    chain.table.set(chain.table.place(0, 2), other.ctypes.data)
    chain.buffers[1][:] = -1
    chain.run(1)
    assert other.tolist() == chain.expected
    assert set(chain.buffers[1].tolist()) == {-1.0}


def test_time_stamps_rise(functions: dict[str, int]) -> None:
    chain = Chain(functions["mirror"], length=5)
    stamps = chain.table.stamped(2)
    assert len(stamps) == 6
    assert (np.diff(stamps) > 0).all()
    assert chain.run(2) == chain.expected, "and plain runs go on"


def test_a_kernel_that_reports_an_error_is_named(functions: dict[str, int]) -> None:
    buffer = WEIGHTS.zeros(64)
    good = Entry(functions["who"], [Argument(buffer.ctypes.data, True)])
    short = Entry(functions["mirror"], [Argument(0)])
    for threads in (1, 2):
        with pytest.raises(KernelFailed, match="kernel 1 of the step failed"):
            Table([good, short, good]).run(threads)
    Table([good]).run(2)


def test_too_many_arguments_are_an_error(functions: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="more than"):
        Table([Entry(functions["who"], [Argument(0)] * MOST_ARGUMENTS)])


def test_an_empty_table_does_nothing() -> None:
    Table([]).run(2)


def test_objects_are_loaded_once() -> None:
    objects = compile_kernels([MIRROR], host_cpu())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, [objects] * 8))
    assert all(addresses == found[0] for addresses in found)


def test_without_openmp_one_thread_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_openmp", lambda: None)
    alone = native.Runner()
    monkeypatch.setattr(native, "runner", lambda: alone)
    functions = load(compile_kernels([MIRROR, WHO], host_cpu()))
    chain, found = Chain(functions[MIRROR.symbol]), WEIGHTS.zeros(8 * 8).view(np.int64)
    assert chain.run(2) == chain.expected
    Table([Entry(functions[WHO.symbol], [Argument(found.ctypes.data, True)])]).run(2)
    assert found.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_an_object_that_is_none_is_named() -> None:
    for data in (b"", b"no object", b"\x7fELF and then nothing"):
        with pytest.raises(KernelFailed, match="the kernel planted cannot be loaded"):
            load({"planted": data})
