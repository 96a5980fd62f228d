"""Kernels as blocks of TVMScript: one block for every reduction, one that stores, and nothing about threads.

    rms_norm(x: f32[B, 64]) becomes

    b0 = T.match_buffer(b0_p, (n0, T.int64(64)), "float32")
    acc_1 = T.sblock_alloc_buffer((n0,), "float32")
    for i0, i1 in T.grid(n0, T.int64(64)):
        with T.sblock("acc_1"):
            v0, v1 = T.axis.remap("SR", [i0, i1])
            with T.init():
                acc_1[v0] = T.float32(0.0)
            acc_1[v0] = acc_1[v0] + b0[v0, v1] * b0[v0, v1]
    ... and a block of kind "SS" that stores b0[v0, v1] * (1 / sqrt(acc_1[v0] / 64 + eps))

An element's text is made from the indices it is wanted at, up to what lies in memory or was reduced before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from irx.backends.regions.elements import writers_in
from irx.backends.regions.groups import Buffer
from irx.backends.regions.lowered import Binding, Call, Refusal
from irx.backends.triton.kernel import Parameter, Pointer, Size
from irx.backends.triton.regions.tables import Table
from irx.backends.tvm_cuda import codes
from irx.backends.tvm_cuda.elementwise import (
    converted,
    expression,
    kind,
    narrowed,
    number,
    supports,
    wanted_of,
    widened,
)
from irx.backends.tvm_cuda.kernel import STORED, CudaKernel
from irx.ir.dims import Dim
from irx.ir.graph import Literal, Node, Value

LONGEST = 1 << 15  # characters of an element's text: what is used twice stands there twice

Indices: TypeAlias = tuple[str, ...]
Op: TypeAlias = "Callable[[Script, Node, Indices], str]"
OPS: dict[str, Op] = {}
"""The text of an element of a result, for ops that are not elementwise."""
op = writers_in(OPS)


class Script:
    """One kernel that is being written. `buffers` holds what lies in memory, `tables` weights in their layout."""

    def __init__(self, buffers: Mapping[Value, Buffer], tables: Mapping[Value, Table], *, wide: bool) -> None:
        """`wide`: indices have 64 bits, as all that depend on named sizes have."""
        self.buffers, self.tables, self.wide = buffers, tables, wide
        self.lines: list[str] = []
        self.heads: list[str] = []
        self.parameters: list[Parameter] = []
        self.bindings: dict[str, Binding] = {}
        self.reduced: dict[Value, str] = {}  # buffers of sums
        self._sizes: dict[Dim, str] = {}

    # --- elements ---------------------------------------------------------------------------------------------------

    def at(self, value: Value, indices: Indices) -> str:
        """The element at the indices, of the value's kind. Raises Refusal."""
        text = self._element(value, indices)
        if len(text) > LONGEST:
            raise Refusal("an element depends on too much for one expression")
        return text

    def _element(self, value: Value, indices: Indices) -> str:
        if value in self.buffers:
            return self.load(self.buffers[value], value.shape, indices)
        if value in self.tables:
            return codes.element(self, self.tables[value], indices)
        node = value.producer
        if node is None:
            raise Refusal(f"%{value.name} has no buffer")
        if node.op.name in OPS:
            return OPS[node.op.name](self, node, indices)
        if (reason := supports(node)) is not None:
            raise Refusal(reason)
        operands = [self._operand(node, i, indices) for i, v in enumerate(node.inputs) if v is not None]
        return expression(node, operands)

    def load(self, buffer: Buffer, shape: Sequence[Dim], indices: Indices) -> str:
        """The element of a buffer of that shape, of its kind."""
        name = self.pointer(buffer.dtype, buffer.binding, shape)
        return widened(f"{name}[{_joined(indices)}]", buffer.dtype)

    def _operand(self, node: Node, index: int, indices: Indices) -> str:
        value, wanted = node.inputs[index], wanted_of(node, index)
        assert value is not None
        if isinstance(value, Literal):
            if isinstance(value.value, int | float):
                return number(value.value, wanted)
            return converted(f'T.cast({self.size(value.value)}, "int64")', "int64", wanted)
        return converted(self.at(value, broadcast(indices, value.shape)), kind(value.dtype), wanted)

    # --- parameters -------------------------------------------------------------------------------------------------

    def pointer(self, dtype: str, binding: Binding, shape: Sequence[Dim]) -> str:
        """The parameter of a buffer. Raises Refusal for one that is read in two shapes, or is too large."""
        known = next((name for name, bound in self.bindings.items() if bound == binding), None)
        name = known or f"b{len(self.bindings)}"
        sizes = _joined(tuple(self.size(dim) for dim in shape or (1,)))
        head = f'{name} = T.match_buffer({name}_p, ({sizes},), "{STORED[dtype]}")'
        if known is None:
            self.parameters.append(Pointer(name, dtype))
            self.bindings[name] = binding
            self.heads.append(head)
        elif head not in self.heads:
            raise Refusal("one buffer is read in two shapes")
        return name

    def size(self, dim: Dim) -> str:
        """The text of a size: a number, or a parameter."""
        if isinstance(dim, int):
            return f"T.int64({dim})" if self.wide else str(dim)
        if dim not in self._sizes:
            self._sizes[dim] = f"n{len(self._sizes)}"
            self.parameters.append(Size(self._sizes[dim], "i64"))
            self.bindings[self._sizes[dim]] = dim
        return self._sizes[dim]

    # --- blocks -----------------------------------------------------------------------------------------------------

    def reduce(self, name: str, shape: Sequence[Dim], axes: Sequence[int], fold: Fold, text: Element, of: str) -> None:
        """A block that folds the elements of a shape along axes into the new buffer `name`."""
        kept = [axis for axis in range(len(shape)) if axis not in axes]
        place = _joined(tuple(f"v{axis}" for axis in kept))
        sizes = _joined(tuple(self.size(shape[axis]) for axis in kept) or ("1",))
        element = text(_variables(len(shape)))
        start, combined = fold(f"{name}[{place}]", element)
        self.heads.append(f'{name} = T.sblock_alloc_buffer(({sizes},), "{of}")')
        kinds = "".join("R" if axis in axes else "S" for axis in range(len(shape)))
        body = ["with T.init():", f"    {name}[{place}] = {start}", f"{name}[{place}] = {combined}"]
        self._block(name, [self.size(dim) for dim in shape], kinds, body)

    def store(self, value: Value, buffer: Buffer) -> None:
        """A block that computes all elements of a value and writes them to its buffer."""
        rank = len(value.shape)
        text = narrowed(self.at(value, _variables(rank)), buffer.dtype)
        target = self.pointer(buffer.dtype, buffer.binding, value.shape)
        sizes = [self.size(dim) for dim in value.shape or (1,)]
        self._block(f"{target}_stored", sizes, "S" * len(sizes), [f"{target}[{_joined(_variables(rank))}] = {text}"])

    def call(self, name: str, note: str) -> Call:
        """The call of the kernel that was written."""
        body = "\n".join([*self.heads, *self.lines]) + "\n"
        return Call(CudaKernel(name, tuple(self.parameters), body, (), note=note), self.bindings)

    def fresh(self, prefix: str) -> str:
        """A name not used before."""
        return f"{prefix}_{len(self.heads)}"

    def _block(self, name: str, sizes: list[str], kinds: str, body: list[str]) -> None:
        loops = ", ".join(f"i{axis}" for axis in range(len(sizes)))
        variables = ", ".join(f"v{axis}" for axis in range(len(sizes)))
        over = f"T.grid({', '.join(sizes)})" if len(sizes) > 1 else f"T.serial({sizes[0]})"
        self.lines += [f"for {loops} in {over}:", f'    with T.sblock("{name}"):']
        self.lines.append(f'        {variables} = T.axis.remap("{kinds}", [{loops}])')
        self.lines += [f"        {line}" for line in body]


Element: TypeAlias = Callable[[Indices], str]
Fold: TypeAlias = Callable[[str, str], tuple[str, str]]
"""From the text of a sum and that of an element: where the sum begins, and both together."""


def broadcast(indices: Indices, shape: Sequence[Dim]) -> Indices:
    """The indices of an operand of `shape` that is broadcast to where these are."""
    own = indices[len(indices) - len(shape) :]
    return tuple("0" if size == 1 else index for index, size in zip(own, shape, strict=True))


def _variables(rank: int) -> Indices:
    return tuple(f"v{axis}" for axis in range(rank))


def _joined(indices: Indices) -> str:
    """Indices of a buffer; one without axes has a single element."""
    return ", ".join(indices) or "0"
