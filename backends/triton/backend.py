"""The triton backend: GPUs, with kernels compiled ahead of time for a named device; on the CPU, interpreted.

`target="triton:cpu"` lowers for a stand-in GPU and runs every kernel in Triton's interpreter: slow, and for numbers
only.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Protocol, cast

import irx.ops  # noqa: F401  declares the ops that a text names
from irx.backends.regions.asked import Chooser
from irx.backends.regions.book import Book, Recorded
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.regions.slots import Placed
from irx.backends.regions.steps import Lowering, Steps
from irx.backends.triton import manifest
from irx.backends.triton.chains import ChainedLowering
from irx.backends.triton.compiling import Binary, missing, triton_version, try_kernels
from irx.backends.triton.driver import open_driver
from irx.backends.triton.executors import Absent, Executor, Gpu, Interpreter
from irx.backends.triton.kernel import Kernel, launch_grid
from irx.backends.triton.knobs import tasks_for
from irx.backends.triton.plan import Plan
from irx.backends.triton.resources import read_usage
from irx.backends.triton.rules import RULES
from irx.backends.triton.tuning import tasks
from irx.backends.triton.usage import Usage
from irx.errors import DamagedArtifact, KernelFailed, MissingFeature, OtherArchitecture
from irx.ir.excerpt import excerpt
from irx.ir.graph import Graph, Node
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.pipeline.backend import Latency
from irx.target import Device, find_device, host_gpu

GRAPH = "graph.irx"
CHOICES = "choices.json"
STAND_IN = "a100"  # the GPU for which kernels are made that the interpreter runs
REPLACING = ("kv_evict", "kv_gather")

logger = logging.getLogger(__name__)


class Lowers(Protocol):
    """Makes the steps of graphs."""

    def steps(self, graph: Graph) -> Steps:
        """All steps of a graph."""


class TritonBackend:
    """Builds the graph's text, the choices made, and the kernels as binaries, with their sources and launches."""

    name = "triton"
    layouts = frozenset({"dense"})
    endings = frozenset({"topk"})

    def missing(self, device: Device) -> str | None:
        """Triton, which runs nowhere in this process: neither a GPU nor its driver is needed to compile."""
        return missing()

    def supports(self, node: Node, device: Device) -> str | None:
        """Nodes without kernels run by torch inside the plan; only what moves a cache's slots cannot."""
        if node.op.name in REPLACING:
            return f"{node.op.name} makes a new KV state, and kernels change states in place"
        return None

    def spaces(self, program: Program, graph: Graph, device: Device) -> Sequence[Any]:
        """A task of `irx.tuning` for every kernel of the graph that has choices. None for the interpreter."""
        return tasks(program, Placed.of(graph).graph, device) if device.is_gpu else ()

    def build(self, program: Program, graph: Graph, device: Device) -> dict[str, bytes]:
        """The graph as text, and every kernel of it: `<symbol>.cubin` (or `.hsaco`), `<symbol>.py`, `<symbol>.json`.

        A kernel that does not compile, or that the device has no room for, leaves its regions to the next rule, or to
        torch, which the ledger tells; with IRX_DEBUG it is an error.
        """
        text = print_program(excerpt(program, graph)).encode()
        return {GRAPH: text, **self._kernel_files(Placed.of(graph).graph, device)}

    def latency(self, program: Program, graph: Graph, device: Device, context: int) -> Latency | str:
        """Nothing is measured while compiling for a GPU."""
        return "kernels of a GPU are not timed while compiling"

    def latencies(self, graphs: Sequence[Graph], device: Device, context: int) -> list[Latency]:
        """There are none to compare."""
        return []

    def load(self, blobs: Mapping[str, bytes], device: Device) -> Plan:
        """The plan of a graph that `build` wrote; kernels whose binaries the files lack are compiled.

        Where no GPU of the device's architecture is, the plan can be saved but not called. Raises DamagedArtifact,
        DriverTooOld.
        """
        placed = Placed.of(_graph(blobs))
        made = json.loads(blobs[CHOICES])
        steps = self.lowering(device, made["refused"], Recorded(made["schedules"])).steps(placed.graph)
        binaries = manifest.read_all(kernels_of(steps), blobs, device) if device.is_gpu else {}
        return Plan(placed, steps, self._executor(steps, binaries, device), device, _usages(binaries, device))

    def restore(self, blobs: Mapping[str, bytes], device: Device) -> Plan:
        """The plan, to be called here. On a GPU of another architecture its kernels are built again, which is said.

        Raises NoGpu, and OtherArchitecture where triton is missing or no device file describes this GPU.
        """
        plan = self.load(blobs, device)
        error, here = plan.executor.absent, host_gpu()
        if error is None:
            return plan
        if not isinstance(error, OtherArchitecture) or here is None or self.missing(here) is not None:
            raise error
        logger.warning("%s: those of @%s are built again for %s", error.what, plan.name, here.name)
        return self.load({GRAPH: blobs[GRAPH], **self._kernel_files(plan.graph, here)}, here)

    def lowering(self, device: Device, refused: Mapping[str, str], schedule: Chooser = default_schedule) -> Lowers:
        """What makes the steps of a graph for a device, without the kernels that are refused."""
        choices = Choices(find_device(STAND_IN) if not device.is_gpu else device, schedule)
        return ChainedLowering(Lowering(RULES, choices, refused), choices, refused)

    def compiled(self, kernels: Iterable[Kernel], device: Device) -> tuple[dict[str, Binary], dict[str, str]]:
        """The binaries by symbol, and why there is none."""
        return try_kernels(kernels, device)

    def replaces(self, kernel: Kernel) -> bool:
        """True where another kernel is meant to take the place of one that cannot be made."""
        return False

    def _kernel_files(self, graph: Graph, device: Device) -> dict[str, bytes]:
        """All files of a graph's kernels, and which were refused."""
        refused: dict[str, str] = {}
        book = Book(device, tasks_for(device)) if device.is_gpu else None
        while True:
            kernels = kernels_of(self.lowering(device, refused, book or default_schedule).steps(graph))
            binaries, failures = self._binaries(kernels, device)
            if not failures:
                break
            lost = [symbol for symbol in failures if not self.replaces(kernels[symbol])]
            if lost and os.environ.get("IRX_DEBUG", "0") not in ("", "0"):
                raise KernelFailed("; ".join(f"{symbol}: {failures[symbol]}" for symbol in lost))
            refused |= failures
        chosen = {"schedules": book.used, "origins": book.origins} if book else {"schedules": {}, "origins": {}}
        files = {CHOICES: json.dumps({"refused": refused, "triton": triton_version(), **chosen}).encode()}
        for symbol, kernel in kernels.items():
            files[f"{symbol}.py"] = kernel.source.encode()
            files |= manifest.written(kernel, binaries[symbol], device) if symbol in binaries else {}
        return files

    def _binaries(self, kernels: Mapping[str, Kernel], device: Device) -> tuple[dict[str, Binary], dict[str, str]]:
        """Binaries, and why there is none: it does not compile, or never fits the device."""
        if not device.is_gpu:
            return {}, {}
        made, failures = self.compiled(kernels.values(), device)
        for symbol, usage in _usages(made, device).items():
            if (reason := usage.refusal(device)) is not None:
                failures[symbol] = f"it takes {reason}"
            elif kernels[symbol].waits and (reason := _crowded(kernels[symbol], usage, device)) is not None:
                failures[symbol] = reason
        return made, failures

    def _executor(self, steps: Steps, binaries: Mapping[str, Binary], device: Device) -> Executor:
        """What runs the kernels here. On a machine without a GPU nothing does, and a call says so."""
        if not device.is_gpu:
            return Interpreter()
        kernels = kernels_of(steps)
        try:
            open_driver().require(device)
        except MissingFeature as error:
            return Absent(error)
        absent = [kernel for symbol, kernel in kernels.items() if symbol not in binaries]
        made, failures = self.compiled(absent, device) if absent else ({}, {})
        for symbol, reason in failures.items():
            raise KernelFailed(f"the kernel {symbol} does not compile for {device.name}: {reason}")
        return Gpu(kernels, {**binaries, **made}, device)


BACKEND = TritonBackend()


def _graph(blobs: Mapping[str, bytes]) -> Graph:
    for file in (GRAPH, CHOICES):
        if file not in blobs:
            raise DamagedArtifact(f"a kernel of the triton backend lacks {file}", fix="compile and save it again")
    (graph,) = parse(blobs[GRAPH].decode(), GRAPH).graphs.values()
    return graph


def kernels_of(steps: Steps) -> dict[str, Kernel]:
    """All kernels by symbol."""
    found = {k.symbol: k for step in steps.steps if step.lowered is not None for k in step.lowered.kernels}
    return cast("dict[str, Kernel]", found)


def _crowded(kernel: Kernel, usage: Usage, device: Device) -> str | None:
    """Why programs that wait for each other must not be launched; None where all of them run at once."""
    programs, room = prod(launch_grid(kernel.grid, {})), usage.occupancy(device).blocks * device.cores
    return None if programs <= room else f"{programs} programs wait for each other, {device.name} has room for {room}"


def _usages(binaries: Mapping[str, Binary], device: Device) -> dict[str, Usage]:
    """What every kernel takes, read from its binary. Raises DamagedArtifact."""
    return {
        symbol: read_usage(binary.data, symbol, device, shared=binary.shared, warps=binary.warps)
        for symbol, binary in binaries.items()
    }
