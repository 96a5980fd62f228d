"""The model's own tensors are constants only while they stay as they are."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from irx.dynamo.graph import CompiledGraph
from tests.dynamo.recording import Recording, operations, relative
from tests.end_to_end.families import FAMILIES


class Block(nn.Module):
    """A projection whose weight is read transposed, so that what runs is derived from it."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size) / size)
        self.scale = nn.Parameter(torch.rand(size) + 0.5)
        self.register_buffer("shift", torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.shift, x, self.weight) * (1 + self.scale)


def agrees(compiled: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return relative(compiled(x), model(x)) < 1e-6


def kernels(recording: Recording) -> int:
    """How many kernels of the newest graph are prepared."""
    compiled = recording.graphs[-1]
    assert isinstance(compiled, CompiledGraph)
    return len(compiled._frozen._prepared)


def load(model: Block) -> None:
    model.load_state_dict(Block().state_dict())


def step(model: Block) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9).add_(0.1)


def swap(model: Block) -> None:
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)


@pytest.mark.parametrize("change", [load, step, swap])
def test_changes_after_the_first_call_are_seen(change: Callable[[Block], None], recording: Recording) -> None:
    model, x = Block(), torch.randn(3, 8)
    compiled = torch.compile(model, backend=recording)
    assert agrees(compiled, model, x)
    for _ in range(3):
        before = compiled(x) if not any(p.requires_grad for p in model.parameters()) else None
        change(model)
        assert agrees(compiled, model, x)
        assert before is None or not torch.equal(before, model(x))
    assert kernels(recording) == 1
    assert len(recording.graphs) == 1, "Dynamo compiled again, so nothing was tested"


def test_a_call_without_changes_prepares_nothing(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Block(), torch.randn(3, 8)
    compiled = torch.compile(model, backend=recording)
    assert agrees(compiled, model, x)

    def unexpected(*_: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr("irx.dynamo.frozen.Frozen.prepare", unexpected)
    assert agrees(compiled, model, x)


def test_weights_are_the_models_own_memory(recording: Recording) -> None:
    model = nn.Linear(8, 8)
    compiled = torch.compile(model, backend=recording)
    x = torch.randn(2, 8)
    assert agrees(compiled, model, x)
    (prepared,) = recording.graphs[0]._frozen._prepared.values()
    held = {t.data_ptr() for t in prepared.kernel._registers if isinstance(t, Tensor)}
    assert {p.data_ptr() for p in model.parameters()} <= held


def test_graphs_of_one_model_share_what_they_derive(recording: Recording) -> None:
    model = Block()
    compiled = torch.compile(model, backend=recording, dynamic=False)
    assert agrees(compiled, model, torch.randn(3, 8))
    assert agrees(compiled, model, torch.randn(5, 8))
    kept = []
    for graph in recording.graphs:
        (prepared,) = graph._frozen._prepared.values()
        held = [t for t in prepared.kernel._registers if isinstance(t, Tensor) and t.shape == (8,)]
        kept.append({t.data_ptr() for t in held} - {p.data_ptr() for p in (model.scale, model.shift)})
    assert kept[0]
    assert kept[0] == kept[1]


def test_one_graph_serves_all_layers(recording: Recording) -> None:
    layers = nn.Sequential(*(Block() for _ in range(3)))
    compiled = torch.compile(Block.forward, backend=recording)

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = compiled(layer, x)
        return x

    x = torch.randn(3, 8)
    assert agrees(run, layers, x)
    assert agrees(run, layers, x)
    assert len(recording.graphs) == 1
    assert kernels(recording) == 3
    step(layers[1])
    assert agrees(run, layers, x)
    assert kernels(recording) == 3


def test_a_buffer_that_changes_becomes_an_input(recording: Recording) -> None:
    model, x = Block(), torch.randn(3, 8)
    compiled = torch.compile(model, backend=recording)
    assert agrees(compiled, model, x)
    frozen = recording.graphs[0]._frozen
    assert len(frozen._buffers) == 1
    for _ in range(3):
        model.shift.add_(1.0)
        assert agrees(compiled, model, x)
        assert frozen._buffers == ()
    model.shift = torch.randn(8)
    assert agrees(compiled, model, x)


def test_state_that_the_graph_writes_is_no_constant(recording: Recording) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("history", torch.zeros(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            self.history[1:3] = x
            return x * self.count + self.history.sum()

    model, same, x = Counter(), Counter(), torch.randn(2, 8)
    compiled = torch.compile(model, backend=recording)
    for _ in range(3):
        assert relative(compiled(x), same(x)) < 1e-6
    assert torch.equal(model.history, same.history)
    assert int(model.count) == 3
    assert isinstance(recording.graphs[0], CompiledGraph)


class Biased(nn.Module):
    """Attention with a learned bias, which is zero at first: a pass may see that it adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.bias)


def test_what_a_pass_saw_in_a_weight_is_looked_at_again(recording: Recording) -> None:
    model, x = Biased(), torch.randn(1, 2, 5, 4)
    compiled = torch.compile(model, backend=recording)
    assert agrees(compiled, model, x)
    assert recording.built.decisive == {"bias"}
    model.load_state_dict({"bias": torch.randn(2, 5, 5)})
    assert agrees(compiled, model, x)


def test_tied_weights_that_come_apart(recording: Recording) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = nn.Parameter(self.first.weight.detach())

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    model, x = Tied(), torch.randn(3, 8)
    compiled = torch.compile(model, backend=recording)
    assert agrees(compiled, model, x)
    model.second.weight.data = torch.randn(8, 8)
    assert agrees(compiled, model, x)


def test_a_model_that_is_gone_keeps_no_memory(recording: Recording) -> None:
    model, x = Block(), torch.randn(3, 8)
    assert agrees(torch.compile(model, backend=recording), model, x)
    assert kernels(recording) == 1
    alive = weakref.ref(model.weight)
    del model
    gc.collect()
    assert alive() is None
    assert kernels(recording) == 0


def test_inference_mode(recording: Recording) -> None:
    model, x = Block(), torch.randn(3, 8)
    compiled = torch.compile(model, backend=recording)
    with torch.inference_mode():
        assert relative(compiled(x), model(x)) < 1e-6
        assert relative(compiled(torch.randn(5, 8)), model(torch.randn(5, 8))) != 0
        made_here = Block()
        assert relative(torch.compile(made_here, backend=recording)(x), made_here(x)) < 1e-6
    step(model)
    with torch.inference_mode():
        assert relative(compiled(x), model(x)) < 1e-6
    assert all(isinstance(graph, CompiledGraph) for graph in recording.graphs)


def test_weights_that_two_passes_merge_are_made_again(recording: Recording) -> None:
    family = FAMILIES["gpt2"]
    model = family.model()
    compiled = torch.compile(model, backend=recording)
    inputs = family.inputs(2, 8)
    for seed in (0, 1):
        model.load_state_dict(family.model(seed=seed).state_dict())
        expected = family.eager(model, inputs)["logits"]
        with torch.no_grad():
            assert relative(compiled(**inputs, use_cache=False).logits, expected) < 1e-5
    assert "linear" in operations(recording)
    assert len(recording.graphs) == 1
