"""The constants of a program: named tensors that are loaded or derived one at a time, when somebody asks.

A weight is either stored (a function that returns the array: a view of a torch parameter, a memory-mapped file) or
derived (an op applied to other weights, as when Q, K and V projections are concatenated). Nothing is evaluated before
`array` is called, and nothing is kept afterwards, so merging the weights of a large model never holds two copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irx.errors import TypeRuleError, UnboundWeight
from irx.ir.graph import Literal, Weight
from irx.ir.opdef import Array, Attr, OpDef, lookup
from irx.ir.types import TensorType, dtype_of, is_packed, numpy_dtype


@dataclass(frozen=True)
class Derivation:
    """How a derived weight is made: `op(inputs) {attrs}`, evaluated by the op's reference in the inputs' own dtype.

    Inputs are weights and plain numbers, as in `$w.1 = irx.add($w, 1.0)`.
    """

    op: type[OpDef]
    inputs: tuple[Weight | Literal, ...]
    attrs: dict[str, Attr]


@dataclass(frozen=True)
class Entry:
    """One weight: its value in graphs, and where the array comes from (neither, for a program read from text)."""

    weight: Weight
    load: Callable[[], Array] | None = None
    derivation: Derivation | None = None


class Weights:
    """All weights of a program by name."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Weight:
        return self._entries[name].weight

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, weight: Weight) -> Entry:
        """The entry of a weight."""
        return self._entries[weight.name]

    def add(self, name: str, type: TensorType, load: Callable[[], Array] | None = None) -> Weight:
        """A stored weight. `load` returns an array of the type's shape and numpy dtype (packed formats: raw bytes)."""
        weight = Weight(self._unique(name), type)
        self._entries[weight.name] = Entry(weight, load)
        return weight

    def add_array(self, name: str, array: Array) -> Weight:
        """A stored weight that is small enough to be kept as an array."""
        return self.add(name, TensorType(tuple(array.shape), dtype_of(array.dtype)), lambda: array)

    def derive(self, name: str, op: str, inputs: Sequence[Weight | Literal], **attrs: Attr) -> Weight:
        """A weight computed from others when it is needed; its type is the op's. Raises TypeRuleError if ill-typed."""
        definition = lookup(op)
        (type,) = definition.types([w.type for w in inputs], attrs)
        if not isinstance(type, TensorType):
            raise TypeRuleError("a weight must be a tensor").of(definition.qualified())
        weight = Weight(self._unique(name), type)
        self._entries[weight.name] = Entry(weight, None, Derivation(definition, tuple(inputs), dict(attrs)))
        return weight

    def bind(self, name: str, load: Callable[[], Array]) -> None:
        """Say where the array of a stored weight comes from, as after reading a program from text."""
        self._entries[name] = Entry(self._entries[name].weight, load)

    def array(self, weight: Weight) -> Array:
        """The weight's elements: shape and dtype of its type; raw bytes for a packed format. Not kept."""
        entry = self._entries[weight.name]
        if entry.derivation is not None:
            return self._derived(entry.derivation, weight)
        if entry.load is None:
            raise UnboundWeight(weight.name)
        return entry.load()

    def keep(self, wanted: set[str]) -> None:
        """Drop every weight that is neither in `wanted` nor needed to derive one that is."""
        needed: set[str] = set()
        pending = list(wanted)
        while pending:
            name = pending.pop()
            if name in needed:
                continue
            needed.add(name)
            derivation = self._entries[name].derivation
            pending += [w.name for w in derivation.inputs if isinstance(w, Weight)] if derivation else []
        self._entries = {name: entry for name, entry in self._entries.items() if name in needed}

    def copy(self) -> Weights:
        """A store that can be changed without changing this one; the arrays are shared."""
        other = Weights()
        other._entries = dict(self._entries)
        return other

    def _derived(self, derivation: Derivation, weight: Weight) -> Array:
        operands = [self.array(v) if isinstance(v, Weight) else v.value for v in derivation.inputs]
        attrs: Mapping[str, Attr] = derivation.attrs
        if derivation.op.name == "dequantize":  # raw bytes do not say what they mean
            attrs = {**attrs, "format": derivation.inputs[0].dtype}
        result = np.asarray(derivation.op.reference(*operands, **attrs))
        dtype = weight.dtype
        return result if is_packed(dtype) else result.astype(numpy_dtype(dtype), copy=False)

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._entries:
            count += 1
            unique = f"{name}.{count}"
        return unique
