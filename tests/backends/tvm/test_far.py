"""Kernels are loaded where memory is full: their constants lie within the reach of their code all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from irx.backends.tvm.codegen import missing

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps"),
]
CROWDED = """
import ctypes
from pathlib import Path
from irx.backends.tvm import native

PAGE, NEAR = 4096, 3 << 30
PRIVATE, ANONYMOUS, NO_RESERVE, NO_REPLACE = 2, 0x20, 0x4000, 0x100000
TEXT = '''
@t = internal constant [%d x i64] [%s]
define i64 @__tvm_ffi_k%d(i64 %%j) {
  %%p = getelementptr [%d x i64], ptr @t, i64 0, i64 %%j
  %%v = load i64, ptr %%p
  ret i64 %%v
}
'''
llvm, libc = native._llvm(), ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

def loaded(number, count):
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2, codemodel="small", reloc="pic")
    text = TEXT % (count, ", ".join(f"i64 {j}" for j in range(count)), number, count)
    data = machine.emit_object(llvm.parse_assembly(text))
    return native.load({f"k{number}": data})[f"k{number}"]

def fill(near):
    '''Leave one page free around an address, which has room for code, but for no constants.'''
    lines = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    ends, starts = ([int(line[i], 16) for line in lines] for i in (1, 0))
    hole = False
    for low, high in zip(ends, starts[1:]):
        low, high = max(low, near - NEAR), min(high, near + NEAR)
        if not hole and 2 * PAGE <= high - low < 1 << 30:
            low, hole = low + PAGE, True
        if low < high:
            libc.mmap(low, high - low, 0, PRIVATE | ANONYMOUS | NO_RESERVE | NO_REPLACE, -1, 0)

fill(loaded(0, 8))
print(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(loaded(1, 5000))(4321))
"""


def test_constants_are_near_their_code_in_a_crowded_process() -> None:
    done = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "4321"), done.stderr[-500:]
