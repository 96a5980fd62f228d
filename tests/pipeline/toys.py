"""Small passes that do one thing each, right or wrong, and a program for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

import irx.ops  # noqa: F401
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.types import TensorType
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.pipeline.index import PassIndex
from irx.pipeline.oracle import Oracle
from irx.target import find_device

TEXT = """size B in [1, 4] hint 2
weight $w : f32[4]
graph @forward(%x: f32[B, 4]) -> (y: f32[B, 4]) {
  %a = irx.add(%x, $w)  // layers.0 @ net.py:1
  %b = irx.add(%a, 1.0)  // layers.1 @ net.py:1
  %y = irx.tanh(%b)  // head @ net.py:2
  return %y
}
"""


def program() -> Program:
    found = parse(TEXT)
    found.weights.bind("w", lambda: np.arange(4, dtype=np.float32))
    return found


def context() -> Context:
    return Context(find_device("cpu-generic"), Oracle())


def _sites(program: Program, op: str) -> list[Site]:
    graph = program.graphs["forward"]
    return [Site("forward", node.loc, f"{op} seen") for node in graph.nodes if node.op.name == op]


@dataclass(frozen=True)
class Look(Pass):
    """Changes nothing and says what it sees."""

    name = "look"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT
    op: str = "add"

    def run(self, program: Program, ctx: Context) -> Report:
        miss = NearMiss("forward", next(program.graphs["forward"].nodes).loc, "no reason")
        return Report(_sites(program, self.op), [miss], "" if self.op == "add" else f"no {self.op} here")


@dataclass(frozen=True)
class Flip(Pass):
    """Replaces the last node by its negative: wrong, and seen by nobody but Compare."""

    name = "flip"
    stage = Stage.FUSE
    effect = Effect.ROUNDING
    error: float | None = None

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs["forward"]
        node = graph.add("neg", [graph.outputs[0]])
        graph.outputs[0] = node.output
        return Report([Site("forward", node.loc, "flipped", self.error)])


@dataclass(frozen=True)
class Blur(Flip):
    """The same, allowed to."""

    name = "blur"
    effect = Effect.LOSSY


@dataclass(frozen=True)
class Break(Pass):
    """Leaves a program that the verifier rejects."""

    name = "break"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        program.graphs["forward"].output_names = []
        return Report()


@dataclass(frozen=True)
class Raise(Pass):
    """Fails half way."""

    name = "raise"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        program.graphs.clear()
        raise KeyError("lost")


@dataclass(frozen=True)
class Ruin(Pass):
    """Reads a weight that has no array: well formed, but nothing can run it."""

    name = "ruin"
    stage = Stage.FUSE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs["forward"]
        node = graph.add("add", [graph.outputs[0], program.weights.add("lost", TensorType((4,), "f32"))])
        graph.outputs[0] = node.output
        return Report()


@dataclass(frozen=True)
class Options(Pass):
    """Has an option of every kind."""

    name = "options"
    stage = Stage.CACHE
    effect = Effect.LOSSY
    conflicts = ("late",)
    bits: int = 4
    keep_ratio: float = 0.5
    fast: bool = False
    scheme: str = "a b"
    kind: Literal["half", "full"] = "half"
    layers: tuple[int, ...] = ()
    pair: tuple[str, float] = ("x", 1.0)
    window: int | None = None

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ValueError(f"bits is {self.bits}, but must be positive")

    def run(self, program: Program, ctx: Context) -> Report:
        return Report()


@dataclass(frozen=True)
class Late(Pass):
    """Must be given an option, and needs another pass."""

    name = "late"
    stage = Stage.LOWER
    effect = Effect.EXACT
    requires = ("look",)
    to: str

    def run(self, program: Program, ctx: Context) -> Report:
        return Report()


INDEX = PassIndex.of(Look, Flip, Blur, Break, Raise, Options, Late)
