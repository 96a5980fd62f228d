"""Runs what a rule made of a body on numpy arrays, without a plan or an executor: for tests of rules.

lowered = rule(body, choices(device))
results = run_lowered(lowered, body, {"p0": x, "p1": w})       # by name of the body's outputs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from irx.analysis.inputs import bind_sizes
from irx.backends.regions.lowered import (
    Binding,
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
from irx.backends.tvm.codegen import compile_kernels, compile_source, processor
from irx.backends.tvm.kernel import Pointer
from irx.backends.tvm.native import Argument, Entry, Table, load
from irx.backends.tvm.single import aligned_copy
from irx.ir.dims import Bindings, evaluate
from irx.ir.graph import Graph, Value
from irx.ir.types import KVType, numpy_dtype
from irx.runtime.arena import WEIGHTS
from irx.target import Device
from irx.target.host import host_cpu

State = Mapping[str, Any]
"""The arrays of a KV state by part, and under "capacity" the number of its slots."""


def choices(device: Device | None = None) -> Choices:
    """Default schedules on a device, by default the host."""
    return Choices(device or host_cpu(), default_schedule)


def run_lowered(
    lowered: Lowered,
    body: Graph,
    inputs: Mapping[str, Any],
    sizes: Bindings | None = None,
    *,
    states: Mapping[str, State] | None = None,
    threads: int = 2,
    device: Device | None = None,
) -> dict[str, Any]:
    """The tensor results of `body` by name, as its calls compute them.

    `inputs` holds an array by name of every tensor input, of the dtype of its type (packed weights as raw bytes).
    `states` holds the arrays of KV states, written in place where they are aligned. Fresh buffers are filled with
    bytes of 0xFF, so that what a kernel leaves out shows.
    """
    run = _Run(body, inputs, sizes or {}, states or {}, threads)
    calls = run.calls(lowered)
    functions = load(objects(lowered, device or host_cpu()))
    Table([run.entry(functions[call.kernel.symbol], call) for call in calls]).run(threads)
    names = zip(body.output_names, body.outputs, strict=True)
    return {name: np.array(run.data(value)) for name, value in names if not isinstance(value.type, KVType)}


_OBJECTS: dict[tuple[str, str], bytes] = {}  # by processor and symbol


def prepare(many: Iterable[Lowered], device: Device | None = None) -> None:
    """Compile the kernels of many bodies at once, in worker processes."""
    device = device or host_cpu()
    made = compile_kernels([kernel for lowered in many for kernel in lowered.kernels], device)
    _OBJECTS.update({(processor(device), symbol): data for symbol, data in made.items()})


def objects(lowered: Lowered, device: Device) -> dict[str, bytes]:
    """The objects by symbol; what was not prepared is compiled in this process, as starting a worker takes long."""
    mcpu = processor(device)
    for kernel in lowered.kernels:
        if (mcpu, kernel.symbol) not in _OBJECTS:
            _OBJECTS[mcpu, kernel.symbol] = compile_source(kernel.symbol, kernel.source, mcpu)
    return {kernel.symbol: _OBJECTS[mcpu, kernel.symbol] for kernel in lowered.kernels}


class _Run:
    """The buffers of one run."""

    def __init__(
        self, body: Graph, inputs: Mapping[str, Any], sizes: Bindings, states: Mapping[str, State], threads: int
    ) -> None:
        self.body, self.threads = body, threads
        self.arrays: dict[Value, Any] = {}
        self.raw = {v: np.asarray(inputs[v.name]) for v in body.inputs if v.name in inputs}
        self.sizes = bind_sizes(body, inputs, sizes)
        self.states = {v: states[v.name] for v in body.inputs if v.name in states}
        self.temporaries: dict[str, Any] = {}
        self.packed: dict[Any, Any] = {}

    def calls(self, lowered: Lowered) -> tuple[Call, ...]:
        fits = (c for c in lowered.cases if c.most is None or evaluate(c.size, self.sizes) <= c.most)
        return next(fits).calls

    def entry(self, function: int, call: Call) -> Entry:
        unbound = {p.name for p in call.kernel.parameters} ^ set(call.bindings)
        assert not unbound, f"{call.kernel.name}: parameters and bindings differ in {unbound}"
        return Entry(function, [self.argument(call.bindings[p.name], p) for p in call.kernel.parameters])

    def argument(self, binding: Binding, parameter: Any) -> Argument:
        if not isinstance(parameter, Pointer):
            if isinstance(binding, Capacity):
                return Argument(int(self.states[binding.state][binding.number]))
            return Argument(evaluate(binding, self.sizes))  # type: ignore[arg-type]
        return Argument(self.buffer(binding).ctypes.data, True)

    def buffer(self, binding: Any) -> Any:
        match binding:
            case Data(value):
                return self.data(value)
            case Temporary(name, size, per_thread):
                count = evaluate(size, self.sizes) * (self.threads if per_thread else 1)
                return self.temporaries.setdefault(name, _fresh(count))
            case PackedPart(layout, weights, part):
                key = (layout, weights)
                if key not in self.packed:
                    parts = layout.pack([self.raw[w] for w in weights])
                    self.packed[key] = {name: aligned_copy(array) for name, array in parts.items()}
                return self.packed[key][part]
            case StatePart(state, part):
                return self.states[self.root(state)][part]
        raise TypeError(f"no buffer for {binding!r}")

    def root(self, state: Value) -> Value:
        """The input that a state is a later version of."""
        while state not in self.states:
            assert state.producer is not None
            state = next(v for v in state.producer.inputs if v is not None and isinstance(v.type, KVType))
        return state

    def data(self, value: Value) -> Any:
        if value not in self.arrays:
            if value in self.raw:
                self.arrays[value] = aligned_copy(self.raw[value])
            else:
                shape = tuple(evaluate(size, self.sizes) for size in value.shape)
                dtype = numpy_dtype(value.dtype)
                self.arrays[value] = _fresh(int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
        return self.arrays[value]


def _fresh(count: int) -> Any:
    buffer = WEIGHTS.zeros(count)
    buffer[:] = 0xFF
    return buffer
