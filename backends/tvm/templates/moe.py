"""Kernels of a mixture of experts, in two forms. All write and read sums as float32.

    few tokens   every (token, chosen expert) streams that expert's weights:
                 1. gate, up, activation -> hidden;  2. down, summed over a token's experts in the registers -> y
    many         0. rows are grouped by expert;  1. as above for blocks of an expert's rows -> hidden
                 2. down -> parts;  3. parts of a token, weighted and summed in the order of its choices -> y

Every element has one thread that writes it, so results are the same whatever the number of threads. With many tokens
threads share out register tiles, not experts: their shares are equal however tokens choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from irx.backends.regions.lowered import Binding, Call, Data, PackedPart, Temporary
from irx.backends.tvm.kernel import Kernel, Parameter, Pointer, Size
from irx.backends.tvm.lanes import load, store
from irx.backends.tvm.templates.gemm_product import kept
from irx.backends.tvm.templates.moe_product import emit_bias, emit_gated, emit_sums
from irx.backends.tvm.templates.moe_shape import Experts, padded_rows
from irx.backends.tvm.writer import LANES, STORAGE, Writer, at, constant, splat


def few_calls(experts: Experts) -> tuple[Call, ...]:
    """The calls for a few tokens."""
    bindings = _bindings(experts)
    return _call(_few_first(experts), bindings), _call(_few_second(experts), bindings)


def many_calls(experts: Experts) -> tuple[Call, ...]:
    """The calls for any number of tokens."""
    kernels = (_group(experts), _many_first(experts), _many_second(experts), _combine(experts))
    return tuple(_call(kernel, _bindings(experts)) for kernel in kernels)


def _call(kernel: Kernel, bindings: dict[str, Binding]) -> Call:
    return Call(kernel, {p.name: bindings[p.name] for p in kernel.parameters})


def _bindings(experts: Experts) -> dict[str, Binding]:
    e, count = experts, experts.first.experts
    bindings: dict[str, Binding] = {
        "tokens": e.tokens,
        "x": Data(e.x),
        "index": Data(e.index),
        "weights": Data(e.weights),
        "gate_up": PackedPart(e.first, (e.gate_up,), "data"),
        "down": PackedPart(e.second, (e.down,), "data"),
        "y": Data(e.output),
        "hidden": Temporary("moe_hidden", e.pairs * (4 * padded_rows(e.first))),
        "parts": Temporary("moe_parts", e.pairs * (4 * padded_rows(e.second))),
        "order": Temporary("moe_order", e.pairs * 4),
        "starts": Temporary("moe_starts", 4 * (count + 1)),
        "blocks": Temporary("moe_blocks", 4 * (count + 1)),
        "places": Temporary("moe_places", 4 * count),
    }
    biases = {"gate_up_bias": e.gate_up_bias, "down_bias": e.down_bias}
    return bindings | {name: Data(value) for name, value in biases.items() if value is not None}


def _pointers(experts: Experts, *names: str) -> tuple[Parameter, ...]:
    """The parameters of those names that the op has."""
    e = experts
    values = {
        "x": e.x, "index": e.index, "weights": e.weights, "y": e.output,
        "gate_up_bias": e.gate_up_bias, "down_bias": e.down_bias,
    }  # fmt: skip
    dtypes = {name: STORAGE[value.dtype] for name, value in values.items() if value is not None}
    dtypes |= {"gate_up": e.first.parts["data"].dtype, "down": e.second.parts["data"].dtype}
    dtypes |= {"hidden": "float32", "parts": "float32"}
    dtypes |= dict.fromkeys(("order", "starts", "blocks", "places"), "int32")
    return tuple(Pointer(name, dtypes[name]) for name in names if name in dtypes)


def _kernel(name: str, experts: Experts, w: Writer, *pointers: str) -> Kernel:
    parameters = (Size("tokens"), *_pointers(experts, *pointers))
    return Kernel(name, parameters, w.text(), note=f"{name}: {experts.title}")


def _share(total: str) -> str:
    """The loop over a thread's share of items."""
    return f"for item in T.serial(({total}) * tid // nt, ({total}) * (tid + 1) // nt):"


# --- the two products ------------------------------------------------------------------------------------------------


def _emit_first(w: Writer, experts: Experts, expert: str, unit: str, rows: list[str], targets: list[str]) -> None:
    """One tile of gate and up for rows of x; `targets` are the rows of `hidden` to write."""
    tiles, layout = experts.first.tiles, experts.first
    sides = [("gate_up", f"({expert} * 2 + {side}) * {tiles.tiles} + {unit}") for side in range(2)]
    starts = [kept(w, f"{row} * {experts.width}") for row in rows]
    numbers = [(buffer, f"({tile})") for buffer, tile in sides]
    sums = emit_sums(w, tiles, experts.device, numbers, ("x", experts.x.dtype), starts)
    vectors = tiles.tile // LANES
    for v in range(vectors):
        column = kept(w, f"{unit} * {tiles.tile} + {v * LANES}")
        biases = [_first_bias(w, experts, expert, column, side) for side in range(2)]
        for row, target in zip(sums, targets, strict=True):
            gate, up = (w.register(f"{row[side * vectors + v]}{biases[side]}") for side in range(2))
            w(f"{at('hidden', f'{target} * {padded_rows(layout)} + {column}')} = {emit_gated(w, experts, gate, up)}")


def _first_bias(w: Writer, experts: Experts, expert: str, column: str, side: int) -> str:
    """What to add to 16 sums of a side; nothing without a bias."""
    bias, hidden = experts.gate_up_bias, experts.hidden
    if bias is None:
        return ""
    interleaved = experts.first.interleaved
    start = f"{expert} * {2 * hidden} + {side if interleaved else side * hidden}"
    return f" + {emit_bias(w, 'gate_up_bias', bias.dtype, start, column, hidden, 2 if interleaved else 1)}"


def _emit_second(w: Writer, experts: Experts, expert: str, unit: str, rows: list[str]) -> list[list[str]]:
    """Sums of one tile of down with rows of `hidden`, bias added: [row][vector]."""
    tiles = experts.second.tiles
    starts = [kept(w, f"{row} * {padded_rows(experts.first)}") for row in rows]
    number = ("down", f"({expert} * {tiles.tiles} + {unit})")
    sums = emit_sums(w, tiles, experts.device, [number], ("hidden", "f32"), starts)
    if experts.down_bias is None:
        return sums
    for v in range(tiles.tile // LANES):
        column = kept(w, f"{unit} * {tiles.tile} + {v * LANES}")
        start = f"{expert} * {experts.width}"
        bias = emit_bias(w, "down_bias", experts.down_bias.dtype, start, column, experts.width)
        for row in sums:
            w(f"{row[v]} = {row[v]} + {bias}")
    return sums


def _store_columns(w: Writer, experts: Experts, token: str, column: str, total: str) -> None:
    """Write 16 sums of a row of y, or those of them that there are."""
    width, dtype, place = experts.width, experts.output.dtype, f"{token} * {experts.width} + {column}"
    if width % LANES == 0:
        store(w, "y", place, dtype, total)
        return
    name = w.local(LANES)
    w(f"{at(name, '0')} = {total}")
    with w.block(f"for c in T.serial(T.max(T.int64(0), T.min(T.int64({LANES}), {width} - {column}))):"):
        store(w, "y", f"{place} + c", dtype, f"{name}[c]", 1)


# --- few tokens ------------------------------------------------------------------------------------------------------


def _few_first(experts: Experts) -> Kernel:
    w, units, choices = Writer(), experts.first.tiles.tiles, experts.choices
    with w.block(_share(f"tokens * {choices * units}")):
        pair, unit = kept(w, f"item // {units}"), kept(w, f"item % {units}")
        expert = kept(w, f"index[{pair}]")
        _emit_first(w, experts, expert, unit, [kept(w, f"{pair} // {choices}")], [pair])
    return _kernel("moe_first", experts, w, "x", "index", "gate_up", "gate_up_bias", "hidden")


def _few_second(experts: Experts) -> Kernel:
    w, tiles, choices = Writer(), experts.second.tiles, experts.choices
    with w.block(_share(f"tokens * {tiles.tiles}")):
        token, unit = kept(w, f"item // {tiles.tiles}"), kept(w, f"item % {tiles.tiles}")
        totals = [w.register(constant(0.0)) for _ in range(tiles.tile // LANES)]
        with w.block(f"for choice in T.serial({choices}):"):
            pair = kept(w, f"{token} * {choices} + choice")
            (sums,) = _emit_second(w, experts, kept(w, f"index[{pair}]"), unit, [pair])
            share = w.register(splat(load(w, "weights", pair, experts.weights.dtype, 1)))
            for total, own in zip(totals, sums, strict=True):
                w(f"{total} = {total} + {own} * {share}")
        for v, total in enumerate(totals):
            _store_columns(w, experts, token, kept(w, f"{unit} * {tiles.tile} + {v * LANES}"), total)
    return _kernel("moe_second", experts, w, "index", "weights", "down", "down_bias", "hidden", "y")


# --- many tokens -----------------------------------------------------------------------------------------------------


def _group(experts: Experts) -> Kernel:
    """`order`: pairs of token and choice by expert; `starts`: where those of an expert begin; `blocks`: of blocks."""
    w, count, block = Writer(), experts.first.experts, experts.block
    with w.block("if tid == 0:"):
        with w.block(f"for e in T.serial({count}):"):
            w("places[e] = 0")
        with w.block(f"for pair in T.serial(tokens * {experts.choices}):"):
            w("places[index[pair]] = places[index[pair]] + 1")
        w("starts[0] = 0")
        w("blocks[0] = 0")
        with w.block(f"for e in T.serial({count}):"):
            w("starts[e + 1] = starts[e] + places[e]")
            w(f"blocks[e + 1] = blocks[e] + (places[e] + {block - 1}) // {block}")
            w("places[e] = starts[e]")
        with w.block(f"for pair in T.serial(tokens * {experts.choices}):"):
            w('order[places[index[pair]]] = T.cast(pair, "int32")')
            w("places[index[pair]] = places[index[pair]] + 1")
    return _kernel("moe_group", experts, w, "index", "order", "starts", "blocks", "places")


def _many_first(experts: Experts) -> Kernel:
    w = Writer()
    with _register_tiles(w, experts, experts.first.tiles.tiles) as (expert, unit, positions):
        rows = [kept(w, f"order[{position}] // {experts.choices}") for position in positions]
        _emit_first(w, experts, expert, unit, rows, positions)
    return _kernel("moe_rows_first", experts, w, "x", "gate_up", "gate_up_bias", "order", "starts", "blocks", "hidden")


def _many_second(experts: Experts) -> Kernel:
    w, tiles = Writer(), experts.second.tiles
    with _register_tiles(w, experts, tiles.tiles) as (expert, unit, positions):
        for position, sums in zip(positions, _emit_second(w, experts, expert, unit, positions), strict=True):
            start = kept(w, f"order[{position}] * T.int64({padded_rows(experts.second)}) + {unit} * {tiles.tile}")
            for v, total in enumerate(sums):
                w(f"{at('parts', f'{start} + {v * LANES}')} = {total}")
    return _kernel("moe_rows_second", experts, w, "down", "down_bias", "order", "starts", "blocks", "hidden", "parts")


@contextmanager
def _register_tiles(w: Writer, experts: Experts, units: int) -> Iterator[tuple[str, str, list[str]]]:
    """A thread's share of register tiles: an expert, a unit of its columns, and positions of its rows in `order`.

    Those beyond the expert's last row are that row again: it is computed and written several times alike.
    """
    count, block = experts.first.experts, experts.block
    start, end = (kept(w, f"blocks[{count}] * T.int64({units}) * {tid} // nt") for tid in ("tid", "(tid + 1)"))
    with w.block(f"for e in T.serial(T.int64({count})):"):
        below = kept(w, f"blocks[e] * T.int64({units})")
        mine = kept(w, "blocks[e + 1] - blocks[e]")
        first = kept(w, f"T.max({start}, {below})")
        items = f"T.max(T.int64(0), T.min({end}, {below} + {mine} * {units}) - {first})"
        with w.block(f"for i in T.serial({items}):"):
            item = kept(w, f"{first} + i - {below}")
            unit, row = kept(w, f"{item} // {mine}"), f"starts[e] + {item} % {mine} * {block}"
            last = "starts[e + 1] - T.int64(1)"
            yield "e", unit, [kept(w, f"T.min({row} + {m}, {last})") for m in range(block)]


def _combine(experts: Experts) -> Kernel:
    w, choices, stride = Writer(), experts.choices, padded_rows(experts.second)
    units = -(-experts.width // LANES)
    with w.block(_share(f"tokens * {units}")):
        token, column = kept(w, f"item // {units}"), kept(w, f"item % {units} * {LANES}")
        total = w.register(constant(0.0))
        with w.block(f"for choice in T.serial({choices}):"):
            pair = kept(w, f"{token} * {choices} + choice")
            share = splat(load(w, "weights", pair, experts.weights.dtype, 1))
            w(f"{total} = {total} + {at('parts', f'{pair} * {stride} + {column}')} * {share}")
        _store_columns(w, experts, token, column, total)
    return _kernel("moe_combine", experts, w, "weights", "parts", "y")
