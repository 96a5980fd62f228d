"""Running compiled kernels: objects are linked in memory, and a table of them runs as one native call.

The walker (`walker.ll`) runs a table on the OpenMP team that torch already has, so that no two pools of threads fight
over the cores; every thread walks the same table and waits for the others after each kernel. In a process without
libgomp it runs on one thread.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from irx.errors import KernelFailed, MissingExtra
from irx.runtime.arena import WEIGHTS
from irx.target.permission import may_use_amx

INTEGER, ADDRESS = 1, 4  # how TVM's calling convention tags an i64 and a raw pointer
MOST_ARGUMENTS = 96
ENTRY = np.dtype([("function", "u8"), ("arguments", "u8"), ("count", "i4"), ("barrier", "i4")])
FRAME_BYTES = 64
FLAG_BYTES = 1024  # of one thread: a cache line for each round of a barrier
ERROR = "TVMFFIErrorSetRaisedFromCStrParts"  # what kernels call for arguments that they do not take
ALONE = """
define internal void @GOMP_parallel(ptr %body, ptr %data, i32 %n, i32 %flags) {
  call void %body(ptr %data)
  ret void
}
define internal i32 @omp_get_thread_num() {
  ret i32 0
}
define internal i32 @omp_get_num_threads() {
  ret i32 1
}
"""


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel: an address or an i64."""

    value: int
    is_address: bool = False


@dataclass(frozen=True)
class Entry:
    """One call in a table: a loaded kernel's address and its arguments after `tid` and `nt`."""

    function: int
    arguments: Sequence[Argument]
    barrier: bool = True


class Table:
    """Calls in order, ready to run; arguments may be changed between runs.

    One table belongs to one caller at a time.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        counts = [len(entry.arguments) + 2 for entry in entries]
        if counts and max(counts) > MOST_ARGUMENTS:
            raise ValueError(f"a kernel has {max(counts)} arguments, more than {MOST_ARGUMENTS}")
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._arguments = np.zeros((int(self.starts[-1]) + 1, 2), np.int64)
        self._words = self._arguments.data.cast("B").cast("q")
        self._entries = np.zeros(max(len(entries), 1), ENTRY)
        self._frame = WEIGHTS.zeros(FRAME_BYTES)
        for i, entry in enumerate(entries):
            self._fill(i, entry)
        words = self._frame.view(np.int64)
        words[0], words[1] = self._entries.ctypes.data, len(entries)
        self._threads = self._frame.view(np.int32)[4:5]
        self._flags = WEIGHTS.zeros(0)
        self._address = self._frame.ctypes.data
        self._run = runner().run

    def set(self, places: Any, values: Any) -> None:
        """Put values (addresses or sizes) into argument places, as `place` gives them."""
        self._arguments[places, 1] = values

    def put(self, place: int, value: int) -> None:
        """Put one value in, in less time than many take."""
        self._words[2 * place + 1] = value

    def place(self, entry: int, argument: int) -> int:
        """Where argument `argument` of call `entry` is."""
        return int(self.starts[entry]) + 2 + argument

    def run(self, threads: int) -> None:
        """Run all calls. Raises KernelFailed where one reports an error."""
        if threads * FLAG_BYTES > len(self._flags):
            self._make_flags(threads)
        self._threads[0] = threads
        code = self._run(self._address)
        if code:
            raise KernelFailed(f"kernel {code - 1} of the step failed", fix="report this as a bug of the compiler")

    def _make_flags(self, threads: int) -> None:
        """What threads tell each other through at barriers; all of it is below the number of the next one."""
        self._flags = WEIGHTS.zeros(threads * FLAG_BYTES)
        self._frame.view(np.int64)[4] = self._flags.ctypes.data

    def stamped(self, threads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Run, and give the cycle counter before the first call and after each: i64 [calls + 1]."""
        stamps = np.zeros(len(self._entries) + 1, np.int64)
        words = self._frame.view(np.int64)
        words[3] = stamps.ctypes.data + 8
        stamps[0] = runner().cycles()
        try:
            self.run(threads)
        finally:
            words[3] = 0
        return stamps

    def _fill(self, index: int, entry: Entry) -> None:
        start, end = self.starts[index], self.starts[index + 1]
        rows = self._arguments[start:end]
        rows[:2, 0] = INTEGER
        rows[2:, 0] = [ADDRESS if a.is_address else INTEGER for a in entry.arguments]
        rows[2:, 1] = [a.value for a in entry.arguments]
        self._entries[index] = (entry.function, rows.ctypes.data, end - start, int(entry.barrier))


def load(objects: Mapping[str, bytes]) -> dict[str, int]:
    """Addresses of the kernels by symbol. An object that is loaded already is not loaded again."""
    return runner().load(objects)


class Runner:
    """The process's in-memory linker and its walker."""

    def __init__(self) -> None:
        may_use_amx()  # kernels made for another device than the host may be loaded too
        self._llvm = _llvm()
        self._lock = Lock()
        self._addresses: dict[str, int] = {}
        machine = self._llvm.Target.from_default_triple().create_target_machine(opt=3, jit=True)
        self._engine = self._llvm.create_mcjit_compiler(self._walker(), machine)
        self._engine.finalize_object()
        address = self._engine.get_function_address
        self._error = address(ERROR)
        # Lays out an object as a whole: code reaches its constants within 2 GB only, and in a process that holds large
        # models the older linker may put them further apart, and then aborts the process.
        self._linker = self._llvm.create_lljit_compiler(use_jit_link=True)
        self._libraries: list[Any] = []
        self.run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(address("irx_run"))
        self.cycles = ctypes.CFUNCTYPE(ctypes.c_int64)(address("irx_cycles"))

    def load(self, objects: Mapping[str, bytes]) -> dict[str, int]:
        """Link objects into the process."""
        with self._lock:
            fresh = {symbol: data for symbol, data in objects.items() if symbol not in self._addresses}
            for symbol, data in fresh.items():
                self._addresses[symbol] = self._linked(symbol, data)
            return {symbol: self._addresses[symbol] for symbol in objects}

    def _linked(self, symbol: str, data: bytes) -> int:
        """The address of the kernel in an object, which stays in the process as long as it runs."""
        name = f"__tvm_ffi_{symbol}"
        builder = self._llvm.JITLibraryBuilder().add_object_img(data).add_current_process().export_symbol(name)
        try:
            library = builder.import_symbol(ERROR, self._error).link(self._linker, symbol)
        except RuntimeError as error:
            raise KernelFailed(f"the kernel {symbol} cannot be loaded: {error}", fix="compile it again") from error
        self._libraries.append(library)
        return int(library[name])

    def _walker(self) -> Any:
        text = files("irx.backends.tvm").joinpath("walker.ll").read_text()
        library = _openmp()
        if library is None:
            text = re.sub(r"declare [^\n]*@(GOMP|omp_get)[^\n]*\n", "", text) + ALONE
        for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads") if library else ():
            self._llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        return self._llvm.parse_assembly(text)


@cache
def runner() -> Runner:
    """The one runner of this process."""
    return Runner()


def _llvm() -> Any:
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise MissingExtra("llvmlite", "tvm", needed_for="running compiled kernels") from error
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()  # the walker spins on an instruction that LLVM IR has no word for
    return llvm


def _openmp() -> ctypes.CDLL | None:
    """The libgomp that torch has loaded, None where there is none."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    path = next((line.split()[-1] for line in lines if "libgomp" in line), None)
    return None if path is None else ctypes.CDLL(path)
