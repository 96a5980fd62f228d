"""Kernels that choose tokens, look at attention for it and round tokens, interpreted, on the cases of the op tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Refusal
from irx.backends.triton.compiling import compile_kernels
from irx.backends.triton.resources import read_usage
from irx.backends.triton.rules.tokens import TEMPLATES, rule
from irx.backends.triton.templates import match_tokens, merge_tokens
from irx.ir.graph import Graph
from irx.ir.types import TensorType
from irx.ir.weights import Weights
from irx.target import find_device
from tests.backends.token_cases import body, cases_of, check
from tests.backends.triton.lowered_run import choices, run_lowered
from tests.ops.cases import Case
from tests.passes.small_models import WORDS, encoder

CASES = cases_of(TEMPLATES)


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=[f"{case}-{dtype}" for case, dtype in CASES])
def test_a_kernel_computes_what_the_reference_says(case: Case, dtype: str) -> None:
    graph, given = body(case, dtype)
    lowered = rule(graph, choices())
    assert lowered is not None
    check(graph, given, run_lowered(lowered, graph, given), dtype)


def test_every_op_has_a_case() -> None:
    assert {case.op for case, _ in CASES} == TEMPLATES.keys()


@pytest.mark.parametrize("top_p", [None, 0.8])
def test_tokens_are_drawn_as_often_as_they_are_likely(top_p: float | None) -> None:
    """Rows of equal logits, and numbers that run through [0, 1): every one falls where the reference puts it."""
    count, random = 23, np.random.default_rng(3)
    logits = np.repeat(random.standard_normal((1, 37)).astype(np.float32), count, 0)
    uniform = ((np.arange(count) + 0.5) / count).astype(np.float32)
    attrs = {"temperature": 0.8, "top_k": 20, "top_p": top_p}
    (tokens,) = run("sample", [logits, uniform], {name: value for name, value in attrs.items() if value is not None})
    assert len(set(tokens.tolist())) > 5


def test_rows_that_no_program_sorts_are_left_to_torch() -> None:
    graph = Graph("draw")
    given = [graph.add_input("x", TensorType((1, 1025), "f32")), graph.add_input("u", TensorType((1,), "f32"))]
    graph.set_outputs({"token": graph.add("sample", given, {"temperature": 1.0}).output})
    with pytest.raises(Refusal, match="a program sorts 1024"):
        rule(graph, choices())


@pytest.mark.parametrize("device", ["a100-80gb", "h200"])
def test_a_draw_from_the_likeliest_compiles_without_spills(device: str) -> None:
    graph, found = Graph("draw"), find_device(device)
    given = [graph.add_input("x", TensorType((4, 128), "bf16")), graph.add_input("u", TensorType((4,), "f32"))]
    graph.set_outputs({"token": graph.add("sample", given, {"temperature": 0.7, "top_p": 0.9}).output})
    lowered = rule(graph, choices(device))
    assert lowered is not None
    for symbol, binary in compile_kernels(lowered.kernels, found).items():  # type: ignore[arg-type]
        usage = read_usage(binary.data, symbol, found, shared=binary.shared, warps=binary.warps)
        assert usage.spills == 0 and usage.refusal(found) is None, f"{symbol}: {usage.describe(found)}"


def test_tokens_of_several_tiles_are_matched_and_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences longer than the tiles of every kernel, with padding at the end of one row."""
    monkeypatch.setattr(match_tokens, "TILE", 32)
    monkeypatch.setattr(merge_tokens, "PAIRS", 8)
    monkeypatch.setattr(merge_tokens, "CHANNELS", 8)
    batch, length, count = 2, 75, 17
    random = np.random.default_rng(5)
    keys = random.standard_normal((batch, 2, length, 5)).astype(np.float32)
    sizes = random.integers(1, 4, (batch, length)).astype(np.float32)
    sizes[1, 70:] = 0
    received = random.random((batch, length)).astype(np.float32)
    matched = run("match_tokens", [keys, sizes, received], {"count": count, "alpha": 0.3, "first": 2})
    x = random.standard_normal((1, length, 13)).astype(np.float32)
    run("merge_tokens", [x, sizes[1:], *(pairs[1:] for pairs in matched[:2])], {})


def run(op: str, arrays: list[np.ndarray], attrs: dict[str, Any]) -> list[np.ndarray]:
    """The results of an op by kernels; they must be those of the oracle."""
    graph = Graph("tokens")
    types = [TensorType(array.shape, "f32" if array.dtype == np.float32 else "i64") for array in arrays]
    node = graph.add(op, [graph.add_input(f"x{i}", kind) for i, kind in enumerate(types)], attrs)
    graph.set_outputs({f"y{i}": value for i, value in enumerate(node.outputs)})
    given = {f"x{i}": array for i, array in enumerate(arrays)}
    lowered = rule(graph, choices())
    assert lowered is not None
    found = list(run_lowered(lowered, graph, given).values())
    for made, wanted in zip(found, evaluate(graph, given, {}, Weights()), strict=True):
        np.testing.assert_allclose(np.asarray(made, np.float64), wanted, rtol=1e-5, atol=1e-5)
    return found


def test_merging_in_an_encoder_leaves_nothing_to_torch() -> None:
    text = "merge-tokens{per_layer=2, alpha=0.5}"
    fast = irx.compile(encoder(1), target="triton:cpu", pipeline=f"default | {text}")
    assert fast.ledger().summary.fallbacks == {}
    exact = irx.compile(encoder(1), target="torch:cpu", pipeline=text)
    ids, mask = torch.randint(0, WORDS, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 7:] = False
    torch.testing.assert_close(fast(ids, mask), exact(ids, mask), rtol=0, atol=5e-5)
