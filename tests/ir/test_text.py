"""The text form: what is printed parses back to the same program, and nothing else but ParseError ever comes out."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import irx.ops  # noqa: F401
from irx.errors import ParseError
from irx.ir.dims import Range, symbol
from irx.ir.equal import difference, exact_difference
from irx.ir.graph import Literal, Loc
from irx.ir.opdef import Operand
from irx.ir.parser import parse
from irx.ir.printer import print_graph, print_program
from irx.ir.program import Program
from irx.ir.types import KVType, TensorType
from irx.ir.verify import verify
from tests.ir.programs import programs

KV = "kv<heads=3, dim=64, dense, bf16, cap=T>"
EXAMPLE = f"""program @smollm2 {{
  meta {{"max_length": 8192, "roles": {{"ids": "%ids // no comment"}}}}
  size B in [1, 16] hint 2
  size S in [1, inf]
  size T in [1, 8192]
  relation "T == P + S"
  weight $model.embed_tokens.weight : bf16[49152, 64]
  weight $a : f32[320, 64]
  weight $b : f32[64]
  weight $packed : q4_0[64, 64]
  weight $"an odd name" : f32[640, 64] = irx.concat($a, $a) {{axis=0}}
  graph @decode(%ids: i64[B, S], %pos: i64[B, S], %kv0: {KV}) -> ("the logits": bf16[B, S, 64], kv0: {KV}) {{
    %x = irx.embedding(%ids, $model.embed_tokens.weight) : bf16[B, S, 64]  // model.embed_tokens @ net.py:12 | cse, dce
    %v, %i = irx.topk(%x) {{k=4, axis=2}} : (bf16[B, S, 4], i64[B, S, 4])
    %y = torch.call(%x) {{target="aten.foo", args=[#0, -4, true, none, S, [2.0, inf]], results=[f32[2]]}} : f32[2]
    torch.call(%x) {{target="aten._assert.default", results=[]}} : ()
    %n = irx.layer_norm(%x, none, $b) {{eps=1e-05}} : bf16[B, S, 64]  // "with \\"quotes\\" | and bars"
    %z = irx.mul(%n, 2*S + 1) : bf16[B, S, 64]  // | scale
    return %z, %kv0
  }}
}}
"""


def test_example_is_printed_as_it_was_written() -> None:
    program = parse(EXAMPLE)
    assert print_program(program) == EXAMPLE
    verify(program)


def test_example_means_what_it_says() -> None:
    program = parse(EXAMPLE)
    graph = program.graphs["decode"]
    embedding, topk, call, check, norm, mul = graph.nodes
    assert program.name == "smollm2"
    assert program.meta["max_length"] == 8192
    assert program.sizes == {"B": Range(1, 16, 2), "S": Range(), "T": Range(1, 8192)}
    assert program.relations == ["T == P + S"]
    assert program.weights["a"].type == TensorType((320, 64), "f32")
    assert [value.name for value in graph.inputs] == ["ids", "pos", "kv0"]
    assert graph.inputs[2].type == KVType(3, 3, 64, 64, "bf16", capacity=symbol("T"))
    assert graph.output_names == ["the logits", "kv0"]
    assert embedding.loc == Loc("model.embed_tokens", "net.py:12", ("cse", "dce"))
    assert [value.name for value in topk.outputs] == ["v", "i"]
    assert call.attrs["args"] == (Operand(0), -4, True, None, symbol("S"), (2.0, math.inf))
    assert check.outputs == ()
    assert norm.inputs[1] is None
    assert norm.loc.module == 'with "quotes" | and bars'
    assert isinstance(mul.inputs[1], Literal)
    assert mul.loc == Loc(passes=("scale",))


def test_bare_items_make_a_program() -> None:
    program = parse(
        "weight $w : f32[4] graph @f(%x: f32[B, 2*S + 1, 4]) -> (y: f32[B, 2*S + 1, 4]) {\n"
        "  // a remark on its own line\n  %y = irx.add(%x, $w)\n  return %y\n}"
    )
    assert program.name == "main"
    assert program.sizes == {"B": Range(), "S": Range()}
    (node,) = program.graphs["f"].nodes
    assert node.loc == Loc()
    verify(program)


def test_defaults_and_absent_operands_are_not_printed() -> None:
    statements = '%y = irx.layer_norm(%x, none, none) {eps=1.0} %z = irx.gelu(%y) {approximate="none"}'
    text = f"graph @f(%x: f32[2, 4]) -> () {{ {statements} return }}"
    printed = print_graph(parse(text).graphs["f"])
    assert "irx.layer_norm(%x) {eps=1.0}" in printed
    assert "irx.gelu(%y) :" in printed


@pytest.mark.parametrize("word", ["a remark", "a, b", 'say "so"', "a @ b @ c", "| , ,"])
def test_any_remark_is_a_location(word: str) -> None:
    text = f"graph @f(%x: f32[2]) -> () {{ %y = irx.neg(%x)  // {word}\n return }}"
    program = parse(text)
    assert exact_difference(program, parse(print_program(program))) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_random_programs_round_trip(program: Program) -> None:
    verify(program)
    text = print_program(program)
    again = parse(text)
    verify(again)
    assert difference(program, again) is None
    assert exact_difference(program, again) is None
    assert again.meta == program.meta
    assert (again.sizes, again.relations) == (program.sizes, program.relations)
    assert [n.loc for g in again.graphs.values() for n in g.nodes] == [
        n.loc for g in program.graphs.values() for n in g.nodes
    ]
    assert difference(program, program.clone()) is None


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_text_is_a_parse_error_or_a_program(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(EXAMPLE)))
    width = data.draw(st.integers(0, 12))
    inserted = data.draw(st.text(st.sampled_from('%$@#"\\{}[](),:=-+*/.|<> \n0159axBS\x00²'), max_size=6))
    text = EXAMPLE[:at] + inserted + EXAMPLE[at + width :]
    with suppress(ParseError):
        parse(text)


def test_many_nodes() -> None:
    lines = [f"  %x{i + 1} = irx.add(%x{i}, %x{i // 2}) : bf16[B, S, 64]  // layers.{i % 30}" for i in range(20_000)]
    text = "\n".join(["graph @f(%x0: bf16[B, S, 64]) -> (y: bf16[B, S, 64]) {", *lines, "  return %x20000", "}"])
    program = parse(text)
    assert len(program.graphs["f"]) == 20_000
    assert print_graph(program.graphs["f"]).split() == text.split()


ERRORS = {
    "unknown op": ("irx.topk(", "irx.topkk(", "unknown op 'irx.topkk'; did you mean 'irx.topk'?", 14, 14),
    "unknown attribute": ("{k=4", "{kk=4", "did you mean 'k'?", 14, 28),
    "missing attribute": ("k=4, ", "", "attribute 'k' is missing", 14, 14),
    "attribute twice": ("{k=4", "{k=3, k=4", "attribute 'k' is given twice", 14, 33),
    "ill-typed attribute": ("axis=2}", 'axis="two"}', "irx.topk", 14, 14),
    "unknown value": ("irx.topk(%x)", "irx.topk(%ixs)", "unknown value %ixs; did you mean '%ids'?", 14, 23),
    "unknown weight": ("none, $b", "none, $bb", "unknown weight $bb; did you mean '$b'?", 17, 35),
    "value twice": ("%z = ", "%x = ", "%x is defined twice", 18, 5),
    "output twice": ('"the logits"', "kv0", "two outputs are named 'kv0'", 12, None),
    "wrong type": ("irx.mul(%n, 2*S + 1) : bf16", "irx.mul(%n, 2*S + 1) : f32", "irx.mul gives bf16[B, S, 64]", 18, 33),
    "wrong output type": (
        'logits": bf16[B, S, 64]',
        'logits": bf16[B, S, 65]',
        "output 'the logits' is bf16[B, S, 64]",
        12,
        None,
    ),
    "wrong count": ("%v, %i = irx.topk", "%v = irx.topk", "irx.topk has 2 results, not 1", 14, 10),
    "unknown dtype": ("f32[320, 64]\n", "f33[320, 64]\n", "unknown dtype 'f33'; did you mean 'f32'?", 8, 15),
    "not a size": ("2*S + 1)", "2*S + )", "not a size: '2*S +'", 18, 22),
    "code for a size": ("2*S + 1)", "print(S))", "not a size: 'print(S)'", 18, 22),
    "infinite size": ("2*S + 1)", "S + 1/0)", "not a whole number", 18, 22),
    "negative extent": ("f32[320, 64]\n", "f32[-1, 64]\n", "a size cannot be negative: -1", 8, 15),
    "reserved size": ("size S ", "size inf ", "no size can be named 'inf'", 4, 8),
    "size twice": ("size T ", "size S ", "size 'S' is declared twice", 5, 8),
    "weight twice": ("weight $b ", "weight $a ", "weight $a is defined twice", 9, 10),
    "weight undeclared": ("concat($a, $a)", "concat($a, $c)", "weight $c is not declared above", 11, 57),
    "derived type": ("f32[640, 64] =", "f32[640, 65] =", "irx.concat gives f32[640, 64]", 11, 27),
    "unknown item": ("relation", "relaton", "did you mean 'relation'?", 6, 3),
    "bad meta": ('"max_length": ', "max_length: ", "meta is not JSON", 2, 9),
    "no return": ("return", "retrun", "did you mean 'return'?", 19, 5),
    "missing result": ("return %z, %kv0", "return %z", "1 values are returned, but 2 outputs are declared", 19, 5),
    "literal returned": ("return %z,", "return 2.0,", "only values and weights can be returned", 19, 12),
    "bad KV type": ("cap=T>)", "kap=T>)", "a KV type is kv<", 12, None),
    "bad string": ('"aten.foo"', '"aten.foo.\\q"', "Invalid \\escape", 15, 33),
    "open string": (
        '"aten._assert.default", results=[]',
        '"aten._assert',
        "this string does not end on its line",
        16,
        28,
    ),
    "odd character": ("return %z", "return ?%z", "unexpected character '?'", 19, 12),
    "text behind": ("  }\n}\n", "  }\n}\nmore", "expected the end of the text, found 'more'", 22, 1),
    "text ends": ("  }\n}\n", "", "expected '}', found the end of the text", None, None),
    "deep list": ("args=[#0", "args=[" + "[" * 3000 + "#0", "nested more than 50 deep", 15, None),
    "deep size": ("2*S + 1)", "(" * 900 + "S" + ")" * 900 + ")", "not a size", 18, 22),
    "long size": ("2*S + 1)", "S" + " + S" * 600 + ")", "more than 2000 characters", 18, 22),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_and_where(name: str) -> None:
    old, new, message, line, column = ERRORS[name]
    assert EXAMPLE.count(old) >= 1
    head, _, tail = EXAMPLE.rpartition(old)
    with pytest.raises(ParseError) as caught:
        parse(head + new + tail, "example.irx")
    error = caught.value
    assert message in str(error)
    assert line in (None, error.line)
    assert column in (None, error.column)
    assert str(error).startswith(f"example.irx:{error.line}:{error.column}: ")
    assert not error.source or str(error).splitlines()[-1].strip() == "^"


def test_the_caret_stands_under_the_mistake() -> None:
    with pytest.raises(ParseError) as caught:
        parse("graph @f(%x: f32[2]) -> () {\n\t%y = irx.ngg(%x)\n  return\n}")
    assert str(caught.value) == (
        "<text>:2:7: unknown op 'irx.ngg'; did you mean 'irx.neg'?\n  \t%y = irx.ngg(%x)\n  \t     ^"
    )
