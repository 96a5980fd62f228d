"""One tile of attention: some rows of queries against 64 keys, folded into sums that are kept in memory.

Scores of the tile go to a small buffer; then each row's maximum, sum and exponentials are brought up to date, and the
values are added to the row's output, which is scaled down where the maximum has grown (online softmax: Milakov and
Gimelshein 2018, arXiv:1805.02867; tiles: Dao et al. 2022, arXiv:2205.14135).
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, ELEMENT, KEYS, LOG2_E, LOWEST, VALUES, Form
from irx.backends.tvm.templates.instructions import dot_pairs, prefetch
from irx.backends.tvm.writer import Writer, at, constant, splat


@dataclass(frozen=True)
class Sums:
    """Where row 0's output (buffer o), maximum (m) and sum of weights, 16 lanes a row (l), are."""

    o: str
    m: str
    total: str


@dataclass(frozen=True)
class Places:
    """Texts of indices, in elements, and of numbers. Buffers have fixed names: q, k, v, s (scores), o, m, l, p (pairs).

    `q`, `s` (and `p`) are where row 0 of the tile's rows is, `k` the first block and `v` the first value
    of the state's head; `scales` the head's first per-token scale. `first` is the first key of the tile, `end` behind
    its last; `count` the number of rows.
    """

    q: str
    k: str
    v: str
    s: str
    p: str
    sums: Sums
    scales: str
    first: str
    end: str
    count: str


@dataclass(frozen=True)
class RowTexts:
    """What is known of row `r`, as functions of its text, set by the kernel around the tile.

    `low` and `high`: the keys it may see are [low, high), int32. `head`: its query head. `bias`: where its row of the
    prepared bias begins. `position`: of its token.
    """

    low: str
    high: str
    head: str
    bias: str
    position: str


def scores(w: Writer, f: Form, a: Places) -> None:
    """s[row, key] = q k, for all rows and the 64 keys, padded to whole chunks of rows."""
    chunks = f"({a.count} + {f.rows - 1}) // {f.rows}"
    with w.block(f"for chunk in T.serial({chunks}):"):
        row = whole(w, f"{a.q} + chunk * {f.rows * f.q_width}")
        out = whole(w, f"{a.s} + chunk * {f.rows * KEYS}")
        for part in range(0, KEYS // BLOCK, f.blocks):
            _scores(w, f, a, row, out, part)


def _scores(w: Writer, f: Form, a: Places, row: str, out: str, part: int) -> None:
    """Rows against `f.blocks` blocks of keys. Sums are one small buffer a row, which LLVM keeps in registers."""
    dtype, lanes = ("int32" if f.dot == "vnni" else "float32"), f.blocks * BLOCK
    planes = 2 if f.dot == "vnni" else 1
    sums = {(i, plane): w.local(lanes, dtype) for i in range(f.rows) for plane in range(planes)}
    zero = "T.broadcast(T.int32(0), 16)" if f.dot == "vnni" else constant(0.0)
    with w.block(f"for j in T.unroll({f.blocks}):"):
        for total in sums.values():
            w(f"{at(total, f'j * {BLOCK}')} = {zero}")
    start = whole(w, f"{a.k} + ({a.first} // {BLOCK} + {part}) * {f.steps * BLOCK}")
    with w.block(f"for d in T.serial({f.steps}):"), w.block(f"for j in T.unroll({f.blocks}):"):
        place = f"{start} + (j * {f.steps} + d) * {BLOCK}"
        keys = w.register(at("k", place), dtype=ELEMENT[f.storage])
        if f.fetches:
            w(prefetch("k", f"{place} + {KEYS * f.steps}"))
        for (i, plane), total in sums.items():
            _multiply(w, f, at(total, f"j * {BLOCK}"), keys, f"{row} + {i * f.q_width}", plane)
    with w.block(f"for j in T.unroll({f.blocks}):"):
        for i in range(f.rows):
            value = at(sums[i, 0], f"j * {BLOCK}")
            if f.dot == "vnni":
                end = f"{row} + {i * f.q_width + 2 * f.steps}"
                low = at(sums[i, 1], f"j * {BLOCK}")
                exact = f"{value} * T.broadcast(T.int32(128), 16) + {low} - {splat(f'q[{end}]')}"
                scale = f'T.reinterpret("float32", q[{end} + 1])'
                value = f'T.cast({exact}, "float32x16") * {splat(scale)}'
            w(f"{at('s', f'{out} + {i * KEYS + part * BLOCK} + j * {BLOCK}')} = {value}")


def _multiply(w: Writer, f: Form, total: str, keys: str, row: str, plane: int) -> None:
    """total += one step of keys times one row of queries."""
    if f.dot == "dpbf16":
        q = splat(f"q[{row} + d]")
        w(f"{total} = {dot_pairs(total, keys, q)}")
        return
    if f.dot == "vnni":
        q = splat(f"q[{row} + {plane * f.steps} + d]")
        quads = f'T.reinterpret("int8x64", {keys}), T.reinterpret("int8x64", {q})'
        w(f'{total} = T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", {total}, {quads})')
        return
    width = f.channels // f.steps
    for number, part in enumerate(unpacked(keys, f.storage)):
        w(f"{total} = {total} + {splat(f'q[{row} + d * {width} + {number}]')} * {part}")


def unpacked(word: str, storage: str) -> list[str]:
    """The float32 lanes that are in lanes of a stored word: one, a pair of bf16, or a quad of bytes less 128."""
    if storage == "f32":
        return [word]
    if storage == "bf16":
        high = f"T.bitwise_and({word}, T.broadcast(T.int32(-65536), 16))"
        low = f"T.shift_left({word}, T.broadcast(T.int32(16), 16))"
        return [f'T.reinterpret("float32x16", {bits})' for bits in (low, high)]
    quads = []
    for number in range(4):
        shifted = f"T.shift_right({word}, T.broadcast(T.int32({8 * number}), 16))" if number else word
        byte = f"T.bitwise_and({shifted}, T.broadcast(T.int32(255), 16)) - T.broadcast(T.int32(128), 16)"
        quads.append(f'T.cast({byte}, "float32x16")')
    return quads


def softmax(w: Writer, f: Form, a: Places, row: RowTexts, unmasked: str) -> None:
    """Bring row `r`'s maximum and sum up to date and turn its scores into weights. `unmasked`: all keys are seen."""
    base = whole(w, f"{a.s} + r * {KEYS}")
    values = w.local(KEYS)
    value, key = at(values, f"j * {BLOCK}"), f"{a.first} + j * {BLOCK}"
    with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
        w(f"{value} = {at('s', f'{base} + j * {BLOCK}')}")
        _finish_score(w, f, a, row, value, key)
    with w.block(f"if not ({unmasked}):"):
        low, high = (w.register(text, dtype="int32", lanes=1) for text in (row.low, row.high))
        with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
            keys = f'T.ramp(T.cast({key}, "int32"), 1, 16)'
            seen = f"T.bitwise_and({keys} >= {splat(low)}, {keys} < {splat(high)})"
            w(f"{value} = T.Select({seen}, {value}, {constant(float('-inf'))})")
    now = _new_maximum(w, f, a, values)
    added = w.register(constant(0.0))
    with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
        weight = vector_math.exp2(w, w.register(f"{value} - {splat(now)}"))
        w(f"{added} = {added} + {weight}")
        _store_weight(w, f, a, weight, base)
    total = at("l", f"{a.sums.total} + r * {BLOCK}")
    w(f"{total} = {total} + {added}")


def _new_maximum(w: Writer, f: Form, a: Places, values: str) -> str:
    """The row's maximum with these scores; where it has grown, sum and output are scaled down to it."""
    first, second, third, fourth = (at(values, str(j * BLOCK)) for j in range(KEYS // BLOCK))
    together = f"T.max(T.max({first}, {second}), T.max({third}, {fourth}))"
    highest = w.register(f'T.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fmax", {together})', lanes=1)
    before = w.register(f"m[{a.sums.m} + r]", lanes=1)
    now = w.register(f"T.max({before}, {highest})", lanes=1)
    with w.block(f"if {highest} > {before}:"):
        w(f"m[{a.sums.m} + r] = {now}")
        shrink = vector_math.exp2(w, w.register(splat(f"({before} - {now})")))
        total = at("l", f"{a.sums.total} + r * {BLOCK}")
        w(f"{total} = {total} * {shrink}")
        with w.block(f"for c in T.serial({f.v_width // 16}):"):
            out = at("o", f"{a.sums.o} + r * {f.v_width} + c * 16")
            w(f"{out} = {out} * {shrink}")
    return now


def _finish_score(w: Writer, f: Form, a: Places, row: RowTexts, value: str, key: str) -> None:
    """From the product to the exponent of 2: scale, cap, biases."""
    if f.dot == "dpbf16":
        w(f"{value} = {value} * {constant(f.score_scale)}")
    if f.storage == "i8":
        w(f"{value} = {value} * {at('k_scale', f'{a.scales} + {key}')}")
    if f.softcap is not None:
        capped = vector_math.tanh(w, w.register(f"{value} * {constant(1 / f.softcap)}"))
        w(f"{value} = {capped} * {constant(f.softcap * LOG2_E)}")
    if f.table:
        _add_table(w, f, row, value, key)
    if f.biased:
        w(f"{value} = {value} + {at('bias', f'{row.bias} + {key}')}")


def _add_table(w: Writer, f: Form, row: RowTexts, value: str, key: str) -> None:
    """table[head, clamp(position - key, 0, length - 1)]."""
    found = w.local(BLOCK)
    with w.block(f"for lane in T.serial({BLOCK}):"):
        distance = f"T.max(T.min({row.position} - ({key} + lane), {f.table - 1}), 0)"
        w(f"{found}[lane] = table[{row.head} * {f.table} + {distance}]")
    w(f"{value} = {value} + {at(found, '0')} * {constant(LOG2_E)}")


def _store_weight(w: Writer, f: Form, a: Places, weight: str, base: str) -> None:
    if f.dot == "dpbf16":
        pairs = f'T.call_pure_extern("int32x8", "irx_to_pairs", {weight})'
        w(f"{at('p', f'{a.p} + r * {KEYS // 2} + j * 8', 8)} = {pairs}")
        return
    scaled = weight
    if f.storage == "i8":
        scaled = f"{weight} * {at('v_scale', f'{a.scales} + {a.first} + j * {BLOCK}')}"
    w(f"{at('s', f'{base} + j * {BLOCK}')} = {scaled}")


def values(w: Writer, f: Form, a: Places) -> None:
    """o[row] += weights times values, for the keys before `end`."""
    with w.block(f"for chunk in T.serial(({a.count} + {f.rows - 1}) // {f.rows}):"):
        for first, count in f.spread:
            _values(w, f, a, first, count)


def _values(w: Writer, f: Form, a: Places, first: int, count: int) -> None:
    """`count` vectors of the rows' outputs, again one small buffer a row."""
    pairs = f.storage == "bf16"
    sums = [w.local(count * 16) for _ in range(f.rows)]
    start = whole(w, f"{a.sums.o} + chunk * {f.rows * f.v_width} + {first * 16}")
    with w.block(f"for c in T.unroll({count}):"):
        for i, total in enumerate(sums):
            w(f"{at(total, 'c * 16')} = {at('o', f'{start} + {i * f.v_width} + c * 16')}")
    weights = whole(
        w, f"{a.p} + chunk * {f.rows * KEYS // 2}" if f.dot == "dpbf16" else f"{a.s} + chunk * {f.rows * KEYS}"
    )
    used = whole(w, f"T.min({a.end} - {a.first}, {KEYS})")
    line = whole(w, f"{a.v} + ({a.first}{' // 2' if pairs else ''}) * {f.v_width} + {first * 16}")
    steps = f"({used} + 1) // 2" if pairs else used
    fetched = range(0, count, 4 if f.storage == "i8" else 1) if f.fetches else ()
    ahead = KEYS * f.v_width // (2 if pairs else 1)
    with w.block(f"for t in T.serial({steps}):"):
        for c in fetched:
            w(prefetch("v", f"{line} + t * {f.v_width} + {c * 16 + ahead}"))
        with w.block(f"for c in T.unroll({count}):"):
            found = w.register(at("v", f"{line} + t * {f.v_width} + c * 16"), dtype=VALUES[f.storage])
            for i, total in enumerate(sums):
                row = f"{weights} + {i * KEYS // (2 if f.dot == 'dpbf16' else 1)}"
                _add_values(w, f, at(total, "c * 16"), found, row)
    with w.block(f"for c in T.unroll({count}):"):
        for i, total in enumerate(sums):
            w(f"{at('o', f'{start} + {i * f.v_width} + c * 16')} = {at(total, 'c * 16')}")


def _add_values(w: Writer, f: Form, total: str, found: str, weights: str) -> None:
    if f.dot == "dpbf16":
        p = splat(f"p[{weights} + t]")
        w(f"{total} = {dot_pairs(total, found, p)}")
        return
    lanes = [f'T.cast({found}, "float32x16")'] if f.storage == "i8" else unpacked(found, f.storage)
    for number, part in enumerate(lanes):
        key = f"t * 2 + {number}" if len(lanes) > 1 else "t"
        w(f"{total} = {total} + {splat(f's[{weights} + {key}]')} * {part}")


def begin(w: Writer, f: Form, sums: Sums, count: str) -> None:
    """Nothing seen yet: for `count` rows."""
    with w.block(f"for r in T.serial({count}):"):
        w(f"m[{sums.m} + r] = T.float32({LOWEST})")
        w(f"{at('l', f'{sums.total} + r * {BLOCK}')} = {constant(0.0)}")
        with w.block(f"for c in T.serial({f.v_width // 16}):"):
            w(f"{at('o', f'{sums.o} + r * {f.v_width} + c * 16')} = {constant(0.0)}")
