"""Attention with its log-sum-exp, and the attention that keys get: for the few rows that choose tokens."""

from __future__ import annotations

from irx.backends.regions.lowered import Call
from irx.backends.tvm import vector_math
from irx.backends.tvm.arguments import times, whole
from irx.backends.tvm.lanes import load
from irx.backends.tvm.templates.attention_rows import HIDDEN, Rows, number, row_of
from irx.backends.tvm.templates.conv_shape import share
from irx.backends.tvm.templates.rope import lanes_of
from irx.backends.tvm.writer import at, constant, splat
from irx.ir.graph import Node, Value


def lse_call(node: Node) -> Call:
    """`attention_lse`: threads share the rows of all heads."""
    r = Rows(node)
    w, (out, lse), sinks = r.w, node.outputs, r.operand("sinks")
    with w.block(share(times(r.batch, f"T.int64({r.heads})", r.rows))):
        b, head, row = row_of(r, "item")
        values = whole(w, f"({b} * {r.groups} + {head} // {r.shared}) * {r.keys}")
        top = r.logits("item", values, b, head, row)
        sink = None if sinks is None else r.element("sinks", sinks, head)
        if sink is not None:
            w(f"{top} = T.max({top}, {sink})")
        shift = w.register(f"T.Select({top} > {HIDDEN}, {top}, T.float32(0))", lanes=1)
        total = r.shares(shift)
        if sink is not None:
            w(f"{total} = {total} + {vector_math.exp(w, w.register(f'{sink} - {shift}', lanes=1), 1)}")
        _weigh(r, values, total, out)
        w(f"{r.pointer('lse', lse)}[item] = {shift} + {vector_math.log(w, total, 1)}")
    return r.arguments.call("attention_lse", w, "attention row by row, with log-sum-exps")


def stats_call(node: Node) -> Call:
    """`attention_stats`: threads share the KV heads."""
    r = Rows(node)
    w, (c, n), wanted = r.w, node.outputs, node.attr("rows")
    first = whole(w, f"T.max({r.rows} - T.int64({wanted}), T.int64(0))" if wanted else "T.int64(0)")
    part = 1 / r.shared if node.attr("group") == "mean" else 1.0
    r.own("head")
    r.own("all")
    with w.block(share(times(r.batch, f"T.int64({r.groups})"))):
        _clear(r, "all")
        with w.block(f"for j in T.serial({r.shared}):"):
            _head(r, whole(w, f"item * {r.shared} + j"), first)
            _fold(r, "all", "head", str(node.attr("group")))
        with w.block(f"for t in T.serial({r.keys}):"):
            w(f"{r.pointer('c', c)}[item * {r.keys} + t] = all[tid * {r.room} + t] * T.float32({part!r})")
    with w.block("if tid == 0:"), w.block(f"for t in T.serial({r.keys}):"):
        before = f"T.max(t, {first})" if node.attr("causal") else first
        w(f"{r.pointer('n', n)}[t] = T.max({r.rows} - {before}, T.int64(0))")
    return r.arguments.call("attention_stats", w, "how much attention keys get")


def _head(r: Rows, head: str, first: str) -> None:
    """The buffer `head` gets what one head's rows from `first` on pay the keys."""
    w, lse = r.w, r.needed("lse")
    _clear(r, "head")
    with w.block(f"for i in T.serial({r.rows} - {first}):"):
        row = whole(w, f"{first} + i")
        q_row = whole(w, f"{head} * {r.rows} + {row}")
        r.logits(q_row, f"item * {r.keys}", "T.int64(0)", head, row)
        r.shares(r.element("lse", lse, q_row))
        _fold(r, "head", "logits", str(r.node.attr("reduce")))


def _weigh(r: Rows, v_start: str, total: str, out: Value) -> None:
    """The row of the result: the values from row `v_start` on, weighted by their shares."""
    w, values, width = r.w, r.needed("v"), number(out.shape[3])
    count = lanes_of(width)
    inverse = w.register(f"T.Select({total} > T.float32(0), T.float32(1) / {total}, T.float32(0))", lanes=1)
    with w.block(f"for c in T.serial({width // count}):"):
        summed = w.register(constant(0.0, count), lanes=count)
        with w.block(f"for t in T.serial({r.keys}):"):
            place = f"({v_start} + t) * {width} + c * {count}"
            value = load(w, r.pointer("v", values), place, values.dtype, count)
            w(f"{summed} = {summed} + {splat(f'logits[tid * {r.room} + t]', count)} * {value}")
        result = f"{summed} * {splat(inverse, count)}"
        w.store(r.pointer("out", out), f"item * {width} + c * {count}", out.dtype, result, count)


def _clear(r: Rows, buffer: str) -> None:
    with r.blocks() as block:
        r.w(f"{at(buffer, f'tid * {r.room} + {block}')} = {constant(0.0)}")


def _fold(r: Rows, into: str, source: str, how: str) -> None:
    """into = the maximum or the sum of both buffers."""
    with r.blocks() as block:
        x, y = (at(buffer, f"tid * {r.room} + {block}") for buffer in (into, source))
        r.w(f"{x} = T.Select({y} > {x}, {y}, {x})" if how == "max" else f"{x} = {x} + {y}")
