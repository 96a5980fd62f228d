"""`irx.compile`: the whole path from a model to an executable, seven statements on one page."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irx.analysis.calibration import FORWARD, Calibration, Inputs
from irx.analysis.data import Data, split
from irx.analysis.quality import HeldOut
from irx.backends import find_backend, known_backends
from irx.backends.torch.call import call_on_arrays
from irx.budget import Budget, check_budget, metric_name
from irx.cache import CacheKey
from irx.errors import DeviceNotFound, MissingFeature, NoGpu, UnsupportedArgument
from irx.frontends.sources import Source, read
from irx.ir.excerpt import main_graph
from irx.ir.graph import Graph
from irx.ir.opdef import Array
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import TensorType, is_float, is_packed
from irx.ledger import Ledger, merged
from irx.passes import passes
from irx.passes.depth.policies.similarity import least_important
from irx.pipeline.backend import Backend, Latency
from irx.pipeline.base import Context, Effect
from irx.pipeline.instruments import Compare, Gain, Quality, standard_instruments
from irx.pipeline.latency import CONTEXT, timed_context
from irx.pipeline.memo import memo_key, remembered
from irx.pipeline.oracle import Oracle
from irx.pipeline.pipeline import Pipeline
from irx.pipeline.search import (
    Evaluator,
    Hunt,
    Journal,
    Search,
    Unit,
    check_search,
    joined,
    ranked,
    ranks,
    settle,
    units_of,
)
from irx.runtime import artifact
from irx.runtime.arrays import run_graph
from irx.runtime.compiled import Compiled, restore
from irx.runtime.executable import Executable
from irx.runtime.kernel import GraphKernel
from irx.runtime.snapshot import declared, stored_weights, tensor_of
from irx.runtime.spill import settled
from irx.runtime.store import WeightStore
from irx.target import Device, Target
from irx.tuning import check_effort
from irx.tuning import tune as search_schedules

SEARCHED_TOKENS = 1024  # of the calibration data, on which candidates are judged; held-out data decide on all tokens
GLANCED = 4  # one in so many of these is what a first look sees
FITTED_TOKENS = 2048  # of the others, which the passes of candidates look at; those of the chosen one look at all


def compile(
    model: Any,
    example: Any = None,
    *,
    target: str = "host",
    pipeline: str = "default",
    budget: Budget | None = None,
    data: Any = None,
    tokenizer: Any = None,
    tune: str = "none",
    dtype: str | None = None,
    dynamic: bool = True,
    max_batch: int = 16,
    max_length: int | None = None,
    strict: bool = False,
    search: Search | None = None,
    context: int | None = None,
) -> Executable:
    """Compile `model` for inference on `target`.

    `model` is an nn.Module, a transformers model, the path of a GGUF file, a Hugging Face folder or a `.irx` file, or a
    Program. `example` is a tensor, a tuple (positional) or a dict (keywords); language models need none. `pipeline` is
    a preset or pipeline text. `data` is a list of texts, of ids, or of dicts of inputs; half of it is for passes that
    look at what the model computes, half is held out to measure what lossy passes cost. With a `budget`, one that leads
    over it is dropped; where `pipeline` names none, the fastest ones inside it are searched for, as `search` says.
    `dtype` None keeps the model's own; a GGUF file computes in f32 on a CPU and in bf16 on a GPU. `max_batch` and
    `max_length` bound the batch and the sequence. `tune` "quick" or "full" searches for faster schedules of the kernels
    first; what it finds is kept for later compilations. With `strict` a refused pass is an error. What passes gain, and
    what a search compares, is the time of a step behind `context` tokens (128), or of an encoder's pass over so many.
    Raises subclasses of IRXError; see `irx.errors`.
    """
    check_effort(tune)
    check_search(search, budget)
    check_budget(budget, data)
    goal = aim(target)
    limits: dict[str, Any] = {"dynamic": dynamic, "max_batch": max_batch, "max_length": max_length}
    source = read(model, example, dtype=dtype, activations=floats_of(goal), **limits)
    tokenizer = source.tokenizer if tokenizer is None else tokenizer
    known = split(data, source.program, tokenizer) if data is not None else None
    options: dict[str, Any] = {"strict": strict, "digest": source.digest, "budget": budget, "data": known}
    options["context"] = timed_context(context, source.program)
    run = optimize if budget is None or _names_lossy(pipeline) else partial(search_passes, search=search or Search())
    program, ledger = run(source.program, goal, pipeline, **options)
    parts = divide(program, goal, ledger)
    schedule(program, parts, goal, ledger, tune)
    blobs = {name: parts[name].build(program, graph, goal.device) for name, graph in program.graphs.items()}
    return assemble(program, parts, blobs, goal, ledger, source, tokenizer)


def load(path: str | Path) -> Executable:
    """The executable that `Executable.save` wrote; without the compiler, and without tracing anything.

    Raises ModelNotFound, DamagedArtifact, ArtifactVersionMismatch, MissingFeature.
    """
    found = artifact.load(path)
    compiled = restore(found, load_kernel)
    found.verify()
    return Executable(compiled)


# --- the steps ------------------------------------------------------------------------------------------------------


def aim(target: str) -> Target:
    """Step 1: the target. The torch backend runs where it compiles, so what it would serve must be here.

    Raises UnknownTarget and DeviceNotFound.
    """
    goal = Target.parse(target, known_backends())
    if goal.backend is not None and (reason := find_backend(goal.backend).missing(goal.device)) is not None:
        raise MissingFeature(f"the backend {goal.backend} cannot be used: {reason}", fix="use another target")
    if _preferred(goal).name == "torch":
        _present(goal.device)
    return goal


def floats_of(goal: Target) -> str:
    """What a GGUF file, which has weights only, computes in on this target."""
    return "bf16" if goal.device.is_gpu else "f32"


def optimize(
    program: Program,
    goal: Target,
    pipeline: str,
    *,
    strict: bool = False,
    digest: str = "",
    budget: Budget | None = None,
    data: Data | None = None,
    held: HeldOut | None = None,
    context: int = CONTEXT,
) -> tuple[Program, Ledger]:
    """Step 3: run the pipeline, with the oracle that also knows torch's functions, on the user's data if there are any.

    What it makes of a model with a `digest` is kept in the cache, unless somebody watches the passes or measures by a
    function of their own. `held` is what measures quality, where there is one that knows the original's predictions.
    Raises BudgetError for a budget that cannot be measured.
    """
    run = partial(_optimize, program, goal, pipeline, strict, budget, data, held, context)
    watched = any(os.environ.get(name, "0") not in ("", "0") for name in ("IRX_DEBUG", "IRX_DUMP_DIR"))
    if not digest or watched or (budget is not None and budget.metric is not None):
        return run()
    options = {"strict": str(strict), "budget": repr(budget), "data": data.digest if data is not None else ""}
    options["context"] = str(context)
    return remembered(_key(digest, pipeline, goal, options), program, run)


def search_passes(
    program: Program,
    goal: Target,
    pipeline: str,
    *,
    budget: Budget,
    data: Data,
    search: Search,
    strict: bool = False,
    digest: str = "",
    context: int = CONTEXT,
) -> tuple[Program, Ledger]:
    """Step 3 with the fastest lossy passes inside the budget: searched on calibration data, chosen on held-out data.

    What was measured of a model with a `digest` is kept in the cache, unless the budget has a function of the user's.
    """
    started = time.monotonic()
    sample = data.sample(SEARCHED_TOKENS, FITTED_TOKENS)
    ctx = _context(program, goal, sample, context)
    clock = partial(_latency, goal=goal, context=context)
    own = budget.metric is not None  # a user's function looks at data of its own
    few = sample.few(GLANCED, program.graphs[FORWARD]) if not own else None
    glances = _judge(_held_out(program, goal, few), budget).measure if few is not None else None
    judge = _judge(_held_out(program, goal, sample), budget).measure
    evaluator = Evaluator(program, pipeline, passes(), ctx, judge, clock, search.prompt, glances)
    kept = digest and budget.metric is None
    stated = {"data": sample.digest, "prompt": str(search.prompt), "context": str(context)}
    key = replace(_key(digest, pipeline, goal, stated), kind="search") if kept else None
    looked = replace(key, options=(*key.options, ("look", few.digest))) if key is not None and few is not None else None
    glance = Journal(evaluator.glance, looked) if glances is not None else None
    units = [] if budget.exact else _units(evaluator.normalized, ctx, search)
    journal = Journal(evaluator, key)
    found = Hunt(units, journal, budget, search, glance=glance, started=started).run()
    held = _held_out(program, goal, data)
    options: dict[str, Any] = {"strict": strict, "digest": digest, "budget": budget, "data": data, "held": held}
    options["context"] = context

    def confirm(text: str) -> Mapping[str, float]:
        return _judge(held, budget).measure(*evaluator.made_of(text))

    def made_with(text: str) -> tuple[Program, Ledger]:
        return optimize(program, goal, str(joined(pipeline, text, passes())), **options)

    made, ledger = settle(found, made_with, budget, confirm)
    ledger.notes += [*evaluator.remarks, *journal.notes()]
    return made, ledger


def _units(program: Program, ctx: Context, search: Search) -> list[Unit]:
    """What a search chooses from, the layers that matter least written out."""
    units = [unit for unit in units_of(program, passes()) if search.wants(unit, ctx.context)]
    return ranked(units, least_important(program, ctx.calibrated("a search"))) if ranks(units) else units


def _optimize(
    program: Program,
    goal: Target,
    pipeline: str,
    strict: bool,
    budget: Budget | None,
    data: Data | None,
    held: HeldOut | None = None,
    context: int = CONTEXT,
) -> tuple[Program, Ledger]:
    measure = partial(_latency, goal=goal, context=context)
    judges = [_judge(held or _held_out(program, goal, data), budget)] if data is not None else []
    instruments = (*standard_instruments(*judges), Compare(call=call_on_arrays), Gain(measure))
    ctx = _context(program, goal, data, context)
    optimized, ledger = Pipeline.parse(pipeline, passes(), instruments).run(program, ctx, strict=strict)
    ledger.notes += [data.describe()] if data is not None else []
    return optimized, ledger


def divide(program: Program, goal: Target, ledger: Ledger) -> dict[str, Backend]:
    """Step 4: the backend of every graph; one that holds an unsupported node goes to torch, with the reason told."""
    preferred = _preferred(goal)
    fallback = find_backend("torch")
    parts: dict[str, Backend] = {}
    for name, graph in program.graphs.items():
        reasons = _unsupported(graph, preferred, goal.device)
        ledger.summary.fallbacks |= {f"@{name}: {node}": reason for node, reason in reasons.items()}
        parts[name] = fallback if reasons else preferred
    return parts


def schedule(program: Program, parts: Mapping[str, Backend], goal: Target, ledger: Ledger, effort: str) -> None:
    """Step 5: search for schedules where that was asked for; building uses the best that is known either way."""
    if effort == "none":
        return
    found = [parts[name].spaces(program, graph, goal.device) for name, graph in program.graphs.items()]
    report = search_schedules([task for tasks in found for task in tasks], goal.device, effort=effort)
    ledger.notes += [f"tuning refused {line}" for line in report.remarks()]


def assemble(
    program: Program,
    parts: Mapping[str, Backend],
    blobs: Mapping[str, dict[str, bytes]],
    goal: Target,
    ledger: Ledger,
    source: Source,
    tokenizer: Any = None,
) -> Executable:
    """Step 7: kernels, weights on their device, and what is known about the model."""
    used = program.used_weights()
    weights = settled(program.weights, used)
    store = WeightStore(partial(tensor_of, weights), torch.device(_here(goal).device.place))
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
        blobs=dict(blobs),
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


def transform(program: Program, goal: Target, pipeline: str, data: Data | None) -> tuple[Program, Ledger]:
    """What the passes of a pipeline make of a program, without any checks or measurements: for who measures himself."""
    return Pipeline.parse(pipeline, passes()).run(program, _context(program, goal, data))


def runner(goal: Target) -> Callable[[Program], Callable[[Inputs], list[Array]]]:
    """What makes programs of one graph runnable with torch, as `HeldOut` wants it."""
    return partial(_runner, goal=goal)


def load_kernel(backend: str, blobs: Mapping[str, bytes], target: str) -> GraphKernel:
    """The kernel of one graph of an artifact. Raises MissingFeature where its device is not here."""
    try:
        device = _present(Target.parse(target, known_backends()).device)
    except DeviceNotFound as error:
        raise NoGpu(f"the artifact was compiled for {target}: {error.what}", fix=error.fix) from error
    return find_backend(backend).restore(blobs, device)


# --- details --------------------------------------------------------------------------------------------------------


def _names_lossy(pipeline: str) -> bool:
    return any(one.effect is Effect.LOSSY for one in Pipeline.parse(pipeline, passes()).passes)


def _context(program: Program, goal: Target, data: Data | None, tokens: int = CONTEXT) -> Context:
    ctx = Context.of(program, goal.device, Oracle(call=call_on_arrays))
    ctx.context = tokens
    ctx.layouts, ctx.endings = _preferred(goal).layouts, _preferred(goal).endings
    if data is not None:
        ctx.calibration = Calibration(data.calibration, partial(_runner, goal=goal), data.digest)
    return ctx


def _key(digest: str, pipeline: str, goal: Target, options: Mapping[str, str]) -> CacheKey:
    """The key of what is made of a model with a digest, for this target on this machine."""
    host = f"{goal.device.title}, {goal.device.cores} cores, {torch.get_num_threads()} threads"
    stated = [("target", str(goal)), ("backend", _preferred(goal).name), *options.items()]
    return memo_key(digest, pipeline, host, stated, _code_folders())


def _preferred(goal: Target) -> Backend:
    """The backend that the target names, else the first for its kind of device that is here."""
    if goal.backend is not None:
        return find_backend(goal.backend)
    found = map(find_backend, _preference(goal.device))
    return next(backend for backend in found if backend.missing(goal.device) is None)


def _preference(device: Device) -> list[str]:
    """Backends for a kind of device, best first; torch, the last, can always be used."""
    wanted = ("tvm", "torch") if device.kind == "cpu" else ("triton", "torch")
    return [name for name in wanted if name in known_backends()]


def _latency(program: Program, goal: Target, context: int) -> Latency | str:
    """The time of one step of a program of one graph."""
    (graph,) = main_graph(program).graphs.values()
    return _preferred(goal).latency(program, graph, goal.device, context)


def _held_out(program: Program, goal: Target, data: Data) -> HeldOut:
    return HeldOut(program, data, partial(_runner, goal=goal), partial(_sessions, goal=goal))


def _judge(judge: HeldOut, budget: Budget | None) -> Quality:
    """What measures lossy passes on the held-out data. Raises BudgetError for a limit that they cannot measure."""
    if budget is not None:
        budget.require(judge.names)

    def figures(changed: Program, decoding: bool) -> dict[str, float]:
        own = budget.metric if budget is not None else None
        return judge.figures(changed, decoding) | (
            {metric_name(own): judge.own(own, changed)} if own is not None else {}
        )

    return Quality(figures, budget)


def _runner(program: Program, goal: Target) -> Callable[[Inputs], list[Array]]:
    """A function that runs a program of one graph with torch."""
    here = _here(goal).device
    backend, (graph,) = find_backend("torch"), program.graphs.values()
    kernel = backend.load(backend.build(program, graph, here), here)
    weights, place = settled(program.weights, program.used_weights()), torch.device(here.place)
    kernel.bind(WeightStore(partial(tensor_of, weights), place))
    return lambda inputs: run_graph(kernel, inputs, place)


def _sessions(program: Program, goal: Target) -> Callable[[int], Callable[[Array], torch.Tensor]]:
    """What opens sessions of some rows with a program that has a cache, run with torch."""
    here, backend = _here(goal), find_backend("torch")
    blobs = {name: backend.build(program, graph, here.device) for name, graph in program.graphs.items()}
    parts = dict.fromkeys(program.graphs, backend)
    made = assemble(program, parts, blobs, here, Ledger(), Source(program))

    def begin(rows: int) -> Callable[[Array], torch.Tensor]:
        session = made.session(rows)
        return lambda ids: session.append(torch.from_numpy(np.ascontiguousarray(ids)).to(here.device.place))

    return begin


def _here(goal: Target) -> Target:
    """Where torch runs programs while compiling: on the target where that is here, else on the CPU."""
    here = not goal.device.is_gpu or torch.cuda.is_available()
    return goal if here else Target.parse("torch:cpu-generic", known_backends())


def _code_folders() -> list[Path]:
    """Where the compiler's own code is."""
    modules = [sys.modules[f"irx.{name}"] for name in ("api", "passes", "backends")]
    return [Path(str(module.__file__)).parent for module in modules]


def _absent(goal: Target) -> list[str]:
    """Why backends that would be better are not used."""
    if goal.backend is not None:
        return []
    better = _preference(goal.device)
    better = better[: better.index(_preferred(goal).name)]
    return [f"the backend {name} is not used: {find_backend(name).missing(goal.device)}" for name in better]


def _present(device: Device) -> Device:
    """The device, which must be in this machine. Raises DeviceNotFound."""
    if device.is_gpu and not torch.cuda.is_available():
        raise DeviceNotFound(f"torch sees no GPU, but {device.name} is one", fix="run it on a machine that has one")
    return device


def _unsupported(graph: Graph, backend: Backend, device: Device) -> dict[str, str]:
    reasons = {repr(node): backend.supports(node, device) for node in graph.nodes}
    return {node: reason for node, reason in reasons.items() if reason is not None}


def _describe(ledger: Ledger, program: Program, parts: Mapping[str, Backend], goal: Target, source: Source) -> None:
    ledger.summary.backend = ", ".join(sorted({backend.name for backend in parts.values()}))
    ledger.summary.device = goal.device.name
    ledger.summary.dtype = _dtype(program)
    remarks = [source.note] if source.note else []
    ledger.notes += [*_absent(goal), *program.meta.get("notes", ()), *remarks, *_packed_note(program, parts)]


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
