"""merge-tokens at its limits: what may not change when tokens merge, and what the sizes add up to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops that texts name
from irx.analysis.calibration import exposing
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.passes.tokens.merge_tokens import MergeTokens
from irx.pipeline.base import Report
from tests.cases.running import context, find_passes

LAYER = """
  %q{i} = irx.linear(%x{i}, $q{i})
  %k{i} = irx.linear(%x{i}, $k{i})
  %v{i} = irx.linear(%x{i}, $v{i})
  %qr{i} = irx.reshape(%q{i}) {{shape=[B, S, 2, 4]}}
  %kr{i} = irx.reshape(%k{i}) {{shape=[B, S, 2, 4]}}
  %vr{i} = irx.reshape(%v{i}) {{shape=[B, S, 2, 4]}}
  %qh{i} = irx.permute(%qr{i}) {{order=[0, 2, 1, 3]}}
  %kh{i} = irx.permute(%kr{i}) {{order=[0, 2, 1, 3]}}
  %vh{i} = irx.permute(%vr{i}) {{order=[0, 2, 1, 3]}}
  %a{i} = irx.attention(%qh{i}, %kh{i}, %vh{i}, %seen) {{scale=0.5}}
  %ap{i} = irx.permute(%a{i}) {{order=[0, 2, 1, 3]}}
  %ar{i} = irx.reshape(%ap{i}) {{shape=[B, S, 8]}}
  %o{i} = irx.linear(%ar{i}, $o{i})
  %s{i} = irx.add(%x{i}, %o{i})
  %h{i} = irx.layer_norm(%s{i}, $g) {{eps=1e-05}}
  %u{i} = irx.linear(%h{i}, $u{i})
  %t{i} = irx.gelu(%u{i})
  %d{i} = irx.linear(%t{i}, $d{i})
  %r{i} = irx.add(%h{i}, %d{i})
  %x{next} = irx.layer_norm(%r{i}, $g) {{eps=1e-05}}
"""
SHAPES = {"q": "8, 8", "k": "8, 8", "v": "8, 8", "o": "8, 8", "u": "16, 8", "d": "8, 16"}


def encoder(layers: int = 3, low: int = 1) -> Program:
    """A post-norm encoder without positions, whose input `mask` says what is no padding."""
    weights = [f"weight ${name}{i} : f32[{shape}]" for i in range(layers) for name, shape in SHAPES.items()]
    text = "\n".join(
        [
            f"size B in [1, 16]\nsize S in [{low}, 64]",
            *weights,
            "weight $g : f32[8]",
            "graph @forward(%x0: f32[B, S, 8], %mask: bool[B, S]) -> (y: f32[B, S, 8]) {",
            "  %seen = irx.reshape(%mask) {shape=[B, 1, 1, S]}",
            *(LAYER.format(i=i, next=i + 1) for i in range(layers)),
            f"  return %x{layers}\n}}",
        ]
    )
    program = parse(text)
    bind_random_weights(program.weights)
    return program


def merge(program: Program, **options: Any) -> Report:
    report = MergeTokens(**options).run(program, context(program))
    verify(program)
    return report


def inputs(tokens: int = 12, seed: int = 0) -> dict[str, Any]:
    x = np.random.default_rng(seed).standard_normal((2, tokens, 8))
    return {"x0": x, "mask": np.ones((2, tokens), bool)}


def run(program: Program, given: dict[str, Any]) -> Any:
    sizes = {"B": len(given["x0"]), "S": given["x0"].shape[1]}
    return evaluate(program.graphs["forward"], given, sizes, program.weights)[0]


def values(program: Program, op: str, index: int, given: dict[str, Any]) -> list[Any]:
    """A result of every node of that op."""
    wanted = [node.outputs[index] for node in program.graphs["forward"].nodes if node.op.name == op]
    sizes = {"B": len(given["x0"]), "S": given["x0"].shape[1]}
    part = exposing(program, wanted)
    return list(evaluate(part.graphs["forward"], given, sizes, part.weights))


def test_merging_none_is_the_identity() -> None:
    program = encoder()
    count = len(program.graphs["forward"])
    report = merge(program, per_layer=0)
    assert not report.sites and "merges nothing" in report.note
    assert len(program.graphs["forward"]) == count


def test_sequences_too_short_to_merge_stay_exactly_as_they_are() -> None:
    program, given = encoder(), inputs(tokens=6)
    before = run(program, given)
    assert len(merge(program, per_layer=2).sites) == 3
    np.testing.assert_allclose(run(program, given), before, rtol=1e-9)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_every_layer_has_fewer_tokens_and_sizes_add_up_to_all(first: int) -> None:
    program, given = encoder(), inputs()
    merge(program, per_layer=2, alpha=0.5, first=first)
    sizes = values(program, "merge_tokens", 1, given)
    assert [s.shape for s in sizes] == [(2, 10), (2, 8), (2, 7 if first == 2 else 6)]
    for layer in sizes:
        np.testing.assert_allclose(layer.sum(1), 12)
    assert run(program, given).shape == (2, 12, 8)


def test_a_length_that_is_always_enough_has_no_bounds() -> None:
    program = encoder(low=20)
    merge(program, per_layer=2)
    merged = [node for node in program.graphs["forward"].nodes if node.op.name == "merge_tokens"]
    assert [str(node.outputs[0].shape[1]) for node in merged] == ["S - 2", "S - 4", "S - 6"]


def test_identical_tokens_merge_without_changing_anyones_output() -> None:
    program, given = encoder(), inputs()
    given["x0"] = given["x0"][:, [0, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2]]  # every token but the first has its like
    before = run(program, given)
    merge(program, per_layer=1, alpha=0.0)
    np.testing.assert_allclose(run(program, given), before, rtol=1e-8)


def test_the_pair_that_is_alike_is_the_one_that_merges() -> None:
    program, given = encoder(layers=1), inputs()
    given["x0"][:, 7] = given["x0"][:, 4]
    before = run(program, given)
    merge(program, per_layer=1, alpha=0.0)
    assert [gone.tolist() for gone in values(program, "match_tokens", 0, given)] == [[[7], [7]]]
    assert [into.tolist() for into in values(program, "match_tokens", 1, given)] == [[[4], [4]]]
    np.testing.assert_allclose(run(program, given), before, rtol=1e-8)


def test_padding_is_merged_first_and_that_changes_no_token() -> None:
    program, given = encoder(), inputs(tokens=16)
    given["mask"][:, 9:] = False
    before = run(program, given)
    merge(program, per_layer=1)
    np.testing.assert_allclose(run(program, given)[:, :9], before[:, :9], rtol=1e-8)
    sizes = values(program, "merge_tokens", 1, given)
    assert [layer.sum(1).tolist() for layer in sizes] == [[9, 9]] * 3


def test_unequal_tokens_do_change_outputs() -> None:
    program, given = encoder(), inputs()
    before = run(program, given)
    merge(program, per_layer=3)
    assert np.abs(run(program, given) - before).max() > 1e-3


def test_programs_with_a_cache_are_left_alone() -> None:
    program = encoder(layers=1)
    program.graphs["decode"] = program.graphs["forward"].clone("decode")
    assert "encoders" in merge(program).note


def test_options_are_checked_and_spelled() -> None:
    with pytest.raises(ValueError, match="negative"):
        MergeTokens(per_layer=-1)
    assert find_passes("merge-tokens{per_layer=4, alpha=0.5}") == (MergeTokens(per_layer=4, alpha=0.5),)
