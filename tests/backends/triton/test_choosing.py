"""The largest columns of a product's rows on GPU kernels, interpreted: exactly those of the rows as stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from irx.backends.regions.linear_region import parse
from irx.backends.regions.lowered import Call, Data, Lowered, Refusal, Temporary
from irx.backends.triton import interpret
from irx.backends.triton.compiling import compile_kernels
from irx.backends.triton.kernel import Kernel
from irx.backends.triton.resources import read_usage
from irx.backends.triton.rules.linear import rule
from irx.backends.triton.templates import choosing
from irx.backends.triton.templates.choosing import LOGITS, choose_calls
from irx.ir.dims import evaluate
from irx.ir.graph import Graph
from irx.ir.types import numpy_dtype
from irx.ops.numerics import top_indices
from irx.target import find_device
from tests.backends.triton.linear_bodies import array, chosen
from tests.backends.triton.lowered_run import choices, run_lowered
from tests.backends.tvm.test_choosing import head

ROWS = 2


def check(pair: tuple[Graph, Graph], arrays: dict[str, Any], rows: int) -> None:
    """Both on the same arrays: values and columns must be those of the sorted logits, bit for bit."""
    plain, best = (run_lowered(made(graph), graph, arrays, {"B": rows}) for graph in pair)
    columns = top_indices(plain["l"], best["i"].shape[1])
    assert best["i"].tolist() == columns.tolist()
    np.testing.assert_array_equal(best["v"], np.take_along_axis(plain["l"], columns, 1))


def made(graph: Graph) -> Lowered:
    lowered = rule(graph, chosen(columns=16))
    assert lowered is not None
    return lowered


@pytest.mark.parametrize(
    ("form", "x", "rows", "top"),
    [
        ("f32", "f32", 3, 7),
        ("bf16", "bf16", 1, 64),
        ("q8_0", "f32", 2, 1),
        ("q4_1", "f32", 4, 33),
        ("f32", "f32", 17, 5),
    ],
)
def test_chosen_are_the_largest_of_the_stored_logits(form: str, x: str, rows: int, top: int) -> None:
    pair = head(form, 67, 64, top, x)
    check(pair, {value.name: array(value, rows) for value in pair[0].inputs}, rows)


def test_zeros_infinities_and_what_is_no_number() -> None:
    pair = head("f32", 96, 8, 17)
    arrays = {value.name: array(value, 2) for value in pair[0].inputs}
    arrays["w"][::3] = 0.0
    arrays["w"][3::6] = -0.0
    arrays["w"][7], arrays["w"][50], arrays["w"][61] = np.inf, np.nan, -np.inf
    arrays["x"][:] = np.abs(arrays["x"])
    arrays["g"][:] = np.abs(arrays["g"])
    check(pair, arrays, 2)


@pytest.mark.parametrize(("columns", "top", "kernels"), [(1, 1, 1), (301, 3, 2), (500, 32, 2), (700, 30, 3)])
def test_lists_of_many_columns_are_merged(
    columns: int, top: int, kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with most logits equal; small blocks stand for larger ones, which differ in their number only."""
    monkeypatch.setattr(choosing, "BLOCKS", (64, 128))
    monkeypatch.setattr(choosing, "ONE_BLOCK", 64)
    _, graph = head("bf16", columns, 8, top, "bf16")
    region = parse(graph, chooses=True)
    assert region is not None and region.best is not None
    calls = choose_calls(region.best, region.rows, columns)
    assert len(calls) == kernels
    logits = np.random.default_rng(3).integers(-9, 9, (ROWS, columns)).astype(np.float32)
    buffers = {LOGITS: torch.from_numpy(logits).to(torch.bfloat16).view(torch.uint8).flatten()}
    for call in calls:
        assert isinstance(call.kernel, Kernel)
        given = {p.name: ROWS if p.name == "rows" else _buffer(buffers, p.name, call) for p in call.kernel.parameters}
        interpret.run(call.kernel, given)
    wanted = top_indices(logits, top)
    assert buffers["indices"].view(torch.int64).view(ROWS, top).tolist() == wanted.tolist()
    values = buffers["values"].view(torch.bfloat16).view(ROWS, top).float().numpy()
    np.testing.assert_array_equal(values, np.take_along_axis(logits, wanted, 1))


def _buffer(buffers: dict[str, torch.Tensor], name: str, call: Call) -> torch.Tensor:
    """A buffer that the first kernel which names it gets, filled with what no kernel writes."""
    binding = call.bindings[name]
    if isinstance(binding, Temporary):
        size = evaluate(binding.bytes, {"B": ROWS})
    else:
        assert isinstance(binding, Data)
        size = ROWS * int(str(binding.value.shape[-1])) * numpy_dtype(binding.value.dtype).itemsize
    return buffers.setdefault(name, torch.full((size,), 0xFF, dtype=torch.uint8))


def test_more_than_a_list_holds_is_left_to_others() -> None:
    with pytest.raises(Refusal, match="topk of 200 elements"):
        rule(head("f32", 300, 8, 200)[1], choices())


def test_the_kernels_of_a_large_vocabulary_compile_without_spills() -> None:
    found = find_device("a100-80gb")
    region = parse(head("bf16", 49152, 8, 16, "bf16")[1], chooses=True)
    assert region is not None and region.best is not None
    kernels = [call.kernel for call in choose_calls(region.best, region.rows, 49152)]
    for symbol, binary in compile_kernels(kernels, found).items():  # type: ignore[arg-type]
        usage = read_usage(binary.data, symbol, found, shared=binary.shared, warps=binary.warps)
        assert usage.spills == 0 and usage.refusal(found) is None, f"{symbol}: {usage.describe(found)}"
