"""Rows rounded to their own grids, as a cache of codes returns them: what `forward` does where a step has such a cache.

lowest value and step of a row in float16 -> codes -> code * step + lowest, a few rows in each program
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call
from irx.backends.triton.templates.append_element import emit_grid
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.attention_storage import width_of
from irx.backends.triton.templates.token_elements import pointers
from irx.backends.triton.writer import Writer
from irx.ir.codes import CODES
from irx.ir.dims import product
from irx.ir.graph import Node

ELEMENTS_OF_PROGRAM = 2048


def round_calls(node: Node) -> tuple[Call, ...]:
    """`round_tokens`."""
    arguments, w = Arguments(), Writer()
    x, y = pointers(arguments, x=node.inputs[0], y=node.output)
    channels = x.shape[-1]
    assert isinstance(channels, int)
    width = width_of(channels)
    rows = max(1, ELEMENTS_OF_PROGRAM // width)
    count = arguments.size(product(x.shape[:-1]))
    w(f"row = tl.program_id(0).to(tl.int64) * {rows} + tl.arange(0, {rows})[:, None]")
    w(f"d = tl.arange(0, {width})[None, :]")
    w(f"mask = (row < {count}) & (d < {channels})")
    tokens = w.load("x", f"row * {channels} + d", x.dtype, "mask")
    grid = emit_grid(w, tokens, f"d < {channels}", CODES[str(node.attr("code"))])
    w.store("y", f"row * {channels} + d", y.dtype, f"{grid.code} * {grid.step} + {grid.low}", "mask")
    note = f"rows of {channels} rounded as {node.attr('code')}"
    return (arguments.call("round_tokens", w, Launch((f"ceil({count}, {rows})",), 4), note),)
