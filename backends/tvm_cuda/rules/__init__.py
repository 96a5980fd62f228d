"""Rules of the path through TVM: products of a single row, and fused regions; what they leave, Triton's rules take.

What a region was made by is in the note of its kernels, and so is why TVM did not make them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from irx.backends.regions.lowered import Choices, Lowered, Refusal, Rule
from irx.backends.triton.rules import RULES as OTHERS
from irx.backends.tvm_cuda.kernel import CudaKernel
from irx.backends.tvm_cuda.rules import linear, regions
from irx.ir.graph import Graph

OWN: tuple[Rule, ...] = (linear.rule, regions.rule)


def rules(refused: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules in order, without the kernels that are refused, by symbol with the reasons."""
    reasons: dict[Graph, list[str]] = {}
    own = (partial(_through_tvm, rule, refused, reasons) for rule in OWN)
    return (*own, *(partial(_by_triton, rule, reasons) for rule in OTHERS))


def _through_tvm(
    rule: Rule, refused: Mapping[str, str], reasons: dict[Graph, list[str]], body: Graph, choices: Choices
) -> Lowered | None:
    """What the rule makes of a body. Raises Refusal."""
    try:
        lowered = rule(body, choices)
        own = [kernel for kernel in lowered.kernels if isinstance(kernel, CudaKernel)] if lowered is not None else []
        if (failed := next((k for k in own if k.symbol in refused), None)) is not None:
            raise Refusal(refused[failed.symbol])
    except Refusal as refusal:
        reasons.setdefault(body, []).append(str(refusal))
        raise
    return lowered and replace(lowered, note="; ".join(filter(None, ("through TVM", lowered.note))))


def _by_triton(
    rule: Callable[[Graph, Choices], Lowered | None], reasons: dict[Graph, list[str]], body: Graph, choices: Choices
) -> Lowered | None:
    """What Triton's rule makes of a body that TVM's path has left."""
    lowered = rule(body, choices)
    if lowered is None:
        return None
    why = f"not through TVM: {'; '.join(reasons[body])}" if body in reasons else "Triton's alone"
    return replace(lowered, note="; ".join(filter(None, (lowered.note, why))))
