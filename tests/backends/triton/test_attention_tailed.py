"""Kernels on caches of codes with a tail, step by step, against torch's: results, and every array of the state."""

from __future__ import annotations

import pytest
import torch

from irx.backends.regions.lowered import Choices, Refusal, default_schedule
from irx.backends.torch.kernels import find
from irx.backends.triton.compiling import compile_kernels
from irx.backends.triton.resources import read_usage
from irx.backends.triton.rules.attention import rule
from irx.ir.graph import Graph
from irx.ir.types import KVType
from irx.runtime.kv import KVState, empty_state
from irx.runtime.tensors import TORCH, to_numpy
from irx.target import find_device
from tests.backends.triton.attention_runs import parts, small_choices
from tests.backends.triton.lowered_run import run_lowered
from tests.backends.tvm.attention_bodies import as_numbers, graph_of, make_room

HEADS = 4  # of queries; two of keys


def body_of(code: str, dims: tuple[int, int], dtype: str, how: str, length: str = "1", layout: str = "dense") -> Graph:
    kv = f"kv<heads=2, k_dim={dims[0]}, v_dim={dims[1]}, {layout}, {dtype}, code={code}>"
    k, v = (f"%{name}: {dtype}[B, 2, {length}, {dim}]" for name, dim in zip("kv", dims, strict=True))
    inputs = f"%q: {dtype}[B, {HEADS}, {length}, {dims[0]}], {k}, {v}, %pos: i64[B, {length}], %kv0: {kv}"
    lines = ["%kv = irx.kv_append(%kv0, %k, %v, %pos)", f"%y = irx.kv_attention(%q, %kv, %pos) {{{how}}}"]
    return graph_of(inputs, f"y: {dtype}[B, {HEADS}, {length}, {dims[1]}], kv: {kv}", lines, "%y, %kv")


def started(kv: KVType, lengths: tuple[int, int]) -> KVState:
    """A state with tokens of both rows, which torch has appended."""
    if not any(lengths):
        return empty_state(kv, 2, torch.device("cpu"))
    most, generator = max(lengths), torch.Generator().manual_seed(0)
    pos = torch.stack([torch.where(torch.arange(most) < n, torch.arange(most), -1) for n in lengths])
    k, v = (torch.randn(2, 2, most, d, generator=generator).to(TORCH[kv.dtype]) for d in (kv.k_dim, kv.v_dim))
    state = find("kv_append")(empty_state(kv, 2, torch.device("cpu")), k, v, pos)
    assert isinstance(state, KVState)
    state.settle()
    return state


@pytest.mark.parametrize(
    ("code", "dims", "dtype", "how", "lengths"),
    [
        ("kivi2-32-64", (64, 64), "f32", "scale=0.2", (93, 29)),
        ("kivi4-8-32", (24, 40), "f32", "scale=0.2, window=50", (94, 61)),
        ("kivi2-8-24", (33, 80), "f32", "scale=0.2, softcap=2.0", (45, 6)),
        ("kivi4-16-32", (80, 48), "bf16", "scale=0.2", (62, 14)),
        ("kivi2-64-64", (21, 64), "f16", "scale=0.2", (62, 30)),
    ],
    ids=["kivi2", "kivi4_window", "kivi2_odd", "kivi4_bf16", "kivi2_f16"],
)
def test_steps_equal_those_of_torch(
    code: str, dims: tuple[int, int], dtype: str, how: str, lengths: tuple[int, int]
) -> None:
    """Through complete groups and full tails, of rows of different lengths."""
    body, generator = body_of(code, dims, dtype, how), torch.Generator().manual_seed(1)
    (kv,) = (v.type for v in body.inputs if isinstance(v.type, KVType))
    lowered = rule(body, small_choices())
    assert lowered is not None
    assert [kernel.name for kernel in lowered.kernels] == ["attention_decode"]
    ours, theirs = started(kv, lengths), started(kv, lengths)
    options = {name: float(x) if "." in x else int(x) for name, x in (p.split("=") for p in how.split(", "))}
    for step in range(3):
        pos = torch.tensor([[n + step] for n in lengths])
        shapes = {"q": (HEADS, dims[0]), "k": (2, dims[0]), "v": (2, dims[1])}
        q, k, v = (torch.randn(2, h, 1, d, generator=generator).to(TORCH[dtype]) for h, d in shapes.values())
        make_room(ours, pos.numpy())
        arrays = {"q": to_numpy(q), "k": to_numpy(k), "v": to_numpy(v), "pos": pos.numpy()}
        made = run_lowered(lowered, body, arrays, states={"kv0": parts(ours)})
        theirs = find("kv_append")(theirs, k, v, pos)
        expected = find("kv_attention")(q, theirs, pos, **options).double().numpy()
        limit = {"f32": 1e-5, "f16": 3e-3, "bf16": 0.02}[dtype]
        assert abs(as_numbers(made["y"]) - expected).max() < limit * abs(expected).max(), step
        theirs.settle()
    for name in ("k", "v", *(f"{side}_{x}" for side in "kv" for x in ("scale", "zero", "tail"))):
        assert torch.equal(ours.part(name), theirs.part(name)), name


@pytest.mark.parametrize(
    ("code", "dims", "dtype", "how", "lengths", "counts"),
    [
        ("kivi2-8-16", (16, 24), "f32", "scale=0.2, softcap=2.0", (0, 0), (37, 20)),
        ("kivi4-8-16", (24, 40), "f32", "scale=0.2, window=20", (29, 6), (19, 0)),
        ("kivi4-16-32", (16, 16), "bf16", "scale=0.2", (20, 33), (14, 17)),
    ],
    ids=["new", "window", "bf16"],
)
def test_prompts_equal_those_of_torch(
    code: str, dims: tuple[int, int], dtype: str, how: str, lengths: tuple[int, int], counts: tuple[int, int]
) -> None:
    """Behind rows of other lengths, padded on either side, over several groups and tails; then a step behind them."""
    ours, theirs, generator = None, None, torch.Generator().manual_seed(1)
    options = {name: float(x) if "." in x else int(x) for name, x in (p.split("=") for p in how.split(", "))}
    for length, padded in (("S", counts), ("1", (1, 1))):
        body = body_of(code, dims, dtype, how, length)
        (kv,) = (v.type for v in body.inputs if isinstance(v.type, KVType))
        lowered = rule(body, small_choices())
        assert lowered is not None
        if ours is None or theirs is None:
            ours, theirs = started(kv, lengths), started(kv, lengths)
        most = max(padded)
        places = torch.arange(most)
        left = torch.where(places >= most - padded[0], ours.lengths[0] + places - most + padded[0], -1)
        right = torch.where(places < padded[1], ours.lengths[1] + places, -1)
        pos = torch.stack([left, right])
        shapes = {"q": (HEADS, dims[0]), "k": (2, dims[0]), "v": (2, dims[1])}
        q, k, v = (torch.randn(2, h, most, d, generator=generator).to(TORCH[dtype]) for h, d in shapes.values())
        make_room(ours, pos.numpy())
        arrays = {"q": to_numpy(q), "k": to_numpy(k), "v": to_numpy(v), "pos": pos.numpy()}
        made = run_lowered(lowered, body, arrays, states={"kv0": parts(ours)})
        theirs = find("kv_append")(theirs, k, v, pos)
        expected = find("kv_attention")(q, theirs, pos, **options).double().numpy()
        limit = {"f32": 1e-5, "bf16": 0.02}[dtype]
        assert abs(as_numbers(made["y"]) - expected).max() < limit * abs(expected).max(), length
        theirs.settle()
        for name in ("k", "v", *(f"{side}_{x}" for side in "kv" for x in ("scale", "zero", "tail"))):
            assert torch.equal(ours.part(name), theirs.part(name)), (length, name)


def test_an_append_alone() -> None:
    kv = "kv<heads=2, dim=16, dense, f32, code=kivi4-8-16>"
    inputs = f"%k: f32[B, 2, 1, 16], %v: f32[B, 2, 1, 16], %pos: i64[B, 1], %kv0: {kv}"
    body = graph_of(inputs, f"kv: {kv}", ["%kv = irx.kv_append(%kv0, %k, %v, %pos)"], "%kv")
    (type,) = (v.type for v in body.inputs if isinstance(v.type, KVType))
    lowered = rule(body, small_choices())
    assert lowered is not None
    ours, theirs = started(type, (15, 8)), started(type, (15, 8))
    k, v = torch.randn(2, 2, 2, 1, 16, generator=torch.Generator().manual_seed(1))
    pos = torch.tensor([[15], [-1]])
    make_room(ours, pos.numpy())
    run_lowered(lowered, body, {"k": k.numpy(), "v": v.numpy(), "pos": pos.numpy()}, states={"kv0": parts(ours)})
    theirs = find("kv_append")(theirs, k, v, pos)
    for name in ("k", "v", *(f"{side}_{x}" for side in "kv" for x in ("scale", "zero", "tail"))):
        assert torch.equal(ours.part(name), theirs.part(name)), name


def test_what_kernels_leave_to_torch() -> None:
    with pytest.raises(Refusal, match="groups of 24"):
        rule(body_of("kivi2-24-48", (48, 48), "f32", "scale=0.2"), small_choices())
    kv = "kv<heads=2, dim=16, dense, f32, code=kivi4-8-16>"
    inputs = f"%k: f32[B, 2, S, 16], %v: f32[B, 2, S, 16], %pos: i64[B, S], %kv0: {kv}"
    apart = graph_of(inputs, f"kv: {kv}", ["%kv = irx.kv_append(%kv0, %k, %v, %pos)"], "%kv")
    with pytest.raises(Refusal, match="more than one token"):
        rule(apart, small_choices())


@pytest.mark.parametrize("device", ["a100-80gb", "h200"])
def test_the_kernels_of_a_prompt_compile_without_spills(device: str) -> None:
    found = find_device(device)
    lowered = rule(body_of("kivi2-32-128", (64, 64), "bf16", "scale=0.125", "S"), Choices(found, default_schedule))
    assert lowered is not None
    kernels = {kernel.symbol: kernel for kernel in lowered.kernels}
    assert [k.name for k in kernels.values()] == ["heads", "heads", "append_codes", "attention_flash", "append_tail"]
    for symbol, binary in compile_kernels(kernels.values(), found).items():  # type: ignore[arg-type]
        usage = read_usage(binary.data, symbol, found, shared=binary.shared, warps=binary.warps)
        assert usage.spills == 0 and usage.refusal(found) is None, f"{symbol}: {usage.describe(found)}"
