"""The largest columns of every row of a product, in kernels behind it: no more than these leaves the region.

    product   its logits, in a buffer that lives while the region runs
    choose    for a block of columns of a row: a sorted list of its k largest
    merge     the lists of a row become one -> values, indices

A candidate is one i64 that orders as candidates do: the bits of its value, turned so that they compare as integers,
above those of its column, counted from the end: of equal values the first column is the largest. NaN is above all
numbers, as in `argmax`. Lists are sorted by a network, in registers (Shanbhag et al. 2018, bitonic top-k).

A product's program has too few columns for lists of its own to be shorter than they are, and the logits of a row are
less than a hundredth of the bytes of its weights; so they are written once, and read once.
"""

from __future__ import annotations

from irx.backends.regions.linear_region import Best
from irx.backends.regions.lowered import Binding, Call, Data, Refusal, Temporary
from irx.backends.triton.kernel import Kernel, Pointer, Size
from irx.backends.triton.templates.linear_shape import power_of_two
from irx.backends.triton.writer import Writer
from irx.ir.dims import Dim
from irx.ir.types import item_bytes

LOGITS = "logits"
LAST = (1 << 31) - 1
"""Columns are counted from here downwards; also all bits but the sign."""
NONE = -((1 << 63) - 1)  # below every candidate
NAN = 0x7FC00000
BLOCKS = (1024, 2048, 4096)
"""Candidates that one program sorts."""
ONE_BLOCK = 2048  # columns that a single program chooses from
MOST = 128  # columns that can be chosen
CANDIDATE = 8  # bytes


def logits(best: Best, rows: Dim, columns: int) -> Temporary:
    """Where the product leaves what is chosen from."""
    return Temporary(LOGITS, rows * int(columns * item_bytes(best.held.dtype)))


def choose_calls(best: Best, rows: Dim, columns: int) -> tuple[Call, ...]:
    """The calls that choose from the logits [rows, columns]. Raises Refusal for more than a list holds."""
    if best.k > MOST:
        raise Refusal(f"topk of {best.k} elements")
    length, count = max(2, power_of_two(best.k)), columns
    calls: list[Call] = []
    while True:
        block = _block(count, length, BLOCKS[-1] if calls else ONE_BLOCK)
        blocks = -(-count // block)
        calls.append(_call(best, rows, (count, block), length, level=len(calls)))
        if blocks == 1:
            return tuple(calls)
        count = blocks * length


def _block(count: int, length: int, alone: int) -> int:
    """How many candidates a program takes: few enough for many programs, so many that one can merge their lists.

    Up to `alone` are one program's.
    """
    if count <= alone:
        return max(length, power_of_two(count))
    return next((block for block in BLOCKS if -(-count // block) * length <= BLOCKS[-1]), BLOCKS[-1])


def _call(best: Best, rows: Dim, size: tuple[int, int], length: int, level: int) -> Call:
    """One level: `size` are the candidates of a row and of a program. The first reads logits, others lists."""
    count, block = size
    blocks = -(-count // block)
    w = Writer()
    w("row = tl.program_id(0).to(tl.int64)")
    w(f"place = tl.program_id(1) * {block} + tl.arange(0, {block})")
    read, source = _read(w, best, count, block, level, rows)
    w(f"found = tl.topk(candidate, {length})")
    w(f"rank = tl.arange(0, {length})")
    targets: dict[str, Binding]
    if blocks == 1:
        _write(w, best, length)
        written = [Pointer("values", best.values.dtype), Pointer("indices", best.indices.dtype)]
        targets = {"values": Data(best.values), "indices": Data(best.indices)}
    else:
        name = f"lists{level}"
        w(f"tl.store({name} + (row * {blocks} + tl.program_id(1)) * {length} + rank, found)")
        written, targets = [Pointer(name, "i64")], {name: Temporary(name, rows * (CANDIDATE * blocks * length))}
    note = f"the {best.k} largest of {count} {'candidates' if level else 'columns'} of every row, {block} at a time"
    kernel = Kernel(
        "merge" if level else "choose",
        (Size("rows"), read, *written),
        w.text(),
        ("rows", str(blocks)),
        warps=8 if block >= BLOCKS[-1] else 4,
        stages=1,
        note=note,
    )
    return Call(kernel, {"rows": rows, read.name: source, **targets})


def _read(w: Writer, best: Best, count: int, block: int, level: int, rows: Dim) -> tuple[Pointer, Temporary]:
    """Write how candidates are loaded; where they lie."""
    mask = f", mask=place < {count}" if count % block else ""
    if level:
        pointer = Pointer(f"lists{level - 1}", "i64")
        other = f", other={NONE}" if mask else ""
        w(f"candidate = tl.load({pointer.name} + row * {count} + place{mask}{other})")
        return pointer, Temporary(pointer.name, rows * (CANDIDATE * count))
    pointer = Pointer(LOGITS, best.held.dtype)
    w(f"value = tl.load({LOGITS} + row * {count} + place{mask}{', other=0.0' if mask else ''}).to(tl.float32)")
    emit_candidate(w)
    if mask:
        w(f"candidate = tl.where(place < {count}, candidate, {NONE})")
    return pointer, logits(best, rows, count)


def _write(w: Writer, best: Best, length: int) -> None:
    """The results from a list."""
    mask = f", mask=rank < {best.k}" if best.k < length else ""
    emit_value(w)
    w(f"tl.store(values + row * {best.k} + rank, value.to(values.dtype.element_ty){mask})")
    w(f"tl.store(indices + row * {best.k} + rank, {LAST} - (found & {LAST}){mask})")


def emit_candidate(w: Writer) -> None:
    """`candidate` of a float32 `value` in the column `place`."""
    w("value = tl.where(value == 0.0, 0.0, value)  # both zeros are equal")
    w(f"bits = tl.where(value == value, value.to(tl.int32, bitcast=True), {NAN})")
    w(f"order = {_turned('bits')}")
    w(f"candidate = (order.to(tl.int64) << 32) + ({LAST} - place)")


def emit_value(w: Writer) -> None:
    """`value` of the candidate `found`."""
    w("order = (found >> 32).to(tl.int32)")
    w(f"bits = {_turned('order')}")
    w("value = bits.to(tl.float32, bitcast=True)")


def _turned(bits: str) -> str:
    """The bits of float32 as integers of the same order, and back."""
    return f"tl.where({bits} < 0, {bits} ^ {LAST}, {bits})"
