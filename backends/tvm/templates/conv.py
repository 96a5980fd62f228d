"""Convolutions: rows of what a filter meets at each position, for a matrix product; or directly, for filter groups.

gather     x -> patches [positions, channels * taps], in the order of the weight
(product)  patches -> sums [positions, filters]
turn       sums -> y [batch, filters, positions]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from irx.backends.tvm.kernel import Kernel, Pointer
from irx.backends.tvm.lanes import load, loaded, store
from irx.backends.tvm.lowered import Binding, Call, Data, Temporary
from irx.backends.tvm.templates.conv_shape import SIZES, Convolution
from irx.backends.tvm.writer import LANES, STORAGE, Writer, constant, splat


def gather_call(conv: Convolution, patches: Temporary) -> Call:
    """Writes the patches in the dtype of x; zeros beyond the edge."""
    w, (high, wide) = Writer(), conv.taps
    with w.block("for row in T.serial(ROWS * tid // nt, ROWS * (tid + 1) // nt):".replace("ROWS", _ROWS)):
        _position(w, conv, "row")
        with (
            w.block(f"for c in T.serial(T.int64({conv.channels})):"),
            w.block(f"for ky in T.serial(T.int64({high})):"),
            w.block(f"for kx in T.serial(T.int64({wide})):"),
        ):
            place = f"row * {conv.columns} + (c * {high} + ky) * {wide} + kx"
            w(f"patches[{place}] = {_element(w, conv, 'c', 'ky', 'kx')}")
    pointers = (Pointer("x", STORAGE[conv.dtype]), Pointer("patches", STORAGE[conv.dtype]))
    kernel = Kernel("conv_gather", (*SIZES, *pointers), w.text(), note=f"patches for {conv.title}")
    return Call(kernel, {**conv.sizes, "x": Data(conv.x), "patches": patches})


def turn_call(conv: Convolution, sums: Temporary) -> Call:
    """Writes sums as the op's result: the positions of a filter side by side."""
    w, units = Writer(), -(-conv.filters // LANES)
    w("places: T.let = out_height * out_width")
    total = f"batch * {units}"
    with w.block(f"for item in T.serial({total} * tid // nt, {total} * (tid + 1) // nt):"):
        w(f"image: T.let = item // {units}")
        w(f"first: T.let = item % {units} * {LANES}")
        filters = f"T.min(T.int64({LANES}), {conv.filters} - first)"
        with w.block("for p in T.serial(places):"), w.block(f"for n in T.serial({filters}):"):
            source = f"sums[(image * places + p) * {conv.filters} + first + n]"
            w(f"y[(image * {conv.filters} + first + n) * places + p] = {source}")
    pointers = (Pointer("sums", STORAGE[conv.dtype]), Pointer("y", STORAGE[conv.dtype]))
    kernel = Kernel("conv_turn", (*SIZES, *pointers), w.text(), note=f"result of {conv.title}")
    return Call(kernel, {**conv.sizes, "sums": sums, "y": Data(conv.output)})


_ROWS = "(batch * out_height * out_width)"


def _position(w: Writer, conv: Convolution, row: str) -> None:
    """`image`, and `top` and `left` of the patch of a row, which may lie beyond the edge."""
    w(f"image: T.let = {row} // (out_height * out_width)")
    w(f"top: T.let = {row} // out_width % out_height * {conv.stride[0]} - {conv.padding[0]}")
    w(f"left: T.let = {row} % out_width * {conv.stride[1]} - {conv.padding[1]}")


def _element(w: Writer, conv: Convolution, c: str, ky: str, kx: str) -> str:
    """The element of x at a tap, as it lies in memory."""
    y, x = w.let(f"top + {ky} * {conv.dilation[0]}", "y"), w.let(f"left + {kx} * {conv.dilation[1]}", "x")
    element = f"x[((image * {conv.channels} + {c}) * height + {y}) * width + {x}]"
    if not conv.is_padded:
        return element
    zero = {"f32": "T.float32(0)", "bf16": "T.uint16(0)", "f16": "T.float16(0)"}[conv.dtype]
    return f"T.if_then_else({y} >= 0 and {y} < height and {x} >= 0 and {x} < width, {element}, {zero})"


# --- directly --------------------------------------------------------------------------------------------------------


def direct_call(conv: Convolution) -> Call:
    """Sums for 16 positions of one filter and row at a time; near the edges one by one."""
    w = Writer()
    total = f"(batch * {conv.filters} * out_height)"
    with w.block(f"for item in T.serial({total} * tid // nt, {total} * (tid + 1) // nt):"):
        w("line: T.let = item % out_height")
        w(f"filter: T.let = item // out_height % {conv.filters}")
        w(f"image: T.let = item // (out_height * {conv.filters})")
        w(f"top: T.let = line * {conv.stride[0]} - {conv.padding[0]}")
        low, high = _inside(w, conv)
        _span(w, conv, "T.int64(0)", low)
        with w.block(f"for block in T.serial(({high} - {low}) // {LANES}):"):
            _direct(w, conv, f"{low} + block * {LANES}", LANES)
        _span(w, conv, f"{low} + ({high} - {low}) // {LANES} * {LANES}", "out_width")
    names = ("x", "weight", *(("bias",) if conv.bias is not None else ()), "y")
    bindings: dict[str, Binding] = {**conv.sizes, "x": Data(conv.x), "weight": Data(conv.weight)}
    bindings["y"] = Data(conv.output)
    if conv.bias is not None:
        bindings["bias"] = Data(conv.bias)
    parameters = (*SIZES, *(Pointer(name, STORAGE[conv.dtype]) for name in names))
    kernel = Kernel("conv_direct", parameters, w.text(), note=f"{conv.title}, {conv.groups} groups")
    return Call(kernel, bindings)


def _inside(w: Writer, conv: Convolution) -> tuple[str, str]:
    """The columns of the result, from and to, whose filters meet no edge at the left or right."""
    stride, padding = conv.stride[1], conv.padding[1]
    reach = (conv.taps[1] - 1) * conv.dilation[1]
    low = w.let(f"T.min(out_width, T.int64({-(-padding // stride)}))", "low")
    room = f"T.max(T.int64(0), width + {padding - reach + stride - 1}) // {stride}"
    return low, w.let(f"T.max({low}, T.min(out_width, {room}))", "high")


def _span(w: Writer, conv: Convolution, start: str, end: str) -> None:
    """Columns from `start` to before `end`, one by one."""
    first = w.let(start, "first")
    with w.block(f"for c in T.serial({end} - {first}):"):
        _direct(w, conv, f"{first} + c", 1)


def _direct(w: Writer, conv: Convolution, column: str, lanes: int) -> None:
    """The sums of `lanes` columns from `column` on."""
    first = w.let(column, "column")
    total = w.register(constant(0.0, lanes), lanes=lanes)
    with _taps(w, conv):
        left = w.let(f"{first} * {conv.stride[1]} - {conv.padding[1]} + kx * {conv.dilation[1]}", "left")
        scope = f"if {left} >= 0 and {left} < width:" if lanes == 1 and conv.is_padded else "if kx >= 0:"
        with w.block(scope):
            place = f"(({_channel(conv)}) * height + row) * width + {left}"
            values = loaded(w, "x", place, conv.dtype, lanes, conv.stride[1])
            tap = f"((filter * {conv.channels} + c) * {conv.taps[0]} + ky) * {conv.taps[1]} + kx"
            weight = load(w, "weight", tap, conv.dtype, 1)
            w(f"{total} = {total} + {values} * {splat(weight, lanes)}")
    if conv.bias is not None:
        w(f"{total} = {total} + {splat(load(w, 'bias', 'filter', conv.dtype, 1), lanes)}")
    store(w, "y", f"item * out_width + {first}", conv.dtype, total, lanes)


def _channel(conv: Convolution) -> str:
    """The channel of x that a filter's channel `c` is, counted over the batch."""
    per_group = conv.filters // conv.groups
    return f"image * {conv.channels * conv.groups} + filter // {per_group} * {conv.channels} + c"


@contextmanager
def _taps(w: Writer, conv: Convolution) -> Iterator[None]:
    """Loops over `c`, `ky` with its `row` in x, where there is one, and `kx`."""
    with (
        w.block(f"for c in T.serial(T.int64({conv.channels})):"),
        w.block(f"for ky in T.serial(T.int64({conv.taps[0]})):"),
    ):
        w(f"row: T.let = top + ky * {conv.dilation[0]}")
        with w.block("if row >= 0 and row < height:"), w.block(f"for kx in T.serial(T.int64({conv.taps[1]})):"):
            yield
