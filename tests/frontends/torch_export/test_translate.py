"""Graphs that others traced: what Dynamo hands over, made into ATen operators by `make_fx`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._dynamo.utils import detect_fake_mode
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from irx.frontends.torch_export import Translation, translate
from irx.ir.dims import SymDim
from irx.ir.verify import verify
from tests.end_to_end.families import FAMILIES, torch_calls
from tests.frontends.execution import largest_error, run


class Backend:
    """A `torch.compile` backend that translates each graph and keeps what eager torch makes of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Translation, list[Any], Any]] = []

    def __call__(self, module: fx.GraphModule, inputs: list[Any], **_options: Any) -> Callable[..., Any]:
        mode = detect_fake_mode(inputs)
        fakes = [_fake(mode, value) for value in inputs]
        with torch.no_grad(), mode:
            traced = make_fx(module, pre_dispatch=True)(*fakes)
        translation = translate(traced)

        def call(*values: Any) -> Any:
            kept = [value.clone() if isinstance(value, torch.Tensor) else value for value in values]
            result = module.forward(*values)
            self.seen.append((translation, kept, result))
            return result

        return call


def _fake(mode: Any, value: Any) -> Any:
    return mode.from_tensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor) else value


def check(backend: Backend) -> None:
    """Every call that went through the backend gives on the oracle what eager torch gave."""
    for translation, values, result in backend.seen:
        program = translation.program("graph")
        verify(program)
        pairs = zip(translation.inputs, values, strict=True)
        made = run(program, {name: value for name, value in pairs if isinstance(name, str)})
        tensors = [t for t in result if isinstance(t, torch.Tensor)]
        names = [name for name in translation.outputs if isinstance(name, str)]
        assert largest_error(made, dict(zip(names, tensors, strict=True))) < 1e-5


def compiled(model: nn.Module, **options: Any) -> tuple[Any, Backend]:
    torch._dynamo.reset()
    backend = Backend()
    return torch.compile(model, backend=backend, **options), backend


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral", "bert", "vit"])
def test_dynamo_graphs(name: str) -> None:
    family = FAMILIES[name]
    model, backend = compiled(family.model(), dynamic=True)
    for batch, length in ((2, 9), (3, 17)):
        family.eager(model, family.inputs(batch, length))
    check(backend)
    calls = torch_calls(backend.seen[0][0].program("graph"))
    assert set(calls) <= {"aten.histc.default", "transformers.grouped_mm_fallback.default"}


def test_integer_inputs_are_sizes() -> None:
    class Sliced(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return x[:, :n] * n

    model, backend = compiled(Sliced(), dynamic=True)
    model(torch.ones(3, 8), 4)
    translation, _, _ = backend.seen[0]
    assert any(isinstance(size, SymDim) for size in translation.inputs)
    assert str(translation.graph.outputs[0].shape[1]) in [str(size) for size in translation.inputs]


def test_writes_into_inputs() -> None:
    class Cache(nn.Module):
        def forward(self, cache: torch.Tensor, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            cache.index_copy_(1, at, x)
            return cache.sum(1)

    model, backend = compiled(Cache())
    cache, x, at = torch.zeros(2, 6), torch.ones(2, 2), torch.tensor([4, 1])
    model(cache, x, at)
    check(backend)
    translation, values, _ = backend.seen[0]
    ((written, name),) = translation.mutated.items()
    made = run(translation.program("graph"), dict(zip(translation.inputs, values, strict=True)))  # type: ignore[arg-type]
    assert torch.equal(torch.from_numpy(made[name]).float(), cache)
    assert translation.inputs.index(written) == 0


def test_placeholders_as_weights() -> None:
    weight = torch.randn(4, 3)
    traced = make_fx(lambda x, w: x @ w.t(), tracing_mode="fake")(torch.ones(2, 3), weight)
    traced_names = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    translation = translate(traced, weights={traced_names[1]: ("w", weight)}, names={traced_names[0]: "x"})
    assert translation.inputs == ["x", None]
    assert [w.name for w in translation.program("linear").used_weights()] == ["w"]
    x = torch.randn(2, 3)
    assert largest_error(run(translation.program("linear"), {"x": x}), {"output": x @ weight.t()}) < 1e-6
