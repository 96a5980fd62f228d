"""The largest columns of every row, chosen while a product computes them: the rows themselves are never stored.

    product:  every thread keeps a list of the k largest of its columns for each row
    merge:    the lists of a row become one -> values, indices

A candidate is one i64 that orders as candidates do: the bits of its value, turned so that they compare as integers,
above those of its column, counted from the end: of equal values the first column is the largest. NaN is above all
numbers, as in `argmax`. A list is sorted, largest first, and holds no candidate twice: blocks of rows may overlap.
"""

from __future__ import annotations

from irx.backends.regions.linear_region import Best
from irx.backends.regions.lowered import Binding, Call, Data, Temporary
from irx.backends.tvm.kernel import Kernel, Pointer, Size
from irx.backends.tvm.lanes import Lanes
from irx.backends.tvm.templates.instructions import reduced
from irx.backends.tvm.writer import LANES, STORAGE, Writer, at, narrowed, widened
from irx.ir.dims import Dim

LIST = Pointer("best", "int64")
NONE = f"T.int64({-(1 << 63)})"
LAST = (1 << 31) - 1
"""Columns are counted from here downwards; also all bits but the sign."""
NAN = 0x7FC00000


def room(best: Best, rows: Dim) -> Temporary:
    """The lists of a thread."""
    return Temporary("best", rows * (8 * best.k), per_thread=True)


def emit_start(w: Writer, best: Best | None) -> None:
    """Empty the thread's lists, where there are any."""
    if best is not None:
        with w.block(f"for i in T.serial(rows * {best.k}):"):
            w(f"best[tid * rows * {best.k} + i] = {NONE}")


def emit_candidates(w: Writer, best: Best, value: str, row: str, column: str, lanes: int) -> None:
    """Put float32 lanes, the columns of a row from `column` on, into the thread's list where they belong there."""
    start = w.register(f"(tid * rows + {row}) * {best.k}", dtype="int64", lanes=1)
    order = _order(w, best, value, lanes)
    if lanes == 1:
        _offer(w, best, start, _candidate(w, order, column))
        return
    orders = w.local(LANES, "int32")
    w(f"{at(orders, '0')} = {order}")
    least = f'T.cast(T.shift_right(best[{start} + {best.k - 1}], T.int64(32)), "int32")'
    with w.block(f"if {reduced(order, 'smax', 'int32')} >= {least}:"), w.block(f"for lane in T.serial({LANES}):"):
        _offer(w, best, start, _candidate(w, f"{orders}[lane]", f"({column} + lane)"))


def merge_call(best: Best, rows: Dim) -> Call:
    """Puts the lists of all threads together and writes the results, rows shared out over the threads."""
    w = Writer()
    with w.block("for row in T.serial((rows * tid) // nt, (rows * (tid + 1)) // nt):"):
        start = w.register(f"row * {best.k}", dtype="int64", lanes=1)
        with w.block("for other in T.serial(nt - 1):"), w.block(f"for i in T.serial({best.k}):"):
            found = w.register(f"best[((other + 1) * rows + row) * {best.k} + i]", dtype="int64", lanes=1)
            _offer(w, best, start, found)
        with w.block(f"for i in T.serial({best.k}):"):
            _write(w, best, start)
    parameters = (Size("rows"), LIST, Pointer("values", STORAGE[best.values.dtype]), Pointer("indices", "int64"))
    kernel = Kernel("choose", parameters, w.text(), note=f"the {best.k} largest columns of every row")
    bindings: dict[str, Binding] = {"rows": rows, LIST.name: room(best, rows)}
    return Call(kernel, {**bindings, "values": Data(best.values), "indices": Data(best.indices)})


def _order(w: Writer, best: Best, value: str, lanes: int) -> str:
    """int32 lanes that compare as the values do once they are rounded to their dtype; both zeros are equal."""
    v = Lanes(w, lanes)
    dtype = best.held.dtype
    rounded = v.let(widened(narrowed(w, value, dtype, lanes), dtype, lanes))
    bits = v.let(v.bits(v.let(v.select(f"{rounded} == {v.f(0)}", v.f(0), rounded)), "int32"), "int32")
    whole = v.let(v.select(f"{rounded} == {rounded}", bits, v.n(NAN)), "int32")
    return v.let(_turned(v, whole), "int32")


def _turned(v: Lanes, bits: str) -> str:
    """The bits of float32 as integers of the same order, and back."""
    return v.select(f"{bits} < {v.n(0)}", f"T.bitwise_xor({bits}, {v.n(LAST)})", bits)


def _candidate(w: Writer, order: str, column: str) -> str:
    high = f'T.shift_left(T.cast({order}, "int64"), T.int64(32))'
    return w.register(f"{high} + (T.int64({LAST}) - {column})", dtype="int64", lanes=1)


def _offer(w: Writer, best: Best, start: str, candidate: str) -> None:
    """Put a candidate in its place, and what is smaller one place further; the last one falls out."""
    with w.block(f"if {candidate} > best[{start} + {best.k - 1}]:"):
        above = w.register("T.int64(0)", dtype="int64", lanes=1)
        with w.block(f"for j in T.serial({best.k}):"):
            w(f"{above} = {above} + T.Select(best[{start} + j] > {candidate}, T.int64(1), T.int64(0))")
        with w.block(f"if best[{start} + {above}] != {candidate}:"):
            moving = w.register(candidate, dtype="int64", lanes=1)
            old = w.register(dtype="int64", lanes=1)
            with w.block(f"for j in T.serial({best.k} - {above}):"):
                w(f"{old} = best[{start} + {above} + j]")
                w(f"best[{start} + {above} + j] = {moving}")
                w(f"{moving} = {old}")


def _write(w: Writer, best: Best, start: str) -> None:
    v = Lanes(w, 1)
    chosen = w.register(f"best[{start} + i]", dtype="int64", lanes=1)
    order = v.let(f'T.cast(T.shift_right({chosen}, T.int64(32)), "int32")', "int32")
    w.store("values", f"{start} + i", best.values.dtype, v.bits(v.let(_turned(v, order), "int32"), "float32"), 1)
    w(f"indices[{start} + i] = T.int64({LAST}) - T.bitwise_and({chosen}, T.int64({(1 << 32) - 1}))")
