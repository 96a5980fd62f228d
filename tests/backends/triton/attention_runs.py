"""Running bodies with attention on the kernels of the rule, in the interpreter, and on the oracle, call after call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Choices
from irx.backends.regions.slots import Placed
from irx.backends.triton.rules.attention import rule
from irx.ir.graph import Graph
from irx.ir.types import KVType, numpy_dtype
from irx.ir.weights import Weights
from irx.ops.cache import KVArrays
from irx.runtime.kv import KVState, empty_state, step_of
from irx.runtime.tensors import to_numpy
from irx.target import find_device
from tests.backends.triton.lowered_run import run_lowered
from tests.backends.tvm.attention_bodies import as_numbers, check_state, make_room, random_arrays

NUMBERS = ("capacity", "columns", "prefix_capacity", "prefix_length")
SMALL = {"attention_decode": {"tokens": 16, "split": 4}, "attention_flash": {"queries": 16, "tokens": 16}}


def small_choices() -> Choices:
    """Small tiles: what takes several of them does so for few tokens."""
    return Choices(find_device("a100"), lambda template, _, defaults: {**defaults, **SMALL.get(template, {})})


def run_chunks(body: Graph, chunks: Sequence[Any], *, seed: int = 0) -> list[tuple[Any, Any]]:
    """(result, expected) of every chunk of positions [B, S], on one state; expected from the oracle in float64."""
    lowered = rule(body, small_choices())
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
        found = run_lowered(lowered, body, arrays, states={"kv0": parts(state)})
        expected, reference = evaluate(body, {**arrays, "kv0": reference}, {}, Weights())
        pairs.append((as_numbers(found["out"]), expected))
    check_state(state, reference)
    return pairs


def run_behind_prefix(body: Graph, length: int, chunks: Sequence[Any]) -> list[tuple[Any, Any]]:
    """(result, expected) of chunks of positions [B, S] of rows that begin with `length` tokens which they share."""
    (kv,) = (v.type for v in body.inputs if isinstance(v.type, KVType))
    batch, device = len(chunks[0]), torch.device("cpu")
    prefix, state, reference = empty_state(kv, 1, device), empty_state(kv, batch, device), KVArrays.empty(kv, batch)
    placed = Placed.of(body).graph
    lowered = rule(placed, small_choices())
    assert lowered is not None
    fixed, pairs = random_arrays(body, {"B": 1, "S": 1}), []
    for number, chunk in enumerate([np.arange(length)[None], *chunks]):
        one, pos = prefix if number == 0 else state, np.array(chunk, np.int64)
        arrays = random_arrays(body, {"B": len(pos), "S": pos.shape[1]}, number + 1)
        arrays |= {name: fixed[name] for name in fixed if name != "x"} | {"pos": pos}
        step = step_of(one.lengths, pos.tolist())
        assert step is not None
        one.reserve(step.needed - (0 if one.prefix is None else length), 1 << 40)
        one.lengths = step.lengths
        slots = pos if one.kept is None else to_numpy(one.kept.slots_of(torch.from_numpy(pos)))
        found = run_lowered(lowered, placed, {**arrays, "slots_kv0": slots}, states={"kv0": parts(one)})
        if one is prefix:
            state.share(prefix)
            arrays = {name: np.repeat(x, batch, 0) if name in ("x", "pos") else x for name, x in arrays.items()}
        expected, reference = evaluate(body, {**arrays, "kv0": reference}, {}, Weights())
        pairs.append((np.broadcast_to(as_numbers(found["out"]), expected.shape), expected))
    return pairs


def parts(state: KVState) -> dict[str, Any]:
    """The tensors of a state as `run_lowered` takes them."""
    names = [name for side in "kv" for name in (side, *(f"{side}_{part}" for part in state.keys.parameters))]
    names += ["pages"] if state.paged is not None else [f"prefix_{name}" for name in names]
    return {name: state.part(name) for name in names} | {name: state.number(name) for name in NUMBERS}


def run_plain(body: Graph, sizes: dict[str, int], given: dict[str, Any]) -> tuple[Any, Any]:
    """(result, expected) of a body without states; masks are random."""
    lowered = rule(body, small_choices())
    assert lowered is not None
    arrays = random_arrays(body, sizes) | given
    for value in body.inputs:
        if value.name not in arrays:
            shape = tuple(sizes.get(str(n), n) for n in value.shape)
            arrays[value.name] = (np.random.default_rng(5).random(shape) < 0.7).astype(numpy_dtype(value.dtype))
    (found,) = run_lowered(lowered, body, arrays, sizes).values()
    (expected,) = evaluate(body, arrays, sizes, Weights())
    return as_numbers(found), expected
