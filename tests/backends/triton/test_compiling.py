"""Compiling ahead of time: for any device on this machine, once, and without losing more than the kernel that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the gpu extra is not installed")

from irx.backends.triton import compiling
from irx.backends.triton.compiling import compile_kernels, try_kernels
from irx.backends.triton.kernel import Kernel, Pointer, Size
from irx.errors import KernelFailed
from irx.target import find_device

BODY = (
    "i = tl.program_id(0) * 128 + tl.arange(0, 128)\nm = i < n\ntl.store(x + i, tl.load(x + i, mask=m) * 2, mask=m)\n"
)
DOUBLE = Kernel("double", (Pointer("x", "f32"), Size("n")), BODY, ("ceil(n, 128)",))
WRONG = Kernel("wrong", (Pointer("x", "f32"),), "tl.store(x, unknown)\n", ("1",))


@pytest.mark.parametrize("device", ["a100", "h200", "mi300x"])
def test_a_kernel_becomes_a_binary_of_the_device(device: str) -> None:
    (made,) = compile_kernels([DOUBLE], find_device(device)).values()
    assert made.data[:4] == b"\x7fELF"
    assert DOUBLE.symbol.encode() in made.data
    assert made.warps == 4


def test_what_was_compiled_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_memory", {})
    first = compile_kernels([DOUBLE], find_device("l4"))
    monkeypatch.setattr(compiling, "_memory", {})
    monkeypatch.setattr(compiling, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compile_kernels([DOUBLE], find_device("l4")) == first


def test_one_that_fails_leaves_the_others() -> None:
    made, failures = try_kernels([DOUBLE, WRONG], find_device("a100"))
    assert made.keys() == {DOUBLE.symbol}
    assert "unknown" in failures[WRONG.symbol]
    with pytest.raises(KernelFailed, match="does not compile for a100"):
        compile_kernels([WRONG], find_device("a100"))


def test_a_kernel_that_takes_too_long_fails_alone() -> None:
    slow = Kernel("slow", (Pointer("x", "f32"),), "tl.store(x, 1.0)\n", ("1",), note="slow")
    _, failures = try_kernels([slow], find_device("a100"), limit=0.001)
    assert "more than 0.001 seconds" in failures[slow.symbol]
    assert compile_kernels([slow], find_device("a100"))
