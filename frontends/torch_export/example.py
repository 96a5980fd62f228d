"""Example inputs: bound to the names of `forward`, sizes of 1 enlarged, dynamic axes chosen.

Export takes a size of 1 for a constant, so every dynamic axis of size 1 is repeated to 2 (the batch) or 3 (others):
different numbers, so that no two sizes look equal by accident. Integer and bool tensors are dynamic in their first two
axes, float tensors in the first, and in the second where they have two or three: `[B, S, D]`. Whether an axis can
really vary is what torch finds out; one that the model fixes stays a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from irx.errors import ExampleMismatch

ExampleLike: TypeAlias = "torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]"


@dataclass
class Example:
    """Arguments of one call. `enlarged` lists (argument, axis) that had size 1; `shapes` is the dynamic-shapes tree."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ()
    shapes: dict[str, Any] | None = None
    enlarged: list[tuple[str, int]] = field(default_factory=list)

    def named(self) -> dict[str, Any]:
        """All arguments by name, in the order of `forward`."""
        return dict(zip(self.names, self.args, strict=False)) | self.kwargs


def bind_example(model: torch.nn.Module, example: ExampleLike) -> Example:
    """The example as a call of `model.forward`. Raises ExampleMismatch where the names or the number do not fit."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = dict(example)
    else:
        args = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ExampleMismatch(
            f"the example does not fit {type(model).__name__}.forward: {error}",
            fix=f"its arguments are {', '.join(signature.parameters)}",
        ) from None
    names: list[str] = []
    for name in bound.arguments:
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(len(bound.arguments[name]))]
        elif len(names) < len(args):
            names.append(name)
    return Example(args, kwargs, tuple(names[: len(args)]))


def dynamic_example(example: Example) -> Example:
    """The example with dynamic axes marked and sizes of 1 on them enlarged."""
    batches = [t.shape[0] for t in pytree.tree_leaves(example.named()) if isinstance(t, torch.Tensor) and t.dim()]
    batch = max(batches, default=1)
    made = Example(example.args, dict(example.kwargs), example.names, {}, [])
    values = {name: _prepare(made, name, value, batch) for name, value in example.named().items()}
    made.args = tuple(values[name] for name in example.names)
    made.kwargs = {name: values[name] for name in example.kwargs}
    return made


def _prepare(made: Example, name: str, value: Any, batch: int) -> Any:
    """One argument, enlarged; its dynamic axes are entered in `made.shapes` in the same nesting."""
    leaves, tree = pytree.tree_flatten(value)
    results, shapes = [], []
    for leaf in leaves:
        axes = dynamic_axes(leaf) if isinstance(leaf, torch.Tensor) else ()
        # A batch of 1 beside larger ones is there to be broadcast.
        axes = tuple(axis for axis in axes if axis > 0 or leaf.shape[0] == batch)
        small = [axis for axis in axes if leaf.shape[axis] == 1]
        made.enlarged += [(name, axis) for axis in small]
        for axis in small:
            leaf = torch.cat([leaf] * (2 if axis == 0 else 3), axis)
        results.append(leaf)
        shapes.append(dict.fromkeys(axes, Dim.AUTO) if axes else None)
    assert made.shapes is not None
    made.shapes[name] = pytree.tree_unflatten(shapes, tree)
    return pytree.tree_unflatten(results, tree)


def dynamic_axes(tensor: torch.Tensor) -> tuple[int, ...]:
    """The axes of an input that may vary from call to call, by its dtype and rank."""
    rank = tensor.dim()
    sequence = rank >= 2 and (not tensor.is_floating_point() or rank <= 3)
    return tuple(range(rank))[: 2 if sequence else 1]
