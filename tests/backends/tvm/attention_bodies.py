"""Bodies with attention as text, and running them on the kernels of the rule and on the oracle, call after call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import irx
from irx.analysis.reference import evaluate
from irx.backends.tvm.rules.attention import rule
from irx.ir.graph import Graph
from irx.ir.types import KVType, numpy_dtype
from irx.ir.weights import Weights
from irx.ops.cache import KVArrays
from irx.runtime.kv import KVState, empty_state, step_of
from irx.runtime.tensors import from_numpy, to_numpy
from irx.target import Device
from tests.backends.tvm.lowered_run import choices, run_lowered

_UNLIMITED = 1 << 40


def graph_of(inputs: str, outputs: str, lines: Sequence[str], results: str) -> Graph:
    """A graph from the pieces of its text."""
    body = "\n".join(f"    {line}" for line in lines)
    text = f"""program @p {{
  size B in [1, 64]
  size S in [1, 8192]
  size T in [1, 8192]
  graph @forward({inputs}) -> ({outputs}) {{
{body}
    return {results}
  }}
}}"""
    return irx.parse(text).graphs["forward"]


def decoder(
    heads: int = 4, groups: int = 2, dim: int = 16, *, dtype: str = "f32", storage: str = "", length: str = "S",
    rotated: int = 0, rope: str = "", how: str = "scale=0.25", norm: bool = False, extra: str = "", v_dim: int = 0,
    layout: str = "blocked",
) -> Graph:  # fmt: skip
    """One merged projection, rope of `rotated` frequencies, an append, attention, and the result as rows.

    `extra` names further operands of kv_attention (`table`, `sinks`).
    """
    v_dim = v_dim or dim
    width = heads * dim + groups * (dim + v_dim)
    kv = f"kv<heads={groups}, k_dim={dim}, v_dim={v_dim}, {layout}, {storage or dtype}>"
    inputs = [f"%x: {dtype}[B, {length}, {width}]", f"%pos: i64[B, {length}]", f"%kv0: {kv}"]
    edges = [0, heads * dim, (heads + groups) * dim, width]
    lines = []
    for name, count, size, start, stop in zip(
        "qkv", (heads, groups, groups), (dim, dim, v_dim), edges, edges[1:], strict=False
    ):
        lines += [
            f"%{name}0 = irx.slice(%x) {{axis=2, start={start}, stop={stop}}}",
            f"%{name}1 = irx.reshape(%{name}0) {{shape=[B, {length}, {count}, {size}]}}",
        ]
        if norm and name != "v":
            inputs.append(f"%{name}_norm: {dtype}[{size}]")
            lines.append(f"%{name}n = irx.rms_norm(%{name}1, %{name}_norm) {{eps=1e-06}}")
        source = f"{name}n" if norm and name != "v" else f"{name}1"
        lines.append(f"%{name}2 = irx.permute(%{source}) {{order=[0, 2, 1, 3]}}")
    q, k = "%q2", "%k2"
    if rotated:
        inputs.append(f"%inv: f32[{rotated}]")
        attrs = f" {{{rope}}}" if rope else ""
        lines.append("%at = irx.maximum(%pos, 0)")
        lines += [f"%{name}3 = irx.rope(%{name}2, %at, %inv){attrs}" for name in "qk"]
        q, k = "%q3", "%k3"
    operands = ""
    if "table" in extra:
        inputs.append(f"%table: f32[{heads}, 7]")
        operands += ", %table"
    if "sinks" in extra:
        inputs.append(f"%sinks: {dtype}[{heads}]")
        operands += (", none" if "table" not in extra else "") + ", %sinks"
    lines += [
        f"%kv = irx.kv_append(%kv0, {k}, %v2, %pos)",
        f"%a = irx.kv_attention({q}, %kv, %pos{operands}) {{{how}}}",
        "%p = irx.permute(%a) {order=[0, 2, 1, 3]}",
        f"%o = irx.reshape(%p) {{shape=[B, {length}, {heads * v_dim}]}}",
    ]
    return graph_of(", ".join(inputs), f"out: {dtype}[B, {length}, {heads * v_dim}], kv: {kv}", lines, "%o, %kv")


def random_arrays(body: Graph, sizes: dict[str, int], seed: int = 0) -> dict[str, Any]:
    """Random tensors for all float inputs; frequencies fall as those of models do."""
    from irx.ir.dims import evaluate as size_of

    generator = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for value in body.inputs:
        if isinstance(value.type, KVType) or value.dtype in ("i64", "bool"):
            continue
        shape = tuple(size_of(dim, sizes) for dim in value.shape)
        array = generator.standard_normal(shape)
        if value.name == "inv":
            array = 10000.0 ** -(np.arange(shape[0]) / shape[0])
        arrays[value.name] = array.astype(numpy_dtype(value.dtype))
    return arrays


def run_chunks(
    body: Graph, chunks: Sequence[Any], *, threads: int = 2, device: Device | None = None, seed: int = 0
) -> list[tuple[Any, Any]]:
    """(result, expected) of every chunk of positions [B, S], on one state; expected from the oracle in float64."""
    lowered = rule(body, choices(device))
    assert lowered is not None
    (kv,) = (v.type for v in body.inputs if isinstance(v.type, KVType))
    batch = len(chunks[0])
    state, reference = empty_state(kv, batch, torch.device("cpu")), KVArrays.empty(kv, batch)
    fixed = random_arrays(body, {"B": 1, "S": 1}, seed)
    pairs = []
    for number, chunk in enumerate(chunks):
        pos = np.array(chunk, np.int64)
        arrays = random_arrays(body, {"B": batch, "S": pos.shape[1]}, seed + number + 1)
        arrays |= {name: fixed[name] for name in fixed if name != "x"} | {"pos": pos}
        make_room(state, pos)
        found = run_lowered(lowered, body, arrays, states={"kv0": parts(state)}, threads=threads, device=device)
        expected, reference = evaluate(body, {**arrays, "kv0": reference}, {}, Weights())
        pairs.append((as_numbers(found["out"]), expected))
    check_state(state, reference)
    return pairs


def make_room(state: KVState, pos: Any) -> None:
    """What an executor does before a call that appends."""
    step = step_of(state.lengths, pos.tolist())
    assert step is not None
    state.reserve(step.needed, _UNLIMITED)
    state.lengths = step.lengths


def parts(state: KVState) -> dict[str, Any]:
    """The arrays of a state as `run_lowered` takes them; bf16 as its bits."""
    names = [name for side in "kv" for name in (side, *(f"{side}_{part}" for part in state.keys.parameters))]
    return {name: to_numpy(state.part(name)) for name in names} | {"capacity": state.capacity}


def check_state(state: KVState, reference: KVArrays) -> None:
    """The kernels have written the tokens that the oracle's state holds."""
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.02}.get(state.keys.tensor.dtype, 0.05)
    for row, length in enumerate(state.lengths):
        for ours, theirs in ((state.k, reference.k), (state.v, reference.v)):
            assert np.allclose(ours[row, :, :length].float(), theirs[row, :, :length], atol=tolerance)


def as_numbers(array: Any) -> Any:
    """Floats of any dtype as float64."""
    return np.asarray(array, np.float64)


def error(pairs: Sequence[tuple[Any, Any]]) -> float:
    """The largest difference over the largest expected magnitude."""
    worst = 0.0
    for found, expected in pairs:
        assert np.isfinite(found).all()
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return worst


def tensor(array: Any) -> torch.Tensor:
    """An array as a tensor."""
    return from_numpy(array)
