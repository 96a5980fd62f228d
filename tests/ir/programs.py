"""Random programs for property tests: graphs over the registered ops, with all that the text form has to carry.

`programs()` draws anything that is well formed; `computable_programs()` only what the oracle can evaluate: no calls to
torch, weights with arrays, sizes that fit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

import irx.ops  # noqa: F401
from irx.ir.dims import Dim, Range, symbol
from irx.ir.graph import Graph, Loc, Value, Weight
from irx.ir.opdef import Operand
from irx.ir.program import Program
from irx.ir.types import KVType, TensorType, is_float

B, S = symbol("B"), symbol("S")
SIZES = {"B": Range(1, 16, 2), "S": Range(1, None, 3)}
SHAPES: tuple[tuple[Dim, ...], ...] = ((), (4,), (B, 4), (B, S, 4), (B, 1, 4), (1, S, 1))

words = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([S, 2 * S + 1, (S + B) // 2])
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
attributes = st.recursive(
    scalars
    | words
    | st.none()
    | st.builds(Operand, st.just(0))
    | st.sampled_from([TensorType((B, S), "bf16"), TensorType((), "f32")]),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)
locations = st.builds(Loc, words, words, st.lists(words.filter(bool), max_size=3).map(tuple))


class Growing:
    """A graph that is being drawn: `draw` is hypothesis's, `values` is what the next node may read."""

    def __init__(self, draw: Callable[..., object], program: Program, graph: Graph, *, plain: bool) -> None:
        self.draw = draw
        self.program = program
        self.graph = graph
        self.plain = plain
        self.values: list[Value] = []

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value | None:
        found = [value for value in self.values if isinstance(value.type, TensorType) and fits(value)]
        return self.draw(st.sampled_from(found)) if found else None

    def add(self, op: str, *operands: object, **attrs: object) -> None:
        loc = self.draw(st.just(Loc()) | locations)
        count = self.draw(st.booleans())
        names = [self.draw(words)] if count and op not in ("topk", "torch.call") else ()
        self.values += self.graph.add(op, operands, attrs, loc=loc, names=names).outputs

    def number(self) -> object:
        return self.draw(st.floats(-2, 2) | st.integers(-2, 2) if self.plain else scalars)


def _unary(growing: Growing) -> None:
    value = growing.pick(lambda v: is_float(v.dtype))
    op = growing.draw(st.sampled_from(["neg", "abs", "tanh", "sigmoid", "relu", "silu", "cos", "erf", "gelu"]))
    if value is not None:
        growing.add(op, value)


def _binary(growing: Growing) -> None:
    value = growing.pick(lambda v: v.dtype != "bool")
    if value is None:
        return
    other = growing.pick(lambda v: v.shape in (value.shape, ()) and v.dtype != "bool")
    operands = [value, growing.number() if growing.draw(st.booleans()) else other]
    op = growing.draw(st.sampled_from(["add", "sub", "mul", "maximum", "minimum"]))
    growing.add(op, *(operands if growing.draw(st.booleans()) else operands[::-1]))


def _cast(growing: Growing) -> None:
    value = growing.pick()
    if value is not None:
        growing.add("cast", value, dtype=growing.draw(st.sampled_from(["f32", "f64", "bf16", "i64"])))


def _clamp(growing: Growing) -> None:
    value = growing.pick(lambda v: is_float(v.dtype))
    bound = st.none() | st.floats(-1, 1)
    if value is not None:
        growing.add("clamp", value, low=growing.draw(bound), high=growing.draw(bound))


def _shape(growing: Growing) -> None:
    value = growing.pick(lambda v: v.tensor.rank == 3)
    if value is None:
        return
    order = growing.draw(st.permutations(range(3)))
    kind = growing.draw(st.sampled_from(["permute", "reshape", "slice", "sum", "softmax", "topk", "concat"]))
    last = value.shape[-1]
    if kind == "permute":
        growing.add("permute", value, order=tuple(order))
    elif kind == "reshape":
        growing.add("reshape", value, shape=(value.shape[0] * value.shape[1], last))
    elif kind == "slice" and isinstance(last, int) and last > 1:
        growing.add("slice", value, axis=2, start=growing.draw(st.integers(0, 1)), stop=last)
    elif kind == "concat":
        growing.add("concat", value, value, axis=order[0])
    elif kind == "topk" and is_float(value.dtype):
        growing.add("topk", value, k=1, axis=2)
    elif kind in ("sum", "softmax") and is_float(value.dtype):
        attrs = {"axis": order[0]} if kind == "softmax" else {"axes": (order[0],), "keepdims": order[1] > 0}
        growing.add(kind, value, **attrs)


def _linear(growing: Growing) -> None:
    value = growing.pick(lambda v: v.dtype == "f32" and v.shape[-1:] == (4,))
    if value is None:
        return
    weight, bias = (growing.program.weights[name] for name in ("w.matrix", "odd name $b"))
    choices = [(value, weight), (value, weight, bias), (value, weight, None)]
    growing.add("linear", *growing.draw(st.sampled_from(choices)))


def _norm(growing: Growing) -> None:
    value = growing.pick(lambda v: v.dtype == "f32" and v.shape[-1:] == (4,))
    if value is not None:
        bias = growing.program.weights["odd name $b"]
        growing.add("layer_norm", value, growing.draw(st.sampled_from([None, bias])), bias, eps=1e-5)


def _call(growing: Growing) -> None:
    value = growing.pick()
    if value is None or growing.plain:
        return
    results = tuple(TensorType(shape, "f32") for shape in growing.draw(st.lists(st.sampled_from(SHAPES), max_size=3)))
    args = tuple(growing.draw(st.lists(attributes, max_size=3)))
    growing.add("torch.call", value, target="aten.foo.default", args=(Operand(0), *args), results=results)


GROWTH = (_unary, _binary, _binary, _cast, _clamp, _shape, _linear, _norm, _call)


def _weights(program: Program) -> None:
    generator = np.random.default_rng(0)
    matrix = program.weights.add_array("w.matrix", generator.standard_normal((4, 4)).astype(np.float32))
    program.weights.add_array("odd name $b", generator.standard_normal(4).astype(np.float32))
    program.weights.derive("twice", "concat", [matrix, matrix], axis=0)


def _graph(draw: Callable[..., object], program: Program, name: str, *, plain: bool) -> Graph:
    graph = Graph(name)
    growing = Growing(draw, program, graph, plain=plain)
    growing.values.append(graph.add_input("x", TensorType((B, S, 4), "f32")))
    for shape in draw(st.lists(st.sampled_from(SHAPES), max_size=3)):
        growing.values.append(graph.add_input(draw(words), TensorType(shape, draw(st.sampled_from(["f32", "i64"])))))
    kv = KVType(2, 2, 4, 4, "f32", capacity=draw(st.sampled_from([None, 8, B + 1])))
    states = {} if plain else {value.name: value for value in [graph.add_input("kv", kv)]}
    for grow in draw(st.lists(st.sampled_from(GROWTH), max_size=14)):
        grow(growing)
    results = draw(st.lists(st.sampled_from(growing.values), min_size=1, max_size=4))
    names = [f"y{index}" for index in range(len(results))] if plain else draw(_names(len(results)))
    weights: dict[str, Weight] = {} if plain else {"the weight": program.weights["twice"]}
    graph.set_outputs({**dict(zip(names, results, strict=True)), **states, **weights})
    return graph


def _names(count: int) -> st.SearchStrategy[list[str]]:
    free = words.filter(lambda name: name not in ("kv", "the weight"))
    return st.lists(free, min_size=count, max_size=count, unique=True)


@st.composite
def programs(draw: Callable[..., object]) -> Program:
    """Any well-formed program."""
    program = Program(draw(words), sizes=dict(SIZES), meta=draw(st.dictionaries(words, json_values, max_size=3)))
    program.relations += draw(st.lists(st.sampled_from(["B == S + 1", "S == 2*B"]), max_size=2))
    _weights(program)
    for name in draw(st.lists(words, min_size=1, max_size=2, unique=True)):
        program.graphs[name] = _graph(draw, program, name, plain=False)
    return program


@st.composite
def computable_programs(draw: Callable[..., object]) -> Program:
    """A program of one graph `forward` that the oracle can evaluate."""
    program = Program("main", sizes=dict(SIZES))
    _weights(program)
    program.graphs["forward"] = _graph(draw, program, "forward", plain=True)
    return program
