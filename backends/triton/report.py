"""What a plan is, as rows of the ledger: its kernels and what each takes, its launches beside both floors, memory."""

from __future__ import annotations

from collections.abc import Mapping

from irx.analysis.launches import Launches, launches
from irx.backends.regions import report
from irx.backends.regions.buffers import Buffers
from irx.backends.regions.steps import Step, Steps
from irx.backends.triton.chains import ChainSite
from irx.backends.triton.kernel import Kernel
from irx.backends.triton.resources import resource_rows
from irx.backends.triton.usage import Usage
from irx.ir.dims import Bindings, evaluate
from irx.ir.graph import Node
from irx.ir.sizes import used_sizes
from irx.ledger import KEPT, Row
from irx.target import Device

_EXAMPLE = 512  # what every named size but the batch stands for


def rows(steps: Steps, buffers: Buffers, usages: Mapping[str, Usage], device: Device) -> list[Row]:
    """The rows of one graph; their step number is 0, whoever collects them counts on."""
    named = {_title(kernel): usages[kernel.symbol] for kernel in _kernels(steps) if kernel.symbol in usages}
    found = [*report.rows(steps, buffers), *resource_rows(steps.graph.name, named, device)]
    return [*found, _launch_row(steps, device)] if device.is_gpu else found


def step_launches(steps: Steps, device: Device, sizes: Bindings) -> Launches:
    """The launches of one call with these sizes, and what they cost at least."""
    counts = [pair for step in steps.steps for pair in _counts(step, sizes)]
    return launches(steps.graph, device, sizes, counts)


def _launch_row(steps: Steps, device: Device) -> Row:
    sizes = {name: 1 if name in ("B", "R") else _EXAMPLE for name in (*used_sizes(steps.graph), "T")}
    shown = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    told = step_launches(steps, device, sizes)
    what = f"{told} at {shown}"
    return Row(0, "count-launches", "lower", "exact", KEPT, what, (steps.graph.name,), told.count)


def _counts(step: Step, sizes: Bindings) -> list[tuple[Node, int]]:
    """The kernels of a step; those of a chain are its first region's."""
    if not isinstance(step.site, ChainSite):
        return [(step.site.node, _count(step, sizes))]
    first, *rest = step.site.parts
    return [(first.node, _count(step, sizes)), *((part.node, 0) for part in rest)]


def _count(step: Step, sizes: Bindings) -> int:
    if step.lowered is None:
        return 1  # of torch's kernels at least one
    cases = step.lowered.cases
    return len(next(case for case in cases if case.most is None or evaluate(case.size, sizes) <= case.most).calls)


def _kernels(steps: Steps) -> list[Kernel]:
    found = [kernel for step in steps.steps if step.lowered is not None for kernel in step.lowered.kernels]
    return [kernel for kernel in dict.fromkeys(found) if isinstance(kernel, Kernel)]


def _title(kernel: Kernel) -> str:
    """The symbol, which is also the name of the kernel's files."""
    return f"{kernel.symbol} ({kernel.note})" if kernel.note else kernel.symbol
