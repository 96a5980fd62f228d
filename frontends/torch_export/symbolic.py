"""Arithmetic on sizes that leaves the integers: `1 / math.sqrt(x.shape[-1])` becomes a few scalar operations."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from irx.errors import ExportFailed
from irx.frontends.torch_export.site import Site
from irx.ir.graph import Value

_OPERATORS: dict[Any, str] = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.pow: "pow",
    operator.neg: "neg",
    math.sqrt: "sqrt",
    math.log: "log",
    math.exp: "exp",
    getattr(torch, "_sym_sqrt", math.sqrt): "sqrt",
    getattr(torch, "_sym_log", math.log): "log",
    torch.sym_max: "maximum",
    torch.sym_min: "minimum",
}


def float_of_sizes(site: Site, target: Any, operands: list[Any]) -> Value:
    """A float computed from sizes, as a tensor without axes. Raises ExportFailed for a function that is not known."""
    values = [site.cast(site.value(operand), "f64") for operand in operands]
    if target in (torch.sym_float, float):
        return values[0]
    op = _OPERATORS.get(target)
    if op is None:
        raise ExportFailed(f"{target} of a size is not known", where=str(site.loc))
    return site(op, *values)
