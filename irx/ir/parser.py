"""Reads the text form: what `irx.ir.printer` writes, and what people write in tests.

A text is one `program @name { items }`, or bare items, which make a program named `main` whose sizes need not be
declared. Items are `meta`, `size`, `relation`, `weight`, `region` (the body of fusions, above what uses it) and
`graph`. Result types behind `:` may be left out; where they stand they must be what the op's type rule gives. Nothing
is ever evaluated as Python.

The ops that the text names must have been declared: import `irx.ops` first.
"""

from __future__ import annotations

import json

from irx.errors import nearest
from irx.ir.dims import Range, names
from irx.ir.graph import Literal, Value, Weight, as_value
from irx.ir.graph_parser import GraphParser
from irx.ir.inference import Inference
from irx.ir.lexer import Cursor
from irx.ir.program import Program
from irx.ir.spelling import RESERVED, unquote
from irx.ir.statements import guess, read_application, read_types
from irx.ir.types import TensorType, Type
from irx.ir.values import read_scalar
from irx.ir.weights import Weights

_ITEMS = ("meta", "size", "relation", "weight", "region", "graph")


def parse(text: str, file: str = "<text>") -> Program:
    """The program that the text spells. Raises ParseError with line, column and a caret."""
    return _Parser(Cursor(text, file)).program()


class _Parser:
    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.inference = Inference()
        self.result = Program("main")

    def program(self) -> Program:
        cursor = self.cursor
        wrapped = cursor.take("program")
        if wrapped:
            self.result.name = self._symbol("the program's name")
            cursor.expect("{")
        while cursor.kind != "end" and cursor.text != "}":
            self._item()
        if wrapped:
            cursor.expect("}")
        if cursor.kind != "end":
            raise cursor.error(f"expected the end of the text, found {cursor.found()}")
        if not wrapped:
            self._declare_sizes()
        return self.result

    def _item(self) -> None:
        cursor = self.cursor
        word = cursor.text
        if word not in _ITEMS:
            what = f"expected one of {', '.join(_ITEMS)}, found {cursor.found()}"
            raise cursor.error(what, fix=guess(nearest(word, _ITEMS)))
        cursor.at += 1
        getattr(self, f"_{word}")()

    def _meta(self) -> None:
        cursor = self.cursor
        begin = cursor.starts[cursor.at]
        try:
            meta, end = json.JSONDecoder().raw_decode(cursor.source, begin)
        except json.JSONDecodeError as error:
            raise cursor.error_at(error.pos, f"meta is not JSON: {error.msg}") from None
        except RecursionError:
            raise cursor.error("meta is nested too deeply") from None
        if not isinstance(meta, dict) or self.result.meta:
            raise cursor.error("meta is one JSON object, given once")
        self.result.meta = meta
        while cursor.starts[cursor.at] < end and cursor.kind != "end":
            cursor.at += 1

    def _size(self) -> None:
        cursor = self.cursor
        at = cursor.at
        name = cursor.expect_kind("name", "the name of a size")
        if name in self.result.sizes or name in RESERVED or not name.isidentifier():
            what = f"size {name!r} is declared twice" if name in self.result.sizes else f"no size can be named {name!r}"
            raise cursor.error(what, at)
        cursor.expect("in")
        cursor.expect("[")
        low = self._count()
        cursor.expect(",")
        high = None if cursor.take("inf") else self._count()
        cursor.expect("]")
        hint = self._count() if cursor.take("hint") else None
        self.result.sizes[name] = Range(low, high, hint)

    def _count(self) -> int:
        text = self.cursor.expect_kind("number", "a whole number")
        if not text.isdigit() or len(text) > 18:
            raise self.cursor.error(f"expected a whole number, found {text!r}", self.cursor.at - 1)
        return int(text)

    def _relation(self) -> None:
        self.result.relations.append(self._unquoted(self.cursor.expect_kind("string", "a quoted relation")))

    def _weight(self) -> None:
        cursor, weights = self.cursor, self.result.weights
        at = cursor.at
        name = self._unquoted(cursor.expect_kind("weight", "the name of a weight")[1:])
        if name in weights:
            raise cursor.error(f"weight ${name} is defined twice", at)
        cursor.expect(":")
        types_at = cursor.at
        (type,) = read_types(cursor, 1)
        if not isinstance(type, TensorType):
            raise cursor.error("a weight must be a tensor", types_at)
        if not cursor.take("="):
            weights.add(name, type)
            return
        made = read_application(cursor, self._derivation_operand, self.inference)
        made.check(cursor, (type,), types_at)
        weights.derive(name, made.op.name, [v for v in made.inputs if isinstance(v, Weight | Literal)], **made.attrs)

    def _derivation_operand(self) -> Value | None:
        """A weight that was declared further up, or a number."""
        cursor = self.cursor
        at = cursor.at
        if cursor.kind != "weight":
            number = read_scalar(cursor)
            if number is None:
                raise cursor.error("a weight cannot be made of nothing", at)
            return as_value(number)
        name = self._unquoted(cursor.expect_kind("weight", "a weight")[1:])
        if name not in self.result.weights:
            raise cursor.error(f"weight ${name} is not declared above", at)
        return self.result.weights[name]

    def _region(self) -> None:
        at = self.cursor.at
        name = self._symbol("the region's name")
        if name in self.cursor.regions:
            raise self.cursor.error(f"region @{name} is defined twice", at)
        self.cursor.regions[name] = GraphParser(self.cursor, name, Weights(), self.inference).graph()

    def _graph(self) -> None:
        at = self.cursor.at
        name = self._symbol("the graph's name")
        if name in self.result.graphs:
            raise self.cursor.error(f"graph @{name} is defined twice", at)
        self.result.graphs[name] = GraphParser(self.cursor, name, self.result.weights, self.inference).graph()

    def _symbol(self, what: str) -> str:
        return self._unquoted(self.cursor.expect_kind("symbol", what)[1:])

    def _unquoted(self, text: str) -> str:
        try:
            return unquote(text)
        except ValueError as error:
            raise self.cursor.error(f"bad string: {error}", self.cursor.at - 1) from None

    def _declare_sizes(self) -> None:
        """Bare items may use sizes of any range without declaring them."""
        inputs = [value.type for graph in self.result.graphs.values() for value in graph.inputs]
        for name in sorted(set().union(*map(_names, inputs))):
            self.result.sizes.setdefault(name, Range())


def _names(type: Type) -> frozenset[str]:
    dims = type.shape if isinstance(type, TensorType) else (type.capacity or 0,)
    return frozenset().union(*map(names, dims))
