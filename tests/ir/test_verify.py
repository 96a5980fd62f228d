"""The verifier accepts what is well formed and names the rule that a damaged program breaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import irx.ops  # noqa: F401
from irx.errors import VerifyError
from irx.ir.dims import Range, symbol
from irx.ir.graph import Graph, Literal, Node, Value, Weight
from irx.ir.opdef import Operand, lookup
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.types import KVType, TensorType
from irx.ir.verify import verify
from irx.ir.weights import Derivation, Entry

KV = "kv<heads=2, dim=4, dense, f32, cap=T>"
TEXT = f"""program @p {{
  size B in [1, 4] hint 2
  size S in [1, inf]
  size P in [0, 8]
  size T in [1, 8]
  relation "T == P + S"
  weight $w : f32[4, 4]
  weight $ww : f32[8, 4] = irx.concat($w, $w) {{axis=0}}
  graph @forward(%x: f32[B, S, 4], %y: f32[B, S, 4]) -> (z: f32[B, S, 4], w: f32[4, 4]) {{
    %a = irx.linear(%x, $w)
    %b = irx.mul(%a, 2.0)
    %z = irx.add(%a, %b)
    return %z, $w
  }}
  graph @prefill(%k: f32[B, 2, S, 4], %pos: i64[B, S], %kv: {KV}) -> (x: f32[B, 2, S, 4], kv: {KV}) {{
    %n = irx.kv_append(%kv, %k, %k, %pos)
    %x = irx.kv_attention(%k, %n, %pos) {{scale=1.0}}
    return %x, %n
  }}
  graph @decode(%k: f32[B, 2, 1, 4], %pos: i64[B, 1], %kv: {KV}) -> (x: f32[B, 2, 1, 4], kv: {KV}) {{
    %n = irx.kv_append(%kv, %k, %k, %pos)
    %x = irx.kv_attention(%k, %n, %pos) {{scale=1.0}}
    return %x, %n
  }}
}}
"""


def nodes(program: Program, graph: str = "forward") -> list[Node]:
    return list(program.graphs[graph].nodes)


def test_sound_program() -> None:
    verify(parse(TEXT))
    verify(parse(TEXT).clone())


def test_kv_gather_only_reads() -> None:
    text = f"""graph @f(%kv: {KV}, %i: i64[B, 2, 3], %q: f32[B, 2, 1, 4], %pos: i64[B, 1])
        -> (x: f32[B, 2, 1, 4], kv: {KV}) {{
      %part = irx.kv_gather(%kv, %i)
      %x = irx.kv_attention(%q, %part, %pos) {{scale=1.0}}
      return %x, %kv
    }}"""
    verify(parse(text))


def later_operand(program: Program) -> None:
    linear, _, add = nodes(program)
    program.graphs["forward"].set_inputs(linear, [add.output, linear.inputs[1]])


def foreign_operand(program: Program) -> None:
    linear = nodes(program)[0]
    program.graphs["forward"].set_inputs(linear, [Value("x", linear.inputs[0].type), linear.inputs[1]])


def two_producers(program: Program) -> None:
    _, mul, add = nodes(program)
    add.outputs = (mul.output,)


def wrong_producer(program: Program) -> None:
    _, mul, add = nodes(program)
    mul.output.producer = add


def name_twice(program: Program) -> None:
    nodes(program)[1].output.name = "x"


def odd_name(program: Program) -> None:
    nodes(program)[1].output.name = "a.b"


def wrong_result_type(program: Program) -> None:
    nodes(program)[1].output.type = TensorType((4,), "f32")


def changed_attribute(program: Program) -> None:
    nodes(program, "decode")[0].op = lookup("kv_evict")


def foreign_weight(program: Program) -> None:
    linear = nodes(program)[0]
    other = Weight("w", linear.inputs[1].type)
    program.graphs["forward"].set_inputs(linear, [linear.inputs[0], other])


def returned_foreign_weight(program: Program) -> None:
    program.graphs["forward"].outputs[1] = Weight("w", TensorType((4, 4), "f32"))


def unknown_weight(program: Program) -> None:
    program.weights.keep(set())


def open_weight(program: Program) -> None:
    program.weights.add("open", TensorType((symbol("B"),), "f32"))


def derived_type(program: Program) -> None:
    made = program.weights.entry(program.weights["ww"]).derivation
    weight = Weight("bad", TensorType((9, 4), "f32"))
    program.weights._entries["bad"] = Entry(weight, None, made)


def derived_from_foreign(program: Program) -> None:
    weight = Weight("bad", TensorType((8, 4), "f32"))
    foreign = Weight("w", TensorType((4, 4), "f32"))
    program.weights._entries["bad"] = Entry(weight, None, Derivation(lookup("concat"), (foreign, foreign), {"axis": 0}))


def undeclared_size(program: Program) -> None:
    del program.sizes["S"]


def reserved_size(program: Program) -> None:
    program.sizes["inf"] = Range()


def empty_range(program: Program) -> None:
    program.sizes["B"] = Range(5, 4)


def hint_outside(program: Program) -> None:
    program.sizes["B"] = Range(1, 4, 9)


def odd_relation(program: Program) -> None:
    program.relations.append("T == P +")


def unbound_size(program: Program) -> None:
    program.sizes["N"] = Range()
    graph = program.graphs["forward"]
    graph.add("full", [], {"shape": (symbol("N"),), "value": 0.0, "dtype": "f32"})


def unbound_attribute(program: Program) -> None:
    program.sizes["N"] = Range()
    graph = program.graphs["forward"]
    graph.add("slice", [graph.inputs[0]], {"axis": 1, "start": symbol("N") // symbol("N")})
    graph.add("mul", [graph.inputs[0], symbol("N")])


def wrong_graph_name(program: Program) -> None:
    program.graphs["other"] = program.graphs.pop("forward")


def result_name_twice(program: Program) -> None:
    program.graphs["forward"].output_names = ["z", "z"]


def result_without_name(program: Program) -> None:
    program.graphs["forward"].output_names.pop()


def foreign_result(program: Program) -> None:
    program.graphs["forward"].outputs[0] = Value("z", TensorType((), "f32"))


def literal_result(program: Program) -> None:
    program.graphs["forward"].outputs[0] = Literal(1.0)


def stale_users(program: Program) -> None:
    linear, mul, _ = nodes(program)
    mul.inputs = (program.graphs["forward"].inputs[0], mul.inputs[1])
    assert linear


def extra_user(program: Program) -> None:
    graph = program.graphs["forward"]
    graph._users[graph.inputs[1]] = {nodes(program)[0]: None}


def replaced_twice(program: Program) -> None:
    graph = program.graphs["decode"]
    append = nodes(program, "decode")[0]
    graph.add("kv_append", append.inputs)


def read_after_replaced(program: Program) -> None:
    graph = program.graphs["decode"]
    k, pos, kv = graph.inputs
    graph.add("kv_attention", [k, kv, pos], {"scale": 1.0})


def returned_after_replaced(program: Program) -> None:
    program.graphs["decode"].outputs[1] = program.graphs["decode"].inputs[2]


def odd_layout(program: Program) -> None:
    program.graphs["forward"].add_input("kv", KVType(2, 2, 4, 4, "f32", layout="a, b"))


def state_of_another_name(program: Program) -> None:
    program.graphs["decode"].output_names[1] = "kv2"


def different_states(program: Program) -> None:
    program.graphs["decode"].add_input("more", program.graphs["decode"].inputs[2].type)


def different_rank(program: Program) -> None:
    graph = program.graphs["decode"]
    graph.set_outputs({"x": nodes(program, "decode")[0].inputs[3], "kv": graph.outputs[1]})


def undeclared_attribute(program: Program) -> None:
    nodes(program)[1].attrs["fast"] = True


def missing_attribute(program: Program) -> None:
    del nodes(program, "decode")[1].attrs["scale"]


def attribute_of_another_kind(program: Program) -> None:
    nodes(program, "decode")[1].attrs["causal"] = 1


def attribute_of_numpy(program: Program) -> None:
    nodes(program, "decode")[1].attrs["scale"] = np.float64(1.0)


def attribute_list(program: Program) -> None:
    graph = program.graphs["forward"]
    node = graph.add("permute", [graph.inputs[0]], {"order": (0, 1, 2)})
    node.attrs["order"] = [0, 1, 2]


def operand_mark(program: Program) -> None:
    graph = program.graphs["forward"]
    attrs = {"target": "aten.foo", "args": ((Operand(1),),), "results": ()}
    graph.add("torch.call", [graph.inputs[0]], attrs)


def weak_input(program: Program) -> None:
    program.graphs["forward"].add_input("n", TensorType((), "int_"))


def weak_result(program: Program) -> None:
    program.graphs["forward"].add("silu", [1.0])


def weak_weight(program: Program) -> None:
    program.weights.add("n", TensorType((), "float_"))


BROKEN: list[tuple[int, Callable[[Program], None]]] = [
    (1, later_operand),
    (1, foreign_operand),
    (2, two_producers),
    (2, wrong_producer),
    (2, name_twice),
    (2, odd_name),
    (3, wrong_result_type),
    (11, changed_attribute),
    (4, foreign_weight),
    (4, returned_foreign_weight),
    (4, unknown_weight),
    (4, open_weight),
    (4, derived_type),
    (4, derived_from_foreign),
    (5, undeclared_size),
    (5, reserved_size),
    (5, empty_range),
    (5, hint_outside),
    (5, odd_relation),
    (6, unbound_size),
    (6, unbound_attribute),
    (7, wrong_graph_name),
    (7, result_name_twice),
    (7, result_without_name),
    (7, foreign_result),
    (7, literal_result),
    (8, stale_users),
    (8, extra_user),
    (9, replaced_twice),
    (9, read_after_replaced),
    (9, returned_after_replaced),
    (9, odd_layout),
    (10, state_of_another_name),
    (10, different_states),
    (10, different_rank),
    (11, undeclared_attribute),
    (11, missing_attribute),
    (11, attribute_of_another_kind),
    (11, attribute_of_numpy),
    (11, attribute_list),
    (11, operand_mark),
    (12, weak_input),
    (12, weak_result),
    (12, weak_weight),
]


@pytest.mark.parametrize(("rule", "damage"), BROKEN, ids=lambda case: getattr(case, "__name__", str(case)))
def test_broken_rule_is_named(rule: int, damage: Callable[[Program], None]) -> None:
    program = parse(TEXT)
    damage(program)
    with pytest.raises(VerifyError) as caught:
        verify(program)
    assert caught.value.rule == rule


def test_error_names_the_place() -> None:
    program = parse(TEXT.replace("%b = irx.mul(%a, 2.0)", "%b = irx.mul(%a, 2.0)  // model.scale @ net.py:7"))
    wrong_result_type(program)
    with pytest.raises(VerifyError, match=r"at @forward: %b = irx.mul.* \(net.py:7 in model.scale\)"):
        verify(program)


def test_every_rule_has_a_test() -> None:
    assert {rule for rule, _ in BROKEN} == set(range(1, 13))


def test_sizes_follow_from_relations() -> None:
    graph = 'graph @f(%x: f32[2*S]) -> () {{ %y = irx.full() {{shape=[P], value=0.0, dtype="f32"}} return }}'
    program = Program("p", sizes={"S": Range(), "P": Range()}, relations=["P == S // 1"])
    program.graphs["f"] = parse(graph.format()).graphs["f"]
    verify(program)
    program.relations.clear()
    with pytest.raises(VerifyError, match="size P cannot be read off"):
        verify(program)


def test_empty_graph() -> None:
    program = Program("p", graphs={"f": Graph("f")})
    verify(program)
