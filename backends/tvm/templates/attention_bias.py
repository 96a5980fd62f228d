"""What masks and biases add to the logits of plain attention, as one float32 array that attention reads in tiles.

Rows are what the two differ over (batches, heads, queries), padded to whole tiles of keys: log2(e) * bias, and -inf
where the mask is false.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.regions.lowered import Call, Data, Temporary
from irx.backends.regions.views import View
from irx.backends.tvm.arguments import Arguments, times, total, whole
from irx.backends.tvm.templates.attention_form import KEYS, LOG2_E
from irx.backends.tvm.writer import STORAGE, Writer, widened
from irx.ir.dims import Dim, product


@dataclass(frozen=True)
class Bias:
    """A prepared bias: its buffer, how many rows lie between batches, heads and queries, and its columns."""

    call: Call
    buffer: Temporary
    strides: tuple[Dim, ...]
    width: Dim


def prepare_bias(mask: View | None, bias: View | None) -> Bias | None:
    """The kernel and its result, None where there is neither."""
    views = [view for view in (mask, bias) if view is not None]
    if not views:
        return None
    *outer, keys = views[0].shape
    sizes: list[Dim] = [size if any(view.strides[i] != 0 for view in views) else 1 for i, size in enumerate(outer)]
    strides: list[Dim] = [product(sizes[i + 1 :]) if size != 1 else 0 for i, size in enumerate(sizes)]
    width = (keys + (KEYS - 1)) // KEYS * KEYS
    buffer = Temporary("bias", product(sizes) * width * 4)
    return Bias(_kernel(mask, bias, sizes, keys, width, buffer), buffer, tuple(strides), width)


def _kernel(mask: View | None, bias: View | None, sizes: list[Dim], keys: Dim, width: Dim, buffer: Temporary) -> Call:
    w, arguments = Writer(), Arguments()
    arguments.pointer("y", "float32", buffer)
    b, h, s = (arguments.size(size) for size in sizes)
    columns, padded = arguments.size(keys), arguments.size(width)
    rows = whole(w, times(b, h, s))
    with w.block(f"for row in T.serial({rows} * tid // nt, {rows} * (tid + 1) // nt):"):
        index = (f"row // ({times(h, s)})", f"row // {s} % {h}", f"row % {s}")
        starts = {
            name: whole(w, _start(arguments, view, index))
            for name, view in (("mask", mask), ("bias", bias))
            if view is not None
        }
        with w.block(f"for t in T.serial({columns}):"):
            value = "T.float32(0)"
            if bias is not None:
                raw = f"{_pointer(arguments, 'added', bias)}[{starts['bias']} + t * {arguments.size(bias.strides[3])}]"
                value = f"{widened(raw, bias.base.dtype, 1)} * T.float32({LOG2_E})"
            if mask is not None:
                seen = f"{_pointer(arguments, 'mask', mask)}[{starts['mask']} + t * {arguments.size(mask.strides[3])}]"
                value = f'T.Select({seen} != T.uint8(0), {value}, T.float32("-inf"))'
            w(f"y[row * {padded} + t] = {value}")
        with w.block(f"for t in T.serial({padded} - {columns}):"):
            w(f'y[row * {padded} + {columns} + t] = T.float32("-inf")')
    return arguments.call("attention_bias", w, "masks and biases of attention")


def _pointer(arguments: Arguments, name: str, view: View) -> str:
    return arguments.pointer(name, STORAGE[view.base.dtype], Data(view.base))


def _start(arguments: Arguments, view: View, index: tuple[str, ...]) -> str:
    terms = [f"({i}) * {arguments.size(n)}" for i, n in zip(index, view.strides, strict=False) if n != 0]
    return total(*terms, arguments.size(view.offset))
