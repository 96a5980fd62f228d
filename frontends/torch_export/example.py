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
    """Arguments of one call of a function with `signature`.

    `axes` has the dynamic axes of every argument by name, in the argument's own nesting (None: all sizes are the
    example's). `enlarged` lists (argument, axis) that had size 1.
    """

    signature: inspect.Signature
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    axes: dict[str, Any] | None = None
    enlarged: list[tuple[str, int]] = field(default_factory=list)

    def named(self) -> dict[str, Any]:
        """All arguments by name, in the order of `forward`; those of `*args` are numbered."""
        named: dict[str, Any] = {}
        for name, value in self.signature.bind(*self.args, **self.kwargs).arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                named |= {f"{name}_{i}": item for i, item in enumerate(value)}
            else:
                named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return named

    def dynamic_shapes(self) -> dict[str, Any] | None:
        """`axes` as `torch.export` wants it: nested as the signature binds the arguments."""
        if self.axes is None:
            return None
        shapes: dict[str, Any] = {}
        for name, value in self.signature.bind(*self.args, **self.kwargs).arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                shapes[name] = tuple(self.axes[f"{name}_{i}"] for i in range(len(value)))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                shapes[name] = {key: self.axes[key] for key in value}
            else:
                shapes[name] = self.axes[name]
        return shapes

    def rebuilt(self, values: Mapping[str, Any]) -> Example:
        """The same call with other values, given by name."""
        names = list(self.named())
        args = tuple(values[name] for name in names[: len(self.args)])
        return Example(self.signature, args, {name: values[name] for name in self.kwargs})


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
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ExampleMismatch(
            f"the example does not fit {type(model).__name__}.forward: {error}",
            fix=f"its arguments are {', '.join(signature.parameters)}",
        ) from None
    return Example(signature, args, kwargs)


def dynamic_example(example: Example) -> Example:
    """The example with dynamic axes marked and sizes of 1 on them enlarged."""
    tensors = (t for t in pytree.tree_leaves(example.named()) if isinstance(t, torch.Tensor) and t.dim())
    batch = max((t.shape[0] for t in tensors), default=1)
    values: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    enlarged: list[tuple[str, int]] = []
    for name, value in example.named().items():
        leaves, tree = pytree.tree_flatten(value)
        chosen = [_chosen(leaf, batch) for leaf in leaves]
        enlarged += [(name, axis) for leaf, own in zip(leaves, chosen) for axis in own if leaf.shape[axis] == 1]
        values[name] = pytree.tree_unflatten([_enlarge(*pair) for pair in zip(leaves, chosen)], tree)
        axes[name] = pytree.tree_unflatten([dict.fromkeys(own, Dim.AUTO) or None for own in chosen], tree)
    made = example.rebuilt(values)
    made.axes, made.enlarged = axes, enlarged
    return made


def _chosen(leaf: Any, batch: int) -> tuple[int, ...]:
    """Dynamic axes of one leaf. A batch of 1 beside larger ones is there to be broadcast."""
    axes = dynamic_axes(leaf) if isinstance(leaf, torch.Tensor) else ()
    return tuple(axis for axis in axes if axis > 0 or leaf.shape[0] == batch)


def _enlarge(leaf: Any, axes: tuple[int, ...]) -> Any:
    for axis in axes:
        if leaf.shape[axis] == 1:
            leaf = torch.cat([leaf] * (2 if axis == 0 else 3), axis)
    return leaf


def dynamic_axes(tensor: torch.Tensor) -> tuple[int, ...]:
    """The axes of an input that may vary from call to call, by its dtype and rank."""
    rank = tensor.dim()
    sequence = rank >= 2 and (not tensor.is_floating_point() or rank <= 3)
    return tuple(range(rank))[: 2 if sequence else 1]
