"""Steps of decoding that are replayed without a look at the states; graphs are closures, kernels interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irx
from irx.backends.triton import capture
from irx.backends.triton.capture import Recorder
from irx.backends.triton.plan import Plan
from tests.backends.triton.test_capture import Closure

pytest.importorskip("triton", reason="the gpu extra is not installed")
transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

TOKENS = [3, 6, 2, 7]


@pytest.fixture(scope="module")
def executables() -> list[Any]:
    """A small model on kernels and on torch."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    return [irx.compile(model, target=target) for target in ("triton:cpu", "torch:cpu")]


@pytest.fixture
def called(executables: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that are called, one for each call that is not repeated."""
    names: list[str] = []
    monkeypatch.setattr(capture, "CALLS_BEFORE", 0)  # the first step is recorded
    for plan in executables[0].graphs.values():
        monkeypatch.setattr(plan, "_recorder", Recorder(plan.all_inputs, Closure))
    call = Plan.__call__

    def counted(plan: Plan, *inputs: Any) -> list[Any]:
        names.append(plan.name)
        return call(plan, *inputs)

    monkeypatch.setattr(Plan, "__call__", counted)
    return names


def test_steps_behind_the_recorded_one_are_replayed(executables: list[Any], called: list[str]) -> None:
    """Also after some were taken back, and when rows are unequally long."""
    ours, theirs = (executable.session(2) for executable in executables)
    for number, token in enumerate(TOKENS):
        if number == len(TOKENS) - 1:
            ours.truncate([1, 2])
            theirs.truncate([1, 2])
        given = torch.tensor([[token], [token + 1]])
        found, expected = ours.append(given), theirs.append(given)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), number
    assert called == ["decode"]
    assert ours.lengths == theirs.lengths


def test_what_the_record_does_not_hold_for_is_called(executables: list[Any], called: list[str]) -> None:
    session, other = (executables[0].session() for _ in range(2))
    session.append(torch.tensor([[3]]))
    before = len(called)
    plan = executables[0].graphs["decode"]
    first = session.append(torch.tensor([[4]]))
    assert len(called) == before
    session.truncate(session.length - 1)
    other.append(torch.tensor([[9]]))  # goes through the same buffers
    assert torch.equal(session.append(torch.tensor([[4]])), first)
    assert len(called) == before + 1
    plan.grow(2 * plan.arena.numel())
    session.truncate(session.length - 1)
    assert torch.equal(session.append(torch.tensor([[4]])), first)
    assert len(called) == before + 2
