"""From a traced graph to a program, and how the arguments of a call become its inputs and sizes.

Parameters and buffers are weights. Sizes are read off the arguments: an integer is one by itself, and one that is no
axis of any tensor comes into the graph as the length of an input without memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from irx.dynamo.outputs import Output, describe_outputs
from irx.dynamo.sizes import Place
from irx.dynamo.tracing import Trace
from irx.errors import ExportFailed
from irx.frontends.torch_export.tensors import as_array
from irx.frontends.torch_export.translate import Translation, remove_dead, translate
from irx.ir.dims import Dim, Range, SymDim, symbol
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.sizes import used_sizes
from irx.ir.types import TensorType

GRAPH = "graph"  # not `forward`: its cache, if there is one, belongs to the caller, and no pass should make another


@dataclass
class State:
    """The model's own tensors by the names of the weights they are. `read` are those whose elements were looked at."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def array(self, name: str) -> Array:
        """The elements, as passes see them."""
        self.read.add(name)
        return as_array(self.tensors[name])


@dataclass(frozen=True)
class Capture:
    """A program with one graph, and what connects it with calls.

    `inputs` has, for each input of the graph, the position of its argument, or the place of the size that it stands
    for. `outputs` says how the results of a call are made, `mutated` which argument gets the contents of which output
    of the graph.
    """

    program: Program
    inputs: Sequence[int | Place]
    sizes: Mapping[str, Place]
    ranges: Mapping[Place, Range]
    outputs: Sequence[Output]
    mutated: Mapping[int, str]


def capture(trace: Trace, state: State, frozen: Collection[int]) -> Capture:
    """The program of a trace; the arguments at `frozen` are its weights, and their tensors are in `state`.

    Raises ExportFailed for what IRX has no way to say.
    """
    nodes, names = trace.placeholders, trace.names
    weights = {nodes[i].name: (names[i], state.tensors[names[i]]) for i in frozen}
    plain = {node.name: name for node, name in zip(nodes, names, strict=True)}
    translation = translate(trace.module, weights=weights, names=plain, graph_name=GRAPH)
    for name in state.tensors:
        if name in translation.weights:
            translation.weights.bind(name, partial(state.array, name))
    arguments = {name: i for i, name in enumerate(translation.inputs) if isinstance(name, str)}
    outputs = describe_outputs(trace, translation)
    _drop_aliases(translation, outputs)
    sizes = _places(translation, arguments)
    inputs: list[int | Place] = [arguments[value.name] for value in translation.graph.inputs]
    inputs += _size_inputs(translation, sizes)
    program = translation.program(GRAPH)
    integers = {name: place for name, place in sizes.items() if place.axis is None}
    mutated = {arguments[name]: output for name, output in translation.mutated.items()}
    return Capture(program, inputs, sizes, _ranges(program, integers), outputs, mutated)


def _drop_aliases(translation: Translation, outputs: Sequence[Output]) -> None:
    """Let the graph not compute what is memory of an argument, unless it has to be written there."""
    wanted = {output.name for output in outputs if output.name is not None} | set(translation.mutated.values())
    graph = translation.graph
    kept = {n: v for n, v in zip(graph.output_names, graph.outputs, strict=True) if n in wanted}
    graph.set_outputs(kept)
    remove_dead(graph)


def _places(translation: Translation, arguments: Mapping[str, int]) -> dict[str, Place]:
    """Where sizes with a name are found."""
    found: dict[str, Place] = {}
    for index, item in enumerate(translation.inputs):
        if isinstance(item, SymDim):
            _note(found, item, Place(index, None))
    for value in translation.graph.inputs:
        for axis, dim in enumerate(value.shape):
            _note(found, dim, Place(arguments[value.name], axis))
    return found


def _note(found: dict[str, Place], dim: Dim, place: Place) -> None:
    if isinstance(dim, SymDim) and dim.text.isidentifier():
        found.setdefault(dim.text, place)


def _size_inputs(translation: Translation, sizes: Mapping[str, Place]) -> list[Place]:
    """Add an input for every size that the graph uses and that is no axis of its inputs."""
    graph = translation.graph
    axes = {str(dim) for value in graph.inputs for dim in value.shape}
    missing = sorted(used_sizes(graph).keys() - axes)
    for name in missing:
        if name not in sizes:
            raise ExportFailed(f"the size {name} is neither an argument nor an axis of one")
        graph.add_input(f"length_{name}", TensorType((symbol(name),), "bool"))
    return [sizes[name] for name in missing]


def _ranges(program: Program, integers: Mapping[str, Place]) -> dict[Place, Range]:
    """What integer arguments may be. Sizes are positive for IRX, but an integer of the caller's is any number."""
    known = {place: program.sizes.get(name, Range()) for name, place in integers.items()}
    return {place: Range(max(1, limits.low), limits.high) for place, limits in known.items()}
