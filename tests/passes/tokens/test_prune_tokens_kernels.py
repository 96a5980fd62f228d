"""prune-tokens on CPU kernels: prompts, chunks and steps without torch, with caches as torch leaves them."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import irx
from irx.backends.tvm.codegen import missing
from irx.backends.tvm.plan import Plan
from irx.ir.dims import Range
from tests.passes.small_models import WORDS, decoder

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
LONG = 128


@cache
def compiled(target: str) -> irx.Executable:
    program = decoder(4)
    program.sizes["S"], program.meta["max_length"] = Range(1, LONG), LONG
    pipeline = "default | prune-tokens{layer=1, keep=0.3, window=4}"
    return irx.compile(program, target=target, pipeline=pipeline, strict=True)


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that went to torch as a whole."""
    calls = list[str]()
    monkeypatch.setattr(Plan, "_by_torch", noting(calls, Plan._by_torch))
    return calls


def noting(calls: list[str], run: object) -> object:
    def noted(plan: Plan, inputs: object) -> object:
        calls.append(plan.name)
        return run(plan, inputs)  # type: ignore[operator]

    return noted


@pytest.mark.parametrize(("batch", "chunks"), [(1, [64, 1, 1]), (2, [30, 1, 17, 1, 5]), (3, [7, 1]), (1, [1, 40, 1])])
def test_kernels_follow_the_tokens_that_stay(batch: int, chunks: list[int], by_torch: list[str]) -> None:
    ids = torch.randint(0, WORDS, (batch, sum(chunks)), generator=torch.Generator().manual_seed(batch))
    there, here = (compiled(target).session(batch) for target in ("torch:cpu", "cpu"))
    for part in ids.split(chunks, 1):
        expected, found = there.append(part), here.append(part)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert by_torch == []
    for one, other in zip(there._states.values(), here._states.values(), strict=True):
        assert one.lengths == other.lengths
        assert (one.kept is None) == (other.kept is None)
        if one.kept is not None and other.kept is not None:
            assert one.kept.counts == other.kept.counts
            assert torch.equal(one.kept.positions[:, :, : max(one.kept.counts)].long(), positions(other, one))


def positions(state: irx.runtime.kv.KVState, like: irx.runtime.kv.KVState) -> torch.Tensor:
    """The positions of the tokens chosen, as many as `like` has."""
    assert state.kept is not None and like.kept is not None
    return state.kept.positions[:, :, : max(like.kept.counts)].long()


def test_padded_prompts_are_left_to_torch(by_torch: list[str]) -> None:
    """How many tokens of a row are real is not known before its tokens are chosen."""
    ids, mask = torch.arange(20).reshape(2, 10) % WORDS, torch.ones(2, 10, dtype=torch.int64)
    mask[0, :3] = 0
    there, here = (compiled(target).session(2) for target in ("torch:cpu", "cpu"))
    torch.testing.assert_close(here.append(ids, mask), there.append(ids, mask))
    assert by_torch == ["prefill"]
    torch.testing.assert_close(here.append(ids[:, :1]), there.append(ids[:, :1]), rtol=1e-4, atol=1e-4)
    assert by_torch == ["prefill"]
