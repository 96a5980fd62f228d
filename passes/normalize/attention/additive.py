"""What is added to attention logits, taken apart: boolean masks that were spelled with very low numbers, and biases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from irx.analysis.values import ValueFree
from irx.ir.graph import Builder, Value
from irx.ir.types import is_float
from irx.rewrite.match import scalar

_HIDDEN = -9999.0


@dataclass(frozen=True)
class Condition:
    """A boolean tensor that is true where a key may be seen, or with `inverted`, where it may not."""

    value: Value
    inverted: bool = False

    def build(self, b: Builder) -> Value:
        """The tensor that is true where a key may be seen."""
        return b("not", self.value) if self.inverted else self.value


@dataclass
class Added:
    """The parts of a sum: `masks` hide keys, `biases` are added to the logits of the visible ones."""

    masks: list[Condition] = field(default_factory=list)
    biases: list[Value] = field(default_factory=list)

    def mask(self, b: Builder) -> Value | None:
        """The conjunction of all masks."""
        result: Value | None = None
        for condition in self.masks:
            made = condition.build(b)
            result = made if result is None else b("and", result, made)
        return result

    def bias(self, b: Builder) -> Value | None:
        """The sum of all biases."""
        result: Value | None = None
        for value in self.biases:
            result = value if result is None else b("add", result, value)
        return result


def take_apart(value: Value, free: ValueFree) -> Added:
    """The masks and biases whose sum `value` is.

    A part that only sizes decide is not looked into if it is one term: `classify-masks` evaluates it as a whole.
    """
    added = Added()
    for term in _terms(value, free):
        _sort(term, added)
    return added


def hides(value: Value | None) -> bool:
    """True for a number so low that softmax makes nothing of it."""
    number = scalar(value)
    return number is not None and float(number) <= _HIDDEN


def _terms(value: Value, free: ValueFree) -> Iterator[Value]:
    node = value.producer
    if node is None or value in free:
        yield value
    elif node.op.name == "add":
        for operand in node.inputs:
            if operand is not None and scalar(operand) != 0:
                yield from _terms(operand, free)
    elif node.op.name in ("cast", "expand") and node.inputs[0] is not None and is_float(node.inputs[0].dtype):
        yield from _terms(node.inputs[0], free)
    else:
        yield value


def _sort(term: Value, added: Added) -> None:
    node = term.producer
    if node is not None and node.op.name == "where":
        condition, yes, no = node.inputs
        assert condition is not None
        assert yes is not None
        if hides(no) or hides(yes):
            added.masks.append(Condition(condition, inverted=hides(yes)))
            rest = yes if hides(no) else no
            if rest is not None and scalar(rest) != 0:
                added.biases.append(rest)
            return
    hidden = _inverted_mask(term)
    if hidden is not None:
        added.masks.append(hidden)
        return
    added.biases.append(term)


def _inverted_mask(term: Value) -> Condition | None:
    """`(1 - mask) * low`, where the mask is a cast boolean."""
    node = term.producer
    if node is None or node.op.name != "mul":
        return None
    first, second = node.inputs
    difference = second if hides(first) else first if hides(second) else None
    inner = difference.producer if difference is not None else None
    if inner is None or inner.op.name != "sub" or scalar(inner.inputs[0]) != 1:
        return None
    kept = inner.inputs[1].producer if inner.inputs[1] is not None else None
    if kept is None or kept.op.name != "cast" or kept.inputs[0] is None or kept.inputs[0].dtype != "bool":
        return None
    return Condition(kept.inputs[0])
