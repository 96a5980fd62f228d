"""Kernels on caches of codes with a tail, step by step, against torch's: results, and every array of the state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irx.backends.regions.lowered import Refusal
from irx.backends.torch.kernels import find
from irx.backends.tvm.rules.attention import rule
from irx.ir.graph import Graph
from irx.ir.types import KVType
from irx.runtime.kv import KVState, empty_state
from irx.runtime.tensors import from_numpy, to_numpy
from irx.target import find_device
from tests.backends.tvm.attention_bodies import as_numbers, graph_of, make_room, parts
from tests.backends.tvm.lowered_run import choices, run_lowered

LENGTHS = (250, 122)  # of two rows, before the first step


def _body(code: str, dim: int, heads: int, dtype: str, how: str = "scale=0.2", length: str = "1") -> Graph:
    kv = f"kv<heads=2, dim={dim}, blocked, {dtype}, code={code}>"
    one = f"{dtype}[B, 2, {length}, {dim}]"
    inputs = f"%q: {dtype}[B, {heads}, {length}, {dim}], %k: {one}, %v: {one}, %pos: i64[B, {length}], %kv0: {kv}"
    lines = ["%kv = irx.kv_append(%kv0, %k, %v, %pos)", f"%y = irx.kv_attention(%q, %kv, %pos) {{{how}}}"]
    return graph_of(inputs, f"y: {dtype}[B, {heads}, {length}, {dim}], kv: {kv}", lines, "%y, %kv")


def _started(body: Graph, generator: torch.Generator) -> KVState:
    """A state with tokens of both rows, which torch has appended."""
    (kv,) = (v.type for v in body.inputs if isinstance(v.type, KVType))
    pos = torch.stack([torch.where(torch.arange(max(LENGTHS)) < n, torch.arange(max(LENGTHS)), -1) for n in LENGTHS])
    shape = (2, 2, max(LENGTHS), kv.k_dim)
    dtype = torch.float32 if kv.dtype == "f32" else torch.bfloat16
    k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    state = find("kv_append")(empty_state(kv, 2, torch.device("cpu")), k, v, pos)
    assert isinstance(state, KVState)
    state.settle()
    return state


@pytest.mark.parametrize(
    ("code", "dim", "heads", "dtype", "how", "threads"),
    [
        ("kivi2-32-128", 64, 6, "f32", "scale=0.2", 2),
        ("kivi4-32-128", 64, 4, "f32", "scale=0.2, window=150", 1),
        ("kivi2-16-64", 32, 2, "f32", "scale=0.2, softcap=2.0", 3),
        ("kivi4-16-64", 80, 4, "bf16", "scale=0.2", 2),
        ("kivi2-128-128", 128, 4, "f32", "scale=0.2", 2),
        ("kivi2-32-128", 64, 2, "bf16", "scale=0.2", 2),
    ],
)
def test_steps_equal_those_of_torch(code: str, dim: int, heads: int, dtype: str, how: str, threads: int) -> None:
    """Through complete groups and full tails, of rows of different lengths."""
    body, generator = _body(code, dim, heads, dtype, how), torch.Generator().manual_seed(0)
    lowered = rule(body, choices())
    assert lowered is not None
    ours, theirs = _started(body, generator), _started(body, torch.Generator().manual_seed(0))
    options = {name: float(x) if "." in x else int(x) for name, x in (p.split("=") for p in how.split(", "))}
    kind = torch.float32 if dtype == "f32" else torch.bfloat16
    for step in range(12):
        pos = torch.tensor([[n + step] for n in LENGTHS])
        q, k, v = (torch.randn(2, h, 1, dim, generator=generator).to(kind) for h in (heads, 2, 2))
        make_room(ours, pos.numpy())
        arrays = {"q": to_numpy(q), "k": to_numpy(k), "v": to_numpy(v), "pos": pos.numpy()}
        made = run_lowered(lowered, body, arrays, states={"kv0": parts(ours)}, threads=threads)
        theirs = find("kv_append")(theirs, k, v, pos)
        expected = find("kv_attention")(q, theirs, pos, **options)
        limit = 1e-5 if dtype == "f32" else 0.02
        assert np.abs(as_numbers(made["y"]) - expected.float().numpy()).max() < limit, step
        theirs.settle()
    for name in ("k", "v", *(f"{side}_{x}" for side in "kv" for x in ("scale", "zero", "tail"))):
        assert torch.equal(ours.part(name), theirs.part(name)), name


CALLS = (61, 3, 1, 129, 66, 1, 140)  # tokens of the first row; the second row's last is padding, in every call of many


@pytest.mark.parametrize(
    ("code", "dim", "heads", "dtype", "how", "device"),
    [
        ("kivi2-32-128", 64, 6, "f32", "scale=0.2", None),
        ("kivi4-16-64", 80, 4, "bf16", "scale=0.2, window=100", None),
        ("kivi2-64-64", 64, 2, "bf16", "scale=0.2, softcap=2.0", "cpu-avx2"),
    ],
)
def test_calls_of_many_tokens_equal_those_of_torch(
    code: str, dim: int, heads: int, dtype: str, how: str, device: str | None
) -> None:
    """Each query sees codes and plain tokens as its position says, however the tokens come."""
    body, generator = _body(code, dim, heads, dtype, how, "S"), torch.Generator().manual_seed(0)
    on = None if device is None else find_device(device)
    lowered = rule(body, choices(on))
    assert lowered is not None
    (kv,) = (v.type for v in body.inputs if isinstance(v.type, KVType))
    ours, theirs = (empty_state(kv, 2, torch.device("cpu")) for _ in range(2))
    options = {name: float(x) if "." in x else int(x) for name, x in (p.split("=") for p in how.split(", "))}
    kind, lengths = (torch.float32 if dtype == "f32" else torch.bfloat16), [0, 0]
    for count in CALLS:
        pos = torch.tensor([[n + i for i in range(count)] for n in lengths])
        if count > 1:
            pos[1, -1] = -1
        lengths = [int(row.max()) + 1 for row in pos]
        q, k, v = (torch.randn(2, h, count, dim, generator=generator).to(kind) for h in (heads, 2, 2))
        make_room(ours, pos.numpy())
        arrays = {"q": to_numpy(q), "k": to_numpy(k), "v": to_numpy(v), "pos": pos.numpy()}
        made = run_lowered(lowered, body, arrays, states={"kv0": parts(ours)}, threads=2, device=on)
        theirs = find("kv_append")(theirs, k, v, pos)
        expected = find("kv_attention")(q, theirs, pos, **options)
        limit = 1e-5 if dtype == "f32" else 0.02
        assert np.abs(as_numbers(made["y"]) - expected.float().numpy()).max() < limit, count
        theirs.settle()
    for name in ("k", "v", *(f"{side}_{x}" for side in "kv" for x in ("scale", "zero", "tail"))):
        assert torch.equal(ours.part(name), theirs.part(name)), name


@pytest.mark.parametrize(
    ("code", "dim", "length", "why"),
    [
        ("kivi2-32-96", 64, "1", "a tail of 96"),
        ("kivi2-8-64", 64, "1", "groups of 8"),
        ("kivi2-8-64", 24, "1", "groups of 8"),
        ("kivi2-16-64", 48, "1", None),
    ],
)
def test_what_kernels_leave_to_torch(code: str, dim: int, length: str, why: str | None) -> None:
    body = _body(code, dim, 2, "f32", length=length)
    if why is None:
        assert rule(body, choices()) is not None
        return
    with pytest.raises(Refusal, match=why):
        rule(body, choices())


def test_arrays_are_shared_between_kernels_and_torch() -> None:
    """What `parts` hands to kernels is the state itself."""
    state = _started(_body("kivi2-32-128", 64, 2, "f32"), torch.Generator().manual_seed(0))
    given = from_numpy(parts(state)["k_tail"])
    assert given.data_ptr() == state.part("k_tail").data_ptr()
