"""What a schedule makes of a kernel's blocks, for the model of time in `irx.analysis.kernel_time`.

Where no binary is there yet, registers and shared memory are guessed from the sums and the loads in flight: enough to
say which schedules are worth compiling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, prod, sqrt
from typing import TypeAlias

from irx.analysis.kernel_time import Work, kernel_seconds
from irx.analysis.occupancy import Block
from irx.backends.regions import attention_region, linear_region
from irx.backends.regions.asked import Knobs
from irx.backends.regions.attention_region import Attend
from irx.backends.triton.templates import gemm_shape, matvec_shape
from irx.backends.triton.templates.linear_shape import Problem, problem_of
from irx.ir.dims import Bindings, evaluate
from irx.ir.graph import Graph
from irx.ir.opdef import tensor_bytes
from irx.ir.types import KVType, item_bytes
from irx.target import Device
from irx.tuning import Choice

Numbers: TypeAlias = Mapping[str, int]
Works: TypeAlias = list[tuple[Work, Block]]

CONTEXTS = (512, 4096, 32768)  # tokens of a state that a schedule for any length is judged by
PROMPT = 512  # rows that stand for any number of them
FEW_REGISTERS = 40  # of a thread, beside sums and loads


def modelled(template: str) -> bool:
    """True for templates that the model knows."""
    return template in _MODELS


def seconds_of(
    template: str, body: Graph, knobs: Knobs, sizes: Bindings, device: Device, block: Block | None = None
) -> float:
    """The modelled time of the template's kernel in a region; of a `block` that was compiled, else of a guessed one.

    The geometric mean where a schedule serves several lengths.
    """
    numbers = {name: int(value) for name, value in knobs.items()}
    works = _MODELS[template](body, numbers, sizes, device)
    times = [kernel_seconds(work, block or guess, device) for work, guess in works]
    return float(prod(times) ** (1 / len(times)))


def _matvec(body: Graph, knobs: Numbers, sizes: Bindings, device: Device) -> Works:
    problem = _problem(body, device)
    rows = evaluate(problem.region.rows, sizes)
    shape = matvec_shape.Shape(problem, rows, **{name: knobs[name] for name in matvec_shape.KNOBS})
    blocks, weights, products = shape.units * shape.split, _weight_bytes(problem), len(problem.layouts)
    inputs = rows * problem.k * item_bytes(problem.x_dtype)
    read = inputs if problem.norm is not None and not shape.folds else inputs / shape.split
    passes = ceil(shape.share / shape.span) + (ceil(problem.chunks / shape.span) if read > inputs / shape.split else 0)
    waits = passes / max(1, shape.stages - 1) + 1 + _joining(shape.split)
    in_flight = shape.columns * shape.span * products * 16 * max(1, shape.stages - 1)
    flops = 4.0 * problem.n * problem.k * rows * products
    threads = shape.warps * _threads(device)
    held = shape.columns * shape.span * products * (rows + 4) // threads
    guess = Block(FEW_REGISTERS + held, 0, shape.warps)
    return [(Work(blocks, weights + inputs, weights + blocks * read, flops, "f32", waits, in_flight), guess)]


def _gemm(body: Graph, knobs: Numbers, sizes: Bindings, device: Device) -> Works:
    problem = _problem(body, device)
    rows = evaluate(problem.region.rows, sizes)
    rows = rows if rows <= gemm_shape.SMALLEST else PROMPT
    shape = gemm_shape.Shape(problem, **{name: knobs[name] for name in gemm_shape.KNOBS})
    products, item = len(problem.layouts), item_bytes(problem.operand)
    tiles = ceil(rows / shape.rows) * shape.across
    weights, ends = _weight_bytes(problem), rows * (problem.k + problem.n) * item
    step = (shape.rows + shape.columns * products * weights / (problem.n * problem.k * products * item)) * shape.depth
    cached = tiles * problem.k / shape.depth * step * item
    ahead = max(1, shape.stages - 1)
    waits = ceil(shape.share / shape.depth) / ahead + 1 + _joining(shape.split)
    flops = 2.0 * tiles * shape.rows * shape.columns * problem.k * products
    threads = shape.warps * _threads(device)
    guess = Block(
        FEW_REGISTERS + 24 + shape.rows * shape.columns * products // threads, int(ahead * step * item), shape.warps
    )
    work = Work(tiles * shape.split, weights + ends, cached, flops, problem.operand, waits, ahead * step * item)
    return [(work, guess)]


def _decode(body: Graph, knobs: Numbers, sizes: Bindings, device: Device) -> Works:
    attend, batch = _attend(body), 1
    kv = attend.kv
    assert isinstance(kv, KVType)
    token = (kv.k_dim + kv.v_dim) * _stored_bytes(kv)
    rows = attend.q.count // kv.heads
    ahead, found = max(1, knobs["stages"] - 1), []
    for tokens in CONTEXTS:
        tiles = ceil(tokens / knobs["tokens"])
        active = ceil(tiles / ceil(tiles / knobs["split"]))
        waits = ceil(tiles / active) / ahead + 2 + (2 + active * rows * kv.v_dim / 4096 if active > 1 else 0)
        total = batch * kv.heads * tokens * token
        work = Work(
            batch * kv.heads * active, total, total, 64.0 * tokens * kv.heads * (kv.k_dim + kv.v_dim),
            attend.q.dtype, waits, ahead * knobs["tokens"] * token,
        )  # fmt: skip
        held = (16 + 2 * knobs["tokens"]) * max(kv.k_dim, kv.v_dim) // (knobs["warps"] * _threads(device))
        found.append((work, Block(FEW_REGISTERS + held, int(ahead * knobs["tokens"] * token), knobs["warps"])))
    return found


def _flash(body: Graph, knobs: Numbers, sizes: Bindings, device: Device) -> Works:
    attend = _attend(body)
    width = attend.q.size
    item = item_bytes(attend.q.dtype)
    blocks = ceil(PROMPT / knobs["queries"]) * attend.q.count
    seen = PROMPT / 2 if attend.causal else PROMPT
    ahead = max(1, knobs["stages"] - 1)
    step = knobs["tokens"] * 2 * width * item
    flops = 4.0 * blocks * knobs["queries"] * seen * width
    total = 4 * PROMPT * attend.q.count * width * item
    waits = seen / knobs["tokens"] / ahead + 2
    threads = knobs["warps"] * _threads(device)
    held = (knobs["queries"] * (2 * width + knobs["tokens"]) + knobs["tokens"] * width) // threads
    work = Work(blocks, total, blocks * seen * 2 * width * item, flops, attend.q.dtype, waits, ahead * step)
    return [(work, Block(FEW_REGISTERS + held, int(ahead * step), knobs["warps"]))]


_MODELS: Mapping[str, Callable[[Graph, Numbers, Bindings, Device], Works]] = {
    "matvec": _matvec,
    "gemm": _gemm,
    "attention_decode": _decode,
    "attention_flash": _flash,
}


def _problem(body: Graph, device: Device) -> Problem:
    region = linear_region.parse(body)
    assert region is not None, f"{body.name} has no linear"
    return problem_of(region, device)


def _attend(body: Graph) -> Attend:
    region = attention_region.parse(body)
    assert region is not None and region.attend is not None, f"{body.name} has no attention"
    return region.attend


def _weight_bytes(problem: Problem) -> float:
    return float(sum(int(str(tensor_bytes(p.weight.value.tensor))) for p in problem.region.products))


def _stored_bytes(kv: KVType) -> float:
    """Bytes of an element of a state, about."""
    return {"token8": 1.0, "token4": 0.5}.get(kv.code or "", 0.5) if kv.code else float(item_bytes(kv.dtype))


def _joining(split: int) -> float:
    """Loads that the last of the programs that share a sum waits for."""
    return 2.0 + sqrt(split) if split > 1 else 0.0


def _threads(device: Device) -> int:
    return device.gpu.warp_threads if device.gpu is not None else 32


def picks(
    knobs: Knobs, near: Callable[[Knobs], list[Knobs]], seconds: Callable[[Knobs], float], count: int
) -> list[Knobs]:
    """The best schedules by the model, walking from `knobs` to whichever neighbour is fastest, until none is."""
    known: dict[tuple[tuple[str, Choice], ...], float] = {}

    def cost(one: Knobs) -> float:
        key = tuple(sorted(one.items()))
        if key not in known:
            known[key] = seconds(one)
        return known[key]

    here, default = knobs, cost(knobs)
    while (best := min(near(here), key=cost, default=here)) is not here and cost(best) < cost(here):
        here = best
    ranked = sorted((value, key) for key, value in known.items() if value < default)
    return [dict(key) for _, key in ranked[:count]]
