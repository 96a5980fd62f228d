"""What only a GPU can tell: binaries run, their numbers are right, and what was read from them is what the driver says.

Skipped with its reason where there is none.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

import irx
from irx.backends import find_backend
from irx.backends.triton.driver import Driver, Function, open_driver
from irx.bench.programs import shape
from irx.target import host_gpu

pytestmark = pytest.mark.gpu
REPEATS = 1000

SMALL = """
program @small {
  size B in [1, 8] hint 2
  weight $w : bf16[256, 128]
  weight $g : bf16[128]
  graph @forward(%x: bf16[B, 128]) -> (y: bf16[B, 256]) {
    %n = irx.rms_norm(%x, $g) {eps=1e-05} : bf16[B, 128]
    %y = irx.linear(%n, $w) : bf16[B, 256]
    return %y
  }
}
"""


@pytest.fixture(scope="module", params=["triton", "tvm_cuda"])
def target(request: pytest.FixtureRequest) -> str:
    """This machine's GPU by either path."""
    device = host_gpu()
    if device is None:
        pytest.skip("no device file is near to this machine's GPU")
    if (reason := find_backend(request.param).missing(device)) is not None:
        pytest.skip(reason)
    return f"{request.param}:{device.name}"


def weights(program: irx.Program) -> None:
    from irx.analysis.random_weights import bind_random_weights

    bind_random_weights(program.weights)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_fused_product_is_right(target: str, rows: int) -> None:
    program = irx.parse(SMALL)
    weights(program)
    x = torch.randn(rows, 128, dtype=torch.bfloat16)
    there = irx.compile(program, target=target)(x.cuda()).cpu().float()
    here = irx.compile(program, target="torch:cpu")(x).float()
    assert (there - here).abs().max() / here.abs().max() < 2e-2


def test_decoding_agrees_with_torch_and_is_captured(target: str) -> None:
    program = shape("smollm2-135m")
    fast, slow = irx.compile(program, target=target), irx.compile(program, target=f"torch:{target.partition(':')[2]}")
    ids = torch.randint(0, 49152, (1, 40), generator=torch.Generator().manual_seed(0)).cuda()
    sessions = [fast.session(), slow.session()]
    for start, end in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
        a, b = (session.append(ids[:, start:end]).float() for session in sessions)
        assert (a - b).abs().max() / b.abs().max() < 5e-2
    assert fast.graphs["decode"].recorded >= 1  # type: ignore[attr-defined]


def test_the_likeliest_tokens_are_those_of_the_logits(target: str) -> None:
    fast = irx.compile(shape("smollm2-135m"), target=target)
    ids = torch.arange(33)[None].cuda()
    ours, other = fast.session(), fast.session()
    for session in (ours, other):
        session.append(ids)
    best, logits = ours.top(ids[:, :1], 64), other.append(ids[:, :1])
    assert best is not None
    values, tokens = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(best[0], values[..., :64])
    assert torch.equal(best[1], tokens[..., :64])


def test_steps_repeat_exactly(target: str) -> None:
    """Kernels that do not wait as they must would find what the step before has left: that of another token, or NaN."""
    fast = irx.compile(shape("smollm2-135m"), target=target)
    ids = torch.arange(512)[None].cuda()
    session = fast.session()
    session.append(ids)
    tokens, plan = (ids[:, 7:8].clone(), ids[:, 400:401].clone()), fast.graphs["decode"]
    first = [step(session, token, plan) for token in tokens]
    assert not torch.equal(*first)
    for number in range(REPEATS):
        assert torch.equal(step(session, tokens[number % 2], plan), first[number % 2]), number


def step(session: Any, token: torch.Tensor, plan: Any) -> torch.Tensor:
    """The logits behind 512 tokens and one more, with nothing but NaN where kernels leave what others read."""
    session.truncate(512)
    plan.arena.fill_(0xFF)
    logits: torch.Tensor = session.append(token)
    return logits


@pytest.mark.parametrize("rows", [1, 2])
def test_sums_that_programs_share_are_the_same_every_time(target: str, rows: int) -> None:
    """A product whose sums are divided among programs, the last of which adds them: by a counter, on every launch."""
    program = irx.parse(SMALL.replace("128", "4096"))
    weights(program)
    fast = irx.compile(program, target=target)
    given = [torch.randn(rows, 4096, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    first = [fast(x).clone() for x in given]
    for number in range(5 * REPEATS):
        assert torch.equal(fast(given[number % 2]), first[number % 2]), number


def test_the_driver_agrees_with_what_was_read_from_binaries(target: str) -> None:
    program = irx.parse(SMALL)
    weights(program)
    plan: Any = irx.compile(program, target=target).graphs["forward"]
    driver = open_driver()
    for symbol, function in plan.executor._functions.items():
        usage = plan.usages[symbol]
        assert told(driver, function, 4) == usage.registers  # CU_FUNC_ATTRIBUTE_NUM_REGS
        assert (told(driver, function, 3) > 0) == (usage.stack > 0)  # CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES
        blocks = ctypes.c_int()
        block = (ctypes.c_int(32 * usage.warps), ctypes.c_size_t(usage.shared))
        driver.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", ctypes.byref(blocks), function.handle, *block)
        assert blocks.value == usage.occupancy(plan.target).blocks


def told(driver: Driver, function: Function, number: int) -> int:
    value = ctypes.c_int()
    driver.call("cuFuncGetAttribute", ctypes.byref(value), ctypes.c_int(number), function.handle)
    return value.value


def test_an_artifact_runs_without_compiling(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = irx.parse(SMALL)
    weights(program)
    fast, x = irx.compile(program, target=target), torch.randn(2, 128, dtype=torch.bfloat16, device="cuda")
    fast.save(tmp_path / "model")
    monkeypatch.setattr("irx.backends.triton.backend.try_kernels", None)
    assert torch.equal(irx.load(tmp_path / "model")(x), fast(x))
