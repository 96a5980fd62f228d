"""Reads one graph of the text form."""

from __future__ import annotations

from irx.errors import ParseError, nearest
from irx.ir.graph import Graph, Literal, Value
from irx.ir.inference import Inference
from irx.ir.lexer import Cursor
from irx.ir.spelling import parse_loc, unquote
from irx.ir.statements import guess, read_application, read_types
from irx.ir.types import Type
from irx.ir.values import read_scalar, read_type
from irx.ir.weights import Weights


class GraphParser:
    """Holds the values in scope while one graph is read."""

    def __init__(self, cursor: Cursor, name: str, weights: Weights, inference: Inference) -> None:
        self.cursor = cursor
        self.weights = weights
        self.inference = inference
        self.made = Graph(name)
        self.scope: dict[str, Value] = {}

    def graph(self) -> Graph:
        """The graph whose name was just read. Raises ParseError."""
        cursor = self.cursor
        self._inputs()
        cursor.expect("->")
        outputs = self._outputs()
        cursor.expect("{")
        while not cursor.take("return"):
            if cursor.kind != "value" and "." not in cursor.text:
                fix = guess(nearest(cursor.text, ["return"]))
                raise cursor.error(f"expected a statement or 'return', found {cursor.found()}", fix=fix)
            self._statement()
        self._return(outputs)
        cursor.expect("}")
        return self.made

    def _inputs(self) -> None:
        cursor = self.cursor
        cursor.expect("(")
        while not cursor.take(")"):
            at = cursor.at
            name = cursor.expect_kind("value", "an input like %x")
            cursor.expect(":")
            type = read_type(cursor)
            self._check_new(name, at)
            self.scope[name] = self.made.add_input(name[1:], type)
            if not cursor.take(","):
                cursor.expect(")")
                return

    def _outputs(self) -> dict[str, tuple[Type, int]]:
        """Types by name, each with the token where the type stands."""
        cursor = self.cursor
        outputs: dict[str, tuple[Type, int]] = {}
        cursor.expect("(")
        while not cursor.take(")"):
            at = cursor.at
            name = self._output_name()
            if name in outputs:
                raise cursor.error(f"two outputs are named {name!r}", at)
            cursor.expect(":")
            outputs[name] = (read_type(cursor), cursor.at - 1)
            if not cursor.take(","):
                cursor.expect(")")
                break
        return outputs

    def _output_name(self) -> str:
        cursor = self.cursor
        if cursor.kind == "string":
            cursor.at += 1
            return self._unquoted(cursor.texts[cursor.at - 1])
        return cursor.expect_kind("name", "the name of an output")

    def _statement(self) -> None:
        cursor = self.cursor
        begin = cursor.at
        results = self._results()
        made = read_application(cursor, self._operand, self.inference)
        if len(made.types) != len(results):
            raise cursor.error(f"{made.op.qualified()} has {len(made.types)} results, not {len(results)}", made.at)
        if cursor.take(":"):
            at = cursor.at
            made.check(cursor, read_types(cursor, len(results)), at)
        comment = cursor.comments.get(cursor.at)
        loc = parse_loc(comment) if comment else None
        for offset, name in enumerate(results):
            self._check_new(name, begin + 2 * offset)
        names = [name[1:] for name in results]
        node = self.made.add(made.op, made.inputs, made.attrs, loc=loc, names=names, types=made.types)
        self.scope.update(zip(results, node.outputs, strict=True))

    def _results(self) -> list[str]:
        """The names before `=`; none where the statement begins with its op."""
        cursor = self.cursor
        if cursor.kind != "value":
            return []
        names = [cursor.expect_kind("value", "a result")]
        while cursor.take(","):
            names.append(cursor.expect_kind("value", "a result"))
        cursor.expect("=")
        return names

    def _operand(self) -> Value | None:
        cursor = self.cursor
        kind, text = cursor.kind, cursor.text
        if kind == "value":
            value = self.scope.get(text)
            if value is None:
                raise self._undefined("value", text, list(self.scope))
            cursor.at += 1
            return value
        if kind == "weight":
            return self._weight()
        scalar = read_scalar(cursor)
        return None if scalar is None else Literal(scalar)

    def _weight(self) -> Value:
        cursor = self.cursor
        text = self._unquoted(cursor.text[1:])
        if text not in self.weights:
            raise self._undefined("weight", f"${text}", [f"${entry.weight.name}" for entry in self.weights])
        cursor.at += 1
        return self.weights[text]

    def _return(self, outputs: dict[str, tuple[Type, int]]) -> None:
        cursor = self.cursor
        at = cursor.at - 1
        values: list[Value] = []
        while cursor.text != "}":
            values.append(self._returned())
            if not cursor.take(","):
                break
        if len(values) != len(outputs):
            raise cursor.error(f"{len(values)} values are returned, but {len(outputs)} outputs are declared", at)
        for value, (name, (type, place)) in zip(values, outputs.items(), strict=True):
            if value.type != type:
                raise cursor.error(f"output {name!r} is {value.type}, but the text says {type}", place)
        self.made.set_outputs(dict(zip(outputs, values, strict=True)))

    def _returned(self) -> Value:
        at = self.cursor.at
        value = self._operand()
        if value is None or isinstance(value, Literal):
            raise self.cursor.error("only values and weights can be returned", at)
        return value

    def _check_new(self, name: str, at: int) -> None:
        if name in self.scope:
            raise self.cursor.error(f"{name} is defined twice", at)

    def _undefined(self, kind: str, name: str, known: list[str]) -> ParseError:
        return self.cursor.error(f"unknown {kind} {name}", fix=guess(nearest(name, known)))

    def _unquoted(self, text: str) -> str:
        try:
            return unquote(text)
        except ValueError as error:
            raise self.cursor.error(f"bad string: {error}") from None
