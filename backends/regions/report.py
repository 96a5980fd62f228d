"""What the backend decided for a graph, as rows of the ledger: kernels, what is left to torch, memory."""

from __future__ import annotations

from collections.abc import Sequence

from irx.backends.regions.buffers import Buffers
from irx.backends.regions.steps import Step, Steps
from irx.ir.dims import Dim, evaluate
from irx.ir.opdef import tensor_bytes
from irx.ir.sizes import used_sizes
from irx.ledger import KEPT, Miss, Row

_PLACES = 8
_EXAMPLE = 128  # what every named size but the batch stands for where bytes are shown


def rows(steps: Steps, buffers: Buffers) -> list[Row]:
    """The rows of one graph; their step number is 0, whoever collects them counts on."""
    return [*_kernel_rows(steps), _partition(steps), _memory(steps, buffers)]


def fallbacks(steps: Steps) -> dict[str, str]:
    """Why torch runs a node, by node."""
    return {f"@{steps.graph.name}: {s.site.node!r}": s.reason for s in steps.steps if s.lowered is None}


def _kernel_rows(steps: Steps) -> list[Row]:
    """One row for every choice of kernels."""
    groups: dict[str, list[Step]] = {}
    for step in steps.steps:
        if step.lowered is not None:
            names = dict.fromkeys(kernel.name for kernel in step.lowered.kernels)
            note = f" ({step.lowered.note})" if step.lowered.note else ""
            groups.setdefault(f"{step.site.name}: {', '.join(names)}{note}", []).append(step)
    return [
        Row(0, "choose-kernels", "lower", "rounding", KEPT, what, (steps.graph.name,), len(found), _places(found))
        for what, found in groups.items()
    ]


def _partition(steps: Steps) -> Row:
    left = [step for step in steps.steps if step.lowered is None]
    misses = tuple(Miss(steps.graph.name, step.site.place or step.site.name, step.reason) for step in left)
    what = f"{len(steps.steps) - len(left)} regions to kernels, {len(left)} to torch"
    return Row(0, "partition", "lower", "exact", KEPT, what, (steps.graph.name,), len(steps.steps), near_misses=misses)


def _memory(steps: Steps, buffers: Buffers) -> Row:
    """Buffers with reuse beside what they would take without, at an example of sizes."""
    sizes = {name: 1 if name == "B" else _EXAMPLE for name in used_sizes(steps.graph)}

    def size(dim: Dim) -> int:
        return evaluate(dim, sizes)

    planned = buffers.offsets(size)[1]
    alone = sum(size(tensor_bytes(value.tensor)) for value in buffers.slots)
    shown = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    what = f"{len(buffers.slots)} values in {len(buffers.sizes)} buffers: {_mb(planned)} instead of {_mb(alone)}"
    what += f" at {shown}" if shown else ""
    return Row(0, "plan-memory", "lower", "exact", KEPT, what, (steps.graph.name,), len(buffers.slots))


def _places(steps: Sequence[Step]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(step.site.place or step.site.name for step in steps))[:_PLACES]


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
