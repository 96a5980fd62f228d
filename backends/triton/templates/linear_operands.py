"""What kernels around a linear share, whatever multiplies: parameters, their bindings, the epilogue, shares of sums.

Parameters: `rows`, `x`, `norm_weight`, `norm_bias`; for product i the arrays `w{i}_{part}` and the bias `b{i}`;
operands of the epilogue `e0`, `e1`, ...; outputs `y0`, `y1`, ...; `logits` where some are chosen; and where several
programs share a sum, `partial` and `arrived`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from irx.backends.regions.linear_region import EpilogueOperand
from irx.backends.regions.lowered import Binding, Call, Data, PackedPart, Temporary
from irx.backends.triton.elementwise import emit
from irx.backends.triton.kernel import Kernel, Parameter, Pointer, Size
from irx.backends.triton.templates.choosing import LOGITS, logits
from irx.backends.triton.templates.linear_input import masked
from irx.backends.triton.templates.linear_shape import Problem
from irx.backends.triton.writer import Writer
from irx.ir.dims import Dim
from irx.ir.graph import Value


@dataclass(frozen=True)
class Share:
    """How `split` programs share the sums of one `unit` of work: the number of this one is `share`.

    `index` is the place of a sum among the `size` of one share of one product, `shape` that of the sums; all texts.
    """

    split: int
    unit: str
    index: str
    size: str
    shape: str
    mask: str

    def place(self, product: int, share: str) -> str:
        """Where a share of the sums of a product is kept."""
        return f"partial + ({product * self.split} + {share}) * {self.size} + {self.index}"


@dataclass(frozen=True)
class Place:
    """Texts of where results go: `row` and `column` broadcast to the shape of the sums.

    `columns` masks those there are, `exists` the results there are (both empty: all); a row is always one there is.
    """

    row: str
    column: str
    columns: str = ""
    exists: str = ""


def emit_operands(w: Writer, problem: Problem, place: Place) -> dict[str, str]:
    """Load the biases and operands of the epilogue: float32 (or their own kind) by the name of the parameter."""
    found = {}
    for i, product in enumerate(problem.region.products):
        if product.bias is not None:
            found[f"b{i}"] = w.load(f"b{i}", place.column, product.bias.dtype, place.columns)
    for j, operand in enumerate(problem.region.operands):
        found[f"e{j}"] = _operand(w, problem, f"e{j}", operand, place)
    return found


def emit_results(w: Writer, problem: Problem, place: Place, sums: Sequence[str], operands: dict[str, str]) -> None:
    """The epilogue on the sums of each product, and its outputs."""
    region = problem.region
    env: dict[Value, str] = {}
    for i, (product, total) in enumerate(zip(region.products, sums, strict=True)):
        env[product.result] = w.let(f"{total} + {operands[f'b{i}']}") if product.bias is not None else total
    env.update({operand.value: operands[f"e{j}"] for j, operand in enumerate(region.operands)})
    emit(w, region.epilogue, env)
    for j, (_, held) in enumerate(region.outputs):
        w.store(f"y{j}", _full(problem, place), held.dtype, env[held], place.exists)
    if region.best is not None:
        w.store(LOGITS, _full(problem, place), region.best.held.dtype, env[region.best.held], place.exists)


def _full(problem: Problem, place: Place) -> str:
    """The index of a result."""
    row = "" if place.row == "0" else f"{place.row} * {problem.n} + "
    return f"{row}{place.column}"


def _operand(w: Writer, problem: Problem, name: str, operand: EpilogueOperand, place: Place) -> str:
    dtype = operand.value.dtype
    if operand.index == "full":
        return w.load(name, _full(problem, place), dtype, place.columns)
    if operand.index == "row":
        return w.load(name, place.column, dtype, place.columns)
    if operand.index == "column":
        return w.load(name, place.row, dtype)
    return w.load(name, "0", dtype)


@contextmanager
def shared_sums(w: Writer, sums: Sequence[str], share: Share) -> Iterator[list[str]]:
    """Leave this program's share of the sums; what is written inside runs in the last program alone, on the totals.

    Shares are added in their own order, whoever comes last, so that results are the same every time.
    """
    kept = f", mask={share.mask}" if share.mask else ""
    for i, total in enumerate(sums):
        w(f"tl.store({share.place(i, 'share')}, {total}{kept})")
    w("tl.debug_barrier()  # all threads have written before one of them says so")
    w(f'before = tl.atomic_add(arrived + {share.unit}, 1, sem="acq_rel")')
    names = []
    with w.block(f"if before == {share.split - 1}:"):
        for i in range(len(sums)):
            name = w.fresh("total")
            w(f"{name} = tl.zeros({share.shape}, tl.float32)")
            with w.block(f"for other in tl.static_range({share.split}):"):
                w(f'{name} += tl.load({share.place(i, "other")}{masked(share.mask)}, cache_modifier=".cg")')
            names.append(name)
        yield names
        w(f"tl.store(arrived + {share.unit}, 0)")


def parameters(problem: Problem, shared: bool) -> tuple[Parameter, ...]:
    """The parameters of a kernel of the region."""
    region = problem.region
    found: list[Parameter] = [*input_parameters(problem)]
    for i, (product, layout) in enumerate(zip(region.products, problem.layouts, strict=True)):
        found += [Pointer(f"w{i}_{name}", part.dtype) for name, part in layout.parts.items()]
        if product.bias is not None:
            found.append(Pointer(f"b{i}", product.bias.dtype))
    found += [Pointer(f"e{j}", operand.value.dtype) for j, operand in enumerate(region.operands)]
    found += [Pointer(f"y{j}", held.dtype) for j, (_, held) in enumerate(region.outputs)]
    found += [Pointer(LOGITS, region.best.held.dtype)] if region.best is not None else []
    return (*found, *((Pointer("partial", "f32"), Pointer("arrived", "i32")) if shared else ()))


def input_parameters(problem: Problem) -> tuple[Parameter, ...]:
    """Rows, x, and the vectors of its norm."""
    vectors = {} if problem.norm is None else {"norm_weight": problem.norm.weight, "norm_bias": problem.norm.bias}
    pointers = [Pointer(name, vector.dtype) for name, vector in vectors.items() if vector is not None]
    return (Size("rows"), Pointer("x", problem.x_dtype), *pointers)


def call(kernel: Kernel, problem: Problem, memory: Mapping[str, Binding]) -> Call:
    """A call of a kernel of the region, with `memory` for what is not of the region."""
    found = {**region_bindings(problem), **memory}
    return Call(kernel, {parameter.name: found[parameter.name] for parameter in kernel.parameters})


def shared_memory(sums: Dim, split: int, units: Dim) -> dict[str, Binding]:
    """Where programs leave shares of `sums` numbers, and count who has come for each of `units`."""
    return {
        "partial": Temporary("partial", sums * (4 * split)),
        "arrived": Temporary("arrived", units * 4, zeroed=True),
    }


def region_bindings(problem: Problem) -> dict[str, Binding]:
    """What every parameter but `partial` and `arrived` stands for."""
    region = problem.region
    found: dict[str, Binding] = {"rows": region.rows, "x": Data(region.x)}
    if region.norm is not None:
        vectors = {"norm_weight": region.norm.weight, "norm_bias": region.norm.bias}
        found |= {name: Data(vector) for name, vector in vectors.items() if vector is not None}
    for i, (product, layout) in enumerate(zip(region.products, problem.layouts, strict=True)):
        found |= {f"w{i}_{part}": PackedPart(layout, (product.weight.value,), part) for part in layout.parts}
        if product.bias is not None:
            found[f"b{i}"] = Data(product.bias)
    found |= {f"e{j}": Data(operand.value) for j, operand in enumerate(region.operands)}
    if region.best is not None:
        found[LOGITS] = logits(region.best, region.rows, region.n)
    return found | {f"y{j}": Data(value) for j, (value, _) in enumerate(region.outputs)}
