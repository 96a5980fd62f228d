"""What a user is told when a model or an example cannot be captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from irx.errors import DataDependentControlFlow, ExampleMismatch, ExportFailed, NotAModule
from irx.frontends.torch_export import capture


class Inner(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Outer(nn.Module):
    """The faulty code runs in `blocks.1`."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), Inner(function)])

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def _branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x


def _size_from_value(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(int(x.max().item())) + 1


def _broken(x: torch.Tensor) -> torch.Tensor:
    raise KeyError("no such thing")


def _foreign_result(x: torch.Tensor) -> Any:
    return x, object()


def _complex(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft(x).abs()


def test_not_a_module() -> None:
    with pytest.raises(NotAModule, match=r"int is not an nn\.Module"):
        capture(3, torch.ones(2))  # type: ignore[arg-type]


def test_no_example() -> None:
    with pytest.raises(ExampleMismatch, match="example input is needed for Linear"):
        capture(nn.Linear(2, 2))


@pytest.mark.parametrize("example", [(torch.ones(2, 3), torch.ones(2)), {"y": torch.ones(2, 3)}])
def test_wrong_arguments(example: Any) -> None:
    with pytest.raises(ExampleMismatch, match=r"does not fit Linear.forward.*its arguments are input"):
        capture(nn.Linear(3, 2), example)


@pytest.mark.parametrize("dynamic", [True, False])
def test_shape_that_contradicts_the_model(dynamic: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))
    with pytest.raises(ExampleMismatch, match=r"rejects the example input=float32\[2, 3\]") as caught:
        capture(model, torch.ones(2, 3), dynamic=dynamic)
    assert caught.value.where is not None
    assert caught.value.where.startswith("1")


@pytest.mark.parametrize("function", [_branch, _size_from_value])
def test_data_dependent_control_flow(function: Any) -> None:
    with pytest.raises(DataDependentControlFlow) as caught:
        capture(Outer(function), torch.ones(2, 3))
    assert caught.value.where is not None
    assert caught.value.where.startswith("blocks.1 (test_failures.py:")
    assert "torch.where" in str(caught.value)


def test_failure_of_the_model_itself() -> None:
    with pytest.raises(ExportFailed, match="KeyError: 'no such thing'") as caught:
        capture(Outer(_broken), torch.ones(2, 3))
    assert caught.value.where is not None
    assert caught.value.where.startswith("blocks.1 (test_failures.py:")


def test_result_that_is_no_tensor() -> None:
    with pytest.raises(ExportFailed):
        capture(Inner(_foreign_result), torch.ones(2, 3))


def test_complex_numbers() -> None:
    with pytest.raises(ExportFailed, match=r"of complex tensors") as caught:
        capture(Outer(_complex), torch.ones(2, 3))
    assert caught.value.where is not None
    assert "blocks.1" in caught.value.where


def test_size_of_one_that_may_not_grow() -> None:
    with pytest.raises(ExampleMismatch, match=r"axis 1 of x.*dynamic=False"):
        capture(Inner(lambda x: x.expand(x.shape[0], 7, 3)), torch.ones(2, 1, 3))
    program = capture(Inner(lambda x: x.expand(x.shape[0], 7, 3)), torch.ones(2, 1, 3), dynamic=False)
    assert str(program.graphs["forward"].outputs[0].type) == "f32[2, 7, 3]"


def test_size_of_one_that_turns_out_fixed() -> None:
    weight = torch.ones(3, 4)

    def fixed(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 3, 4) + weight if x.shape[1] == 3 else x

    with pytest.raises(ExampleMismatch, match=r"fixes axis 1 of x, which was enlarged from size 1"):
        capture(Inner(fixed), torch.ones(2, 1, 4))


def test_modes_are_restored_after_a_failure() -> None:
    model = Outer(_broken).train()
    with pytest.raises(ExportFailed):
        capture(model, torch.ones(2, 3))
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
