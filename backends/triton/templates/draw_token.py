"""Drawing a token of every row: its logits, sorted in registers, become probabilities, and a number picks one.

    candidates, largest first -> softmax(x / temperature) -> the likeliest together above top_p -> cumulative sum

A program has a row of few logits, those that a choice before it has left (`irx.backends.triton.templates.choosing`).
The number comes with the call, so that a seed means the same tokens on every device, and a recorded step reads another
one each time.
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Refusal
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.templates.choosing import LAST, NONE, emit_candidate, emit_value
from irx.backends.triton.templates.linear_shape import power_of_two
from irx.backends.triton.templates.token_elements import pointers
from irx.backends.triton.writer import Writer, loaded
from irx.ir.graph import Node

MOST = 1024  # logits that one program sorts


def draw_calls(node: Node) -> tuple[Call, ...]:
    """`sample`. Raises Refusal for rows of more logits than a program sorts."""
    arguments, w = Arguments(), Writer()
    logits, *_ = pointers(arguments, logits=node.inputs[0], uniform=node.inputs[1], token=node.output)
    count, temperature = logits.shape[1], float(str(node.attr("temperature")))
    if not isinstance(count, int) or count > MOST or logits.dtype == "f64":
        raise Refusal(f"a token of {count} logits in {logits.dtype} is drawn, and a program sorts {MOST} in f32")
    size = max(2, power_of_two(count))
    w("row = tl.program_id(0)")
    w(f"place = tl.arange(0, {size})")
    w(f"value = {loaded('logits', f'row.to(tl.int64) * {count} + place', logits.dtype, f'place < {count}')}")
    emit_candidate(w)
    w(f"candidate = tl.where(place < {count}, candidate, {NONE})")
    if temperature == 0:
        w(f"tl.store(token + row, {LAST} - (tl.max(candidate, 0) & {LAST}))")
    else:
        _draw(w, node, count, temperature)
    grid = (arguments.size(logits.shape[0]),)
    return (arguments.call("draw_token", w, Launch(grid, 4), f"a token of {count} logits"),)


def _draw(w: Writer, node: Node, count: int, temperature: float) -> None:
    top_k, top_p = node.attr("top_k"), node.attr("top_p")
    kept = count if top_k is None else min(count, int(str(top_k)))
    w("found = tl.sort(candidate, descending=True)")
    emit_value(w)
    w(f"x = tl.where(place < {kept}, value / {temperature!r}, -float('inf'))")
    w("p = tl.exp(x - tl.max(x, 0))")
    w("p = p / tl.sum(p, 0)")
    if top_p is not None:
        w(f"p = tl.where(tl.cumsum(p, 0) - p < {float(str(top_p))!r}, p, 0.0)")
    w("before = tl.cumsum(p, 0)")
    w("reach = tl.load(uniform + row).to(tl.float32) * tl.max(before, 0)")
    w("chosen = tl.sum(((before <= reach) & (p > 0.0)).to(tl.int32), 0)")
    w("chosen = tl.minimum(chosen, tl.sum((p > 0.0).to(tl.int32), 0) - 1)")
    w(f"tl.store(token + row, tl.sum(tl.where(place == chosen, {LAST} - (found & {LAST}), 0), 0))")
