"""How long something takes, as far as it was measured, and for which sizes that is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from irx.errors import UnsupportedArgument
from irx.ir.graph import Graph
from irx.ir.program import Program
from irx.ir.sizes import used_sizes
from irx.ir.types import KVType

CONTEXT = 128
"""Tokens that a step is timed behind, and that an encoder reads, where nobody says how many."""
ROWS = 128  # of a prompt that is timed behind them
CAPACITY = "T"  # what the size of states that state none is called


@dataclass(frozen=True)
class Latency:
    """Seconds, and the band within which two measurements of the same thing lie."""

    seconds: float
    noise: float


Again: TypeAlias = Callable[[Sequence[Graph]], Sequence[Latency]]
"""The latencies of several graphs, taken now and in turns; none where nothing is measured."""


def timed_sizes(graph: Graph, context: int) -> dict[str, int]:
    """The named sizes of a call with a batch of one, in which states hold `context` tokens."""
    behind = any(isinstance(value.type, KVType) for value in graph.inputs)
    rows = min(context, ROWS) if behind else context
    return {name: 1 if name in ("B", "R") else rows for name in used_sizes(graph)} | {CAPACITY: context}


def timed_context(context: Any, program: Program) -> int:
    """The tokens that steps are timed behind. Raises UnsupportedArgument where the model has no room for a step."""
    if context is None:
        return CONTEXT
    most = program.meta.get("max_length") or math.inf
    if not isinstance(context, int) or not 0 < context < most:
        raise UnsupportedArgument(f"context={context!r} is no number of tokens from 1 to {most - 1}", fix="context=128")
    return context
