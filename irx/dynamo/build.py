"""Steps 3 to 7 of a compilation for one of Dynamo's graphs: passes, backend, kernel, weights.

Other than `irx.compile`, this compares no whole programs: a graph of Dynamo's has the sizes of the call it was captured
from, often fixed, and the oracle would compute a long prompt in float64. The passes check their sites as always.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from irx import api
from irx.backends.torch import kernels
from irx.backends.torch.call import call_on_arrays
from irx.dynamo.capture import GRAPH, Capture, State, capture
from irx.dynamo.in_place import write_in_place
from irx.dynamo.outputs import Results, sharing
from irx.dynamo.settings import Settings
from irx.dynamo.tracing import Trace
from irx.ir.graph import Literal, Weight
from irx.ir.program import Program
from irx.ir.weights import Derivation, Weights
from irx.ledger import Ledger
from irx.passes import passes
from irx.pipeline.backend import Backend
from irx.pipeline.base import Context
from irx.pipeline.instruments import standard_instruments
from irx.pipeline.oracle import Oracle
from irx.pipeline.pipeline import Pipeline
from irx.runtime.kernel import GraphKernel
from irx.runtime.store import WeightStore
from irx.runtime.tensors import TORCH, from_numpy
from irx.target import Target

logger = logging.getLogger(__name__)

Stamp: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Built:
    """A compiled graph that lacks its weights.

    `copied_back` has triples: an argument, the position of the output that holds its new contents, and whether that may
    be memory of an argument itself. `decisive` names the weights whose elements passes looked at.
    """

    capture: Capture
    weights: Weights
    backend: Backend
    files: Mapping[str, bytes]
    goal: Target
    results: Results
    copied_back: Sequence[tuple[int, int, bool]]
    decisive: frozenset[str]

    def bind(self, state: State) -> GraphKernel:
        """A kernel with these tensors as weights: the tensors themselves, and what is derived from them."""
        kernel = self.backend.load(self.files, self.goal.device)
        store = WeightStore(partial(_tensor, self.weights, state), torch.device(self.goal.device.place))
        kernel.bind(store)
        return kernel


def build(trace: Trace, state: State, frozen: Sequence[int], goal: Target, settings: Settings) -> Built:
    """Compile a trace, the arguments at `frozen` taken as constants. Raises IRXError, PassRefused if strict."""
    captured = capture(trace, state, frozen)
    state.read.clear()
    program, ledger = _optimize(captured.program, goal, settings)
    decisive = frozenset(state.read)
    backend = api.divide(program, goal, ledger)[GRAPH]
    graph, mutated = program.graphs[GRAPH], captured.mutated
    in_place = write_in_place(graph, mutated.values()) if backend.name == "torch" else set()
    copied_back = {index: name for index, name in mutated.items() if name not in in_place}
    copied = sharing(graph, captured.outputs, list(copied_back.values()))
    api.schedule(program, {GRAPH: backend}, goal, ledger, settings.tune)
    files = backend.build(program, graph, goal.device)
    logger.debug("%s", ledger)
    results = Results(captured.outputs, captured.sizes, graph.output_names, copied)
    written = [(index, graph.output_names.index(name), name in copied) for index, name in copied_back.items()]
    return Built(captured, program.weights, backend, files, goal, results, written, decisive)


def _optimize(program: Program, goal: Target, settings: Settings) -> tuple[Program, Ledger]:
    ctx = Context.of(program, goal.device, Oracle(call=call_on_arrays))
    pipeline = Pipeline.parse(settings.pipeline, passes(), standard_instruments())
    return pipeline.run(program, ctx, strict=settings.strict)


# --- weights --------------------------------------------------------------------------------------------------------

# Derived weights by how they are made and of what memory: the graphs of one model, for a prompt and for a step, share
# them. Whoever holds one also holds the tensors it was made of, so that their addresses mean nothing else.
_derived: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()


def _tensor(weights: Weights, state: State, name: str) -> Tensor:
    """A weight: a tensor of the model itself, or what is derived from some, as a view where one will do."""
    if name in state.tensors:
        return state.tensors[name]
    weight = weights[name]
    derivation = weights.entry(weight).derivation
    if derivation is None or not any(isinstance(operand, Weight) for operand in derivation.inputs):
        return from_numpy(weights.array(weight))
    key = _origin(weights, state, weight)
    found = _derived.get(key)
    if found is None:
        found = _derived[key] = _derive(weights, state, derivation).to(TORCH[weight.dtype])
    return found


def _derive(weights: Weights, state: State, derivation: Derivation) -> Tensor:
    """Computed by torch: on the weights' device, and without a copy for what only moves axes."""
    operands = [_tensor(weights, state, v.name) if isinstance(v, Weight) else v.value for v in derivation.inputs]
    made: Tensor = kernels.find(derivation.op.name)(*operands, **derivation.attrs)
    return made


def _origin(weights: Weights, state: State, value: Weight | Literal) -> Hashable:
    """How a weight is made, down to the memory of the model's tensors."""
    if isinstance(value, Literal):
        return repr(value.value)
    if value.name in state.tensors:
        return stamp([state.tensors[value.name]]), str(value.type), state.tensors[value.name].stride()
    derivation = weights.entry(value).derivation
    if derivation is None:
        return object()  # a constant of this graph alone
    operands = tuple(_origin(weights, state, operand) for operand in derivation.inputs)
    return derivation.op.name, repr(sorted(derivation.attrs.items())), operands


def stamp(tensors: Sequence[Tensor]) -> Stamp:
    """What changes when a tensor is written to, or gets other memory."""
    return tuple([t.data_ptr() for t in tensors]), tuple([t._version for t in tensors])
