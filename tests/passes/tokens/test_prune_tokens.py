"""prune-tokens on a tiny model: what stays, what the later caches hold, and where it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops that texts name
from irx.analysis.calibration import exposing
from irx.analysis.random_weights import bind_random_weights
from irx.analysis.reference import evaluate
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ir.verify import verify
from irx.ops.cache import KVArrays
from irx.passes.normalize.insert_cache import InsertCache
from irx.passes.normalize.slice_rows import SliceRows
from irx.passes.tokens.prune_tokens import PruneTokens
from irx.pipeline.base import Report
from tests.cases.running import context, find_passes

LAYER = """
  %n{i} = irx.rms_norm(%x{i}) {{eps=1e-05}}
  %q{i} = irx.linear(%n{i}, $q{i})
  %k{i} = irx.linear(%n{i}, $k{i})
  %v{i} = irx.linear(%n{i}, $v{i})
  %qr{i} = irx.reshape(%q{i}) {{shape=[B, S, 4, 4]}}
  %kr{i} = irx.reshape(%k{i}) {{shape=[B, S, 2, 4]}}
  %vr{i} = irx.reshape(%v{i}) {{shape=[B, S, 2, 4]}}
  %qp{i} = irx.permute(%qr{i}) {{order=[0, 2, 1, 3]}}
  %kp{i} = irx.permute(%kr{i}) {{order=[0, 2, 1, 3]}}
  %vh{i} = irx.permute(%vr{i}) {{order=[0, 2, 1, 3]}}
  %qh{i} = irx.rope(%qp{i}, %places, $freq)
  %kh{i} = irx.rope(%kp{i}, %places, $freq)
  %a{i} = irx.attention(%qh{i}, %kh{i}, %vh{i}) {{scale=0.5, causal=true}}
  %ap{i} = irx.permute(%a{i}) {{order=[0, 2, 1, 3]}}
  %ar{i} = irx.reshape(%ap{i}) {{shape=[B, S, 16]}}
  %o{i} = irx.linear(%ar{i}, $o{i})
  %h{i} = irx.add(%x{i}, %o{i})
  %m{i} = irx.rms_norm(%h{i}) {{eps=1e-05}}
  %g{i} = irx.linear(%m{i}, $u{i})
  %t{i} = irx.gelu(%g{i})
  %d{i} = irx.linear(%t{i}, $d{i})
  %x{next} = irx.add(%h{i}, %d{i})
"""
SHAPES = {"q": "16, 16", "k": "8, 16", "v": "8, 16", "o": "16, 16", "u": "32, 16", "d": "16, 32"}
LENGTH = 15


def model(layers: int = 4, *, sliced: bool = True) -> Program:
    """A decoder with rotary positions; `prefill` takes the rows it gives logits of where `sliced`."""
    text = "\n".join(
        [
            "size B in [1, 16]\nsize S in [1, 64]",
            *(f"weight ${name}{i} : f32[{shape}]" for i in range(layers) for name, shape in SHAPES.items()),
            "weight $embed : f32[32, 16]\nweight $freq : f32[2]",
            "graph @forward(%ids: i64[B, S]) -> (logits: f32[B, S, 32]) {",
            "  %count = irx.arange() {stop=S}",
            "  %places = irx.reshape(%count) {shape=[1, S]}",
            "  %x0 = irx.embedding(%ids, $embed)",
            *(LAYER.format(i=i, next=i + 1) for i in range(layers)),
            f"  %n = irx.rms_norm(%x{layers}) {{eps=1e-05}}",
            "  %logits = irx.linear(%n, $embed)\n  return %logits\n}",
        ]
    )
    program = parse(text)
    bind_random_weights(program.weights)
    for one in (InsertCache(), SliceRows()) if sliced else (InsertCache(),):
        one.run(program, context(program))
    return program


def prune(program: Program, **options: Any) -> Report:
    report = PruneTokens(**options).run(program, context(program))
    verify(program)
    return report


def ids(batch: int = 2, length: int = LENGTH) -> Any:
    return np.random.default_rng(1).integers(0, 32, (batch, length))


def prefill(program: Program, tokens: Any, pos: Any = None, rows: Any = None) -> dict[str, Any]:
    graph, (batch, length) = program.graphs["prefill"], tokens.shape
    pos = np.broadcast_to(np.arange(length), (batch, length)) if pos is None else pos
    rows = np.full((batch, 1), length - 1) if rows is None else rows
    given = {"ids": tokens, "pos": pos, "rows": rows}
    given |= {v.name: KVArrays.empty(v.type, batch) for v in graph.inputs if isinstance(v.type, KVType)}
    sizes = {"B": batch, "S": length, "R": rows.shape[1]}
    results = evaluate(graph, given, sizes, program.weights)
    return dict(zip(graph.output_names, results, strict=True))


def held(state: KVArrays) -> list[list[int]]:
    """The positions that the first head of every row holds."""
    return [sorted(p for p in row[0] if p >= 0) for row in np.asarray(state.positions).tolist()]


def test_keeping_all_is_the_identity() -> None:
    program = model()
    count = len(program.graphs["prefill"])
    assert "keep=1" in prune(program, keep=1.0).note
    assert len(program.graphs["prefill"]) == count


@pytest.mark.parametrize("scorer", ["window", "last-query"])
def test_later_caches_hold_the_tokens_that_stay_and_earlier_ones_all(scorer: str) -> None:
    program = model()
    assert prune(program, keep=0.4, window=3, scorer=scorer).sites
    found = prefill(program, ids())
    assert [[len(row) for row in held(found[f"kv{i}"])] for i in range(4)] == [[15, 15], [15, 15], [6, 6], [6, 6]]
    assert held(found["kv2"]) == held(found["kv3"])
    assert all(row[-1] == LENGTH - 1 for row in held(found["kv2"])), "the last token always stays"
    assert program.meta["partial"] == ["kv2", "kv3"]
    assert found["logits"].shape == (2, 1, 32)


def test_the_window_stays_whole() -> None:
    program = model()
    prune(program, keep=0.3, window=4)
    assert all(set(range(11, 15)) <= set(row) for row in held(prefill(program, ids())["kv3"]))


def test_survivors_keep_keys_with_their_angles_and_values() -> None:
    """The first layer behind the choice sees the same hidden states, so what it caches of them is the same."""
    exact, program = model(), model()
    prune(program, keep=0.4, window=3)
    before, after = prefill(exact, ids())["kv2"], prefill(program, ids())["kv2"]
    for b, row in enumerate(held(after)):
        places = np.asarray(after.positions)[b, 0].tolist()
        for position in row:
            slot = places.index(position)
            np.testing.assert_allclose(after.k[b, :, slot], before.k[b, :, position], rtol=1e-9)
            np.testing.assert_allclose(after.v[b, :, slot], before.v[b, :, position], rtol=1e-9)


def test_scores_are_the_attention_of_the_window() -> None:
    """pool=1: those stay that the last rows of the explicit softmax look at most, summed over heads."""
    program = model()
    graph = program.graphs["prefill"]
    attend = [node for node in graph.nodes if node.op.name == "kv_attention"][1]
    append = attend.inputs[1].producer if attend.inputs[1] is not None else None
    assert append is not None
    part = exposing(program, [attend.inputs[0], append.inputs[1]], "prefill")  # type: ignore[list-item]
    pos = np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
    states = {v.name: KVArrays.empty(v.type, 2) for v in graph.inputs if isinstance(v.type, KVType)}
    given = {"ids": ids(), "pos": pos, "rows": pos[:, -1:], **states}
    q, k = evaluate(part.graphs["prefill"], given, {"B": 2, "S": LENGTH, "R": 1}, part.weights)
    logits = np.einsum("bhsd,bhtd->bhst", q[:, :, -3:], np.repeat(k, 2, axis=1)) * 0.5
    logits = np.where(np.arange(LENGTH) <= np.arange(LENGTH - 3, LENGTH)[:, None], logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    scores = (p / p.sum(-1, keepdims=True)).sum((1, 2))[:, : LENGTH - 3]
    expected = [sorted([*np.argsort(-row)[:3].tolist(), 12, 13, 14]) for row in scores]
    prune(program, keep=0.4, window=3, pool=1)
    assert held(prefill(program, ids())["kv2"]) == expected


def test_rows_that_are_wanted_stay_so_wanting_all_prunes_nothing() -> None:
    exact, program = model(), model()
    prune(program, keep=0.2, window=3)
    every = np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
    whole = prefill(program, ids(), rows=every)
    np.testing.assert_allclose(whole["logits"], prefill(exact, ids(), rows=every)["logits"], rtol=1e-9)
    assert [len(row) for row in held(whole["kv3"])] == [LENGTH, LENGTH]
    some = prefill(program, ids(), rows=np.array([[2, 14], [4, 14]]))
    assert [2 in held(some["kv3"])[0], 4 in held(some["kv3"])[1]] == [True, True]


def test_short_prompts_stay_whole() -> None:
    exact, program = model(), model()
    prune(program, keep=0.2, window=8)
    tokens = ids(length=7)
    np.testing.assert_allclose(prefill(program, tokens)["logits"], prefill(exact, tokens)["logits"], rtol=1e-9)


@pytest.mark.parametrize("left", [False, True])
def test_padding_never_stays_instead_of_a_token(left: bool) -> None:
    """A padded row gives what it gives alone, as its scores are its own."""
    program = model()
    prune(program, keep=0.4, window=3)
    tokens = ids()
    pos = np.array([[*[-1] * 5, *range(10)] if left else [*range(10), *[-1] * 5], [*range(15)]])
    rows = np.array([[14 if left else 9], [14]])
    found = prefill(program, tokens, pos, rows)
    real = held(found["kv3"])[0]
    assert len(real) == 6, "six of ten real tokens stay, as six of fifteen do"
    assert set(real) >= {7, 8, 9}
    alone = tokens[:1, 5:] if left else tokens[:1, :10]
    wider = model()
    prune(wider, keep=0.6, window=3)
    np.testing.assert_allclose(found["logits"][0], prefill(wider, alone)["logits"][0], rtol=1e-6)


def test_decode_and_forward_are_unchanged_and_the_text_reads_back() -> None:
    exact, program = model(), model()
    prune(program)
    for name in ("forward", "decode"):
        assert len(program.graphs[name]) == len(exact.graphs[name])
    assert print_program(parse(print_program(program))) == print_program(program)


def test_refused_where_all_positions_are_outputs() -> None:
    report = prune(model(sliced=False))
    assert "all positions" in report.near_misses[0].reason


def test_refused_behind_the_last_layer() -> None:
    report = prune(model(), layer=3)
    assert "no layer behind layer 3" in report.near_misses[0].reason


def test_options_are_checked_and_spelled() -> None:
    for wrong in ({"keep": 0.0}, {"keep": 1.5}, {"window": 0}, {"pool": 4}):
        with pytest.raises(ValueError, match="but must be"):
            PruneTokens(**wrong)  # type: ignore[arg-type]
    (read,) = find_passes("prune-tokens{scorer=last-query, layer=2, keep=0.5}")
    assert read == PruneTokens(scorer="last-query", layer=2, keep=0.5)
