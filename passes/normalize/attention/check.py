"""Does a raised attention compute what was spelled out? Both are evaluated on random operands.

Masks that depend on inputs are drawn so that every row sees its first key: what a row gives that sees nothing is not
defined by the spellings, which divide zero by zero or take a mean over what is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from irx.analysis.structure import extract
from irx.analysis.values import ValueFree
from irx.errors import IRXError, NoReference, UnboundWeight
from irx.ir.dims import evaluate
from irx.ir.graph import Value, Weight
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import is_float
from irx.passes.normalize.attention.additive import Condition
from irx.rewrite.check import Evaluate, difference, small_sizes


def raised_error(
    old: Value,
    new: Value,
    leaves: Sequence[Value],
    masks: Sequence[Condition],
    program: Program,
    free: ValueFree,
    oracle: Evaluate,
) -> float | None:
    """max|new - old| / max|old|; None where the oracle lacks torch, infinite where a part cannot be evaluated.

    `leaves` are the operands of the attention; of `masks` those that depend on inputs are leaves as well. Weights that
    others are computed from, as tables of masks, are taken as they are.
    """
    given = {condition.value: condition for condition in masks if condition.value not in free}
    names: dict[Value, str] = {}
    ends = {*leaves, *given}
    before, after = extract([old], ends, names), extract([new], ends, names)
    bindings = small_sizes(program.sizes)
    generator = np.random.default_rng(0)
    try:
        arrays = {
            name: program.weights.array(value)
            if isinstance(value, Weight) and value not in ends
            else _random(generator, value, given.get(value), bindings)
            for value, name in names.items()
        }
        results = [oracle(part, {v.name: arrays[v.name] for v in part.inputs}, bindings)[0] for part in (before, after)]
    except (NoReference, UnboundWeight):
        return None
    except (IRXError, ArithmeticError, LookupError, ValueError):
        return math.inf
    return difference(results[1], results[0])


def _random(generator: np.random.Generator, value: Value, mask: Condition | None, sizes: Mapping[str, int]) -> Array:
    shape = tuple(evaluate(dim, sizes) for dim in value.shape)
    if is_float(value.dtype):
        return generator.standard_normal(shape)
    drawn: Any = generator.integers(0, 2, shape).astype(bool if value.dtype == "bool" else np.int64)
    if mask is not None:
        drawn[..., 0] = not mask.inverted
    return np.asarray(drawn)
