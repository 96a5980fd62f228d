"""The tvm backend: CPUs, with kernels made for each model and device."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any, cast

import irx.ops  # noqa: F401  declares the ops that a text names
from irx.analysis.footprint import weight_bytes
from irx.backends.regions.book import Book, Recorded
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.regions.slots import Placed
from irx.backends.regions.steps import Steps
from irx.backends.tvm.checking import wrong
from irx.backends.tvm.codegen import compile_kernels, missing, try_kernels
from irx.backends.tvm.kernel import Kernel
from irx.backends.tvm.knobs import task
from irx.backends.tvm.measure import latencies, latency
from irx.backends.tvm.plan import Plan
from irx.backends.tvm.steps import Lowering
from irx.backends.tvm.tuning import tasks
from irx.errors import DamagedArtifact, KernelFailed, MissingFeature
from irx.ir.excerpt import excerpt
from irx.ir.graph import Graph, Node
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.pipeline.backend import Latency
from irx.target import Device, host_cpu

GRAPH = "graph.irx"
CHOICES = "choices.json"
SMALLEST_MEASURED = 8 << 20  # bytes of weights of a model whose passes are timed
REPLACING = ("kv_evict", "kv_gather")


class TvmBackend:
    """Builds the graph's text, the schedules used, and the kernels as objects with their sources."""

    name = "tvm"
    layouts = frozenset({"dense", "blocked"})
    endings = frozenset({"topk"})

    def __init__(self) -> None:
        self._built: dict[bytes, tuple[Placed, Steps]] = {}  # what was built and not loaded yet

    def missing(self, device: Device) -> str | None:
        """TVM and llvmlite, or a processor that they make code for."""
        if device.kind != "cpu":
            return f"it makes kernels for CPUs, and {device.name} is none"
        architecture = platform.machine() if device.architecture == "any" else device.architecture
        if architecture not in ("x86_64", "AMD64"):
            return f"its kernels are for x86-64, not for {architecture}"
        return missing()

    def supports(self, node: Node, device: Device) -> str | None:
        """Nodes without kernels run by torch inside the plan; only what moves a cache's slots cannot."""
        if node.op.name in REPLACING:
            return f"{node.op.name} makes a new KV state, and kernels change states in place"
        return None

    def spaces(self, program: Program, graph: Graph, device: Device) -> Sequence[Any]:
        """A task of `irx.tuning` for every kernel of the graph that has choices."""
        return tasks(program, Placed.of(graph).graph, device)

    def build(self, program: Program, graph: Graph, device: Device) -> dict[str, bytes]:
        """The graph as text, and every kernel of it: `<symbol>.o` and `<symbol>.py`.

        A kernel that does not compile or whose result is off leaves its regions to torch, which the ledger tells; with
        IRX_DEBUG it is an error.
        """
        refused: dict[str, str] = {}
        book = Book(device, task)
        placed = Placed.of(graph)
        while True:
            steps = Lowering(Choices(device, book), refused).steps(placed.graph)
            kernels = _kernels(steps)
            objects, failures = try_kernels(kernels, device)
            if not failures and runs_here(device):
                failures = wrong(program, steps, objects)
            if not failures:
                break
            if os.environ.get("IRX_DEBUG", "0") not in ("", "0"):
                raise KernelFailed("; ".join(f"{symbol}: {reason}" for symbol, reason in failures.items()))
            refused |= failures
        choices = json.dumps({"refused": refused, "schedules": book.used, "origins": book.origins})
        files = {GRAPH: print_program(excerpt(program, graph)).encode(), CHOICES: choices.encode()}
        self._built[_digest(files)] = (placed, steps)
        files |= {f"{symbol}.o": data for symbol, data in objects.items()}
        return files | {f"{kernel.symbol}.py": kernel.source.encode() for kernel in kernels}

    def latency(self, program: Program, graph: Graph, device: Device, context: int) -> Latency | str:
        """The sum of the graph's regions, each timed alone on this machine."""
        if not runs_here(device):
            return f"this machine is no {device.name}"
        if weight_bytes(program) < SMALLEST_MEASURED:
            return f"the model has less than {SMALLEST_MEASURED >> 20} MiB of weights, too little to tell passes apart"
        return latency(Placed.of(graph).graph, device, Choices(device, default_schedule), context)

    def latencies(self, graphs: Sequence[Graph], device: Device, context: int) -> list[Latency]:
        """All their regions, timed now and in turns."""
        placed = [Placed.of(graph).graph for graph in graphs]
        return latencies(placed, device, Choices(device, default_schedule), context)

    def load(self, blobs: Mapping[str, bytes], device: Device) -> Plan:
        """The plan of a graph that `build` wrote; kernels that this device needs and the files lack are compiled."""
        for file in (GRAPH, CHOICES):
            if file not in blobs:
                raise DamagedArtifact(f"a kernel of the tvm backend lacks {file}", fix="compile and save it again")
        if not runs_here(device):
            lacking = ", ".join(sorted(device.features - host_cpu().features))
            raise MissingFeature(f"this machine lacks {lacking} of {device.name}", fix="compile for its own processor")
        placed, steps = _lowered(blobs, device) if (key := _digest(blobs)) not in self._built else self._built.pop(key)
        kernels = _kernels(steps)
        objects = {k.symbol: blobs[f"{k.symbol}.o"] for k in kernels if f"{k.symbol}.o" in blobs}
        missing = [kernel for kernel in kernels if kernel.symbol not in objects]
        objects |= compile_kernels(missing, device) if missing else {}
        return Plan(placed, steps, objects)

    def restore(self, blobs: Mapping[str, bytes], device: Device) -> Plan:
        """The same: a processor runs what was compiled for its features, or it does not."""
        return self.load(blobs, device)


BACKEND = TvmBackend()


def _digest(files: Mapping[str, bytes]) -> bytes:
    """What tells the graphs of a process apart."""
    return hashlib.sha256(files[GRAPH] + b"\0" + files[CHOICES]).digest()


def _lowered(files: Mapping[str, bytes], device: Device) -> tuple[Placed, Steps]:
    """The graph that was built, and its kernels again: no compiler is needed to know what they are called."""
    (graph,) = parse(files[GRAPH].decode(), GRAPH).graphs.values()
    made = json.loads(files[CHOICES])
    placed = Placed.of(graph)
    return placed, Lowering(Choices(device, Recorded(made["schedules"])), made["refused"]).steps(placed.graph)


def runs_here(device: Device) -> bool:
    """True where this machine has all features of the device."""
    return device.features <= host_cpu().features


def _kernels(steps: Steps) -> list[Kernel]:
    found = {k.symbol: k for step in steps.steps if step.lowered is not None for k in step.lowered.kernels}
    return cast("list[Kernel]", list(found.values()))
