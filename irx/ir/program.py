"""A program: named graphs over one weight store, the ranges of its named sizes, and what is known about the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from irx.ir.dims import Range
from irx.ir.graph import Graph, Weight
from irx.ir.weights import Weights


@dataclass
class Program:
    """`graphs` holds `forward`, and once a cache is inserted `prefill` and `decode` (and `encode`, where there is an
    encoder). `sizes` gives the range of every named size. `relations` are facts between sizes, as text
    (`"T == P + S"`). `meta` is plain JSON data: roles of inputs, longest length, token ids."""

    name: str
    graphs: dict[str, Graph] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    sizes: dict[str, Range] = field(default_factory=dict)
    relations: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def clone(self) -> Program:
        """A copy whose graphs and weight table can be changed freely; weight arrays are shared."""
        graphs = {name: graph.clone() for name, graph in self.graphs.items()}
        return Program(self.name, graphs, self.weights.copy(), dict(self.sizes), list(self.relations), dict(self.meta))

    def used_weights(self) -> list[Weight]:
        """Weights some graph reads, each once, in order of first use."""
        found: dict[Weight, None] = {}
        for graph in self.graphs.values():
            for node in graph.nodes:
                found.update((v, None) for v in node.inputs if isinstance(v, Weight))
            found.update((v, None) for v in graph.outputs if isinstance(v, Weight))
        return list(found)
