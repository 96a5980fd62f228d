"""Functions of torch by their captured names: what a `torch.call` node runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from irx.errors import UnknownOp
from irx.ir.graph import Node
from irx.ir.opdef import Array, Operand
from irx.runtime.tensors import from_numpy, to_numpy

# Functions that read or write files by name: a program, which may come from anybody, has no business with them.
_FORBIDDEN = {"from_file"}
_WORDS = {f"torch.{name}": value for name in dir(torch) if isinstance(value := getattr(torch, name), torch.dtype)}


def resolve(target: str) -> torch._ops.OpOverload:
    """The operator `namespace.name.overload`. Raises UnknownOp where this torch has none of that name."""
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None) if name not in _FORBIDDEN else None
    found = getattr(packet, overload or "default", None)
    if not isinstance(found, torch._ops.OpOverload):
        known = [f"{namespace}.{name}.{each}" for each in packet.overloads()] if packet is not None else []
        raise UnknownOp(target, known, where="torch.call")
    return found


def bind_call(
    *, target: str, args: tuple[Any, ...] = (), kwargs: tuple[tuple[str, Any], ...] = (), results: tuple[Any, ...],
    device: torch.device,
) -> Callable[..., Any]:  # fmt: skip
    """A function of the operands that calls `target`: one tensor, or a tuple where there are several results."""
    function = resolve(target)
    positional = [_template(arg) for arg in args]
    named = {name: _template(value) for name, value in kwargs}
    if device.type != "cpu" and any(a.name == "device" for a in function._schema.arguments):
        named["device"] = _template(device)
    single = len(results) == 1

    def call(*operands: Tensor) -> Any:
        values = [fill(operands) for fill in positional]
        result = function(*values, **{name: fill(operands) for name, fill in named.items()})
        if isinstance(result, Tensor):
            return result
        flat = _flat(result)
        return flat[0] if single else flat

    return call


def is_random(target: str) -> bool:
    """True for an operator whose results differ from call to call."""
    return torch.Tag.nondeterministic_seeded in resolve(target).tags


def call_on_arrays(node: Node, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Run a `torch.call` node for the oracle: floats as they come, in float64."""
    tensors = [from_numpy(x) if hasattr(x, "dtype") else x for x in operands]
    with torch.no_grad():
        result = bind_call(**attrs, device=torch.device("cpu"))(*tensors)
    return [to_numpy(x) for x in (result if isinstance(result, tuple) else (result,))]


def _template(value: Any) -> Callable[[Sequence[Any]], Any]:
    """What gives an argument from the operands."""
    if isinstance(value, Operand):
        index = value.index
        return lambda operands: operands[index]
    if isinstance(value, tuple):
        parts = [_template(item) for item in value]
        return lambda operands: [part(operands) for part in parts]
    constant = _WORDS.get(value, value) if isinstance(value, str) else value
    return lambda operands: constant


def _flat(result: Any) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for item in result:
        found.extend(item if isinstance(item, (list, tuple)) else [item])
    return tuple(found)
