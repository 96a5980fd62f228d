"""Convolutions of groups of filters, directly: where few channels meet a filter, gathering them is not worth it."""

from __future__ import annotations

from contextlib import nullcontext

from irx.backends.regions.lowered import Binding, Call, Data
from irx.backends.tvm.kernel import Kernel, Parameter, Pointer
from irx.backends.tvm.lanes import load, loaded, store
from irx.backends.tvm.templates.conv_shape import SIZES, Convolution, share
from irx.backends.tvm.templates.gemm_product import kept
from irx.backends.tvm.writer import LANES, STORAGE, Writer, constant, splat


def direct_call(conv: Convolution) -> Call:
    """Sums for 16 positions of one filter and line at a time; near the edges one by one."""
    w = Writer()
    with w.block(share(f"batch * {conv.filters} * out_height")):
        _Line(w, conv).emit()
    values = {"x": conv.x, "weight": conv.weight, "bias": conv.bias, "y": conv.output}
    present = {name: value for name, value in values.items() if value is not None}
    parameters: tuple[Parameter, ...] = (*SIZES, *(Pointer(name, STORAGE[conv.dtype]) for name in present))
    kernel = Kernel("conv_direct", parameters, w.text(), note=f"{conv.title}, {conv.groups} groups")
    bindings: dict[str, Binding] = {name: Data(value) for name, value in present.items()}
    return Call(kernel, {**conv.sizes, **bindings})


class _Line:
    """The positions of one filter in one line: item `(image * filters + filter) * out_height + line`."""

    def __init__(self, w: Writer, conv: Convolution) -> None:
        self.w, self.conv = w, conv
        self.filter = kept(w, f"item // out_height % {conv.filters}")
        image = kept(w, f"item // out_height // {conv.filters}")
        in_group = conv.filters // conv.groups
        self.channel = kept(w, f"({image} * {conv.groups} + {self.filter} // {in_group}) * {conv.channels}")
        self.top = kept(w, f"item % out_height * {conv.stride[0]} - {conv.padding[0]}")

    def emit(self) -> None:
        """All columns: those near the left edge, blocks of 16, and what is left."""
        w, stride, padding = self.w, self.conv.stride[1], self.conv.padding[1]
        reach = (self.conv.taps[1] - 1) * self.conv.dilation[1]
        low = kept(w, f"T.min(out_width, T.int64({-(-padding // stride)}))")
        high = f"T.min(out_width, T.max(T.int64(0), width + {padding - reach + stride - 1}) // {stride})"
        blocks = kept(w, f"T.max(T.int64(0), {high} - {low}) // {LANES}")
        self._single("T.int64(0)", low)
        with w.block(f"for block in T.serial({blocks}):"):
            self._columns(f"{low} + block * {LANES}", LANES)
        self._single(f"{low} + {blocks} * {LANES}", "out_width")

    def _single(self, start: str, end: str) -> None:
        """Columns from `start` to before `end`, one by one."""
        first = kept(self.w, start)
        with self.w.block(f"for i in T.serial({end} - {first}):"):
            self._columns(f"{first} + i", 1)

    def _columns(self, column: str, lanes: int) -> None:
        """The sums of `lanes` columns from `column` on."""
        w, conv = self.w, self.conv
        column = kept(w, column)
        left = kept(w, f"{column} * {conv.stride[1]} - {conv.padding[1]}")
        total = w.register(constant(0.0, lanes), lanes=lanes)
        with w.block(f"for c in T.serial(T.int64({conv.channels})):"):
            channel = kept(w, f"({self.channel} + c) * height")
            taps = kept(w, f"({self.filter} * {conv.channels} + c) * {conv.taps[0]}")
            with w.block(f"for ky in T.serial(T.int64({conv.taps[0]})):"):
                row = kept(w, f"{self.top} + ky * {conv.dilation[0]}")
                with w.block(f"if {row} >= 0 and {row} < height:"):
                    source = kept(w, f"({channel} + {row}) * width + {left}")
                    self._row(total, source, left, kept(w, f"({taps} + ky) * {conv.taps[1]}"), lanes)
        if conv.bias is not None:
            w(f"{total} = {total} + {splat(load(w, 'bias', self.filter, conv.dtype, 1), lanes)}")
        store(w, "y", f"item * out_width + {column}", conv.dtype, total, lanes)

    def _row(self, total: str, source: str, left: str, taps: str, lanes: int) -> None:
        """Adds what the taps of one row of a filter meet."""
        w, conv = self.w, self.conv
        with w.block(f"for kx in T.serial(T.int64({conv.taps[1]})):"):
            x = kept(w, f"{left} + kx * {conv.dilation[1]}")
            near_edge = lanes == 1 and conv.is_padded
            with w.block(f"if {x} >= 0 and {x} < width:") if near_edge else nullcontext():
                values = loaded(w, "x", f"{source} + kx * {conv.dilation[1]}", conv.dtype, lanes, conv.stride[1])
                weight = load(w, "weight", f"{taps} + kx", conv.dtype, 1)
                w(f"{total} = {total} + {values} * {splat(weight, lanes)}")
