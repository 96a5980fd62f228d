"""Objects: compiled once, by processes that may die, for processors that lack instructions, without a toolchain."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irx.backends.tvm import codegen, compilers
from irx.backends.tvm.codegen import compile_kernels, missing, processor, try_kernels
from irx.backends.tvm.kernel import Kernel, Pointer, Size
from irx.backends.tvm.single import run_kernel
from irx.errors import KernelFailed
from irx.target import find_device, host_cpu

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BODY = """\
for i in T.serial((n * tid) // nt, (n * (tid + 1)) // nt):
    y[i] = x[i] * T.float32({factor})"""


def scale(factor: float) -> Kernel:
    parameters = (Size("n"), Pointer("x", "float32"), Pointer("y", "float32"))
    return Kernel("scale", parameters, BODY.format(factor=factor), note=f"y = {factor} x")


BROKEN = Kernel("broken", (Size("n"), Pointer("y", "float32")), "y[0] = nothing")


def run(kernel: Kernel, count: int = 37, threads: int = 2) -> Any:
    x = np.arange(count, dtype=np.float32)
    return run_kernel(kernel, host_cpu(), {"n": count}, {"x": x, "y": np.zeros_like(x)}, threads)["y"]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has nothing, and a process that remembers nothing."""
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(codegen, "_memory", {})
    return tmp_path / "cache"


def no_worker(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a compiler was started")


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had just started, and could compile nothing."""
    monkeypatch.setattr(codegen, "_memory", {})
    monkeypatch.setattr(codegen, "compile_all", no_worker)


def test_a_kernel_is_compiled_once_on_a_machine(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [scale(2.0), scale(3.0)]
    objects = compile_kernels([*kernels, *kernels], host_cpu())
    assert list(objects) == [kernel.symbol for kernel in kernels]
    monkeypatch.setattr(codegen, "compile_all", no_worker)
    assert compile_kernels(kernels, host_cpu()) == objects, "from memory"
    forget(monkeypatch)
    assert compile_kernels(kernels, host_cpu()) == objects, "from the cache"
    assert run(kernels[1]).tolist() == [3.0 * x for x in range(37)]


def test_a_damaged_entry_of_the_cache_is_compiled_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = compile_kernels([scale(2.0)], host_cpu())
    files = [path for path in fresh.rglob("*") if path.is_file() and path.stat().st_size > 200]
    for path in files:
        path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(codegen, "_memory", {})
    assert compile_kernels([scale(2.0)], host_cpu()) == objects
    forget(monkeypatch)
    assert compile_kernels([scale(2.0)], host_cpu()) == objects, "and kept"


def test_what_does_not_compile_is_named_and_harms_nothing_else(fresh: Path) -> None:
    objects, failures = try_kernels([scale(2.0), BROKEN, scale(4.0)], host_cpu())
    assert set(objects) == {scale(2.0).symbol, scale(4.0).symbol}
    assert list(failures) == [BROKEN.symbol]
    assert "nothing" in failures[BROKEN.symbol]
    with pytest.raises(KernelFailed, match=rf"{BROKEN.symbol} does not compile"):
        compile_kernels([BROKEN], host_cpu())


def test_a_compiler_that_dies_is_a_failure_of_the_kernel(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = compilers._start

    def killed() -> subprocess.Popen[str]:
        process = started()
        process.kill()
        process.wait()
        return process

    compilers.close_idle()
    monkeypatch.setattr(compilers, "_start", killed)
    objects, failures = try_kernels([scale(2.0)], host_cpu())
    assert objects == {}
    assert "the compiler ended with code -9" in failures[scale(2.0).symbol]


def test_a_compiler_that_ended_for_want_of_requests_is_started_again(fresh: Path) -> None:
    worker = compilers.Worker()
    mcpu = processor(host_cpu())
    first = worker.compile(scale(2.0), mcpu)
    assert worker._process is not None and worker._process.stdin is not None
    worker._process.stdin.close()
    worker._process.wait()
    assert worker.compile(scale(2.0), mcpu) == first
    worker.close()


def test_a_compiler_waits_for_the_next_request(fresh: Path) -> None:
    compilers.close_idle()
    compile_kernels([scale(2.0)], host_cpu())
    (worker,) = compilers._idle
    compile_kernels([scale(3.0)], host_cpu())
    assert compilers._idle == [worker]


def test_a_compiler_that_nobody_asks_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from irx.backends.tvm import worker; worker.PATIENCE = 0.2; worker.main()"
    waiting = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert waiting.wait(60) == 0
    waiting.communicate()


@pytest.mark.parametrize(
    ("device", "name"), [("cpu-generic", "x86-64"), ("cpu-avx2", "haswell"), ("cpu-amx", "sapphirerapids")]
)
def test_the_processor_has_no_instruction_that_the_device_lacks(device: str, name: str) -> None:
    assert processor(find_device(device)) == name


def test_objects_are_kept_apart_by_processor(fresh: Path) -> None:
    kernel = scale(2.0)
    wide, narrow = (compile_kernels([kernel], find_device(name)) for name in ("cpu-avx512", "cpu-generic"))
    assert wide[kernel.symbol] != narrow[kernel.symbol]


ALONE = """
import os, sys
os.environ["PATH"] = ""
from tests.backends.tvm.test_codegen import run, scale
assert run(scale(5.0)).tolist() == [5.0 * x for x in range(37)]
assert "tvm" not in sys.modules, "it belongs into the worker"
print("right")
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    """Another process with an empty PATH and this cache."""
    env = {**os.environ, "PATH": "", "IRX_CACHE_DIR": str(folder), "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_compile_at_once_without_a_toolchain(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for process in [start(ALONE, fresh) for _ in range(2)]:
        printed, failed = process.communicate(timeout=300)
        assert printed == "right\n", failed
    forget(monkeypatch)
    assert run(scale(5.0)).tolist() == [5.0 * x for x in range(37)]


def test_equal_kernels_of_different_places_are_one(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernels([scale(2.0)], host_cpu())
    forget(monkeypatch)
    elsewhere = replace(scale(2.0), note="the same in another graph")
    assert list(compile_kernels([elsewhere], host_cpu())) == [scale(2.0).symbol]


def test_compilers_do_not_load_torch() -> None:
    code = "import irx.backends.tvm.worker, irx.backends.tvm.codegen, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "it takes longer than a kernel"
