"""What is added to attention logits, taken apart: boolean masks that were spelled with very low numbers, and biases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from irx.analysis.values import ValueFree
from irx.ir.dims import Dim
from irx.ir.graph import Builder, Value
from irx.ir.types import is_float
from irx.rewrite.match import scalar

_HIDDEN = -9999.0


@dataclass(frozen=True)
class Condition:
    """A boolean tensor that is true where a key may be seen, or with `inverted`, where it may not.

    `lead` are the leading axes of the logits it broadcasts to, None for those of the attention itself.
    """

    value: Value
    inverted: bool = False
    lead: tuple[Dim, ...] | None = None


@dataclass(frozen=True)
class Bias:
    """A tensor that is added to logits; `lead` as in `Condition`."""

    value: Value
    lead: tuple[Dim, ...] | None = None


@dataclass
class Added:
    """The parts of a sum: `masks` hide keys, `biases` are added to the logits of the visible ones."""

    masks: list[Condition] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)

    def extend(self, other: Added, lead: tuple[Dim, ...]) -> None:
        """Take over the parts of another sum, which is added to logits of those leading axes."""
        self.masks += [replace(mask, lead=lead) for mask in other.masks]
        self.biases += [replace(bias, lead=lead) for bias in other.biases]

    def mask(self, b: Builder, lead: tuple[Dim, ...]) -> Value | None:
        """The conjunction of all masks, for logits of two leading axes that are `lead` in the source."""
        result: Value | None = None
        for condition in self.masks:
            made = _for_lead(condition.value, condition.lead or lead, lead, b)
            made = b("not", made) if condition.inverted else made
            result = made if result is None else b("and", result, made)
        return result

    def bias(self, b: Builder, lead: tuple[Dim, ...]) -> Value | None:
        """The sum of all biases, as for `mask`."""
        result: Value | None = None
        for bias in self.biases:
            made = _for_lead(bias.value, bias.lead or lead, lead, b)
            result = made if result is None else b("add", result, made)
        return result


def _for_lead(x: Value, own: tuple[Dim, ...], lead: tuple[Dim, ...], b: Builder) -> Value:
    """`x`, which broadcasts to logits of the leading axes `own`, for logits [*lead, M, N] with two of them."""
    if len(x.shape) <= 2 or len(own) == 2:
        return x
    rows = x.shape[-2:]
    if len(lead) == 1 or x.shape[0] == 1:
        return b("reshape", x, shape=(x.shape[0], 1, *rows))
    return b("reshape", x, shape=(*lead, *rows))


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
                added.biases.append(Bias(rest))
            return
    hidden = _inverted_mask(term)
    if hidden is not None:
        added.masks.append(hidden)
        return
    added.biases.append(Bias(term))


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
