"""Reductions: a block of their own each, in front of the blocks that read them.

TVM shares a reduction among threads only where it begins with the identity that TVM knows: for the largest of floats
that is the smallest finite one, not minus infinity; and a NaN may get lost among the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from irx.backends.tvm_cuda.elementwise import FLOAT, TRUTH, converted, kind, number
from irx.backends.tvm_cuda.moves import tensor
from irx.backends.tvm_cuda.script import Fold, Indices, Script, broadcast, op
from irx.ir.dims import product
from irx.ir.graph import Node


def _sum(of: str, total: str, text: str) -> tuple[str, str]:
    return number(0, of), f"{total} + {text}"


def _extreme(name: str, first: str, of: str, total: str, text: str) -> tuple[str, str]:
    return f'T.{first}("{of}")', f"T.{name}({total}, {text})"


FOLDS: dict[str, Callable[[str, str, str], tuple[str, str]]] = {
    "linear": _sum,
    "sum": _sum,
    "mean": _sum,
    "amax": partial(_extreme, "max", "min_value"),
    "amin": partial(_extreme, "min", "max_value"),
    "any": partial(_extreme, "max", "min_value"),
    "all": partial(_extreme, "min", "max_value"),
}


def axes_of(node: Node) -> tuple[int, ...]:
    """The axes that a reduction goes along, counted from the front."""
    if node.op.name == "linear":
        return (len(tensor(node).shape),)
    axes, rank = node.attr("axes"), len(tensor(node).shape)
    assert isinstance(axes, tuple)
    return tuple(sorted(axis % rank for axis in axes if isinstance(axis, int)))


@op("linear")
def _linear(script: Script, node: Node, indices: Indices) -> str:
    """A sum over the columns of x, which are the last axis of (rows of x, columns of the result, columns of x)."""
    x, weight, bias = tensor(node), tensor(node, 1), node.inputs[2] if len(node.inputs) > 2 else None
    if node.output not in script.reduced:
        name = script.reduced[node.output] = script.fresh("acc")
        shape = (*node.output.shape, x.shape[-1])

        def element(inside: Indices) -> str:
            *rows, column, k = inside
            one, other = script.at(x, (*broadcast(tuple(rows), x.shape[:-1]), k)), script.at(weight, (column, k))
            return f"{one} * {other}"

        script.reduce(name, shape, axes_of(node), partial(_sum, FLOAT), element, FLOAT)
    text = f"{script.reduced[node.output]}[{', '.join(indices)}]"
    return text if bias is None else f"({text} + {script.at(bias, indices[-1:])})"


@op(*(name for name in FOLDS if name != "linear"))
def _reduced(script: Script, node: Node, indices: Indices) -> str:
    x, axes, value = tensor(node), axes_of(node), node.output
    of = TRUTH if node.op.name in ("any", "all") else kind(value.dtype)
    held = "int32" if of == TRUTH else of
    if value not in script.reduced:
        name = script.reduced[value] = script.fresh("acc")
        fold: Fold = partial(FOLDS[node.op.name], held)

        def element(inside: Indices) -> str:
            text = converted(script.at(x, inside), kind(x.dtype), of)
            return f'T.cast({text}, "int32")' if of == TRUTH else text

        script.reduce(name, x.shape, axes, fold, element, held)
    kept = indices if len(indices) < len(x.shape) else tuple(i for a, i in enumerate(indices) if a not in axes)
    text = f"{script.reduced[value]}[{', '.join(kept) or '0'}]"
    if of == TRUTH:
        return f"({text} != 0)"
    if node.op.name != "mean":
        return text
    count = product(x.shape[axis] for axis in axes)
    divisor = number(float(count), FLOAT) if isinstance(count, int) else f'T.cast({script.size(count)}, "{FLOAT}")'
    return f"({text} / {divisor})"
