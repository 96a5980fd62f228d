"""What a rule makes of a region: calls of kernels, with arguments named by what they are rather than where they lie.

A rule sees the body of a region once, whatever the number of layers that share it; the plan then puts the buffers of
each site in place of the body's values. Sizes stay expressions until a call of the graph gives them numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from irx.backends.layouts.layout import Layout
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Node, Value
from irx.target import Device
from irx.tuning import Choice


class Kernel(Protocol):
    """What is common to the kernels of all backends. Parameters have a `name` each."""

    @property
    def name(self) -> str:
        """What it computes, in a word."""

    @property
    def symbol(self) -> str:
        """The name of the compiled function, unique to its text."""

    @property
    def parameters(self) -> tuple[Any, ...]:
        """What a call binds, in order."""


@dataclass(frozen=True)
class Data:
    """The buffer of a tensor: an input or an output of the body, row-major and contiguous."""

    value: Value


@dataclass(frozen=True)
class Temporary:
    """A buffer of `bytes` that lives while the calls of one region run; equal names in one region are one buffer.

    With `per_thread` every thread has `bytes` of its own: the buffer is `nt` times as large (CPUs only). One that is
    `zeroed` (GPUs only) holds zeros when the region starts, because kernels leave zeros there: counters of arrivals.
    """

    name: str
    bytes: Dim
    per_thread: bool = False
    zeroed: bool = False


@dataclass(frozen=True)
class PackedPart:
    """One array of weights in a kernel's own layout, packed once when the weights are bound and shared by all graphs.

    `weights` are inputs of the body that are weights of the program in every site; `part` is an array of the layout.
    """

    layout: Layout
    weights: tuple[Value, ...]
    part: str


@dataclass(frozen=True)
class StatePart:
    """An array of a KV state: `k` or `v`, or a further one that its storage has (`k_scale`, `v_zero`)."""

    state: Value
    part: str


@dataclass(frozen=True)
class Capacity:
    """The number of slots that a KV state has allocated, as an i64; or another number that it tells kernels."""

    state: Value
    number: str = "capacity"


Binding: TypeAlias = "Data | Temporary | PackedPart | StatePart | Capacity | Dim"
"""What a parameter of a kernel is bound to; a Dim is an i64."""


@dataclass(frozen=True)
class Call:
    """One kernel call; `bindings` by parameter name. All earlier calls have finished when it starts."""

    kernel: Kernel
    bindings: Mapping[str, Binding] = field(hash=False)


@dataclass(frozen=True)
class Case:
    """The calls to make where `size` is at most `most`; None stands for any size."""

    calls: tuple[Call, ...]
    size: Dim = 1
    most: int | None = None


@dataclass(frozen=True)
class Lowered:
    """A region as kernels: the first case that fits is taken. The last one fits everything."""

    cases: tuple[Case, ...]
    note: str = ""

    @property
    def kernels(self) -> list[Kernel]:
        """All kernels of all cases."""
        return [call.kernel for case in self.cases for call in case.calls]


class Refusal(Exception):
    """Why a rule cannot make kernels of a region that it is meant for; another rule, or torch, then takes it."""


@dataclass(frozen=True)
class Choices:
    """What a rule may ask for: the device, and the schedule of a template (knob values by name) for a shape bucket."""

    device: Device
    schedule: Callable[[str, str, Mapping[str, Choice]], Mapping[str, Choice]]
    """`schedule(template, bucket, defaults)`: the knobs to use; the defaults where nothing better is known."""


Rule: TypeAlias = Callable[[Graph, Choices], "Lowered | None"]
"""`rule(body, choices)`: None where the region is not of its kind; raises Refusal where it is but cannot be served."""


def single(*calls: Call) -> Lowered:
    """A lowering with one case."""
    return Lowered((Case(calls),))


def lone(body: Graph, ops: Container[str], dtypes: Container[str]) -> Node | None:
    """The only node of a body, where it is one of these ops. Raises Refusal for other dtypes than these."""
    nodes = list(body.nodes)
    if len(nodes) != 1 or nodes[0].op.name not in ops:
        return None
    (node,) = nodes
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    strange = next((value for value in values if value.dtype not in dtypes), None)
    if strange is not None:
        raise Refusal(f"{node.op.name} of {strange.type}")
    return node


def rows_of(value: Value) -> Dim:
    """The product of all axes but the last: the rows of a row-major matrix."""
    total: Dim = 1
    for size in value.shape[:-1]:
        total = total * size
    return total


def default_schedule(template: str, bucket: str, defaults: Mapping[str, Choice]) -> Mapping[str, Choice]:
    """Every template's own defaults."""
    return defaults


def joined(*parts: Sequence[Call]) -> tuple[Call, ...]:
    """Calls one after the other."""
    return tuple(call for part in parts for call in part)
