"""What IRX does not compile runs as it is: one operator, a graph, or the calls that a user wants gradients of."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from irx.dynamo.graph import CompiledGraph
from irx.errors import (
    ExportFailed,
    IRXError,
    ParseError,
    PassRefused,
    UnknownOption,
    UnknownPass,
    UnknownTarget,
    UnsupportedArgument,
)
from irx.passes import passes
from tests.dynamo.recording import Recording, operations, relative


def told(run: Any, *args: Any) -> tuple[Any, list[str]]:
    """The result of a call and what IRX said during it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(*args)
    return result, [str(w.message) for w in caught if str(w.message).startswith("irx:")]


def test_an_operator_without_a_translation_is_called(recording: Recording) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x * 2) + 1

    x = torch.randn(3, 4)
    assert relative(torch.compile(function, backend=recording)(x), function(x)) < 1e-6
    assert operations(recording) == ["mul", "torch.call", "add"]


def spectrum(x: Tensor) -> Tensor:
    """Complex numbers, which IRX does not have."""
    return torch.fft.rfft(x).abs() + 1


@pytest.mark.usefixtures("falls_back")
def test_a_graph_that_cannot_be_compiled_runs_as_it_is_and_that_is_said_once(recording: Recording) -> None:
    run = torch.compile(spectrum, backend=recording, dynamic=False)
    x, y = torch.randn(3, 8), torch.randn(5, 8)
    result, said = told(run, x)
    assert torch.equal(result, spectrum(x))
    (message,) = said
    assert "ExportFailed" in message
    assert "complex" in message
    result, said = told(run, y)
    assert torch.equal(result, spectrum(y))
    assert said == []
    assert len(recording.graphs) == 2
    assert not any(isinstance(graph, CompiledGraph) for graph in recording.graphs)


def test_with_debugging_it_is_an_error(recording: Recording) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(spectrum, backend=recording)(torch.randn(3, 8))
    assert isinstance(caught.value.inner_exception, ExportFailed)


@pytest.mark.usefixtures("falls_back")
def test_a_kernel_that_fails_gives_way_to_the_graph(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any, *inputs: Any) -> list[Any]:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("irx.backends.torch.plan.Plan.__call__", failing)
    run = torch.compile(lambda x: x * 2, backend=recording)
    x = torch.randn(3)
    result, said = told(run, x)
    assert torch.equal(result, x * 2)
    assert len(said) == 1
    assert "no such kernel" in said[0]
    monkeypatch.undo()
    assert told(run, x)[1] == []
    assert recording.graphs[0]._given_up


@pytest.mark.usefixtures("falls_back")
def test_a_mistake_of_the_caller_is_the_callers(recording: Recording) -> None:
    run = torch.compile(nn.Embedding(4, 8).requires_grad_(False), backend=recording)
    with pytest.raises(IndexError):
        run(torch.tensor([9]))
    result, said = told(run, torch.tensor([3]))
    assert result.shape == (1, 8)
    assert said == []
    assert not recording.graphs[0]._given_up


# --- gradients and autocast -----------------------------------------------------------------------------------------


def test_with_gradients_the_graph_is_returned_and_that_is_said_once(recording: Recording) -> None:
    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    run = torch.compile(model, backend=recording)
    result, said = told(run, x)
    assert len(said) == 1
    assert "no_grad" in said[0]
    assert recording.graphs[0].__self__ is recording.modules[0]
    result.sum().backward()
    assert model.weight.grad is not None
    result, said = told(torch.compile(nn.Linear(4, 2), backend=recording), x)
    assert said == []
    assert result.requires_grad


def test_without_gradients_the_same_model_is_compiled(recording: Recording) -> None:
    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    run = torch.compile(model, backend=recording)
    run(x)
    with torch.no_grad():
        result, said = told(run, x)
    assert said == []
    assert isinstance(recording.graphs[1], CompiledGraph)
    assert relative(result, model(x).detach()) < 1e-6
    assert run(x).requires_grad


def test_gradients_that_no_input_requires_change_nothing(recording: Recording) -> None:
    model, x = nn.Linear(4, 4).requires_grad_(False), torch.randn(3, 4)
    assert relative(torch.compile(model, backend=recording)(x), model(x)) < 1e-6
    assert isinstance(recording.graphs[0], CompiledGraph)
    run = torch.compile(model, backend=recording)
    assert run(x.clone().requires_grad_()).requires_grad


def test_gradients_enabled_inside_the_graph(recording: Recording) -> None:
    weight = nn.Parameter(torch.ones(3))

    def function(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return x * weight

    with torch.no_grad():
        assert torch.compile(function, backend=recording)(torch.ones(3)).requires_grad


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_runs_the_graph(inside: bool, recording: Recording) -> None:
    model, x = nn.Linear(4, 4).requires_grad_(False), torch.randn(3, 4)

    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return model(x)

    run = torch.compile(function if inside else model, backend=recording)
    with torch.autocast("cpu", torch.bfloat16):
        result, said = told(run, x)
        assert torch.equal(result, model(x))
    assert result.dtype == torch.bfloat16
    assert len(said) == 1
    assert "autocast" in said[0]


# --- options --------------------------------------------------------------------------------------------------------


def failure(**options: Any) -> BaseException:
    model = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(model, backend="irx", options=options)(torch.randn(3, 4))
    error: BaseException = caught.value.inner_exception
    return error


@pytest.mark.usefixtures("falls_back")
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"targt": "cpu"}, UnknownOption, "did you mean 'target'?"),
        ({"target": "cpuu"}, UnknownTarget, "cpuu"),
        ({"pipeline": "default | fuse-nrm"}, UnknownPass, "fuse-nrm"),
        ({"pipeline": "default |"}, ParseError, ""),
        ({"tune": "some"}, UnknownOption, "quick"),
        ({"dtype": "bf16"}, UnsupportedArgument, "model.to"),
        ({"dynamic": False}, UnsupportedArgument, "torch.compile(dynamic=...)"),
        ({"budget": 0.1}, UnsupportedArgument, "irx.compile"),
    ],
    ids=str,
)
def test_wrong_options_are_errors(options: dict[str, Any], error: type[IRXError], words: str) -> None:
    found = failure(**options)
    assert type(found) is error
    assert words in str(found)


def test_options_are_those_of_compile(recording: Recording) -> None:
    model, x = nn.Linear(4, 4).requires_grad_(False), torch.randn(3, 4)
    options = {"target": "torch", "pipeline": "none", "strict": True, "dynamic": True, "tune": "none"}
    assert relative(torch.compile(model, backend=recording, options=options)(x), model(x)) < 1e-6
    assert recording.built.goal.backend == "torch"


def test_a_pipeline_of_the_users_own_is_run(recording: Recording) -> None:
    def function(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    x = torch.randn(3, 4)
    for pipeline, expected in (("remove-noops", ["sigmoid", "mul"]), ("raise-activation", ["silu"])):
        torch._dynamo.reset()
        run = torch.compile(function, backend=recording, options={"pipeline": pipeline})
        assert relative(run(x), function(x)) < 1e-6
        assert operations(recording) == expected


@pytest.mark.usefixtures("falls_back")
def test_strict_makes_a_refused_pass_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, program: Any, ctx: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(passes().load("cse"), "run", wrong)
    assert isinstance(failure(strict=True), PassRefused)


@pytest.mark.usefixtures("falls_back")
def test_a_target_that_is_not_where_the_model_is(recording: Recording) -> None:
    run = torch.compile(lambda x: x + 1, backend=recording, options={"target": "a100"})
    result, said = told(run, torch.zeros(3))
    assert torch.equal(result, torch.ones(3))
    assert len(said) == 1
    assert "a100" in said[0]


@pytest.mark.parametrize(("mode", "words"), [("reduce-overhead", "ignored")])
def test_modes_are_noted_once(mode: str, words: str, recording: Recording) -> None:
    for count in (1, 0):
        run = torch.compile(lambda x, k=count: x * 2 + k, backend=recording, mode=mode)
        result, said = told(run, torch.ones(3))
        assert torch.equal(result, torch.full((3,), 2.0 + count))
        assert len(said) == count
        assert all(words in message for message in said)
