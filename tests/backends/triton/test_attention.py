"""Kernels of attention in the interpreter against the oracle: over caches call after call, and over whole sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from irx.backends.regions.lowered import Lowered, Refusal
from irx.backends.triton.compiling import compile_kernels
from irx.backends.triton.resources import read_usage
from irx.backends.triton.rules.attention import rule
from irx.ir.graph import Graph
from irx.target import find_device
from tests.backends.triton.attention_runs import run_behind_prefix, run_chunks, run_plain, small_choices
from tests.backends.triton.lowered_run import choices
from tests.backends.tvm.attention_bodies import decoder, error, graph_of

F32, BF16, F16 = 2e-6, 0.012, 2e-3

# Two rows, the second shorter by padding; a step, and two tokens of which one row has none.
CHUNKS = [[[*range(20)], [*range(19), -1]], [[20], [19]], [[21, 22], [-1, -1]]]
ONE = [[[*range(33)]], [[33]]]
ONE_MORE = [[[*range(23, 71)], [*range(20, 68)]]]  # tiles between those of the first tokens and of the window


@pytest.mark.parametrize(
    ("how", "chunks", "tolerance"),
    [
        ({"heads": 4, "groups": 2, "rotated": 8}, CHUNKS, F32),
        (
            {
                "rotated": 4,
                "rope": 'style="interleaved", scale=1.3',
                "norm": True,
                "how": "scale=0.25, window=5",
            },
            ONE,
            F32,
        ),
        ({"how": "scale=0.25, softcap=2.0, window=1000", "extra": "table sinks"}, ONE, F32),
        ({"heads": 7, "groups": 1, "dim": 21, "v_dim": 12, "extra": "sinks"}, ONE, F32),
        ({"heads": 3, "dim": 80, "rotated": 10}, ONE, F32),
        ({"dtype": "bf16", "rotated": 8, "norm": True}, ONE, BF16),
        ({"dtype": "bf16", "heads": 3, "dim": 17, "v_dim": 40, "how": "scale=0.25, window=9"}, ONE, BF16),
        ({"dtype": "f16", "heads": 2, "dim": 64, "rotated": 32}, ONE, F16),
        ({"dtype": "bf16", "storage": "f32", "dim": 16}, ONE, BF16),
        ({"storage": "i8", "dim": 18, "v_dim": 20}, ONE, 0.02),
        ({"storage": "f32, code=token8", "rotated": 8}, ONE, F32),
        ({"storage": "f32, code=token4", "dim": 64, "rotated": 32, "norm": True}, ONE, F32),
        ({"storage": "f32, code=token4", "dim": 18, "v_dim": 41, "extra": "table sinks"}, ONE, F32),
        ({"dtype": "bf16", "storage": "bf16, code=token4", "dim": 80}, ONE, BF16),
        ({"dtype": "f16", "storage": "f16, code=token8", "dim": 32}, ONE, F16),
        ({"layout": "blocked", "dtype": "bf16", "dim": 24}, ONE, BF16),
        ({"layout": "blocked", "storage": "f32, code=token4", "dim": 40}, ONE, F32),
        ({"storage": "f32, page=16", "rotated": 8, "heads": 4, "groups": 2}, CHUNKS, F32),
        ({"storage": "f32, page=7", "rotated": 8, "how": "scale=0.25, window=9"}, CHUNKS, F32),
        ({"dtype": "bf16", "storage": "bf16, code=token4, page=5", "dim": 80, "groups": 2}, CHUNKS, BF16),
        ({"layout": "blocked", "storage": "f32, code=token8, page=64", "dim": 40}, ONE, F32),
        ({"rotated": 8, "how": "scale=0.25, window=5, first=3"}, [*CHUNKS, *ONE_MORE], F32),
    ],
    ids=[
        *("half", "interleaved", "capped", "odd", "wide", "bf16", "bf16_odd", "f16", "mixed", "i8", "token8", "token4"),
        *("token4_odd", "token4_bf16", "token8_f16", "blocked_bf16", "blocked_token4"),
        *("pages", "pages_odd", "pages_token4", "pages_blocked", "window_and_first"),
    ],
)
def test_a_cache_call_after_call(how: dict[str, Any], chunks: Any, tolerance: float) -> None:
    body = decoder(**{"heads": 2, "groups": 1, "layout": "dense", **how})
    assert error(run_chunks(body, chunks)) < tolerance


def test_a_decode_step_is_one_kernel() -> None:
    body = decoder(2, 1, length="1", rotated=8, layout="dense")
    lowered = rule(body, small_choices())
    assert lowered is not None
    assert [kernel.name for kernel in lowered.kernels] == ["attention_decode"]
    assert error(run_chunks(body, [[[i]] for i in range(2)])) < F32


# Behind a prefix: two rows and a padded place, a step of both, of one, and more than the kernel of a step takes.
OWN = [[[50, 51], [50, -1]], [[52], [51]], [[53], [-1]], [[*range(54, 60)], [*range(52, 58)]]]


@pytest.mark.parametrize(
    ("how", "length", "chunks", "tolerance"),
    [
        ({"heads": 4, "groups": 2, "rotated": 8, "extra": "sinks"}, 50, OWN[:2], F32),
        ({"heads": 3, "dim": 24, "v_dim": 17, "how": "scale=0.25, softcap=2.0"}, 50, OWN, F32),
        ({"heads": 14, "dtype": "bf16", "dim": 16, "v_dim": 18}, 9, [[[9, 10], [9, 10], [9, -1]]], BF16),
        ({"storage": "f32, code=token4", "dim": 32, "rotated": 16}, 50, OWN[:3], F32),
    ],
    ids=["sinks", "odd", "many_queries", "token4"],
)
def test_a_prefix_that_rows_share(how: dict[str, Any], length: int, chunks: Any, tolerance: float) -> None:
    storage = f"{how.get('storage', how.get('dtype', 'f32'))}, prefix=shared"
    body = decoder(**{"heads": 2, "groups": 1, "layout": "dense", **how, "storage": storage})
    assert error(run_behind_prefix(body, length, chunks)) < tolerance


def test_rows_without_a_prefix() -> None:
    body = decoder(2, 1, layout="dense", storage="f32, prefix=shared")
    assert error(run_chunks(body, ONE)) < F32


SMALL: dict[str, Any] = {"heads": 9, "groups": 3, "dim": 64, "rotated": 32, "dtype": "bf16", "layout": "dense"}


@pytest.mark.parametrize(
    ("device", "length", "more"),
    [("a100-80gb", "1", ("page=64", "code=kivi2-32-128")), ("h100-sxm", "S", ("prefix=shared",))],
    ids=["sm_80", "sm_90"],
)
def test_default_schedules_compile_without_spills(device: str, length: str, more: tuple[str, ...]) -> None:
    """A decode step of a small model, and its prompts; over other caches the step alone."""
    found = find_device(device)
    bodies = [decoder(**SMALL, length=length), *(decoder(**SMALL, length="1", storage=f"bf16, {x}") for x in more)]
    kernels = [kernel for body in bodies for kernel in lowered_for(body, device).kernels]
    for symbol, binary in compile_kernels(kernels, found).items():
        usage = read_usage(binary.data, symbol, found, shared=binary.shared, warps=binary.warps)
        assert not usage.spills, f"{symbol}: {usage.describe(found)}"
        assert usage.refusal(found) is None


def lowered_for(body: Graph, device: str) -> Lowered:
    lowered = rule(body, choices(device))
    assert lowered is not None
    return lowered


def test_late_positions_keep_their_digits() -> None:
    """Angles of more than 100000 radians."""
    body = graph_of(
        "%x: f32[B, 2, S, 16], %pos: i64[1, S], %inv: f32[8]",
        "y: f32[B, 2, S, 16]",
        ["%y = irx.rope(%x, %pos, %inv)"],
        "%y",
    )
    pos = np.array([[0, 1, 77, 4096, 99_991, 131_071]])
    assert error([run_plain(body, {"B": 2, "S": 6}, {"pos": pos})]) < 1e-6


PLAIN = "%q: {t}[B, 2, S, {d}], %k: {t}[B, {g}, T, {d}], %v: {t}[B, {g}, T, {e}]"


@pytest.mark.parametrize(
    ("form", "extra", "how", "lengths"),
    [
        (("f32", 32, 32, 2), "%m: bool[B, 1, 1, T]", "scale=0.2", (35, 35)),
        (("f32", 96, 80, 2), "%m: bool[B, 1, S, T], %b: f32[1, 2, S, T]", "scale=0.1", (1, 67)),
        (("f32", 24, 40, 1), "", "scale=0.3, causal=true, window=7", (40, 37)),
        (("f32", 16, 16, 2), "%s: f32[2]", "scale=0.3, softcap=3.0, window=4", (33, 34)),
        (("bf16", 64, 64, 2), "", "scale=0.125", (3, 67)),
        (("bf16", 33, 128, 1), "%b: bf16[B, 1, S, T]", "scale=0.2, causal=true", (5, 41)),
        (("f16", 64, 64, 2), "%m: bool[B, 1, 1, T]", "scale=0.125, causal=true", (31, 31)),
    ],
    ids=["padding", "mask_and_bias", "causal_window", "capped_window", "bf16", "bf16_bias", "f16"],
)
def test_whole_sequences(form: tuple[str, int, int, int], extra: str, how: str, lengths: tuple[int, int]) -> None:
    dtype, dim, v_dim, groups = form
    inputs = PLAIN.format(t=dtype, d=dim, e=v_dim, g=groups) + (f", {extra}" if extra else "")
    operands = ", ".join(f"%{name}" if f"%{name}:" in extra else "none" for name in "mbs")
    line = f"%a = irx.attention(%q, %k, %v, {operands}) {{{how}}}"
    body = graph_of(inputs, f"y: {dtype}[B, 2, S, {v_dim}]", [line], "%a")
    found = run_plain(body, {"B": 2, "S": lengths[0], "T": lengths[1]}, {})
    assert error([found]) < {"f32": F32, "bf16": BF16, "f16": F16}[dtype]


def test_rows_that_see_nothing_give_zero() -> None:
    body = graph_of(
        PLAIN.format(t="f32", d=16, e=16, g=2) + ", %m: bool[B, 1, S, T]",
        "y: f32[B, 2, S, 16]",
        ["%a = irx.attention(%q, %k, %v, %m) {scale=0.2}"],
        "%a",
    )
    mask = np.random.default_rng(0).random((2, 1, 6, 50)) < 0.5
    mask[0, 0, 2] = False
    found = run_plain(body, {"B": 2, "S": 6, "T": 50}, {"m": mask})[0]
    assert not found[0, :, 2].any()
    assert found[1, :, 2].all()


def test_heads_of_projections_for_an_encoder() -> None:
    """Three projections, rope, the result as rows: keys that are rotated go through a temporary."""
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
    assert error([run_plain(body, {"B": 2, "S": 19}, {"pos": np.arange(19)[None]})]) < F32


@pytest.mark.parametrize(
    ("kv", "reason"),
    [
        ("kv<heads=4, dim=16, dense, f8e4m3>", "stored as"),
        ("kv<heads=4, value_heads=2, dim=16, dense, f32>", "numbers of"),
        ("kv<heads=4, dim=16, blocked, f32, page=48>", "pages of 48"),
        ("kv<heads=4, dim=16, dense, f32, prefix=shared, page=16>", "pages behind a prefix"),
    ],
)
def test_what_is_refused(kv: str, reason: str) -> None:
    body = graph_of(
        f"%q: f32[B, 4, S, 16], %pos: i64[B, S], %kv: {kv}",
        "y: f32[B, 4, S, 16]",
        ["%a = irx.kv_attention(%q, %kv, %pos) {scale=1.0}"],
        "%a",
    )
    with pytest.raises(Refusal, match=reason):
        rule(body, small_choices())
