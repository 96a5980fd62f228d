"""Tiles of tokens that some rows of a prompt see as codes and others as they are.

Which of the two depends on the row's position alone (`irx.ir.codes.TailedCode`): both are loaded, and chosen between
for logits and for weights. Only tokens a tail behind the first row of a block, and later ones, are seen so.
"""

from __future__ import annotations

from dataclasses import replace

from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.templates.attention_logits import Form, Queries, State, emit_logits, emit_seen
from irx.backends.triton.templates.attention_places import Head, Tokens
from irx.backends.triton.templates.attention_tailed import TailedKeys, TailedValues
from irx.backends.triton.writer import ELEMENTS, Writer


def emit_mixed_tile(
    w: Writer, arguments: Arguments, form: Form, queries: Queries, state: State, heads: tuple[Head, Head],
    tokens: Tokens,
) -> None:  # fmt: skip
    """Take tokens [T] into the state; the form's sides are read as codes, or are `fresh` where they are not."""
    keys, values = form.keys, form.values
    assert isinstance(keys, TailedKeys) and isinstance(values, TailedValues)
    token, at, tail = f"{tokens.slot}[None, :]", queries.position, keys.code.tail
    whole = replace(form, keys=replace(keys, recent=True))
    coded, plain = (emit_logits(w, arguments, one, queries, heads[0], tokens) for one in (form, whole))
    x = w.let(f"tl.where({token} < {at} - {at} % {tail}, {coded}, {plain})", "x")
    x = w.let(f"tl.where({emit_seen(w, arguments, form, queries, tokens, True)}, {x}, -float('inf'))", "x")
    top = w.let(f"tl.maximum({state.top}, tl.max({x}, 1))", "top")
    weights = w.let(f"tl.exp2({x} - {top}[:, None])", "p")
    shrink = w.let(f"tl.exp2({state.top} - {top})", "shrink")
    w(f"{state.total} = {state.total} * {shrink} + tl.sum({weights}, 1)")
    w(f"{state.top} = {top}")
    w(f"{state.sums} = {state.sums} * {shrink}[:, None]")
    as_code = w.let(f"{token} < {at} + {1 - tail}", "as_code")
    for side, part in ((values, f"tl.where({as_code}, {weights}, 0.0)"), (replace(values, recent=True), "")):
        part = part or f"tl.where({as_code}, 0.0, {weights})"
        tile = side.tile(w, arguments, heads[1], tokens, form.dtype)
        w(f"{state.sums} += tl.dot(({part}).to({ELEMENTS[form.dtype]}), {tile}{form.precision})")
