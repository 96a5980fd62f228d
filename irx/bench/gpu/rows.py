"""The rows of the GPU bench: decoding, prefill and attention, against PyTorch's compiler and against the floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from irx.bench.gpu.ours import made_for
from irx.bench.gpu.rival import Model, decode_step, prefill_step
from irx.bench.lab import irx_decode, irx_prefill, parsed
from irx.bench.programs import shape
from irx.bench.result import Result, verdict
from irx.bench.timing import samples, spread, summary
from irx.ir.program import Program
from irx.target import Device

CONTEXT, PROMPT, LONG = 512, 2048, 32768
CALLS = 16  # between two waits for the GPU: a wait costs more than a small step
SETTLING = 5  # calls before anything is timed
COPIED = 1 << 30
SIZES = {"B": 1, "S": 1, "R": 1, "T": CONTEXT}
FOUR_BITS = "default | quantize-weights{bits=4}"
CLOSE = 0.05  # of the largest logit: two ways to round in bf16


@dataclass
class Bench:
    """One run on one GPU. Models are made when they are first asked for; `tell` hears what is being done.

    `search` is how many seconds are spent on schedules of a program's kernels, 0 for none.
    """

    device: Device
    rounds: int
    turn: float
    search: float
    tell: Callable[[str], object]
    place: str = "cuda"
    _kept: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def program(self, name: str) -> Program:
        """A shipped shape with its weights."""
        found: Program = self.keep(("program", name), lambda: shape(name))
        return found

    def ours(self, name: str, pipeline: str = "default") -> Any:
        """The shape compiled for this GPU, with schedules searched for first."""
        made = partial(made_for, self.program(name), self.device, pipeline, self.search)
        return self.keep(("ours", name, pipeline), made)

    def theirs(self, name: str, capacity: int, four_bits: bool = False) -> tuple[Any, Any]:
        """The shape in PyTorch, as it is and compiled for its sizes alone; what was compiled before is forgotten."""
        model = self.keep(
            ("theirs", name, capacity, four_bits), lambda: Model(self.program(name), capacity, self.place, four_bits)
        )
        torch._dynamo.reset()  # else sizes of other rows make this one's dynamic, and recompilations are counted
        return model, torch.compile(model, mode="max-autotune", fullgraph=True, dynamic=False)

    def ids(self, name: str, count: int) -> Tensor:
        """The same random tokens i64 [1, count] for every candidate."""
        words = int(self.program(name).meta["vocab"])
        found = torch.randint(0, words, (1, count), generator=torch.Generator().manual_seed(0))
        return found.to(self.place)

    def seconds(self, steps: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
        """Seconds of a call of each, one figure a round."""
        for step in steps.values():  # compiling and recording graphs are no part of what is timed
            for _ in range(SETTLING):
                step()
            self.wait()
        made = {name: self._many(step) for name, step in steps.items()}
        found = samples(made, rounds=self.rounds, turn=self.turn)
        return {name: [value / CALLS for value in values] for name, values in found.items()}

    def bandwidth(self) -> float:
        """Bytes a second of a copy in the GPU's memory, read and written."""
        return float(self.keep(("bandwidth",), self._copy))

    def keep(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What is made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def wait(self) -> None:
        """Until the GPU is done."""
        if self.place == "cuda":
            torch.cuda.synchronize()

    def _many(self, step: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                step()
            self.wait()

        return run

    def _copy(self) -> float:
        source = torch.ones(COPIED if self.place == "cuda" else 1 << 20, dtype=torch.uint8, device=self.place)
        target = torch.empty_like(source)
        found = self.seconds({"copy": lambda: target.copy_(source)})["copy"]
        return 2 * source.numel() / summary(found).median


@dataclass(frozen=True)
class Case:
    """One comparison: a shape, a pipeline, and how many times faster it is to be."""

    what: str
    name: str
    pipeline: str
    wanted: float
    tokens: int
    prefill: bool = False


CASES = (
    Case("SmolLM2 shape, bf16, decode", "smollm2-135m", "default", 2.0, CONTEXT),
    Case("1B shape, bf16, decode", "llama-1b", "default", 1.15, CONTEXT),
    Case("1B shape, bf16, prefill", "llama-1b", "default", 1.0, PROMPT, prefill=True),
    Case("1B shape, 4 bits, decode", "llama-1b", FOUR_BITS, 1.3, CONTEXT),
)


Measure: TypeAlias = "Callable[[Bench, Result], Result]"


def planned() -> list[tuple[Result, Measure]]:
    """All rows, without figures, and how each is measured; those of one program stand together."""
    found: list[tuple[Result, Measure]] = [
        (Result("gpu", case.what, case.pipeline, case.wanted, "x"), partial(compare, case)) for case in CASES
    ]
    found.insert(2, (Result("gpu", "1B shape, bf16, decode", "default", 70.0, "%"), share))
    found.insert(3, (Result("gpu", "1B shape, attention at 32k", "default", 90.0, "%"), attention))
    return found


def measured(bench: Bench, number: int) -> Result:
    """One of the rows that are planned; one that fails says why."""
    row, measure = planned()[number]
    return _guarded(row, partial(measure, bench))


def compare(case: Case, bench: Bench, row: Result) -> Result:
    """IRX against PyTorch's compiler."""
    ids = bench.ids(case.name, case.tokens)
    fast = bench.ours(case.name, case.pipeline)
    four_bits = case.pipeline == FOUR_BITS
    plain, compiled = bench.theirs(case.name, case.tokens + 8, four_bits)
    ours = (irx_prefill if case.prefill else irx_decode)(fast, ids)
    with torch.no_grad():
        rival, other = (_rival_step(case, plain, step, ids) for step in (compiled, plain))
        reference = other().clone()
        error = _difference(ours(), reference)
        if error > CLOSE and not four_bits:  # two ways to quantize differ by more
            return row.without("wrong", f"the results differ by {error:.2g} of the largest logit")
        taken = bench.seconds({"irx": ours, "inductor": rival})
    ratios = [theirs / mine for theirs, mine in zip(taken["inductor"], taken["irx"], strict=True)]
    figure = spread(ratios)
    facts: dict[str, Any] = {"ours": summary(taken["irx"]), "theirs": summary(taken["inductor"]), "rival": "Inductor"}
    facts |= {"floor": _floor(bench, fast, case), "note": "" if case.prefill else _launches(bench, fast)}
    return row.measured(figure, verdict(figure, row.wanted), error=error, **facts)


def share(bench: Bench, row: Result) -> Result:
    """The bytes of a decode step over its time, as a share of what a copy moves."""
    fast = bench.ours("llama-1b")
    step = irx_decode(fast, bench.ids("llama-1b", CONTEXT))
    taken = bench.seconds({"irx": step})["irx"]
    moved = _bytes(bench, fast, CONTEXT)
    figure = spread([100 * moved / seconds / bench.bandwidth() for seconds in taken])
    facts = {"ours": summary(taken), "bandwidth": f"{bench.bandwidth() / 1e9:.0f} GB/s (a copy)"}
    return row.measured(figure, verdict(figure, row.wanted), floor=moved / bench.bandwidth(), **facts)


def attention(bench: Bench, row: Result) -> Result:
    """What 32k tokens of context cost beyond 512, against reading their keys and values once."""
    fast = bench.ours("llama-1b")
    steps = {str(n): irx_decode(fast, bench.ids("llama-1b", n)) for n in (CONTEXT, LONG - 8)}
    taken = bench.seconds(steps)
    moved = _bytes(bench, fast, LONG - 8) - _bytes(bench, fast, CONTEXT)
    long, short = taken[str(LONG - 8)], taken[str(CONTEXT)]
    figure = spread([100 * moved / bench.bandwidth() / (a - b) for a, b in zip(long, short, strict=True)])
    note = "what the longer context adds to a step, all layers"
    return row.measured(figure, verdict(figure, row.wanted), floor=moved / bench.bandwidth(), note=note)


def _rival_step(case: Case, plain: Any, model: Any, ids: Tensor) -> Callable[[], Tensor]:
    """PyTorch's step by `model`, which is `plain` or what was compiled of it: they share the cache."""
    return prefill_step(model, ids) if case.prefill else decode_step(plain, model, ids)


def _guarded(row: Result, measure: Callable[[Result], Result]) -> Result:
    try:
        return measure(row)
    except Exception as error:  # whatever a rival or a kernel raises belongs into its row
        return row.without("absent", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _floor(bench: Bench, fast: Any, case: Case) -> float:
    from irx.analysis.roofline import graph_floor

    graph = parsed(fast).graphs["prefill" if case.prefill else "decode"]
    sizes = {"B": 1, "S": case.tokens, "R": 1, "T": case.tokens}
    return graph_floor(graph, bench.device, sizes).seconds


def _launches(bench: Bench, fast: Any) -> str:
    """The launches of a step and both floors, where kernels are launched."""
    from irx.backends.triton.plan import Plan
    from irx.backends.triton.report import step_launches

    plan = fast.graphs["decode"]
    return str(step_launches(plan.steps, bench.device, SIZES)) if isinstance(plan, Plan) else ""


def _bytes(bench: Bench, fast: Any, tokens: int) -> int:
    from irx.analysis.roofline import graph_floor

    graph = parsed(fast).graphs["decode"]
    return graph_floor(graph, bench.device, {"B": 1, "T": tokens}).work.bytes


def _difference(ours: Tensor, theirs: Tensor) -> float:
    a, b = ours.float().flatten()[-theirs.numel() :], theirs.float().flatten()
    return float((a - b).abs().max() / b.abs().max())
