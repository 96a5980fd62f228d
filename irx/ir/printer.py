"""Writes programs as text: what the command shows, artifacts store and tests compare. `irx.ir.parser` reads it back.

    program @tiny {
      size B in [1, 16] hint 2
      weight $embed.weight : bf16[128, 16]
      graph @forward(%ids: i64[B, 4]) -> (x: bf16[B, 4, 16]) {
        %x = irx.embedding(%ids, $embed.weight) : bf16[B, 4, 16]  // embed @ model.py:12
        return %x
      }
    }

Attributes that equal the op's default are left out, and so are absent operands at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from irx.ir.dims import Range
from irx.ir.graph import Graph, Node, Value
from irx.ir.opdef import Attr, OpDef
from irx.ir.program import Program
from irx.ir.regions import regions
from irx.ir.spelling import format_loc, format_operand, format_symbol, format_value, format_weight, format_word
from irx.ir.weights import Entry


def print_program(program: Program) -> str:
    """The whole program; ends with a newline."""
    lines = [f"program {format_symbol(program.name)} {{"]
    lines += [f"  {line}" if line else "" for line in _items(program)]
    return "\n".join([*lines, "}", ""])


def print_graph(graph: Graph) -> str:
    """One graph, as it stands in a program but not indented, without its regions; ends with a newline."""
    return "\n".join([*_graph(graph, "graph"), ""])


def print_node(node: Node) -> str:
    """One statement without its location."""
    results = ", ".join(f"%{v.name}" for v in node.outputs)
    types = [str(v.type) for v in node.outputs]
    shown = types[0] if len(types) == 1 else f"({', '.join(types)})"
    assign = f"{results} = " if results else ""
    operands = ", ".join(map(format_operand, present_operands(node)))
    return f"{assign}{node.op.qualified()}({operands}){_attributes(node.op, node.attrs)} : {shown}"


def present_operands(node: Node) -> tuple[Value | None, ...]:
    """The operands up to the last that is not left out."""
    inputs = node.inputs
    least = sum(parameter.required and not parameter.variadic for parameter in node.op.operands)
    while len(inputs) > least and inputs[-1] is None:
        inputs = inputs[:-1]
    return inputs


def stated_attributes(op: type[OpDef], attrs: Mapping[str, Attr]) -> dict[str, str]:
    """Attributes that differ from their defaults, spelled, in declaration order (undeclared ones too, as they are)."""
    stated = {}
    for name in sorted(attrs, key=list(op.attributes).index) if attrs.keys() <= op.attributes.keys() else attrs:
        text, parameter = format_value(attrs[name]), op.attributes.get(name)
        if parameter is None or parameter.required or text != format_value(parameter.default):
            stated[name] = text
    return stated


def _items(program: Program) -> Iterator[str]:
    if program.meta:
        yield f"meta {json.dumps(program.meta)}"
    yield from (_size(name, range) for name, range in program.sizes.items())
    yield from (f"relation {json.dumps(relation)}" for relation in program.relations)
    yield from map(_weight, program.weights)
    for body in regions(program):
        yield from _graph(body, "region")
    for graph in program.graphs.values():
        yield from _graph(graph, "graph")


def _size(name: str, range: Range) -> str:
    high = "inf" if range.high is None else range.high
    hint = "" if range.hint is None else f" hint {range.hint}"
    return f"size {name} in [{range.low}, {high}]{hint}"


def _weight(entry: Entry) -> str:
    head = f"weight {format_weight(entry.weight.name)} : {entry.weight.type}"
    made = entry.derivation
    if made is None:
        return head
    operands = ", ".join(map(format_operand, made.inputs))
    return f"{head} = {made.op.qualified()}({operands}){_attributes(made.op, made.attrs)}"


def _graph(graph: Graph, kind: str) -> Iterator[str]:
    inputs = ", ".join(f"%{v.name}: {v.type}" for v in graph.inputs)
    named = zip(graph.output_names, graph.outputs, strict=True)
    outputs = ", ".join(f"{format_word(name)}: {v.type}" for name, v in named)
    yield f"{kind} {format_symbol(graph.name)}({inputs}) -> ({outputs}) {{"
    for node in graph.nodes:
        place = format_loc(node.loc)
        yield f"  {print_node(node)}" + (f"  // {place}" if place else "")
    yield f"  return {', '.join(map(format_operand, graph.outputs))}".rstrip()
    yield "}"


def _attributes(op: type[OpDef], attrs: Mapping[str, Any]) -> str:
    stated = stated_attributes(op, attrs)
    return f" {{{', '.join(f'{name}={text}' for name, text in stated.items())}}}" if stated else ""
