"""What stands around the matrix product of a convolution: rows of what a filter meets at each position, and back.

gather     x -> patches [positions, channels * taps], in the order of the weight
(product)  patches -> sums [positions, filters]
turn       sums -> y [batch, filters, positions]
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Data, Temporary
from irx.backends.tvm.kernel import Kernel, Pointer
from irx.backends.tvm.templates.conv_shape import SIZES, Convolution, share
from irx.backends.tvm.templates.gemm_product import kept
from irx.backends.tvm.writer import LANES, STORAGE, Writer


def gather_call(conv: Convolution, patches: Temporary) -> Call:
    """Writes the patches in the dtype of x; zeros beyond the edge."""
    w, (high, wide) = Writer(), conv.taps
    with w.block(share("batch * out_height * out_width")):
        image, place = kept(w, "item // (out_height * out_width)"), kept(w, "item % (out_height * out_width)")
        top = kept(w, f"{place} // out_width * {conv.stride[0]} - {conv.padding[0]}")
        left = kept(w, f"{place} % out_width * {conv.stride[1]} - {conv.padding[1]}")
        with (
            w.block(f"for c in T.serial(T.int64({conv.channels})):"),
            w.block(f"for ky in T.serial(T.int64({high})):"),
        ):
            y = kept(w, f"{top} + ky * {conv.dilation[0]}")
            source = kept(w, f"(({image} * {conv.channels} + c) * height + {y}) * width + {left}")
            target = kept(w, f"item * {conv.columns} + (c * {high} + ky) * {wide}")
            with w.block(f"for kx in T.serial(T.int64({wide})):"):
                w(f"patches[{target} + kx] = {_element(conv, source, y, left)}")
    pointers = (Pointer("x", STORAGE[conv.dtype]), Pointer("patches", STORAGE[conv.dtype]))
    kernel = Kernel("conv_gather", (*SIZES, *pointers), w.text(), note=f"patches for {conv.title}")
    return Call(kernel, {**conv.sizes, "x": Data(conv.x), "patches": patches})


def _element(conv: Convolution, source: str, y: str, left: str) -> str:
    """The element of x at a tap, as it lies in memory."""
    step = f"kx * {conv.dilation[1]}"
    element, x = f"x[{source} + {step}]", f"{left} + {step}"
    if not conv.is_padded:
        return element
    zero = {"f32": "T.float32(0)", "bf16": "T.uint16(0)", "f16": "T.float16(0)"}[conv.dtype]
    return f"T.if_then_else({y} >= 0 and {y} < height and {x} >= 0 and {x} < width, {element}, {zero})"


def turn_call(conv: Convolution, sums: Temporary) -> Call:
    """Writes sums as the op's result: the positions of a filter side by side."""
    w, units = Writer(), -(-conv.filters // LANES)
    places = kept(w, "out_height * out_width")
    with w.block(share(f"batch * {units}")):
        image, first = kept(w, f"item // {units}"), kept(w, f"item % {units} * {LANES}")
        filters = kept(w, f"T.min(T.int64({LANES}), {conv.filters} - {first})")
        with w.block(f"for p in T.serial({places}):"):
            source = kept(w, f"({image} * {places} + p) * {conv.filters} + {first}")
            target = kept(w, f"({image} * {conv.filters} + {first}) * {places} + p")
            with w.block(f"for n in T.serial({filters}):"):
                w(f"y[{target} + n * {places}] = sums[{source} + n]")
    pointers = (Pointer("sums", STORAGE[conv.dtype]), Pointer("y", STORAGE[conv.dtype]))
    kernel = Kernel("conv_turn", (*SIZES, *pointers), w.text(), note=f"result of {conv.title}")
    return Call(kernel, {**conv.sizes, "sums": sums, "y": Data(conv.output)})
