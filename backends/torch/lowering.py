"""From a graph to instructions: functions of torch that read and write numbered registers.

Registers hold, in this order, the graph's inputs, the weights and literals it reads, and the results of instructions.
Every register has a level that says what its value depends on: CONSTANT values depend on weights only and are computed
once; SIZED ones depend on the named sizes too, and are computed once for every binding of them; VARIABLE ones depend
on the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from irx.analysis.reference import resolve
from irx.backends.torch import kernels
from irx.backends.torch.call import bind_call, is_random
from irx.backends.torch.kernels.position import SHARED
from irx.ir.dims import Bindings, SymDim
from irx.ir.graph import Graph, Literal, Node, Value, Weight

CONSTANT, SIZED, VARIABLE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Instruction:
    """`registers[targets] = function(registers[sources], **attrs)`; `bind` makes the function from resolved attrs."""

    function: Callable[..., Any]
    attrs: dict[str, Any]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    level: int
    is_maker: bool = False  # the function makes the one to be called, from the attributes
    op: str = ""
    place: str = ""

    def bind(self, sizes: Bindings) -> Callable[..., Any]:
        """The function with its attributes, sizes among them replaced by ints."""
        if not self.attrs:
            return self.function
        attrs = {name: resolve(value, sizes) for name, value in self.attrs.items()}
        return self.function(**attrs) if self.is_maker else partial(self.function, **attrs)


@dataclass
class Lowered:
    """The instructions of a graph, and what its registers start with."""

    instructions: list[Instruction] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    weights: dict[int, str] = field(default_factory=dict)
    literals: dict[int, Any] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)


def lower(graph: Graph, device: torch.device) -> Lowered:
    """Translate every node. Raises UnknownOp for an op without a kernel."""
    return _Lowering(graph, device).run()


class _Lowering:
    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.graph = graph
        self.device = device
        self.result = Lowered()
        self.registers: dict[Value, int] = {}
        self.shared: dict[Hashable, int] = {}

    def run(self) -> Lowered:
        for value in self.graph.inputs:
            self.registers[value] = self._register(VARIABLE)
        for node in self.graph.nodes:
            self._node(node)
        self.result.outputs = [self._source(value) for value in self.graph.outputs]
        return self.result

    def _node(self, node: Node) -> None:
        sources = self._sources(node)
        if node.op.name == "torch.call":
            attrs: dict[str, Any] = {**node.attrs, "device": self.device}
            random = is_random(str(node.attrs["target"]))
            self._add(node, bind_call, attrs, sources, is_maker=True, least=VARIABLE if random else CONSTANT)
            return
        split = SHARED.get(node.op.name)
        if split is None:
            function = kernels.find(node.op.name)
            self._add(node, function, self._attributes(function, node.attrs), sources)
            return
        complete: dict[str, Any] = node.op.complete(node.attrs)
        prepared = self._shared(split.prepare, complete, tuple(sources[i] for i in split.takes), node.op.qualified())
        rest = tuple(s for i, s in enumerate(sources) if i not in split.takes)
        self._add(node, split.rest, {name: complete[name] for name in split.keeps}, (*rest, prepared))

    def _sources(self, node: Node) -> tuple[int, ...]:
        only_literals = all(value is None or isinstance(value, Literal) for value in node.inputs)
        as_tensor = node.op.elementwise and only_literals  # torch's functions need one tensor
        return tuple(self._source(value, as_tensor and i == 0) for i, value in enumerate(node.inputs))

    def _source(self, value: Value | None, as_tensor: bool = False) -> int:
        if value is None or isinstance(value, Literal):
            return self._literal(None if value is None else value.value, as_tensor)
        if value not in self.registers:  # the first use of a weight
            assert isinstance(value, Weight), f"{value!r} is read before it is made"
            self.registers[value] = self._register(CONSTANT)
            self.result.weights[self.registers[value]] = value.name
        return self.registers[value]

    def _literal(self, value: Any, as_tensor: bool) -> int:
        if as_tensor:
            return self._shared(_scalar, {"value": value, "device": self.device}, ())
        if isinstance(value, SymDim):
            return self._shared(_same, {"value": value}, ())
        register = self._register(CONSTANT)
        self.result.literals[register] = value
        return register

    def _attributes(self, function: Callable[..., Any], attrs: dict[str, Any]) -> dict[str, Any]:
        """The node's attributes, and the device for a kernel that makes tensors of nothing."""
        takes_device = "device" in (function.__kwdefaults__ or {})
        return {**attrs, "device": self.device} if takes_device else attrs

    def _shared(
        self, function: Callable[..., Any], attrs: dict[str, Any], sources: tuple[int, ...], op: str = ""
    ) -> int:
        key = (function, tuple(attrs.items()), sources)
        if key not in self.shared:
            level = self._level(attrs, sources)
            self.shared[key] = self._register(level)
            made = Instruction(function, attrs, sources, (self.shared[key],), level, op=op)
            self.result.instructions.append(made)
        return self.shared[key]

    def _add(
        self, node: Node, function: Callable[..., Any], attrs: dict[str, Any], sources: tuple[int, ...], *,
        is_maker: bool = False, least: int = CONSTANT,
    ) -> None:  # fmt: skip
        level = max(least, self._level(attrs, sources))
        targets = tuple(self._register(level) for _ in node.outputs)
        self.registers.update(zip(node.outputs, targets, strict=True))
        op, place = node.op.qualified(), node.loc.module
        self.result.instructions.append(Instruction(function, attrs, sources, targets, level, is_maker, op, place))

    def _level(self, attrs: dict[str, Any], sources: tuple[int, ...]) -> int:
        levels = [self.result.levels[s] for s in sources]
        return max(levels + [_level_of(value) for value in attrs.values()], default=CONSTANT)

    def _register(self, level: int) -> int:
        self.result.levels.append(level)
        return len(self.result.levels) - 1


def _same(*, value: Any) -> Any:
    """A size as an operand."""
    return value


def _scalar(*, value: Any, device: torch.device) -> torch.Tensor:
    """A number as a tensor without axes, which promotes as the number does."""
    return torch.tensor(value, device=device)


def _level_of(attr: Any) -> int:
    if isinstance(attr, tuple):
        return max(map(_level_of, attr), default=CONSTANT)
    shape = getattr(attr, "shape", ())
    return SIZED if isinstance(attr, SymDim) or any(isinstance(d, SymDim) for d in shape) else CONSTANT
