"""Sizes, integers, memory that arguments and results share: a compiled graph is called as Dynamo's own would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from irx.dynamo.graph import CompiledGraph
from tests.dynamo.recording import Recording, relative


def compiled(function: Callable[..., Any], recording: Recording, **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend=recording, fullgraph=True, **options)


def was_compiled(recording: Recording) -> bool:
    """True where every graph still runs on a kernel."""
    return all(isinstance(g, CompiledGraph) and g._ran and not g._given_up for g in recording.graphs)


def test_sizes_vary_from_call_to_call(recording: Recording) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, int]:
        joined = torch.cat([x, y], 1)
        return joined.transpose(0, 1).reshape(-1) * x.shape[1], joined.shape[1] * 2 + x.shape[0]

    run = compiled(function, recording, dynamic=True)
    for rows, first, second in ((2, 3, 4), (5, 7, 3), (3, 3, 9)):
        x, y = torch.randn(rows, first), torch.randn(rows, second)
        (made, number), (expected, wanted) = run(x, y), function(x, y)
        assert relative(made, expected) < 1e-6
        assert number == wanted
    assert len(recording.graphs) == 1
    assert was_compiled(recording)


def test_an_integer_argument_is_a_size(recording: Recording) -> None:
    def function(x: Tensor, n: int) -> tuple[Tensor, Tensor, int]:
        return x * n + torch.arange(n).sum(), torch.full((n, 2), 1.5), n * 3 + 1

    run = compiled(function, recording, dynamic=True)
    x = torch.randn(3, 4)
    for n in (5, 9, 2):
        made, expected = run(x, n), function(x, n)
        assert relative(made[0], expected[0]) < 1e-6
        assert torch.equal(made[1], expected[1])
        assert made[2] == expected[2]
    assert was_compiled(recording)


def test_an_integer_that_is_no_size_runs_dynamos_graph(recording: Recording) -> None:
    def function(x: Tensor, n: int) -> Tensor:
        return x * n + max(n, 7)

    run = compiled(function, recording, dynamic=True)
    x = torch.randn(3, 4)
    for n in (5, -3, 0, 1, 11):
        assert torch.equal(run(x, n), function(x, n)), n


@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_floats_are_arguments(target: str, recording: Recording) -> None:
    run = compiled(lambda x, factor: x * factor, recording, dynamic=True, options={"target": target})
    x = torch.randn(3, 4)
    for factor in (0.5, 2.25, -1.0):
        assert relative(run(x, factor), x * factor) < 1e-6
    assert was_compiled(recording)


@pytest.mark.parametrize("target", ["torch", "cpu"])
@pytest.mark.parametrize("rows", [3, 5])
def test_arguments_are_written_to(rows: int, target: str, recording: Recording) -> None:
    def function(x: Tensor, cache: Tensor, at: Tensor) -> Tensor:
        cache.index_copy_(0, at, x)
        cache[:, 0] = 7.0
        return cache.sum(0)

    run = compiled(function, recording, dynamic=True, options={"target": target})
    x, at = torch.randn(2, 4), torch.tensor([1, rows - 1])
    made, expected = torch.zeros(rows, 4), torch.zeros(rows, 4)
    assert relative(run(x, made, at), function(x, expected, at)) < 1e-6
    assert torch.equal(made, expected)
    assert was_compiled(recording)


def test_a_write_in_place_counts_from_the_end(recording: Recording) -> None:
    def function(x: Tensor, cache: Tensor, at: Tensor) -> Tensor:
        cache[at] = x
        return cache * 2

    run = compiled(function, recording)
    x, at = torch.randn(2, 4), torch.tensor([-1, 1])
    made, expected = torch.zeros(5, 4), torch.zeros(5, 4)
    memory = made.data_ptr()
    assert torch.equal(run(x, made, at), function(x, expected, at))
    assert torch.equal(made, expected)
    assert made.data_ptr() == memory
    assert recording.built.copied_back == []


def test_what_was_read_before_the_write_is_old(recording: Recording) -> None:
    def function(x: Tensor, cache: Tensor, at: Tensor) -> Tensor:
        old = cache[:2]
        before = old * 3
        cache.index_copy_(0, at, x)
        return before + old

    run = compiled(function, recording)
    x, at = torch.randn(2, 4), torch.tensor([0, 3])
    made, expected = torch.ones(5, 4), torch.ones(5, 4)
    assert relative(run(x, made, at), function(x, expected, at)) < 1e-6
    assert torch.equal(made, expected)


def test_contents_can_be_exchanged(recording: Recording) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        old = a.clone()
        a.copy_(b)
        b.copy_(old)
        return old

    run = compiled(function, recording)
    a, b = torch.randn(3), torch.randn(3)
    first, second = a.clone(), b.clone()
    old = run(a, b)
    assert torch.equal(a, second)
    assert torch.equal(b, first)
    assert torch.equal(old, first)
    assert was_compiled(recording)


def test_results_are_memory_of_arguments_where_eager_ones_are(recording: Recording) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x.add_(1)
        return x.add_(1), x.view(-1), x[:, 1:], x.t()

    run = compiled(function, recording, dynamic=True)
    for shape in ((3, 4), (5, 6)):
        for storage in (torch.zeros(100), torch.zeros(100)[3:]):
            x = storage[: shape[0] * shape[1]].view(shape)
            results = run(x)
            assert results[0] is x
            expected = (x, x.view(-1), x[:, 1:], x.t())
            for made, wanted in zip(results, expected, strict=True):
                assert made.data_ptr() == wanted.data_ptr()
                assert (made.shape, made.stride()) == (wanted.shape, wanted.stride())
            assert torch.equal(x, torch.full(shape, 2.0))
    assert was_compiled(recording)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clone(),
        lambda x: x * 1,
        lambda x: (x.reshape(-1) + 0).view(x.shape),
        lambda x: torch.cat([x]),
        lambda x: x.to(torch.float64).to(torch.float32),
    ],
)
def test_results_are_no_memory_of_arguments_where_eager_ones_are_not(
    function: Callable[[Tensor], Tensor], recording: Recording
) -> None:
    x = torch.randn(3, 4)
    kept = x.clone()
    compiled(function, recording)(x).add_(1)
    assert torch.equal(x, kept)
    assert was_compiled(recording)


def test_equal_results_have_memory_of_their_own(recording: Recording) -> None:
    run = compiled(lambda x: (x + 1, x + 1, (x + 1).clone()), recording)
    first, second, third = run(torch.zeros(3))
    first.add_(1)
    second.mul_(5)
    assert torch.equal(first, torch.full((3,), 2.0))
    assert torch.equal(second, torch.full((3,), 5.0))
    assert torch.equal(third, torch.ones(3))


def test_results_have_the_strides_of_eager_ones(recording: Recording) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x.permute(0, 2, 1) * 2
        return y, y.contiguous(), y.transpose(0, 1), torch.cat([x.new_empty(0), y.flatten()]).view(y.shape), y[:, ::2]

    run = compiled(function, recording, dynamic=True)
    for shape in ((2, 3, 4), (5, 2, 6)):
        x = torch.randn(shape)
        for made, expected in zip(run(x), function(x), strict=True):
            assert relative(made, expected) < 1e-6
            assert made.stride() == expected.stride()
    assert was_compiled(recording)


def test_numbers_and_absent_values_are_results(recording: Recording) -> None:
    class Pair(torch.nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"value": x + 1, "nothing": None, "word": "a", "number": 3, "size": x.shape[0]}

    x = torch.randn(4, 2)
    result = compiled(Pair(), recording, dynamic=True)(x)
    assert torch.equal(result.pop("value"), x + 1)
    assert result == {"nothing": None, "word": "a", "number": 3, "size": 4}
