"""Merging tokens: size-weighted means of those that were matched, the others moved up."""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Data
from irx.backends.tvm.arguments import Arguments, times, whole
from irx.backends.tvm.lanes import load
from irx.backends.tvm.templates.attention_rows import number
from irx.backends.tvm.templates.conv_shape import share
from irx.backends.tvm.templates.rope import lanes_of
from irx.backends.tvm.writer import STORAGE, Writer, splat
from irx.ir.graph import Node, Value


def merge_call(node: Node) -> Call:
    """`merge_tokens`: threads share the tokens, each of which looks for itself among those that go."""
    w, arguments = Writer(), Arguments()
    x, sizes, gone, into = (value for value in node.inputs if value is not None)
    names = {"x": x, "sizes": sizes, "gone": gone, "into": into, "y": node.outputs[0], "total": node.outputs[1]}
    for name, value in names.items():
        arguments.pointer(name, STORAGE[value.dtype], Data(value))
    batch, length, count = (arguments.size(size) for size in (*x.shape[:2], gone.shape[1]))
    with w.block(share(times(batch, length))):
        b = whole(w, f"item // {length}")
        t = whole(w, f"item % {length}")
        own, place, more = _found(w, f"{b} * {count}", t, count)
        # Lists that are none, with a token twice, must not write elsewhere.
        with w.block(f"if {own} == 0 and {place} >= 0 and {place} < {length} - {count}:"):
            target = whole(w, f"{b} * ({length} - {count}) + {place}")
            total = _total(w, sizes, f"{b} * {length}", f"{b} * {count}", t, count)
            w.store("total", target, sizes.dtype, total, 1)
            with w.block(f"if {more} == 0 or {total} <= T.float32(0):"):
                _copied(w, x, target)
            with w.block(f"if {more} > 0 and {total} > T.float32(0):"):
                _mean(w, x, sizes, f"{b} * {length}", f"{b} * {count}", t, count, total, target)
    return arguments.call("merge_tokens", w, "size-weighted means of merged tokens")


def _found(w: Writer, start: str, t: str, count: str) -> tuple[str, str, str]:
    """(1 where token t goes, its place among those that stay, how many are merged into it)."""
    own, before, more = (w.register("T.int64(0)", dtype="int64", lanes=1) for _ in range(3))
    with w.block(f"for n in T.serial({count}):"):
        for register, condition in (
            (own, f"gone[{start} + n] == {t}"),
            (before, f"gone[{start} + n] < {t}"),
            (more, f"into[{start} + n] == {t}"),
        ):
            w(f"{register} = {register} + T.Select({condition}, T.int64(1), T.int64(0))")
    return own, whole(w, f"{t} - {before}"), more


def _total(w: Writer, sizes: Value, first: str, start: str, t: str, count: str) -> str:
    """The size of token t with all that is merged into it."""
    total = w.register(load(w, "sizes", f"{first} + {t}", sizes.dtype, 1), lanes=1)
    with w.block(f"for n in T.serial({count}):"), w.block(f"if into[{start} + n] == {t}:"):
        w(f"{total} = {total} + {load(w, 'sizes', f'{first} + gone[{start} + n]', sizes.dtype, 1)}")
    return total


def _copied(w: Writer, x: Value, target: str) -> None:
    """A token that stays as it is."""
    width = number(x.shape[2])
    lanes = lanes_of(width)
    with w.block(f"for c in T.serial({width // lanes}):"):
        value = load(w, "x", f"item * {width} + c * {lanes}", x.dtype, lanes)
        w.store("y", f"{target} * {width} + c * {lanes}", x.dtype, value, lanes)


def _mean(
    w: Writer, x: Value, sizes: Value, first: str, start: str, t: str, count: str, total: str, target: str
) -> None:
    """A token with those that are merged into it, each weighted by its size."""
    width = number(x.shape[2])
    lanes = lanes_of(width)
    with w.block(f"for c in T.serial({width // lanes}):"):
        size = load(w, "sizes", f"{first} + {t}", sizes.dtype, 1)
        own = load(w, "x", f"item * {width} + c * {lanes}", x.dtype, lanes)
        summed = w.register(f"{own} * {splat(size, lanes)}", lanes=lanes)
        with w.block(f"for n in T.serial({count}):"), w.block(f"if into[{start} + n] == {t}:"):
            source = whole(w, f"{first} + gone[{start} + n]")
            other = load(w, "x", f"{source} * {width} + c * {lanes}", x.dtype, lanes)
            w(f"{summed} = {summed} + {other} * {splat(load(w, 'sizes', source, sizes.dtype, 1), lanes)}")
        w.store("y", f"{target} * {width} + c * {lanes}", x.dtype, f"{summed} / {splat(total, lanes)}", lanes)
