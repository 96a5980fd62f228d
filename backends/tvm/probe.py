"""Kernels that measure this machine: how fast it reads memory, and how fast it multiplies.

    measurement = measure()           # seconds of work, once a machine: irx.target keeps the result
    ring = Ring(bytes, threads)       # the floor of a benchmark, in the same run as what is compared with it
    ring()                            # reads all of it once

A peak is what a loop of nothing but multiply-adds on registers reaches, with as many sums as hide their latency.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from irx.backends.tvm.codegen import missing
from irx.backends.tvm.kernel import Kernel, Pointer, Size
from irx.backends.tvm.native import Table
from irx.backends.tvm.single import table
from irx.backends.tvm.templates.instructions import PAIRS, dot_pairs
from irx.backends.tvm.writer import Writer
from irx.cache import Store
from irx.errors import MissingExtra
from irx.runtime.arena import WEIGHTS
from irx.target import Device, Measurement, host_cpu, measure_host

LINE = 64  # bytes of a cache line, and of a vector
STREAMS = 8  # loads in flight between two additions to the same register
STEPS = 2_000_000  # rounds of a multiply loop in one call: some milliseconds, beside which waking threads is nothing
BUDGET = 0.4  # seconds for one figure
SHARE = 0.85  # of the cores' time that this process must have got for its figures to be kept

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Multiply:
    """One kind of multiply-add on 16 sums: the dtype it stands for, and the `next` sum from a sum and two factors.

    `operations` is how many one of them does, `needs` the features it takes. A factor is a register of 16 elements of
    the TIR dtype `factor`, all of them `factors[0]` or `factors[1]`; the sums are of the TIR dtype `sums`.
    """

    dtype: str
    needs: frozenset[str]
    operations: int
    sums: str
    factor: str
    factors: tuple[float, float]
    next: str
    llvm: str = ""


FLOAT = Multiply("f32", frozenset(), 2 * 16, "float32", "float32", (0.5, 1.0), "{s} * {x} + {y}")
BF16 = Multiply(
    "bf16",
    frozenset({"avx512_bf16"}),
    2 * 32,
    "float32",
    "int32",
    (0x3F803F80, 0x3F803F80),  # pairs of 1.0
    dot_pairs("{s}", "{x}", "{y}"),
    PAIRS,
)
INT8 = Multiply(
    "i8",
    frozenset({"avx512_vnni", "avx512f"}),
    2 * 64,
    "int32",
    "int32",
    (0x01010101, 0x01010101),
    'T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", {s}, '
    'T.reinterpret("uint8x64", {x}), T.reinterpret("int8x64", {y}))',
)


def measure(store: Store | None = None, *, threads: int | None = None, again: bool = False) -> Measurement:
    """The rates of this machine, from the cache or measured now with `threads`, one for each core by default.

    A dtype for which the processor has units that this does not drive (tiles) keeps its nominal peak. Figures taken
    while other processes kept the cores busy are not kept, with a note. Raises MissingExtra where no kernels can be
    compiled.
    """
    if (reason := missing()) is not None:
        raise MissingExtra("apache-tvm", "cpu", needed_for=f"measuring this machine: {reason}")
    _team()
    device = host_cpu()
    count = threads or device.cores
    watch = Watch(count)
    peaks = {m.dtype: partial(peak, m, device, watch) for m in multiplies(device)}
    return measure_host(
        partial(read_rate, device=device, watch=watch), peaks, keep=watch.undisturbed, store=store, again=again
    )


def multiplies(device: Device) -> list[Multiply]:
    """The multiply-adds whose peak is the device's best for their dtype."""
    tiled = {"amx_bf16": "bf16", "amx_int8": "i8"}
    better = {dtype for feature, dtype in tiled.items() if feature in device.features}
    return [m for m in (FLOAT, BF16, INT8) if m.needs <= device.features and m.dtype not in better]


class Watch:
    """Takes times, and notices whether the process had its cores to itself while it did."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._cpu = self._wall = 0.0

    def best(self, call: Callable[[], Any]) -> float:
        """The shortest of as many calls as fit into the budget, after two that do not count."""
        call()
        call()
        best, begin, used = float("inf"), time.perf_counter(), time.process_time()
        while True:
            start = time.perf_counter()
            call()
            now = time.perf_counter()
            best = min(best, now - start)
            if now - begin >= BUDGET:
                break
        self._cpu += time.process_time() - used
        self._wall += (now - begin) * self.threads
        return best

    @property
    def share(self) -> float:
        """Of the time of as many cores as there are threads, how much this process got."""
        return self._cpu / self._wall if self._wall else 1.0

    def undisturbed(self) -> bool:
        """True where the times can be trusted; notes it where not."""
        if self.share < SHARE:
            logger.warning(
                "this machine is busy: its measured rates are not kept (%.0f %% of it was free)", 100 * self.share
            )
        return self.share >= SHARE


def read_rate(size: int, *, device: Device, watch: Watch) -> float:
    """Bytes a second of reading a ring of `size` bytes: the best of the passes that fit into the budget."""
    ring = Ring(size, watch.threads, device)
    return ring.bytes / watch.best(ring)


def peak(multiply: Multiply, device: Device, watch: Watch) -> float:
    """Operations a second of a multiply loop on all threads: the best of the calls that fit into the budget."""
    call, sums = multiply_table(multiply, device, watch.threads, STEPS)
    return STEPS * len(sums) // 16 * multiply.operations / watch.best(partial(call.run, watch.threads))


def multiply_table(multiply: Multiply, device: Device, threads: int, steps: int) -> tuple[Table, Any]:
    """A multiply loop ready to run, and the sums that it leaves, 16 lanes for each thread and register."""
    count = _independent_sums(device)
    factors, out = WEIGHTS.zeros(2 * LINE), WEIGHTS.zeros(threads * count * LINE)
    factors.view(multiply.factor)[:] = np.repeat(np.array(multiply.factors, multiply.factor), 16)
    call = table(multiply_kernel(multiply, count), device, {"steps": steps}, {"factors": factors, "out": out})
    return call, out.view(multiply.sums)


class Ring:
    """Memory that all threads read once per call, each its own part; `bytes` is how much that is."""

    def __init__(self, size: int, threads: int, device: Device | None = None) -> None:
        _team()
        step = LINE * STREAMS
        self.bytes = max(size // step, threads) * step
        self._threads = threads
        self._memory = WEIGHTS.zeros(self.bytes)
        self._memory[:] = 1  # a page that was never written is not memory yet
        self._out = WEIGHTS.zeros(threads * LINE)
        self._table = table(
            read_kernel(),
            device or host_cpu(),
            {"blocks": self.bytes // step},
            {"x": self._memory, "out": self._out},
        )

    def __call__(self) -> None:
        """Read everything once."""
        self._table.run(self._threads)

    def total(self) -> int:
        """The sum of the 32-bit words of the last pass, modulo 2**32: proof that everything was read."""
        return int(self._out.view(np.uint32).sum(dtype=np.uint64)) % 2**32


def read_kernel() -> Kernel:
    """out[tid] = sum of the thread's blocks of `x`, as 16 lanes of int32."""
    w = Writer()
    sums = [w.register("T.broadcast(T.int32(0), 16)", dtype="int32") for _ in range(STREAMS)]
    with w.block("for block in T.serial((blocks * tid) // nt, (blocks * (tid + 1)) // nt):"):
        for i, total in enumerate(sums):
            w(f"{total} = {total} + x[T.ramp(block * {16 * STREAMS} + {16 * i}, 1, 16)]")
    w(f"out[T.ramp(tid * 16, 1, 16)] = {' + '.join(sums)}")
    parameters = (Size("blocks"), Pointer("x", "int32"), Pointer("out", "int32"))
    return Kernel("probe_read", parameters, w.text(), note="reads memory")


def multiply_kernel(multiply: Multiply, sums: int) -> Kernel:
    """out[tid, i] = sum i after `steps` multiply-adds with the same two factors."""
    w = Writer()
    x, y = (w.register(f"factors[T.ramp({16 * i}, 1, 16)]", dtype=multiply.factor) for i in range(2))
    zero = f"T.broadcast(T.{multiply.sums}(0), 16)"
    registers = [w.register(zero, dtype=multiply.sums) for _ in range(sums)]
    with w.block("for step in T.serial(T.int64(0), steps):"):
        for register in registers:
            w(f"{register} = {multiply.next.format(s=register, x=x, y=y)}")
    for i, register in enumerate(registers):
        w(f"out[T.ramp((tid * {sums} + {i}) * 16, 1, 16)] = {register}")
    parameters = (Size("steps"), Pointer("factors", multiply.factor), Pointer("out", multiply.sums))
    note = f"multiplies in {multiply.dtype}"
    return Kernel(f"probe_{multiply.dtype}", parameters, w.text(), multiply.llvm, note)


def _independent_sums(device: Device) -> int:
    """As many sums of 16 lanes as registers hold besides the factors: 32 of 16 lanes, or 16 of 8."""
    return 12 if "avx512f" in device.features else 5


def _team() -> None:
    """Load the OpenMP library that the threads come from; without it everything runs on one."""
    import torch  # noqa: F401
