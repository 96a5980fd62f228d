"""What kernels around a linear share, whatever multiplies: parameters, their bindings, and the epilogue.

Parameters: `x`, `norm_weight`, `norm_bias`; for product i the arrays `w{i}_{part}` and the bias `b{i}`; operands of the
epilogue `e0`, `e1`, ...; outputs `y0`, `y1`, ...; the list of the largest of every row, `best`.
"""

from __future__ import annotations

from collections.abc import Sequence

from irx.backends.regions.linear_region import EpilogueOperand, LinearRegion
from irx.backends.regions.lowered import Binding, Call, Data, PackedPart
from irx.backends.tvm.elementwise import emit
from irx.backends.tvm.kernel import Kernel, Parameter, Pointer
from irx.backends.tvm.lanes import load, store
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.templates.choosing import LIST, emit_candidates, room
from irx.backends.tvm.writer import LANES, STORAGE, Writer, at, splat
from irx.ir.graph import Value


def emit_columns(
    w: Writer, region: LinearRegion, totals: Sequence[tuple[str, str]], row: str, column: str, columns: int
) -> None:
    """The epilogue of 16 columns, or of those of them that there are, from `column` on.

    `totals` are buffer and place of each product's 16 sums; `columns` is what a unit of work has, padding included.
    """
    n = region.n
    if n % columns == 0:
        _epilogue(w, region, [at(*total) for total in totals], row, column, LANES)
        return
    if n >= LANES:
        with w.block(f"if {column} + {LANES} <= {n}:"):
            _epilogue(w, region, [at(*total) for total in totals], row, column, LANES)
    if n % LANES == 0:
        return
    rest = f"T.max(T.int64(0), {n} - {column})"
    with w.block(f"if {column} + {LANES} > {n}:"), w.block(f"for c in T.serial({rest}):"):
        single = [f"{buffer}[{place} + c]" for buffer, place in totals]
        _epilogue(w, region, single, row, w.let(f"{column} + c", "single"), 1)


def _epilogue(w: Writer, region: LinearRegion, totals: list[str], row: str, column: str, lanes: int) -> None:
    env: dict[Value, str] = {}
    for i, (product, total) in enumerate(zip(region.products, totals, strict=True)):
        if product.bias is not None:
            total = f"{total} + {load(w, f'b{i}', column, product.bias.dtype, lanes)}"
        env[product.result] = w.let(total)
    for j, operand in enumerate(region.operands):
        env[operand.value] = _operand(w, region, operand, f"e{j}", row, column, lanes)
    emit(w, region.epilogue, env, lanes)
    for j, (_, held) in enumerate(region.outputs):
        store(w, f"y{j}", f"{row} * {region.n} + {column}", held.dtype, env[held], lanes)
    if region.best is not None:
        emit_candidates(w, region.best, env[region.best.held], row, column, lanes)


def _operand(
    w: Writer, region: LinearRegion, operand: EpilogueOperand, name: str, row: str, column: str, lanes: int
) -> str:
    dtype = operand.value.dtype
    if operand.index in ("full", "row"):
        start = f"{row} * {region.n} + {column}" if operand.index == "full" else column
        return load(w, name, start, dtype, lanes)
    return w.let(splat(load(w, name, row if operand.index == "column" else "0", dtype, 1), lanes))


def input_parameters(region: LinearRegion) -> tuple[Parameter, ...]:
    """x, and the vectors of its norm."""
    pointers = [Pointer("x", STORAGE[region.x.dtype])]
    if region.norm is not None:
        vectors = (("norm_weight", region.norm.weight), ("norm_bias", region.norm.bias))
        pointers += [Pointer(name, STORAGE[vector.dtype]) for name, vector in vectors if vector is not None]
    return tuple(pointers)


def product_parameters(region: LinearRegion, layouts: tuple[Tiles, ...]) -> tuple[Parameter, ...]:
    """The weights and biases."""
    pointers = []
    for i, (product, layout) in enumerate(zip(region.products, layouts, strict=True)):
        pointers += [Pointer(f"w{i}_{name}", part.dtype) for name, part in layout.parts.items()]
        if product.bias is not None:
            pointers.append(Pointer(f"b{i}", STORAGE[product.bias.dtype]))
    return tuple(pointers)


def epilogue_parameters(region: LinearRegion) -> tuple[Parameter, ...]:
    """Operands of the epilogue, and outputs."""
    operands = [Pointer(f"e{j}", STORAGE[o.value.dtype]) for j, o in enumerate(region.operands)]
    outputs = [Pointer(f"y{j}", STORAGE[held.dtype]) for j, (_, held) in enumerate(region.outputs)]
    return (*operands, *outputs, *((LIST,) if region.best is not None else ()))


def operand_bindings(region: LinearRegion, layouts: tuple[Tiles, ...]) -> dict[str, Binding]:
    """What every parameter of the kernels of a region stands for."""
    bindings: dict[str, Binding] = {"rows": region.rows, "x": Data(region.x)}
    if region.norm is not None:
        vectors = {"norm_weight": region.norm.weight, "norm_bias": region.norm.bias}
        bindings |= {name: Data(vector) for name, vector in vectors.items() if vector is not None}
    for i, (product, layout) in enumerate(zip(region.products, layouts, strict=True)):
        weights = (product.weight.value,)
        bindings |= {f"w{i}_{part}": PackedPart(layout, weights, part) for part in layout.parts}
        if product.bias is not None:
            bindings[f"b{i}"] = Data(product.bias)
    bindings |= {f"e{j}": Data(operand.value) for j, operand in enumerate(region.operands)}
    bindings |= {f"y{j}": Data(value) for j, (value, _) in enumerate(region.outputs)}
    if region.best is not None:
        bindings[LIST.name] = room(region.best, region.rows)
    return bindings


def call(kernel: Kernel, bindings: dict[str, Binding]) -> Call:
    """A call of a kernel, with what it needs of the bindings."""
    return Call(kernel, {p.name: bindings[p.name] for p in kernel.parameters})
