"""One plan with every lossy family and weights of 4 bits, on GPU kernels in the interpreter against torch's."""

from __future__ import annotations

import pytest
import torch

import irx
from irx.backends.triton.compiling import missing
from tests.passes.small_models import WORDS, decoder

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PLAN = (
    "default | skip-layers{policy=list, layers=1} | prune-tokens{layer=2, keep=0.6, window=4} "
    "| share-attention{leader=previous, ends=0, layers=1} | repair-output | kv-quantize{bits=4} "
    "| slice-ffn{keep=0.75, multiple=16} | quantize-weights{bits=4, group=32}"
)


def ids(batch: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_a_plan_of_all_families_gives_the_same_on_gpu_kernels() -> None:
    data = [ids(1, 16, seed) for seed in range(6)]
    made, wanted = (irx.compile(decoder(), target=t, pipeline=PLAN, data=data) for t in ("triton:cpu", "torch:cpu"))
    dropped = [row.name for row in made.ledger().rows if row.effect == "lossy" and row.decision != "kept"]
    assert dropped == []
    assert made.ledger().summary.fallbacks == {}
    ours, theirs = made.session(2), wanted.session(2)
    for step in (ids(2, 13, 9), ids(2, 1, 10)):
        y, y0 = ours.append(step), theirs.append(step)
        assert (y - y0).abs().max() <= 2e-2 * y0.abs().max()
