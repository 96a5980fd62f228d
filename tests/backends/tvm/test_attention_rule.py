"""Kernels of attention against the oracle: over caches call after call, over whole sequences, and lone nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Refusal
from irx.backends.tvm.rules.attention import rule
from irx.ir.codes import CODES
from irx.ir.graph import Graph
from irx.ir.types import numpy_dtype
from irx.ir.weights import Weights
from irx.target import find_device
from tests.backends.tvm.attention_bodies import as_numbers, decoder, error, graph_of, random_arrays, run_chunks
from tests.backends.tvm.lowered_run import choices, run_lowered

F32, BF16, I8 = 2e-6, 0.012, 0.02
CODED = 5e-4  # the oracle has the same codes, but exact queries, where kernels have two bytes each
TOKENS = [("f32", f"f32, code={code}", 2e-5) for code in CODES]

# Two rows, the second shorter by padding; then a step, a long chunk that grows the cache, and steps again.
CHUNKS = [
    [[0, 1, 2], [0, 1, -1]],
    [[3], [2]],
    [[*range(4, 74)], [*range(3, 73)]],
    [[74], [73]],
    [[75, 76, -1], [-1, -1, -1]],
]


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ({"rotated": 8}, F32),
        ({"rotated": 4, "rope": 'style="interleaved", scale=1.3', "norm": True, "how": "scale=0.25, window=5"}, F32),
        ({"how": "scale=0.25, softcap=2.0, window=1000", "extra": "table sinks"}, F32),
        ({"heads": 7, "groups": 1, "dim": 21, "v_dim": 12, "extra": "sinks"}, F32),
        ({"heads": 5, "groups": 5, "dim": 80, "rotated": 10}, F32),
        ({"dtype": "bf16", "rotated": 8, "norm": True}, BF16),
        ({"dtype": "bf16", "heads": 3, "groups": 1, "dim": 17, "v_dim": 40, "how": "scale=0.25, window=9"}, BF16),
        ({"storage": "i8", "dim": 18, "v_dim": 20}, I8),
        ({"storage": "f32, code=token8", "rotated": 8}, CODED),
        ({"storage": "f32, code=token4", "dim": 64, "rotated": 32, "norm": True}, CODED),
        ({"storage": "f32, code=token4", "heads": 6, "dim": 18, "v_dim": 40, "extra": "table sinks"}, CODED),
        ({"dtype": "bf16", "storage": "bf16, code=token4", "dim": 80, "how": "scale=0.25, window=9"}, BF16),
    ],
    ids=[
        *("half", "interleaved", "capped", "odd", "many_heads", "bf16", "bf16_odd", "i8"),
        *("token8", "token4", "token4_odd", "token4_bf16"),
    ],
)
def test_a_cache_call_after_call(how: dict[str, Any], tolerance: float) -> None:
    assert error(run_chunks(decoder(**how), CHUNKS)) < tolerance


@pytest.mark.parametrize(
    ("dtype", "storage", "tolerance"), [("f32", "f32", F32), ("bf16", "bf16", BF16), ("f32", "i8", I8), *TOKENS]
)
def test_without_wide_registers(dtype: str, storage: str, tolerance: float) -> None:
    body = decoder(dtype=dtype, storage=storage, dim=24, rotated=12)
    assert error(run_chunks(body, CHUNKS, device=find_device("cpu-avx2"))) < tolerance


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_keys_of_one_step(threads: int) -> None:
    """Rows of very different lengths: every thread gets as many tiles, whatever rows they are of."""
    body = decoder(rotated=8)
    chunks = [[[*range(333)], [-1] * 332 + [0], [-1] * 200 + [*range(133)]], [[333], [1], [133]]]
    assert error(run_chunks(body, chunks, threads=threads)) < F32


@pytest.mark.parametrize("first", [2, 70])
@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", F32), ("bf16", BF16)])
def test_first_tokens_are_seen_besides_a_window(first: int, dtype: str, tolerance: float) -> None:
    """In the tile where the window begins, in tiles of their own, and where the window has them already."""
    body = decoder(dtype=dtype, how=f"scale=0.25, window=20, first={first}")
    chunks = [[[*range(333)], [-1] * 332 + [0], [-1] * 200 + [*range(133)]], [[333], [1], [133]]]
    assert error(run_chunks(body, [*chunks, [[334, 335, 336], [2, 3, 4], [134, -1, -1]]], threads=2)) < tolerance


def test_a_decode_graph_has_one_case() -> None:
    body = decoder(length="1", rotated=8)
    lowered = rule(body, choices())
    assert lowered is not None
    assert len(lowered.cases) == 1
    assert error(run_chunks(body, [[[i], [i]] for i in range(3)])) < F32


def test_late_positions_keep_their_digits() -> None:
    """Angles of more than 100000 radians."""
    body = graph_of(
        "%x: f32[B, 2, S, 16], %pos: i64[1, S], %inv: f32[8]",
        "y: f32[B, 2, S, 16]",
        ["%y = irx.rope(%x, %pos, %inv)"],
        "%y",
    )
    pos = np.array([[0, 1, 77, 4096, 99_991, 131_071]])
    assert _error(body, {"B": 2, "S": 6}, {"pos": pos}) < 1e-6


PLAIN = "%q: {t}[B, 4, S, {d}], %k: {t}[B, {g}, T, {d}], %v: {t}[B, {g}, T, {e}]"


@pytest.mark.parametrize(
    ("form", "extra", "how", "lengths"),
    [
        (("f32", 32, 32, 4), "%m: bool[B, 1, 1, T]", "scale=0.2", [(5, 5), (130, 130)]),
        (("f32", 96, 80, 2), "%m: bool[B, 1, S, T], %b: f32[1, 4, S, T]", "scale=0.1", [(1, 67), (70, 33)]),
        (("f32", 24, 40, 1), "", "scale=0.3, causal=true, window=7", [(9, 9), (100, 70)]),
        (("f32", 16, 16, 2), "%s: f32[4]", "scale=0.3, softcap=3.0, window=4", [(9, 13), (65, 66)]),
        (("bf16", 64, 64, 4), "%m: bool[B, 1, 1, T]", "scale=0.125", [(3, 67), (129, 129)]),
        (("bf16", 33, 128, 2), "%b: bf16[B, 1, S, T]", "scale=0.2, causal=true", [(5, 5), (40, 41)]),
    ],
    ids=["padding", "mask_and_bias", "causal_window", "capped_window", "bf16", "bf16_bias"],
)
def test_whole_sequences(form: tuple[str, int, int, int], extra: str, how: str, lengths: list[tuple[int, int]]) -> None:
    dtype, dim, v_dim, groups = form
    inputs = PLAIN.format(t=dtype, d=dim, e=v_dim, g=groups) + (f", {extra}" if extra else "")
    operands = ", ".join(f"%{name}" if f"%{name}:" in extra else "none" for name in "mbs")
    line = f"%a = irx.attention(%q, %k, %v, {operands}) {{{how}}}"
    body = graph_of(inputs, f"y: {dtype}[B, 4, S, {v_dim}]", [line], "%a")
    for rows, keys in lengths:
        sizes = {"B": 2, "S": rows, "T": keys}
        assert _error(body, sizes, {}) < (F32 if dtype == "f32" else BF16), sizes


def test_rows_that_see_nothing_give_zero() -> None:
    body = graph_of(
        PLAIN.format(t="f32", d=16, e=16, g=4) + ", %m: bool[B, 1, S, T]",
        "y: f32[B, 4, S, 16]",
        ["%a = irx.attention(%q, %k, %v, %m) {scale=0.2}"],
        "%a",
    )
    for rows in (4, 30):
        mask = np.random.default_rng(0).random((2, 1, rows, 50)) < 0.5
        mask[0, 0, 2] = False
        found = _run(body, {"B": 2, "S": rows, "T": 50}, {"m": mask})[0]
        assert not found[0, :, 2].any()
        assert found[1, :, 2].all()


def test_heads_of_projections_for_an_encoder() -> None:
    """Three projections, rope, the result as rows: nothing is copied to cut the heads out."""
    lines = []
    for name in "qkv":
        lines += [
            f"%{name}1 = irx.reshape(%{name}) {{shape=[B, S, 3, 32]}}",
            f"%{name}2 = irx.permute(%{name}1) {{order=[0, 2, 1, 3]}}",
        ]
    lines += [f"%{name}3 = irx.rope(%{name}2, %pos, %inv)" for name in "qk"]
    lines += [
        "%a = irx.attention(%q3, %k3, %v2, %mask) {scale=0.2}",
        "%p = irx.permute(%a) {order=[0, 2, 1, 3]}",
        "%o = irx.reshape(%p) {shape=[B, S, 96]}",
    ]
    tensors = ", ".join(f"%{name}: f32[B, S, 96]" for name in "qkv")
    inputs = f"{tensors}, %pos: i64[1, S], %inv: f32[16], %mask: bool[B, 1, 1, S]"
    body = graph_of(inputs, "o: f32[B, S, 96]", lines, "%o")
    for rows in (7, 60):
        assert _error(body, {"B": 3, "S": rows}, {"pos": np.arange(rows)[None]}) < F32


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("%e = irx.add(%q, 1.0)", "add beside attention"),
        ("%e = irx.permute(%u) {order=[0, 1, 3, 2]}", "beside each other"),
    ],
)
def test_what_is_refused(line: str, reason: str) -> None:
    shape = "f32[B, 4, S, 16]"
    inputs = f"%q: {shape}, %k: {shape}, %v: {shape}, %u: f32[B, 4, 16, S]"
    body = graph_of(inputs, f"y: {shape}", [line, "%a = irx.attention(%e, %k, %v) {scale=1.0}"], "%a")
    with pytest.raises(Refusal, match=reason):
        rule(body, choices())


def test_a_dense_cache_is_refused() -> None:
    kv = "kv<heads=4, dim=16, dense, f32>"
    body = graph_of(
        f"%q: f32[B, 4, S, 16], %pos: i64[B, S], %kv: {kv}",
        f"y: f32[B, 4, S, 16], kv: {kv}",
        ["%n = irx.kv_append(%kv, %q, %q, %pos)", "%a = irx.kv_attention(%q, %n, %pos) {scale=1.0}"],
        "%a, %n",
    )
    with pytest.raises(Refusal, match="lay-out-cache"):
        rule(body, choices())


def test_bodies_of_other_ops_are_left_alone() -> None:
    assert rule(graph_of("%x: f32[B, S]", "y: f32[B, S]", ["%y = irx.exp(%x)"], "%y"), choices()) is None


def _run(body: Graph, sizes: dict[str, int], given: dict[str, Any]) -> tuple[Any, Any]:
    """(result, expected) of a body without states."""
    lowered = rule(body, choices())
    assert lowered is not None
    arrays = random_arrays(body, sizes) | given
    for value in body.inputs:
        if value.name not in arrays:  # a mask
            shape = tuple(
                {"B": sizes["B"], "S": sizes["S"], "T": sizes.get("T", 0)}.get(str(n), n) for n in value.shape
            )
            arrays[value.name] = (np.random.default_rng(5).random(shape) < 0.7).astype(numpy_dtype(value.dtype))
    (found,) = run_lowered(lowered, body, arrays, sizes).values()
    (expected,) = evaluate(body, arrays, sizes, Weights())
    return as_numbers(found), expected


def _error(body: Graph, sizes: dict[str, int], given: dict[str, Any]) -> float:
    return error([_run(body, sizes, given)])
