"""One tile of attention: some rows of queries against 64 keys, folded into sums that are kept in memory.

Scores of the tile go to a small buffer; then each row's maximum, sum and exponentials are brought up to date, and the
values are added to the row's output, which is scaled down where the maximum has grown (online softmax: Milakov and
Gimelshein 2018, arXiv:1805.02867; tiles: Dao et al. 2022, arXiv:2205.14135).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import whole
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, LOG2_E, LOWEST, Form
from irx.backends.tvm.templates.instructions import dot_bytes, dot_pairs, prefetch, summed
from irx.backends.tvm.templates.instructions import highest as highest_of
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
    source: str = ""
    """What stands before the names of the arrays of keys and values."""
    ahead: str = str(KEYS)
    """Slots between the tile and the one whose keys and values are asked for meanwhile."""


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
    """s[row, key] = q k, for all rows and the 64 keys, padded to whole chunks of rows.

    Of a tile that is not full, a kernel that fetches reads only the blocks that hold keys.
    """
    chunks = f"({a.count} + {f.rows - 1}) // {f.rows}"
    with w.block(f"for chunk in T.serial({chunks}):"):
        row = whole(w, f"{a.q} + chunk * {f.rows * f.q_width}")
        out = whole(w, f"{a.s} + chunk * {f.rows * KEYS}")
        if not f.fetches:
            _all_scores(w, f, a, row, out)
            return
        used = whole(w, f"{a.end} - {a.first}")
        with w.block(f"if {used} > {KEYS - BLOCK}:"):
            _all_scores(w, f, a, row, out)
        blocks = f"for block in T.serial(({used} + {BLOCK - 1}) // {BLOCK}):"
        with w.block(f"if {used} <= {KEYS - BLOCK}:"), w.block(blocks):
            _scores(w, replace(f, blocks=1), a, row, out, "block")


def _all_scores(w: Writer, f: Form, a: Places, row: str, out: str) -> None:
    for part in range(0, KEYS // BLOCK, f.blocks):
        _scores(w, f, a, row, out, part)


def _scores(w: Writer, f: Form, a: Places, row: str, out: str, part: int | str) -> None:
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
        keys = w.register(at(f"{a.source}k", place), dtype=f.store.word)
        if f.fetches:
            w(prefetch(f"{a.source}k", f"{place} + {a.ahead} * {f.steps}"))
        parts = _parts(w, f, keys)
        for (i, plane), total in sums.items():
            _multiply(w, f, at(total, f"j * {BLOCK}"), parts, f"{row} + {i * f.q_width}", plane)
    with w.block(f"for j in T.unroll({f.blocks}):"):
        for i in range(f.rows):
            value = at(sums[i, 0], f"j * {BLOCK}")
            if f.dot == "vnni":
                value = _joined(f, value, at(sums[i, 1], f"j * {BLOCK}"), f"{row} + {i * f.q_width + f.q_sum}")
            w(f"{at('s', f'{out} + {i * KEYS} + ({part} + j) * {BLOCK}')} = {value}")


def _parts(w: Writer, f: Form, keys: str) -> list[str]:
    """What is in words of keys: what a dot product takes at once, in registers."""
    if f.dot == "dpbf16":
        return [keys]
    if f.dot == "vnni":
        return [w.register(quad, dtype="int32") for quad in f.store.quads(keys)]
    return [w.register(lanes) for lanes in f.store.lanes(keys)]


def _multiply(w: Writer, f: Form, total: str, parts: list[str], row: str, plane: int) -> None:
    """total += one step of keys times one row of queries."""
    for number, keys in enumerate(parts):
        place = f"{row} + {plane * f.quads if f.dot == 'vnni' else 0} + d * {len(parts)} + {number}"
        q = splat(f"q[{place}]")
        if f.dot == "dpbf16":
            w(f"{total} = {dot_pairs(total, keys, q)}")
        elif f.dot == "vnni":
            w(f"{total} = {dot_bytes(total, keys, q)}")
        else:
            w(f"{total} = {total} + {q} * {keys}")


def _joined(f: Form, high: str, low: str, end: str) -> str:
    """The product with both planes of a query of bytes, whose last two elements begin at `end`."""
    exact = f"{high} * T.broadcast(T.int32(128), 16) + {low}"
    if f.store.offset:
        exact += f" - {splat(f'q[{end}]')}"
    scale = f'T.reinterpret("float32", q[{end} + 1])'
    return f'T.cast({exact}, "float32x16") * {splat(scale)}'


def softmax(w: Writer, f: Form, a: Places, row: RowTexts, unmasked: str) -> None:
    """Bring row `r`'s maximum and sum up to date and turn its scores into weights. `unmasked`: all keys are seen."""
    base = whole(w, f"{a.s} + r * {KEYS}")
    values = w.local(KEYS)
    q_sum = _query_sum(w, f, a) if f.store.zeros else ""
    value, key = at(values, f"j * {BLOCK}"), f"{a.first} + j * {BLOCK}"
    with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
        w(f"{value} = {at('s', f'{base} + j * {BLOCK}')}")
        _finish_score(w, f, a, row, value, key, q_sum)
    with w.block(f"if not ({unmasked}):"):
        low, high = (w.register(text, dtype="int32", lanes=1) for text in (row.low, row.high))
        with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
            keys = f'T.ramp(T.cast({key}, "int32"), 1, 16)'
            seen = f"T.bitwise_and({_not_before(f, keys, low)}, {keys} < {splat(high)})"
            w(f"{value} = T.Select({seen}, {value}, {constant(float('-inf'))})")
    now = _new_maximum(w, f, a, values)
    added = w.register(constant(0.0))
    zeros = w.register(constant(0.0)) if f.store.zeros else ""
    with w.block(f"for j in T.unroll({KEYS // BLOCK}):"):
        weight = vector_math.exp2(w, w.register(f"{value} - {splat(now)}"))
        w(f"{added} = {added} + {weight}")
        if zeros:
            w(f"{zeros} = {zeros} + {weight} * {_parameter(f, a, 'v_zero', f'{a.first} + j * {BLOCK}')}")
        _store_weight(w, f, a, weight, base)
    if zeros:
        _add_zeros(w, f, a, zeros)
    total = at("l", f"{a.sums.total} + r * {BLOCK}")
    w(f"{total} = {total} + {added}")


def _not_before(f: Form, keys: str, low: str) -> str:
    """Which of 16 keys are in a row's window or behind it, or among the first."""
    inside = f"{keys} >= {splat(low)}"
    return f"T.bitwise_or({inside}, {keys} < {splat(f'T.int32({f.first})')})" if f.first else inside


def _parameter(f: Form, a: Places, name: str, key: str) -> str:
    """A parameter of the 16 tokens from `key` on, as float32."""
    found = at(a.source + name, f"{a.scales} + {key}")
    return found if f.store.parameter == "float32" else f'T.cast({found}, "float32x16")'


def _query_sum(w: Writer, f: Form, a: Places) -> str:
    """The sum of row `r`'s queries, in all lanes."""
    place = f"q[{a.q} + r * {f.q_width} + {f.q_sum}]"
    return w.register(splat(place if f.dot == "fma" else f'T.reinterpret("float32", {place})'))


def _add_zeros(w: Writer, f: Form, a: Places, zeros: str) -> None:
    """What the zeros of all tokens add to every channel of row `r`'s output."""
    added = w.register(splat(summed(zeros)))
    with w.block(f"for c in T.serial({f.v_width // 16}):"):
        out = at("o", f"{a.sums.o} + r * {f.v_width} + c * 16")
        w(f"{out} = {out} + {added}")


def _new_maximum(w: Writer, f: Form, a: Places, values: str) -> str:
    """The row's maximum with these scores; where it has grown, sum and output are scaled down to it."""
    first, second, third, fourth = (at(values, str(j * BLOCK)) for j in range(KEYS // BLOCK))
    together = f"T.max(T.max({first}, {second}), T.max({third}, {fourth}))"
    highest = w.register(highest_of(together), lanes=1)
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


def _finish_score(w: Writer, f: Form, a: Places, row: RowTexts, value: str, key: str, q_sum: str) -> None:
    """From the product to the exponent of 2: scales and zeros, cap, biases."""
    if f.dot == "dpbf16":
        w(f"{value} = {value} * {constant(f.score_scale)}")
    if f.store.parameters:
        w(f"{value} = {value} * {_parameter(f, a, 'k_scale', key)}")
    if q_sum:
        w(f"{value} = {value} + {q_sum} * {_parameter(f, a, 'k_zero', key)}")
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
    if f.store.parameters:
        scaled = f"{weight} * {_parameter(f, a, 'v_scale', f'{a.first} + j * {BLOCK}')}"
    w(f"{at('s', f'{base} + j * {BLOCK}')} = {scaled}")


def values(w: Writer, f: Form, a: Places) -> None:
    """o[row] += weights times values, for the keys before `end`."""
    with w.block(f"for chunk in T.serial(({a.count} + {f.rows - 1}) // {f.rows}):"):
        for first, count in f.spread:
            _values(w, f, a, first, count)


def _values(w: Writer, f: Form, a: Places, first: int, count: int) -> None:
    """`count` vectors of the rows' outputs, again one small buffer a row."""
    store = f.store
    sums = [w.local(count * 16) for _ in range(f.rows)]
    start = whole(w, f"{a.sums.o} + chunk * {f.rows * f.v_width} + {first * 16}")
    with w.block(f"for c in T.unroll({count}):"):
        for i, total in enumerate(sums):
            w(f"{at(total, 'c * 16')} = {at('o', f'{start} + {i * f.v_width} + c * 16')}")
    weights = whole(
        w, f"{a.p} + chunk * {f.rows * KEYS // 2}" if f.dot == "dpbf16" else f"{a.s} + chunk * {f.rows * KEYS}"
    )
    used = whole(w, f"T.min({a.end} - {a.first}, {KEYS})")
    line = whole(w, f"{a.v} + ({a.first} // {store.tokens}) * {f.v_elements} + {first * 16 // store.halves}")
    vectors = count // store.halves
    with w.block(f"for t in T.serial(({used} + {store.tokens - 1}) // {store.tokens}):"):
        for c in range(0, vectors if f.fetches else 0, store.per_line):
            w(prefetch(f"{a.source}v", f"{line} + (t + {a.ahead} // {store.tokens}) * {f.v_elements} + {c * 16}"))
        with w.block(f"for c in T.unroll({vectors}):"):
            found = w.register(at(f"{a.source}v", f"{line} + t * {f.v_elements} + c * 16"), dtype=store.value)
            lanes = [found] if f.dot == "dpbf16" else [w.register(part) for part in store.values(found)]
            for i, total in enumerate(sums):
                row = f"{weights} + {i * KEYS // (2 if f.dot == 'dpbf16' else 1)}"
                _add_values(w, f, total, lanes, row)
    with w.block(f"for c in T.unroll({count}):"):
        for i, total in enumerate(sums):
            w(f"{at('o', f'{start} + {i * f.v_width} + c * 16')} = {at(total, 'c * 16')}")


def _add_values(w: Writer, f: Form, sums: str, lanes: list[str], weights: str) -> None:
    """Add what vector `c` of the values of step `t` holds to a row's sums."""
    if f.dot == "dpbf16":
        total = at(sums, "c * 16")
        w(f"{total} = {dot_pairs(total, lanes[0], splat(f'p[{weights} + t]'))}")
        return
    for number, part in enumerate(lanes):
        half, token = (number, 0) if f.store.halves > 1 else (0, number)
        total = at(sums, f"(c * {f.store.halves} + {half}) * 16")
        w(f"{total} = {total} + {splat(f's[{weights} + t * {f.store.tokens} + {token}]')} * {part}")


def begin(w: Writer, f: Form, sums: Sums, count: str) -> None:
    """Nothing seen yet: for `count` rows."""
    with w.block(f"for r in T.serial({count}):"):
        w(f"m[{sums.m} + r] = T.float32({LOWEST})")
        w(f"{at('l', f'{sums.total} + r * {BLOCK}')} = {constant(0.0)}")
        with w.block(f"for c in T.serial({f.v_width // 16}):"):
            w(f"{at('o', f'{sums.o} + r * {f.v_width} + c * 16')} = {constant(0.0)}")
