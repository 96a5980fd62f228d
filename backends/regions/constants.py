"""What a plan keeps from bind to the last call: packed weights, plain ones, and values computed from weights only."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import numpy as np
from torch import Tensor

from irx.backends.layouts.layout import Layout, Plain
from irx.backends.regions.lowered import Data, PackedPart
from irx.backends.regions.sites import alone
from irx.backends.regions.steps import Step, Steps
from irx.backends.torch.plan import Plan as TorchPlan
from irx.ir.graph import Graph, Literal, Value, Weight
from irx.ir.opdef import Array
from irx.ir.regions import expanded
from irx.runtime.arena import WEIGHTS, copied
from irx.runtime.store import Stored, WeightStore
from irx.runtime.tensors import Packed, from_numpy, to_numpy


class Constants:
    """Made once when weights are bound; equal ones exist once for all graphs of an executable."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._packed: dict[tuple[Layout, tuple[str, ...]], dict[str, Tensor]] = {}
        self._values: dict[Value, Tensor] = {}
        self.torch: dict[Step, TorchPlan] = {}

    def bind(self, store: WeightStore) -> None:
        """Take the weights from `store`."""
        self._packed.clear()
        self._values.clear()
        for step in self._steps.steps:
            if step.lowered is None:
                self.torch[step] = TorchPlan(expanded(alone(step.site)[0]), store.device)
                self.torch[step].bind(store)
                for value in step.site.operands:
                    if value in self._steps.constants:
                        self._values[value] = self._value(value, store)
            else:
                self._bind_kernels(step, store)
        for value in self._steps.graph.outputs:
            if isinstance(value, Weight) or value in self._steps.constants:
                self._values[value] = self._value(value, store)

    def packed(self, layout: Layout, weights: tuple[Weight, ...], part: str) -> Tensor:
        """One array of weights in a layout."""
        return self._packed[layout, tuple(weight.name for weight in weights)][part]

    def value(self, value: Value) -> Tensor:
        """A weight, or a value computed from weights only."""
        return self._values[value]

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def _bind_kernels(self, step: Step, store: WeightStore) -> None:
        assert step.lowered is not None
        for case in step.lowered.cases:
            for call in case.calls:
                for binding in call.bindings.values():
                    if isinstance(binding, PackedPart):
                        key = binding.layout, tuple(step.site.actual(value).name for value in binding.weights)
                        self._packed[key] = self._packed.get(key) or packed_weights(*key, store)
                    elif isinstance(binding, Data):
                        actual = step.site.actual(binding.value)
                        if actual not in self._values and (
                            isinstance(actual, Weight) or actual in self._steps.constants
                        ):
                            self._values[actual] = self._value(actual, store)

    def _value(self, value: Value, store: WeightStore) -> Tensor:
        if isinstance(value, Weight):
            return packed_weights(Plain(), (value.name,), store)["data"]
        number = store.number(("kernel constant", self._key(value)))
        made: Tensor = store.derived(number, lambda: self._computed(value, store))
        return made

    def _computed(self, value: Value, store: WeightStore) -> Tensor:
        graph = Graph("constant")
        graph.set_outputs({"out": self._copied(value, graph, {})})
        plan = TorchPlan(graph, store.device)
        plan.bind(store)
        (result,) = plan()
        return copied(result, WEIGHTS)

    def _copied(self, value: Value, graph: Graph, known: dict[Value, Value]) -> Value:
        """The value in `graph`, with everything it is computed from."""
        if value in known or value.producer is None:
            return known.get(value, value)
        node = value.producer
        for operand in node.inputs:
            if operand is not None:
                self._copied(operand, graph, known)
        made = graph.add_copy(node, known)
        known.update(zip(node.outputs, made.outputs, strict=True))
        return known[value]

    def _key(self, value: Value | None) -> Hashable:
        if value is None or isinstance(value, Literal):
            return None if value is None else ("literal", repr(value.value))
        if value.producer is None:
            return ("weight", value.name)
        node = value.producer
        operands = tuple(self._key(operand) for operand in node.inputs)
        return (node.op.name, tuple(node.attrs.items()), operands, node.outputs.index(value))


def packed_weights(layout: Layout, names: tuple[str, ...], store: WeightStore) -> dict[str, Tensor]:
    """Weights in a layout, made when they are first asked for; plain ones can be made again from it."""
    parts = layout.parts
    made = store.derived(store.number(("layout", layout, names)), lambda: _pack(layout, names, store))
    for index, name in enumerate(names):
        store.recoverable(name, partial(_unpacked, layout, dict(zip(parts, made, strict=True)), index))
    return dict(zip(parts, made, strict=True))


def _pack(layout: Layout, names: tuple[str, ...], store: WeightStore) -> tuple[Tensor, ...]:
    arrays = layout.pack([_array(store.borrow(name)) for name in names])
    return tuple(from_numpy(_signed(np.asarray(arrays[part]))).to(store.device) for part in layout.parts)


def _signed(array: Array) -> Array:
    """Bits of 16-bit floats under a dtype that tensors have; `_bits` is the way back."""
    return array.view(np.int16) if array.dtype == np.uint16 else array


def _bits(array: Array) -> Array:
    return array.view(np.uint16) if array.dtype == np.int16 else array


def _array(stored: Stored) -> Array:
    return to_numpy((stored.raw if isinstance(stored, Packed) else stored).cpu())


def _unpacked(layout: Layout, parts: dict[str, Tensor], index: int) -> Tensor:
    arrays = layout.unpack({part: _bits(to_numpy(tensor.cpu())) for part, tensor in parts.items()})
    return from_numpy(arrays[index])
