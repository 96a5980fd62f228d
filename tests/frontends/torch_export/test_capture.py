"""What a captured program records: names, sizes, weights, locations, outputs; and that in-place code is captured."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from irx.frontends.torch_export import capture
from irx.ir.dims import Range
from irx.ir.program import Program
from irx.ir.verify import verify
from tests.end_to_end.families import torch_calls
from tests.frontends.execution import largest_error, run


class Tower(nn.Module):
    """Two layers that share a weight, a table cut at the input's length, and a buffer."""

    table: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.randn(32, 8))
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.first(x + self.table[: x.shape[1]])
        return {"hidden": y, "nothing": None, "result": self.second(y.relu()) * self.scale}


def check(model: nn.Module, *inputs: torch.Tensor, shapes: Any = ()) -> Program:
    """Capture, and compare with the model at the example and at other shapes."""
    program = capture(model, inputs)
    verify(program)
    names = [value.name for value in program.graphs["forward"].inputs]
    for given in (inputs, *shapes):
        with torch.no_grad():
            result = model(*given)
        expected = result if isinstance(result, dict) else {"output": result}
        expected = {name: value for name, value in expected.items() if value is not None}
        assert largest_error(run(program, dict(zip(names, given, strict=True))), expected) < 1e-5
    return program


def test_tower() -> None:
    program = check(Tower().eval(), torch.randn(2, 5, 8), shapes=[(torch.randn(3, 7, 8),), (torch.randn(1, 1, 8),)])
    graph = program.graphs["forward"]
    assert [str(value.type) for value in graph.inputs] == ["f32[B, S, 8]"]
    assert program.sizes == {"B": Range(1, 16, 2), "S": Range(1, 32, 5)}
    assert program.meta["inputs"] == [{"name": "x", "role": "tensor"}]
    assert program.meta["output"] == {
        "class": "dict",
        "fields": ["hidden", "result"],
        "dropped": ["nothing"],
        "tree": ["dict", {"hidden": "hidden", "nothing": None, "result": "result"}],
    }
    assert graph.output_names == ["hidden", "result"]
    linears = [node for node in graph.nodes if node.op.name == "linear"]
    assert [node.loc.module for node in linears] == ["first", "second"]
    assert all(node.loc.line.startswith("test_capture.py:") for node in linears)
    assert linears[0].inputs[1] is linears[1].inputs[1]
    assert [weight.name for weight in program.used_weights()] == [
        "table",
        "first.weight",
        "first.bias",
        "second.bias",
        "scale",
    ]


def test_weights_are_views() -> None:
    model = nn.Linear(4, 3).bfloat16()
    program = capture(model, torch.zeros(2, 4, dtype=torch.bfloat16))
    array = program.weights.array(program.weights["weight"])
    assert array.dtype == ml_dtypes.bfloat16
    with torch.no_grad():
        model.weight.fill_(2.5)
    assert np.all(array == 2.5)


def test_meta_parameters_have_no_arrays() -> None:
    model = nn.Linear(4, 3, device="meta")
    program = capture(model, torch.zeros(2, 4))
    assert all(entry.load is None for entry in program.weights)
    assert model.weight.is_meta
    program.weights.bind("weight", lambda: np.ones((3, 4), np.float32))
    program.weights.bind("bias", lambda: np.zeros(3, np.float32))
    assert np.all(run(program, {"input": torch.ones(5, 4)})["output"] == 4)


@pytest.mark.parametrize("dtype", ["bf16", "f64"])
def test_dtype_casts_a_copy(dtype: str) -> None:
    model = Tower()
    program = capture(model, torch.randn(2, 5, 8), dtype=dtype)
    assert {value.dtype for value in program.graphs["forward"].outputs} == {dtype}
    assert program.weights["first.weight"].dtype == dtype
    assert program.graphs["forward"].inputs[0].dtype == dtype
    assert model.first.weight.dtype == torch.float32
    assert model.training


def test_dtype_leaves_unsaved_buffers() -> None:
    model = nn.Module()
    model.register_buffer("table", torch.ones(3), persistent=False)
    model.forward = lambda x: x * model.table  # type: ignore[method-assign]
    assert capture(model, torch.ones(2, 3), dtype="bf16").weights["table"].dtype == "f32"


def test_static() -> None:
    program = capture(Tower(), torch.randn(1, 1, 8), dynamic=False)
    assert program.sizes == {}
    assert str(program.graphs["forward"].inputs[0].type) == "f32[1, 1, 8]"


def test_limits() -> None:
    program = capture(Tower(), torch.randn(2, 5, 8), max_batch=4, max_length=20)
    assert program.sizes == {"B": Range(1, 4, 2), "S": Range(1, 20, 5)}


class Pair(NamedTuple):
    left: torch.Tensor
    right: tuple[torch.Tensor, torch.Tensor]


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(x + 1, x + 2)


@pytest.mark.parametrize(
    ("make", "names", "kind"),
    [
        (lambda a, b: a, ["output"], "tensor"),
        (lambda a, b: (a, b), ["output_0", "output_1"], "tuple"),
        (lambda a, b: [a, None, b], ["output_0", "output_2"], "list"),
        (lambda a, b: {"a": a, "b": (b, a * 2)}, ["a", "b_0", "b_1"], "dict"),
        (lambda a, b: (a,), ["output_0"], "tuple"),
    ],
)
def test_output_names(make: Any, names: list[str], kind: str) -> None:
    program = capture(Returns(make), torch.ones(2, 3))
    assert program.graphs["forward"].output_names == names
    assert program.meta["output"]["class"] == kind


def test_named_tuples_keep_their_fields() -> None:
    program = capture(Returns(lambda a, b: Pair(a, (b, b))), torch.ones(2, 3))
    assert program.graphs["forward"].output_names == ["left", "right_0", "right_1"]
    assert program.meta["output"]["class"].endswith("Pair")


class TwoInputs(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor, *, times: int = 2) -> torch.Tensor:
        return torch.cat([left, right], 1).repeat(1, times)


def test_sizes_and_relations() -> None:
    ids = torch.arange(12)
    program = capture(TwoInputs(), {"left": ids.reshape(2, 6), "right": ids[:8].reshape(2, 4), "times": 3})
    graph = program.graphs["forward"]
    assert [str(value.type) for value in graph.inputs] == ["i64[B, S]", "i64[B, right_1]"]
    assert graph.outputs[0].shape[1] in capture_dims("3*S + 3*right_1")
    assert program.meta["arguments"] == {"times": 3}


def capture_dims(text: str) -> list[Any]:
    from irx.ir.dims import parse_dim

    return [parse_dim(text)]


# --- code that writes in place ----------------------------------------------------------------------------------------


class InPlace(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.function(x * 1.5)
        return result


def _add_to_view(x: torch.Tensor) -> torch.Tensor:
    x[:, 1:3].add_(10)
    return x


def _write_into_new(x: torch.Tensor) -> torch.Tensor:
    made = x.new_empty(x.shape[0], x.shape[1], 6)
    made[..., :4] = x
    made[..., 4:] = x[..., :2] * 2
    return made * 2


def _views_see_writes(x: torch.Tensor) -> torch.Tensor:
    transposed = x.transpose(1, 2)
    row = x[0]
    x.mul_(3)
    transposed[:, 0] = -1
    return transposed.sum() + row.sum() + x


def _read_before_and_after(x: torch.Tensor) -> torch.Tensor:
    before = x.sum(-1, keepdim=True)
    flat = x.view(x.shape[0], -1)
    flat[:, ::2] = 0
    return before + x + flat.sum()


def _masked(x: torch.Tensor) -> torch.Tensor:
    x.masked_fill_(x > 0.5, 0.25).clamp_(min=-0.5)
    x[:, -1].zero_()
    return x


def _rows(x: torch.Tensor) -> torch.Tensor:
    x.index_copy_(2, torch.tensor([3, 0]), x[..., :2] * 5)
    x[:, :, torch.tensor([1])] = 7.0
    return x


def _select(x: torch.Tensor) -> torch.Tensor:
    x.select(2, -1).copy_(x[..., 0])
    x[0].unsqueeze(0).permute(2, 0, 1)[1] += 2
    return x


def _chunks(x: torch.Tensor) -> torch.Tensor:
    """A write through one of several results, which torch itself has to make functional."""
    first, second = x.chunk(2, dim=-1)
    first.add_(second)
    return x


@pytest.mark.parametrize(
    "function",
    [_add_to_view, _write_into_new, _views_see_writes, _read_before_and_after, _masked, _rows, _select, _chunks],
)
def test_in_place_code(function: Any) -> None:
    example, other = torch.randn(2, 5, 4), torch.randn(3, 4, 4)
    program = check(InPlace(function), example, shapes=[(other,)])
    assert not torch_calls(program), program.meta["notes"]


@pytest.mark.parametrize(("function", "low"), [(_add_to_view, 3), (lambda x: x[:, :2] * 2, 2), (lambda x: x * 2, 1)])
def test_slices_bound_sizes_from_below(function: Any, low: int) -> None:
    assert capture(InPlace(function), torch.randn(2, 5, 4)).sizes["S"] == Range(low, None, 5)


class WritesInput(nn.Module):
    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache[:, : x.shape[1]].copy_(x)
        return cache.sum(1)


def test_written_inputs_are_outputs() -> None:
    program = capture(WritesInput(), (torch.ones(2, 3), torch.zeros(2, 8)), dynamic=False)
    assert program.graphs["forward"].output_names == ["output", "cache_after"]
    made = run(program, {"x": torch.ones(2, 3), "cache": torch.zeros(2, 8)})
    assert made["cache_after"].tolist() == [[1.0] * 3 + [0.0] * 5] * 2
    assert made["output"].tolist() == [3.0, 3.0]
    assert any("cache" in note for note in program.meta["notes"])


# --- further spellings ------------------------------------------------------------------------------------------------


class ScaledByLength(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.shape[1] ** 0.5 + x.shape[1] / 3


class FixedByMath(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / math.sqrt(x.shape[1])


def test_a_size_that_the_model_fixes_is_noted() -> None:
    program = capture(FixedByMath(), torch.randn(2, 5, 3))
    assert str(program.graphs["forward"].inputs[0].type) == "f32[B, 5, 3]"
    assert program.meta["notes"] == ["the model fixes axis [1] of x at the example's size"]


def test_floats_of_sizes() -> None:
    program = check(ScaledByLength(), torch.randn(2, 5, 3), shapes=[(torch.randn(4, 9, 3),)])
    assert not torch_calls(program)


class Rotated(nn.Module):
    """Rotary positions in complex numbers, with a table that is a buffer."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(32.0), torch.tensor([1.0, 0.1]))
        self.register_buffer("table", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        made = torch.polar(torch.ones_like(pairs.real), pairs.imag)
        return torch.view_as_real(pairs * self.table[: x.shape[1]] * 2 * made.conj()).flatten(-2)


def test_complex_rotations() -> None:
    program = check(Rotated(), torch.randn(2, 5, 4), shapes=[(torch.randn(3, 7, 4),)])
    assert not torch_calls(program)
    assert [str(weight.type) for weight in program.used_weights()] == ["f32[32, 2, 2]"]


class NoGradInside(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            y = x * 2
        with torch.autocast("cpu", enabled=False):
            return y.exp() - x


def test_blocks_are_inlined() -> None:
    assert not torch_calls(check(NoGradInside(), torch.randn(2, 3)))


def test_encoder_layers_are_not_fused_away() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    program = check(layer, torch.randn(2, 5, 16), shapes=[(torch.randn(3, 7, 16),)])
    assert not torch_calls(program), program.meta["notes"]
    assert any(node.op.name == "attention" for node in program.graphs["forward"].nodes)
    assert torch.backends.mha.get_fastpath_enabled()


class Histogram(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.histc(x, bins=4, min=0, max=1) + x.sum()


def test_unknown_operators_stay_calls() -> None:
    program = check(Histogram(), torch.rand(2, 6), shapes=[(torch.rand(3, 4),)])
    assert torch_calls(program) == {"aten.histc.default": 1}
    assert "aten.histc.default stays a torch.call at test_capture.py:" in program.meta["notes"][0]
