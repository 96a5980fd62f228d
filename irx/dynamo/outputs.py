"""The results of a call as Dynamo's graph would have given them: the same memory shared, the same strides.

What is memory of an argument is made from the argument; integers are computed from sizes; a tensor that IRX lays out
in another way is copied; and one that shares memory only because IRX dropped an operation becomes a copy too, as the
caller may write into it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from irx.dynamo.sizes import Place
from irx.dynamo.tracing import Trace
from irx.errors import ExportFailed
from irx.frontends.torch_export.translate import Translation
from irx.ir.dims import Bindings, Dim, SymDim, evaluate
from irx.ir.graph import Graph, Value

Make: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Any]
"""`make(computed, args)`: one result of the call, of the graph's outputs and the arguments."""

BINDINGS_KEPT = 64

# Ops whose kernels may give a view of their first operand; a function of torch may give one of any.
_VIEWS = frozenset({"reshape", "permute", "expand", "slice", "cast", "take", "torch.call"})


@dataclass(frozen=True)
class Output:
    """One result. With a `name` it is that output of the graph; with an `argument`, memory of that; else a `value`.

    `storage` tells which results share memory in Dynamo's graph.
    """

    name: str | None = None
    argument: int | None = None
    value: Any = None
    shape: tuple[Dim, ...] = ()
    strides: tuple[Dim, ...] = ()
    offset: Dim = 0  # from where the argument starts
    storage: int = 0


def describe_outputs(trace: Trace, translation: Translation) -> list[Output]:
    """How every result of the traced graph is made. Raises ExportFailed for one that IRX cannot give."""
    owners = {
        _storage(node.meta["val"]): i
        for i, node in reversed(list(enumerate(trace.placeholders)))
        if isinstance(node.meta["val"], Tensor)
    }
    pairs = zip(trace.outputs, translation.outputs, strict=True)
    return [_describe(trace, translation, owners, fake, made) for fake, made in pairs]


def _describe(trace: Trace, translation: Translation, owners: Mapping[int, int], fake: Any, made: Any) -> Output:
    if not isinstance(fake, Tensor):
        if isinstance(made, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise ExportFailed(f"a result is {made}, which is no size")
        return Output(value=made)
    sizes, storage = translation.sizes, _storage(fake)
    shape, strides = sizes.shape(fake.shape), sizes.shape(fake.stride())
    if storage not in owners:
        return Output(name=made, shape=shape, strides=strides, storage=storage)
    argument = owners[storage]
    start = sizes.dim(trace.placeholders[argument].meta["val"].storage_offset())
    return Output(None, argument, None, shape, strides, sizes.dim(fake.storage_offset()) - start, storage)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# --- making them ----------------------------------------------------------------------------------------------------


class Results:
    """Makes the results of calls of one compiled graph.

    `sizes` says where named sizes are found, `names` are those of the graph's outputs in order, `copied` those of them
    that must be copied because they share memory.
    """

    def __init__(
        self, outputs: Sequence[Output], sizes: Mapping[str, Place], names: Sequence[str], copied: set[str]
    ) -> None:
        self._outputs, self._names, self._copied = outputs, names, copied
        self._size_names, self._places = tuple(sizes), tuple(sizes.values())
        self._makers: OrderedDict[tuple[int, ...], list[Make]] = OrderedDict()

    def make(self, computed: Sequence[Any], args: Sequence[Any]) -> tuple[Any, ...]:
        """What the call returns, from what the graph computed for its arguments."""
        sizes = tuple([place.read(args) for place in self._places])
        makers = self._makers.get(sizes)
        if makers is None:
            makers = self._new_makers(sizes)
        return tuple([maker(computed, args) for maker in makers])

    def _new_makers(self, sizes: tuple[int, ...]) -> list[Make]:
        if len(self._makers) >= BINDINGS_KEPT:
            self._makers.popitem(last=False)
        bindings = dict(zip(self._size_names, sizes, strict=True))
        made = self._makers[sizes] = [self._maker(output, bindings) for output in self._outputs]
        return made

    def _maker(self, output: Output, sizes: Bindings) -> Make:
        shape, strides = (tuple(evaluate(d, sizes) for d in dims) for dims in (output.shape, output.strides))
        if output.argument is not None:
            return _argument(output.argument, shape, strides, evaluate(output.offset, sizes))
        if output.name is not None:
            return _computed(self._names.index(output.name), strides, output.name in self._copied)
        value = evaluate(output.value, sizes) if isinstance(output.value, SymDim) else output.value
        return lambda computed, args: value


def _argument(index: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Make:
    def make(computed: Sequence[Any], args: Sequence[Any]) -> Any:
        given = args[index]
        if offset == 0 and given.shape == shape and given.stride() == strides:
            return given.detach() if given.requires_grad else given
        return given.detach().as_strided(shape, strides, given.storage_offset() + offset)

    return make


def _computed(position: int, strides: tuple[int, ...], copied: bool) -> Make:
    def make(computed: Sequence[Any], args: Sequence[Any]) -> Any:
        found = computed[position]
        if copied:
            found = found.clone()
        return found if found.stride() == strides else _laid_out(found, strides)

    return make


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The tensor with these strides, where an element has a place of its own by them."""
    axes = zip(tensor.shape, tensor.stride(), strides, strict=True)
    differing = [wanted for size, stride, wanted in axes if size > 1 and stride != wanted]
    if not differing or 0 in differing:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


# --- memory that results share --------------------------------------------------------------------------------------


def sharing(graph: Graph, outputs: Sequence[Output], mutated: Sequence[str]) -> set[str]:
    """Names of the graph's outputs that may share memory with an input, or with an output of another storage.

    Among them are the new contents of `mutated` inputs, which are written one after the other.
    """
    values = dict(zip(graph.output_names, graph.outputs, strict=True))
    inputs = set(graph.inputs)
    first: dict[Value, int] = {}
    found: set[str] = set()
    for output in outputs:
        if output.name is None:
            continue
        roots = _roots(values[output.name])
        if roots & inputs or any(first.setdefault(root, output.storage) != output.storage for root in roots):
            found.add(output.name)
    return found | {name for name in mutated if _roots(values[name]) & inputs}


def _roots(value: Value) -> set[Value]:
    """The values whose memory this one may be."""
    pending, roots = [value], set()
    while pending:
        current = pending.pop()
        node = current.producer
        if node is None or node.op.name not in _VIEWS:
            roots.add(current)
            continue
        pending += [v for v in (node.inputs if node.op.name == "torch.call" else node.inputs[:1]) if v is not None]
    return roots
