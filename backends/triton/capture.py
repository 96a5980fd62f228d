"""Calls that repeat are recorded as CUDA graphs: a decode step is then one launch, with no Python between kernels.

A call is recorded when it comes for the third time with everything at the same addresses: sizes, caches, large inputs.
Small inputs have rooms of their own already (`irx.backends.triton.binding`); results get them here and are copied out.
A cache that has grown is at another address, so the step is recorded anew: once for each doubling of its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from irx.ir.graph import Value
from irx.ir.types import KVType
from irx.runtime.kv import KVState

if TYPE_CHECKING:
    from irx.backends.triton.binding import Bound

CALLS_BEFORE = 2  # that run one kernel after the other: libraries of torch's nodes prepare themselves in them
Addresses: TypeAlias = "tuple[int, ...]"


class Graph(Protocol):
    """Launches that were recorded."""

    def replay(self) -> None:
        """Make them all."""


Record: TypeAlias = "Callable[[Callable[[], None]], Graph]"
"""Records what a function launches, without running it."""


def record_cuda(launch: Callable[[], None]) -> Graph:
    """A CUDA graph of what `launch` puts on the current stream."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph


@dataclass
class Recording:
    """One call: how often it came with these addresses, and the graph once there is one."""

    addresses: Addresses
    calls: int = 0
    graph: Graph | None = None
    outputs: Sequence[Any] = ()


class Recorder:
    """Runs the calls of one plan, and replays those that repeat."""

    def __init__(self, inputs: Sequence[Value], record: Record | None) -> None:
        """Without `record` nothing is ever recorded."""
        self._record = record
        self._states = [i for i, value in enumerate(inputs) if isinstance(value.type, KVType)]
        self._kept: WeakKeyDictionary[Bound, Recording] = WeakKeyDictionary()

    @property
    def recorded(self) -> int:
        """Calls for which there is a graph."""
        return sum(1 for recording in self._kept.values() if recording.graph is not None)

    def known(self, bound: Bound) -> Recording | None:
        """What is known of the last call with these sizes; None where there was none."""
        return self._kept.get(bound)

    def run(self, bound: Bound, inputs: Sequence[Any]) -> list[Any]:
        """One call."""
        if self._record is None:
            return bound.run(inputs)
        given = bound.enter(inputs)
        recording = self._recording(bound, given)
        if recording.graph is None and recording.calls <= CALLS_BEFORE:
            outputs = bound.new_outputs()
            bound.launch(given, outputs)
            return bound.results(given, outputs)
        if recording.graph is None:
            recording.outputs = bound.new_outputs()
            recording.graph = self._record(lambda: bound.launch(given, recording.outputs))
        recording.graph.replay()
        return bound.results(given, [_copy(output) for output in recording.outputs])

    def _recording(self, bound: Bound, given: Sequence[Any]) -> Recording:
        """What is known of this call; nothing, where it comes with other addresses than before."""
        addresses = self._addresses(bound, given)
        found = self._kept.get(bound)
        if found is None or found.addresses != addresses:
            found = self._kept[bound] = Recording(addresses)
        found.calls += 1
        return found

    def _addresses(self, bound: Bound, given: Sequence[Any]) -> Addresses:
        found = [given[index].data_ptr() for index in bound.large]
        for index in self._states:
            found += _places(given[index])
        return tuple(found)


def _places(state: KVState) -> list[int]:
    """Where a state lies, and the numbers that kernels are told of it."""
    found = [state.capacity]
    for plane in (state.keys, state.values):
        found += [part.data_ptr() for part in (plane.tensor, *plane.parameters.values())]
    if state.paged is not None:
        found += [state.paged.tensor.data_ptr(), state.paged.columns]
    if state.prefix is not None:
        found += [state.prefix.lengths[0], *_places(state.prefix)]
    return found


def _copy(output: Any) -> Any:
    """A result that the next replay does not overwrite."""
    return output.clone() if isinstance(output, Tensor) else output
