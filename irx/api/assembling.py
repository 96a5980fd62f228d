"""From an optimized program to an executable: who runs each graph, schedules, kernels and weights."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from irx.analysis.footprint import weight_bytes
from irx.api.targets import absent, here, preferred, present
from irx.backends import find_backend, known_backends
from irx.errors import DeviceNotFound, NoGpu, UnsupportedArgument
from irx.frontends.sources import Source
from irx.ir.graph import Graph
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import TensorType, is_float, is_packed
from irx.ledger import Ledger, merged
from irx.pipeline.backend import Backend
from irx.runtime.compiled import Compiled
from irx.runtime.executable import Executable
from irx.runtime.kernel import GraphKernel
from irx.runtime.snapshot import declared, stored_weights, tensor_of
from irx.runtime.spill import settled
from irx.runtime.store import WeightStore
from irx.target import Device, Target
from irx.tuning import Task
from irx.tuning import tune as search_schedules

LARGE = 64 << 20  # bytes of weights of which a second copy is looked for


def divide(program: Program, goal: Target, ledger: Ledger) -> dict[str, Backend]:
    """Step 4: the backend of every graph; one that holds an unsupported node goes to torch, with the reason told."""
    best = preferred(goal)
    fallback = find_backend("torch")
    parts: dict[str, Backend] = {}
    for name, graph in program.graphs.items():
        reasons = _unsupported(graph, best, goal.device)
        ledger.summary.fallbacks |= {f"@{name}: {node}": reason for node, reason in reasons.items()}
        parts[name] = fallback if reasons else best
    return parts


def tasks(program: Program, parts: Mapping[str, Backend], device: Device) -> list[Task]:
    """What tuning can choose in the kernels of all graphs."""
    return [task for name, graph in program.graphs.items() for task in parts[name].spaces(program, graph, device)]


def schedule(program: Program, parts: Mapping[str, Backend], goal: Target, ledger: Ledger, effort: str) -> None:
    """Step 5: search for schedules where that was asked for; building uses the best that is known either way."""
    if effort == "none":
        return
    report = search_schedules(tasks(program, parts, goal.device), goal.device, effort=effort)
    ledger.notes += [f"tuning refused {line}" for line in report.remarks()]


def assemble(
    program: Program,
    parts: Mapping[str, Backend],
    goal: Target,
    ledger: Ledger,
    source: Source,
    tokenizer: Any = None,
) -> Executable:
    """Steps 6 and 7: what each backend makes of its graphs, weights on their device, what is known about the model."""
    blobs: dict[str, Mapping[str, bytes]] = {
        name: parts[name].build(program, graph, goal.device) for name, graph in program.graphs.items()
    }
    if weight_bytes(program) >= LARGE:
        gc.collect()  # kernels that were tried and timed hold weights; those of the model need the room
    used = program.used_weights()
    weights = settled(program.weights, used)
    store = WeightStore(partial(tensor_of, weights), torch.device(here(goal).device.place))
    _describe(ledger, program, parts, goal, source)
    made = Compiled(
        name=program.name,
        target=str(goal),
        device=store.device,
        place=goal.device.place,
        pipeline=ledger.summary.pipeline,
        meta=program.meta,
        sizes=program.sizes,
        kernels={name: parts[name].load(files, goal.device) for name, files in blobs.items()},
        blobs=blobs,
        backends={name: backend.name for name, backend in parts.items()},
        packed={weight.name: weight.dtype for weight in used if is_packed(weight.dtype)},
        weights=stored_weights(weights, used, store),
        store=store,
        ledger=ledger,
        program=partial(print_program, declared(program, used)),
        tokenizer=_tokenizer_text(source.tokenizer if tokenizer is None else tokenizer),
    )
    made.bind()
    _account(ledger, made.kernels)
    store.detach(weight.name for weight in used if not is_packed(weight.dtype))
    return Executable(made, classes=True)


def build(program: Program, goal: Target, ledger: Ledger, source: Source, tokenizer: Any = None) -> Executable:
    """Steps 4, 6 and 7 at once, with the best schedules that are known."""
    return assemble(program, divide(program, goal, ledger), goal, ledger, source, tokenizer)


def load_kernel(backend: str, blobs: Mapping[str, bytes], target: str) -> GraphKernel:
    """The kernel of one graph of an artifact. Raises MissingFeature where its device is not here."""
    try:
        device = present(Target.parse(target, known_backends()).device)
    except DeviceNotFound as error:
        raise NoGpu(f"the artifact was compiled for {target}: {error.what}", fix=error.fix) from error
    return find_backend(backend).restore(blobs, device)


def _unsupported(graph: Graph, backend: Backend, device: Device) -> dict[str, str]:
    reasons = {repr(node): backend.supports(node, device) for node in graph.nodes}
    return {node: reason for node, reason in reasons.items() if reason is not None}


def _describe(ledger: Ledger, program: Program, parts: Mapping[str, Backend], goal: Target, source: Source) -> None:
    ledger.summary.backend = ", ".join(sorted({backend.name for backend in parts.values()}))
    ledger.summary.device = goal.device.name
    ledger.summary.dtype = _dtype(program)
    remarks = [source.note] if source.note else []
    ledger.notes += [*absent(goal), *program.meta.get("notes", ()), *remarks, *_packed_note(program, parts)]


def _account(ledger: Ledger, kernels: Mapping[str, GraphKernel]) -> None:
    """Enter what the backends decided, as steps after those of the pipeline."""
    first = 1 + max((row.step for row in ledger.rows), default=-1)
    for kernel in kernels.values():
        ledger.summary.fallbacks |= kernel.fallbacks
    rows = merged(row for kernel in kernels.values() for row in kernel.report())
    ledger.rows += [replace(row, step=first + row.step) for row in rows]


def _dtype(program: Program) -> str:
    """What the program computes in: the float dtype of most of its values."""
    found = Counter(
        value.type.dtype
        for graph in program.graphs.values()
        for node in graph.nodes
        for value in node.outputs
        if isinstance(value.type, TensorType) and is_float(value.type.dtype)
    )
    return found.most_common(1)[0][0] if found else ""


def _packed_note(program: Program, parts: Mapping[str, Backend]) -> list[str]:
    if all(backend.name != "torch" for backend in parts.values()):
        return []
    forms = sorted({weight.dtype for weight in program.used_weights() if is_packed(weight.dtype)})
    return [f"weights stored as {', '.join(forms)} are unpacked exactly, once, when they are loaded"] if forms else []


def _tokenizer_text(tokenizer: Any) -> str | None:
    """JSON of a tokenizer of the tokenizers package, or of the one inside a transformers tokenizer."""
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if inner is None:
        return None
    if not hasattr(inner, "to_str"):
        raise UnsupportedArgument(f"tokenizer={type(tokenizer).__name__}", fix="give one of the tokenizers package")
    return str(inner.to_str())
