"""Shape and lookup ops: which elements of which operand elements are."""

from __future__ import annotations

from irx.backends.tvm_cuda.elementwise import INTEGER, converted, kind, number
from irx.backends.tvm_cuda.script import Indices, Script, broadcast, op
from irx.ir.dims import Dim, SymDim, maximum, minimum
from irx.ir.graph import Node, Value


def tensor(node: Node, index: int = 0) -> Value:
    """An operand that is there."""
    value = node.inputs[index]
    assert value is not None
    return value


def _dim(node: Node, name: str) -> Dim:
    value = node.attr(name)
    assert isinstance(value, int | SymDim)
    return value


def _axis(node: Node, rank: int) -> int:
    axis = node.attr("axis")
    assert isinstance(axis, int)
    return axis % rank


def _with(indices: Indices, axis: int, index: str) -> Indices:
    return (*indices[:axis], index, *indices[axis + 1 :])


@op("reshape")
def _reshape(script: Script, node: Node, indices: Indices) -> str:
    """The trailing axes that both have stay; the others go through the number of the element."""
    x, shape = tensor(node), node.output.shape
    same = 0
    while same < min(len(x.shape), len(shape)) and x.shape[-1 - same] == shape[-1 - same]:
        same += 1
    front = _divided(script, _number(script, indices, shape, len(shape) - same), x.shape[: len(x.shape) - same])
    return script.at(x, (*front, *indices[len(shape) - same :]))


def _number(script: Script, indices: Indices, shape: tuple[Dim, ...], count: int) -> str:
    """The row-major number of an element by its first axes."""
    text = "0"
    for index, size in zip(indices[:count], shape[:count], strict=True):
        text = index if text == "0" else f"({text} * {script.size(size)} + {index})"
    return text


def _divided(script: Script, number: str, shape: tuple[Dim, ...]) -> Indices:
    """The indices of the element with that number."""
    found: list[str] = []
    for axis in range(len(shape) - 1, -1, -1):
        if shape[axis] == 1:
            found.append("0")
        elif all(size == 1 for size in shape[:axis]):
            found.append(number)
            number = "0"
        else:
            found.append(f"({number} % {script.size(shape[axis])})")
            number = f"({number} // {script.size(shape[axis])})"
    return tuple(reversed(found))


@op("expand")
def _expand(script: Script, node: Node, indices: Indices) -> str:
    return script.at(tensor(node), broadcast(indices, tensor(node).shape))


@op("permute")
def _permute(script: Script, node: Node, indices: Indices) -> str:
    order, found = node.attr("order"), [""] * len(indices)
    assert isinstance(order, tuple)
    for index, source in zip(indices, order, strict=True):
        assert isinstance(source, int)
        found[source % len(indices)] = index
    return script.at(tensor(node), tuple(found))


@op("slice")
def _slice(script: Script, node: Node, indices: Indices) -> str:
    x = tensor(node)
    axis, start, step = _axis(node, len(x.shape)), _dim(node, "start"), _dim(node, "step")
    size = x.shape[axis]
    if not isinstance(start, SymDim):
        start = maximum(size + start, 0) if start < 0 else minimum(start, size) if start else 0
    index = indices[axis] if step == 1 else f"{indices[axis]} * {script.size(step)}"
    return script.at(x, _with(indices, axis, index if start == 0 else f"({index} + {script.size(start)})"))


@op("flip")
def _flip(script: Script, node: Node, indices: Indices) -> str:
    x, axes = tensor(node), node.attr("axes")
    assert isinstance(axes, tuple)
    for axis in (a % len(indices) for a in axes if isinstance(a, int)):
        indices = _with(indices, axis, f"({script.size(x.shape[axis] - 1)} - {indices[axis]})")
    return script.at(x, indices)


@op("concat")
def _concat(script: Script, node: Node, indices: Indices) -> str:
    """The operand is chosen before it is read."""
    value = node.output
    axis, text = _axis(node, len(value.shape)), ""
    starts: list[Dim] = [0]
    for i in range(len(node.inputs)):
        starts.append(starts[-1] + tensor(node, i).shape[axis])
    for i in reversed(range(len(node.inputs))):
        x, start = tensor(node, i), starts[i]
        moved = indices[axis] if start == 0 else f"({indices[axis]} - {script.size(start)})"
        own = converted(script.at(x, _with(indices, axis, moved)), kind(x.dtype), kind(value.dtype))
        text = f"T.if_then_else({indices[axis]} < {script.size(starts[i + 1])}, {own}, {text})" if text else own
    return text


@op("pad")
def _pad(script: Script, node: Node, indices: Indices) -> str:
    x, before, filler = tensor(node), node.attr("before"), node.attr("value")
    assert isinstance(before, tuple) and isinstance(filler, int | float)
    found, inside = list(indices), list[str]()
    for axis, (amount, size) in enumerate(zip(before, x.shape, strict=True)):
        assert isinstance(amount, int | SymDim)
        if amount != 0:
            inside.append(f"{indices[axis]} >= {script.size(amount)}")
            found[axis] = f"({indices[axis]} - {script.size(amount)})"
        if amount + size != node.output.shape[axis]:
            inside.append(f"{indices[axis]} < {script.size(amount + size)}")
    text = script.at(x, tuple(found))
    for condition in inside:
        text = f"T.if_then_else({condition}, {text}, {number(filler, kind(x.dtype))})"
    return text


@op("arange")
def _arange(script: Script, node: Node, indices: Indices) -> str:
    start, step = (f'T.cast({script.size(_dim(node, name))}, "int64")' for name in ("start", "step"))
    return converted(f'({start} + T.cast({indices[0]}, "int64") * {step})', INTEGER, kind(node.output.dtype))


@op("full")
def _full(script: Script, node: Node, indices: Indices) -> str:
    filler = node.attr("value")
    assert isinstance(filler, int | float)
    return number(filler, kind(node.output.dtype))


# --- lookups --------------------------------------------------------------------------------------------------------


def _looked_up(script: Script, index: Value, indices: Indices, size: Dim) -> str:
    """An element of an index tensor as an index; negative ones count from the end, and what lies outside is the end."""
    raw, extent = script.at(index, indices), f'T.cast({script.size(size)}, "int64")'
    counted = f"T.Select({raw} < T.int64(0), {raw} + {extent}, {raw})"
    bounded = f"T.max(T.int64(0), T.min({counted}, {extent} - T.int64(1)))"
    return bounded if script.wide else f'T.cast({bounded}, "int32")'


@op("embedding")
def _embedding(script: Script, node: Node, indices: Indices) -> str:
    ids, table = tensor(node), tensor(node, 1)
    return script.at(table, (_looked_up(script, ids, indices[:-1], table.shape[0]), indices[-1]))


@op("take")
def _take(script: Script, node: Node, indices: Indices) -> str:
    x, index = tensor(node), tensor(node, 1)
    axis, rank = _axis(node, len(x.shape)), len(index.shape)
    found = _looked_up(script, index, indices[axis : axis + rank], x.shape[axis])
    return script.at(x, (*indices[:axis], found, *indices[axis + rank :]))
