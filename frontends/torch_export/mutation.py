"""Operators that write in place, as values: a write makes a new value, and every view of the same memory sees it.

Torch's fake tensors share storages exactly where the real ones would, so what aliases what is read off the traced
graph. For each storage that is written to, the first node that has it is the root, and every other node with it is a
view made from another one. A write to a view is carried back to the root, view by view; views read afterwards are made
again from what they were taken of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from irx.errors import ExportFailed
from irx.frontends.torch_export.aten.indexing import select_scatter, slice_scatter
from irx.frontends.torch_export.aten.shape import transpose
from irx.frontends.torch_export.site import Site
from irx.ir.graph import Value

Read: TypeAlias = Callable[[fx.Node], Value]
Bind: TypeAlias = Callable[[fx.Node], dict[str, Any]]

# Views whose elements are those of their operand, in the same order.
_SAME_ORDER = frozenset(
    f"aten.{name}"
    for name in (
        "view.default reshape.default _unsafe_view.default view_as.default reshape_as.default flatten.using_ints "
        "unflatten.int unsqueeze.default squeeze.default squeeze.dim squeeze.dims alias.default detach.default "
        "detach_.default contiguous.default to.dtype to.dtype_layout to.device to.other type_as.default "
        "dropout.default lift_fresh.default"
    ).split()
)


class NotFunctional(ExportFailed):
    """The graph is not made of operators on values: it writes into memory in a way that this file does not follow, or
    holds function transforms. `torch` can decompose it."""


def written_argument(node: fx.Node) -> fx.Node | None:
    """The operand an operator writes into and returns; None for one that writes nothing."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return None
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if written != [0] or not node.args or not isinstance(node.args[0], fx.Node):
        raise NotFunctional(f"{node.target} writes into more than its first operand")
    return node.args[0]


def functional_name(target: Any) -> str:
    """`aten.add_.Tensor` as `aten.add.Tensor`."""
    space, name, overload = str(target).split(".")
    return f"{space}.{name.removesuffix('_')}.{overload}"


class Memory:
    """Who shares memory with whom, and which node holds the newest value of it."""

    def __init__(self, graph: fx.Graph) -> None:
        self._storage: dict[fx.Node, int] = {}
        self._root: dict[int, fx.Node] = {}
        self._taken_of: dict[fx.Node, fx.Node] = {}
        self._version: dict[int, int] = {}
        self._seen: dict[fx.Node, int] = {}
        written = [node for node in map(_written_or_none, graph.nodes) if node is not None]
        self.writes = bool(written)
        if self.writes:
            self._collect(graph, {_storage_of(node) for node in written})

    def _collect(self, graph: fx.Graph, storages: set[int | None]) -> None:
        for node in graph.nodes:
            storage = _storage_of(node)
            if storage is None or storage not in storages:
                continue
            self._storage[node] = storage
            self._version.setdefault(storage, 0)
            self._root.setdefault(storage, node)
            if node is not self._root[storage]:
                self._taken_of[node] = self._source(node, storage)

    def _source(self, node: fx.Node, storage: int) -> fx.Node:
        """The operand that a view was taken of."""
        for operand in node.all_input_nodes:
            if self._storage.get(operand) == storage:
                return operand
        raise NotFunctional(f"{node.target} returns memory of an operand's part")

    def is_stale(self, node: fx.Node) -> bool:
        """True where the memory was written to since the node's value was made."""
        storage = self._storage.get(node)
        return storage is not None and self._seen.get(node, 0) != self._version[storage]

    def source(self, node: fx.Node) -> fx.Node | None:
        """What a view was taken of; None for a root and for memory that is never written to."""
        return self._taken_of.get(node)

    def refreshed(self, node: fx.Node) -> None:
        """The node's value is the newest one."""
        if node in self._storage:
            self._seen[node] = self._version[self._storage[node]]

    def write(self, node: fx.Node, value: Value, read: Read, bind: Bind, site: Site) -> dict[fx.Node, Value]:
        """Values of `node` and of everything it was taken of after `value` was written into it. `read` gives values
        before the write, `bind` the arguments of a node by their schema's names."""
        values = {node: value}
        current = node
        while current in self._taken_of:
            source = self._taken_of[current]
            values[source] = _carried_back(site, current, bind, read(source), values[current])
            current = source
        self._version[self._storage[node]] += 1
        for changed in values:
            self.refreshed(changed)
        return values

    def written_roots(self) -> list[fx.Node]:
        """Roots that were written to: a written placeholder is an effect on the caller."""
        return [self._root[storage] for storage, version in self._version.items() if version > 0]


def _written_or_none(node: fx.Node) -> fx.Node | None:
    return None if _is_bookkeeping(node) else written_argument(node)


def _is_bookkeeping(node: fx.Node) -> bool:
    """In-place operators that change no element."""
    return node.target in (torch.ops.aten.detach_.default, torch.ops.aten.lift_fresh.default)


def _storage_of(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return int(value.untyped_storage()._cdata) if isinstance(value, torch.Tensor) else None


def _carried_back(site: Site, view: fx.Node, bind: Bind, base: Value, value: Value) -> Value:
    """`base` with the part that `view` shows replaced by `value`."""
    name = str(view.target)
    if name in _SAME_ORDER or written_argument(view) is not None:
        return site.reshape(value, base.shape)
    args = bind(view)
    if name == "aten.slice.Tensor":
        return slice_scatter(site, base, value, args["dim"], args["start"], args["end"], args["step"])
    if name == "aten.select.int":
        return select_scatter(site, base, value, args["dim"], args["index"])
    if name in ("aten.transpose.int", "aten.t.default"):
        return transpose(site, value, first=args.get("dim0", 0), second=args.get("dim1", -1))
    if name == "aten.permute.default":
        order = [site.axis(base, axis) for axis in args["dims"]]
        return site.permute(value, [order.index(axis) for axis in range(len(order))])
    raise NotFunctional(f"the model writes through {name}", where=str(site.loc))
