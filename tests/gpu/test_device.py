"""What only a GPU can tell: binaries run, their numbers are right, and what was read from them is what the driver says.

Skipped with its reason where there is none.
"""

from __future__ import annotations

import pytest
import torch

import irx
from irx.bench.programs import shape
from irx.target import host_gpu

pytestmark = pytest.mark.gpu

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


@pytest.fixture(scope="module")
def target() -> str:
    device = host_gpu()
    if device is None:
        pytest.skip("no device file is near to this machine's GPU")
    return device.name


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
    fast, slow = irx.compile(program, target=target), irx.compile(program, target=f"torch:{target}")
    ids = torch.randint(0, 49152, (1, 40), generator=torch.Generator().manual_seed(0)).cuda()
    sessions = [fast.session(), slow.session()]
    for start, end in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
        a, b = (session.append(ids[:, start:end]).float() for session in sessions)
        assert (a - b).abs().max() / b.abs().max() < 5e-2
    assert fast.graphs["decode"].recorded >= 1  # type: ignore[attr-defined]


def test_steps_repeat_exactly(target: str) -> None:
    fast = irx.compile(shape("smollm2-135m"), target=target)
    ids = torch.arange(512)[None].cuda()
    session = fast.session()
    session.append(ids)
    first = session.append(ids[:, :1])
    for _ in range(200):
        session.truncate(512)
        assert torch.equal(session.append(ids[:, :1]), first)
