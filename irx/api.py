"""`irx.compile`: the whole path of a model on one page, and `irx.load`.

Each of the seven statements of `compile` is one step of the path; a later step never changes what an earlier one made.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.errors import DeviceNotFound, UnknownTarget, UnsupportedArgument
from irx.pipeline.base import Context
from irx.pipeline.index import PassIndex
from irx.pipeline.instruments import Compare, standard_instruments
from irx.pipeline.oracle import Oracle
from irx.pipeline.pipeline import Pipeline
from irx.target import Device, Target

if TYPE_CHECKING:
    from irx.ir.program import Program
    from irx.ledger import Ledger
    from irx.pipeline.backend import Backend
    from irx.runtime.executable import Executable

BACKENDS = ("torch",)
DEFAULT_LENGTH = 2048  # where neither the caller nor the model says how long a sequence may be


def compile(
    model: Any,
    example: Any = None,
    *,
    target: str = "host",
    pipeline: str = "default",
    budget: object = None,
    data: object = None,
    tokenizer: Any = None,
    tune: str = "none",
    dtype: str | None = None,
    dynamic: bool = True,
    max_batch: int = 16,
    max_length: int | None = None,
    strict: bool = False,
    search: object = None,
) -> Executable:
    """Compile a model for a device; the result is called as the model is.

    `model` is an nn.Module, a transformers model, the path of a GGUF file, a Hugging Face folder or a `.irx` file, or a
    `Program`. `example` is a tensor, a tuple of positional or a dict of keyword inputs, derived for transformers models;
    sizes of 1 are allowed. With `dynamic` its batch and sequence sizes are not fixed, up to `max_batch` rows and
    `max_length` tokens (the model's own limit by default). `dtype` None keeps the model's. `pipeline` is a preset or a
    text as `default | remove-noops`. With `strict` a refused pass is an error.

    Raises UnknownTarget, what capture raises (see `irx.frontends`), UnknownPass and its kin for the pipeline, and
    UnsupportedArgument for `budget`, `data`, `search` and `tune`, which no pass uses yet.
    """
    _refuse(budget=budget, data=data, search=search, tune=None if tune == "none" else tune)
    limits = {"dynamic": dynamic, "max_batch": max_batch, "max_length": max_length}
    goal, backend, remark = resolve(target)
    source = _frontends().read(model, example, dtype=dtype, **limits)
    program, ledger = optimize(source.program, goal.device, pipeline, max_batch=max_batch, strict=strict)
    ledger.summary.fallbacks |= divide(program, backend, goal.device)
    schedules: Mapping[str, Any] = {}
    kernels = build(program, backend, goal.device, schedules)
    ledger.notes += [note for note in (remark, source.note, *program.meta.get("notes", ())) if note]
    return _assemble(program, kernels, ledger, goal.device, backend, tokenizer or source.tokenizer, max_batch)


def load(path: str | Path) -> Executable:
    """An executable that `save` wrote, ready to run: nothing is traced or compiled, and transformers is not needed.

    Raises ModelNotFound, DamagedArtifact, ArtifactVersionMismatch, and MissingFeature where this machine cannot run it.
    """
    from irx.runtime.executable import Executable

    return Executable.load(path, {name: _backend(name).load for name in BACKENDS})


def resolve(target: str) -> tuple[Target, Backend, str]:
    """The target, the backend that serves it, and a remark where that is not the one the device deserves."""
    goal = Target.parse(target)
    if goal.backend is not None and goal.backend not in BACKENDS:
        raise UnknownTarget(goal.backend, BACKENDS, where=f"the backend in target {target!r}")
    backend = _backend(goal.backend or BACKENDS[0])
    _require_here(goal.device, target)
    remark = "" if goal.backend else f"{goal.device.name} is served by the torch backend: there is no other one yet"
    return goal, backend, remark


def optimize(
    program: Program, device: Device, pipeline: str = "default", *, max_batch: int = 16, strict: bool = False
) -> tuple[Program, Ledger]:
    """Run a pipeline on a program, each pass checked; `torch.call` nodes are evaluated with torch where needed."""
    import irx.ops  # noqa: F401  (declares the operations)
    from irx.backends.torch.call import call_on_arrays

    length = program.meta.get("max_length") or DEFAULT_LENGTH
    context = Context(device, Oracle(call=call_on_arrays), max_batch=max_batch, max_length=length)
    instruments = (*standard_instruments(), Compare(call=call_on_arrays))
    return Pipeline.parse(pipeline, passes(), instruments).run(program, context, strict=strict)


def passes() -> PassIndex:
    """Every pass that is installed, by name; none is imported."""
    return PassIndex.scan("irx.passes")


def divide(program: Program, backend: Backend, device: Device) -> dict[str, str]:
    """What the backend cannot run, by the place in the model, with its reason; the torch backend runs it instead."""
    nodes = (node for graph in program.graphs.values() for node in graph.nodes)
    reasons = ((node, backend.supports(node, device)) for node in nodes)
    return {f"{node.op.qualified()} at {node.loc}": reason for node, reason in reasons if reason}


def build(program: Program, backend: Backend, device: Device, schedules: Mapping[str, Any]) -> dict[str, dict[str, bytes]]:
    """The kernels of every graph, by graph and file name."""
    return {name: backend.build(graph, device, schedules) for name, graph in program.graphs.items()}


def _assemble(
    program: Program,
    kernels: dict[str, dict[str, bytes]],
    ledger: Ledger,
    device: Device,
    backend: Backend,
    tokenizer: Any,
    max_batch: int,
) -> Executable:
    from irx.runtime.executable import Executable

    ledger.summary.backend, ledger.summary.device = backend.name, device.name
    return Executable.assemble(program, kernels, ledger, backend.name, backend.load, tokenizer, max_batch)


def _frontends() -> Any:
    return import_module("irx.frontends.sources")


def _backend(name: str) -> Backend:
    """The backend of that name: `BACKEND` in its package's `backend` module."""
    backend: Backend = import_module(f"irx.backends.{name}.backend").BACKEND
    return backend


def _require_here(device: Device, target: str) -> None:
    """The torch backend runs where it compiles."""
    import torch

    if device.kind == "cuda" and not torch.cuda.is_available():
        advice = "use target='cpu', or a machine with that GPU and a torch built for it"
        raise DeviceNotFound(f"target {target!r} is a GPU that torch does not see here", fix=advice)


def _refuse(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise UnsupportedArgument(
                f"{name}={value!r}: there is no pass that uses it in this version", fix=f"leave {name} out"
            )

