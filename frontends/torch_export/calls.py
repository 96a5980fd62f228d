"""The safety net: an operator without a rule stays in the graph as a `torch.call` with the aten name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from irx.errors import ExportFailed
from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import IGNORED
from irx.ir.dims import SymDim
from irx.ir.graph import Value
from irx.ir.opdef import Attr, Operand
from irx.ir.types import TensorType


def torch_call(site: Site, target: str, arguments: dict[str, Any]) -> tuple[Value, ...]:
    """Add `torch.call`: tensors become operands, everything else plain data with `Operand(i)` in their places.

    Raises ExportFailed where an argument or a result is no plain data.
    """
    operands: list[Value] = []
    kept = {name: value for name, value in arguments.items() if name not in IGNORED}
    kwargs = tuple((name, _attribute(value, operands, site, target)) for name, value in kept.items())
    node = site.graph.add(
        "torch.call",
        operands,
        {"target": target, "args": (), "kwargs": kwargs, "results": _tensors(site, target)},
        loc=site.loc,
        names=[target.split(".")[1]] * len(site.results),
    )
    return node.outputs


def _tensors(site: Site, target: str) -> tuple[TensorType, ...]:
    found = tuple(result for result in site.results if result is not None)
    if len(found) != len(site.results) or not found:
        raise ExportFailed(
            f"{target} has results that are not tensors, and IRX has no rule for it", where=str(site.loc)
        )
    return found


def _attribute(value: Any, operands: list[Value], site: Site, target: str) -> Attr:
    if isinstance(value, Value):
        operands.append(value)
        return Operand(len(operands) - 1)
    if isinstance(value, (list, tuple)):
        return tuple(_attribute(item, operands, site, target) for item in value)
    if value is None or isinstance(value, (bool, int, float, str, SymDim)):
        return value
    if isinstance(value, torch.dtype):
        return str(value)
    raise ExportFailed(f"{target} takes a {type(value).__name__}, which IRX cannot write down", where=str(site.loc))


def listed(results: Sequence[Any]) -> tuple[Any, ...]:
    """The tensors of an operator's result: one, several, or a list of them."""
    flat: list[Any] = []
    for result in results:
        flat.extend(result if isinstance(result, (list, tuple)) else [result])
    return tuple(flat)
