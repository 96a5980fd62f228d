"""Decode attention over a cache of 4096 tokens, in each dtype of the cache, against torch's fused attention.

As many sites as a small model has layers, so that no cache of the processor holds the keys and values. A site of IRX
appends the newest token and attends to all of them; torch only attends, over keys and values that already hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from irx.bench.baselines.language import Step
from irx.bench.lab import Lab
from irx.bench.race import Candidate, Race, Ready, Row

TOKENS = 4096
SITES = 30
DIM = 64
# dtype of the cache, how many times faster it must be, tolerance of its results
FORMATS = {"float32": ("f32", 2.7, 1e-4), "bf16": ("bf16", 4.0, 0.03), "int8": ("i8", 5.5, 0.05)}
ITEM_BYTES = {"f32": 4, "bf16": 2, "i8": 1}


def program(heads: int, kv_heads: int, dtype: str) -> str:
    """Two graphs over the same states: `fill` appends any number of tokens, `decode` appends one and attends."""
    kv = f"kv<heads={kv_heads}, dim={DIM}, dense, {dtype}>"
    states, outs = [f"kv{i}: {kv}" for i in range(SITES)], [f"out{i}: f32[B, {heads}, 1, {DIM}]" for i in range(SITES)]
    inputs = [f"k: f32[B, {kv_heads}, S, {DIM}]", f"v: f32[B, {kv_heads}, S, {DIM}]", "pos: i64[B, S]", *states]
    appends = [f"%a{i} = irx.kv_append(%kv{i}, %k, %v, %pos) : {kv}" for i in range(SITES)]
    attends = [
        f"%o{i} = irx.kv_attention(%q, %a{i}, %pos) {{scale=0.125}} : f32[B, {heads}, 1, {DIM}]" for i in range(SITES)
    ]
    kept, made = [f"%a{i}" for i in range(SITES)], [f"%o{i}" for i in range(SITES)]
    step = [f"q: f32[B, {heads}, 1, {DIM}]", *(text.replace("S", "1") for text in inputs[:3]), *states]
    graphs = [
        _graph("fill", inputs, states, appends, kept),
        _graph("decode", step, [*outs, *states], [*appends, *attends], [*made, *kept]),
    ]
    sizes = ["  size B in [1, 16]", f"  size S in [1, {TOKENS}]"]
    return "\n".join(["program @attention {", *sizes, *graphs, "}", ""])


def _graph(name: str, inputs: Sequence[str], outputs: Sequence[str], body: Sequence[str], kept: Sequence[str]) -> str:
    head = f"  graph @{name}({', '.join(f'%{text}' for text in inputs)}) -> ({', '.join(outputs)}) {{"
    return "\n".join([head, *(f"    {line}" for line in body), f"    return {', '.join(kept)}", "  }"])


def _tensors(heads: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, and the keys and values that all sites hold."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, heads, 1, DIM, generator=generator)
    k, v = (torch.randn(1, kv_heads, TOKENS, DIM, generator=generator) for _ in range(2))
    return q, k, v


def _torch(lab: Lab, heads: int, kv_heads: int) -> Ready:
    q, k, v = _tensors(heads, kv_heads)
    sites = [(k.clone(), v.clone()) for _ in range(SITES)]

    def step() -> torch.Tensor:
        for keys, values in sites:
            out = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        return out

    return Ready(step)


def _ours(lab: Lab, heads: int, kv_heads: int, dtype: str) -> Ready:
    import irx

    fast = irx.compile(irx.parse(program(heads, kv_heads, dtype)), target=lab.target)
    size = 2 * SITES * kv_heads * TOKENS * DIM * ITEM_BYTES[dtype]
    return Ready(_step(fast, *_tensors(heads, kv_heads)), size)


def _step(fast: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Step:
    from irx.ir.types import KVType
    from irx.runtime.kv import KVState, Step, empty_state

    fill, decode = fast.graphs["fill"], fast.graphs["decode"]
    before = TOKENS - 1
    kinds = [value.type for value in fill.inputs if isinstance(value.type, KVType)]
    states: list[KVState] = [empty_state(kind, 1, fast.device) for kind in kinds]
    for state in states:
        state.reserve(TOKENS, TOKENS)
        state.step = Step(0, (before,), True)
    states = fill(k[:, :, :before], v[:, :, :before], torch.arange(before)[None], *states)
    newest = (k[:, :, before:].contiguous(), v[:, :, before:].contiguous(), torch.tensor([[before]]))
    now = Step(before, (TOKENS,), True)

    def step() -> torch.Tensor:
        for state in states:
            state.step = now
        out: torch.Tensor = decode(q, *newest, *states)[SITES - 1]
        return out

    return step


def _family(heads: int, kv_heads: int) -> Race:
    ours = {
        name: Candidate(partial(_ours, heads=heads, kv_heads=kv_heads, dtype=dtype), tolerance)
        for name, (dtype, _, tolerance) in FORMATS.items()
    }
    return Race(
        name="attention",
        title=f"attention of {heads} heads on {kv_heads} to {TOKENS} tokens, {SITES} sites",
        reference="torch SDPA",
        candidates={
            "torch SDPA": Candidate(partial(_torch, heads=heads, kv_heads=kv_heads), 0.0),
            **{f"IRX {name}": candidate for name, candidate in ours.items()},
        },
        rows=tuple(
            Row(f"attention, {heads} heads on {kv_heads}, {name} cache", f"IRX {name}", ("torch SDPA",), wanted)
            for name, (_, wanted, _) in FORMATS.items()
        ),
    )


FAMILIES = (_family(9, 3), _family(32, 8))
