"""The interpreter as kernels are checked with it: its bfloat16 is that of a GPU, and what goes wrong is told."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the gpu extra is not installed")

from irx.backends.triton import interpret
from irx.backends.triton.kernel import Kernel, Pointer, Size
from irx.errors import KernelFailed

LANES = "i = tl.arange(0, 16)\n"


def _square(rows: int, body: str, dtype: str = "bf16") -> tuple[torch.Tensor, torch.Tensor]:
    """x [16, 16] and what `body` makes of it in y."""
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    y = torch.zeros(16, 16, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    parameters = (Pointer("x", "bf16"), Pointer("y", dtype), Size("rows"))
    interpret.run(Kernel("test", parameters, LANES + body, ("1",)), {"x": x, "y": y, "rows": rows})
    return x, y


def test_products_of_bfloat16_are_those_of_its_numbers() -> None:
    body = "at = i[:, None] * 16 + i[None, :]\na = tl.load(x + at)\ntl.store(y + at, tl.dot(a, a))\n"
    x, y = _square(16, body, "f32")
    assert torch.allclose(y, x.float() @ x.float(), atol=1e-4)


def test_arithmetic_and_comparisons_of_bfloat16_round_as_torch_does() -> None:
    body = "a = tl.load(x + i)\nb = tl.load(x + 16 + i)\ntl.store(y + i, tl.where(a < b, a * b, a + b))\n"
    x, y = _square(16, body)
    a, b = x[0], x[1]
    assert torch.equal(y[0], torch.where(a < b, a * b, a + b))


def test_sums_and_extremes_of_bfloat16() -> None:
    body = "a = tl.load(x + i)\ntl.store(y, tl.sum(a, 0))\ntl.store(y + 1, tl.max(a, 0))\n"
    x, y = _square(16, body)
    assert y[0, 1] == x[0].max()
    assert abs(y[0, 0] - x[0].float().sum()) < 0.05


def test_float32_becomes_the_nearest_bfloat16() -> None:
    values = torch.randn(1024, generator=torch.Generator().manual_seed(2))
    y = torch.zeros(1024, dtype=torch.bfloat16)
    body = "i = tl.arange(0, 1024)\ntl.store(y + i, tl.load(x + i).to(tl.bfloat16))\n"
    interpret.run(Kernel("round", (Pointer("x", "f32"), Pointer("y", "bf16")), body, ("1",)), {"x": values, "y": y})
    assert torch.equal(y, values.to(torch.bfloat16))


def test_a_fused_product_and_sum_rounds_once() -> None:
    x = torch.tensor([1 + 2.0**-12], dtype=torch.float32)
    y, body = torch.zeros(1), "a = tl.load(x)\ntl.store(y, tl.fma(a, a, 0.0 - a * a))\n"
    interpret.run(Kernel("lost", (Pointer("x", "f32"), Pointer("y", "f32")), body, ("1",)), {"x": x, "y": y})
    assert float(y) == 2.0**-24


def test_pointers_into_one_buffer_overlap() -> None:
    whole = torch.arange(8, dtype=torch.float32)
    kernel = Kernel(
        "shift",
        (Pointer("x", "f32"), Pointer("y", "f32", aligned=False)),
        "i = tl.arange(0, 4)\ntl.store(y + i, tl.load(x + i))\n",
        ("1",),
    )
    interpret.run(kernel, {"x": whole, "y": whole[3:]})
    assert whole.tolist() == [0, 1, 2, 0, 1, 2, 3, 7]


def test_what_a_kernel_does_wrong_is_told() -> None:
    kernel = Kernel("wrong", (Pointer("x", "f32"),), "tl.store(x, unknown)\n", ("1",))
    with pytest.raises(KernelFailed, match="unknown"):
        interpret.run(kernel, {"x": torch.zeros(1)})
