"""Runs what a rule made of a body on numpy arrays in the interpreter, without a plan: for tests of rules.

lowered = rule(body, choices("a100"))
results = run_lowered(lowered, body, {"p0": x, "p1": w})       # by name of the body's outputs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from irx.analysis.inputs import bind_sizes
from irx.backends.regions.lowered import (
    Call,
    Capacity,
    Choices,
    Data,
    Lowered,
    PackedPart,
    StatePart,
    Temporary,
    default_schedule,
)
from irx.backends.triton import interpret
from irx.backends.triton.kernel import Kernel, Pointer
from irx.ir.dims import Bindings, evaluate
from irx.ir.graph import Graph, Value
from irx.ir.types import KVType, numpy_dtype
from irx.runtime.tensors import from_numpy, to_numpy
from irx.target import find_device

State = Mapping[str, Any]
"""The tensors of a KV state by part, and the numbers that it tells kernels by name."""


def choices(device: str = "a100") -> Choices:
    """Default schedules on a device."""
    return Choices(find_device(device), default_schedule)


def run_lowered(
    lowered: Lowered,
    body: Graph,
    inputs: Mapping[str, Any],
    sizes: Bindings | None = None,
    *,
    states: Mapping[str, State] | None = None,
    run_kernel: Callable[[Kernel, Mapping[str, Any]], None] = interpret.run,
) -> dict[str, Any]:
    """The tensor results of `body` by name, as its calls compute them.

    `inputs` holds an array by name of every tensor input, of the dtype of its type (packed weights as raw bytes).
    `states` holds the tensors of KV states, written in place. Fresh buffers are filled with bytes of 0xFF, so that what
    a kernel leaves out shows; zeroed ones must be zero again at the end. `run_kernel` runs one kernel.
    """
    run = _Run(body, inputs, sizes or {}, states or {}, run_kernel)
    for call in run.calls(lowered):
        run.run(call)
    for name in run.zeroed:
        assert not run.temporaries[name].any(), f"{name} is not left as zeros"
    names = zip(body.output_names, body.outputs, strict=True)
    return {name: to_numpy(run.data(value)) for name, value in names if not isinstance(value.type, KVType)}


class _Run:
    """The buffers of one run."""

    def __init__(
        self,
        body: Graph,
        inputs: Mapping[str, Any],
        sizes: Bindings,
        states: Mapping[str, State],
        run_kernel: Callable[[Kernel, Mapping[str, Any]], None],
    ) -> None:
        self.run_kernel = run_kernel
        self.tensors: dict[Value, torch.Tensor] = {}
        self.raw = {v: np.asarray(inputs[v.name]) for v in body.inputs if v.name in inputs}
        self.sizes = bind_sizes(body, inputs, sizes)
        self.states = {v: states[v.name] for v in body.inputs if v.name in states}
        self.temporaries: dict[str, torch.Tensor] = {}
        self.zeroed: set[str] = set()
        self.packed: dict[Any, Any] = {}

    def calls(self, lowered: Lowered) -> tuple[Call, ...]:
        fits = (c for c in lowered.cases if c.most is None or evaluate(c.size, self.sizes) <= c.most)
        return next(fits).calls

    def run(self, call: Call) -> None:
        assert isinstance(call.kernel, Kernel)
        unbound = {p.name for p in call.kernel.parameters} ^ set(call.bindings)
        assert not unbound, f"{call.kernel.name}: parameters and bindings differ in {unbound}"
        arguments = {p.name: self.argument(call.bindings[p.name], p) for p in call.kernel.parameters}
        self.run_kernel(call.kernel, arguments)

    def argument(self, binding: Any, parameter: Any) -> torch.Tensor | int:
        if isinstance(parameter, Pointer):
            return self.buffer(binding)
        if isinstance(binding, Capacity):
            return int(self.states[self.root(binding.state)][binding.number])
        value = evaluate(binding, self.sizes)
        assert value % parameter.multiple == 0, f"{parameter} = {value}"
        return value

    def buffer(self, binding: Any) -> torch.Tensor:
        match binding:
            case Data(value):
                return self.data(value)
            case Temporary(name, size):
                if binding.zeroed:
                    self.zeroed.add(name)
                fill = 0 if binding.zeroed else 0xFF
                return self.temporaries.setdefault(name, _fresh(evaluate(size, self.sizes), fill))
            case PackedPart(layout, weights, part):
                if (layout, weights) not in self.packed:
                    self.packed[layout, weights] = layout.pack([self.raw[w] for w in weights])
                return _tensor(self.packed[layout, weights][part])
            case StatePart(state, part):
                tensor: torch.Tensor = self.states[self.root(state)][part]
                return tensor
        raise TypeError(f"no buffer for {binding!r}")

    def root(self, state: Value) -> Value:
        """The input that a state is a later version of."""
        while state not in self.states:
            assert state.producer is not None
            state = next(v for v in state.producer.inputs if v is not None and isinstance(v.type, KVType))
        return state

    def data(self, value: Value) -> torch.Tensor:
        if value not in self.tensors:
            if value in self.raw:
                self.tensors[value] = _tensor(self.raw[value])
            else:
                shape = tuple(evaluate(size, self.sizes) for size in value.shape)
                dtype = numpy_dtype(value.dtype)
                raw = _fresh(int(np.prod(shape)) * dtype.itemsize, 0xFF).numpy()
                self.tensors[value] = from_numpy(raw.view(dtype).reshape(shape))
        return self.tensors[value]


def _tensor(array: Any) -> torch.Tensor:
    """A tensor of the array's bytes: words of codes have dtypes that torch computes little with."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array.reshape(-1).view(np.uint8).copy())


def _fresh(count: int, fill: int) -> torch.Tensor:
    return torch.full((count,), fill, dtype=torch.uint8)
